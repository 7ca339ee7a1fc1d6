//! The documents of an image, index, manifest and configuration, wherever they came from: stored with the labels by which
//! the garbage collector finds what they refer to, and the image's record, which comes last. Does not know how they were
//! got.
//!
//! Source of the facts: containerd `images/handlers.go`, `labels/labels.go`, `gc` @ v1.6.20.

use containerd_client::services::v1::{CreateImageRequest, Image as ImageRecord, UpdateImageRequest};
use containerd_client::types::Descriptor as Target;
use oci_spec::image::{Descriptor, ImageManifest};
use prost_types::FieldMask;

use super::super::{Containerd, Error, Labels, QUICK};
use super::content::Role;
use super::lease::PullLease;
use super::manifest::Layout;

pub(super) struct Documents {
    /// What the name stands for, an index or a manifest, and its bytes.
    pub target: Descriptor,
    pub target_bytes: Vec<u8>,
    /// The manifest in an index, with its place there and its bytes.
    pub chosen: Option<(usize, Descriptor, Vec<u8>)>,
    pub manifest: Box<ImageManifest>,
    pub config: Vec<u8>,
}

impl Containerd {
    /// Stores what refers to the layers, which are here. `source` goes on each: where it can be had again.
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

    /// Writes down what a name stands for. A record that is new is marked as ours; one that somebody else made stays
    /// theirs.
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

    /// The label by which the images that we brought in are told from others'.
    pub(super) fn image_mark(&self) -> Labels {
        Labels::from([(super::OWNER_LABEL.to_owned(), self.shared.images.owner.clone())])
    }
}
