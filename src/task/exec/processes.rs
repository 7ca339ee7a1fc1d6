//! The processes of one exec, as the host sees them, and their end by force.
//!
//! The runtime makes an exec's first process the leader of a session. So what belongs to the exec is whoever is in that
//! session (also when its parent has died and the task's init has taken it in), and whoever descends from one of these
//! (also when it has made a session of its own). What has done both is a daemon of the task now, as it would be after
//! any command that ended well.
//!
//! Source of the facts: Linux `pidfd_open(2)`; runc `libcontainer/nsenter`, crun `src/libcrun`, both
//! of which call setsid.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::cgroup::Cgroup;
use crate::process_stat::{Descent, Stat};

/// An exec's first process, by its pid on the host and when it can have begun: a pid comes to be another's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pid: i32,
    begun: (u64, u64),
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    /// In the kernel's ticks since the machine's start.
    begun: u64,
}

impl Root {
    /// A process that was begun after `asked`, see [`now`], and runs by now.
    pub(super) fn new(pid: i32, asked: u64) -> Self {
        Self { pid, begun: (asked, now()) }
    }

    /// A process that was known to run `age` ago, and was begun no longer than `before` that.
    pub(super) fn begun_before(pid: i32, age: Duration, before: Duration) -> Self {
        let ago = |age: Duration| now().saturating_sub(age.as_secs() * ticks_per_second());
        // Whole seconds, rounded to either side.
        Self { pid, begun: (ago(age + before + Duration::from_secs(1)), ago(age)) }
    }

    /// Kills all that is left of the exec in its task's cgroup. Blocking: not for an async thread.
    ///
    /// # Errors
    /// When something of it still lives after `limit`.
    pub(super) fn end(self, cgroup: &Cgroup, limit: Duration) -> std::io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let held = self.hold(cgroup, deadline)?;
            if held.is_empty() {
                return Ok(());
            }
            for process in held.values() {
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
            for process in held.values() {
                wait(process, deadline)?;
            }
        }
    }

    /// Stops all that lives, until there is nobody new: what is stopped has no more children, and one that is killed
    /// first would leave its own to the task's init, where they can't be told from the task's.
    fn hold(self, cgroup: &Cgroup, deadline: Instant) -> std::io::Result<BTreeMap<i32, OwnedFd>> {
        let mut held = BTreeMap::new();
        loop {
            let table: Vec<Process> = cgroup.processes().into_iter().filter_map(look).collect();
            let mut grown = false;
            for process in self.members(&table) {
                if held.contains_key(&process.pid) {
                    continue;
                }
                if let Some(handle) = open(&process) {
                    let _ = pidfd_send_signal(&handle, Signal::STOP);
                    held.insert(process.pid, handle);
                    grown = true;
                }
            }
            if !grown {
                return Ok(held);
            }
            if Instant::now() > deadline {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Those of a task's processes that belong to the exec.
    fn members(self, table: &[Process]) -> Vec<Process> {
        let (earliest, latest) = self.begun;
        let is_other =
            |process: &Process| process.pid == self.pid && !(earliest..=latest).contains(&process.begun);
        if table.iter().any(is_other) {
            return Vec::new();
        }
        let is_first = |process: &Process| process.pid == self.pid || process.session == self.pid;
        let (mut members, mut others): (Vec<Process>, Vec<Process>) =
            table.iter().filter(|process| process.begun >= earliest).partition(|process| is_first(process));
        loop {
            let is_child = |process: &Process| members.iter().any(|member| member.pid == process.parent);
            let (children, rest): (Vec<Process>, Vec<Process>) =
                others.iter().partition(|process| is_child(process));
            if children.is_empty() {
                return members;
            }
            members.extend(children);
            others = rest;
        }
    }
}

/// First processes of execs that nobody wrote down: a shim gives up a start when its client goes, and kills the runtime,
/// whose child it takes in; that runs on if it had been told what to run. A container's own orphans are its init's. Those
/// that have begun since `before` are somebody's.
pub(super) fn strays(cgroup: &Cgroup, shim: i32, init: i32, before: u64) -> Vec<Root> {
    let taken_in =
        |process: &Process| process.parent == shim && process.pid != init && process.begun < before;
    let processes = cgroup.processes().into_iter().filter_map(look).filter(taken_in);
    processes.map(|process| Root { pid: process.pid, begun: (process.begun, process.begun) }).collect()
}

/// Ends the runtimes that a shim still waits for, though those have gone for whom it does: some shims kill them by
/// themselves. What runs in the container is the task's.
pub(super) fn end_runtimes(descent: &Descent, cgroup: &Cgroup, shim: i32, init: i32, before: u64) {
    let started = descent.of(shim);
    let of_the_task = cgroup.processes();
    for pid in started.into_iter().filter(|pid| *pid != init && !of_the_task.contains(pid)) {
        if Stat::read(pid).is_some_and(|stat| stat.started_ticks < before) {
            tracing::info!(pid, "ending a runtime that nobody waits for any more");
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

/// The kernel's clock by which it notes when a process began, in its ticks.
pub(super) fn now() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    let per_second = ticks_per_second();
    let (seconds, nanos) = (u64::try_from(tv_sec).unwrap_or(0), u64::try_from(tv_nsec).unwrap_or(0));
    seconds * per_second + nanos * per_second / 1_000_000_000
}

fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}

fn look(pid: i32) -> Option<Process> {
    let Stat { parent, session, started_ticks, .. } = Stat::read(pid)?;
    Some(Process { pid, parent, session, begun: started_ticks })
}

/// A handle on a process, if it is still the one that was looked at and lives.
fn open(process: &Process) -> Option<OwnedFd> {
    let handle = pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::empty()).ok()?;
    let is_same = look(process.pid).is_some_and(|now| now.begun == process.begun);
    (is_same && !has_ended(&handle, Duration::ZERO)).then_some(handle)
}

fn wait(process: &OwnedFd, deadline: Instant) -> std::io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if has_ended(process, left) { Ok(()) } else { Err(std::io::ErrorKind::TimedOut.into()) }
}

fn has_ended(process: &OwnedFd, within: Duration) -> bool {
    let mut asked = [PollFd::new(process, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: within.subsec_nanos().into(),
    };
    matches!(poll(&mut asked, Some(&limit)), Ok(ready) if ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Root = Root { pid: 10, begun: (500, 502) };

    fn process(pid: i32, parent: i32, session: i32, begun: u64) -> Process {
        Process { pid, parent, session, begun }
    }

    fn members(table: &[Process]) -> Vec<i32> {
        let mut pids: Vec<i32> = ROOT.members(table).iter().map(|member| member.pid).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn an_execs_processes_are_its_session_and_what_descends_from_it() {
        let table = [
            process(1, 0, 1, 100),
            process(2, 1, 1, 501),
            process(10, 0, 10, 501),
            process(11, 10, 10, 510),
            // Taken in by the task's init.
            process(12, 1, 10, 511),
            // In a session of its own, and so is its child.
            process(13, 12, 13, 512),
            process(14, 13, 14, 513),
            process(15, 2, 1, 514),
        ];
        assert_eq!(members(&table), [10, 11, 12, 13, 14]);
        assert_eq!(members(&table[3..]), [11, 12, 13, 14], "the first one is gone");
    }

    #[test]
    fn a_pid_that_has_come_to_be_anothers_is_left_alone() {
        assert_eq!(members(&[process(10, 1, 10, 700), process(11, 10, 10, 701)]), [0; 0]);
        assert_eq!(members(&[process(11, 1, 10, 499)]), [0; 0], "older than the exec");
    }

    #[test]
    fn the_kernels_clock_is_ours() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let this = look(pid).unwrap();
        assert!(this.begun <= now() && now() - this.begun < 60_000, "{this:?} at {}", now());
        let handle = open(&this).unwrap();
        assert!(!has_ended(&handle, Duration::ZERO));
    }
}
