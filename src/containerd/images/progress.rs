//! The progress of a pull: counted, reported at few sensible moments, and watched for a stall. Knows neither the
//! registry nor the daemon.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::observers::{Counts, Observers, PullEvent};

/// Ages of a pull at which its progress is reported. An agent keeps ten events of a task.
const TOLD_AFTER: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(600)];
/// Minimum time between two log lines of a pull, which has one for each tenth.
const LOGGED_EVERY: Duration = Duration::from_secs(1);

/// Bytes that have to come within the time that a pull may stall: a byte now and then is no progress.
const MOVES_BYTES: u64 = 4 * 1024;

/// The progress of one pull.
pub(super) struct Progress {
    image: String,
    observers: Arc<Observers>,
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    counts: Counts,
    steps: Steps,
    moved: Instant,
    /// Bytes received since `moved`, while they are too few to count as progress.
    came_bytes: u64,
    /// The hosts that layers came from, in the order of their first layer.
    origins: Vec<String>,
}

/// The reports and log lines already made.
#[derive(Debug, Default)]
struct Steps {
    reported: usize,
    logged_tenth: u64,
    logged_after: Duration,
}

impl Steps {
    fn report_is_due(&mut self, age: Duration) -> bool {
        let due = TOLD_AFTER.iter().filter(|after| **after <= age).count();
        let is_new = due > self.reported;
        self.reported = self.reported.max(due);
        is_new
    }

    fn log_is_due(&mut self, age: Duration, percent: u64) -> bool {
        let is_due = percent / 10 > self.logged_tenth && age >= self.logged_after + LOGGED_EVERY;
        if is_due {
            (self.logged_tenth, self.logged_after) = (percent / 10, age);
        }
        is_due
    }
}

impl Progress {
    pub(super) fn new(image: String, observers: Arc<Observers>) -> Self {
        let now = Instant::now();
        let (counts, steps) = (Counts::default(), Steps::default());
        let state = State { counts, steps, moved: now, came_bytes: 0, origins: Vec::new() };
        Self { image, observers, begun: now, state: Mutex::new(state) }
    }

    /// Locks the state. No code that can panic runs under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Records that a layer comes from this host.
    pub(super) fn comes_from(&self, host: &str) {
        let mut state = self.lock();
        if !state.origins.iter().any(|known| known == host) {
            state.origins.push(host.to_owned());
        }
    }

    /// Returns the hosts that layers came from; empty where all layers were here.
    pub(super) fn origins(&self) -> Vec<String> {
        self.lock().origins.clone()
    }

    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn observers(&self) -> &Observers {
        &self.observers
    }

    /// Sets the totals, once they are known.
    pub(super) fn expect(&self, layers: usize, total_bytes: u64) {
        self.note(None, |counts| (counts.layers, counts.total_bytes) = (layers, total_bytes));
    }

    /// Counts bytes received from the registry, `came_bytes`, of which `bytes` were not here yet.
    pub(super) fn fetched(&self, bytes: u64, came_bytes: u64) {
        self.note(Some(came_bytes), |counts| {
            counts.fetched_bytes += bytes;
            counts.here_bytes += bytes;
        });
    }

    /// Counts bytes that were here already.
    pub(super) fn found(&self, bytes: u64) {
        self.note(None, |counts| counts.here_bytes += bytes);
    }

    /// Takes back bytes that turned out to be of no use.
    pub(super) fn lost(&self, bytes: u64) {
        self.note(None, |counts| counts.here_bytes = counts.here_bytes.saturating_sub(bytes));
    }

    pub(super) fn layer_is_here(&self) {
        self.note(None, |counts| counts.layers_here += 1);
    }

    /// Updates the counts, reports and logs them if that is due, and notes progress: `came_bytes` of it, or, where that
    /// is `None`, as much as counts.
    fn note(&self, came_bytes: Option<u64>, change: impl FnOnce(&mut Counts)) {
        let age = self.begun.elapsed();
        let (counts, report_is_due, log_is_due) = {
            let mut state = self.lock();
            change(&mut state.counts);
            state.came_bytes += came_bytes.unwrap_or(MOVES_BYTES);
            if state.came_bytes >= MOVES_BYTES {
                (state.moved, state.came_bytes) = (Instant::now(), 0);
            }
            let counts = state.counts;
            (counts, state.steps.report_is_due(age), state.steps.log_is_due(age, counts.percent()))
        };
        if report_is_due {
            self.observers.tell(&PullEvent::Progress { counts });
        }
        if log_is_due {
            let Counts { layers, layers_here, total_bytes, here_bytes, .. } = counts;
            let percent = counts.percent();
            tracing::info!(
                image = self.image,
                percent,
                here_bytes,
                total_bytes,
                layers_here,
                layers,
                "pulling"
            );
        }
    }

    /// Resolves once the pull has stalled: nothing has come, and no wait has ended, for `limit`. Does not resolve while
    /// the pull waits for something.
    pub(super) async fn stalls(&self, limit: Duration) {
        loop {
            let moved = self.lock().moved;
            let until = match self.observers.waits().ended() {
                Some(ended) => ended.max(moved) + limit,
                None => Instant::now() + limit,
            };
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wait::Wait;
    use super::*;

    fn progress() -> Progress {
        Progress::new("a".to_owned(), Arc::new(Observers::until(Instant::now())))
    }

    #[test]
    fn progress_events_of_a_long_pull_are_few() {
        let mut steps = Steps::default();
        let reported = (0..10_000).filter(|second| steps.report_is_due(Duration::from_secs(*second)));
        assert_eq!(reported.collect::<Vec<_>>(), [5, 30, 120, 600]);
        // Reports that were due while nothing came are made once.
        let mut late = Steps::default();
        assert!(late.report_is_due(Duration::from_secs(60)) && !late.report_is_due(Duration::from_secs(61)));
    }

    #[test]
    fn progress_is_logged_in_tenths() {
        let mut steps = Steps::default();
        let mut at = |seconds: u64, percent| steps.log_is_due(Duration::from_secs(seconds), percent);
        assert!(!at(0, 15) && at(1, 15) && !at(5, 19) && at(5, 50) && !at(5, 60) && at(6, 60) && !at(60, 69));
    }

    #[test]
    fn bytes_are_counted_by_where_they_come_from() {
        let progress = progress();
        assert_eq!(progress.counts().percent(), 0);
        progress.expect(2, 200);
        progress.found(50);
        progress.fetched(60, 70);
        progress.lost(10);
        progress.layer_is_here();
        let wanted =
            Counts { layers: 2, layers_here: 1, total_bytes: 200, here_bytes: 100, fetched_bytes: 60 };
        assert_eq!((progress.counts(), progress.counts().percent()), (wanted, 50));
        ["b", "a", "b"].iter().for_each(|host| progress.comes_from(host));
        assert_eq!(progress.origins(), ["b", "a"]);
    }

    #[tokio::test]
    async fn a_trickling_pull_stalls() {
        let limit = Duration::from_millis(200);
        let progress = progress();
        let trickle = async {
            loop {
                tokio::time::sleep(limit / 8).await;
                progress.fetched(1, 1);
            }
        };
        let still = async { tokio::time::timeout(10 * limit, progress.stalls(limit)).await };
        let still = tokio::select! { still = still => still, () = trickle => Ok(()) };
        still.unwrap();
        let begun = Instant::now();
        progress.fetched(0, MOVES_BYTES);
        progress.stalls(limit).await;
        assert!(begun.elapsed() >= limit);
    }

    #[tokio::test]
    async fn a_waiting_pull_does_not_stall() {
        let limit = Duration::from_millis(100);
        let observers = Arc::new(Observers::until(Instant::now() + Duration::from_secs(600)));
        let progress = Progress::new("a".to_owned(), Arc::clone(&observers));
        let begun = Instant::now();
        let wait = observers.wait_for(Wait::SameLayer, tokio::time::sleep(5 * limit));
        let (_, waited) = tokio::join!(progress.stalls(limit), wait);
        assert!(waited.is_ok() && begun.elapsed() >= 6 * limit, "{:?}", begun.elapsed());
    }
}
