//! Images from an archive instead of a registry. The chosen image is stored blob by blob, each checked by its digest,
//! and unpacked like a pulled one.
//!
//! The image's record has a name of its own, with the digest in it. So an image that one job has loaded is never what
//! another job gets that names an image of a registry, whatever the archive says it is; and the same archive is loaded
//! once.
//! Source of the facts: docker `image/tarexport`, for the contents of docker's archives.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::{Descriptor, Digest, ImageManifest, MediaType};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};

use super::super::{Containerd, Error, Labels};
use super::content::{Ingest, Role};
use super::lease::{Outcome, PullLease};
use super::local::LocalImage;
use super::observers::Observers;
use super::store::Documents;
use super::unpack::Unpacking;
use super::wait::Wait;
use super::{Image, image_of};
use crate::image::ImageError;
use crate::image::Reference;
use crate::image::archive::{self, Archive, Extent, ReadTerms, Scratch};
use crate::image::archive_index::{self, Form};
use crate::image::digest::{self, check_blob, check_digest};
use crate::image::index_search::{Chosen, IndexSearch};
use crate::image::manifest::{self, CONFIG_LIMIT_BYTES, LAYERS_LIMIT, Layout, MANIFEST_LIMIT_BYTES};
use crate::image::platform::Target;

/// Bytes of a layer read and written at once, well below the daemon's limit for a message.
const PART_BYTES: u64 = 1024 * 1024;
/// Prefix of the names of loaded images. No image name of a job begins with it, since each begins with a registry's.
pub(crate) const NAME_PREFIX: &str = "loaded/";
const DOCKERS_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKERS_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKERS_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// An open archive of images, and which of them is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub file: Arc<File>,
    /// The archive's name in error messages.
    pub shown: String,
    /// The directory where it is decompressed, if it has to be.
    pub scratch: Scratch,
    /// The wanted image; `None` for the only image in the archive.
    pub wanted: Option<Reference>,
}

/// Identifies an archive file and its content, for the cache of loaded archives. The time of its last change (ctime)
/// can't be set by a job, as that of its last write (mtime) can.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    file: [u64; 3],
    changed: [i64; 4],
    /// The image that is wanted of the archive.
    wanted: Option<String>,
    /// Snapshotter and platform.
    form: String,
}

impl FileKey {
    fn of(source: &Source) -> Result<Self, ImageError> {
        let look = source.file.metadata().map_err(archive::unreadable)?;
        Ok(Self {
            file: [look.dev(), look.ino(), look.size()],
            changed: [look.mtime(), look.mtime_nsec(), look.ctime(), look.ctime_nsec()],
            wanted: source.wanted.as_ref().map(ToString::to_string),
            form: String::new(),
        })
    }
}

/// An image in an archive, and the positions of its layers there.
struct Found {
    archive: Arc<Archive>,
    name: String,
    documents: Documents,
    /// Positions of the layers, in order.
    extents: Vec<Extent>,
    layout: Arc<Layout>,
}

impl Containerd {
    /// Returns the image of an archive, unpacked. Loads it if necessary.
    ///
    /// # Errors
    /// Each names the archive. A timeout is transient.
    pub(crate) async fn load(&self, source: Source, timeout: Duration) -> Result<Image, Error> {
        self.check_snapshotter().await?;
        let doing = format!("load {}", source.shown);
        let this = self.clone();
        let terms = self.read_terms();
        // Reading stops when the caller goes away; it is a task of its own, so that what is half done then is cleaned
        // up.
        let _stops = terms.stop.clone().drop_guard();
        let loaded = tokio::spawn(async move { this.load_within(source, timeout, terms).await }).await;
        let broke = |error| ImageError::Archive { reason: format!("reading it was interrupted: {error}") };
        loaded.map_err(|error| broke(error).during("wait")).flatten().map_err(|error| error.context(&doing))
    }

    /// Returns the limits for reading an archive: the operator's limits for an image apply to the whole archive while
    /// it is decompressed.
    fn read_terms(&self) -> ReadTerms {
        let terms = &self.shared.images.limits.settings;
        let image_limit = terms.image_limit_bytes.map(|limit| (limit, "max_image_size"));
        let unpacked_limit = terms.unpacked_limit_bytes.map(|limit| (limit, "max_unpacked_size"));
        ReadTerms { image_limit: image_limit.or(unpacked_limit), ..ReadTerms::default() }
    }

    /// Loads the image of an archive, one caller at a time per archive. A file that was read before is not read again.
    async fn load_within(&self, source: Source, timeout: Duration, terms: ReadTerms) -> Result<Image, Error> {
        let until = Instant::now() + timeout;
        let observers = Arc::new(Observers::until(until));
        let late = || {
            let waits = observers.waits().texts();
            ImageError::Deadline { after: timeout, waits }.during("store and unpack")
        };
        let images = &self.shared.images;
        let looked_at = source.clone();
        let key = timeout_at(until, off_thread(move || FileKey::of(&looked_at))).await.map_err(|_| late())?;
        let mut key = key.map_err(|error| error.during("look at it"))?;
        key.form = self.form();
        let name = format!("archive {key:?}");
        let guard = images.locks.acquire(&name, Wait::SameArchive, &observers).await;
        let _guard = guard.map_err(|_| late())?;
        if let Some(name) = images.loaded.get(&key)
            && let LocalImage::Unpacked(layout) = self.local_image_as(&name, None).await?
        {
            return Ok(image_of(&name, &layout));
        }
        let found =
            timeout_at(until, find(source, terms, self.platform().clone())).await.map_err(|_| late())??;
        let name = found.name.clone();
        let image = match self.local_image_as(&name, None).await? {
            LocalImage::Unpacked(layout) => image_of(&name, &layout),
            LocalImage::Packed(_) | LocalImage::Missing => {
                let lease = PullLease::take(self, &name, &observers).await?;
                let outcome = timeout_at(until, self.store(found, &lease)).await;
                let outcome = outcome.unwrap_or_else(|_| Err(late()));
                lease.end(if outcome.is_ok() { Outcome::Made } else { Outcome::Useless }).await;
                outcome?
            }
        };
        images.loaded.put(key, name);
        Ok(image)
    }

    /// Stores the layers first, each unpacked as soon as it is here, and the record last, as in a pull.
    async fn store(&self, found: Found, lease: &PullLease) -> Result<Image, Error> {
        let Found { archive, name, documents, extents, layout } = found;
        let unpacking = Unpacking::new(self, lease);
        for (layer, extent) in layout.layers.iter().zip(extents) {
            if let Some(ingest) = self.ingest(Role::Layer, &layer.blob, lease).await? {
                copy(&archive, extent, &layer.blob, ingest).await?;
            }
            unpacking.layer(layer).await?;
        }
        let target = self.store_documents(documents, &layout, &Labels::new(), lease).await?;
        self.record_image(name.clone(), &target, lease).await?;
        self.shared.images.layouts.remember(&self.form(), target.digest().as_ref(), &layout);
        Ok(image_of(&name, &layout))
    }
}

async fn copy(
    archive: &Arc<Archive>,
    extent: Extent,
    blob: &Descriptor,
    mut ingest: Ingest,
) -> Result<(), Error> {
    let failed = |error: ImageError| error.during(format!("read layer {}", blob.digest()));
    let mut hasher = Sha256::new();
    let end = extent.at + extent.size_bytes;
    for part in parts(extent) {
        let archive = Arc::clone(archive);
        let read = off_thread(move || archive.part(part)).await.map_err(failed)?;
        hasher.update(&read);
        if part.at + part.size_bytes == end {
            check_digest(blob.digest().as_ref(), &digest::digest_text(&hasher.clone().finalize()))
                .map_err(failed)?;
        }
        ingest.write(read).await?;
    }
    ingest.commit(Labels::new()).await
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let broke = |error| ImageError::Archive { reason: format!("reading it was interrupted: {error}") };
    tokio::task::spawn_blocking(work).await.map_err(broke)?
}

async fn find(source: Source, terms: ReadTerms, platform: Target) -> Result<Found, Error> {
    off_thread(move || {
        let Source { file, shown: _, scratch, wanted } = source;
        let archive = Archive::open(&file, &scratch, terms)?;
        let images = archive_index::images(&archive, &platform)?;
        let chosen = archive_index::choose(&images, wanted.as_ref())?;
        let named =
            wanted.or_else(|| chosen.name()).map_or_else(|| "image".to_owned(), |name| name.without_digest());
        let (documents, extents) = match &chosen.form {
            Form::Oci(descriptor) => of_oci(&archive, descriptor, &platform)?,
            Form::Docker { config, layers } => of_docker(&archive, config, layers, &platform)?,
        };
        let Documents { chosen, config } = &documents;
        let digest = chosen.descriptor.digest().as_ref();
        let layout = Layout::new(digest, &chosen.manifest, config, platform.arch(), chosen.is_named)?;
        archive.terms().check_image_size(layout.size_bytes())?;
        let name = format!("{NAME_PREFIX}{named}@{}", documents.chosen.target().digest());
        Ok(Found { archive: Arc::new(archive), name, documents, extents, layout: Arc::new(layout) })
    })
    .await
    .map_err(|error| error.during("look into it"))
}

type Parts = (Documents, Vec<Extent>);

fn of_oci(archive: &Archive, target: &Descriptor, platform: &Target) -> Result<Parts, ImageError> {
    let path = archive_index::blob_path;
    let mut search = IndexSearch::from(target, platform);
    let mut missing = None;
    let chosen = loop {
        let next = search.next().map_err(|error| missing.clone().unwrap_or(error))?;
        let next = path(next);
        match archive.read(&next, MANIFEST_LIMIT_BYTES) {
            Ok(bytes) => {
                if let Some(chosen) = search.read(bytes)? {
                    break chosen;
                }
            }
            // Tools leave other platforms out of an archive, and not out of its index.
            Err(error) if archive.find(&next).is_none() => {
                missing.get_or_insert(error);
                search.skip();
            }
            Err(error) => return Err(error),
        }
    };
    let config = chosen.manifest.config();
    manifest::check_config(config)?;
    let config_bytes = archive.read(&path(config), CONFIG_LIMIT_BYTES)?;
    check_blob(config, &config_bytes)?;
    let extents = chosen.manifest.layers().iter().map(|layer| {
        let path = path(layer);
        let extent = archive.find(&path).ok_or_else(|| archive::missing(&path))?;
        digest::check_same_size(layer, extent.size_bytes)?;
        Ok(extent)
    });
    let extents = extents.collect::<Result<_, ImageError>>()?;
    Ok((Documents { chosen, config: config_bytes }, extents))
}

/// Reads an image in docker's form, which has no manifest: it gets the one that docker would push.
fn of_docker(
    archive: &Archive,
    config: &str,
    layers: &[String],
    platform: &Target,
) -> Result<Parts, ImageError> {
    let config = archive.read(config, CONFIG_LIMIT_BYTES)?;
    let parsed = manifest::read_config(&config, platform.arch())?;
    let diff_ids = parsed.rootfs().diff_ids();
    if diff_ids.len() != layers.len() {
        let reason =
            format!("manifest.json has {} layers, the configuration {}", layers.len(), diff_ids.len());
        return Err(ImageError::corrupt(reason));
    }
    if layers.len() > LAYERS_LIMIT {
        return Err(manifest::too_many_layers(layers.len()));
    }
    let mut hashed = HashMap::new();
    let mut extents = Vec::with_capacity(layers.len());
    let mut described = Vec::with_capacity(layers.len());
    for (path, diff_id) in layers.iter().zip(diff_ids) {
        let extent = archive.find(path).ok_or_else(|| archive::missing(path))?;
        let (suffix, digest) = match archive.compression(extent)? {
            None => ("", diff_id.clone()),
            Some("gzip") => (".gzip", hash(archive, extent, &mut hashed)?),
            Some("zstd") => (".zstd", hash(archive, extent, &mut hashed)?),
            Some(other) => {
                return Err(ImageError::unsupported(format!(
                    "layer {path} is compressed by {other}, which can't be unpacked"
                )));
            }
        };
        let media_type = format!("{DOCKERS_LAYER}{suffix}");
        described.push(json!({"mediaType": media_type, "size": extent.size_bytes, "digest": digest}));
        extents.push(extent);
    }
    let of_config =
        json!({"mediaType": DOCKERS_CONFIG, "size": config.len(), "digest": digest::digest_of(&config)});
    let target_bytes = json!({
        "schemaVersion": 2, "mediaType": DOCKERS_MANIFEST, "config": of_config, "layers": described,
    });
    let target_bytes = target_bytes.to_string().into_bytes();
    let digest = digest::digest_of(&target_bytes);
    let manifest: Box<ImageManifest> = serde_json::from_slice(&target_bytes)
        .map_err(|error| ImageError::corrupt(format!("its digests can't be read: {error}")))?;
    let parsed: Digest = digest.parse().map_err(|_| ImageError::corrupt("an invalid digest"))?;
    let descriptor = Descriptor::new(MediaType::from(DOCKERS_MANIFEST), target_bytes.len() as u64, parsed);
    let chosen = Chosen { indexes: Vec::new(), descriptor, bytes: target_bytes, manifest, is_named: false };
    Ok((Documents { chosen, config }, extents))
}

/// Splits an extent into the parts that are read at once.
fn parts(of: Extent) -> impl Iterator<Item = Extent> {
    let begins = (0..of.size_bytes).step_by(PART_BYTES as usize);
    begins.map(move |done| Extent { at: of.at + done, size_bytes: PART_BYTES.min(of.size_bytes - done) })
}

/// Returns the digest of a file in the archive. A file that several layers name is read once.
fn hash(
    archive: &Archive,
    extent: Extent,
    hashed: &mut HashMap<Extent, String>,
) -> Result<String, ImageError> {
    if let Some(digest) = hashed.get(&extent) {
        return Ok(digest.clone());
    }
    let mut hasher = Sha256::new();
    for part in parts(extent) {
        hasher.update(archive.part(part)?);
    }
    let digest = digest::digest_text(&hasher.finalize());
    Ok(hashed.entry(extent).or_insert(digest).clone())
}
