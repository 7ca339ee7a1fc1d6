//! Pulls in flight: callers that want the same image share one. A caller that goes away leaves the others, and the pull,
//! alone. Knows nothing of how a pull is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::super::Error;
use super::Image;

/// What a caller may want to tell while it waits. Nothing is told of an image that needs no pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullEvent {
    Started,
    Finished { size_bytes: u64, took: Duration },
}

pub(super) type Observer = Arc<dyn Fn(PullEvent) + Send + Sync>;
type Outcome = Result<Image, Error>;

#[derive(Default)]
pub(super) struct Flights {
    running: Arc<Mutex<HashMap<String, Flight>>>,
}

#[derive(Clone)]
struct Flight {
    audience: Arc<Audience>,
    outcome: Shared<BoxFuture<'static, Outcome>>,
}

impl Flights {
    /// Waits for the flight of that name; starts it unless it is under way.
    pub(super) async fn join<F>(
        &self,
        name: &str,
        observer: Observer,
        start: impl FnOnce(Arc<Audience>) -> F,
    ) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let flight =
            lock(&self.running).entry(name.to_owned()).or_insert_with(|| self.take_off(name, start)).clone();
        flight.audience.add(&observer);
        flight.outcome.await
    }

    /// In a task of its own, so that no caller's end is its end.
    fn take_off<F>(&self, name: &str, start: impl FnOnce(Arc<Audience>) -> F) -> Flight
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let audience = Arc::new(Audience::default());
        let landing = Landing { running: Arc::clone(&self.running), name: name.to_owned() };
        let work = start(Arc::clone(&audience));
        let task = tokio::spawn(async move {
            let _landing = landing;
            work.await
        });
        let doing = format!("pull {name}");
        let outcome = task.map(|ended| {
            ended.unwrap_or_else(|error| {
                Err(Error::Refused { doing, reason: format!("it broke off: {error}") })
            })
        });
        Flight { audience, outcome: outcome.boxed().shared() }
    }
}

/// Takes the flight off the board however it ends.
struct Landing {
    running: Arc<Mutex<HashMap<String, Flight>>>,
    name: String,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let flight = lock(&self.running).remove(&self.name);
        // Dropped only now: what it holds is other people's, and may be slow to let go.
        drop(flight);
    }
}

/// The observers of one flight. Each hears `Started` once, also if it comes late.
#[derive(Default)]
pub(super) struct Audience {
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    has_started: bool,
    observers: Vec<Observer>,
}

impl Audience {
    fn add(&self, observer: &Observer) {
        let has_started = {
            let mut seats = lock(&self.seats);
            seats.observers.push(Arc::clone(observer));
            seats.has_started
        };
        if has_started {
            observer(PullEvent::Started);
        }
    }

    pub(super) fn started(&self) {
        let observers = {
            let mut seats = lock(&self.seats);
            seats.has_started = true;
            seats.observers.clone()
        };
        observers.iter().for_each(|observer| observer(PullEvent::Started));
    }

    pub(super) fn finished(&self, size_bytes: u64, took: Duration) {
        let observers = lock(&self.seats).observers.clone();
        observers.iter().for_each(|observer| observer(PullEvent::Finished { size_bytes, took }));
    }
}

/// No code that can panic runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use oci_spec::image::ImageConfiguration;
    use tokio::sync::Notify;

    use super::*;

    fn image() -> Image {
        Image {
            name: "a".to_owned(),
            digest: String::new(),
            chain_id: String::new(),
            config: ImageConfiguration::default(),
        }
    }

    fn counter() -> (Arc<AtomicUsize>, Observer) {
        let heard = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&heard);
        let observer = move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        (heard, Arc::new(observer))
    }

    #[tokio::test]
    async fn callers_share_one_flight_and_a_dropped_one_harms_nobody() {
        let flights = Flights::default();
        let starts = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let start = |audience: Arc<Audience>| {
            starts.fetch_add(1, Ordering::SeqCst);
            let go = Arc::clone(&go);
            async move {
                audience.started();
                go.notified().await;
                audience.finished(1, Duration::ZERO);
                Ok(image())
            }
        };
        let (heard, observer) = counter();
        let mut first = Box::pin(flights.join("a", Arc::clone(&observer), start));
        assert!(futures::poll!(first.as_mut()).is_pending());
        tokio::task::yield_now().await;
        let second = flights.join("a", observer, start);
        drop(first);
        go.notify_one();
        assert_eq!(second.await.unwrap().name, "a");
        assert_eq!(starts.load(Ordering::SeqCst), 1);
        assert_eq!(heard.load(Ordering::SeqCst), 4);
        assert!(lock(&flights.running).is_empty());
    }

    #[tokio::test]
    async fn a_flight_that_panics_is_an_error_and_makes_room() {
        let flights = Flights::default();
        let (_, observer) = counter();
        let crash = |_| async { panic!("on purpose") };
        let error = flights.join("a", Arc::clone(&observer), crash).await.unwrap_err();
        assert!(error.to_string().starts_with("pull a: "), "{error}");
        flights.join("a", observer, |_| async { Ok(image()) }).await.unwrap();
    }
}
