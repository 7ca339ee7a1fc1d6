//! Lists what belongs to a directory, a cgroup or a containerd of ours: processes, mounts, cgroups, files, records.
//! Changes nothing.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::sys::stat::{major, minor};

use super::shim_sockets;
use crate::fixture::containerd::Containerd;
use crate::processes;

/// Directory in which the cgroup file systems are mounted.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// Number of shims that the driver keeps ready by default.
pub(crate) const MAX_SPARES: usize = 2;
/// Directory of the driver's spare shims in its state directory.
pub(crate) const SPARES: &str = ".spares";

/// Directory of the driver's shared shims in its state directory.
pub(crate) const SHARED: &str = ".shared";

/// A process and its command line.
#[derive(Debug, Clone)]
pub struct Found {
    /// Whether it is a shim that the driver keeps ready, or the launch of one.
    pub is_spare: bool,
    pub pid: i32,
    pub command: String,
}

/// Finds processes other than this one that have to do with `directory`: a server's command line names its
/// configuration there, a plugin's environment its temporary directory, a shim's working directory is its bundle, and a
/// container's root is mounted from there.
pub fn find_processes(directory: &Path) -> Vec<Found> {
    let text = directory.display().to_string();
    let our_mounts = fs::read_link("/proc/self/ns/mnt").ok();
    let own_disk = own_disk(directory);
    processes::all()
        .filter_map(|pid| {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let line = fs::read(proc.join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
            let works_inside = || fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
            let told_of_it = || {
                fs::read(proc.join("environ")).is_ok_and(|all| String::from_utf8_lossy(&all).contains(&text))
            };
            let has_mounts = || {
                fs::read_link(proc.join("ns/mnt")).ok() != our_mounts
                    && fs::read_to_string(proc.join("mountinfo"))
                        .is_ok_and(|mounts| is_made_of(&mounts, directory, own_disk.as_deref()))
            };
            // A zombie has no command line and nothing left to end.
            let ours = !command.is_empty()
                && (command.contains(&text) || works_inside() || told_of_it() || has_mounts());
            ours.then(|| Found { is_spare: is_spare(&proc), pid, command })
        })
        .collect()
}

/// Returns whether a process is a spare shim, or the launch of one: it works in the directory of its id. A container's shim
/// works in its bundle.
pub(crate) fn is_spare(proc: &Path) -> bool {
    let Ok(cwd) = fs::read_link(proc.join("cwd")) else { return false };
    let line = fs::read(proc.join("cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != b"-id");
    let is_of_it = cwd.file_name().is_some_and(|id| words.nth(1) == Some(id.as_encoded_bytes()));
    is_of_it && cwd.is_dir() && cwd.parent().is_some_and(|parent| parent.ends_with(SPARES))
}

/// Returns the directories of spare shims in a state directory that no process works in.
pub(crate) fn dead_spares(state_dir: &Path) -> Vec<PathBuf> {
    let inhabited: HashSet<PathBuf> =
        processes::all().filter_map(|pid| fs::read_link(format!("/proc/{pid}/cwd")).ok()).collect();
    children(&state_dir.join(SPARES)).into_iter().filter(|directory| !inhabited.contains(directory)).collect()
}

/// Returns whether a mount table is of a container whose root, or something bound into it, comes from below
/// `directory`, or from the disk that is mounted there. A copy of the host's own table, with which every new namespace
/// begins, doesn't count: its mounts from there are below `directory`.
fn is_made_of(mounts: &str, directory: &Path, own_disk: Option<&str>) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(2);
        let (Some(disk), Some(source), Some(point)) = (fields.next(), fields.next(), fields.next()) else {
            return false;
        };
        // The whole disk is only seen in a copy of the host's table.
        let from_there =
            Path::new(source).starts_with(directory) || (own_disk == Some(disk) && source != "/");
        let rooted_there = point == "/" && line.contains(&format!("={}/", directory.display()));
        rooted_there || (from_there && !Path::new(point).starts_with(directory))
    })
}

/// Returns the disk of a directory as a mount table has it, if it is another one than its parent's.
fn own_disk(directory: &Path) -> Option<String> {
    let disk = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
    let own = disk(directory)?;
    let is_mounted = disk(directory.parent()?) != Some(own);
    is_mounted.then(|| format!("{}:{}", major(own), minor(own)))
}

/// Lists mount points below a directory, the innermost last.
pub fn mounts_under(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|point| point.starts_with(directory))
        .collect()
}

/// Lists the processes in the cgroups of this name, in any hierarchy.
pub fn pids_in(name: &str) -> Vec<i32> {
    let procs = |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = cgroups_named(name)
        .iter()
        .flat_map(|group| procs(group).lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Returns paths as text.
pub fn shown(paths: Vec<PathBuf>) -> Vec<String> {
    paths.into_iter().map(|path| path.display().to_string()).collect()
}

/// Lists a directory, which is empty if it doesn't exist.
pub fn children(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Lists the addresses that the host-local plugin has given away, `<root>/<network>/<address>`.
pub fn leases(root: &Path) -> Vec<PathBuf> {
    let files = children(root).into_iter().flat_map(|network| children(&network));
    let is_address = |file: &PathBuf| {
        file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<IpAddr>().is_ok())
    };
    files.filter(is_address).collect()
}

/// Lists the cgroups of a task in every hierarchy with all that are nested in them, parents first.
pub(crate) fn cgroups_named(task: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in children(Path::new(CGROUPS)).into_iter().chain([PathBuf::from(CGROUPS)]) {
        let slices =
            ["share.slice", "reserve.slice"].map(|slice| format!("nomad.slice/{slice}/{task}.scope"));
        for group in [format!("nomad/{task}"), format!("nomad/reserve/{task}")].iter().chain(&slices) {
            let group = hierarchy.join(group);
            if group.is_dir() && !group.is_symlink() {
                add_with_nested(group, &mut found);
            }
        }
    }
    found
}

/// Finds the cgroups of this name at the top of each hierarchy, and those nested in them, each after its parent.
pub(crate) fn top_cgroups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in children(Path::new(CGROUPS)).into_iter().chain([PathBuf::from(CGROUPS)]) {
        let group = hierarchy.join(name);
        if group.is_dir() && !group.is_symlink() {
            add_with_nested(group, &mut found);
        }
    }
    found
}

fn add_with_nested(group: PathBuf, found: &mut Vec<PathBuf>) {
    let nested = children(&group).into_iter().filter(|child| child.is_dir() && !child.is_symlink());
    found.push(group);
    nested.for_each(|nested| add_with_nested(nested, found));
}

/// Lists pipes and sockets below a directory, except for those in a task's root.
pub fn special_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in children(directory) {
        let Ok(kind) = path.symlink_metadata().map(|metadata| metadata.file_type()) else { continue };
        if kind.is_fifo() || kind.is_socket() {
            found.push(path);
        } else if kind.is_dir() && path.file_name().is_some_and(|name| name != "rootfs" && name != SPARES) {
            found.extend(special_files(&path));
        }
    }
    found
}

/// Lists shims' sockets that have no listener any more, whoever started the shims.
pub(crate) fn dead_shim_sockets() -> Vec<PathBuf> {
    let bound = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut served: HashSet<PathBuf> =
        bound.lines().filter_map(|line| line.split_whitespace().nth(7).map(PathBuf::from)).collect();
    // The kernel's list has the sockets of this network namespace alone, and a node may be in one of its own.
    served.extend(processes::all().filter_map(socket_of_shim));
    let dead = |socket: &PathBuf| !served.contains(socket);
    children(Path::new(shim_sockets::DIRECTORY)).into_iter().filter(dead).collect()
}

/// Returns the socket at which a shim listens. `None` if the process is no shim.
pub fn socket_of_shim(pid: i32) -> Option<PathBuf> {
    shim_sockets::of(pid)
}

/// Returns the words of a `ctr` listing.
///
/// # Errors
/// Fails with the output of `ctr`.
pub fn listed(containerd: &Containerd, arguments: &[&str]) -> Result<Vec<String>> {
    Ok(containerd.ctr(arguments)?.split_whitespace().map(str::to_owned).collect())
}

/// Lists keys of a namespace's snapshots that are not committed: roots of containers, and layers that were being unpacked.
///
/// # Errors
/// Fails with the output of `ctr`.
pub fn active_snapshots(containerd: &Containerd, namespace: &str) -> Result<Vec<String>> {
    let listing = containerd.ctr(&["--namespace", namespace, "snapshots", "list"])?;
    let active = listing.lines().filter(|line| line.trim_end().ends_with("Active"));
    Ok(active.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_groups_come_after_their_parents() {
        let directory = tempfile::tempdir().unwrap();
        let group = directory.path().join("task");
        fs::create_dir_all(group.join("a/b c/d")).unwrap();
        fs::write(group.join("a/cgroup.procs"), "").unwrap();
        let mut found = Vec::new();
        add_with_nested(group.clone(), &mut found);
        assert_eq!(found, ["", "a", "a/b c", "a/b c/d"].map(|name| group.join(name)));
    }

    #[test]
    fn a_container_is_told_by_what_it_is_made_of_and_not_by_what_it_could_see() {
        let made_of = |table: &str| is_made_of(table, Path::new("/tmp/w"), Some("7:3"));
        let root = "9 8 0:1 / / rw - overlay overlay rw,lowerdir=/tmp/w/ctd/1/fs,upperdir=/tmp/w/ctd/2/fs";
        assert!(made_of(root));
        assert!(made_of("9 8 254:0 /tmp/w/s1/alloc/x/alloc /alloc rw - ext4 /dev/vda rw"));
        assert!(made_of("9 8 7:3 /nomad/web-1/hosts /etc/hosts rw - ext4 /dev/loop3 rw"));
        assert!(!made_of("9 8 7:3 / /tmp/w/s1 rw - ext4 /dev/loop3 rw"));
        assert!(!made_of("9 8 7:3 / /host/tmp/w/s1 rw - ext4 /dev/loop3 rw"));
        assert!(!made_of("9 8 0:1 / /tmp/w/s1/alloc/x/web/secrets rw - tmpfs tmpfs rw"));
        assert!(!made_of("9 8 0:1 / /tmp/w/s1/rootfs rw - overlay overlay rw,upperdir=/tmp/w/ctd/2/fs"));
        assert!(!made_of("9 8 254:0 / / rw - ext4 /dev/vda rw"));
    }
}
