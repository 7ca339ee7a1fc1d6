//! Unpacks layers: each is applied by the daemon on top of the snapshot below it, checked, and committed under its chain
//! id. Several clients may do the same at once: whoever is second finds the snapshot made.
//!
//! Source of the facts: containerd `rootfs/apply.go`, `unpacker.go`, `snapshots/labels.go` @ v1.6.20; image-spec
//! `config.md` (chain ids).

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::types::{Descriptor, Mount};

use super::super::{Containerd, Error, Labels, Problem};
use super::lease::{PullLease, unique};
use super::manifest::{Layer, Layout};

/// The daemon decompresses and writes a whole layer.
const APPLY: Duration = Duration::from_secs(600);

impl Containerd {
    /// Unpacks an image whose blobs are here.
    ///
    /// # Errors
    /// Not found is a blob that isn't.
    pub(super) async fn unpack_present(&self, name: &str, layout: &Layout) -> Result<(), Error> {
        let lease = PullLease::take(self, name).await?;
        let outcome = self.unpack_all(layout, lease.id()).await;
        lease.end(outcome.is_ok()).await;
        outcome
    }

    async fn unpack_all(&self, layout: &Layout, lease: &str) -> Result<(), Error> {
        for layer in &layout.layers {
            self.unpack(layer, lease).await?;
        }
        self.keep_snapshot(layout).await
    }

    /// Unpacks a layer whose blob is here and whose parent is unpacked.
    ///
    /// # Errors
    /// Corrupt if it can't be read or is not what the configuration promises. Nothing half-done is left.
    pub(super) async fn unpack(&self, layer: &Layer, lease: &str) -> Result<(), Error> {
        let doing = format!("unpack layer {}", layer.blob.digest());
        let key = format!("extract-{} {}", unique(), layer.chain_id);
        let labels = HashMap::from([("containerd.io/snapshot.ref".to_owned(), layer.chain_id.clone())]);
        let mounts = match self.prepare(&key, &layer.parent_chain_id, labels, lease).await {
            Ok(mounts) => mounts,
            Err(error) if error.is_already_exists() => return Ok(()),
            Err(error) => return Err(error.context(&doing)),
        };
        let outcome = self.fill(layer, &key, mounts, lease).await;
        if !matches!(outcome, Ok(Made::ByUs))
            && let Err(error) = self.remove_snapshot(&key).await
        {
            tracing::debug!(%error, "can't remove a half-unpacked layer; the end of its lease will");
        }
        outcome.map(drop).map_err(|error| error.context(&doing))
    }

    async fn fill(&self, layer: &Layer, key: &str, mounts: Vec<Mount>, lease: &str) -> Result<Made, Error> {
        let applied = self.apply(layer, mounts, lease).await?;
        if applied != layer.diff_id {
            let reason = format!("it unpacks to {applied}, the configuration promises {}", layer.diff_id);
            return Err(Problem::corrupt(reason).during("compare"));
        }
        match self.commit_snapshot(key, &layer.chain_id, lease).await {
            Ok(()) => {}
            Err(error) if error.is_already_exists() => return Ok(Made::ByAnother),
            Err(error) => return Err(error),
        }
        let labels = Labels::from([("containerd.io/uncompressed".to_owned(), applied)]);
        self.label_content(layer.blob.digest().as_ref(), labels).await?;
        Ok(Made::ByUs)
    }

    /// The digest of what was unpacked.
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
            Err(Error::Refused { doing, reason }) if is_unreadable(&reason) => {
                Err(Problem::corrupt(reason).during(doing))
            }
            Err(error) => Err(error),
        }
    }
}

enum Made {
    ByUs,
    ByAnother,
}

/// The daemon has no code for a layer that is garbage; a full disk must not be taken for one.
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
    fn garbage_is_told_from_a_full_disk() {
        assert!(is_unreadable("failed to extract layer sha256:a: archive/tar: invalid tar header: unknown"));
        assert!(!is_unreadable(
            "failed to extract layer sha256:a: write /a/b: no space left on device: unknown"
        ));
    }
}
