//! Single-flight for pulls: callers that want the same image share one pull. A caller that goes away leaves the others,
//! and the pull, alone. Knows nothing of how a pull is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::Instant;

use super::super::Error;
use super::observers::{Observer, Observers};
use super::{Image, Policy};
use crate::image::ImageError;
use crate::registry::Credentials;

type Outcome = Result<Image, Error>;

/// The key of a shared pull. Credentials are part of it, so that one caller's failed login never fails another's pull.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PullKey {
    pub name: String,
    /// Snapshotter and platform.
    pub form: String,
    pub policy: Policy,
    pub credentials: Option<Credentials>,
    pub soft_fail: bool,
}

#[derive(Default)]
/// The shared pulls under way, by key.
pub(super) struct SingleFlight {
    running: Arc<Mutex<HashMap<PullKey, SharedPull>>>,
}

#[derive(Clone)]
/// A pull shared by several callers.
struct SharedPull {
    observers: Arc<Observers>,
    outcome: Shared<BoxFuture<'static, Outcome>>,
}

impl SingleFlight {
    /// Waits for the pull with this key, at most for `timeout`; starts it unless it is under way.
    pub(super) async fn join<F>(
        &self,
        key: PullKey,
        timeout: Duration,
        observer: Observer,
        start: impl Fn(PullKey, Arc<Observers>) -> F,
    ) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let until = Instant::now() + timeout;
        loop {
            let pull = {
                let mut running = lock(&self.running);
                let entry = running.entry(key.clone());
                entry.or_insert_with(|| self.spawn(key.clone(), until, &start)).clone()
            };
            pull.observers.add(&observer, until);
            let waits = match tokio::time::timeout_at(until, pull.outcome).await {
                // The pull was being given up already, since nobody else waited for it any more.
                Ok(Err(Error::Image { error: ImageError::Deadline { .. }, .. }))
                    if Instant::now() < until =>
                {
                    continue;
                }
                Ok(Err(Error::Image { error: ImageError::Deadline { waits, .. }, .. })) => waits,
                Err(_) => pull.observers.waits().texts(),
                Ok(outcome) => return outcome,
            };
            return Err(ImageError::Deadline { after: timeout, waits }.during(format!("pull {}", key.name)));
        }
    }

    /// Starts a shared pull as a task of its own, so that it outlives each caller.
    fn spawn<F>(
        &self,
        key: PullKey,
        until: Instant,
        start: &impl Fn(PullKey, Arc<Observers>) -> F,
    ) -> SharedPull
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let observers = Arc::new(Observers::until(until));
        let doing = format!("pull {}", key.name);
        let remove = RemoveOnDrop { running: Arc::clone(&self.running), key: key.clone() };
        let work = start(key, Arc::clone(&observers));
        let task = tokio::spawn(async move {
            let _remove = remove;
            work.await
        });
        let outcome = task.map(|ended| {
            ended.unwrap_or_else(|error| {
                Err(Error::Refused { doing, reason: format!("it was interrupted: {error}") })
            })
        });
        SharedPull { observers, outcome: outcome.boxed().shared() }
    }
}

/// Removes a shared pull from the map, however it ends.
struct RemoveOnDrop {
    running: Arc<Mutex<HashMap<PullKey, SharedPull>>>,
    key: PullKey,
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let pull = lock(&self.running).remove(&self.key);
        // Dropped outside of the lock: its callbacks and results are other people's, and may be slow to drop.
        drop(pull);
    }
}

/// Locks the map of pulls. No code that can panic runs under the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use oci_spec::image::ImageConfiguration;
    use tokio::sync::Notify;

    use super::super::observers::PullEvent;
    use super::*;
    use crate::sys::error_chain::Chained;

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

    const LONG: Duration = Duration::from_secs(600);

    fn key() -> PullKey {
        let (name, form) = ("a".to_owned(), String::new());
        PullKey { name, form, policy: Policy::Missing, credentials: None, soft_fail: false }
    }

    #[tokio::test]
    async fn callers_share_a_pull_and_may_leave_it() {
        let single_flight = SingleFlight::default();
        let starts = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let start = |_: PullKey, observers: Arc<Observers>| {
            starts.fetch_add(1, Ordering::SeqCst);
            let go = Arc::clone(&go);
            async move {
                observers.started();
                go.notified().await;
                observers.tell(&PullEvent::Waiting { on: super::super::wait::Wait::SameImage });
                Ok(image())
            }
        };
        let (heard, observer) = counter();
        let mut first = Box::pin(single_flight.join(key(), LONG, Arc::clone(&observer), start));
        assert!(futures::poll!(first.as_mut()).is_pending());
        tokio::task::yield_now().await;
        let second = single_flight.join(key(), LONG, observer, start);
        drop(first);
        go.notify_one();
        assert_eq!(second.await.unwrap().name, "a");
        assert_eq!(starts.load(Ordering::SeqCst), 1);
        assert_eq!(heard.load(Ordering::SeqCst), 4);
        assert!(lock(&single_flight.running).is_empty());
    }

    #[tokio::test]
    async fn a_panicking_pull_is_an_error_and_frees_its_key() {
        let single_flight = SingleFlight::default();
        let (_, observer) = counter();
        let crash = |_, _| async { panic!("on purpose") };
        let error = single_flight.join(key(), LONG, Arc::clone(&observer), crash).await.unwrap_err();
        assert!(error.chain().to_string().starts_with("pull a: "), "{error}");
        single_flight.join(key(), LONG, observer, |_, _| async { Ok(image()) }).await.unwrap();
    }

    #[tokio::test]
    async fn a_callers_deadline_does_not_end_the_shared_pull() {
        let single_flight = SingleFlight::default();
        let (_, observer) = counter();
        let go = Arc::new(Notify::new());
        let start = |_: PullKey, observers: Arc<Observers>| {
            let go = Arc::clone(&go);
            async move {
                tokio::select! {
                    () = go.notified() => Ok(image()),
                    () = observers.deadline_passes() => Err(ImageError::Deadline { after: LONG, waits: Vec::new() }.during("x")),
                }
            }
        };
        let join = |timeout| single_flight.join(key(), timeout, Arc::clone(&observer), start);
        let moment = Duration::from_millis(1);
        let mut patient = Box::pin(join(LONG));
        assert!(futures::poll!(patient.as_mut()).is_pending());
        let error = join(moment).await.unwrap_err();
        assert_eq!(error.chain().to_string(), "pull a: not finished within 1ms (image_pull_timeout)");
        assert!(error.is_transient());
        go.notify_one();
        patient.await.unwrap();
        // With no caller left the pull ends, and the next caller starts anew.
        assert!(join(moment).await.is_err());
        while !lock(&single_flight.running).is_empty() {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        join(LONG).await.unwrap();
    }

    #[tokio::test]
    async fn a_caller_during_cancellation_gets_a_new_pull() {
        let single_flight = SingleFlight::default();
        let (_, observer) = counter();
        let (given_up, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let starts = AtomicUsize::new(0);
        let start = |_: PullKey, observers: Arc<Observers>| {
            let (given_up, go) = (Arc::clone(&given_up), Arc::clone(&go));
            let is_first = starts.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if !is_first {
                    return Ok(image());
                }
                observers.deadline_passes().await;
                given_up.notify_one();
                go.notified().await;
                Err(ImageError::Deadline { after: LONG, waits: Vec::new() }.during("x"))
            }
        };
        let join = |timeout| single_flight.join(key(), timeout, Arc::clone(&observer), start);
        assert!(join(Duration::from_millis(1)).await.is_err());
        given_up.notified().await;
        let mut late = Box::pin(join(LONG));
        assert!(futures::poll!(late.as_mut()).is_pending());
        go.notify_one();
        late.await.unwrap();
    }

    #[tokio::test]
    async fn pulls_with_different_credentials_are_not_shared() {
        let single_flight = SingleFlight::default();
        let (_, observer) = counter();
        let password = |text: &str| crate::secret::Secret::new(text.to_owned());
        let with = |text: &str| PullKey {
            credentials: Some(Credentials { username: "me".to_owned(), password: password(text) }),
            ..key()
        };
        let start = |key: PullKey, _| async move {
            tokio::task::yield_now().await;
            match key.credentials {
                Some(credentials) if credentials.password.reveal() == "right" => Ok(image()),
                _ => Err(ImageError::Denied { reason: String::new(), own: true }.during("x")),
            }
        };
        let join = |key| single_flight.join(key, LONG, Arc::clone(&observer), start);
        let (right, wrong, none) = tokio::join!(join(with("right")), join(with("wrong")), join(key()));
        assert!(right.is_ok() && wrong.is_err() && none.is_err());
    }
}
