//! The waits of a pull during which no byte comes from the registry: for permits, other pulls, containerd, a registry's
//! own `Retry-After`. [`Observers::wait_for`] is the only way to wait: it keeps the pull from being taken for stalled,
//! reports the wait to the observers, and ends at the callers' deadline. Permits and locks are handed out through it
//! alone.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::observers::{Observers, PullEvent};
use crate::image::ImageError;

/// Duration of a wait after which it is reported. An agent keeps ten events of a task.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// The subject of a wait. Its text stands behind "waiting for".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wait {
    PullPermit {
        at_once: usize,
    },
    LayerPermit {
        at_once: usize,
    },
    /// Another pull makes the image of the same digest.
    SameImage,
    /// Another pull, or another client of containerd, writes the same blob.
    SameBlob,
    /// The same layer is being unpacked for another image.
    SameLayer,
    /// The same file is being loaded for another task.
    SameArchive,
    /// A host has asked for a pause, by `Retry-After`.
    RetryAfter {
        host: String,
        wanted: Duration,
    },
    /// containerd flushes a blob to its disk, or is slow to write a part of it.
    Store,
    /// containerd unpacks a layer, or is asked for one.
    Unpack,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PullPermit { at_once } => write!(f, "a pull slot (max_parallel_pulls = {at_once})"),
            Self::LayerPermit { at_once } => {
                write!(f, "a layer download slot (max_parallel_layers = {at_once})")
            }
            Self::SameImage => write!(f, "the same image, which is being pulled under another name"),
            Self::SameBlob => {
                write!(f, "the same content, which another pull or another client of containerd is writing")
            }
            Self::SameLayer => write!(f, "the same layer, which is being unpacked for another image"),
            Self::SameArchive => write!(f, "the same archive, which is being loaded for another task"),
            Self::RetryAfter { host, wanted } => {
                let wanted = humantime::format_duration(*wanted);
                write!(f, "{host}, which asks to retry after {wanted} (Retry-After)")
            }
            Self::Store => write!(f, "containerd to write a layer to its disk"),
            Self::Unpack => write!(f, "containerd to unpack a layer"),
        }
    }
}

impl Wait {
    /// Returns when a wait is reported; `None` for work that every pull has.
    fn told_after(&self) -> Option<Duration> {
        match self {
            Self::PullPermit { .. } => Some(Duration::ZERO),
            Self::Store | Self::Unpack => None,
            _ => Some(TOLD_AFTER),
        }
    }
}

/// The waits of a pull that are under way, and those that it was cut off in.
#[derive(Debug)]
pub(super) struct Waits {
    current: Vec<Wait>,
    cut_off: Vec<Wait>,
    /// The kinds of waits already reported: each is once.
    told: Vec<std::mem::Discriminant<Wait>>,
    ended: Instant,
}

impl Default for Waits {
    fn default() -> Self {
        Self { current: Vec::new(), cut_off: Vec::new(), told: Vec::new(), ended: Instant::now() }
    }
}

impl Waits {
    /// Returns when the last wait ended; `None` while one is under way.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.current.is_empty().then_some(self.ended)
    }

    /// Returns the subjects of all waits, each once, as an error's text has them.
    pub(super) fn texts(&self) -> Vec<String> {
        self.subjects().iter().map(Wait::to_string).collect()
    }

    /// Returns the subjects of all waits, each once.
    pub(super) fn subjects(&self) -> Vec<Wait> {
        let mut subjects: Vec<Wait> = Vec::new();
        for wait in self.current.iter().chain(&self.cut_off) {
            if !subjects.contains(wait) {
                subjects.push(wait.clone());
            }
        }
        subjects
    }
}

/// A wait that is under way, until it is dropped.
struct Waiting<'a> {
    observers: &'a Observers,
    what: &'a Wait,
    is_over: bool,
}

impl<'a> Waiting<'a> {
    fn begin(observers: &'a Observers, what: &'a Wait) -> Self {
        observers.waits().current.push(what.clone());
        Self { observers, what, is_over: false }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waits = self.observers.waits();
        // Equal waits are interchangeable: any of them is removed.
        let Some(at) = waits.current.iter().position(|wait| wait == self.what) else { return };
        let what = waits.current.swap_remove(at);
        waits.ended = Instant::now();
        if !self.is_over {
            waits.cut_off.push(what);
        }
    }
}

impl Observers {
    /// Awaits an event as a wait for `what`.
    ///
    /// # Errors
    /// Nobody waits for the pull any more.
    pub(super) async fn wait_for<T>(
        &self,
        what: Wait,
        event: impl Future<Output = T>,
    ) -> Result<T, ImageError> {
        let mut event = pin!(event);
        if let Some(ready) = event.as_mut().now_or_never() {
            return Ok(ready);
        }
        let mut waiting = Waiting::begin(self, &what);
        let mut deadline = pin!(self.deadline_passes());
        let begun = Instant::now();
        let mut told_at = what.told_after().map(|after| begun + after);
        loop {
            tokio::select! {
                biased;
                ready = &mut event => {
                    waiting.is_over = true;
                    return Ok(ready);
                }
                () = &mut deadline => {
                    return Err(ImageError::Deadline { after: self.age(), waits: vec![what.to_string()] });
                }
                () = tokio::time::sleep_until(told_at.unwrap_or(begun)), if told_at.is_some() => {
                    told_at = None;
                    self.tell_wait(&what);
                }
            }
        }
    }

    fn tell_wait(&self, what: &Wait) {
        let kind = std::mem::discriminant(what);
        {
            let mut waits = self.waits();
            if waits.told.contains(&kind) {
                return;
            }
            waits.told.push(kind);
        }
        self.tell(&PullEvent::Waiting { on: what.clone() });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::observers::Observer;
    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_wait_is_told_once_and_marks_the_pull_until_its_end() {
        let observers = Observers::until(Instant::now() + Duration::from_secs(600));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        let observer = Arc::new(move |event| hears.lock().unwrap().push(event)) as Observer;
        observers.add(&observer, Instant::now());
        let on = Wait::PullPermit { at_once: 1 };
        for _ in 0..2 {
            let mut wait = pin!(observers.wait_for(on.clone(), tokio::time::sleep(MOMENT)));
            assert!(futures::poll!(wait.as_mut()).is_pending() && observers.waits().ended().is_none());
            wait.await.unwrap();
            assert!(observers.waits().ended().is_some() && observers.waits().subjects().is_empty());
        }
        assert_eq!(*heard.lock().unwrap(), [PullEvent::Waiting { on }]);
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_patience_of_those_who_wait() {
        let observers = Observers::until(Instant::now() + MOMENT);
        let error = observers.wait_for(Wait::SameBlob, std::future::pending::<()>()).await.unwrap_err();
        assert!(
            matches!(&error, ImageError::Deadline { waits, .. } if *waits == [Wait::SameBlob.to_string()]),
            "{error}"
        );
        assert_eq!(observers.waits().subjects(), [Wait::SameBlob]);
    }
}
