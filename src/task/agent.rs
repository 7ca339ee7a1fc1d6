//! The presence of a Nomad agent: the plugin outlives an agent that dies, and may be found by the next one, or never.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// The agent's presence, as seen from its calls. Shared by all that see some of them.
#[derive(Debug)]
pub(crate) struct Agent {
    seen: watch::Sender<Seen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Number of fingerprint streams that are open.
    listening: usize,
    /// Number of calls that wait for something.
    waiting: usize,
    /// Time of the last call, or of the end of a waiting call or of a fingerprint stream.
    heard: Instant,
    /// Time when the last fingerprint stream began, or the agent last recovered a task.
    settled: Instant,
}

/// The guard of an open fingerprint stream, which counts as closed once this is dropped.
pub(crate) struct Listening(Arc<Agent>);

/// The guard of a call that waits for something, which counts as answered once this is dropped.
pub(crate) struct Waiting(Arc<Agent>);

impl Agent {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { seen: watch::Sender::new(Seen { listening: 0, waiting: 0, heard: now, settled: now }) }
    }

    /// Records that the agent has called.
    pub(crate) fn has_called(&self) {
        // Without a notification: nobody waits for calls.
        self.seen.send_if_modified(|seen| {
            seen.heard = Instant::now();
            false
        });
    }

    /// Records that the agent recovers a task, or may do so from now on: more recoveries may come.
    pub(crate) fn recovers(&self) {
        self.seen.send_modify(|seen| seen.settled = Instant::now());
    }

    /// Records that the agent listens to fingerprints, for as long as the returned guard lives.
    pub(crate) fn listens(self: &Arc<Self>) -> Listening {
        self.seen.send_modify(|seen| {
            seen.listening += 1;
            seen.settled = Instant::now();
        });
        Listening(Arc::clone(self))
    }

    /// Records that the agent waits for the answer to a call, for as long as the returned guard lives.
    pub(crate) fn waits(self: &Arc<Self>) -> Waiting {
        self.seen.send_if_modified(|seen| {
            seen.waiting += 1;
            false
        });
        Waiting(Arc::clone(self))
    }

    /// Returns how long the agent has neither listened nor called; `None` while it listens or waits for an answer.
    pub(crate) fn away(&self) -> Option<Duration> {
        let seen = self.seen.borrow();
        (seen.listening == 0 && seen.waiting == 0).then(|| seen.heard.elapsed())
    }

    /// Returns how long the agent has been listening without a recovery; `None` while it doesn't listen.
    pub(super) fn settled(&self) -> Option<Duration> {
        let seen = self.seen.borrow();
        (seen.listening > 0).then(|| seen.settled.elapsed())
    }

    /// Completes when the agent starts or stops listening, or recovers a task, after this call.
    pub(super) fn changes(&self) -> impl Future<Output = ()> + use<> {
        let mut seen = self.seen.subscribe();
        async move {
            if seen.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.seen.send_modify(|seen| {
            seen.listening -= 1;
            seen.heard = Instant::now();
        });
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.seen.send_if_modified(|seen| {
            seen.waiting -= 1;
            seen.heard = Instant::now();
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn an_agent_is_present_while_it_listens_and_settled_after_its_last_recovery() {
        let agent = Arc::new(Agent::new());
        let pause = Duration::from_millis(5);
        std::thread::sleep(pause);
        assert!(agent.settled().is_none() && agent.away().unwrap() >= pause);
        agent.has_called();
        assert!(agent.away().unwrap() < pause);
        let mut changes = Box::pin(agent.changes());
        assert!(changes.as_mut().now_or_never().is_none());
        let (first, second) = (agent.listens(), agent.listens());
        assert!(changes.now_or_never().is_some());
        drop(first);
        assert!(agent.away().is_none());
        std::thread::sleep(pause);
        assert!(agent.settled().unwrap() >= pause);
        agent.recovers();
        assert!(agent.settled().unwrap() < pause);
        drop(second);
        assert!(agent.settled().is_none() && agent.away().unwrap() < pause);
        let waiting = agent.waits();
        assert!(agent.settled().is_none() && agent.away().is_none(), "it waits for an answer");
        drop(waiting);
        assert!(agent.away().unwrap() < pause);
    }
}
