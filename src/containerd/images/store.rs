//! Stores the documents of an image, index, manifest and configuration, wherever they came from, with the labels by
//! which the garbage collector finds what they refer to, and the image's record, which comes last. Does not know how
//! the documents were obtained.
//!
//! Source of the facts: containerd `images/handlers.go`, `labels/labels.go`, `gc` @ v1.6.20.

use containerd_client::services::v1::{CreateImageRequest, Image as ImageRecord, UpdateImageRequest};
use containerd_client::types::Descriptor as Target;
use oci_spec::image::{Descriptor, ImageManifest};
use prost_types::FieldMask;

use super::super::{Containerd, Error, Labels, QUICK};
use super::content::Role;
use super::lease::PullLease;
use crate::image::manifest::Layout;

/// The documents of an image for this platform.
pub(super) struct Documents {
    /// The index or manifest that the name stands for, and its bytes.
    pub target: Descriptor,
    pub target_bytes: Vec<u8>,
    /// The manifest chosen from an index, with its position there and its bytes.
    pub chosen: Option<(usize, Descriptor, Vec<u8>)>,
    pub manifest: Box<ImageManifest>,
    pub config: Vec<u8>,
}

impl Containerd {
    /// Stores the documents; the layers are stored already. `source` are labels for each: where it can be fetched
    /// again.
    pub(super) async fn store_documents(
        &self,
        documents: Documents,
        layout: &Layout,
        source: &Labels,
        lease: &PullLease,
    ) -> Result<Descriptor, Error> {
        let Documents { target, target_bytes, chosen, manifest, config } = documents;
        let mut labels = self.snapshot_label(layout);
        labels.extend(source.clone());
        self.store_content(Role::Config, manifest.config(), config, labels, lease).await?;

        let mut labels = source.clone();
        labels
            .insert("containerd.io/gc.ref.content.config".to_owned(), manifest.config().digest().to_string());
        for (place, layer) in manifest.layers().iter().enumerate() {
            labels.insert(format!("containerd.io/gc.ref.content.l.{place}"), layer.digest().to_string());
        }
        let Some((place, descriptor, bytes)) = chosen else {
            self.store_content(Role::Manifest, &target, target_bytes, labels, lease).await?;
            return Ok(target);
        };
        self.store_content(Role::Manifest, &descriptor, bytes, labels, lease).await?;

        let mut labels = source.clone();
        labels.insert(format!("containerd.io/gc.ref.content.m.{place}"), descriptor.digest().to_string());
        self.store_content(Role::Index, &target, target_bytes, labels, lease).await?;
        Ok(target)
    }

    /// Creates or updates the image record of a name. A new record is labelled as ours; one that another client made
    /// stays theirs.
    pub(super) async fn record_image(
        &self,
        name: String,
        target: &Descriptor,
        lease: &PullLease,
    ) -> Result<(), Error> {
        let image = ImageRecord {
            name,
            labels: self.image_mark(),
            target: Some(Target {
                media_type: target.media_type().to_string(),
                digest: target.digest().to_string(),
                size: i64::try_from(target.size()).unwrap_or(i64::MAX),
                ..Target::default()
            }),
            ..ImageRecord::default()
        };
        let message = CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        let request = self.leased_request(message, lease.id())?;
        let mut client = self.image_records();
        match self.call("create the image record", QUICK, client.create(request)).await {
            Err(error) if error.is_already_exists() => {}
            outcome => return outcome.map(drop),
        }
        let update_mask = Some(FieldMask { paths: vec!["target".to_owned()] });
        let message = UpdateImageRequest { image: Some(image), update_mask, ..Default::default() };
        let request = self.leased_request(message, lease.id())?;
        self.call("update the image record", QUICK, client.update(request)).await.map(drop)
    }

    /// Returns the label that tells the images that we pulled from others'.
    pub(super) fn image_mark(&self) -> Labels {
        Labels::from([(super::OWNER_LABEL.to_owned(), self.shared.images.owner.clone())])
    }
}
