//! `runsc kill` of a command in a sandbox by SIGKILL, which takes along what the command has started: the shim and `runsc`
//! know the command's first process alone.
//!
//! What is killed is the command's process group and its descendants, with the groups of those. What has left both, such as a
//! daemon that was started by `setsid` and whose parent has ended, goes on.
//!
//! Source of the facts: gVisor `runsc/cmd/{kill,ps}.go`, `pkg/sentry/control/proc.go`.

use std::collections::BTreeSet;
use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use super::call::Call;
use super::code_of;

/// The signal, as the shim says it.
const KILL: &str = "9";
/// How long it is looked for what has been started meanwhile.
const LIMIT: Duration = Duration::from_secs(5);

/// A command that is to be killed.
pub(super) struct Target {
    pid: i32,
    container: String,
}

/// A process of a sandbox, by the ids in its root namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
}

impl Target {
    /// Returns the command that a call kills. None for any other call.
    pub(super) fn of(call: &Call) -> Option<Self> {
        let words: Vec<&str> = call.words().iter().map(|word| word.to_str()).collect::<Option<_>>()?;
        match words[..] {
            ["kill", "--pid", pid, container, KILL] => {
                let pid = pid.parse().ok().filter(|pid| *pid > 1)?;
                Some(Self { pid, container: container.to_owned() })
            }
            _ => None,
        }
    }
}

/// Kills a command and what it has started. Returns what `runsc` says of the command itself.
///
/// # Errors
/// When `runsc` can't be run.
pub(super) fn run(call: &Call, target: &Target) -> io::Result<ExitCode> {
    let until = Instant::now() + LIMIT;
    let mut members = BTreeSet::from([target.pid]);
    let mut killed = members.clone();
    let mut found = started(call, target, &mut members);
    // First, so that it starts nothing more.
    let outcome = Command::new(&call.program).args(&call.arguments).status()?;
    loop {
        // Who is killed may be listed until its parent has waited for it.
        found.retain(|process| killed.insert(process.pid));
        if found.is_empty() || Instant::now() > until {
            return Ok(code_of(outcome));
        }
        end(call, target, &found, &members);
        found = started(call, target, &mut members);
    }
}

/// Looks for what the command has started, and adds it to the `members`. Nothing is found where `runsc` doesn't list it.
fn started(call: &Call, target: &Target, members: &mut BTreeSet<i32>) -> Vec<Process> {
    let mut list = call.runsc(&["ps", "--format", "table", &target.container]);
    let list = list.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let table = list.map(|list| String::from_utf8_lossy(&list.stdout).into_owned()).unwrap_or_default();
    members_of(&parse(&table), members)
}

/// Kills processes, by their groups where one of the members has made these: nobody else is in them.
fn end(call: &Call, target: &Target, found: &[Process], members: &BTreeSet<i32>) {
    let kill = |flag: &str, id: i32| {
        let mut runsc = call.runsc(&["kill", flag, &id.to_string(), &target.container, KILL]);
        runsc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        runsc.status().is_ok_and(|status| status.success())
    };
    let groups: BTreeSet<i32> = found.iter().map(|process| process.group).collect();
    for group in groups {
        if !members.contains(&group) || !kill("--pgid", group) {
            for process in found.iter().filter(|process| process.group == group) {
                kill("--pid", process.pid);
            }
        }
    }
}

/// Adds those who descend from members, or are in a group that a member has made, and returns them all.
fn members_of(all: &[Process], members: &mut BTreeSet<i32>) -> Vec<Process> {
    loop {
        let known = members.len();
        for process in all {
            if members.contains(&process.parent) || members.contains(&process.group) {
                members.insert(process.pid);
            }
        }
        if members.len() == known {
            return all.iter().filter(|process| members.contains(&process.pid)).copied().collect();
        }
    }
}

/// Reads the processes from a table with the columns PID, PPID and PGID. None where it lacks one.
fn parse(table: &str) -> Vec<Process> {
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let column = |name: &str| header.iter().position(|column| *column == name);
    let (Some(pid), Some(parent), Some(group)) = (column("PID"), column("PPID"), column("PGID")) else {
        return Vec::new();
    };
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at)?.parse().ok();
        Some(Process { pid: number(pid)?, parent: number(parent)?, group: number(group)? })
    };
    lines.filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "UID       PID       PPID      PGID      C         TTY       STIME     TIME       CMD
0         1         0         1         0         ?         07:48     10ms       sleep
0         2         1         2         0         ?         07:48     0s         daemon
0         7         0         7         0         ?         07:48     0s         sh
0         8         7         7         0         ?         07:48     0s         sleep
0         9         1         7         0         ?         07:48     0s         orphan
0         10        8         10        0         ?         07:48     0s         setsid
0         11        1         10        0         ?         07:48     0s         its child
";

    #[test]
    fn what_a_command_has_started_is_its_group_and_its_descendants() {
        let pids = |all: &[Process], members: &mut BTreeSet<i32>| {
            members_of(all, members).iter().map(|process| process.pid).collect::<Vec<_>>()
        };
        let all = parse(TABLE);
        assert_eq!(all[5], Process { pid: 10, parent: 8, group: 10 });
        assert_eq!(pids(&all, &mut BTreeSet::from([7])), [7, 8, 9, 10, 11]);
        let without_first: Vec<_> = all.iter().filter(|process| process.pid != 7).copied().collect();
        assert_eq!(pids(&without_first, &mut BTreeSet::from([7])), [8, 9, 10, 11]);
        // The parents have ended since they were seen.
        let mut members = BTreeSet::from([7, 8, 10]);
        let later = [Process { pid: 1, parent: 0, group: 1 }, Process { pid: 12, parent: 1, group: 10 }];
        assert_eq!(pids(&later, &mut members), [12]);
        // One that shares the group of the task's own.
        let mut members = BTreeSet::from([7]);
        let shared = [Process { pid: 1, parent: 0, group: 1 }, Process { pid: 7, parent: 0, group: 1 }];
        assert_eq!(pids(&shared, &mut members), [7]);
        assert!(parse("").is_empty() && parse("PID CMD\n1 sleep\n").is_empty());
    }

    #[test]
    fn only_a_kill_of_a_command_takes_others_along() {
        let directory = tempfile::tempdir().unwrap();
        let log = format!("--log={}/log.json", directory.path().display());
        let target = |words: &[&str]| {
            let words = [&["--root=/r", &*log], words].concat();
            let call = Call::of(words.into_iter().map(Into::into).collect()).unwrap();
            Target::of(&call).map(|target| (target.pid, target.container))
        };
        assert_eq!(target(&["kill", "--pid", "7", "web-1", "9"]), Some((7, "web-1".to_owned())));
        for words in [
            &["kill", "--pid", "7", "web-1", "15"][..],
            &["kill", "--pid", "1", "web-1", "9"],
            &["kill", "--all", "web-1", "9"],
            &["kill", "web-1", "9"],
            &["ps", "--pid", "7", "web-1", "9"],
            &[],
        ] {
            assert_eq!(target(words), None, "{words:?}");
        }
    }
}
