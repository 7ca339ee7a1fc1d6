//! The acts of a hostile task's program ([`PROGRAM`]): what each does, and what that means for the judge.

/// The program, in perl.
pub const PROGRAM: &str = include_str!("program.pl");

/// Exit codes of the program at SIGTERM and SIGUSR1.
pub const STOPPED: i32 = 43;
pub const TOLD: i32 = 44;

/// A consequence of an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The first process may stand still, so that only SIGKILL ends it.
    Halts,
    /// The first process ignores all signals that it can.
    Ignores,
    /// The first process may get a signal from within the task.
    Signals,
    /// The kernel may kill any process of the task for want of memory.
    OutOfMemory,
    /// Commands in the task may fail or be killed.
    Hampers,
    /// The task may have as many processes as its limit allows, so that no command fits in.
    Crowds,
    /// The task needs its own cgroup, mounted at `/cg`.
    NeedsCgroup,
    /// The task needs CAP_SYS_ADMIN.
    NeedsAdmin,
    /// The task needs memory for 10,000 processes.
    NeedsMemory,
}

use Effect::{Crowds, Halts, Hampers, Ignores, NeedsAdmin, NeedsCgroup, NeedsMemory, OutOfMemory, Signals};

/// An act of the program.
#[derive(Debug)]
pub struct Act {
    pub name: &'static str,
    pub what: &'static str,
    pub effects: &'static [Effect],
}

const fn act(name: &'static str, what: &'static str, effects: &'static [Effect]) -> Act {
    Act { name, what, effects }
}

/// All acts. The words stand in a table of docs/reliability.md.
pub const ACTS: [Act; 36] = [
    act(
        "links",
        "replaces what is in `/local`, `/secrets` and `/alloc` by links to the host's files, over and over",
        &[],
    ),
    act("pipes", "replaces it by named pipes", &[]),
    act("sockets", "replaces it by Unix sockets, and binds them over each other", &[]),
    act("devices", "replaces it by block and character devices", &[]),
    act("moves", "moves the directories of the allocation, there and back", &[]),
    act("gone", "removes or replaces them, and takes all rights and their owner away", &[]),
    act("deep", "makes directories 700 levels deep, with long names", &[]),
    act("many", "makes 5,000 files, and a large one", &[OutOfMemory]),
    act("names", "makes files with each byte in their names", &[]),
    act("leases", "takes leases and locks of files, so that who opens them waits", &[]),
    act("logs", "reads from and writes to the log pipes of its allocation", &[]),
    act("flood", "writes to stdout and stderr as fast as it can", &[]),
    act("line", "writes a line of 13 MB, without an end", &[]),
    act("silent", "closes its output, and reaches for that of others", &[]),
    act("forks", "starts as many processes as it may", &[OutOfMemory, Crowds]),
    act("crowd", "starts 10,000 processes", &[OutOfMemory, Crowds, NeedsMemory]),
    act("bomb", "doubles its processes, over and over", &[OutOfMemory, Crowds]),
    act("daemons", "starts processes that leave session and parent, and ignore signals", &[]),
    act("zombies", "leaves 500 ended processes to nobody", &[Crowds]),
    act("deaf", "ignores all signals", &[Ignores]),
    act("stops", "sends SIGSTOP to all its processes, also to commands", &[Hampers]),
    act("signals", "sends each signal to all its processes", &[Signals, Hampers]),
    act("quits", "ends by itself at any time", &[Signals, Hampers]),
    act("vfork", "has processes that wait in the kernel for a vfork", &[]),
    act("traces", "traces its first process and all commands by ptrace", &[Halts, Hampers]),
    act("peeks", "looks at all processes' files, memory and programs", &[]),
    act("scores", "changes scores, priorities and the like of all its processes", &[OutOfMemory]),
    act("titles", "gives its processes names of shims, and names that break tables", &[]),
    act("memory", "takes more memory than it may", &[OutOfMemory, Hampers]),
    act("shm", "fills `/dev/shm`, `/dev` and `/etc/hosts`", &[OutOfMemory, Hampers]),
    act("files", "opens 100,000 files", &[]),
    act("abstract", "binds 200 abstract sockets", &[]),
    act("groups", "makes cgroups of its own with odd names, one within the other", &[NeedsCgroup]),
    act("freezes", "freezes all others in a cgroup of its own", &[NeedsCgroup, Halts, Hampers]),
    act("freezes_itself", "freezes all of the task's cgroup", &[NeedsCgroup, Halts, Hampers]),
    act("mounts", "mounts over its directories, with CAP_SYS_ADMIN", &[NeedsAdmin, Hampers]),
];

/// Returns whether one of the acts has an effect.
pub fn any(acts: &[&Act], effect: Effect) -> bool {
    acts.iter().any(|act| act.effects.contains(&effect))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_act_is_in_the_program() {
        for act in &ACTS {
            assert!(PROGRAM.contains(&format!("\n  {} => ", act.name)), "{}", act.name);
        }
    }

    #[test]
    fn the_program_has_no_other_act() {
        let names = PROGRAM.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(" => "));
        for (name, _) in names.filter(|(name, _)| !name.contains(' ')) {
            assert!(ACTS.iter().any(|act| act.name == name), "{name}");
        }
    }
}
