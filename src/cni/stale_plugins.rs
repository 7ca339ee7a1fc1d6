//! Ends plugins that still run for an attachment though nobody waits for them: their starter was killed. They are told
//! by their environment, which their children have as well. The specification wants no two plugins at work on one
//! container.
//!
//! The kernel reads the environment of a process out of its memory, and may wait for that if the process is stuck with
//! its memory's lock, or if its memory is on a file system that hangs. Such a process is waited for no longer than a
//! moment, and left alone.
//!
//! Source of the facts: Linux `fs/proc/base.c` (`environ_read`), proc_pid_environ(5).

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};

use super::error::Error;
use crate::sys::blocking;
use crate::sys::pidfd::ProcessHandle;
use crate::sys::procfs::{ProcessId, all_pids, environment, shares_our_pids};

/// Maximum time that a killed plugin may take to be gone. It takes none, unless the kernel holds the process.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum time that the kernel may take to show one process, for which it needs microseconds.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of processes without an answer, each of which holds a thread. At this number no more are looked at.
const MAX_STUCK_READS: usize = 16;

/// Maximum number of searches through the processes at a time, each of which may hold a thread by one process.
const MAX_CONCURRENT_SCANS: usize = 4;

static READS: LazyLock<EnvironReads> = LazyLock::new(EnvironReads::default);

/// Ends the plugins that were left for a container, and waits until there are none.
pub(super) async fn kill_stale(container_id: &str) -> Result<(), Error> {
    let mark = format!("CNI_CONTAINERID={container_id}");
    let until = Instant::now() + KILL_TIMEOUT;
    loop {
        let candidates = blocking::run(candidates).await;
        let is_one = {
            let mark = mark.clone();
            move |process: ProcessId| open_if_marked(process, &mark)
        };
        let unseen = Error::io("look for stale CNI plugins in", Path::new("/proc"));
        let left = READS.filter_map(candidates, is_one).await.map_err(unseen)?;
        if left.is_empty() {
            return Ok(());
        }
        let pids: Vec<_> = left.iter().map(ProcessHandle::pid).collect();
        tracing::warn!(container = container_id, ?pids, "killing stale CNI plugins of an interrupted call");
        left.iter().for_each(ProcessHandle::kill);
        if Instant::now() > until {
            let process = format!("/proc/{}", pids[0]);
            let source = io::Error::from(io::ErrorKind::TimedOut);
            return Err(Error::io("kill the stale CNI plugin", Path::new(&process))(source));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The reads of environments that have not returned.
struct EnvironReads {
    processes: Mutex<HashMap<(i32, u64), ReadState>>,
    permits: Semaphore,
}

/// The state of the reads of one process.
#[derive(Default)]
struct ReadState {
    running: usize,
    is_stuck: bool,
}

impl Default for EnvironReads {
    fn default() -> Self {
        Self { processes: Mutex::default(), permits: Semaphore::new(MAX_CONCURRENT_SCANS) }
    }
}

impl EnvironReads {
    /// Looks at processes one after the other. When one gives no answer, the rest is looked at on another thread, and
    /// what the first thread finds later is dropped.
    ///
    /// # Errors
    /// When no thread can be had.
    async fn filter_map<T: Send + 'static>(
        &'static self,
        processes: Vec<ProcessId>,
        inspect: impl Fn(ProcessId) -> Option<T> + Clone + Send + 'static,
    ) -> io::Result<Vec<T>> {
        let _permit = self.permits.acquire().await.map_err(io::Error::other)?;
        let (mut rest, mut found) = (processes.as_slice(), Vec::new());
        while !rest.is_empty() {
            if self.stuck() >= MAX_STUCK_READS {
                tracing::warn!(
                    "reads of the environment of {MAX_STUCK_READS} processes hang; the search for stale CNI plugins \
                     pauses until they return"
                );
                break;
            }
            let (sender, mut receiver) = mpsc::unbounded_channel();
            let (queue, inspect) = (rest.to_vec(), inspect.clone());
            // A thread of its own, so that the time of a look does not include a wait for a thread.
            let thread = std::thread::Builder::new().name("cni leftovers".to_owned());
            thread.spawn(move || {
                queue.into_iter().all(|process| sender.send(self.inspect_one(process, &inspect)).is_ok());
            })?;
            let mut seen = 0;
            while let Ok(Some(one)) = tokio::time::timeout(READ_TIMEOUT, receiver.recv()).await {
                seen += 1;
                found.extend(one);
            }
            let Some((stuck, others)) = rest[seen..].split_first() else { break };
            tracing::warn!(
                pid = stuck.pid,
                "the read of a process's environment hangs; the process counts as no CNI plugin"
            );
            self.lock().entry(key(*stuck)).and_modify(|state| state.is_stuck = true);
            rest = others;
        }
        Ok(found)
    }

    /// Looks at one process. Returns `None` also for a process that gave no answer before.
    fn inspect_one<T>(&self, process: ProcessId, inspect: impl Fn(ProcessId) -> Option<T>) -> Option<T> {
        {
            let mut processes = self.lock();
            let state = processes.entry(key(process)).or_default();
            if state.is_stuck {
                return None;
            }
            state.running += 1;
        }
        let found = inspect(process);
        let mut processes = self.lock();
        if let Some(state) = processes.get_mut(&key(process)) {
            state.running -= 1;
            if state.running == 0 {
                processes.remove(&key(process));
            }
        }
        found
    }

    fn stuck(&self) -> usize {
        self.lock().values().filter(|state| state.is_stuck).count()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(i32, u64), ReadState>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(process: ProcessId) -> (i32, u64) {
    (process.pid, process.started_ticks)
}

/// Returns the processes of the host that belong to no task.
fn candidates() -> Vec<ProcessId> {
    let pids = all_pids().into_iter().filter(|pid| shares_our_pids(*pid) && !is_of_task(*pid));
    pids.map(ProcessId::of).collect()
}

fn open_if_marked(process: ProcessId, mark: &str) -> Option<ProcessHandle> {
    if !is_marked(process.pid, mark) {
        return None;
    }
    // The process is held first, so that the one whose environment is looked at then is the one that is killed.
    let handle = ProcessHandle::open(process).ok().flatten()?;
    (is_marked(process.pid, mark) && !is_of_task(process.pid)).then_some(handle)
}

/// Returns whether a process is a task's, which can have any environment. A process whose cgroups can't be read counts
/// as one.
fn is_of_task(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).map_or(true, |cgroups| has_task_cgroup(&cgroups))
}

/// Returns whether one of the cgroups in the kernel's list is a task's, as Nomad makes them.
fn has_task_cgroup(cgroups: &str) -> bool {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().any(|path| {
        let is_below = |parent: &str| path.split_once(parent).is_some_and(|(_, below)| !below.is_empty());
        (path.starts_with("/nomad/") && path != "/nomad/shims.slice")
            || is_below("nomad.slice/share.slice/")
            || is_below("nomad.slice/reserve.slice/")
    })
}

/// Returns whether a process has `mark` in its environment; a process that has exited has none.
fn is_marked(pid: i32, mark: &str) -> bool {
    environment(pid).split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_task_process_is_recognized_by_its_nomad_cgroup() {
        for of_task in [
            "0::/nomad.slice/share.slice/a1.web.scope/init\n",
            "0::/../../nomad.slice/reserve.slice/a1.web.scope\n",
            "7:memory:/\n5:cpuset:/nomad/share\n0::/\n",
            "4:freezer:/nomad/a1.web/docker\n",
        ] {
            assert!(has_task_cgroup(of_task), "{of_task}");
        }
        for other in [
            "",
            "0::/system.slice/nomad.service\n",
            "0::/nomad.slice/shims.slice\n",
            "4:memory:/nomad/shims.slice\n",
        ] {
            assert!(!has_task_cgroup(other), "{other}");
        }
    }

    #[tokio::test]
    async fn a_stuck_environ_read_holds_one_thread_and_no_other_read() {
        let reads: &'static EnvironReads = Box::leak(Box::default());
        let process = |pid| ProcessId { pid, started_ticks: 1 };
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (released, stuck) = (Arc::new(Mutex::new(released)), Arc::<AtomicUsize>::default());
        let inspect = {
            let stuck = Arc::clone(&stuck);
            move |process: ProcessId| {
                if process.pid == 2 {
                    stuck.fetch_add(1, Ordering::Relaxed);
                    let _ = released.lock().map(|released| released.recv());
                }
                Some(process.pid)
            }
        };
        let began = Instant::now();
        for _ in 0..3 {
            assert_eq!(
                reads.filter_map([1, 2, 3].map(process).to_vec(), inspect.clone()).await.unwrap(),
                [1, 3]
            );
        }
        assert!(began.elapsed() < READ_TIMEOUT * 2, "it was waited for each time");
        assert_eq!(stuck.load(Ordering::Relaxed), 1);
        drop(release);
        while !reads.lock().is_empty() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        assert_eq!(reads.filter_map([1, 2, 3].map(process).to_vec(), inspect).await.unwrap(), [1, 2, 3]);
    }
}
