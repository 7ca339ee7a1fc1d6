//! The observers of a pull, and the events they receive. Knows nothing of how a pull is done.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::wait::{Wait, Waits};

/// An event of a pull. There are none for an image that needs no pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PullEvent {
    /// The pull waits for something that others hold.
    Waiting {
        on: Wait,
    },
    Started,
    Progress {
        counts: Counts,
    },
    Finished {
        counts: Counts,
        took: Duration,
        /// The hosts that served the content that was missing here.
        from: Vec<String>,
    },
}

pub(super) type Observer = Arc<dyn Fn(PullEvent) + Send + Sync>;

/// Layers and bytes of an image: how many there are, and how many are here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub layers: usize,
    pub layers_here: usize,
    pub total_bytes: u64,
    pub here_bytes: u64,
    /// Bytes that came from the registry.
    pub fetched_bytes: u64,
}

impl Counts {
    pub(super) fn percent(&self) -> u64 {
        (self.here_bytes.min(self.total_bytes) * 100).checked_div(self.total_bytes).unwrap_or(0)
    }
}

/// The observers of one shared pull. Each receives `Started` once, even if it joins late.
pub(super) struct Observers {
    inner: Mutex<Inner>,
    /// The waits of the pull itself.
    waits: Mutex<Waits>,
    begun: Instant,
    /// The latest deadline of the callers.
    until: watch::Sender<Instant>,
}

#[derive(Default)]
struct Inner {
    has_started: bool,
    observers: Vec<Observer>,
}

impl Observers {
    pub(super) fn until(until: Instant) -> Self {
        Self {
            inner: Mutex::default(),
            waits: Mutex::default(),
            begun: Instant::now(),
            until: watch::Sender::new(until),
        }
    }

    /// Locks the observers. No code that can panic runs under the lock.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the waits, as [`Self::inner`] does the observers.
    pub(super) fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn add(&self, observer: &Observer, until: Instant) {
        self.until.send_if_modified(|latest| {
            let is_later = until > *latest;
            *latest = until.max(*latest);
            is_later
        });
        let has_started = {
            let mut inner = self.inner();
            inner.observers.push(Arc::clone(observer));
            inner.has_started
        };
        if has_started {
            observer(PullEvent::Started);
        }
    }

    /// Resolves at the latest deadline of the callers, when nobody waits any more.
    pub(super) async fn deadline_passes(&self) {
        let mut until = self.until.subscribe();
        loop {
            let latest = *until.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(latest) => return,
                Ok(()) = until.changed() => {}
            }
        }
    }

    pub(super) fn started(&self) {
        self.inner().has_started = true;
        self.tell(&PullEvent::Started);
    }

    /// Sends an event to all observers.
    pub(super) fn tell(&self, event: &PullEvent) {
        let observers = self.inner().observers.clone();
        observers.iter().for_each(|observer| observer(event.clone()));
    }
}
