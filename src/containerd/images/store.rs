//! Stores the documents of an image, index, manifest and configuration, wherever they came from, with the labels by
//! which the garbage collector finds what they refer to, and the image's record, which comes last. Does not know how
//! the documents were obtained.
//!
//! Source of the facts: containerd `images/handlers.go`, `labels/labels.go`, `gc` @ v1.6.20.

use containerd_client::services::v1::{CreateImageRequest, Image as ImageRecord, UpdateImageRequest};
use containerd_client::types::Descriptor as Target;
use oci_spec::image::Descriptor;
use prost_types::FieldMask;

use super::super::{Containerd, Error, Labels, QUICK};
use super::content::Role;
use super::lease::PullLease;
use crate::image::index_search::{Chosen, IndexAbove};
use crate::image::manifest::Layout;

/// The documents of an image for this platform: its manifest with the indexes above it, and its configuration.
pub(super) struct Documents {
    pub chosen: Chosen,
    pub config: Vec<u8>,
}

impl Containerd {
    /// Stores the documents, each after those that it refers to; the layers are stored already. `source` are labels for
    /// each: where it can be fetched again. Returns the descriptor of what the image's name stands for.
    pub(super) async fn store_documents(
        &self,
        documents: Documents,
        layout: &Layout,
        source: &Labels,
        lease: &PullLease,
    ) -> Result<Descriptor, Error> {
        let Documents { chosen, config } = documents;
        let target = chosen.target().clone();
        let Chosen { indexes, descriptor, bytes, manifest, is_named: _ } = chosen;
        let mut labels = self.snapshot_label(layout);
        labels.extend(source.clone());
        self.store_content(Role::Config, manifest.config(), config, labels, lease).await?;

        let mut labels = source.clone();
        labels
            .insert("containerd.io/gc.ref.content.config".to_owned(), manifest.config().digest().to_string());
        for (place, layer) in manifest.layers().iter().enumerate() {
            labels.insert(format!("containerd.io/gc.ref.content.l.{place}"), layer.digest().to_string());
        }
        self.store_content(Role::Manifest, &descriptor, bytes, labels, lease).await?;

        let mut below = descriptor;
        for IndexAbove { descriptor, bytes, place } in indexes.into_iter().rev() {
            let mut labels = source.clone();
            labels.insert(format!("containerd.io/gc.ref.content.m.{place}"), below.digest().to_string());
            self.store_content(Role::Index, &descriptor, bytes, labels, lease).await?;
            below = descriptor;
        }
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
