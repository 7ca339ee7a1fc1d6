//! A pull: resolve the name, store documents and layers under a lease of its own, unpack each layer as soon as it and
//! those below it are here, and write the image record last. So an image with a record has been whole once, and a
//! failed pull leaves nothing that the end of its lease does not remove. What several pulls need is fetched and
//! unpacked by the first of them: an image of one digest, whatever its names, and each layer.
//!
//! Source of the facts: containerd `images/handlers.go`, `labels/labels.go` @ v1.6.20.

use std::sync::Arc;

use containerd_client::types::Descriptor as Target;
use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use oci_spec::image::{Descriptor, Digest, MediaType};
use tokio::sync::mpsc;

use super::super::{Containerd, Error, Labels};
use super::download::Download;
use super::lease::{Outcome, PullLease};
use super::limits::{Answered, PullLimits};
use super::observers::{Observers, PullEvent};
use super::progress::Progress;
use super::remote_snapshotter::LayerLabels;
use super::store::Documents;
use super::unpack::Unpacking;
use super::wait::Wait;
use crate::image::digest::{self, check_blob, check_digest};
use crate::image::index_search::{Chosen, IndexSearch};
use crate::image::manifest::{self, Document, Layer, Layout};
use crate::image::{ImageError, Reference};
use crate::registry::{PullCredentials, Registry, WaitForHost};
use crate::sys::error_chain::Chained;

struct Pull<'a> {
    containerd: &'a Containerd,
    reference: &'a Reference,
    registry: &'a Registry<'a>,
    lease: &'a PullLease,
    progress: &'a Progress,
}

impl Containerd {
    /// Pulls an image; `None` if its name still stands for `current`, a digest that is here.
    ///
    /// # Errors
    /// Those of the registry, the image and the daemon. After most transient errors (see [`Outcome::of`]) fetched
    /// content is kept for the next try; after any other, nothing is left but what others keep.
    pub(super) async fn pull(
        &self,
        reference: &Reference,
        pull_credentials: PullCredentials,
        current: Option<&str>,
        observers: &Arc<Observers>,
    ) -> Result<Option<Arc<Layout>>, Error> {
        let limits = &self.shared.images.limits;
        let registry = Registry::new(
            &self.shared.images.registry,
            reference,
            pull_credentials,
            wait_for_host(observers),
        );
        let progress = Progress::new(reference.to_string(), Arc::clone(observers));
        if let Some(current) = current
            && bounded(&progress, limits, is_current(&registry, reference, current)).await?
        {
            return Ok(None);
        }
        observers.started();
        let lease = PullLease::take(self, &reference.to_string(), observers).await?;
        let pull =
            Pull { containerd: self, reference, registry: &registry, lease: &lease, progress: &progress };
        let outcome = bounded(&progress, limits, Box::pin(pull.run())).await;
        lease.end(Outcome::of(&outcome)).await;
        if outcome.is_ok() {
            let (counts, took, from) = (progress.counts(), progress.age(), progress.origins());
            observers.tell(&PullEvent::Finished { counts, took, from });
        }
        outcome.map(Some)
    }
}

/// Returns a wait for a registry's host that is marked and bounded as all waits of the pull are.
fn wait_for_host(observers: &Arc<Observers>) -> WaitForHost {
    let observers = Arc::clone(observers);
    Box::new(move |host, wanted| {
        let observers = Arc::clone(&observers);
        let pause = tokio::time::sleep(wanted);
        async move { observers.wait_for(Wait::RetryAfter { host, wanted }, pause).await }.boxed()
    })
}

/// Awaits the work of a pull until nobody waits for it any more, or until it stalls.
pub(super) async fn bounded<T>(
    progress: &Progress,
    limits: &PullLimits,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let after = limits.settings.activity_timeout;
    tokio::select! {
        outcome = work => outcome,
        // Each caller replaces this duration by its own.
        () = progress.observers().deadline_passes() => {
            let waits = progress.observers().waits().texts();
            Err(ImageError::Deadline { after: progress.age(), waits }.during("download and unpack"))
        }
        () = progress.stalls(after) => Err(ImageError::Stalled { after }.during("download")),
    }
}

async fn is_current(registry: &Registry<'_>, reference: &Reference, current: &str) -> Result<bool, Error> {
    let version = reference.version();
    let resolved = registry.resolve(version).await;
    let resolved = resolved.map_err(|error| error.during(format!("resolve {version}")))?;
    Ok(resolved.digest().as_ref() == current)
}

impl Pull<'_> {
    /// Pulls under a permit. If the same digest is being pulled under another name, waits for that pull first, without
    /// the permit.
    async fn run(&self) -> Result<Arc<Layout>, Error> {
        let images = &self.containerd.shared.images;
        let observers = self.progress.observers();
        let Answered { answer, mut permit, .. } =
            images.limits.pulls.answered(observers, self.resolve()).await?;
        let (target, bytes, document) = answer;
        let name = format!("{} {}", self.containerd.snapshotter(), target.digest());
        let _guard = match images.locks.try_acquire(&name) {
            Some(guard) => guard,
            None => {
                drop(permit);
                let in_line = |error: ImageError| error.during("wait for another pull");
                let guard = images.locks.acquire(&name, Wait::SameImage, observers).await.map_err(in_line)?;
                permit = images.limits.pulls.permit(observers).await.map_err(in_line)?;
                guard
            }
        };
        let layout = match self.made(&target).await? {
            Some(layout) => layout,
            None => self.make(&target, bytes, document).await?,
        };
        self.containerd.record_image(self.reference.to_string(), &target, self.lease).await?;
        images.layouts.remember(&self.containerd.form(), target.digest().as_ref(), &layout);
        drop(permit);
        Ok(layout)
    }

    /// Looks up the image of a digest, which may be here by another name.
    async fn made(&self, target: &Descriptor) -> Result<Option<Arc<Layout>>, Error> {
        let digest = target.digest().to_string();
        self.lease.keep(&digest, "content".to_owned()).await?;
        let target = Target { digest, media_type: target.media_type().to_string(), ..Target::default() };
        let made = self.containerd.made(&target).await?;
        if let Some(layout) = &made {
            let size_bytes = layout.size_bytes();
            self.progress.expect(layout.layers.len(), size_bytes);
            self.progress.found(size_bytes);
            layout.layers.iter().for_each(|_| self.progress.layer_is_here());
        }
        Ok(made)
    }

    async fn make(
        &self,
        target: &Descriptor,
        target_bytes: Vec<u8>,
        document: Document,
    ) -> Result<Arc<Layout>, Error> {
        let chosen = self.choose(target, target_bytes, document).await?;
        let digest = chosen.descriptor.digest().clone();
        let read = |error: ImageError| error.during(format!("read manifest {digest}"));
        let config = self.config(chosen.manifest.config()).await?;
        let layout = Layout::new(
            digest.as_ref(),
            &chosen.manifest,
            &config,
            self.containerd.platform().arch(),
            chosen.is_named,
        );
        let layout = layout.map_err(read)?;
        let layout = Arc::new(layout);
        let size_bytes = layout.size_bytes();
        self.containerd.shared.images.limits.check_image_size(size_bytes).map_err(read)?;
        self.progress.expect(layout.layers.len(), size_bytes);
        self.layers(&layout).await?;
        let documents = Documents { chosen, config };
        self.containerd.store_documents(documents, &layout, &self.source(), self.lease).await?;
        Ok(layout)
    }

    /// Fetches the manifest or index that the name stands for.
    async fn resolve(&self) -> Result<(Descriptor, Vec<u8>, Document), Error> {
        let version = self.reference.version();
        let doing = format!("fetch manifest {version}");
        let failed = |error: ImageError| error.during(&doing);
        let fetched = self.registry.manifest(version).await.map_err(failed)?;
        let digest = digest::digest_of(&fetched.bytes);
        tracing::debug!(image = %self.reference, digest, from = fetched.origin, "the image is resolved");
        if let Some(expected) = self.reference.digest() {
            check_digest(expected, &digest).map_err(|error| failed(error.on_the_way()))?;
        }
        let (media_type, document) = manifest::parse(&fetched.media_type, &fetched.bytes).map_err(failed)?;
        let digest: Digest = digest.parse().map_err(|_| failed(ImageError::corrupt("an invalid digest")))?;
        let size_bytes = fetched.bytes.len() as u64;
        let target = Descriptor::new(MediaType::from(media_type.as_str()), size_bytes, digest);
        Ok((target, fetched.bytes, document))
    }

    /// Finds this host's manifest in the document that the name stands for, and fetches what is on the way.
    async fn choose(&self, target: &Descriptor, bytes: Vec<u8>, document: Document) -> Result<Chosen, Error> {
        let mut search = IndexSearch::from(target, self.containerd.platform());
        let mut chosen = search.take(bytes, document);
        loop {
            if let Some(chosen) = chosen {
                return Ok(chosen);
            }
            let next = search.next();
            let next = next.map_err(|error| error.during(format!("read index {}", target.digest())))?.clone();
            let doing = format!("fetch manifest {}", next.digest());
            let failed = |error: ImageError| error.during(&doing);
            let bytes = match self.stored(&next).await? {
                Some(bytes) => bytes,
                None => self.registry.manifest(next.digest().as_ref()).await.map_err(failed)?.bytes,
            };
            chosen = search.read(bytes).map_err(failed)?;
        }
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let doing = format!("fetch configuration {}", descriptor.digest());
        let failed = |error: ImageError| error.during(&doing);
        manifest::check_config(descriptor).map_err(failed)?;
        let bytes = match self.stored(descriptor).await? {
            Some(bytes) => bytes,
            None => self.registry.small_blob(descriptor).await.map_err(failed)?,
        };
        check_blob(descriptor, &bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// Returns a document that another image, or an earlier try, has brought. It is stored once more, as may be needed,
    /// with the others.
    async fn stored(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, Error> {
        match self.containerd.read_content(descriptor.digest().as_ref(), descriptor.size()).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error @ (Error::NotFound { .. } | Error::Image { .. })) => {
                tracing::trace!(error = %error.chain(), "a document of the image is not in the content store; fetching it");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Downloads several layers concurrently, and unpacks them in order meanwhile. After a failed download, the layers
    /// that are here are still unpacked: the next try finds them. Layers that a remote snapshotter has are not
    /// downloaded.
    async fn layers(&self, layout: &Layout) -> Result<(), Error> {
        let mut unpacking = Unpacking::new(self.containerd, self.lease);
        if self.containerd.has_remote_snapshotter().await? {
            unpacking = unpacking.from(LayerLabels::new(self.reference, layout));
        }
        let (had, layers) = layout.layers.split_at(unpacking.had_remotely(&layout.layers).await?);
        for layer in had {
            self.progress.found(layer.blob.size());
            self.progress.layer_is_here();
        }
        let (stored, mut ready) = mpsc::unbounded_channel();
        let labels = self.source();
        let at_once = self.containerd.shared.images.limits.settings.layers_at_once.max(1);
        let download = async move {
            let fetches: Vec<_> = layers.iter().map(|layer| self.fetch(layer, &labels)).collect();
            let mut fetched = stream::iter(fetches).buffered(at_once);
            loop {
                tokio::select! {
                    next = fetched.try_next() => match next? {
                        Some(layer) => drop(stored.send(layer)),
                        None => return Ok(()),
                    },
                    // Unpacking failed, and its error says why.
                    () = stored.closed() => return Ok(()),
                }
            }
        };
        let unpack = async move {
            while let Some(layer) = ready.recv().await {
                unpacking.layer(layer).await?;
            }
            Ok(())
        };
        let (downloaded, unpacked) = tokio::join!(download, unpack);
        downloaded.and(unpacked)
    }

    /// Downloads a layer. If an earlier layer has the same digest, waits for its write and finds the blob stored.
    async fn fetch<'l>(&self, layer: &'l Layer, labels: &Labels) -> Result<&'l Layer, Error> {
        let limits = &self.containerd.shared.images.limits;
        let download = Download::new(self.registry, &layer.blob, limits, self.progress);
        let fetched = self.containerd.fetch_layer(&download, labels, self.lease).await;
        fetched.map_err(|error| {
            if error.is_not_in_registry() && manifest::is_restricted(layer.blob.media_type().as_ref()) {
                error.context("find a layer that its publisher keeps outside of registries")
            } else {
                error
            }
        })?;
        self.progress.layer_is_here();
        Ok(layer)
    }

    /// Returns the label that says where a blob can be fetched again; other clients use it for pushes.
    fn source(&self) -> Labels {
        let key = format!("containerd.io/distribution.source.{}", self.reference.host());
        Labels::from([(key, self.reference.repository().to_owned())])
    }
}
