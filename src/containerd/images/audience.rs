//! Those who wait for a pull, and what they are told of it. Knows nothing of how a pull is done.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::waits::{Wait, Waits};

/// What a caller may want to tell while it waits. Nothing is told of an image that needs no pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PullEvent {
    /// Something that others hold is waited for.
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
        /// The hosts that served what was not here.
        from: Vec<String>,
    },
}

pub(super) type Observer = Arc<dyn Fn(PullEvent) + Send + Sync>;

/// What has been done, of what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub layers: usize,
    pub layers_here: usize,
    pub total_bytes: u64,
    pub here_bytes: u64,
    /// What of it came from the registry.
    pub fetched_bytes: u64,
}

impl Counts {
    pub(super) fn percent(&self) -> u64 {
        (self.here_bytes.min(self.total_bytes) * 100).checked_div(self.total_bytes).unwrap_or(0)
    }
}

/// The observers of one flight. Each hears `Started` once, also if it comes late.
pub(super) struct Audience {
    seats: Mutex<Seats>,
    /// What the pull waits for itself.
    waits: Mutex<Waits>,
    begun: Instant,
    /// When the most patient of them will have gone.
    until: watch::Sender<Instant>,
}

#[derive(Default)]
struct Seats {
    has_started: bool,
    observers: Vec<Observer>,
}

impl Audience {
    pub(super) fn until(until: Instant) -> Self {
        Self {
            seats: Mutex::default(),
            waits: Mutex::default(),
            begun: Instant::now(),
            until: watch::Sender::new(until),
        }
    }

    /// No code that can panic runs under it.
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::seats`].
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
            let mut seats = self.seats();
            seats.observers.push(Arc::clone(observer));
            seats.has_started
        };
        if has_started {
            observer(PullEvent::Started);
        }
    }

    /// Resolves once nobody waits any more.
    pub(super) async fn patience_ends(&self) {
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
        self.seats().has_started = true;
        self.tell(&PullEvent::Started);
    }

    /// Tells all that listen.
    pub(super) fn tell(&self, event: &PullEvent) {
        let observers = self.seats().observers.clone();
        observers.iter().for_each(|observer| observer(event.clone()));
    }
}
