//! The cgroup of a task, as Nomad made it: its path in each hierarchy, and the kernel's counters there.
//!
//! Source of the facts: hashicorp/nomad `client/lib/cgroupslib`; Linux `Documentation/admin-guide/cgroup-v1`,
//! `cgroup-v2.rst`.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

mod kill;
mod limits;
mod metrics;
mod move_window;
mod oom;
mod processes;
mod shared;
mod shims;
mod usage;

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};

pub(crate) use kill::{kill_all, remove, remove_empty};
pub(crate) use limits::Limit;
pub(crate) use move_window::MoveWindow;
pub(crate) use oom::OomWatch;
pub(crate) use processes::listed;
pub(crate) use shims::of_shims;
pub(crate) use usage::{Usage, UsageFiles};

const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup version. A hybrid machine, with controllers on v1, counts as v1, as it does for Nomad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    V1,
    V2,
}

static MODE: LazyLock<Mode> =
    LazyLock::new(|| if Path::new(ROOT).join("cgroup.controllers").exists() { Mode::V2 } else { Mode::V1 });

/// Returns the machine's version, which never changes.
pub(crate) fn mode() -> Mode {
    *MODE
}

/// Paths of a task's cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    /// Path relative to the root of each hierarchy.
    pub path: PathBuf,
    /// On v1, the cpuset that Nomad gives the task, which it may share with other tasks.
    pub cpuset: Option<PathBuf>,
}

impl Cgroup {
    /// Returns the cgroup of a task. `cpuset_cgroup` is the path of its cpuset, as Nomad sends it.
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
                let named = named.filter(|path| require_own_cgroup(path).is_ok());
                Self { path: named.unwrap_or_else(usual), cpuset: None }
            }
        }
    }

    /// Moves a process into the task's cpuset; processes that it forked before stay where they were.
    ///
    /// # Errors
    /// If the kernel refuses. Nothing is moved if the cpuset is missing or has no CPUs (that of reserved cores, which
    /// the runtime sets in the container's own), or if the pid is unknown: the kernel takes 0 for this plugin.
    pub(crate) fn add_process(&self, pid: i32) -> io::Result<()> {
        let Some(cpuset) = self.cpuset.as_ref().filter(|_| pid > 1) else { return Ok(()) };
        match std::fs::read_to_string(cpuset.join("cpuset.cpus")) {
            Ok(cpus) if !cpus.trim().is_empty() => {
                std::fs::write(cpuset.join("cgroup.procs"), pid.to_string())
            }
            _ => Ok(()),
        }
    }

    /// Returns true if the kernel can limit the task's swap. Some are built or booted without it, and then a runtime
    /// that is asked to fails.
    pub(crate) fn limits_swap(&self) -> bool {
        match mode() {
            Mode::V1 => Path::new(ROOT).join("memory/memory.memsw.limit_in_bytes").exists(),
            Mode::V2 => limits_swap_below(Path::new(ROOT), &self.path),
        }
    }

    /// Returns the number of the task's processes that the kernel has killed for want of memory. Valid only before the
    /// container is deleted; 0 if the kernel doesn't count them.
    pub(crate) fn oom_kills(&self) -> u64 {
        std::fs::read_to_string(self.oom_file()).map_or(0, |text| counter(&text, "oom_kill"))
    }

    /// Returns the path of the kernel's count of OOM kills.
    fn oom_file(&self) -> PathBuf {
        let (hierarchy, file) = match mode() {
            Mode::V1 => ("memory", "memory.oom_control"),
            Mode::V2 => ("", "memory.events"),
        };
        self.directory_in(hierarchy).join(file)
    }

    /// Returns the task's directory in a hierarchy of v1, or, with an empty name, in that of v2.
    fn directory_in(&self, hierarchy: &str) -> PathBuf {
        below(&Path::new(ROOT).join(hierarchy), &self.path)
    }
}

/// Returns true if memory.swap.max exists. On v2 either every cgroup but the root has the file, or none has. The task's
/// own may not exist yet, so the nearest existing ancestor is checked.
fn limits_swap_below(root: &Path, path: &Path) -> bool {
    let mut above =
        path.ancestors().filter_map(|path| path.strip_prefix("/").ok()).filter(|path| *path != Path::new(""));
    let nearest = above.find(|path| root.join(path).is_dir());
    nearest.is_some_and(|path| root.join(path).join("memory.swap.max").exists())
}

/// Refuses a path that can't be one task's alone: the root, Nomad's cgroup, or a slice, which others are in as well.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] names the path.
fn require_own_cgroup(path: &Path) -> io::Result<()> {
    let mut components = path.components().filter(|component| *component != Component::RootDir);
    let is_plain = components.clone().all(|component| matches!(component, Component::Normal(_)));
    let is_slice = path.extension().is_some_and(|extension| extension == "slice");
    if is_plain && components.nth(1).is_some() && !is_slice {
        return Ok(());
    }
    let error = format!("{} is not the cgroup of a single task", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Returns a cgroup's directory in a hierarchy.
fn below(hierarchy: &Path, path: &Path) -> PathBuf {
    hierarchy.join(path.strip_prefix("/").unwrap_or(path))
}

/// Returns a cgroup's directory in each hierarchy that has it.
///
/// # Errors
/// If the hierarchies can't be listed.
fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = places(path)?;
    found.retain(|directory| is_kernels(directory));
    Ok(found)
}

/// Returns where a cgroup's directory would be, in each hierarchy and in what only looks like one.
///
/// # Errors
/// If the hierarchies can't be listed.
fn places(path: &Path) -> io::Result<Vec<PathBuf>> {
    match mode() {
        Mode::V2 => Ok(vec![below(Path::new(ROOT), path)]),
        Mode::V1 => std::fs::read_dir(ROOT)?.map(|entry| Ok(below(&entry?.path(), path))).collect(),
    }
}

/// Returns whether a directory is a cgroup. Beside those of the hierarchies there may be a plain one, such as where a
/// hierarchy was mounted once: crun writes a container's pid into a plain file there, which nobody takes out again.
fn is_kernels(directory: &Path) -> bool {
    statfs(directory)
        .is_ok_and(|found| [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&found.filesystem_type()))
}

/// Returns a value of one of the kernel's `key value` files; 0 if it isn't counted.
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
    fn a_directory_of_another_file_system_is_no_cgroup() {
        let plain = tempfile::tempdir().unwrap();
        std::fs::write(plain.path().join("cgroup.procs"), "1").unwrap();
        assert!(!is_kernels(plain.path()) && !is_kernels(&plain.path().join("missing")));
        let hierarchy = match mode() {
            Mode::V1 => "pids",
            Mode::V2 => "",
        };
        assert!(is_kernels(&Path::new(ROOT).join(hierarchy)));
    }

    #[test]
    fn a_tasks_cgroup_path_follows_nomad() {
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
    fn shared_cgroups_are_not_a_tasks_own() {
        for own in ["/nomad/a1.web", "nomad/a1.web", "/nomad.slice/share.slice/a1.web.scope"] {
            require_own_cgroup(Path::new(own)).unwrap();
        }
        for others in
            ["", "/", "/nomad", "/nomad.slice/share.slice", "/nomad/../a1.web", "../nomad/a1.web", "./nomad"]
        {
            let error = require_own_cgroup(Path::new(others)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{others}");
        }
    }

    #[test]
    fn an_unknown_process_is_not_moved_to_a_cpuset() {
        let cpuset = tempfile::tempdir().unwrap();
        std::fs::write(cpuset.path().join("cpuset.cpus"), "0-3\n").unwrap();
        let cgroup = Cgroup { path: "/nomad/a1.web".into(), cpuset: Some(cpuset.path().to_owned()) };
        let procs = cpuset.path().join("cgroup.procs");
        for pid in [-1, 0, 1] {
            cgroup.add_process(pid).unwrap();
            assert!(!procs.exists(), "{pid}");
        }
        cgroup.add_process(4711).unwrap();
        assert_eq!(std::fs::read_to_string(procs).unwrap(), "4711");
    }

    #[test]
    fn swap_limits_are_detected_at_the_nearest_existing_cgroup() {
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
    fn oom_kills_are_read_on_v1_and_v2() {
        assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), 3);
        assert_eq!(counter("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n", "oom_kill"), 1);
        assert_eq!(counter("", "oom_kill"), 0);
    }
}
