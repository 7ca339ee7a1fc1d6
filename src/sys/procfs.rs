//! Processes of the host, and what the kernel reports of one in `/proc/<pid>/stat`.
//!
//! Source of the facts: Linux `proc_pid_stat(5)`, `proc_pid_task(5)`, `include/linux/sched.h`.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

use std::io;
use std::path::Path;
use std::time::Duration;

/// Number of looks at a process that has no arguments or environment, and the pause between two.
const EXEC_LOOKS: usize = 3;
const EXEC_PAUSE: Duration = Duration::from_millis(1);

/// The kernel's flag of a thread that is in the middle of its exit.
const PF_EXITING: u64 = 0x4;

/// Identity of a process: its pid and its start time, in ticks since the machine's boot, which distinguishes it from a
/// later process with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ProcessId {
    pub pid: i32,
    pub started_ticks: u64,
}

impl ProcessId {
    /// Id of an unknown process, which matches none.
    pub(crate) const UNKNOWN: Self = Self { pid: 0, started_ticks: 0 };

    /// Returns the id of the process that has this pid now. If the kernel doesn't report its start time, the id matches
    /// no process later.
    pub(crate) fn of(pid: i32) -> Self {
        Self { pid, started_ticks: Stat::read(pid).map_or(0, |stat| stat.started_ticks) }
    }

    /// Returns true if the process runs: it has not ended, and its pid is not another process by now.
    pub(crate) fn is_alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.is_of(self) && !stat.has_ended())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub state: char,
    pub parent: i32,
    pub session: i32,
    flags: u64,
    /// Start time in ticks since the machine's boot.
    pub started_ticks: u64,
    /// Wait status of a process that has ended and was not waited for, as of waitpid(2).
    pub exit_status: i32,
}

impl Stat {
    /// Reads the state of a process. `None` if there is no such process, or its file can't be read.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Like [`Self::read`], but distinguishes a failed read from a missing process.
    ///
    /// # Errors
    /// If the kernel could not be asked, such as for want of descriptors.
    pub(crate) fn look(pid: i32) -> io::Result<Option<Self>> {
        Self::look_at(format!("/proc/{pid}/stat").as_ref())
    }

    fn look_at(file: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(file) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if is_of_no_process(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Parses the file's content. The name before the state is in parentheses and may contain any bytes.
    fn parse(text: &[u8]) -> Option<Self> {
        let after_name = text.iter().rposition(|byte| *byte == b')')?;
        let fields: Vec<&str> =
            std::str::from_utf8(&text[after_name + 1..]).ok()?.split_whitespace().collect();
        // The first of these is the third field, as the manual counts.
        let field = |number: usize| fields.get(number - 3);
        Some(Self {
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            flags: field(9)?.parse().ok()?,
            started_ticks: field(22)?.parse().ok()?,
            exit_status: field(52)?.parse().ok()?,
        })
    }

    /// Returns true if the process has exited and only waits to be reaped.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Returns true if this is the state of that process, and not of another one with the same pid.
    pub(crate) fn is_of(&self, process: ProcessId) -> bool {
        process.started_ticks != 0 && self.started_ticks == process.started_ticks
    }
}

/// Returns true if the error means that the process is gone, or went during the read.
pub(crate) fn is_of_no_process(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// Returns true if all threads of a process are in the middle of their exit. The first process of a pid namespace stays
/// so for as long as another one in there can't be killed, such as in a frozen cgroup of v1.
pub(crate) fn is_exiting(process: ProcessId) -> bool {
    let exits = |stat: &Stat| stat.flags & PF_EXITING != 0;
    let leader = Stat::read(process.pid).filter(|stat| stat.is_of(process));
    if !leader.is_some_and(|leader| exits(&leader)) {
        return false;
    }
    let Ok(mut threads) = std::fs::read_dir(format!("/proc/{}/task", process.pid)) else { return false };
    threads.all(|thread| {
        let seen = thread.and_then(|thread| Stat::look_at(&thread.path().join("stat")));
        // A thread that has gone meanwhile doesn't matter. One that can't be read may run.
        seen.is_ok_and(|stat| stat.as_ref().is_none_or(exits))
    })
}

/// Returns true if a process is in the plugin's own pid namespace. All that were started by the plugin, by a shim or by
/// hand are in it; none of a task's is, unless the operator lets it see the host's. A process's arguments and
/// environment are no proof of what it is: one of a task's can set them to anything.
pub(crate) fn shares_our_pids(pid: i32) -> bool {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/pid")).ok();
    namespace("self").is_some_and(|ours| namespace(&pid.to_string()) == Some(ours))
}

/// Returns whether a process has the plugin's own root. One in a container has another, and any name and arguments.
///
/// # Errors
/// If the process is gone, or can't be looked at.
pub(crate) fn shares_our_root(pid: i32) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let root = |of: &str| std::fs::metadata(of).map(|root| (root.dev(), root.ino()));
    Ok(root(&format!("/proc/{pid}/root"))? == root("/")?)
}

/// Returns the arguments of a process, each followed by a NUL. Empty if there is no such process. Blocks for as long as
/// the process is stuck with its memory's lock.
pub(crate) fn command_line(pid: i32) -> Vec<u8> {
    from_memory(pid, "cmdline")
}

/// Returns the environment of a process, as [`command_line`] its arguments.
pub(crate) fn environment(pid: i32) -> Vec<u8> {
    from_memory(pid, "environ")
}

/// Reads what the kernel finds in a process's memory. In the middle of an exec there is nothing for a moment. A kernel
/// thread never has any, and no program.
fn from_memory(pid: i32, file: &str) -> Vec<u8> {
    for _ in 0..EXEC_LOOKS {
        let found = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        if !found.is_empty() || std::fs::read_link(format!("/proc/{pid}/exe")).is_err() {
            return found;
        }
        std::thread::sleep(EXEC_PAUSE);
    }
    Vec::new()
}

/// Returns the pids of all processes.
pub(crate) fn all_pids() -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Returns the children of a process, from the kernel's lists for each of its threads, or from a scan of all processes
/// if the kernel has no such lists.
pub(crate) fn children(of: i32) -> Vec<ProcessId> {
    let listed = listed_children(of).unwrap_or_else(all_pids);
    let child = |pid: i32| {
        let stat = Stat::read(pid)?;
        (stat.parent == of).then_some(ProcessId { pid, started_ticks: stat.started_ticks })
    };
    listed.into_iter().filter_map(child).collect()
}

fn listed_children(of: i32) -> Option<Vec<i32>> {
    let mut pids = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{of}/task")).ok()? {
        let listed = std::fs::read_to_string(thread.ok()?.path().join("children"));
        match listed {
            Ok(listed) => pids.extend(listed.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            // The thread has ended, and its children are another one's; or this kernel has no such lists.
            Err(_) => return None,
        }
    }
    Some(pids)
}

/// Returns the processes that descend from one, each after its parent, as far as none of those between has ended. There
/// are none of a process that has ended by the end of the look: its pid may have been another's meanwhile.
pub(crate) fn descendants(of: ProcessId) -> Vec<ProcessId> {
    let stat = |pid: i32| {
        let stat = Stat::read(pid)?;
        Some((ProcessId { pid, started_ticks: stat.started_ticks }, stat.parent))
    };
    let all: Vec<_> = all_pids().into_iter().filter_map(stat).collect();
    let found = below(of.pid, &all);
    if of.is_alive() { found } else { Vec::new() }
}

/// Returns true if one process descends from another. An ended process in between hides that.
pub(crate) fn descends(pid: i32, from: i32) -> bool {
    let mut at = pid;
    // A parent is never its own descendant, but a scan that takes time may see one that is.
    for _ in 0..MOST_GENERATIONS {
        match Stat::read(at).map(|stat| stat.parent) {
            Some(parent) if parent == from => return true,
            Some(parent) if parent > 1 => at = parent,
            _ => return false,
        }
    }
    false
}

/// Maximum number of generations that are searched for an ancestor.
const MOST_GENERATIONS: usize = 64;

fn below(of: i32, parents: &[(ProcessId, i32)]) -> Vec<ProcessId> {
    let mut found = vec![ProcessId { pid: of, started_ticks: 0 }];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent.pid).map(|(process, _)| *process));
        next += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "children to look at, whose stdio is closed")]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn run(script: &str) -> (Child, i32) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (child, pid)
    }

    #[test]
    fn descendants_are_found_at_any_remove() {
        let id = |pid| ProcessId { pid, started_ticks: 1 };
        let parents = [(id(2), 1), (id(3), 2), (id(4), 3), (id(5), 1), (id(6), 4), (id(7), 5)];
        assert_eq!(below(2, &parents), [id(3), id(4), id(6)]);
        assert_eq!(below(7, &parents), []);
    }

    #[test]
    fn children_are_those_of_a_process_alone() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (mut child, pid) = run("sleep 600 & wait");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while children(pid).is_empty() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let [grandchild] = children(pid)[..] else { panic!("not one child") };
        let of_own = children(own);
        assert!(of_own.iter().any(|child| child.pid == pid), "{of_own:?}");
        assert!(!of_own.contains(&grandchild), "{of_own:?}");
        assert!(descends(grandchild.pid, own) && descends(pid, own) && !descends(own, pid));
        let own = ProcessId::of(own);
        assert!(descendants(own).contains(&grandchild));
        assert_eq!(descendants(ProcessId { started_ticks: own.started_ticks + 1, ..own }), []);
        assert!(ProcessId::of(pid).is_alive() && !is_exiting(ProcessId::of(pid)));
        assert!(shares_our_pids(pid) && !shares_our_pids(0));
        let handle = crate::sys::pidfd::ProcessHandle::open(grandchild).unwrap().unwrap();
        handle.kill();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!ProcessId::of(pid).is_alive());
    }

    #[test]
    fn stat_is_parsed_whatever_the_name_is() {
        let head = ["0"; 2].join(" ");
        let middle = ["0"; 12].join(" ");
        let rest = vec!["0"; 29].join(" ");
        for name in [&b"a) R 1 b)"[..], b"caf\xc3", b"\xff\xfe"] {
            let tail = format!(") Z 3 4 5 {head} 4 {middle} 4711 {rest} 1280\n");
            let text = [b"7 (", name, tail.as_bytes()].concat();
            let stat = Stat::parse(&text).unwrap();
            let wanted =
                Stat { state: 'Z', parent: 3, session: 5, flags: 4, started_ticks: 4711, exit_status: 1280 };
            assert_eq!(stat, wanted, "{name:?}");
            assert!(stat.has_ended());
        }
        assert_eq!(Stat::parse(b"7 (a"), None);
    }

    #[test]
    fn an_unreadable_thread_does_not_count_as_gone() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Stat::look_at(&directory.path().join("stat")).unwrap(), None);
        assert!(Stat::look_at(directory.path()).is_err());
        assert!(Stat::look(i32::try_from(std::process::id()).unwrap()).unwrap().is_some());
    }

    #[test]
    fn an_unknown_process_is_never_alive() {
        assert!(!ProcessId::UNKNOWN.is_alive() && !is_exiting(ProcessId::UNKNOWN));
        assert!(!ProcessId { pid: i32::try_from(std::process::id()).unwrap(), started_ticks: 0 }.is_alive());
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn stats() {
        crate::fuzz::bytes("proc-stat", |text| {
            let stat = Stat::parse(text);
            let at = text.iter().rposition(|byte| *byte == b')').unwrap_or(text.len());
            let renamed = [b"1 (a ) Z 1", &text[at..]].concat();
            assert_eq!(Stat::parse(&renamed), stat);
            if let Some(stat) = stat {
                assert!(!stat.is_of(ProcessId::UNKNOWN));
            }
        });
    }
}
