//! Removes by force what a failed case left: only what provably belongs to one directory or one cgroup of ours.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::inspect::{
    active_snapshots, cgroups_named, dead_shim_sockets, find_processes, listed, mounts_under, top_cgroups,
};
use crate::fixture::containerd::{Containerd, DOCKERS_NAMESPACE, NAMESPACE};

const END_LIMIT: Duration = Duration::from_secs(5);

/// Kills the processes of [`find_processes`] and waits until they are gone.
pub(crate) fn processes_under(directory: &Path) {
    processes_with(directory, None);
}

/// Does the same as [`processes_under`], but spares one process that is still needed.
pub fn processes_with(directory: &Path, but: Option<i32>) {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let mut found = find_processes(directory);
        found.retain(|process| Some(process.pid) != but);
        if found.is_empty() || Instant::now() > deadline {
            return;
        }
        for process in found {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes the directories of earlier processes of ours that were killed before they could do it.
pub(crate) fn abandoned(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(prefix)?.split('-').next());
        if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            thaw_under(&entry.path());
            processes_under(&entry.path());
            unmount_under(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Lets writers go on that wait for a stopped file system below a directory: they could not be killed, and nobody could
/// reach the file system once it is unmounted.
pub(crate) fn thaw_under(directory: &Path) {
    for point in mounts_under(directory) {
        let mut command = Command::new("fsfreeze");
        // It fails on each that isn't stopped, and says so.
        command.arg("--unfreeze").arg(point).stderr(Stdio::null());
        let _ = command.status();
    }
}

pub fn unmount_under(directory: &Path) {
    for point in mounts_under(directory).iter().rev() {
        // Without this, unmounting a shared mount would unmount the host's peer as well.
        let nothing: Option<&str> = None;
        let _ = mount(nothing, point.as_path(), nothing, MsFlags::MS_PRIVATE | MsFlags::MS_REC, nothing);
        let _ = umount2(point.as_path(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// Kills all processes in the cgroups of this name and in those nested in them, and removes all, the innermost first.
pub fn cgroups(name: &str) {
    end_cgroups(|| cgroups_named(name));
}

/// Does the same as [`cgroups`] for those of this name at the top of each hierarchy, as dockerd's containers have.
pub(crate) fn cgroups_at_the_top(name: &str) {
    end_cgroups(|| top_cgroups(name));
}

fn end_cgroups(found: impl Fn() -> Vec<PathBuf>) {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let groups = found();
        if groups.is_empty() || Instant::now() > deadline {
            return;
        }
        // A group stays frozen as long as one around it is: all are thawed before the first is to become empty.
        for group in &groups {
            for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                // The file is opened only if it exists: where a hierarchy is not mounted, gVisor's runtime makes plain
                // directories.
                if let Ok(mut state) = fs::OpenOptions::new().write(true).open(group.join(file)) {
                    let _ = state.write_all(word.as_bytes());
                }
            }
        }
        for group in groups.iter().rev() {
            for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                if let Ok(pid) = pid.parse() {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            let _ = fs::remove_dir(group);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Leaves a containerd as after a reboot: no process lives, and the state directory, on a tmpfs, is gone, but
/// everything below containerd's root is there.
///
/// # Errors
/// Fails if the directory can't be removed.
pub fn by_a_reboot(state_dir: &Path, cgroup: &str) -> io::Result<()> {
    processes_under(state_dir);
    cgroups(cgroup);
    unmount_under(state_dir);
    fs::remove_dir_all(state_dir)?;
    for socket in dead_shim_sockets() {
        let _ = fs::remove_file(socket);
    }
    Ok(())
}

/// Removes all records, snapshots and leases of tasks from a containerd, whoever made them: only for one of our own.
pub fn records(containerd: &Containerd) {
    for namespace in [NAMESPACE, DOCKERS_NAMESPACE] {
        let words = |arguments: &[&'static str]| [&["--namespace", namespace], arguments].concat();
        let list = |arguments| listed(containerd, &words(arguments)).unwrap_or_default();
        let delete = |what, id: &str| drop(containerd.ctr(&["--namespace", namespace, what, "delete", id]));
        list(&["containers", "list", "--quiet"]).iter().for_each(|id| delete("containers", id));
        list(&["leases", "list", "--quiet"]).iter().for_each(|id| delete("leases", id));
        let snapshots = active_snapshots(containerd, namespace).unwrap_or_default();
        snapshots.iter().for_each(|key| delete("snapshots", key));
    }
}
