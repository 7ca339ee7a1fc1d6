//! Answers a `runsc kill` of a command in a sandbox by SIGKILL: kills also what the command has started, since the shim
//! and `runsc` know the command's first process alone.
//!
//! The command's process group and its descendants are killed, with the groups of those. A process that has left both,
//! such as a daemon that was started by `setsid` and whose parent has ended, goes on.
//!
//! Source of the facts: gVisor `runsc/cmd/{kill,ps}.go`, `pkg/sentry/control/proc.go`.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::call::Call;
use super::code_of;

/// SIGKILL, as the shim writes it in the arguments of `runsc kill`.
const KILL: &str = "9";
/// Maximum time for a kill of a command with all that it has started: meanwhile the shim may report no other process's
/// exit.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The command that is to be killed.
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
    /// Returns the command that a call kills. `None` if the call is another one.
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

/// Kills a command and what it has started. Returns the exit code of the `runsc kill` of the command itself.
///
/// # Errors
/// When `runsc` can't be run or doesn't end, or when processes live on, or may do so, at the deadline.
pub(super) fn run(call: &Call, target: &Target) -> io::Result<ExitCode> {
    let until = Instant::now() + KILL_TIMEOUT;
    let first = list(call, target, Instant::now() + KILL_TIMEOUT / 2).unwrap_or_default();
    let mut members = BTreeSet::from([target.pid]);
    let mut killed = members.clone();
    let mut found =
        if is_command(&first, target.pid) { members_of(&first, &mut members) } else { Vec::new() };
    // The command itself is killed first, so that it starts nothing more.
    let mut runsc = Command::new(&call.program).args(&call.arguments).spawn()?;
    let outcome = ends_by(&mut runsc, until)?;
    let outcome =
        outcome.ok_or_else(|| io::Error::other(format!("it has not exited within {KILL_TIMEOUT:?}")))?;
    loop {
        // A killed process may be listed until its parent has waited for it.
        found.retain(|process| !killed.contains(&process.pid));
        if found.is_empty() {
            return Ok(code_of(outcome));
        }
        if Instant::now() >= until {
            let what = format!("{} processes are still running", found.len());
            return Err(io::Error::other(what));
        }
        end(call, target, &found, &members, &mut killed, until);
        let Some(all) = list(call, target, until) else {
            let what = format!("can't tell whether {} processes are still running", found.len());
            return Err(io::Error::other(what));
        };
        found = members_of(&all, &mut members);
    }
}

/// Returns whether a process is a command that was started from outside: it has no parent in the sandbox. Any other
/// process has come by the pid of a command that has ended, and is the task's.
fn is_command(all: &[Process], pid: i32) -> bool {
    all.iter().any(|process| process.pid == pid && process.parent == 0)
}

/// Returns the processes of the sandbox: an empty list if the sandbox has ended, or if `runsc` lists no groups. `None`
/// if `runsc` can't be run, or is late.
fn list(call: &Call, target: &Target, until: Instant) -> Option<Vec<Process>> {
    let mut runsc = call.runsc(&["ps", "--format", "table", &target.container]);
    let runsc = runsc.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut runsc = runsc.ok()?;
    let (sender, answer) = mpsc::channel();
    if let Some(mut stdout) = runsc.stdout.take() {
        std::thread::spawn(move || {
            let mut table = Vec::new();
            let _ = stdout.read_to_end(&mut table);
            let _ = sender.send(table);
        });
    }
    let table = answer.recv_timeout(until.saturating_duration_since(Instant::now()));
    ends_by(&mut runsc, until).ok()??;
    Some(parse(&String::from_utf8_lossy(&table.ok()?)))
}

/// Kills processes, by their groups where a member has made the group: nobody else is in it. Processes that are killed
/// are added to `killed`; the rest is left at the deadline.
fn end(
    call: &Call,
    target: &Target,
    found: &[Process],
    members: &BTreeSet<i32>,
    killed: &mut BTreeSet<i32>,
    until: Instant,
) {
    let kill = |flag: &str, id: i32| {
        let mut runsc = call.runsc(&["kill", flag, &id.to_string(), &target.container, KILL]);
        let runsc = runsc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let ended = runsc.and_then(|mut runsc| ends_by(&mut runsc, until));
        ended.ok().flatten().is_some_and(|status| status.success())
    };
    let groups: BTreeSet<i32> = found.iter().map(|process| process.group).collect();
    for group in groups {
        let of_group = || found.iter().filter(|process| process.group == group).map(|process| process.pid);
        if Instant::now() < until && members.contains(&group) && kill("--pgid", group) {
            killed.extend(of_group());
            continue;
        }
        for pid in of_group() {
            if Instant::now() >= until {
                return;
            }
            kill("--pid", pid);
            killed.insert(pid);
        }
    }
}

/// Waits for the exit of a child, and kills it at the deadline. `None` if it was killed.
fn ends_by(child: &mut Child, until: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(ended) = child.try_wait()? {
            return Ok(Some(ended));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Adds the processes to `members` that descend from a member, or are in a group that a member has made, and returns
/// all members that are listed.
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

/// Reads the processes from a table with the columns PID, PPID and PGID. Returns no process if a column is missing.
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
    fn a_commands_processes_are_its_group_and_descendants() {
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
        // A command that shares the group of the task's own process.
        let mut members = BTreeSet::from([7]);
        let shared = [Process { pid: 1, parent: 0, group: 1 }, Process { pid: 7, parent: 0, group: 1 }];
        assert_eq!(pids(&shared, &mut members), [7]);
        assert!(parse("").is_empty() && parse("PID CMD\n1 sleep\n").is_empty());
    }

    /// Returns the outcome of a kill of process 7, and the arguments of all kills, with a `runsc` whose `ps` and `kill`
    /// run these scripts. [`TABLE`] is in the file `table`.
    fn killed(ps: &str, kill: &str) -> (Result<String, String>, String) {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        std::fs::write(at.join("table"), TABLE).unwrap();
        let script = format!(
            "#!/bin/sh\ncd {}\nshift\ncase $1 in\nps) {ps} ;;\nkill) echo $2 $3 >>kills; {kill} ;;\nesac\n",
            at.display()
        );
        // The script is not written by this process, since one of its children could hold the file open.
        let write = r#"printf %s "$1" >"$0" && chmod 755 "$0""#;
        let runsc = at.join("runsc-of-test");
        assert!(
            Command::new("/bin/sh").args(["-c", write]).arg(&runsc).arg(script).status().unwrap().success()
        );
        let arguments = [&*format!("--log={}/log.json", at.display()), "kill", "--pid", "7", "web-1", KILL];
        let call = Call {
            arguments: arguments.into_iter().map(Into::into).collect(),
            bundle: at.to_owned(),
            program: runsc,
        };
        let begun = Instant::now();
        let outcome = run(&call, &Target::of(&call).unwrap());
        assert!(begun.elapsed() < KILL_TIMEOUT * 2, "{:?}", begun.elapsed());
        let kills = std::fs::read_to_string(at.join("kills")).unwrap_or_default();
        (outcome.map(|code| format!("{code:?}")).map_err(|error| error.to_string()), kills.replace('\n', " "))
    }

    #[test]
    fn only_commands_from_outside_are_killed_with_their_processes() {
        let success = Ok(format!("{:?}", ExitCode::SUCCESS));
        let all = "--pid 7 --pgid 7 --pgid 10 ";
        assert_eq!(killed("cat table", "true"), (success.clone(), all.to_owned()));
        // The pid is another process's by now.
        let others = "sed 's/^0  *7  *0 /0 7 1 /' table";
        assert_eq!(killed(others, "true"), (success.clone(), "--pid 7 ".to_owned()));
        assert_eq!(killed("grep -v sh table", "true"), (success, "--pid 7 ".to_owned()));
    }

    #[test]
    fn a_kill_is_bounded_and_reports_survivors() {
        let success = Ok(format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(killed("exec sleep 60", "true"), (success, "--pid 7 ".to_owned()));
        let (outcome, kills) = killed("cat table", "exec sleep 60");
        assert_eq!((outcome.unwrap_err().as_str(), &*kills), ("it has not exited within 2s", "--pid 7 "));
        let (outcome, kills) = killed("cat table", "[ $2 = --pid ] || exec sleep 60");
        let what = "can't tell whether 4 processes are still running";
        assert_eq!((outcome.unwrap_err().as_str(), &*kills), (what, "--pid 7 --pgid 7 "));
        let always_another = "cat table; echo 0 $$ 7 $$ 0 ? 07:48 0s sh";
        let error = killed(always_another, "true").0.unwrap_err();
        assert!(error.ends_with("processes are still running"), "{error}");
    }

    #[test]
    fn only_sigkill_of_an_exec_is_a_target() {
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

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn tables() {
        crate::fuzz::text("runsc-ps", |table| {
            let all = parse(table);
            assert!(all.len() < table.lines().count().max(1));
            let mut members = BTreeSet::from([7]);
            let found = members_of(&all, &mut members);
            assert!(found.iter().all(|process| all.contains(process) && members.contains(&process.pid)));
            assert_eq!(members_of(&all, &mut members.clone()), found);
        });
    }
}
