//! Mounts of a container: the kernel's file systems, the directories that Nomad shares with a task, host volumes of the
//! job, and mounts of the job's own options. No source is a path that anybody but root could change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nomad_proto::driver as pb;
use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};

use super::SpecError;
use crate::config::{JobMount, MountSource, Mounts, Sharing, TaskOptions};

/// Docker's default size of `/dev/shm`.
const SHM_SIZE_BYTES: u64 = 64 * 1024 * 1024;

/// A file of the host that is mounted over one of the image.
pub(crate) struct BoundFile {
    pub source: PathBuf,
    pub at: &'static str,
    pub writable: bool,
}

/// The staged source of a mount, and the restrictions of its mount on the host, as names of mount options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StagedSource {
    pub at: PathBuf,
    pub kept: Vec<&'static str>,
}

/// A volume that the image declares: where it is mounted, and its directory on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageVolume {
    pub target: String,
    pub at: PathBuf,
}

/// Returns all mounts of a container, sorted so that each comes before those below its target, whatever their order in
/// the job.
pub(super) fn mounts(
    options: &TaskOptions,
    sources: &BTreeMap<String, StagedSource>,
    files: &[BoundFile],
    image_volumes: &[ImageVolume],
    task: &pb::TaskConfig,
) -> Result<Vec<Mount>, SpecError> {
    // Whether the image's volumes are wanted was decided when they were made.
    let Mounts { list, shm_size_bytes, image_volumes: _ } = &options.mounts;
    let (ipc_mode, privileged) = (options.namespaces.ipc_mode, options.security.privileged);
    let mut mounts = kernel_mounts(ipc_mode, shm_size_bytes.unwrap_or(SHM_SIZE_BYTES), privileged)?;
    if options.namespaces.without_shm {
        mounts.retain(|mount| mount.destination() != Path::new("/dev/shm"));
    }
    for BoundFile { source, at, writable } in files {
        let access = if *writable { "rw" } else { "ro" };
        let options = ["bind", "rprivate", "nosuid", "nodev", access];
        mounts.push(mount(at, "bind", &source.display().to_string(), &options)?);
    }
    // A job's mount replaces the usual one at its target, and all usual mounts below it: for those a runtime would
    // create mount points in the job's source on the host.
    let targets =
        list.iter().map(|mount| &mount.target).chain(task.mounts.iter().map(|mount| &mount.task_path));
    let targets: Vec<&Path> = targets.map(Path::new).collect();
    mounts.retain(|mount| !targets.iter().any(|target| mount.destination().starts_with(target)));
    // A volume of the image's replaces the one at its target only: it is the task's own, and mount points may be made in
    // it.
    mounts
        .retain(|mount| !image_volumes.iter().any(|volume| mount.destination() == Path::new(&volume.target)));
    for ImageVolume { target, at } in image_volumes {
        mounts.push(mount(target, "bind", &at.display().to_string(), &["rbind", "rprivate", "rw"])?);
    }
    mounts.extend(nomad_mounts(sources, task)?);
    for mount in &task.mounts {
        let source = sources.get(&mount.task_path);
        mounts.push(volume(mount, source.ok_or_else(|| SpecError::NoSource(mount.task_path.clone()))?)?);
    }
    for mount in list {
        mounts.push(job_mount(mount, sources)?);
    }
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(mounts)
}

/// Returns the propagation of the container's root that its mounts need: runtimes separate the root from the host's,
/// except for mounts that come from there.
pub(super) fn propagation(requested: &Mounts, task: &pb::TaskConfig) -> Option<String> {
    let spreads = |names: [&str; 2], mode: &str| {
        let requested = requested.list.iter().filter_map(JobMount::propagation);
        let by_nomad = task.mounts.iter().any(|mount| mount.propagation_mode == mode);
        by_nomad || requested.into_iter().any(|name| names.contains(&name))
    };
    if spreads(["shared", "rshared"], "bidirectional") {
        Some("shared".to_owned())
    } else if spreads(["slave", "rslave"], "host-to-task") {
        Some("rslave".to_owned())
    } else {
        None
    }
}

/// Returns the mounts of the kernel's file systems. A host IPC namespace needs the host's `/dev/shm`. For a privileged
/// task none is read-only.
fn kernel_mounts(
    ipc_mode: Sharing,
    shm_size_bytes: u64,
    privileged: bool,
) -> Result<Vec<Mount>, OciSpecError> {
    let shm_size = format!("size={shm_size_bytes}");
    let own_shm = ["nosuid", "noexec", "nodev", "mode=1777", &shm_size];
    let shm = match ipc_mode {
        Sharing::Private => ("/dev/shm", "tmpfs", "shm", &own_shm[..]),
        Sharing::Host => ("/dev/shm", "bind", "/dev/shm", &["rbind", "rprivate", "rw"][..]),
    };
    [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"][..]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        shm,
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
    .into_iter()
    .map(|(at, kind, source, options)| {
        let options: Vec<&str> =
            options.iter().copied().filter(|option| *option != "ro" || !privileged).collect();
        mount(at, kind, source, &options)
    })
    .collect()
}

/// Returns the directories that Nomad makes for a task: target of the mount, and path in the allocation directory.
pub(crate) fn nomad_directories(task: &str) -> [(&'static str, PathBuf); 4] {
    let own = Path::new(task);
    [
        ("/alloc", "alloc".into()),
        ("/alloc/logs", "alloc/logs".into()),
        ("/local", own.join("local")),
        ("/secrets", own.join("secrets")),
    ]
}

/// Returns the mounts of Nomad's directories. The alloc directory is shared by the tasks of a group; the logs in it are
/// read-only, since they are Nomad's to write.
fn nomad_mounts(
    sources: &BTreeMap<String, StagedSource>,
    task: &pb::TaskConfig,
) -> Result<Vec<Mount>, SpecError> {
    let directories = nomad_directories(&task.name).into_iter().map(|(at, _)| {
        let source = sources.get(at).ok_or_else(|| SpecError::NoSource(at.to_owned()))?;
        let access = if at == "/alloc/logs" { "ro" } else { "rw" };
        Ok(mount(at, "bind", &source.at.display().to_string(), &["rbind", "rprivate", access])?)
    });
    directories.collect()
}

fn volume(requested: &pb::Mount, source: &StagedSource) -> Result<Mount, SpecError> {
    let propagation = match requested.propagation_mode.as_str() {
        "" | "private" => "rprivate",
        "host-to-task" => "rslave",
        "bidirectional" => "rshared",
        other => {
            return Err(SpecError::Propagation {
                host_path: requested.host_path.clone(),
                task_path: requested.task_path.clone(),
                mode: other.to_owned(),
            });
        }
    };
    let access = if requested.readonly { "ro" } else { "rw" };
    let options = ["rbind", propagation, access].map(str::to_owned).to_vec();
    let options = with_restrictions(&options, &source.kept);
    let made = MountBuilder::default().destination(&requested.task_path).typ("bind").source(&source.at);
    Ok(made.options(options).build()?)
}

fn job_mount(requested: &JobMount, sources: &BTreeMap<String, StagedSource>) -> Result<Mount, SpecError> {
    let JobMount { option: _, target, source, options } = requested;
    let (kind, source, options) = match source {
        MountSource::Memory => ("tmpfs", Path::new("tmpfs"), options.clone()),
        MountSource::Host(_) | MountSource::Volume | MountSource::Anonymous { .. } => {
            let StagedSource { at, kept } =
                sources.get(target).ok_or_else(|| SpecError::NoSource(target.clone()))?;
            ("bind", at.as_path(), with_restrictions(options, kept))
        }
    };
    let made = MountBuilder::default().destination(target).typ(kind).source(source);
    Ok(made.options(options).build()?)
}

/// Adds the restrictions of a source's mount on the host, since a runtime lifts those that are not in the options.
fn with_restrictions(options: &[String], kept: &[&'static str]) -> Vec<String> {
    // A flag's opposite lacks its prefix "no", except for "ro".
    let opposite = |flag: &&'static str| match *flag {
        "ro" => "rw",
        flag => flag.strip_prefix("no").unwrap_or(flag),
    };
    let is_against = |option: &&String| kept.iter().any(|flag| opposite(flag) == option.as_str());
    let mut all: Vec<String> = options.iter().filter(|option| !is_against(option)).cloned().collect();
    let new = kept.iter().filter(|flag| !options.iter().any(|option| option == **flag));
    all.extend(new.map(|flag| (*flag).to_owned()));
    all
}

fn mount(at: &str, kind: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    MountBuilder::default().destination(at).typ(kind).source(source).options(options).build()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns the staged sources of Nomad's directories.
    pub(in crate::spec) fn staged_by_nomad() -> BTreeMap<String, StagedSource> {
        let at = |target: &str| StagedSource { at: format!("/pins{target}").into(), kept: Vec::new() };
        nomad_directories("web").into_iter().map(|(target, _)| (target.to_owned(), at(target))).collect()
    }

    fn task() -> pb::TaskConfig {
        pb::TaskConfig {
            name: "web".to_owned(),
            alloc_dir: "/nomad/alloc/1".to_owned(),
            ..Default::default()
        }
    }

    fn nomads(task_path: &str, propagation_mode: &str) -> pb::Mount {
        pb::Mount {
            task_path: task_path.to_owned(),
            host_path: "/x".to_owned(),
            propagation_mode: propagation_mode.to_owned(),
            ..Default::default()
        }
    }

    fn jobs(target: &str, source: MountSource, options: &[&str]) -> JobMount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        JobMount { option: "mounts", target: target.to_owned(), source, options }
    }

    fn requested(list: Vec<JobMount>) -> Mounts {
        Mounts { list, ..Mounts::default() }
    }

    fn made(requested: &Mounts, task: &pb::TaskConfig) -> Vec<Mount> {
        let stage =
            |mount: &JobMount| (mount.target.clone(), StagedSource { at: "/pin".into(), kept: Vec::new() });
        let volume = |mount: &pb::Mount| {
            (mount.task_path.clone(), StagedSource { at: "/pin".into(), kept: Vec::new() })
        };
        let volumes = task.mounts.iter().map(volume);
        let sources = requested.list.iter().map(stage).chain(volumes).chain(staged_by_nomad()).collect();
        let hosts = BoundFile { source: "/b/names/hosts".into(), at: "/etc/hosts", writable: true };
        let options = TaskOptions { mounts: requested.clone(), ..TaskOptions::default() };
        mounts(&options, &sources, &[hosts], &image_volumes(), task).unwrap()
    }

    /// Returns volumes of an image at an own path, in a directory of files of the driver's, and in the place of one of
    /// the kernel's file systems.
    fn image_volumes() -> Vec<ImageVolume> {
        let at = |target: &str| ImageVolume { target: target.to_owned(), at: "/volume".into() };
        ["/etc", "/sys/fs/cgroup", "/var/lib/db"].map(at).into()
    }

    #[test]
    fn volumes_of_the_image_are_writable_and_keep_the_mounts_below_them() {
        let made = made(&Mounts::default(), &task());
        let at = |path: &str| position(&made, path);
        assert!(at("/etc") < at("/etc/hosts"));
        for path in ["/etc", "/sys/fs/cgroup", "/var/lib/db"] {
            let mount = &made[at(path)];
            assert_eq!(mount.source().as_deref(), Some(Path::new("/volume")));
            assert_eq!(mount.options().clone().unwrap(), ["rbind", "rprivate", "rw"]);
        }
    }

    fn position(mounts: &[Mount], path: &str) -> usize {
        let found: Vec<_> =
            (0..mounts.len()).filter(|at| mounts[*at].destination() == Path::new(path)).collect();
        assert_eq!(found.len(), 1, "{path} is mounted once");
        found[0]
    }

    #[test]
    fn volumes_follow_nomads_access_and_propagation() {
        let requested = pb::Mount {
            task_path: "/data".to_owned(),
            host_path: "/srv/data".to_owned(),
            readonly: true,
            propagation_mode: "host-to-task".to_owned(),
            ..Default::default()
        };
        let staged = StagedSource { at: "/pin".into(), kept: Vec::new() };
        let made = volume(&requested, &staged).unwrap();
        assert_eq!(made.options().clone().unwrap(), ["rbind", "rslave", "ro"]);
        assert_eq!(made.source().as_deref(), Some(Path::new("/pin")));
        let wrong = pb::Mount { propagation_mode: "sideways".to_owned(), ..requested };
        let error = volume(&wrong, &staged).unwrap_err().to_string();
        assert!(error.contains("/srv/data") && error.contains("sideways"), "{error}");
    }

    #[test]
    fn restrictions_of_the_hosts_mount_are_kept() {
        let options = |list: &str| list.split(',').map(str::to_owned).collect::<Vec<_>>();
        let kept = |list: &str, kept: &[&'static str]| with_restrictions(&options(list), kept).join(",");
        assert_eq!(kept("rbind,rw,rprivate", &[]), "rbind,rw,rprivate");
        assert_eq!(kept("rbind,rw,nosuid", &["ro", "nosuid"]), "rbind,nosuid,ro");
        assert_eq!(kept("rbind,ro,exec,suid,dev", &["nodev", "noexec"]), "rbind,ro,suid,nodev,noexec");
        let requested = pb::Mount { task_path: "/v".to_owned(), readonly: true, ..Default::default() };
        let made = volume(&requested, &StagedSource { at: "/pin".into(), kept: vec!["nosuid"] }).unwrap();
        assert_eq!(made.options().clone().unwrap(), ["rbind", "rprivate", "ro", "nosuid"]);
        assert_eq!(made.source().as_deref(), Some(Path::new("/pin")));
    }

    #[test]
    fn ipc_mode_host_mounts_the_hosts_shm() {
        let shm = |ipc_mode| {
            let made = kernel_mounts(ipc_mode, 1, false).unwrap();
            made.into_iter().find(|mount| mount.destination() == Path::new("/dev/shm")).unwrap()
        };
        assert_eq!(shm(Sharing::Private).typ().as_deref(), Some("tmpfs"));
        assert_eq!(shm(Sharing::Host).source().as_deref(), Some(Path::new("/dev/shm")));
    }

    #[test]
    fn nomad_directories_come_before_volumes() {
        let task = pb::TaskConfig { mounts: vec![nomads("/alloc/x", "")], ..task() };
        let made = made(&Mounts::default(), &task);
        let at = |path: &str| position(&made, path);
        assert!(at("/alloc") < at("/alloc/logs") && at("/alloc/logs") < at("/alloc/x"));
        assert!(made[at("/alloc/logs")].options().clone().unwrap().contains(&"ro".to_owned()));
        assert!(at("/etc/hosts") < at("/alloc/x"));
        assert!(made[at("/etc/hosts")].options().clone().unwrap().contains(&"rw".to_owned()));
        assert_eq!(made[at("/secrets")].source().as_deref(), Some(Path::new("/pins/secrets")));
    }

    #[test]
    fn nested_mounts_come_after_their_parents() {
        let task = pb::TaskConfig { mounts: vec![nomads("/data/a/b", "")], ..task() };
        let list = vec![jobs("/data/a", MountSource::Volume, &[]), jobs("/data", MountSource::Memory, &[])];
        let made = made(&requested(list), &task);
        let at = |path: &str| position(&made, path);
        assert!(at("/data") < at("/data/a") && at("/data/a") < at("/data/a/b"));
        assert_eq!(made[at("/data")].typ().as_deref(), Some("tmpfs"));
        assert_eq!(made[at("/data/a")].source().as_deref(), Some(Path::new("/pin")));
    }

    #[test]
    fn a_jobs_mount_replaces_the_default_one() {
        let made = made(&requested(vec![jobs("/dev/shm", MountSource::Memory, &["size=1"])]), &task());
        let shm = &made[position(&made, "/dev/shm")];
        assert_eq!(shm.options().clone().unwrap(), ["size=1"]);
    }

    #[test]
    fn a_mount_over_dev_drops_the_mounts_below_it() {
        let host = MountSource::Host(crate::config::HostSource::default());
        let by_job = made(&requested(vec![jobs("/dev", host, &["rbind"])]), &task());
        let by_nomad =
            made(&Mounts::default(), &pb::TaskConfig { mounts: vec![nomads("/dev", "")], ..task() });
        for made in [by_job, by_nomad] {
            let below: Vec<_> = made.iter().filter(|mount| mount.destination().starts_with("/dev")).collect();
            assert_eq!(below.len(), 1);
            assert_eq!(below[0].typ().as_deref(), Some("bind"));
        }
    }

    #[test]
    fn shm_size_is_applied() {
        let size = |shm_size_bytes| {
            let made = made(&Mounts { shm_size_bytes, ..Mounts::default() }, &task());
            made[position(&made, "/dev/shm")].options().clone().unwrap().last().cloned().unwrap()
        };
        assert_eq!(size(None), "size=67108864");
        assert_eq!(size(Some(4096)), "size=4096");
    }

    #[test]
    fn rootfs_propagation_follows_the_mounts() {
        let spread = |job: &str, nomad: &str| {
            let task = pb::TaskConfig { mounts: vec![nomads("/n", nomad)], ..task() };
            propagation(&requested(vec![jobs("/j", MountSource::Volume, &["rbind", job])]), &task)
        };
        assert_eq!(spread("rprivate", ""), None);
        assert_eq!(spread("rslave", "private").as_deref(), Some("rslave"));
        assert_eq!(spread("rprivate", "host-to-task").as_deref(), Some("rslave"));
        assert_eq!(spread("shared", "host-to-task").as_deref(), Some("shared"));
        assert_eq!(spread("slave", "bidirectional").as_deref(), Some("shared"));
    }
}
