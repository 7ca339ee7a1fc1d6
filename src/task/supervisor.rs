//! Watches one task from its start to its end: the only writer of its phase.
//!
//! What it trusts is the shim's answer to a wait that was sent before the start, never an event. When the shim itself
//! goes, its container is left without anybody to tell how it ends and with its output cut off; then it is killed, and
//! the end is told as unknown.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::place::Place;
use super::{Exit, Phase, Saved};
use crate::cgroup::{self, Cgroup};
use crate::shim::{self, Connection, Ended, LogPaths, drained};

/// How long the reader of the log may take for the task's last words before its end is told without them.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// A shell says 128 + n for a process that signal n ended, and so does the shim.
const SIGNAL_BASE: i32 = 128;
const MOST_SIGNAL: i32 = 64;

/// A wait that the shim has been sent already.
pub(super) type Waiting = Pin<Box<dyn Future<Output = Result<Ended, shim::Error>> + Send>>;

/// Asks the shim to tell the end of its task, or of an exec, and returns once the question is on its way. Ask before the
/// start: a process may end at once.
pub(super) async fn ask(connection: &Connection, exec_id: &str) -> Waiting {
    let connection = connection.clone();
    let exec_id = exec_id.to_owned();
    let mut waiting: Waiting = Box::pin(async move { connection.wait(&exec_id).await });
    match futures::poll!(&mut waiting) {
        std::task::Poll::Ready(answer) => Box::pin(std::future::ready(answer)),
        std::task::Poll::Pending => waiting,
    }
}

/// Watches a task to its end.
pub(super) fn watch(saved: &Saved, place: Place, task_id: &str, waiting: Waiting) -> watch::Receiver<Phase> {
    let (writer, reader) = watch::channel(Phase::Running);
    let (saved, task_id) = (saved.clone(), task_id.to_owned());
    tokio::spawn(async move {
        let exit = end(&saved, &place, waiting).await;
        let Exit { code, signal, oom_killed, at: _, error } = &exit;
        tracing::debug!(task = task_id, code, signal, oom_killed, ?error, "the task has ended");
        writer.send_replace(Phase::Exited(exit));
    });
    reader
}

async fn end(saved: &Saved, place: &Place, waiting: Waiting) -> Exit {
    let ended = match waiting.await {
        Err(error) if error.is_shim_gone() => wait_again(saved, error).await,
        answer => answer,
    };
    let exit = match ended {
        Ok(ended) => told(ended, &saved.cgroup),
        Err(error) => {
            tracing::warn!(container = place.id, %error, "lost the shim; ending its container");
            if let Err(error) = place.launcher.delete(&place.bundle, &place.id).await {
                tracing::error!(container = place.id, %error, "can't end the container of a lost shim");
            }
            unknown(&error, &saved.cgroup)
        }
    };
    if saved.shares_pids
        && let Err(error) = cgroup::kill_all(&saved.cgroup.path).await
    {
        tracing::warn!(container = place.id, %error, "can't end what is left of the task");
    }
    if !last_words(saved.logs.clone()).await {
        tracing::warn!(container = place.id, "nobody has read all of the task's output in {LAST_WORDS:?}");
    }
    exit
}

/// The connection broke; the shim may still be there.
async fn wait_again(saved: &Saved, error: shim::Error) -> Result<Ended, shim::Error> {
    match Connection::open(&saved.shim.bootstrap, &saved.container_id).await {
        Ok(connection) => connection.wait("").await,
        Err(_) => Err(error),
    }
}

fn told(ended: Ended, cgroup: &Cgroup) -> Exit {
    let code = i32::try_from(ended.status).unwrap_or(i32::MAX);
    Exit { code, signal: signal_of(code), oom_killed: cgroup.oom_kills() > 0, at: ended.at, error: None }
}

/// The shim's word leaves open whether a program was killed by signal n or chose to exit with 128 + n; the first is what
/// it nearly always is.
fn signal_of(code: i32) -> i32 {
    let signal = code - SIGNAL_BASE;
    if (1..=MOST_SIGNAL).contains(&signal) { signal } else { 0 }
}

fn unknown(error: &shim::Error, cgroup: &Cgroup) -> Exit {
    Exit {
        code: SIGNAL_BASE + nix::sys::signal::Signal::SIGKILL as i32,
        signal: nix::sys::signal::Signal::SIGKILL as i32,
        oom_killed: cgroup.oom_kills() > 0,
        at: SystemTime::now(),
        error: Some(format!("the task's shim died, and the task was killed without it: {error}")),
    }
}

/// Whether the log's readers have taken all that the task wrote.
async fn last_words(logs: LogPaths) -> bool {
    tokio::task::spawn_blocking(move || drained(&logs, LAST_WORDS)).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_above_128_is_a_signal() {
        assert_eq!(signal_of(0), 0);
        assert_eq!(signal_of(127), 0);
        assert_eq!(signal_of(128), 0);
        assert_eq!(signal_of(137), 9);
        assert_eq!(signal_of(128 + 64), 64);
        assert_eq!(signal_of(255), 0);
    }
}
