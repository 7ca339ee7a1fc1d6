//! Ends execs that an earlier plugin has left when it died. Their clients went with it, so nobody reads them any more.
//! The shim's own files say which they are: it writes each one's pid into the bundle, and the pipes of an exec that was
//! being started are still there by their names. gVisor's shim removes the pid at the end of the start; there the
//! pipes' names stay for as long as the exec runs.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what lies in the state directory, which only root can reach"
)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::processes::{self, Root, strays};
use super::{DEATH, PREFIX, Running, runtimes};
use crate::shim::{Bundle, Connection, Family};
use crate::sys::blocking;
use crate::sys::procfs::ProcessId;
use crate::task::DriverState;
use crate::task::container::ContainerHandles;

/// Maximum time between the begin of an exec's process and the note of its pid: as long as its start may take.
const START: Duration = Duration::from_secs(60);

/// Number of tries to end an exec that was being started, since it may begin between two tries.
const TRIES: usize = 5;

/// The execs that an earlier plugin has left, as found before anything new is run in the task.
pub(in crate::task) struct StaleExecs {
    /// First processes by exec id; `None` where the shim had not got that far.
    execs: BTreeMap<String, Option<Root>>,
    /// Time of the search by the kernel's clock, in ticks: what begins later is of this plugin.
    looked: u64,
    /// Directory in which the shim notes the pids.
    directory: PathBuf,
    pipes: Vec<PathBuf>,
    /// Both ends of the pipes. A shim that was opening a pipe when the plugin died answers to nothing until it finds
    /// the other end.
    held: Vec<File>,
}

impl StaleExecs {
    /// Finds what is left in a bundle. Blocking: not for an async thread.
    pub(in crate::task) fn find(bundle: &Bundle) -> Self {
        let (looked, directory) = (processes::now(), bundle.directory().to_owned());
        let mut leftovers =
            Self { execs: BTreeMap::new(), looked, directory, pipes: Vec::new(), held: Vec::new() };
        for pipe in files(&bundle.io_directory(), "") {
            let both_ways =
                OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe);
            leftovers.held.extend(both_ways);
            leftovers.execs.insert(stem(&pipe), None);
            leftovers.pipes.push(pipe);
        }
        for noted in files(bundle.directory(), ".pid") {
            leftovers.execs.insert(stem(&noted), root(&noted));
        }
        leftovers
    }

    /// Ends the execs. `runtime_root` is the directory in which the runtimes of this plugin's shims keep their state.
    pub(in crate::task) async fn end(
        self,
        connection: &Connection,
        driver_state: &DriverState,
        container: &ContainerHandles,
        runtime_root: &Path,
    ) {
        let cgroup = &driver_state.cgroup;
        let shim = container.launcher.process_of(&driver_state.shim, &container.bundle, &container.id).await;
        let shim = shim.unwrap_or_else(|error| {
            tracing::warn!(container = container.id, %error, "can't find the shim to look for stale commands");
            None
        });
        let Self { execs, looked, directory, pipes, held } = self;
        // Runtimes come first: as long as they hang, their shim knows no process to kill. Other shims are left out,
        // since what they run beside their containers belongs to the containers.
        if let Some(shim) = shim.filter(|_| driver_state.family().shares_kernel()) {
            let only_for = driver_state.shim.is_shared().then_some(&*container.id);
            runtimes::end(shim.pid, runtime_root, looked, only_for).await;
        }
        let ends = execs.into_iter().map(|(exec_id, root)| {
            tracing::info!(
                exec = exec_id,
                "killing a command whose client was connected to an earlier plugin"
            );
            let noted = directory.join(format!("{exec_id}.pid"));
            let (connection, cgroup) = (connection.clone(), cgroup.clone());
            end(Running { connection, exec_id, cgroup, root, pipes: None }, noted)
        });
        futures::future::join_all(ends).await;
        if let Some(shim) = shim
            && strays_are_recognizable(
                driver_state.family(),
                shim,
                driver_state.init,
                driver_state.shares_pids,
            )
        {
            end_strays(driver_state, shim, looked).await;
        }
        blocking::run(move || pipes.iter().for_each(|pipe| drop(std::fs::remove_file(pipe)))).await;
        drop(held);
    }
}

/// Ends one exec. A shim starts execs one after the other. An exec whose start it has been told and has not come to yet
/// can't be killed, and may begin before it is forgotten; then it has a pid by which all of it is found.
async fn end(mut running: Running, noted: PathBuf) {
    for _ in 0..TRIES {
        if running.root.is_none() && running.connection.exec_has_begun(&running.exec_id).await {
            let noted = noted.clone();
            running.root = blocking::run(move || root(&noted)).await;
        }
        running.kill().await;
        if running.forget().await {
            return;
        }
    }
}

/// Returns whether a child of the shim's in the task's cgroup that is not the task's first process is a command that
/// the shim took in. Other shims run what serves their containers in there, such as gVisor's gofer; a first process
/// that is not known would be taken for a command; and where the task is among the host's processes, its orphans are
/// the shim's children as well.
fn strays_are_recognizable(family: Family, shim: ProcessId, init: ProcessId, shares_pids: bool) -> bool {
    !shares_pids && family.shares_kernel() && shim.pid > 1 && init.pid > 1
}

async fn end_strays(driver_state: &DriverState, shim: ProcessId, before: u64) {
    let (cgroup, init) = (driver_state.cgroup.clone(), driver_state.init);
    let killed = tokio::task::spawn_blocking(move || {
        let found = strays(&cgroup, shim.pid, init, before).unwrap_or_else(|error| {
            tracing::warn!(%error, "can't look for commands that the shim does not know");
            Vec::new()
        });
        for root in found {
            tracing::info!(?root, "killing a command that the shim does not know");
            if let Err(error) = root.end(&cgroup, DEATH) {
                tracing::warn!(%error, "processes of a killed command are still running");
            }
        }
    });
    if let Err(error) = killed.await {
        tracing::warn!(%error, "the kill of commands that the shim does not know was interrupted");
    }
}

fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let is_of_exec = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(PREFIX) && name.ends_with(ending)
    };
    entries.map(|entry| entry.path()).filter(is_of_exec).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned()
}

/// Returns the process whose pid a shim has written into a file, if it is still there: a process that has come by the
/// pid later was not begun right before the file was written.
pub(in crate::task) fn noted_process(noted: &Path) -> Option<ProcessId> {
    root(noted)?.process()
}

fn root(noted: &Path) -> Option<Root> {
    let pid = std::fs::read_to_string(noted).ok()?.trim().parse().ok()?;
    // If the clock was set back, it can't be told when the file was written.
    let age = SystemTime::now().duration_since(noted.metadata().ok()?.modified().ok()?).ok()?;
    Some(Root::begun_before(pid, age, START))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_execs_are_found_by_pid_files_and_pipes() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "web");
        bundle.create(Path::new("/bin/shim")).unwrap();
        assert!(StaleExecs::find(&bundle).execs.is_empty());
        for (name, pid) in [("exec-1-1.pid", "4711"), ("init.pid", "7"), ("exec-1-2.pid", "no number")] {
            std::fs::write(bundle.directory().join(name), pid).unwrap();
        }
        let pipe = bundle.io_directory().join("exec-1-3.stdout");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let found = StaleExecs::find(&bundle);
        let roots: Vec<_> = found.execs.iter().map(|(id, root)| (id.as_str(), root.is_some())).collect();
        assert_eq!(roots, [("exec-1-1", true), ("exec-1-2", false), ("exec-1-3", false)]);
        assert_eq!((found.pipes, found.held.len()), (vec![pipe], 1));
    }

    #[test]
    fn a_pid_file_from_the_future_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("init.pid");
        std::fs::write(&note, std::process::id().to_string()).unwrap();
        assert!(root(&note).is_some());
        let later = SystemTime::now() + Duration::from_secs(3600);
        File::options().write(true).open(&note).unwrap().set_modified(later).unwrap();
        assert!(root(&note).is_none() && noted_process(&note).is_none());
    }

    #[test]
    fn a_shims_children_are_strays_only_where_unambiguous() {
        let (runc, gvisor) = (Family::Runc, Family::Gvisor);
        let (shim, init) = (ProcessId { pid: 70, started_ticks: 1 }, ProcessId { pid: 80, started_ticks: 2 });
        assert!(strays_are_recognizable(runc, shim, init, false));
        assert!(!strays_are_recognizable(gvisor, shim, init, false), "its gofer");
        assert!(!strays_are_recognizable(runc, shim, ProcessId::UNKNOWN, false), "the first process itself");
        assert!(!strays_are_recognizable(runc, ProcessId::UNKNOWN, init, false));
        assert!(!strays_are_recognizable(runc, shim, init, true), "orphans of the task's");
    }
}
