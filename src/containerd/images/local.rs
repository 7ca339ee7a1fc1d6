//! Looks up what the daemon has of an image, without the network.

use std::sync::Arc;

use containerd_client::services::v1::GetImageRequest;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::types::Descriptor as Target;
use oci_spec::image::{Descriptor, Digest, MediaType};
use tonic::transport::Channel;

use super::super::{Containerd, Error, Labels, MESSAGE_LIMIT_BYTES, QUICK};
use crate::cache::Cache;
use crate::image::Reference;
use crate::image::index_search::{Chosen, IndexSearch};
use crate::image::manifest::{self, CONFIG_LIMIT_BYTES, Layout, MANIFEST_LIMIT_BYTES};
use crate::sys::error_chain::Chained;

/// An image as the daemon has it.
pub(super) enum LocalImage {
    /// Unpacked in our snapshotter.
    Unpacked(Arc<Layout>),
    /// The documents are there, and perhaps the layers, but not the snapshot.
    Packed(Arc<Layout>),
    /// Unknown to the daemon, or unusable.
    Missing,
}

/// Maximum size of an image's documents in the cache, without history and labels. Those of a hostile image have
/// megabytes.
const KNOWN_BYTES: usize = 128 * 1024;

/// A cache of the layouts of unpacked images, by form (snapshotter and platform) and digest. An image is added once the
/// label that keeps its snapshot is set.
#[derive(Default)]
pub(super) struct LayoutCache {
    layouts: Cache<String, Arc<Layout>>,
}

impl LayoutCache {
    fn get(&self, form: &str, target: &str) -> Option<Arc<Layout>> {
        self.layouts.get(&key(form, target))
    }

    pub(super) fn remember(&self, form: &str, target: &str, layout: &Arc<Layout>) {
        if layout.document_bytes() <= KNOWN_BYTES {
            self.layouts.put(key(form, target), Arc::clone(layout));
        }
    }
}

fn key(form: &str, target: &str) -> String {
    format!("{form} {target}")
}

impl Containerd {
    /// Looks up an image by its name.
    ///
    /// # Errors
    /// The daemon's only: an unusable image counts as missing, so that a pull says what is wrong with it.
    pub(super) async fn local_image(&self, reference: &Reference) -> Result<LocalImage, Error> {
        self.local_image_as(&reference.to_string(), reference.digest()).await
    }

    /// Looks up an image by the name of its record, like [`Self::local_image`]; one with another digest is missing.
    pub(super) async fn local_image_as(&self, name: &str, digest: Option<&str>) -> Result<LocalImage, Error> {
        let Some(target) = self.image_target(name).await? else {
            return Ok(LocalImage::Missing);
        };
        if digest.is_some_and(|digest| digest != target.digest) {
            return Ok(LocalImage::Missing);
        }
        let layouts = &self.shared.images.layouts;
        if let Some(layout) = layouts.get(&self.form(), &target.digest) {
            return self.stage(layout).await;
        }
        let layout = match self.read_layout(&target).await {
            Ok(layout) => Arc::new(layout),
            Err(error @ (Error::NotFound { .. } | Error::Image { .. })) => {
                tracing::debug!(error = %error.chain(), image = name, "the image is present, but not complete");
                return Ok(LocalImage::Missing);
            }
            Err(error) => return Err(error),
        };
        let stage = self.stage(Arc::clone(&layout)).await?;
        if let LocalImage::Unpacked(_) = stage {
            self.keep_snapshot(&layout).await?;
            layouts.remember(&self.form(), &target.digest, &layout);
        }
        Ok(stage)
    }

    /// Returns the image of a digest, whatever its name, if its documents are here and it is unpacked. Doesn't use the
    /// cache.
    pub(super) async fn made(&self, target: &Target) -> Result<Option<Arc<Layout>>, Error> {
        let layout = match self.read_layout(target).await {
            Ok(layout) => Arc::new(layout),
            Err(Error::NotFound { .. } | Error::Image { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match self.stage(layout).await? {
            LocalImage::Unpacked(layout) => {
                self.keep_snapshot(&layout).await?;
                Ok(Some(layout))
            }
            LocalImage::Packed(_) | LocalImage::Missing => Ok(None),
        }
    }

    async fn stage(&self, layout: Arc<Layout>) -> Result<LocalImage, Error> {
        let is_unpacked = layout.layers.is_empty() || self.snapshot_exists(layout.chain_id()).await?;
        Ok(if is_unpacked { LocalImage::Unpacked(layout) } else { LocalImage::Packed(layout) })
    }

    pub(super) async fn image_target(&self, name: &str) -> Result<Option<Target>, Error> {
        let request = self.request(GetImageRequest { name: name.to_owned() })?;
        match self.call("look it up", QUICK, self.image_records().get(request)).await {
            Ok(answer) => Ok(answer.image.and_then(|image| image.target)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_layout(&self, target: &Target) -> Result<Layout, Error> {
        let invalid =
            |error: crate::image::ImageError| error.during(format!("read manifest {}", target.digest));
        let Chosen { descriptor, manifest, is_named, .. } = self.find_manifest(target).await?;
        manifest::check_config(manifest.config()).map_err(invalid)?;
        let config = self.read_content(manifest.config().digest().as_ref(), CONFIG_LIMIT_BYTES).await?;
        Layout::new(descriptor.digest().as_ref(), &manifest, &config, self.platform().arch(), is_named)
            .map_err(invalid)
    }

    /// Finds this host's manifest in what an image's name stands for. Parts of an index that aren't here are left out:
    /// another client need not have brought all of it.
    async fn find_manifest(&self, target: &Target) -> Result<Chosen, Error> {
        let invalid =
            |error: crate::image::ImageError| error.during(format!("read manifest {}", target.digest));
        let bytes = self.read_content(&target.digest, MANIFEST_LIMIT_BYTES).await?;
        let (media_type, document) = manifest::parse(&target.media_type, &bytes).map_err(invalid)?;
        let corrupt = |_| invalid(crate::image::ImageError::corrupt("an invalid digest"));
        let digest: Digest = target.digest.parse().map_err(corrupt)?;
        let whole = Descriptor::new(MediaType::from(media_type.as_str()), bytes.len() as u64, digest);
        let mut search = IndexSearch::from(&whole, self.platform());
        let mut chosen = search.take(bytes, document);
        let mut missing = None;
        loop {
            if let Some(chosen) = chosen {
                return Ok(chosen);
            }
            let next = match search.next() {
                Ok(next) => next.digest().to_string(),
                Err(error) => return Err(missing.unwrap_or_else(|| invalid(error))),
            };
            chosen = match self.read_content(&next, MANIFEST_LIMIT_BYTES).await {
                Ok(bytes) => search.read(bytes).map_err(invalid)?,
                Err(error) if error.is_not_found() => {
                    search.skip();
                    missing.get_or_insert(error);
                    None
                }
                Err(error) => return Err(error),
            };
        }
    }

    /// Makes the image keep its snapshot in our snapshotter, by a label: another client may have unpacked it elsewhere,
    /// and the snapshot may be here for another image with the same layers.
    pub(super) async fn keep_snapshot(&self, layout: &Layout) -> Result<(), Error> {
        let labels = self.snapshot_label(layout);
        let existing = self.content_labels(&layout.config_digest).await?;
        if labels.iter().all(|(key, value)| existing.get(key) == Some(value)) {
            return Ok(());
        }
        self.label_content(&layout.config_digest, labels).await
    }

    /// Returns the label on a configuration that keeps the snapshot.
    pub(super) fn snapshot_label(&self, layout: &Layout) -> Labels {
        let key = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter());
        match layout.chain_id() {
            "" => Labels::new(),
            chain_id => Labels::from([(key, chain_id.to_owned())]),
        }
    }

    pub(super) fn image_records(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::Arch;
    use serde_json::json;

    use super::*;
    use crate::image::digest::digest_of;

    #[test]
    fn large_layouts_are_not_cached() {
        let host = Arch::default();
        let config = json!({
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"x"), "size": 2,
        });
        let manifest =
            serde_json::from_value(json!({"schemaVersion": 2, "config": config, "layers": []})).unwrap();
        let large = "x".repeat(KNOWN_BYTES);
        for (own, is_cached) in [(json!({"Labels": {"a": large}}), true), (json!({"Env": [large]}), false)] {
            let config = json!({
                "os": "linux", "architecture": host.to_string(), "rootfs": {"type": "layers", "diff_ids": []},
                "config": own, "history": [{"comment": large}],
            });
            let layout = Layout::new("m", &manifest, config.to_string().as_bytes(), &host, false).unwrap();
            let layouts = LayoutCache::default();
            layouts.remember("overlayfs", "t", &Arc::new(layout));
            assert_eq!(layouts.get("overlayfs", "t").is_some(), is_cached);
        }
    }
}
