//! Rules for paths in a task's allocation directory, as the source of a mount or as an archive. Directories of Nomad
//! and of the other tasks of the group are refused, whatever the operator allows of the rest of the host.
//! docs/security.md has the table.
//!
//! Source of the facts: hashicorp/nomad `client/allocdir`, for the layout; `drivers/docker/driver.go`, for how a
//! relative source is resolved.

use std::path::{Component, Path, PathBuf};

use super::resolved_path::{Access, ResolvedPath, TaskDirectory, below};
use crate::config::{ConfigError, value};

/// The directory that the tasks of a group share.
const SHARED: &str = "alloc";
/// The logs directory within [`SHARED`], which only Nomad may write.
const LOGS: &str = "logs";
/// Nomad's own directory within a task's directory.
const PRIVATE: &str = "private";

/// Resolves a path within the allocation directory; `None` for a path of the host outside it. `..` removes the part
/// before it without a look at the files, as docker's driver does.
///
/// # Errors
/// Says what the path would expose, and what to name instead.
pub(super) fn place(
    option: &'static str,
    path: &Path,
    access: Access,
    task: TaskDirectory<'_>,
) -> Result<Option<ResolvedPath>, ConfigError> {
    let refuse = |why: &str| Err(value(option, path.display().to_string(), why));
    let alloc = Path::new(task.alloc_dir);
    let whole = clean(&alloc.join(task.task).join(path));
    let Ok(within) = whole.strip_prefix(clean(alloc)) else {
        let leads_out = format!("it leads out of {}, the allocation's directory", task.alloc_dir);
        return if path.is_relative() { refuse(&leads_out) } else { Ok(None) };
    };
    let names: Vec<_> = within.iter().collect();
    if names.starts_with(&[task.task.as_ref(), PRIVATE.as_ref()]) {
        return refuse("private is Nomad's own directory of the task, with its tokens, and is never mounted");
    }
    match names[..] {
        [] => refuse(
            "it is the whole directory of the allocation, with files of Nomad and of other tasks; docker's driver \
             mounts it, this one does not: name the directory that is needed (\"local/x\", \"../alloc/data\")",
        ),
        [shared] if shared == SHARED => refuse(
            "it is mounted at /alloc already, and this mount would make the logs writable; docker's driver mounts \
             it, this one does not: use /alloc, or name a directory in it (\"../alloc/data\")",
        ),
        [shared, logs, ..] if shared == SHARED && logs == LOGS && access == Access::Write => refuse(
            "Nomad writes the logs there, and would follow links that a task puts in their place; docker's driver \
             mounts it, this one only read-only: add ro (readonly = true), or use /alloc/logs",
        ),
        [shared, ..] if shared == SHARED => Ok(Some(found(alloc, &names))),
        [own] if own == task.task => refuse(
            "it is the whole directory of the task, with files of Nomad; docker's driver mounts it, this one does \
             not: name the directory that is needed (\"local\", \"secrets\")",
        ),
        [own, ..] if own == task.task => Ok(Some(found(alloc, &names))),
        _ => refuse(
            "it is another task's directory; docker's driver mounts it, this one does not: share files by /alloc \
             (\"../alloc/data\")",
        ),
    }
}

/// Builds the location of a permitted path. Its area is the first two parts: what Nomad, an artifact or this driver has
/// made.
fn found(alloc: &Path, names: &[&std::ffi::OsStr]) -> ResolvedPath {
    let (area, rest) = names.split_at(2);
    ResolvedPath {
        root: alloc.to_owned(),
        plain: area.iter().collect(),
        path: below(rest.iter().collect()),
        is_allocations: true,
    }
}

/// Returns the path without `.`, and without `..` and the part before each.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                cleaned.pop();
            }
            part => cleaned.push(part),
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(path: &str, access: Access) -> Result<Option<(String, String)>, String> {
        let task = TaskDirectory { alloc_dir: "/nomad/a1", task: "web" };
        let resolved = place("volumes", Path::new(path), access, task).map_err(|error| error.to_string())?;
        Ok(resolved.map(|ResolvedPath { root, plain, path, is_allocations }| {
            assert!(is_allocations && root == Path::new("/nomad/a1"));
            (plain.display().to_string(), path.display().to_string())
        }))
    }

    #[test]
    fn a_task_may_mount_its_own_and_shared_directories() {
        for (path, plain, rest) in [
            ("local", "web/local", "."),
            ("./local/", "web/local", "."),
            ("local/a/b", "web/local", "a/b"),
            ("secrets/token", "web/secrets", "token"),
            ("app.conf", "web/app.conf", "."),
            ("private2/x", "web/private2", "x"),
            ("local/../secrets", "web/secrets", "."),
            ("../web/local/x", "web/local", "x"),
            ("../alloc/data", "alloc/data", "."),
            ("../alloc/data/../tmp/x", "alloc/tmp", "x"),
            ("../alloc/logs2", "alloc/logs2", "."),
            ("/nomad/a1/web/local/x", "web/local", "x"),
            ("/nomad/./a1//alloc/data/x", "alloc/data", "x"),
        ] {
            let found = Some((plain.to_owned(), rest.to_owned()));
            assert_eq!(resolved(path, Access::Write), Ok(found), "{path}");
        }
    }

    #[test]
    fn directories_of_nomad_and_other_tasks_are_refused() {
        for (path, word) in [
            (".", "whole directory of the task"),
            ("local/..", "whole directory of the task"),
            ("/nomad/a1/web", "whole directory of the task"),
            ("..", "whole directory of the allocation"),
            ("/nomad/a1/", "whole directory of the allocation"),
            ("../alloc", "/alloc"),
            ("../alloc/data/..", "/alloc"),
            ("../db", "another task's"),
            ("../db/local", "another task's"),
            ("/nomad/a1/db/secrets/x", "another task's"),
            ("private", "Nomad's own"),
            ("private/vault_token", "Nomad's own"),
            ("local/../private", "Nomad's own"),
            ("../..", "leads out"),
            ("local/../../../a2/web/local", "leads out"),
        ] {
            for access in [Access::Read, Access::Write] {
                let error = resolved(path, access).unwrap_err();
                assert!(error.contains("volumes") && error.contains(word), "{path}: {error}");
            }
        }
    }

    #[test]
    fn the_log_directory_is_read_only() {
        for path in ["../alloc/logs", "../alloc/logs/web.stdout.0", "/nomad/a1/alloc/logs"] {
            let error = resolved(path, Access::Write).unwrap_err();
            assert!(error.contains("ro") && error.contains("/alloc/logs"), "{error}");
            assert_eq!(resolved(path, Access::Read).unwrap().unwrap().0, "alloc/logs");
        }
    }

    #[test]
    fn paths_outside_the_allocation_are_host_paths() {
        for path in ["/", "/nomad", "/nomad/a12", "/nomad/a1/../a2/web/local", "/srv"] {
            assert_eq!(resolved(path, Access::Write), Ok(None), "{path}");
        }
    }

    #[test]
    fn a_task_named_alloc_gets_no_further_access() {
        let task = TaskDirectory { alloc_dir: "/nomad/a1", task: "alloc" };
        for path in ["logs", "private", ".", ".."] {
            place("volumes", Path::new(path), Access::Write, task).unwrap_err();
        }
        place("volumes", Path::new("local"), Access::Write, task).unwrap().unwrap();
    }
}
