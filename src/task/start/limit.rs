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

pub(in crate::task) struct Queue {
    at_once: usize,
    places: Arc<Semaphore>,
}

/// A start permit, released on drop, or after a time limit.
pub(in crate::task) struct Turn {
    /// `None` once it is released, or if the semaphore were closed, which it never is.
    permit: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    _gives_back: AbortOnDropHandle<()>,
}

impl Turn {
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

impl Drop for Turn {
    fn drop(&mut self) {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The reports on a wait for a permit, each made once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::task) enum Wait {
    Begun,
    Long,
}

impl Queue {
    pub(in crate::task) fn new(at_once: usize) -> Self {
        let at_once = at_once.clamp(1, Semaphore::MAX_PERMITS);
        Self { at_once, places: Arc::new(Semaphore::new(at_once)) }
    }

    pub(in crate::task) fn at_once(&self) -> usize {
        self.at_once
    }

    /// Waits for a start permit, in FIFO order. `tell` is called if there is a wait; dropping the future leaves the
    /// queue.
    pub(in crate::task) async fn turn(&self, tell: impl Fn(Wait)) -> Turn {
        Turn::holding(self.permit(LONG, tell).await, HELD_LIMIT)
    }

    async fn permit(&self, long: Duration, tell: impl Fn(Wait)) -> Option<OwnedSemaphorePermit> {
        if let Ok(turn) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(turn);
        }
        tell(Wait::Begun);
        let mut turn = std::pin::pin!(Arc::clone(&self.places).acquire_owned());
        match tokio::time::timeout(long, turn.as_mut()).await {
            Ok(turn) => turn.ok(),
            Err(_) => {
                tell(Wait::Long);
                turn.await.ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn silent(wait: Wait) {
        assert_eq!(wait, Wait::Begun);
    }

    #[tokio::test]
    async fn turns_are_taken_in_the_order_in_which_they_were_asked_for() {
        let queue = Queue::new(2);
        let first = queue.turn(silent).now_or_never().unwrap();
        let second = queue.turn(silent).now_or_never().unwrap();
        let mut third = Box::pin(queue.turn(silent));
        assert!(futures::poll!(third.as_mut()).is_pending());
        let mut fourth = Box::pin(queue.turn(silent));
        assert!(futures::poll!(fourth.as_mut()).is_pending());
        drop(second);
        assert!(futures::poll!(fourth.as_mut()).is_pending());
        // Nobody gets in between.
        assert!(queue.turn(silent).now_or_never().is_none());
        let third = third.now_or_never().unwrap();
        drop(first);
        assert!(fourth.now_or_never().is_some() && third.permit.lock().unwrap().is_some());
    }

    #[tokio::test]
    async fn a_start_that_takes_long_keeps_nobody_waiting() {
        let queue = Queue::new(1);
        let held = Turn::holding(queue.permit(LONG, silent).await, Duration::from_millis(20));
        let mut second = Box::pin(queue.turn(silent));
        assert!(futures::poll!(second.as_mut()).is_pending());
        let second = tokio::time::timeout(LONG, second).await.unwrap();
        drop(held);
        assert!(queue.turn(silent).now_or_never().is_none(), "it is given back once");
        drop(second);
        assert!(queue.turn(silent).now_or_never().is_some());
    }

    #[tokio::test]
    async fn whoever_leaves_the_queue_takes_nobodys_turn() {
        let queue = Queue::new(0);
        assert_eq!(queue.at_once(), 1);
        let first = queue.turn(silent).await;
        let mut second = Box::pin(queue.turn(silent));
        assert!(futures::poll!(second.as_mut()).is_pending());
        let mut third = Box::pin(queue.turn(silent));
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(second);
        drop(first);
        assert!(third.now_or_never().is_some());
        assert!(queue.turn(silent).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_long_wait_is_told_of_and_goes_on() {
        let queue = Queue::new(1);
        let first = queue.turn(silent).await;
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let tell = |wait| tell.send(wait).unwrap();
        let mut second = Box::pin(queue.permit(Duration::from_millis(1), tell));
        for wait in [Wait::Begun, Wait::Long] {
            tokio::select! {
                _ = second.as_mut() => panic!("it is not its turn"),
                told = told.recv() => assert_eq!(told, Some(wait)),
            }
        }
        drop(first);
        assert!(second.await.is_some());
    }
}
