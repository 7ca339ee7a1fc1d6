//! Takes a census of what drivers make, from the kernel and the disk: processes, mounts, namespaces, links, cgroups,
//! pipes, sockets, descriptors, rules, addresses, files. Kinds that are about a state directory are of the given ones,
//! all others of the whole machine.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Census;
use crate::fixture::network::{files_below, rules};
use crate::fixture::programs::in_path;
use crate::leaks::inspect::{
    CGROUPS, Found, MAX_SPARES, SHARED, SPARES, children, dead_spares, find_processes, is_spare, leases,
    mounts_under, shown, socket_of_shim, special_files,
};

const LINKS: &str = "/sys/class/net";
/// Directories in which CNI plugins and their callers keep addresses and results, by convention.
const ADDRESSES: &str = "/var/lib/cni/networks";
const RECORDS: [&str; 2] = ["/var/lib/cni", "/run/cni"];
/// Name of the cgroup of the shims, which comes with the first one and stays. The shims themselves are counted.
const SHIMS: &str = "shims.slice";
/// Part of any shim's command line.
const SHIM: &str = "containerd-shim";

/// Takes a census of the machine, of these state directories, and of these processes' descriptors.
///
/// # Errors
/// Fails with what can't be looked at.
pub fn take(state_dirs: &[PathBuf], pids: &[i32]) -> Result<Census> {
    let mut census = Census::default();
    census.add("mount", shown(mounts_under(Path::new("/"))));
    census.add("network namespace", network_namespaces());
    census.add("link", children(Path::new(LINKS)).iter().map(|link| name(link)));
    let is_lasting = |group: &PathBuf| group.ends_with(SHIMS);
    census.add(
        "cgroup",
        shown(directories(Path::new(CGROUPS)).into_iter().filter(|group| !is_lasting(group)).collect()),
    );
    census.add("socket", bound_sockets());
    census.add("shim", shims());
    census.add("address in use", shown(leases(Path::new(ADDRESSES))));
    census.add("network record", RECORDS.iter().flat_map(|root| shown(files_below(Path::new(root)))));
    if in_path(Path::new("iptables-save")).is_ok() {
        for table in rules::all()? {
            census.add("rule", table.lines());
        }
    }
    for directory in state_dirs {
        // Spare shims come and go by themselves.
        let (spares, processes): (Vec<_>, Vec<_>) =
            find_processes(directory).into_iter().partition(|process| process.is_spare);
        census = census.without(&of_spares(&spares));
        census.add("spare shims", (spares.len() > MAX_SPARES).then(|| format!("{spares:?}")));
        census.add("spare without a shim", shown(dead_spares(directory)));
        census.add("process", processes.into_iter().map(|found| format!("{} {}", found.pid, found.command)));
        census.add("pipe or socket", shown(special_files(directory)));
        census.add("state file", shown(state_files(directory)));
        census.add("address in use", shown(leases(&directory.join("leases"))));
    }
    for pid in pids {
        census.add("descriptor", descriptors(*pid)?);
    }
    Ok(census)
}

/// Returns the words by which the kernel's lists name spare shims: their command lines and sockets.
fn of_spares(spares: &[Found]) -> Vec<String> {
    let sockets = spares.iter().filter_map(|spare| socket_of_shim(spare.pid));
    let lines = spares.iter().map(|spare| format!("{} {}", spare.pid, spare.command));
    sockets.map(|socket| socket.display().to_string()).chain(lines).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Lists the network namespaces that a process is in, and those that a mount keeps, with its mount point.
fn network_namespaces() -> Vec<String> {
    let of_processes = children(Path::new("/proc"))
        .into_iter()
        .filter_map(|process| Some(fs::read_link(process.join("ns/net")).ok()?.display().to_string()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        root.starts_with("net:").then(|| format!("{root} at {point}"))
    });
    of_processes.chain(lines.collect::<Vec<_>>()).collect()
}

/// Lists all directories below one, without following links.
fn directories(root: &Path) -> Vec<PathBuf> {
    let is_directory = |path: &PathBuf| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    let below = children(root).into_iter().filter(is_directory);
    below.flat_map(|directory| std::iter::once(directory.clone()).chain(directories(&directory))).collect()
}

/// Lists the paths of bound Unix sockets.
fn bound_sockets() -> Vec<String> {
    let bound = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let paths =
        bound.lines().filter_map(|line| line.split_whitespace().nth(7)).filter(|path| path.starts_with('/'));
    paths.map(str::to_owned).collect()
}

fn shims() -> Vec<String> {
    let lines = children(Path::new("/proc")).into_iter().filter_map(|process| {
        let line = fs::read(process.join("cmdline")).ok()?;
        Some(format!("{} {}", name(&process), String::from_utf8_lossy(&line).replace('\0', " ").trim()))
    });
    lines.filter(|line| line.contains(SHIM)).collect()
}

/// Lists files and directories, except for those in a task's root.
fn state_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in children(directory) {
        let is_directory = path.symlink_metadata().is_ok_and(|found| found.is_dir());
        if name(&path) == SPARES {
            continue;
        }
        if is_directory && name(&path) != "rootfs" {
            found.extend(state_files(&path));
        }
        // The directory of shared shims stays; those in it do not.
        if name(&path) != SHARED {
            found.push(path);
        }
    }
    found
}

/// Counts a process' descriptors by what they are open on.
fn descriptors(pid: i32) -> Result<Vec<String>> {
    let directory = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&directory).with_context(|| format!("look into {directory}"))?;
    let targets = entries.flatten().filter(|entry| !is_of_spare(pid, &entry.file_name()));
    let targets = targets.filter_map(|entry| fs::read_link(entry.path()).ok());
    let mut counts = BTreeMap::<String, usize>::new();
    for target in targets {
        *counts.entry(without_number(&target.display().to_string()).to_owned()).or_default() += 1;
    }
    Ok(counts.into_iter().map(|(target, count)| format!("of {pid}: {count} x {target}")).collect())
}

/// Returns whether a descriptor is that of the process of a spare shim.
fn is_of_spare(pid: i32, descriptor: &OsStr) -> bool {
    let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(descriptor);
    let info = fs::read_to_string(info).unwrap_or_default();
    let shim = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    shim.is_some_and(|shim| is_spare(&Path::new("/proc").join(shim.trim())))
}

/// Removes the number of a kernel object, such as in `socket:[4711]`, since one is like another.
fn without_number(target: &str) -> &str {
    if target.starts_with('/') { target } else { target.split(":[").next().unwrap_or(target) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_told_by_what_they_are_and_not_by_their_numbers() {
        assert_eq!(without_number("socket:[4711]"), "socket");
        assert_eq!(without_number("anon_inode:[eventfd]"), "anon_inode");
        assert_eq!(without_number("/dev/null"), "/dev/null");
        let this = i32::try_from(std::process::id()).unwrap();
        assert!(descriptors(this).unwrap().iter().all(|line| line.starts_with(&format!("of {this}: "))));
        assert!(descriptors(i32::MAX).is_err());
    }

    #[test]
    fn what_is_in_a_tasks_root_is_no_state() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("web");
        fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
        fs::write(bundle.join("config.json"), "").unwrap();
        let mut found = state_files(directory.path());
        found.sort();
        assert_eq!(found, [bundle.clone(), bundle.join("config.json"), bundle.join("rootfs")]);
    }
}
