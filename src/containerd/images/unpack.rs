//! Unpacks layers: each is applied by the daemon on top of the snapshot below it, checked, and committed under its
//! chain id. Several clients may do the same at once: the second finds the snapshot made. Where the operator limits an
//! image's size on the disk, a layer's size is watched while it is unpacked, and the unpacking stopped at the limit.
//!
//! Source of the facts: containerd `rootfs/apply.go`, `unpacker.go`, `snapshots/labels.go` @ v1.6.20; image-spec
//! `config.md` (chain ids).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::types::{Descriptor, Mount};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::super::{Containerd, Error, Labels};
use super::lease::{PullLease, unique};
use super::remote_snapshotter::{self, LayerLabels};
use super::wait::Wait;
use crate::image::ImageError;
use crate::image::manifest::{Layer, Layout};
use crate::sys::error_chain::Chained;

/// Timeout of unpacking a layer, which the daemon decompresses and writes; the pull as a whole is bounded, too.
const APPLY: Duration = Duration::from_secs(3600);
/// Minimum pause between two checks of the size of a layer that is being unpacked.
const LOOK: Duration = Duration::from_millis(200);
/// Length of the pause after a check, which counts all files of the layer, as a multiple of the check's own duration.
const LOOK_SHARE: u32 = 4;
/// Maximum number of tries to unpack a layer whose snapshot is found, and then is gone again.
const TRIES: usize = 3;

/// The unpacking of one image.
pub(super) struct Unpacking<'a> {
    pub containerd: &'a Containerd,
    pub lease: &'a PullLease,
    /// The labels for a remote snapshotter, if there is one.
    layer_labels: Option<LayerLabels>,
    /// Size on the disk of the layers so far, counted if it is limited.
    unpacked_bytes: AtomicU64,
}

impl<'a> Unpacking<'a> {
    pub(super) fn new(containerd: &'a Containerd, lease: &'a PullLease) -> Self {
        Self { containerd, lease, layer_labels: None, unpacked_bytes: AtomicU64::new(0) }
    }

    /// Offers the layers to a remote snapshotter, which may have them without a download.
    pub(super) fn from(self, layer_labels: LayerLabels) -> Self {
        Self { layer_labels: Some(layer_labels), ..self }
    }

    /// Returns how many of the layers, from the lowest on, a remote snapshotter has without a download.
    ///
    /// # Errors
    /// The daemon's.
    pub(super) async fn had_remotely(&self, layers: &[Layer]) -> Result<usize, Error> {
        if self.layer_labels.is_none() {
            return Ok(0);
        }
        for (place, layer) in layers.iter().enumerate() {
            let offered = Box::pin(self.is_had(layer));
            if !self.wait_for(&format!("offer layer {}", layer.blob.digest()), offered).await? {
                return Ok(place);
            }
        }
        Ok(layers.len())
    }

    /// Returns whether a remote snapshotter has a layer. The only way to ask is to begin to make its snapshot.
    async fn is_had(&self, layer: &Layer) -> Result<bool, Error> {
        let (containerd, lease) = (self.containerd, self.lease);
        let key = format!("extract-{} {}", unique(), layer.chain_id);
        let labels = remote_snapshotter::labels(self.layer_labels.as_ref(), layer);
        match containerd.prepare(&key, &layer.parent_chain_id, labels, lease.id()).await {
            Ok(_) => {
                drop(UnfinishedSnapshot {
                    containerd,
                    key: &key,
                    leftovers: lease.leftovers(),
                    is_whole: false,
                });
                Ok(false)
            }
            Err(error) if error.is_already_exists() => {
                let kind = format!("snapshots/{}", containerd.snapshotter());
                lease.keep(&layer.chain_id, kind).await?;
                containerd.snapshot_exists(&layer.chain_id).await
            }
            Err(error) => Err(error),
        }
    }

    /// Awaits work of containerd, which has no bytes to count, as a wait of the pull.
    async fn wait_for<T>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let done = self.lease.observers().wait_for(Wait::Unpack, work).await;
        done.map_err(|error| error.during(doing))?.map_err(|error| error.context(doing))
    }

    /// Unpacks an image whose blobs are here.
    ///
    /// # Errors
    /// Not found if a blob is missing.
    pub(super) async fn all(&self, layout: &Layout) -> Result<(), Error> {
        for layer in &layout.layers {
            self.layer(layer).await?;
        }
        self.containerd.keep_snapshot(layout).await
    }

    /// Unpacks a layer whose blob is here and whose parent is unpacked, unless that is done already. Waits for another
    /// pull that is unpacking the same layer.
    ///
    /// # Errors
    /// Corrupt if the layer can't be read or is not what the configuration promises. Nothing half-done is left.
    pub(super) async fn layer(&self, layer: &Layer) -> Result<(), Error> {
        let doing = format!("unpack layer {}", layer.blob.digest());
        let name = format!("{} {}", self.containerd.snapshotter(), layer.chain_id);
        let guard =
            self.containerd.shared.images.locks.acquire(&name, Wait::SameLayer, self.lease.observers()).await;
        let _guard = guard.map_err(|error| error.during(&doing))?;
        let unpacked = async {
            self.make(layer).await?;
            self.count(layer).await
        };
        self.wait_for(&doing, Box::pin(unpacked)).await
    }

    async fn make(&self, layer: &Layer) -> Result<(), Error> {
        let mut tries = 1..TRIES;
        loop {
            match self.try_make(layer).await {
                Err(error) if error.is_already_exists() => {}
                outcome => return outcome,
            }
            // The snapshot may have been another pull's, whose lease ends before ours begins to keep it.
            let kind = format!("snapshots/{}", self.containerd.snapshotter());
            self.lease.keep(&layer.chain_id, kind).await?;
            if self.containerd.snapshot_exists(&layer.chain_id).await? || tries.next().is_none() {
                return Ok(());
            }
        }
    }

    /// Makes the snapshot of a layer.
    ///
    /// # Errors
    /// Already exists if another client has made the snapshot.
    async fn try_make(&self, layer: &Layer) -> Result<(), Error> {
        let (containerd, lease) = (self.containerd, self.lease);
        let key = format!("extract-{} {}", unique(), layer.chain_id);
        let labels = remote_snapshotter::labels(self.layer_labels.as_ref(), layer);
        let mounts = containerd.prepare(&key, &layer.parent_chain_id, labels.clone(), lease.id()).await?;
        let mut half =
            UnfinishedSnapshot { containerd, key: &key, leftovers: lease.leftovers(), is_whole: false };
        let applied = tokio::select! {
            applied = containerd.apply(layer, mounts, lease.id()) => applied?,
            error = self.outgrows(&key) => return Err(error),
        };
        if applied != layer.diff_id {
            let reason = format!("it unpacks to {applied}, and the configuration says {}", layer.diff_id);
            return Err(ImageError::corrupt(reason).during("compare"));
        }
        containerd.commit_snapshot(&key, &layer.chain_id, labels, lease.id()).await?;
        half.is_whole = true;
        lease.is_resumable().store(true, Ordering::Relaxed);
        let labels = Labels::from([("containerd.io/uncompressed".to_owned(), applied)]);
        containerd.label_content(layer.blob.digest().as_ref(), labels).await
    }

    /// Resolves once the layer that is being unpacked, with all below it, exceeds the operator's limit.
    async fn outgrows(&self, key: &str) -> Error {
        let limits = &self.containerd.shared.images.limits;
        if limits.settings.unpacked_limit_bytes.is_none() {
            return std::future::pending().await;
        }
        let below_bytes = self.unpacked_bytes.load(Ordering::Relaxed);
        loop {
            let begun = Instant::now();
            let size_bytes = self.containerd.snapshot_size(key).await.unwrap_or(0);
            if let Err(error) = limits.check_unpacked_size(below_bytes.saturating_add(size_bytes)) {
                return error.during("watch its size");
            }
            tokio::time::sleep(LOOK.max(begun.elapsed() * LOOK_SHARE)).await;
        }
    }

    /// Adds the size of an unpacked layer to the image's, and checks the limit.
    async fn count(&self, layer: &Layer) -> Result<(), Error> {
        let limits = &self.containerd.shared.images.limits;
        if limits.settings.unpacked_limit_bytes.is_none() {
            return Ok(());
        }
        let size_bytes = self.containerd.snapshot_size(&layer.chain_id).await?;
        let below_bytes = self.unpacked_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        limits
            .check_unpacked_size(below_bytes.saturating_add(size_bytes))
            .map_err(|error| error.during("count its size"))
    }
}

/// A snapshot that is being made. If dropped before it is whole, it is removed in the background; the lease's end waits
/// for that.
struct UnfinishedSnapshot<'a> {
    containerd: &'a Containerd,
    key: &'a str,
    leftovers: &'a TaskTracker,
    is_whole: bool,
}

impl Drop for UnfinishedSnapshot<'_> {
    fn drop(&mut self) {
        let Some(runtime) = Handle::try_current().ok().filter(|_| !self.is_whole) else { return };
        let (containerd, key) = (self.containerd.clone(), self.key.to_owned());
        let remove = async move {
            if let Err(error) = containerd.remove_snapshot(&key).await {
                tracing::debug!(error = %error.chain(), "can't remove a half-unpacked layer; the expiry of its lease does");
            }
        };
        self.leftovers.spawn_on(remove, &runtime);
    }
}

impl Containerd {
    /// Unpacks a layer onto mounts, and returns the digest of the unpacked content.
    async fn apply(&self, layer: &Layer, mounts: Vec<Mount>, lease: &str) -> Result<String, Error> {
        let blob = Descriptor {
            media_type: layer.blob.media_type().to_string(),
            digest: layer.blob.digest().to_string(),
            size: i64::try_from(layer.blob.size()).unwrap_or(i64::MAX),
            ..Descriptor::default()
        };
        let request =
            self.leased_request(ApplyRequest { diff: Some(blob), mounts, ..Default::default() }, lease)?;
        let mut client = DiffClient::new(self.channel());
        match self.call("apply", APPLY, client.apply(request)).await {
            Ok(answer) => Ok(answer.applied.unwrap_or_default().digest),
            Err(Error::Refused { doing, reason } | Error::Troubled { doing, reason })
                if is_unreadable(&reason) =>
            {
                Err(ImageError::corrupt(reason).during(doing))
            }
            Err(error) => Err(error),
        }
    }
}

/// Returns whether an error of the daemon, which has no code for that, means an unreadable layer. A full disk must not
/// be taken for one.
fn is_unreadable(reason: &str) -> bool {
    [
        "gzip: ",
        "flate: ",
        "zstd",
        "magic number mismatch",
        "archive/tar: ",
        "unexpected EOF",
        "unpigz",
        "igzip",
    ]
    .iter()
    .any(|sign| reason.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrupt_layers_are_distinguished_from_a_full_disk() {
        assert!(is_unreadable("failed to extract layer sha256:a: archive/tar: invalid tar header: unknown"));
        assert!(!is_unreadable(
            "failed to extract layer sha256:a: write /a/b: no space left on device: unknown"
        ));
    }
}
