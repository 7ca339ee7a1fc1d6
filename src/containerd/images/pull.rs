//! A pull: resolve the name, store documents and layers under a lease of its own, unpack each layer as soon as it and
//! those below it are here, and write the image record last. So an image with a record has been whole once, and a pull
//! that fails leaves nothing that the end of its lease does not take away.
//!
//! Source of the facts: containerd `images/handlers.go`, `labels/labels.go`, `gc` @ v1.6.20.

use std::sync::Arc;

use containerd_client::services::v1::{CreateImageRequest, Image as ImageRecord, UpdateImageRequest};
use containerd_client::types::Descriptor as Target;
use futures::stream::{self, StreamExt, TryStreamExt};
use oci_spec::image::{Descriptor, Digest, ImageManifest, MediaType};
use prost_types::FieldMask;
use tokio::sync::mpsc;

use super::super::{Containerd, Error, Labels, Problem, QUICK};
use super::content::Role;
use super::host;
use super::keyring::Credentials;
use super::lease::PullLease;
use super::manifest::{self, Document, Layer, Layout, MANIFEST_LIMIT_BYTES};
use super::reference::Reference;
use super::registry::Registry;

const LAYERS_AT_ONCE: usize = 3;

/// What a registry said a name stands for.
struct Resolved {
    /// What the name stands for, an index or a manifest, and its bytes.
    target: Descriptor,
    target_bytes: Vec<u8>,
    /// The manifest in an index, with its place there and its bytes.
    chosen: Option<(usize, Descriptor, Vec<u8>)>,
    manifest: Box<ImageManifest>,
    config: Vec<u8>,
}

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
        let resolved = self.resolve().await?;
        let (manifest_digest, doing) = match &resolved.chosen {
            Some((_, descriptor, _)) => (descriptor.digest(), "read the manifest for this platform"),
            None => (resolved.target.digest(), "read the manifest"),
        };
        let layout = Layout::new(manifest_digest.as_ref(), &resolved.manifest, &resolved.config, &host());
        let layout = Arc::new(layout.map_err(|problem| problem.during(doing))?);
        self.layers(&layout.layers).await?;
        let config_bytes = resolved.manifest.config().size();
        let size_bytes =
            layout.layers.iter().map(|layer| layer.blob.size()).fold(config_bytes, u64::saturating_add);
        let target = self.documents(resolved, &layout).await?;
        self.record(&target).await?;
        self.containerd.shared.images.known.remember(
            self.containerd.snapshotter(),
            target.digest().as_ref(),
            &layout,
        );
        Ok((layout, size_bytes))
    }

    async fn resolve(&self) -> Result<Resolved, Error> {
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
        Ok(Resolved { target, target_bytes: fetched.bytes, chosen, manifest, config })
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

    /// Stores what refers to the layers, each with the labels by which the garbage collector finds what it refers to.
    async fn documents(&self, resolved: Resolved, layout: &Layout) -> Result<Descriptor, Error> {
        let Resolved { target, target_bytes, chosen, manifest, config } = resolved;
        let mut labels = self.containerd.snapshot_label(layout);
        labels.extend(self.source());
        self.store(Role::Config, manifest.config(), config, labels).await?;

        let mut labels = self.source();
        labels
            .insert("containerd.io/gc.ref.content.config".to_owned(), manifest.config().digest().to_string());
        for (place, layer) in manifest.layers().iter().enumerate() {
            labels.insert(format!("containerd.io/gc.ref.content.l.{place}"), layer.digest().to_string());
        }
        let Some((place, descriptor, bytes)) = chosen else {
            self.store(Role::Manifest, &target, target_bytes, labels).await?;
            return Ok(target);
        };
        self.store(Role::Manifest, &descriptor, bytes, labels).await?;

        let mut labels = self.source();
        labels.insert(format!("containerd.io/gc.ref.content.m.{place}"), descriptor.digest().to_string());
        self.store(Role::Index, &target, target_bytes, labels).await?;
        Ok(target)
    }

    async fn store(
        &self,
        role: Role,
        what: &Descriptor,
        bytes: Vec<u8>,
        labels: Labels,
    ) -> Result<(), Error> {
        self.containerd.store_content(role, what, bytes, labels, self.lease).await
    }

    /// Where a blob can be had again; other clients push by it.
    fn source(&self) -> Labels {
        let key = format!("containerd.io/distribution.source.{}", self.reference.host());
        Labels::from([(key, self.reference.repository().to_owned())])
    }

    async fn record(&self, target: &Descriptor) -> Result<(), Error> {
        let image = ImageRecord {
            name: self.reference.to_string(),
            target: Some(Target {
                media_type: target.media_type().to_string(),
                digest: target.digest().to_string(),
                size: i64::try_from(target.size()).unwrap_or(i64::MAX),
                ..Target::default()
            }),
            ..ImageRecord::default()
        };
        let message = CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        let request = self.containerd.leased_request(message, self.lease.id())?;
        let mut client = self.containerd.image_records();
        match self.containerd.call("create the image record", QUICK, client.create(request)).await {
            Err(error) if error.is_already_exists() => {}
            outcome => return outcome.map(drop),
        }
        let update_mask = Some(FieldMask { paths: vec!["target".to_owned()] });
        let message = UpdateImageRequest { image: Some(image), update_mask, ..Default::default() };
        let request = self.containerd.leased_request(message, self.lease.id())?;
        self.containerd.call("update the image record", QUICK, client.update(request)).await.map(drop)
    }
}

/// An index's descriptor without what only the index needs.
fn bare(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type().clone(), descriptor.size(), descriptor.digest().clone())
}

fn check_blob(descriptor: &Descriptor, bytes: &[u8]) -> Result<(), Problem> {
    if descriptor.size() != bytes.len() as u64 {
        let reason = format!("the registry sent {} bytes, {} are promised", bytes.len(), descriptor.size());
        return Err(Problem::corrupt(reason));
    }
    check_digest(descriptor.digest().as_ref(), &manifest::digest_of(bytes))
}

pub(super) fn check_digest(expected: &str, actual: &str) -> Result<(), Problem> {
    if expected == actual {
        return Ok(());
    }
    Err(Problem::corrupt(format!("the registry sent {actual} for {expected}")))
}
