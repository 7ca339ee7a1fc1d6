//! Limits how many task starts run concurrently. Further starts wait in FIFO order. Knows nothing of what a start does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

/// Wait after which a start is reported as one that waits long.
const LONG: Duration = Duration::from_secs(5);
/// Maximum time that a start may hold its permit. A start that takes longer waits for something, such as a copy of its
/// image's files or a runtime that hangs, and must not keep others waiting.
const HELD_LIMIT: Duration = Duration::from_secs(30);

pub(in crate::task) struct StartLimiter {
    at_once: usize,
    permits: Arc<Semaphore>,
}

/// A start permit, released on drop, or after a time limit.
pub(in crate::task) struct StartPermit {
    /// `None` once it is released, or if the semaphore were closed, which it never is.
    permit: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    _gives_back: AbortOnDropHandle<()>,
}

impl StartPermit {
    fn holding(permit: Option<OwnedSemaphorePermit>, limit: Duration) -> Self {
        let permit = Arc::new(Mutex::new(permit));
        let held = Arc::clone(&permit);
        let gives_back = tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            held.lock().unwrap_or_else(PoisonError::into_inner).take();
        });
        Self { permit, _gives_back: AbortOnDropHandle::new(gives_back) }
    }
}

impl Drop for StartPermit {
    fn drop(&mut self) {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The reports on a wait for a permit, each made once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::task) enum Queued {
    Begun,
    Long,
}

impl StartLimiter {
    pub(in crate::task) fn new(at_once: usize) -> Self {
        let at_once = at_once.clamp(1, Semaphore::MAX_PERMITS);
        Self { at_once, permits: Arc::new(Semaphore::new(at_once)) }
    }

    pub(in crate::task) fn at_once(&self) -> usize {
        self.at_once
    }

    /// Waits for a start permit, in FIFO order. `tell` is called if there is a wait; dropping the future leaves the
    /// queue.
    pub(in crate::task) async fn acquire(&self, tell: impl Fn(Queued)) -> StartPermit {
        StartPermit::holding(self.permit(LONG, tell).await, HELD_LIMIT)
    }

    async fn permit(&self, long: Duration, tell: impl Fn(Queued)) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        tell(Queued::Begun);
        let mut permit = std::pin::pin!(Arc::clone(&self.permits).acquire_owned());
        match tokio::time::timeout(long, permit.as_mut()).await {
            Ok(permit) => permit.ok(),
            Err(_) => {
                tell(Queued::Long);
                permit.await.ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn silent(wait: Queued) {
        assert_eq!(wait, Queued::Begun);
    }

    #[tokio::test]
    async fn start_permits_are_granted_in_order() {
        let limiter = StartLimiter::new(2);
        let first = limiter.acquire(silent).now_or_never().unwrap();
        let second = limiter.acquire(silent).now_or_never().unwrap();
        let mut third = Box::pin(limiter.acquire(silent));
        assert!(futures::poll!(third.as_mut()).is_pending());
        let mut fourth = Box::pin(limiter.acquire(silent));
        assert!(futures::poll!(fourth.as_mut()).is_pending());
        drop(second);
        assert!(futures::poll!(fourth.as_mut()).is_pending());
        // Nobody gets in between.
        assert!(limiter.acquire(silent).now_or_never().is_none());
        let third = third.now_or_never().unwrap();
        drop(first);
        assert!(fourth.now_or_never().is_some() && third.permit.lock().unwrap().is_some());
    }

    #[tokio::test]
    async fn a_start_permit_is_released_after_its_limit() {
        let limiter = StartLimiter::new(1);
        let held = StartPermit::holding(limiter.permit(LONG, silent).await, Duration::from_millis(20));
        let mut second = Box::pin(limiter.acquire(silent));
        assert!(futures::poll!(second.as_mut()).is_pending());
        let second = tokio::time::timeout(LONG, second).await.unwrap();
        drop(held);
        assert!(limiter.acquire(silent).now_or_never().is_none(), "it is given back once");
        drop(second);
        assert!(limiter.acquire(silent).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_cancelled_wait_takes_no_permit() {
        let limiter = StartLimiter::new(0);
        assert_eq!(limiter.at_once(), 1);
        let first = limiter.acquire(silent).await;
        let mut second = Box::pin(limiter.acquire(silent));
        assert!(futures::poll!(second.as_mut()).is_pending());
        let mut third = Box::pin(limiter.acquire(silent));
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(second);
        drop(first);
        assert!(third.now_or_never().is_some());
        assert!(limiter.acquire(silent).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_long_wait_for_a_permit_is_reported() {
        let limiter = StartLimiter::new(1);
        let first = limiter.acquire(silent).await;
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let tell = |wait| sender.send(wait).unwrap();
        let mut second = Box::pin(limiter.permit(Duration::from_millis(1), tell));
        for wait in [Queued::Begun, Queued::Long] {
            tokio::select! {
                _ = second.as_mut() => panic!("it is not its turn"),
                reported = receiver.recv() => assert_eq!(reported, Some(wait)),
            }
        }
        drop(first);
        assert!(second.await.is_some());
    }
}
