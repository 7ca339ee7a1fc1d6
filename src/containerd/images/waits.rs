//! The waits of a pull during which no byte comes from the registry: for permits, other pulls, containerd, a registry's
//! own `Retry-After`. [`Observers::wait_for`] is the only way to wait: it keeps the pull from being taken for stalled,
//! reports the wait to the observers, and ends at the callers' deadline. Permits and locks are handed out through it
//! alone.

use std::pin::pin;

use futures::FutureExt;
use tokio::time::Instant;

use super::observers::{Observers, PullEvent};
use super::wait::Wait;
use crate::image::ImageError;

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
        let mut report_at = what.report_delay().map(|after| begun + after);
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
                () = tokio::time::sleep_until(report_at.unwrap_or(begun)), if report_at.is_some() => {
                    report_at = None;
                    self.report_wait(&what);
                }
            }
        }
    }

    fn report_wait(&self, what: &Wait) {
        let kind = std::mem::discriminant(what);
        {
            let mut waits = self.waits();
            if waits.reported.contains(&kind) {
                return;
            }
            waits.reported.push(kind);
        }
        self.tell(&PullEvent::Waiting { on: what.clone() });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::super::observers::Observer;
    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_wait_is_reported_once_and_marked_until_its_end() {
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
    async fn a_wait_ends_at_the_callers_deadline() {
        let observers = Observers::until(Instant::now() + MOMENT);
        let error = observers.wait_for(Wait::SameBlob, std::future::pending::<()>()).await.unwrap_err();
        assert!(
            matches!(&error, ImageError::Deadline { waits, .. } if *waits == [Wait::SameBlob.to_string()]),
            "{error}"
        );
        assert_eq!(observers.waits().subjects(), [Wait::SameBlob]);
    }
}
