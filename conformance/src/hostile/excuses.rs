//! What of a call's failure the job itself is to blame for, and in which words the driver has to say so. All else is
//! the driver's fault.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::host::Plugin;
use harness::task::Task;
use tonic::Status;

use super::acts::Effect;
use super::trial::Trial;
use crate::cases::support::is_recoverable;

/// Maximum time until a task that is told to have ended has done so.
const ENDED_LIMIT: Duration = Duration::from_secs(20);
/// Words of an error about a task that has ended.
const HAS_ENDED: [&str; 5] = ["not found", "not running", "has exited", "already finished", "does not exist"];
/// Words of an error, or of a command, about a limit of processes that is reached. The last ones are runc's, if its own
/// process in the task can't start a thread.
const IS_CROWDED: [&str; 4] = [
    "resource temporarily unavailable",
    "can't fork",
    "new os thread",
    "read init-p: connection reset by peer",
];

/// Options that decide whether there is a program to run: the runtime's error names the program instead of them.
const OF_THE_PROGRAM: [&str; 8] =
    ["command", "entrypoint", "environment", "user", "volumes", "mount", "tmpfs", "devices"];

/// Checks that a start was refused for good, in words that name what is odd in the job.
///
/// # Errors
/// Shows the error that says something else.
pub fn check_refusal(status: &Status, trial: &Trial) -> Result<()> {
    let (odd, text) = (&trial.job.odd, status.message());
    let is_of_program = |name: &str| OF_THE_PROGRAM.contains(&name) && text.contains("exec: \"");
    let is_named = odd.iter().any(|name| text.contains(name) || is_of_program(name));
    ensure!(is_named, "an error that names none of {odd:?}: {text}");
    ensure!(!is_recoverable(status)?, "a refusal after which the agent tries again: {text}");
    Ok(())
}

/// What a command in the task may fail for without a fault of the driver's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excuse {
    Nothing,
    /// The task has had as many processes as it may: an error has to be about that.
    Crowd,
    Anything,
}

impl Excuse {
    pub fn of(trial: &Trial, task: &Task) -> Self {
        if trial.has(Effect::Hampers) || trial.has(Effect::OutOfMemory) || trial.job.is_unsure {
            Self::Anything
        } else if trial.has(Effect::Crowds) && was_full(task) {
            Self::Crowd
        } else {
            Self::Nothing
        }
    }

    /// Returns whether it excuses a failure that is told in these words.
    pub fn covers(self, text: &str) -> bool {
        let text = text.to_lowercase();
        self == Self::Anything || self == Self::Crowd && IS_CROWDED.iter().any(|words| text.contains(words))
    }
}

/// Returns whether the kernel has refused a process to a task for its limit.
fn was_full(task: &Task) -> bool {
    let events = task.alloc.cgroup.read("pids", "pids.events", "pids.events").unwrap_or_default();
    events.lines().any(|line| line.strip_prefix("max ").is_some_and(|times| times != "0"))
}

/// Checks the answer to a call that no act may make fail: an error has to say that the task has ended, and it has to be
/// so. Returns what was answered.
///
/// # Errors
/// Shows an error that says something else, or that isn't true.
pub async fn unless_ended<T>(
    what: &str,
    answer: std::result::Result<T, Status>,
    plugin: &Plugin,
    task: &Task,
) -> Result<Option<T>> {
    let text = match &answer {
        Ok(_) => return Ok(answer.ok()),
        Err(status) => status.message(),
    };
    ensure!(HAS_ENDED.iter().any(|words| text.contains(words)), "{what}: {text}");
    has_ended(plugin, task).await.with_context(|| format!("{what}: {text}"))?;
    Ok(None)
}

/// Checks that the task has ended, as the driver tells.
///
/// # Errors
/// Fails if nobody hears of its end in time.
pub async fn has_ended(plugin: &Plugin, task: &Task) -> Result<()> {
    let waited = tokio::time::timeout(ENDED_LIMIT, plugin.wait_task(task.id())).await;
    waited.context("the task is told to have ended, and WaitTask gives no answer").map(drop)
}

/// Returns whether the task may end before the client ends it.
pub fn may_end_early(trial: &Trial) -> bool {
    trial.has(Effect::Signals) || trial.has(Effect::OutOfMemory) || trial.job.is_unsure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_task_excuses_a_command_that_says_so_alone() {
        let full = "exec in task x: OCI runtime exec failed: fork/exec /proc/self/exe: Resource temporarily unavailable";
        for (excuse, says_so, says_else) in
            [(Excuse::Nothing, false, false), (Excuse::Crowd, true, false), (Excuse::Anything, true, true)]
        {
            let covers = (excuse.covers(full), excuse.covers("exec in task x: connection reset"));
            assert_eq!(covers, (says_so, says_else), "{excuse:?}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_odd() {
        let seeds = (0..).map(|seed| Trial::of(seed, None));
        let trial = seeds.into_iter().find(|trial| trial.job.odd == ["cwd"]).unwrap();
        let refused = |text: &str| check_refusal(&Status::invalid_argument(text), &trial);
        refused("the option cwd can't be \"x\": it must be absolute").unwrap();
        refused("the shim is gone").unwrap_err();
        refused(r#"runc create failed: exec: "/usr/bin/perl": permission denied"#).unwrap_err();
    }
}
