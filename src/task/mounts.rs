//! The sources of a job's mounts: found where the operator allows it, held from before anything is made until they are
//! mounted, so that nothing that changes on the host meanwhile changes what is mounted.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::MsFlags;
use nomad_proto::driver as pb;

use crate::config::{JobMount, MountSource, Mounts, Placed, PluginConfig};
use crate::error::{Error, Result};
use crate::host_path::{self, HostPathError, Spreads};
use crate::shim::Bundle;

/// A file system that doesn't answer holds a start up for no longer.
const LIMIT: Duration = Duration::from_secs(30);
/// Of a directory of the allocation that is made for a task: as Nomad's own `/local`, since any user may be in there.
const VOLUME_MODE: u32 = 0o777;
/// Of one that is made because a job has it as a source; as docker does.
const SOURCE_MODE: u32 = 0o755;
/// There where SELinux has a say.
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// Each with where it is mounted in the container.
pub(super) struct Sources {
    held: Arc<Vec<Source>>,
}

struct Source {
    target: String,
    place: OwnedFd,
    propagation: MsFlags,
}

/// What is looked for, and how.
struct Wanted {
    mount: JobMount,
    placed: Placed,
}

impl Sources {
    /// # Errors
    /// Names the mount, and says what is wrong with its source.
    pub(super) async fn open(mounts: &Mounts, plugin: &PluginConfig, task: &pb::TaskConfig) -> Result<Self> {
        let taken = task.mounts.iter().map(|mount| mount.task_path.as_str());
        let taken = taken.chain(task.devices.iter().map(|device| device.task_path.as_str()));
        let placed = mounts.placed(&plugin.volumes, &task.alloc_dir, &task.name, taken)?;
        let wanted: Vec<Wanted> =
            placed.into_iter().map(|(mount, placed)| Wanted { mount: mount.clone(), placed }).collect();
        if wanted.is_empty() {
            return Ok(Self { held: Arc::default() });
        }
        let look = move || wanted.iter().map(Wanted::open).collect::<Result<Vec<_>>>();
        let held = off_thread("the sources of the task's mounts", look).await?;
        Ok(Self { held: Arc::new(held) })
    }

    /// Mounts them in the bundle, and returns where, by target.
    ///
    /// # Errors
    /// Names what can't be mounted.
    pub(super) async fn pin(&self, bundle: &Bundle) -> Result<BTreeMap<String, PathBuf>> {
        if self.held.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (held, bundle) = (Arc::clone(&self.held), bundle.clone());
        let pin = move || {
            let pinned = held.iter().enumerate().map(|(number, source)| {
                let at = bundle.pin(number, &source.place, source.propagation)?;
                Ok((source.target.clone(), at))
            });
            pinned.collect()
        };
        off_thread("the sources of the task's mounts", pin).await
    }
}

/// Runs what may wait for a file system of the host.
pub(super) async fn off_thread<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let worked = tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(work)).await;
    let worked =
        worked.map_err(|_| Error::Failed(format!("{what}: the file system gave no answer in {LIMIT:?}")))?;
    worked.map_err(|error| Error::Failed(format!("{what}: {error}")))?
}

impl Wanted {
    fn open(&self) -> Result<Source> {
        let Self { mount, placed } = self;
        let refuse = |why: String| {
            Error::Invalid(format!("the option {} can't mount at {}: {why}", mount.option, mount.target))
        };
        if matches!(&mount.source, MountSource::Host(source) if source.is_labelled)
            && Path::new(SELINUX).exists()
        {
            let why = "its z or Z asks for a label of SELinux, and this driver sets none; label the source on the host \
                       (chcon -R -t container_file_t) and leave it out";
            return Err(refuse(why.to_owned()));
        }
        let place = self.find().map_err(|error| refuse(error.to_string()))?;
        let spreads = host_path::spreads(&place).map_err(|error| refuse(error.to_string()))?;
        let propagation = propagation(mount.propagation().unwrap_or_default(), spreads)
            .map_err(|why| refuse(format!("{}: {why}", placed.root.join(&placed.path).display())))?;
        Ok(Source { target: mount.target.clone(), place, propagation })
    }

    fn find(&self) -> std::result::Result<OwnedFd, HostPathError> {
        let Placed { root, path, is_allocations } = &self.placed;
        match &self.mount.source {
            MountSource::Volume => host_path::make(root, path, VOLUME_MODE),
            MountSource::Host(source) => match host_path::open(root, path) {
                Err(HostPathError::Missing(_)) if source.is_made && *is_allocations => {
                    host_path::make(root, path, SOURCE_MODE)
                }
                found => found,
            },
            MountSource::Memory => Err(HostPathError::Missing(path.clone())),
        }
    }
}

/// How the place in the bundle spreads mounts, for the container's own mount of it to do so as asked.
fn propagation(asked: &str, source: Spreads) -> std::result::Result<MsFlags, &'static str> {
    match asked {
        "shared" | "rshared" if source.shared => Ok(MsFlags::MS_SHARED),
        "shared" | "rshared" => {
            Err("it is not on a shared mount, which that propagation needs; see mount --make-rshared")
        }
        "slave" | "rslave" if source.shared || source.slave => Ok(MsFlags::MS_SLAVE),
        "slave" | "rslave" => Err(
            "it is neither on a shared mount nor on a slave of one, which that propagation needs; see mount --make-rshared",
        ),
        _ => Ok(MsFlags::MS_PRIVATE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_spreads_as_asked_where_its_source_can() {
        let private = Spreads::default();
        let shared = Spreads { shared: true, slave: false };
        let slave = Spreads { shared: false, slave: true };
        assert_eq!(propagation("rprivate", shared), Ok(MsFlags::MS_PRIVATE));
        assert_eq!(propagation("rshared", shared), Ok(MsFlags::MS_SHARED));
        assert_eq!(propagation("rslave", shared), Ok(MsFlags::MS_SLAVE));
        assert_eq!(propagation("slave", slave), Ok(MsFlags::MS_SLAVE));
        for (asked, source) in [("rshared", private), ("shared", slave), ("rslave", private)] {
            assert!(propagation(asked, source).unwrap_err().contains("shared mount"));
        }
    }
}
