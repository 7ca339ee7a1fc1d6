//! The processes of one exec, as the host sees them, and their end by force.
//!
//! The runtime makes an exec's first process the leader of a session. So the exec's processes are those in that session
//! (also when their parent has died and the task's init has taken them in), and those that descend from one of these
//! (also when they have made a session of their own). A process that has done both is a daemon of the task now, as it
//! would be after any command that ended well.
//!
//! Source of the facts: Linux `pidfd_open(2)`; runc `libcontainer/nsenter`, crun `src/libcrun`, both
//! of which call setsid.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::cgroup::Cgroup;
use crate::sys::pidfd::ProcessHandle;
use crate::sys::procfs::{ProcessId, Stat};

/// Maximum number of processes of one exec that are held by a descriptor each, at a time: all tasks share the plugin's
/// descriptors.
const HELD_AT_ONCE: usize = 256;

/// An exec's first process, by its pid on the host and the time in which it can have begun: a pid comes to be
/// another's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pid: i32,
    begun: (u64, u64),
}

/// A process, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    /// Start time in the kernel's ticks since the machine's start.
    begun: u64,
}

impl Root {
    /// Returns the process that was begun at `earliest` or later, see [`now`], and runs by now. `None` for a pid that is
    /// nobody's, or the host's own init's: a shim that reports such a pid does not know it.
    pub(super) fn new(pid: i32, earliest: u64) -> Option<Self> {
        (pid > 1).then(|| Self { pid, begun: (earliest, now()) })
    }

    /// Returns the process, while it is there.
    pub(super) fn process(self) -> Option<ProcessId> {
        let (earliest, latest) = self.begun;
        let process = look(self.pid).filter(|process| (earliest..=latest).contains(&process.begun));
        process.map(|process| process.id())
    }

    /// Returns a process that was known to run `age` ago, and that began at most `before` earlier.
    pub(super) fn begun_before(pid: i32, age: Duration, before: Duration) -> Self {
        let ago = |age: Duration| now().saturating_sub(age.as_secs() * ticks_per_second());
        // Whole seconds, rounded to either side.
        Self { pid, begun: (ago(age + before + Duration::from_secs(1)), ago(age)) }
    }

    /// Kills all that is left of the exec in its task's cgroup. Blocking: not for an async thread.
    ///
    /// # Errors
    /// When something of it still lives after `limit`, or the task's processes can't be listed.
    pub(super) fn end(self, cgroup: &Cgroup, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let mut held = BTreeMap::new();
            let outcome = self.hold(cgroup, deadline, &mut held);
            // Kills whatever was halted, also where not all could be: nothing of a task's stays halted.
            held.values().for_each(ProcessHandle::kill);
            if held.is_empty() {
                return outcome;
            }
            if !held.values().all(|process| process.ends_before(deadline)) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            outcome?;
        }
    }

    /// Halts the exec's processes until there is no new one: a halted process has no more children, and a process that
    /// is killed first would leave its own to the task's init, where they can't be told from the task's. Where there
    /// are more than can be held, those that are go first.
    fn hold(
        self,
        cgroup: &Cgroup,
        deadline: Instant,
        held: &mut BTreeMap<i32, ProcessHandle>,
    ) -> io::Result<()> {
        loop {
            let table: Vec<Process> = cgroup.processes()?.into_iter().filter_map(look).collect();
            let mut grown = false;
            for process in self.members(&table) {
                if held.contains_key(&process.pid) {
                    continue;
                }
                if let Some(handle) = ProcessHandle::open(process.id())? {
                    handle.halt();
                    held.insert(process.pid, handle);
                    grown = true;
                }
                if held.len() == HELD_AT_ONCE {
                    return Ok(());
                }
            }
            if !grown {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Returns those of a task's processes that belong to the exec.
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

impl Process {
    fn id(self) -> ProcessId {
        ProcessId { pid: self.pid, started_ticks: self.begun }
    }

    fn is_stray(self, shim: i32, init: ProcessId, before: u64) -> bool {
        self.parent == shim && self.pid != init.pid && (init.started_ticks + 1..before).contains(&self.begun)
    }
}

/// Returns the strays: first processes of execs that nobody wrote down. A shim gives up a start when its client goes,
/// and kills the runtime, whose child it takes in; that child runs on if it had been told what to run. A container's
/// own orphans are its init's. Processes that have begun since `before` are somebody's; those that were there before
/// `init`, such as a helper that a runtime has started for the container, are no exec's.
///
/// # Errors
/// When the task's processes can't be listed.
pub(super) fn strays(cgroup: &Cgroup, shim: i32, init: ProcessId, before: u64) -> io::Result<Vec<Root>> {
    let processes = cgroup.processes()?.into_iter().filter_map(look);
    let taken_in = processes.filter(|process| process.is_stray(shim, init, before));
    Ok(taken_in.map(|process| Root { pid: process.pid, begun: (process.begun, process.begun) }).collect())
}

/// Returns the time by the clock with which the kernel notes when a process began, in its ticks.
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
    fn strays_began_between_the_tasks_first_process_and_the_look() {
        let init = ProcessId { pid: 8, started_ticks: 100 };
        let is_stray = |process: Process| process.is_stray(7, init, 500);
        assert!(is_stray(process(10, 7, 10, 101)) && is_stray(process(10, 7, 10, 499)));
        assert!(!is_stray(process(10, 7, 10, 500)), "begun since");
        assert!(!is_stray(process(10, 7, 10, 99)) && !is_stray(process(10, 7, 10, 100)), "a helper's");
        assert!(!is_stray(process(8, 7, 8, 101)) && !is_stray(process(10, 8, 10, 101)));
    }

    #[test]
    fn a_reused_pid_is_left_alone() {
        assert_eq!(members(&[process(10, 1, 10, 700), process(11, 10, 10, 701)]), [0; 0]);
        assert_eq!(members(&[process(11, 1, 10, 499)]), [0; 0], "older than the exec");
    }

    #[test]
    fn an_ambiguous_pid_is_no_execs() {
        assert!([0, 1, -1].map(|pid| Root::new(pid, 0)).iter().all(Option::is_none));
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Root::new(pid, 0).unwrap().process(), Some(ProcessId::of(pid)));
        assert_eq!(Root::new(pid, now() + 100).unwrap().process(), None, "begun before it was asked for");
    }

    #[test]
    fn the_kernels_clock_is_ours() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let this = look(pid).unwrap();
        assert!(this.begun <= now() && now() - this.begun < 60_000, "{this:?} at {}", now());
        assert_eq!(this.id(), ProcessId::of(pid));
    }
}
