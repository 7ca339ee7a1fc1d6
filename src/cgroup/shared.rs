//! Resources of the cgroups above a task's own: CPUs and memory nodes, which a task without reserved cores shares with
//! others, and controllers.

use std::path::{Path, PathBuf};

use super::{Cgroup, Mode, ROOT, below, is_kernels, mode};

impl Cgroup {
    /// Returns the CPUs that the task may share, in the kernel's list format; empty if unknown.
    pub(crate) fn shared_processors(&self) -> String {
        self.shared("cpus")
    }

    /// Returns the memory nodes that the task may share, in the kernel's list format; empty if unknown.
    pub(crate) fn shared_memory_nodes(&self) -> String {
        self.shared("mems")
    }

    /// Returns true if the kernel can limit the number of the task's processes.
    pub(crate) fn limits_pids(&self) -> bool {
        match mode() {
            Mode::V1 => is_kernels(&Path::new(ROOT).join("pids")),
            Mode::V2 => above(Path::new(ROOT), &self.path).is_some_and(|slice| has_pids(&slice)),
        }
    }

    /// Leaves Nomad's shared cpuset, for a task with CPUs or memory nodes of its own: it stays in the cpuset that the
    /// runtime makes for it. On v2 it has never been in another.
    pub(crate) fn leave_shared(&mut self) {
        self.cpuset = None;
    }

    fn shared(&self, what: &str) -> String {
        let file = match mode() {
            Mode::V1 => self.cpuset.as_ref().map(|cpuset| cpuset.join(format!("cpuset.effective_{what}"))),
            Mode::V2 => {
                above(Path::new(ROOT), &self.path).map(|slice| slice.join(format!("cpuset.{what}.effective")))
            }
        };
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        text.trim().to_owned()
    }
}

fn has_pids(cgroup: &Path) -> bool {
    let listed = std::fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    listed.split_whitespace().any(|controller| controller == "pids")
}

/// Returns the nearest existing directory above a cgroup.
fn above(root: &Path, path: &Path) -> Option<PathBuf> {
    path.ancestors().skip(1).map(|path| below(root, path)).find(|directory| directory.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_cpus_are_those_of_the_parent_slice() {
        let root = tempfile::tempdir().unwrap();
        let slice = root.path().join("nomad.slice/share.slice");
        let task = Path::new("/nomad.slice/share.slice/a1.web.scope");
        std::fs::create_dir_all(slice.join("a1.web.scope")).unwrap();
        assert_eq!(above(root.path(), task), Some(slice.clone()));
        assert!(!has_pids(&slice));
        std::fs::write(slice.join("cgroup.controllers"), "cpu pids\n").unwrap();
        assert!(has_pids(&slice));
        assert_eq!(above(root.path(), Path::new("/x/y")).unwrap(), root.path());
    }
}
