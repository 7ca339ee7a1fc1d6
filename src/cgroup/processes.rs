//! Lists the processes in a task's cgroup, and in those that the task has made in it.
//!
//! An unreadable part is an error: its processes are unknown then, which is not the same as none.

use std::io;
use std::path::{Path, PathBuf};

use nix::libc::{ENODEV, EOPNOTSUPP};

use super::{Cgroup, directories, require_own_cgroup};

impl Cgroup {
    /// Returns the pids on the host of all processes of the task, also of those in cgroups that it made itself.
    ///
    /// # Errors
    /// If a part of the cgroup can't be read.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        listed(&self.path)
    }
}

/// Returns the pids of all processes in a cgroup and below it, in any hierarchy. Empty if there is no such cgroup.
///
/// # Errors
/// If a part of it can't be read, or the path can't be one task's alone.
pub(crate) fn listed(path: &Path) -> io::Result<Vec<i32>> {
    require_own_cgroup(path)?;
    let mut pids = Vec::new();
    for directory in directories(path)? {
        for cgroup in tree(&directory)? {
            pids.extend(members(&cgroup)?);
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// Returns a cgroup's directory and those below it, each after its parent.
pub(super) fn tree(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        let entries = match std::fs::read_dir(parent) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => {
                found.remove(next);
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(entry.path());
            }
        }
        next += 1;
    }
    Ok(found)
}

fn members(directory: &Path) -> io::Result<Vec<i32>> {
    match std::fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(listed) => Ok(listed.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        // A threaded cgroup can't be read; the domain above it lists its processes.
        Err(error) if error.raw_os_error() == Some(EOPNOTSUPP) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Returns true if the error means that the cgroup was removed. During its removal the kernel reports ENODEV.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_cgroups_come_after_their_parents() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("task");
        std::fs::create_dir_all(top.join("docker/one/two")).unwrap();
        std::fs::create_dir_all(top.join("init")).unwrap();
        std::fs::write(top.join("cgroup.procs"), "1\n2\n").unwrap();
        let found = tree(&top).unwrap();
        let at = |name: &str| found.iter().position(|path| path.ends_with(name)).unwrap();
        assert_eq!((found.len(), at("task")), (5, 0));
        assert!(at("docker") < at("one") && at("one") < at("two"));
        assert_eq!(tree(&root.path().join("gone")).unwrap(), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn an_unreadable_cgroup_is_an_error_and_a_missing_one_empty() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(members(root.path()).unwrap(), [0; 0]);
        std::fs::write(root.path().join("cgroup.procs"), "17\n4\n").unwrap();
        assert_eq!(members(root.path()).unwrap(), [17, 4]);
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(tree(&file).is_err());
    }
}
