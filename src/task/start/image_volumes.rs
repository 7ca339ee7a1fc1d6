//! Makes the volumes that the task's image declares (`VOLUME`), for those paths at which nothing else is mounted, and
//! those of the job that are the container's alone, as docker's volumes without a name are.
//!
//! They are directories of a snapshot of their own: a part of the container, which ends with it however it ends, and
//! whose removal needs neither the allocation nor its file system. The snapshot is kept by the container's lease, is on
//! the disk where the container's own files are, and nobody but root can reach it there. It is empty at first, and so on
//! a plain file system, not on an overlay: what containers run in a volume may need that, another container daemon for
//! one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::types::Mount;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Start;
use crate::config::{ImageVolumes, MountSource};
use crate::containerd::Image;
use crate::image::volumes::{self, Filling, VolumesError, Wanted};
use crate::shim::Bundle;
use crate::spec::{self, ImageVolume, StagedSource};
use crate::task::error::{Error, Result};
use crate::task::mounts::cleaned;

/// Maximum time that a cancelled start waits for the copy of a part of a file. The snapshot is removed then, or, if the
/// thread is stuck, by the sweeper after its end.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Ids of the containers whose volumes a thread is filling. Whoever starts a thread adds its container, and the thread
/// removes it at its end.
static FILLED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Files of the container that the driver mounts, at which no volume is.
const DRIVERS_FILES: [&str; 4] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", spec::INIT];

/// The volumes that were made.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    pub(super) of_image: Vec<ImageVolume>,
    /// By the targets of the job's mounts.
    pub(super) of_job: BTreeMap<String, StagedSource>,
}

impl Start<'_> {
    /// Makes and fills the volumes of the image and of the job, with the container's mounts `layers` of the image.
    ///
    /// # Errors
    /// Names the volume. A cancelled start gets one, too.
    pub(super) async fn volumes(
        &self,
        image: &Image,
        layers: &[Mount],
        given_up: &CancellationToken,
    ) -> Result<Volumes> {
        let paths = match self.plan.options.mounts.image_volumes {
            ImageVolumes::Anonymous => volumes::paths(&image.config)?,
            ImageVolumes::Ignore => Vec::new(),
        };
        let of_image = paths.into_iter().filter(|path| !self.mounts_at(Path::new(path)));
        let of_image = of_image.map(|path| Wanted { path, is_filled: true, is_jobs: false });
        let of_job = self.plan.options.mounts.list.iter().filter_map(|mount| match mount.source {
            MountSource::Anonymous { is_filled } => {
                Some(Wanted { path: mount.target.clone(), is_filled, is_jobs: true })
            }
            _ => None,
        });
        let mut wanted: Vec<_> = of_image.chain(of_job).collect();
        if wanted.is_empty() {
            return Ok(Volumes::default());
        }
        wanted.sort_by_key(|wanted| Path::new(&wanted.path).components().count());
        let (bundle, containerd) = (&self.container.bundle, &self.container.containerd);
        let snapshot = containerd.prepare_volumes(&self.container.id, given_up).await?;
        let at = bundle.off_thread(Bundle::make_volumes_mount_point).await?;
        let filling = Filling { image: layers.to_vec(), image_at: bundle.rootfs(), snapshot, at, wanted };
        let mut made = Volumes::default();
        for (wanted, at) in filling.volumes() {
            let target = wanted.path.clone();
            if wanted.is_jobs {
                made.of_job.insert(target, StagedSource { at, kept: Vec::new() });
            } else {
                made.of_image.push(ImageVolume { target, at });
            }
        }
        fill(&self.container.id, filling, given_up).await?;
        Ok(made)
    }

    /// Returns whether the job, Nomad or the driver mounts something at a path.
    fn mounts_at(&self, path: &Path) -> bool {
        let by_job = self.plan.options.mounts.list.iter().map(|mount| mount.target.as_str());
        let by_nomad = self.config.mounts.iter().map(|mount| mount.task_path.as_str());
        let devices = self.config.devices.iter().map(|device| device.task_path.as_str());
        let directories = spec::nomad_directories("").map(|(target, _)| target);
        let all = by_job.chain(by_nomad).chain(devices).chain(directories).chain(DRIVERS_FILES);
        all.map(cleaned).any(|target| target == path)
    }
}

/// The guard of a container whose volumes a thread is filling.
struct FilledNow(String);

impl FilledNow {
    fn begin(container_id: &str) -> Self {
        FILLED.lock().unwrap_or_else(PoisonError::into_inner).insert(container_id.to_owned());
        Self(container_id.to_owned())
    }
}

impl Drop for FilledNow {
    fn drop(&mut self) {
        FILLED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Checks that no thread fills the volumes of a container any more, so that their snapshot can be removed.
///
/// # Errors
/// While one does, which a disk holds up that gives no answer.
pub(in crate::task) fn check_not_filled(container_id: &str) -> Result<()> {
    if !FILLED.lock().unwrap_or_else(PoisonError::into_inner).contains(container_id) {
        return Ok(());
    }
    Err(Error::transient(
        "the image's volumes are still being filled: the disk on which containerd keeps its snapshots gives no answer",
    ))
}

/// Fills the volumes on a thread of its own, and sees to its end.
async fn fill(
    container_id: &str,
    filling: Filling,
    given_up: &CancellationToken,
) -> std::result::Result<(), VolumesError> {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, mut answer) = oneshot::channel();
    let (stops, at) = (Arc::clone(&stop), filling.at.clone());
    let filled_now = FilledNow::begin(container_id);
    let run = move || {
        let outcome = filling.run(&stops);
        drop(filled_now);
        // Nobody waits for the result once the start has been given up for long.
        let _ = sender.send(outcome);
    };
    let thread = std::thread::Builder::new().name("image-volumes".to_owned()).spawn(run);
    thread.map_err(|source| VolumesError::Io { doing: "start a thread for", at, source })?;
    tokio::select! {
        filled = &mut answer => filled.unwrap_or(Err(VolumesError::Lost)),
        () = given_up.cancelled() => {
            stop.store(true, Ordering::Relaxed);
            let _ = tokio::time::timeout(STOP_TIMEOUT, answer).await;
            Err(VolumesError::Cancelled)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_snapshot_is_kept_while_a_thread_fills_it() {
        let (id, other) = ("filled-7f3a", "other-7f3a");
        let filled_now = FilledNow::begin(id);
        let error = check_not_filled(id).unwrap_err();
        assert!(matches!(error, Error::Transient(_)) && error.to_string().contains("still being filled"));
        check_not_filled(other).unwrap();
        drop(filled_now);
        check_not_filled(id).unwrap();
        // However a thread ends.
        let directory = tempfile::tempdir().unwrap();
        let absent = || vec![Mount { r#type: "absent".to_owned(), ..Mount::default() }];
        let at = || directory.path().to_owned();
        let filling = Filling {
            image: absent(),
            image_at: at(),
            snapshot: absent(),
            at: at(),
            wanted: vec![Wanted { path: "/data".to_owned(), is_filled: true, is_jobs: false }],
        };
        fill(id, filling, &CancellationToken::new()).await.unwrap_err();
        check_not_filled(id).unwrap();
    }
}
