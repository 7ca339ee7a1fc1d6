//! A path of the host that a job may use, resolved by the rules of `allocation.rs` or `volumes.rs`: how it is opened
//! beneath its root.

use std::path::{Component, Path, PathBuf};

/// A resolved path, and the area that its symbolic links and `..` must not lead out of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResolvedPath {
    /// Directory of the operator or of Nomad, whose own symbolic links are followed.
    pub root: PathBuf,
    /// Path of the area relative to `root`, in which no symbolic link is followed. Empty is `root` itself.
    pub plain: PathBuf,
    /// Path relative to the area.
    pub path: PathBuf,
    /// `true` if `root` is the allocation directory.
    pub is_allocations: bool,
}

/// The access that a path is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Access {
    Read,
    Write,
}

/// The allocation directory and the task that a path belongs to, as Nomad names them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskDirectory<'a> {
    pub alloc_dir: &'a str,
    pub task: &'a str,
}

impl ResolvedPath {
    pub(super) fn of_host(root: PathBuf, path: PathBuf) -> Self {
        Self { root, plain: PathBuf::new(), path: below(path), is_allocations: false }
    }

    /// Returns the directory of a volume without a source: within the task's directory, named for its target.
    pub(in crate::config) fn own_volume(task: TaskDirectory<'_>, target: &str) -> Self {
        // The escaping keeps the names of any two targets distinct.
        let name = target.trim_start_matches('/').replace('%', "%25").replace('/', "%2F");
        let plain = Path::new(task.task).join("volumes").join(name);
        Self { root: task.alloc_dir.into(), plain, path: ".".into(), is_allocations: true }
    }

    /// Returns the whole path, for errors.
    pub(crate) fn shown(&self) -> PathBuf {
        let Self { root, plain, path, is_allocations: _ } = self;
        root.join(plain).join(path).components().collect()
    }
}

/// Returns `.` for a path that names the directory itself, else the path.
pub(super) fn below(path: PathBuf) -> PathBuf {
    if path.components().all(|part| part == Component::CurDir) { ".".into() } else { path }
}
