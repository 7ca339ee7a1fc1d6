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
use crate::sys::pidfd::ProcessHandle;
use crate::sys::procfs::{ProcessId, all_pids, shares_our_pids};

/// Maximum time that a killed plugin may take to be gone. It takes none, unless the kernel holds the process.
const GONE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Maximum time that the kernel may take to show one process, for which it needs microseconds.
const ONE_LOOK: Duration = Duration::from_secs(2);
/// Maximum number of processes without an answer, each of which holds a thread. At this number no more are looked at.
const MOST_UNANSWERED: usize = 16;

/// Maximum number of searches through the processes at a time, each of which may hold a thread by one process.
const AT_ONCE: usize = 4;

static LOOKS: LazyLock<Looks> = LazyLock::new(Looks::default);

/// Ends the plugins that were left for a container, and waits until there are none.
pub(super) async fn end(container_id: &str) -> Result<(), Error> {
    let mark = format!("CNI_CONTAINERID={container_id}");
    let until = Instant::now() + GONE;
    loop {
        let candidates = super::record::on_files(|| Ok(candidates())).await?;
        let is_one = {
            let mark = mark.clone();
            move |process: ProcessId| held_if_marked(process, &mark)
        };
        let unseen = Error::io("look for CNI plugins that were left behind, in", Path::new("/proc"));
        let left = LOOKS.among(candidates, is_one).await.map_err(unseen)?;
        if left.is_empty() {
            return Ok(());
        }
        let pids: Vec<_> = left.iter().map(ProcessHandle::pid).collect();
        tracing::warn!(container = container_id, ?pids, "ending CNI plugins that nobody waits for");
        left.iter().for_each(ProcessHandle::kill);
        if Instant::now() > until {
            let process = format!("/proc/{}", pids[0]);
            let source = io::Error::from(io::ErrorKind::TimedOut);
            return Err(Error::io("end a CNI plugin that was left behind,", Path::new(&process))(source));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The looks at processes that have not returned.
struct Looks {
    processes: Mutex<HashMap<(i32, u64), Looked>>,
    at_once: Semaphore,
}

/// The state of the looks at one process.
#[derive(Default)]
struct Looked {
    looks: usize,
    is_given_up: bool,
}

impl Default for Looks {
    fn default() -> Self {
        Self { processes: Mutex::default(), at_once: Semaphore::new(AT_ONCE) }
    }
}

impl Looks {
    /// Looks at processes one after the other. When one gives no answer, the rest is looked at on another thread, and
    /// what the first thread finds later is dropped.
    ///
    /// # Errors
    /// When no thread can be had.
    async fn among<T: Send + 'static>(
        &'static self,
        processes: Vec<ProcessId>,
        look: impl Fn(ProcessId) -> Option<T> + Clone + Send + 'static,
    ) -> io::Result<Vec<T>> {
        let _turn = self.at_once.acquire().await.map_err(io::Error::other)?;
        let (mut rest, mut found) = (processes.as_slice(), Vec::new());
        while !rest.is_empty() {
            if self.unanswered() >= MOST_UNANSWERED {
                tracing::warn!(
                    "the kernel does not show the environment of {MOST_UNANSWERED} processes; CNI plugins that were left \
                     behind are not looked for until it does"
                );
                break;
            }
            let (tell, mut told) = mpsc::unbounded_channel();
            let (queue, look) = (rest.to_vec(), look.clone());
            // A thread of its own, so that the time of a look does not include a wait for a thread.
            let thread = std::thread::Builder::new().name("cni leftovers".to_owned());
            thread.spawn(move || {
                queue.into_iter().all(|process| tell.send(self.at(process, &look)).is_ok());
            })?;
            let mut looked = 0;
            while let Ok(Some(one)) = tokio::time::timeout(ONE_LOOK, told.recv()).await {
                looked += 1;
                found.extend(one);
            }
            let Some((unanswered, others)) = rest[looked..].split_first() else { break };
            tracing::warn!(
                pid = unanswered.pid,
                "the kernel does not show the environment of a process; it is taken for no CNI plugin"
            );
            self.lock().entry(key(*unanswered)).and_modify(|looked| looked.is_given_up = true);
            rest = others;
        }
        Ok(found)
    }

    /// Looks at one process. Returns `None` also for a process that gave no answer before.
    fn at<T>(&self, process: ProcessId, look: impl Fn(ProcessId) -> Option<T>) -> Option<T> {
        {
            let mut processes = self.lock();
            let looked = processes.entry(key(process)).or_default();
            if looked.is_given_up {
                return None;
            }
            looked.looks += 1;
        }
        let found = look(process);
        let mut processes = self.lock();
        if let Some(looked) = processes.get_mut(&key(process)) {
            looked.looks -= 1;
            if looked.looks == 0 {
                processes.remove(&key(process));
            }
        }
        found
    }

    fn unanswered(&self) -> usize {
        self.lock().values().filter(|looked| looked.is_given_up).count()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(i32, u64), Looked>> {
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

fn held_if_marked(process: ProcessId, mark: &str) -> Option<ProcessHandle> {
    if !is_marked(process.pid, mark) {
        return None;
    }
    // The process is held first, so that the one whose environment is looked at then is the one that is killed.
    let held = ProcessHandle::open(process).ok().flatten()?;
    (is_marked(process.pid, mark) && !is_of_task(process.pid)).then_some(held)
}

/// Returns whether a process is a task's, which can have any environment. A process whose cgroups can't be read counts
/// as one.
fn is_of_task(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).map_or(true, |cgroups| names_task(&cgroups))
}

/// Returns whether one of the cgroups in the kernel's list is a task's, as Nomad makes them.
fn names_task(cgroups: &str) -> bool {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().any(|path| {
        let is_below = |parent: &str| path.split_once(parent).is_some_and(|(_, below)| !below.is_empty());
        path.starts_with("/nomad/")
            || is_below("nomad.slice/share.slice/")
            || is_below("nomad.slice/reserve.slice/")
    })
}

/// Returns whether a process has `mark` in its environment; a process that has exited has none.
fn is_marked(pid: i32, mark: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_task_is_told_by_where_nomad_makes_its_cgroups() {
        for of_task in [
            "0::/nomad.slice/share.slice/a1.web.scope/init\n",
            "0::/../../nomad.slice/reserve.slice/a1.web.scope\n",
            "7:memory:/\n5:cpuset:/nomad/share\n0::/\n",
            "4:freezer:/nomad/a1.web/docker\n",
        ] {
            assert!(names_task(of_task), "{of_task}");
        }
        for other in
            ["", "0::/system.slice/nomad.service\n", "0::/nomad.slice/nomad.service\n", "4:freezer:/\n"]
        {
            assert!(!names_task(other), "{other}");
        }
    }

    #[tokio::test]
    async fn a_process_without_an_answer_holds_one_thread_and_no_look_at_others() {
        let looks: &'static Looks = Box::leak(Box::default());
        let process = |pid| ProcessId { pid, started_ticks: 1 };
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (released, stuck) = (Arc::new(Mutex::new(released)), Arc::<AtomicUsize>::default());
        let look = {
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
            assert_eq!(looks.among([1, 2, 3].map(process).to_vec(), look.clone()).await.unwrap(), [1, 3]);
        }
        assert!(began.elapsed() < ONE_LOOK * 2, "it was waited for each time");
        assert_eq!(stuck.load(Ordering::Relaxed), 1);
        drop(release);
        while !looks.lock().is_empty() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        assert_eq!(looks.among([1, 2, 3].map(process).to_vec(), look).await.unwrap(), [1, 2, 3]);
    }
}
