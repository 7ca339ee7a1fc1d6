//! Whether a Nomad agent drives this plugin: the plugin outlives an agent that dies, and may be found by the next one, or
//! never.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// What is known of the agent. Shared by all who see something of it.
#[derive(Debug)]
pub(crate) struct Agent {
    seen: watch::Sender<Seen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// How many streams of fingerprints are open.
    listening: usize,
    /// How many of its calls wait for something.
    waiting: usize,
    /// The last call, or the end of one that waited, or of a stream.
    heard: Instant,
    /// The last begin of a stream of fingerprints, or recovery.
    settled: Instant,
}

/// A stream of fingerprints that the agent has open, until this is dropped.
pub(crate) struct Listening(Arc<Agent>);

/// A call of the agent that waits for something, until this is dropped.
pub(crate) struct Waiting(Arc<Agent>);

impl Agent {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { seen: watch::Sender::new(Seen { listening: 0, waiting: 0, heard: now, settled: now }) }
    }

    /// Notes that it has called.
    pub(crate) fn has_called(&self) {
        // Nobody waits for calls.
        self.seen.send_if_modified(|seen| {
            seen.heard = Instant::now();
            false
        });
    }

    /// Notes that it recovers a task, or may do so from now on: more may come.
    pub(crate) fn recovers(&self) {
        self.seen.send_modify(|seen| seen.settled = Instant::now());
    }

    /// Notes that it listens to fingerprints, for as long as the result lives.
    pub(crate) fn listens(self: &Arc<Self>) -> Listening {
        self.seen.send_modify(|seen| {
            seen.listening += 1;
            seen.settled = Instant::now();
        });
        Listening(Arc::clone(self))
    }

    /// Notes that it waits for the answer to a call, for as long as the result lives.
    pub(crate) fn waits(self: &Arc<Self>) -> Waiting {
        self.seen.send_if_modified(|seen| {
            seen.waiting += 1;
            false
        });
        Waiting(Arc::clone(self))
    }

    /// For how long it has neither listened nor called. None while it listens, or waits for an answer.
    pub(crate) fn away(&self) -> Option<Duration> {
        let seen = self.seen.borrow();
        (seen.listening == 0 && seen.waiting == 0).then(|| seen.heard.elapsed())
    }

    /// For how long it has been there without a recovery. None while it doesn't listen.
    pub(super) fn settled(&self) -> Option<Duration> {
        let seen = self.seen.borrow();
        (seen.listening > 0).then(|| seen.settled.elapsed())
    }

    /// Waits for it to come, to go, or to recover a task after this call.
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
    fn an_agent_is_there_while_it_listens_and_settled_from_its_last_recovery_on() {
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
