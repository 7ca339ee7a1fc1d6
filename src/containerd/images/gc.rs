//! containerd's part in the garbage collection of images: lists images and those in use, reads the use of the disk, and
//! removes an image's record. The daemon's garbage collector then removes what only that record kept.
//!
//! The policy is elsewhere: here the time since when an image is unused is a label that is written and read.
//! Source of the facts: containerd `metadata/{images,gc,leases}.go`, `metadata/boltutil/helpers.go` (an empty label is
//! removed), `services/introspection` @ v1.6.20.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::{
    DeleteImageRequest, Image as ImageRecord, ListContainersRequest, ListImagesRequest, PluginsRequest,
    UpdateImageRequest,
};
use containerd_client::types::Descriptor as Target;
use nix::sys::statvfs::statvfs;
use prost_types::FieldMask;

use super::super::{Containerd, Error, Labels, QUICK};
use super::OWNER_LABEL;
use super::timestamp::{text, time};

/// Label with the time since when an image is unused, as RFC 3339 has it.
const UNUSED_LABEL: &str = "containerd-driver/unused-since";
/// Label and value of an image that its owner has pinned: it stays, whatever happens.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Timeout of calls that wait for a run of the garbage collector.
const COLLECTS_GARBAGE: Duration = Duration::from_secs(60);

/// An image that the daemon has, as its labels describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub name: String,
    pub is_ours: bool,
    pub is_pinned: bool,
    pub unused_since: Option<SystemTime>,
}

impl Containerd {
    /// Lists the images that the daemon has.
    ///
    /// # Errors
    /// The daemon's.
    pub(crate) async fn stored_images(&self) -> Result<Vec<Stored>, Error> {
        let request = self.request(ListImagesRequest::default())?;
        let listed = self.call("list images", QUICK, self.image_records().list(request)).await?;
        let owner = &self.shared.images.owner;
        let stored = |ImageRecord { name, labels, .. }| Stored {
            name,
            is_ours: labels.get(OWNER_LABEL) == Some(owner),
            is_pinned: labels.get(PINNED.0).is_some_and(|value| value == PINNED.1),
            unused_since: labels.get(UNUSED_LABEL).and_then(|text| time(text)),
        };
        Ok(listed.images.into_iter().map(stored).collect())
    }

    /// Returns the names of the images that containers are made from, whoever made them.
    ///
    /// # Errors
    /// The daemon's.
    pub(crate) async fn images_in_use(&self) -> Result<HashSet<String>, Error> {
        let doing = "list containers";
        let request = self.request(ListContainersRequest::default())?;
        // One at a time: in a single message all records, with their labels, may exceed its limit.
        let mut listed = self.call(doing, QUICK, self.containers().list_stream(request)).await?;
        let mut images = HashSet::new();
        while let Some(message) = self.within(doing, QUICK, listed.message()).await? {
            images.extend(message.container.map(|container| container.image));
        }
        Ok(images)
    }

    /// Records since when an image is unused, or that it is in use (`None`). An image that is gone already stays gone.
    ///
    /// # Errors
    /// Names the image.
    pub(crate) async fn note_unused(&self, name: &str, since: Option<SystemTime>) -> Result<(), Error> {
        let labels = Labels::from([(UNUSED_LABEL.to_owned(), since.map(text).unwrap_or_default())]);
        // Only the labels are updated; without any target, containerd 1.7 and newer crash all the same.
        let target = Some(Target::default());
        let image = ImageRecord { name: name.to_owned(), labels, target, ..ImageRecord::default() };
        let update_mask = Some(FieldMask { paths: vec![format!("labels.{UNUSED_LABEL}")] });
        let message = UpdateImageRequest { image: Some(image), update_mask, ..Default::default() };
        let request = self.request(message)?;
        let doing = format!("label image {name}");
        match self.call(&doing, QUICK, self.image_records().update(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes an image, and waits until the daemon has collected what only it kept. An image that is gone already is a
    /// success.
    ///
    /// # Errors
    /// Names the image.
    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), Error> {
        let message = DeleteImageRequest { name: name.to_owned(), sync: true, ..Default::default() };
        let request = self.request(message)?;
        let doing = format!("remove image {name}");
        match self.call(&doing, COLLECTS_GARBAGE, self.image_records().delete(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns how full the disk of the daemon's content and snapshots is, in percent; of several disks, the fullest.
    ///
    /// # Errors
    /// The daemon doesn't say where content and snapshots are, or the kernel how full a disk is.
    pub(crate) async fn disk_use(&self) -> Result<u64, Error> {
        let doing = "read the usage of containerd's disk";
        let filters = [
            "io.containerd.content.v1".to_owned(),
            format!("io.containerd.snapshotter.v1,id=={}", self.snapshotter()),
        ];
        let filters = filters.map(|filter| format!("type=={filter}")).into();
        let request = self.request(PluginsRequest { filters })?;
        let mut client = IntrospectionClient::new(self.channel());
        let plugins = self.call(doing, QUICK, client.plugins(request)).await?.plugins;
        let roots: Vec<String> =
            plugins.into_iter().filter_map(|mut plugin| plugin.exports.remove("root")).collect();
        let refused = |reason: String| Error::Refused { doing: doing.to_owned(), reason };
        if roots.is_empty() {
            return Err(refused(
                "containerd does not report where it stores content and snapshots".to_owned(),
            ));
        }
        let used = tokio::task::spawn_blocking(move || {
            let used =
                roots.iter().map(|root| used_percent(root).map_err(|error| format!("{root}: {error}")));
            used.collect::<Result<Vec<_>, _>>()
        });
        let used = used.await.map_err(|error| refused(error.to_string()))?.map_err(refused)?;
        Ok(used.into_iter().max().unwrap_or_default())
    }
}

/// Returns the use of a disk in percent, as `df` does: space reserved for root counts as used.
fn used_percent(path: &str) -> nix::Result<u64> {
    let disk = statvfs(path)?;
    let used = disk.blocks().saturating_sub(disk.blocks_free());
    Ok((used * 100).div_ceil((used + disk.blocks_available()).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_usage_is_read_from_the_kernel() {
        assert!((0..=100).contains(&used_percent("/").unwrap()));
        assert!(used_percent("/nowhere").is_err());
    }
}
