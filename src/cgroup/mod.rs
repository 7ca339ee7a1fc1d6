//! The cgroup of a task, as Nomad made it: where it is in each hierarchy, and what the kernel counted there.
//!
//! Source of the facts: hashicorp/nomad `client/lib/cgroupslib`; Linux `Documentation/admin-guide/cgroup-v1`, `cgroup-v2.rst`.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

mod kill;
mod metrics;
mod oom;
mod processes;
mod shared;
mod usage;

use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use kill::{kill_all, remove, remove_empty};
pub(crate) use oom::OomWatch;
pub(crate) use processes::listed;
pub(crate) use usage::Usage;

const ROOT: &str = "/sys/fs/cgroup";

/// A hybrid machine, with controllers on v1, counts as v1, as it does for Nomad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    V1,
    V2,
}

pub(crate) fn mode() -> Mode {
    if Path::new(ROOT).join("cgroup.controllers").exists() { Mode::V2 } else { Mode::V1 }
}

/// Where a task's cgroups are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    /// Below the root of each hierarchy.
    pub path: PathBuf,
    /// On v1, the cpuset that Nomad gives the task, in which it may have company.
    pub cpuset: Option<PathBuf>,
}

impl Cgroup {
    /// The cgroup of a task whose cpuset Nomad says is at `cpuset_cgroup`.
    pub(crate) fn of(alloc_id: &str, task_name: &str, cpuset_cgroup: &str) -> Self {
        Self::in_mode(mode(), alloc_id, task_name, cpuset_cgroup)
    }

    fn in_mode(mode: Mode, alloc_id: &str, task_name: &str, cpuset_cgroup: &str) -> Self {
        let scope = format!("{alloc_id}.{task_name}");
        match mode {
            Mode::V1 => Self {
                path: Path::new("/nomad").join(scope),
                cpuset: (!cpuset_cgroup.is_empty()).then(|| PathBuf::from(cpuset_cgroup)),
            },
            Mode::V2 => {
                let named =
                    Path::new(cpuset_cgroup).strip_prefix(ROOT).ok().map(|path| Path::new("/").join(path));
                let usual = || Path::new("/nomad.slice/share.slice").join(format!("{scope}.scope"));
                let named = named.filter(|path| require_tasks_own(path).is_ok());
                Self { path: named.unwrap_or_else(usual), cpuset: None }
            }
        }
    }

    /// Puts a process into the task's cpuset; what it has forked before stays where it was.
    ///
    /// # Errors
    /// When the kernel refuses. A cpuset that isn't there is none, and one without processors (that of reserved cores,
    /// which the runtime sets in the container's own) takes nobody. Nor is a process moved that is not known: the kernel takes
    /// 0 for this plugin.
    pub(crate) fn place(&self, pid: i32) -> io::Result<()> {
        let Some(cpuset) = self.cpuset.as_ref().filter(|_| pid > 1) else { return Ok(()) };
        match std::fs::read_to_string(cpuset.join("cpuset.cpus")) {
            Ok(cpus) if !cpus.trim().is_empty() => {
                std::fs::write(cpuset.join("cgroup.procs"), pid.to_string())
            }
            _ => Ok(()),
        }
    }

    /// Whether the kernel can be told to give the task no swap. Some were built or booted without, and a runtime that is
    /// asked all the same fails.
    pub(crate) fn limits_swap(&self) -> bool {
        match mode() {
            Mode::V1 => Path::new(ROOT).join("memory/memory.memsw.limit_in_bytes").exists(),
            Mode::V2 => limits_swap_below(Path::new(ROOT), &self.path),
        }
    }

    /// The limit of its memory, in bytes. None where there is none.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) fn memory_limit(&self) -> io::Result<Option<i64>> {
        let text = std::fs::read_to_string(self.memory_file("memory.limit_in_bytes", "memory.max"))?;
        // v2 has "max" where there is none.
        Ok(text.trim().parse().ok())
    }

    /// How many processes of the task the kernel has killed for want of memory. To be asked before the container is
    /// deleted; 0 where nobody counted.
    pub(crate) fn oom_kills(&self) -> u64 {
        std::fs::read_to_string(self.oom_file()).map_or(0, |text| counter(&text, "oom_kill"))
    }

    /// Where the kernel counts them.
    fn oom_file(&self) -> PathBuf {
        self.memory_file("memory.oom_control", "memory.events")
    }

    /// A file of the memory controller, by its name on either version.
    fn memory_file(&self, on_v1: &str, on_v2: &str) -> PathBuf {
        let (hierarchy, file) = match mode() {
            Mode::V1 => ("memory", on_v1),
            Mode::V2 => ("", on_v2),
        };
        below(&Path::new(ROOT).join(hierarchy), &self.path).join(file)
    }
}

/// On v2 every cgroup but the root has the file, or none has. The task's own may not be there yet.
fn limits_swap_below(root: &Path, path: &Path) -> bool {
    let mut above =
        path.ancestors().filter_map(|path| path.strip_prefix("/").ok()).filter(|path| *path != Path::new(""));
    let nearest = above.find(|path| root.join(path).is_dir());
    nearest.is_some_and(|path| root.join(path).join("memory.swap.max").exists())
}

/// Refuses a path that can't be one task's alone: everybody's cgroup, Nomad's, or a slice, which others are in as well.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] names the path.
fn require_tasks_own(path: &Path) -> io::Result<()> {
    let mut components = path.components().filter(|component| *component != Component::RootDir);
    let is_plain = components.clone().all(|component| matches!(component, Component::Normal(_)));
    let is_slice = path.extension().is_some_and(|extension| extension == "slice");
    if is_plain && components.nth(1).is_some() && !is_slice {
        return Ok(());
    }
    let error = format!("{} is no cgroup of a task's own", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// A cgroup's directory in a hierarchy.
fn below(hierarchy: &Path, path: &Path) -> PathBuf {
    hierarchy.join(path.strip_prefix("/").unwrap_or(path))
}

/// A cgroup's directory in each hierarchy that has it.
///
/// # Errors
/// When the hierarchies can't be listed.
fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let hierarchies = match mode() {
        Mode::V2 => vec![PathBuf::from(ROOT)],
        Mode::V1 => {
            let entries = std::fs::read_dir(ROOT)?.map(|entry| Ok(entry?.path()));
            entries.collect::<io::Result<_>>()?
        }
    };
    let found = hierarchies.iter().map(|hierarchy| below(hierarchy, path));
    Ok(found.filter(|directory| directory.is_dir()).collect())
}

/// A value of one of the kernel's `key value` files, 0 where it isn't counted.
fn counter(text: &str, key: &str) -> u64 {
    value(text, key).unwrap_or(0)
}

fn value(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tasks_cgroup_is_where_nomad_made_it() {
        let share = "/sys/fs/cgroup/cpuset/nomad/share";
        let v1 = Cgroup::in_mode(Mode::V1, "a1", "web", share);
        assert_eq!(v1, Cgroup { path: "/nomad/a1.web".into(), cpuset: Some(share.into()) });
        let scope = "/sys/fs/cgroup/nomad.slice/reserve.slice/a1.web.scope";
        let v2 = Cgroup::in_mode(Mode::V2, "a1", "web", scope);
        assert_eq!(v2, Cgroup { path: "/nomad.slice/reserve.slice/a1.web.scope".into(), cpuset: None });
        let unnamed = Cgroup::in_mode(Mode::V2, "a1", "web", "");
        assert_eq!(unnamed.path, Path::new("/nomad.slice/share.slice/a1.web.scope"));
        for everybodys in [ROOT, "/sys/fs/cgroup/nomad.slice/share.slice", "/sys/fs/cgroup/a/../b.scope"] {
            assert_eq!(Cgroup::in_mode(Mode::V2, "a1", "web", everybodys), unnamed);
        }
    }

    #[test]
    fn a_cgroup_that_others_are_in_is_no_tasks_own() {
        for own in ["/nomad/a1.web", "nomad/a1.web", "/nomad.slice/share.slice/a1.web.scope"] {
            require_tasks_own(Path::new(own)).unwrap();
        }
        for others in
            ["", "/", "/nomad", "/nomad.slice/share.slice", "/nomad/../a1.web", "../nomad/a1.web", "./nomad"]
        {
            let error = require_tasks_own(Path::new(others)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{others}");
        }
    }

    #[test]
    fn a_process_that_is_not_known_is_put_into_no_cpuset() {
        let cpuset = tempfile::tempdir().unwrap();
        std::fs::write(cpuset.path().join("cpuset.cpus"), "0-3\n").unwrap();
        let cgroup = Cgroup { path: "/nomad/a1.web".into(), cpuset: Some(cpuset.path().to_owned()) };
        let procs = cpuset.path().join("cgroup.procs");
        for pid in [-1, 0, 1] {
            cgroup.place(pid).unwrap();
            assert!(!procs.exists(), "{pid}");
        }
        cgroup.place(4711).unwrap();
        assert_eq!(std::fs::read_to_string(procs).unwrap(), "4711");
    }

    #[test]
    fn swap_is_limited_where_the_nearest_cgroup_that_is_there_can_be_told() {
        let root = tempfile::tempdir().unwrap();
        let slice = root.path().join("nomad.slice/share.slice");
        let task = Path::new("/nomad.slice/share.slice/a1.web.scope");
        assert!(!limits_swap_below(root.path(), task));
        std::fs::create_dir_all(&slice).unwrap();
        assert!(!limits_swap_below(root.path(), task));
        std::fs::write(slice.join("memory.swap.max"), "max").unwrap();
        assert!(limits_swap_below(root.path(), task));
        std::fs::create_dir(slice.join("a1.web.scope")).unwrap();
        assert!(!limits_swap_below(root.path(), task));
        std::fs::write(slice.join("a1.web.scope/memory.swap.max"), "max").unwrap();
        assert!(limits_swap_below(root.path(), task));
    }

    #[test]
    fn oom_kills_are_read_from_both_forms() {
        assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), 3);
        assert_eq!(counter("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n", "oom_kill"), 1);
        assert_eq!(counter("", "oom_kill"), 0);
    }
}
