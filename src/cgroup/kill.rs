//! Kills all processes in a task's cgroup and removes the cgroup, including cgroups that the task has made in it,
//! frozen ones too.
//!
//! On v2 the kernel kills all processes of a cgroup and of those below it at once (from Linux 5.14 on), frozen or not.
//! On v1 a frozen process does not die before it is thawed; and each hierarchy has a tree of its own, so a process may
//! be in different cgroups of different hierarchies.
//!
//! Source of the facts: Linux `Documentation/admin-guide/cgroup-v2.rst` (cgroup.kill, cgroup.freeze),
//! `cgroup-v1/freezer-subsystem.rst`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::processes::{is_gone, listed, tree};
use super::{Mode, ROOT, below, is_kernels, mode, places, require_own_cgroup};
use crate::sys::pidfd::ProcessHandle;
use crate::sys::procfs::ProcessId;

const MAX_ATTEMPTS: u32 = 100;
/// Pause between two attempts: killed processes leave a cgroup only when they are scheduled.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum number of processes that are held by a pidfd at the same time.
const MAX_OPEN_PIDFDS: usize = 256;

/// Kills all processes in a task's cgroup or below it, and those that they start meanwhile. An empty or missing cgroup
/// is success.
///
/// Before each attempt `is_ours` tells whether the cgroup still belongs to the caller: meanwhile the task may be
/// destroyed and another attempt of it be started, which has the same cgroup. Returns false if it stopped belonging to
/// the caller.
///
/// # Errors
/// If processes are still there after a while, or can't be listed, or if the path can't be one task's alone.
pub(crate) async fn kill_all(
    path: &Path,
    is_ours: impl Fn() -> bool + Clone + Send + 'static,
) -> io::Result<bool> {
    require_own_cgroup(path)?;
    let mut outcome = Ok(true);
    for _ in 0..MAX_ATTEMPTS {
        outcome = match blocking(path, is_ours.clone(), kill_once).await {
            Ok(None) => return Ok(false),
            Ok(Some(left)) if left.is_empty() => return Ok(true),
            Ok(Some(left)) => {
                Err(io::Error::other(format!("processes {left:?} have not exited after SIGKILL")))
            }
            Err(error) => Err(error),
        };
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    outcome
}

/// Kills all processes left in a cgroup and removes it, and those below it, from all hierarchies. A missing one counts
/// as removed.
///
/// # Errors
/// If the kernel still finds it busy after a while, or as for [`kill_all`].
pub(crate) async fn remove(
    path: &Path,
    is_ours: impl Fn() -> bool + Clone + Send + 'static,
) -> io::Result<()> {
    if !kill_all(path, is_ours.clone()).await? {
        return Ok(());
    }
    let mut outcome = Ok(());
    for _ in 0..MAX_ATTEMPTS {
        outcome = blocking(path, is_ours.clone(), remove_once).await.map(|_| ());
        if outcome.is_ok() {
            break;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    outcome
}

/// Removes an empty cgroup, and those below it, from all hierarchies. A missing one counts as removed.
///
/// # Errors
/// If a process is in it.
pub(crate) async fn remove_empty(path: &Path) -> io::Result<()> {
    require_own_cgroup(path)?;
    blocking(path, || true, remove_directories).await.map(drop)
}

/// Runs blocking work on a cgroup, for which the kernel may need time, such as its removal. `None` if the cgroup
/// belongs to another.
async fn blocking<T: Send + 'static>(
    path: &Path,
    is_ours: impl Fn() -> bool + Clone + Send + 'static,
    work: fn(&Path) -> io::Result<T>,
) -> io::Result<Option<T>> {
    let path = path.to_owned();
    let work = move || if is_ours() { work(&path).map(Some) } else { Ok(None) };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Kills all processes once, and returns the pids of those that are still there.
fn kill_once(path: &Path) -> io::Result<Vec<i32>> {
    match mode() {
        Mode::V1 => kill_v1(path),
        Mode::V2 => kill_v2(path),
    }
}

fn kill_v2(path: &Path) -> io::Result<Vec<i32>> {
    let directory = below(Path::new(ROOT), path);
    if let Err(error) = std::fs::write(directory.join("cgroup.kill"), "1") {
        if !directory.is_dir() || is_empty(&directory)? {
            return Ok(Vec::new());
        }
        tracing::trace!(cgroup = %directory.display(), %error, "can't write cgroup.kill; killing the processes one by one");
        // Frozen, so that no process escapes by forking. A frozen one can still be killed.
        let freeze = directory.join("cgroup.freeze");
        let _ = std::fs::write(&freeze, "1");
        let killed = kill_listed(path);
        let _ = std::fs::write(&freeze, "0");
        killed?;
    }
    if is_empty(&directory)? { Ok(Vec::new()) } else { listed(path) }
}

/// Returns true if no process is left in a cgroup of v2 and in those below it, as the kernel reports.
fn is_empty(directory: &Path) -> io::Result<bool> {
    match std::fs::read_to_string(directory.join("cgroup.events")) {
        Ok(events) => Ok(super::value(&events, "populated") == Some(0)),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

fn kill_v1(path: &Path) -> io::Result<Vec<i32>> {
    let freezer = below(&Path::new(ROOT).join("freezer"), path);
    let can_freeze = is_kernels(&freezer);
    if can_freeze {
        // Frozen, so that no process escapes by forking.
        let _ = std::fs::write(freezer.join(FREEZER_STATE), "FROZEN");
    }
    let killed = kill_listed(path);
    let thawed = if can_freeze { thaw(&freezer) } else { Ok(()) };
    killed?;
    thawed?;
    listed(path)
}

const FREEZER_STATE: &str = "freezer.state";

/// Thaws a cgroup and those below it, any of which a task may have frozen. Inner ones come first, since a cgroup has a
/// freezer state of its own, apart from that of its ancestors.
fn thaw(freezer: &Path) -> io::Result<()> {
    for cgroup in tree(freezer)?.iter().rev() {
        match std::fs::write(cgroup.join(FREEZER_STATE), "THAWED") {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Kills the listed processes. Each is held by a pidfd and then listed again before it is killed, so that a process
/// that got the pid since is not hit. If not all can be held, such as for want of descriptors, those that are go first.
fn kill_listed(path: &Path) -> io::Result<()> {
    for pids in listed(path)?.chunks(MAX_OPEN_PIDFDS) {
        let (mut held, outcome) = hold(pids, |pid| ProcessHandle::open(ProcessId::of(pid)));
        if outcome.is_err() {
            // The second listing needs a descriptor as well.
            held.truncate(held.len().saturating_sub(SPARE_DESCRIPTORS));
        }
        let still_there = listed(path)?;
        held.iter().filter(|process| still_there.contains(&process.pid())).for_each(ProcessHandle::kill);
        outcome?;
    }
    Ok(())
}

/// Number of held processes that are let go when descriptors run out: other threads take some, too.
const SPARE_DESCRIPTORS: usize = 4;

/// Opens as many processes as possible, and returns the error that kept it from opening all.
fn hold<T>(pids: &[i32], open: impl Fn(i32) -> io::Result<Option<T>>) -> (Vec<T>, io::Result<()>) {
    let mut held = Vec::new();
    for pid in pids {
        match open(*pid) {
            Ok(process) => held.extend(process),
            Err(error) => return (held, Err(error)),
        }
    }
    (held, Ok(()))
}

fn remove_once(path: &Path) -> io::Result<()> {
    // A process may have entered since, such as a runtime that was on its way in.
    kill_once(path)?;
    remove_directories(path)
}

fn remove_directories(path: &Path) -> io::Result<()> {
    let (cgroups, others): (Vec<_>, Vec<_>) =
        places(path)?.into_iter().partition(|directory| is_kernels(directory));
    others.iter().for_each(|directory| remove_plain(directory));
    cgroups.iter().try_for_each(|directory| remove_tree(directory))
}

/// Removes a plain directory in the place of a cgroup, with the file into which crun has written the container's pid. What
/// else may be there is left.
fn remove_plain(directory: &Path) {
    let _ = std::fs::remove_file(directory.join("cgroup.procs"));
    let _ = std::fs::remove_dir(directory);
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let all: Vec<PathBuf> = tree(directory)?;
    all.iter().rev().try_for_each(|cgroup| match std::fs::remove_dir(cgroup) {
        Err(error) if !is_gone(&error) => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", cgroup.display())))
        }
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_directory_is_removed_with_the_pid_in_it() {
        let root = tempfile::tempdir().unwrap();
        let (made, other) = (root.path().join("a.web"), root.path().join("b.web"));
        for (directory, file) in [(&made, "cgroup.procs"), (&other, "mine")] {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join(file), "7").unwrap();
            remove_plain(directory);
        }
        assert!(!made.exists() && other.join("mine").exists());
    }

    #[test]
    fn processes_that_can_be_opened_are_held() {
        let open = |pid: i32| match pid {
            2 => Ok(None),
            4 => Err(io::Error::from_raw_os_error(nix::libc::EMFILE)),
            _ => Ok(Some(pid)),
        };
        let (held, outcome) = hold(&[1, 2, 3, 4, 5], open);
        assert_eq!((held, outcome.unwrap_err().raw_os_error()), (vec![1, 3], Some(nix::libc::EMFILE)));
        let (held, outcome) = hold(&[5, 6], open);
        assert_eq!((held, outcome.is_ok()), (vec![5, 6], true));
    }

    #[tokio::test]
    async fn a_foreign_cgroup_is_not_killed() {
        let task = Path::new("/nomad/no-such-alloc.web");
        assert!(!kill_all(task, || false).await.unwrap());
        assert!(kill_all(task, || true).await.unwrap());
        for everybodys in ["/", "/nomad", "/nomad.slice/share.slice", "/nomad/a1.web/../.."] {
            let everybodys = Path::new(everybodys);
            assert_eq!(kill_all(everybodys, || true).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(remove(everybodys, || true).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(listed(everybodys).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
