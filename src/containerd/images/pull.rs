//! A pull: resolve the name, store documents and layers under a lease of its own, unpack each layer as soon as it and
//! those below it are here, and write the image record last. So an image with a record has been whole once, and a pull
//! that fails leaves nothing that the end of its lease does not take away.
//!
//! Source of the facts: containerd `images/handlers.go`, `labels/labels.go` @ v1.6.20.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use oci_spec::image::{Descriptor, Digest, ImageManifest, MediaType};
use tokio::sync::mpsc;

use super::super::{Containerd, Error, Labels, Problem};
use super::documents::Documents;
use super::host;
use super::keyring::Credentials;
use super::lease::PullLease;
use super::manifest::{self, Document, Layer, Layout, MANIFEST_LIMIT_BYTES};
use super::reference::Reference;
use super::registry::Registry;

const LAYERS_AT_ONCE: usize = 3;

struct Pull<'a> {
    containerd: &'a Containerd,
    reference: &'a Reference,
    registry: Registry<'a>,
    lease: &'a PullLease,
}

impl Containerd {
    /// # Errors
    /// Those of the registry, the image and the daemon; after any of them nothing is left but what others keep.
    pub(super) async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<(Arc<Layout>, u64), Error> {
        let lease = PullLease::take(self, &reference.to_string()).await?;
        let pull = Pull {
            containerd: self,
            reference,
            registry: Registry::new(&self.shared.images.http, reference, credentials),
            lease: &lease,
        };
        let outcome = Box::pin(pull.run()).await;
        lease.end(outcome.is_ok()).await;
        outcome
    }
}

impl Pull<'_> {
    async fn run(&self) -> Result<(Arc<Layout>, u64), Error> {
        let documents = self.resolve().await?;
        let (manifest_digest, doing) = match &documents.chosen {
            Some((_, descriptor, _)) => (descriptor.digest(), "read the manifest for this platform"),
            None => (documents.target.digest(), "read the manifest"),
        };
        let layout = Layout::new(manifest_digest.as_ref(), &documents.manifest, &documents.config, &host());
        let layout = Arc::new(layout.map_err(|problem| problem.during(doing))?);
        self.layers(&layout.layers).await?;
        let config_bytes = documents.manifest.config().size();
        let size_bytes =
            layout.layers.iter().map(|layer| layer.blob.size()).fold(config_bytes, u64::saturating_add);
        let target = self.containerd.store_documents(documents, &layout, &self.source(), self.lease).await?;
        self.containerd.record_image(self.reference.to_string(), &target, self.lease).await?;
        self.containerd.shared.images.known.remember(
            self.containerd.snapshotter(),
            target.digest().as_ref(),
            &layout,
        );
        Ok((layout, size_bytes))
    }

    async fn resolve(&self) -> Result<Documents, Error> {
        let version = self.reference.version();
        let doing = format!("fetch manifest {version}");
        let failed = |problem: Problem| problem.during(&doing);
        let fetched = self.registry.manifest(version).await.map_err(failed)?;
        let digest = manifest::digest_of(&fetched.bytes);
        if let Some(expected) = self.reference.digest() {
            check_digest(expected, &digest).map_err(failed)?;
        }
        let (media_type, document) = manifest::parse(&fetched.media_type, &fetched.bytes).map_err(failed)?;
        let digest: Digest = digest.parse().map_err(|_| failed(Problem::corrupt("an impossible digest")))?;
        let target =
            Descriptor::new(MediaType::from(media_type.as_str()), fetched.bytes.len() as u64, digest);
        let (manifest, chosen) = match document {
            Document::Manifest(manifest) => (manifest, None),
            Document::Index(index) => {
                let (place, descriptor) = manifest::choose(&index, &host()).map_err(failed)?;
                let (manifest, bytes) = self.chosen_manifest(descriptor).await?;
                (manifest, Some((place, bare(descriptor), bytes)))
            }
        };
        let config = self.config(manifest.config()).await?;
        Ok(Documents { target, target_bytes: fetched.bytes, chosen, manifest, config })
    }

    async fn chosen_manifest(&self, descriptor: &Descriptor) -> Result<(Box<ImageManifest>, Vec<u8>), Error> {
        let doing = format!("fetch manifest {}", descriptor.digest());
        let failed = |problem: Problem| problem.during(&doing);
        manifest::check_algorithm(descriptor).map_err(failed)?;
        manifest::check_size("it", descriptor.size(), MANIFEST_LIMIT_BYTES).map_err(failed)?;
        let fetched = self.registry.manifest(descriptor.digest().as_ref()).await.map_err(failed)?;
        check_blob(descriptor, &fetched.bytes).map_err(failed)?;
        match manifest::parse(descriptor.media_type().as_ref(), &fetched.bytes).map_err(failed)?.1 {
            Document::Manifest(manifest) => Ok((manifest, fetched.bytes)),
            Document::Index(_) => Err(failed(Problem::unsupported("an index in an index"))),
        }
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let doing = format!("fetch configuration {}", descriptor.digest());
        let failed = |problem: Problem| problem.during(&doing);
        manifest::check_config(descriptor).map_err(failed)?;
        let bytes = self.registry.small_blob(descriptor).await.map_err(failed)?;
        check_blob(descriptor, &bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// Downloads a few layers at once and unpacks them in order meanwhile. A failed download lets the layer that is
    /// being unpacked get done: the daemon would not stop in its middle.
    async fn layers(&self, layers: &[Layer]) -> Result<(), Error> {
        let (stored, mut ready) = mpsc::unbounded_channel();
        let download = async move {
            let fetches: Vec<_> =
                layers.iter().enumerate().map(|(place, layer)| self.fetch(place, layer)).collect();
            let mut fetched = stream::iter(fetches).buffered(LAYERS_AT_ONCE);
            loop {
                tokio::select! {
                    next = fetched.try_next() => match next? {
                        Some(place) => drop(stored.send(place)),
                        None => return Ok(()),
                    },
                    // The other half failed and says why.
                    () = stored.closed() => return Ok(()),
                }
            }
        };
        let unpack = async move {
            while let Some(place) = ready.recv().await {
                self.containerd.unpack(&layers[place], self.lease.id()).await?;
            }
            Ok(())
        };
        let (downloaded, unpacked) = tokio::join!(download, unpack);
        downloaded.and(unpacked)
    }

    /// A digest that an earlier layer has too waits for that one's write, and finds it done.
    async fn fetch(&self, place: usize, layer: &Layer) -> Result<usize, Error> {
        self.containerd.fetch_layer(&self.registry, &layer.blob, self.source(), self.lease).await?;
        Ok(place)
    }

    /// Where a blob can be had again; other clients push by it.
    fn source(&self) -> Labels {
        let key = format!("containerd.io/distribution.source.{}", self.reference.host());
        Labels::from([(key, self.reference.repository().to_owned())])
    }
}

/// An index's descriptor without what only the index needs.
pub(super) fn bare(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type().clone(), descriptor.size(), descriptor.digest().clone())
}

pub(super) fn check_blob(descriptor: &Descriptor, bytes: &[u8]) -> Result<(), Problem> {
    manifest::check_same_size(descriptor, bytes.len() as u64)?;
    check_digest(descriptor.digest().as_ref(), &manifest::digest_of(bytes))
}

pub(super) fn check_digest(expected: &str, actual: &str) -> Result<(), Problem> {
    if expected == actual {
        return Ok(());
    }
    Err(Problem::corrupt(format!("it is {actual}, not {expected}")))
}
