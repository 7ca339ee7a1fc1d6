//! The sources of a task's mounts. Those of the job are looked up where the operator allows it, and held open from
//! before anything is made until they are mounted, so that nothing that changes on the host meanwhile changes what is
//! mounted. The directories that Nomad has made for the task are opened when they are mounted.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::mount::MsFlags;
use nomad_proto::driver as pb;

use super::error::{Error, Result};
use crate::config::{DriverName, JobMount, MountSource, Mounts, PluginConfig, ResolvedPath, TaskDirectory};
use crate::shim::{Bundle, StagedMount};
use crate::spec::{self, StagedSource};
use crate::sys::error_chain::Chained;
use crate::sys::host_files;
use crate::sys::host_path::{self, Area, HostPathError};
use crate::sys::mount_table::{self, Mount, Propagation};

/// Mode of a directory that is made in the allocation for a volume: that of Nomad's own `/local`, since any user may
/// work in it.
const VOLUME_MODE: u32 = 0o777;
/// Mode of a missing source that is made because a job mounts it, as docker makes it.
const SOURCE_MODE: u32 = 0o755;
/// Path that exists where SELinux is in force.
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// Restrictions of a host's mount that are kept for a task's mount of it, with the names that runtimes have for them.
const KEPT: [(MsFlags, &str); 4] = [
    (MsFlags::MS_RDONLY, "ro"),
    (MsFlags::MS_NOSUID, "nosuid"),
    (MsFlags::MS_NODEV, "nodev"),
    (MsFlags::MS_NOEXEC, "noexec"),
];

pub(super) struct Sources {
    of_job: Arc<Vec<Source>>,
    of_nomad: Arc<OfNomad>,
}

/// A source that is held open, and where it is mounted in the container.
struct Source {
    target: String,
    place: OwnedFd,
    propagation: MsFlags,
    is_read_only: bool,
    kept: Vec<&'static str>,
}

/// The directories and volumes that Nomad has for the task.
struct OfNomad {
    alloc_id: String,
    alloc_dir: PathBuf,
    task: String,
    /// The job's volumes (`volume_mount`).
    volumes: Vec<pb::Mount>,
}

/// A mount of the job's, and the place on the host where its source is looked up.
struct ResolvedMount {
    mount: JobMount,
    resolved: ResolvedPath,
    driver: DriverName,
}

impl Sources {
    /// Opens the sources of the job's mounts.
    ///
    /// # Errors
    /// Names the mount, and says what is wrong with its source.
    pub(super) async fn open(mounts: &Mounts, plugin: &PluginConfig, task: &pb::TaskConfig) -> Result<Self> {
        task.mounts.iter().try_for_each(check_destination)?;
        let taken = task.mounts.iter().map(|mount| mount.task_path.as_str());
        let taken = taken.chain(task.devices.iter().map(|device| device.task_path.as_str()));
        let resolved = mounts.resolved(&plugin.volumes, directory_of(task), taken)?;
        let resolved: Vec<ResolvedMount> = resolved
            .into_iter()
            .map(|(mount, resolved)| ResolvedMount { mount: mount.clone(), resolved, driver: plugin.name })
            .collect();
        let of_nomad = Arc::new(OfNomad {
            alloc_id: task.alloc_id.clone(),
            alloc_dir: (&task.alloc_dir).into(),
            task: task.name.clone(),
            volumes: task.mounts.clone(),
        });
        if resolved.is_empty() {
            return Ok(Self { of_job: Arc::default(), of_nomad });
        }
        let mut of_job = Vec::new();
        for source in resolved {
            let place = source.resolved.shown();
            of_job.push(off_thread(&place, "the sources of the task's mounts", move || source.open()).await?);
        }
        Ok(Self { of_job: Arc::new(of_job), of_nomad })
    }

    /// Mounts all sources in the bundle, and returns where each is, by target.
    ///
    /// # Errors
    /// Names a source that can't be mounted.
    pub(super) async fn stage(&self, bundle: &Bundle) -> Result<BTreeMap<String, StagedSource>> {
        let (of_job, of_nomad, bundle) =
            (Arc::clone(&self.of_job), Arc::clone(&self.of_nomad), bundle.clone());
        let place = of_nomad.alloc_dir.clone();
        let stage = move || {
            let nomads = of_nomad.open()?;
            let all: Vec<&Source> = nomads.iter().chain(of_job.iter()).collect();
            let to_stage: Vec<StagedMount<'_>> = all.iter().map(|source| source.staged_mount()).collect();
            let staged = bundle.stage(&to_stage)?.into_iter().zip(all);
            let staged = staged
                .map(|(at, source)| (source.target.clone(), StagedSource { at, kept: source.kept.clone() }));
            Ok(staged.collect())
        };
        off_thread(&place, "the sources of the task's mounts", stage).await
    }
}

impl Source {
    fn staged_mount(&self) -> StagedMount<'_> {
        StagedMount { source: &self.place, propagation: self.propagation, read_only: self.is_read_only }
    }
}

impl OfNomad {
    /// Opens Nomad's directories and volumes. To be called right before they are mounted: Nomad could not unmount a
    /// directory of the allocation for as long as it is held open.
    fn open(&self) -> Result<Vec<Source>> {
        let own = spec::nomad_directories(&self.task).into_iter().map(|(target, path)| {
            let place =
                host_path::open_directory(&self.alloc_dir, &path).map_err(|error| self.replaced(&error))?;
            let target = target.to_owned();
            let (propagation, is_read_only, kept) = (MsFlags::MS_PRIVATE, false, Vec::new());
            Ok(Source { target, place, propagation, is_read_only, kept })
        });
        own.chain(self.volumes.iter().map(volume)).collect()
    }

    fn replaced(&self, error: &HostPathError) -> Error {
        let text = format!(
            "a directory that Nomad has made for the allocation was replaced or removed, perhaps by a task: {}. \
             Stop the allocation, and Nomad places another (nomad alloc stop {})",
            error.chain(),
            self.alloc_id
        );
        if matches!(error, HostPathError::Io { .. }) { Error::transient(text) } else { Error::failed(text) }
    }
}

/// Refuses a volume at the place of a directory that Nomad makes for every task: one would take the place of the other.
fn check_destination(mount: &pb::Mount) -> Result<()> {
    let at = cleaned(&mount.task_path);
    let is_nomads = spec::nomad_directories("").iter().any(|(directory, _)| at == Path::new(directory));
    if !is_nomads && at != Path::new("/") {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the volume_mount with destination {:?} would replace {}, which every task has; choose another destination",
        mount.task_path,
        at.display()
    )))
}

/// Returns the path as an absolute one, without `.` and `..`.
pub(super) fn cleaned(path: &str) -> PathBuf {
    Path::new(path).components().fold(PathBuf::from("/"), |mut cleaned, part| {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
        cleaned
    })
}

/// Opens a volume of the job's. Links in its path are followed: it is the operator's, or that of a storage plugin of
/// his.
fn volume(mount: &pb::Mount) -> Result<Source> {
    let pb::Mount { host_path, task_path, readonly, .. } = mount;
    let what = format!("the volume at {task_path} can't be mounted");
    let path = Path::new(host_path).strip_prefix("/").unwrap_or(Path::new(host_path));
    let place = host_path::open(Path::new("/"), path).map_err(|error| {
        let transient = error.is_transient();
        Error::failure(error, transient).context(&what)
    })?;
    let Mount { flags, propagation: source_propagation, .. } =
        mount_table::of(&place).map_err(|error| Error::system(format_args!("{what}: {host_path}"), error))?;
    // A propagation that the host doesn't allow is weakened, not refused: Nomad asks for it.
    let propagation = match mount.propagation_mode.as_str() {
        "bidirectional" if source_propagation.shared => MsFlags::MS_SHARED,
        "host-to-task" | "bidirectional" if source_propagation.shared || source_propagation.slave => {
            MsFlags::MS_SLAVE
        }
        _ => MsFlags::MS_PRIVATE,
    };
    let is_read_only = *readonly;
    Ok(Source { target: task_path.clone(), place, propagation, is_read_only, kept: kept(flags) })
}

fn kept(flags: MsFlags) -> Vec<&'static str> {
    KEPT.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| name).collect()
}

pub(super) fn directory_of(task: &pb::TaskConfig) -> TaskDirectory<'_> {
    TaskDirectory { alloc_dir: &task.alloc_dir, task: &task.name }
}

/// Runs `work` on another thread, since it may wait for the file system of the host that `place` is on.
pub(super) async fn off_thread<T: Send + 'static>(
    place: &Path,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    host_files::look(place, host_files::LIMIT, work).await.map_err(|error| Error::system(what, error))?
}

impl ResolvedMount {
    fn open(&self) -> Result<Source> {
        let Self { mount, resolved, driver: _ } = self;
        let what = format!("the option {} can't mount at {}", mount.option, mount.target);
        let refuse = |why: &str| Error::invalid(why).context(&what);
        if matches!(&mount.source, MountSource::Host(source) if source.is_labelled)
            && Path::new(SELINUX).exists()
        {
            let why = "its z or Z asks for an SELinux label, and this driver sets none; label the source on the host (chcon -R \
             -t container_file_t) and leave it out";
            return Err(refuse(why));
        }
        let place = self.find();
        let place = place.map_err(|error| Error::unusable_path(error).context(&what))?;
        let shown = resolved.shown();
        let Mount { flags, propagation: source_propagation, .. } = mount_table::of(&place)
            .map_err(|error| Error::invalid(error).context(shown.display()).context(&what))?;
        let propagation = propagation(mount.propagation().unwrap_or_default(), source_propagation)
            .map_err(|why| refuse(&format!("{}: {why}", shown.display())))?;
        let (target, is_read_only) = (mount.target.clone(), mount.is_read_only());
        Ok(Source { target, place, propagation, is_read_only, kept: kept(flags) })
    }

    fn find(&self) -> std::result::Result<OwnedFd, HostPathError> {
        let ResolvedPath { root, plain, path, is_allocations } = &self.resolved;
        let area = Area { root, plain };
        match &self.mount.source {
            MountSource::Volume => area.make(path, VOLUME_MODE),
            MountSource::Host(source) => match area.open(path) {
                Err(HostPathError::Missing(_)) if source.is_made && *is_allocations => {
                    area.make(path, SOURCE_MODE)
                }
                Err(missing @ HostPathError::Missing(_)) if source.is_made && self.driver.is_docker() => {
                    // On the host nothing is made where a link leads, which may be another tenant's.
                    let whole = plain.join(path);
                    match (Area { root, plain: &whole }).make(Path::new(""), SOURCE_MODE) {
                        Err(HostPathError::Link { .. }) => Err(missing),
                        made => made,
                    }
                }
                found => found,
            },
            // Has no place that is looked for.
            MountSource::Anonymous { .. } | MountSource::Memory => Err(HostPathError::Missing(path.clone())),
        }
    }
}

/// Returns the propagation of a mount in the bundle with which the container's own mount of it propagates as asked.
fn propagation(requested: &str, source: Propagation) -> std::result::Result<MsFlags, &'static str> {
    match requested {
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
    use crate::config::HostSource;

    #[test]
    fn propagation_is_as_requested_where_the_source_permits() {
        let private = Propagation::default();
        let shared = Propagation { shared: true, slave: false };
        let slave = Propagation { shared: false, slave: true };
        assert_eq!(propagation("rprivate", shared), Ok(MsFlags::MS_PRIVATE));
        assert_eq!(propagation("rshared", shared), Ok(MsFlags::MS_SHARED));
        assert_eq!(propagation("rslave", shared), Ok(MsFlags::MS_SLAVE));
        assert_eq!(propagation("slave", slave), Ok(MsFlags::MS_SLAVE));
        for (requested, source) in [("rshared", private), ("shared", slave), ("rslave", private)] {
            assert!(propagation(requested, source).unwrap_err().contains("shared mount"));
        }
    }

    #[test]
    fn volume_mounts_do_not_take_the_place_of_nomads_directories() {
        let checked = |task_path: &str| {
            check_destination(&pb::Mount { task_path: task_path.to_owned(), ..pb::Mount::default() })
        };
        for path in
            ["/alloc", "/alloc/", "//alloc/logs", "/x/../local", "/alloc/./logs", "/secrets/.", "/", "alloc"]
        {
            let error = checked(path).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains("destination"), "{error}");
        }
        for path in ["/data", "/alloc/data", "/local/x", "/secretsx", "/alloc/logs/x"] {
            checked(path).unwrap();
        }
    }

    #[test]
    fn under_dockers_name_a_missing_source_of_volumes_is_made_where_no_link_leads() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("there")).unwrap();
        std::os::unix::fs::symlink("there", root.join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
        let find = |driver, is_made, path: &str| {
            let source = HostSource { path: path.into(), is_made, is_labelled: false };
            let (target, options) = ("/t".to_owned(), Vec::new());
            let mount = JobMount { option: "volumes", target, source: MountSource::Host(source), options };
            let (root, plain, path) = (root.clone(), PathBuf::new(), path.into());
            let resolved = ResolvedPath { root, plain, path, is_allocations: false };
            ResolvedMount { mount, resolved, driver }.find().map(drop).map_err(|error| error.to_string())
        };
        for (driver, is_made) in [(DriverName::ContainerdDriver, true), (DriverName::Docker, false)] {
            assert!(find(driver, is_made, "a/b").unwrap_err().contains("does not exist"));
        }
        assert!(!root.join("a").exists());
        find(DriverName::Docker, true, "a/b").unwrap();
        let made = std::fs::symlink_metadata(root.join("a/b")).unwrap();
        assert!(made.is_dir());
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&made.permissions()) & 0o7777, SOURCE_MODE);
        find(DriverName::Docker, true, "link").unwrap();
        for path in ["link/new", "dangling", "dangling/new"] {
            let error = find(DriverName::Docker, true, path).unwrap_err();
            assert!(error.contains(path) && error.contains("does not exist"), "{error}");
        }
        assert!(find(DriverName::Docker, true, "../outside").unwrap_err().contains("leads out of"));
        let beside = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!((std::fs::read_dir(root.join("there")).unwrap().count(), beside), (0, 1));
    }

    #[test]
    fn flags_of_the_hosts_mount_are_kept() {
        assert_eq!(kept(MsFlags::empty()), [""; 0]);
        assert_eq!(kept(MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOATIME), ["ro", "nodev"]);
    }
}
