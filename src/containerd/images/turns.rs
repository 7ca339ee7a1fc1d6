//! Fair mutexes by name, so that concurrent pulls do shared work once: whoever waited finds it done. Knows nothing of
//! the work. A mutex is locked through a pull's [`Audience`] only, which marks and bounds the wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::audience::Audience;
use super::waits::Wait;
use crate::image::ImageError;

#[derive(Default)]
/// The mutexes in use, by name.
pub(super) struct Turns {
    taken: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// The guard of a locked mutex.
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl Turns {
    /// Locks the mutex of a name; callers get it in FIFO order.
    ///
    /// # Errors
    /// Nobody waits for the pull any more.
    pub(super) async fn take(&self, name: &str, wait: Wait, audience: &Audience) -> Result<Turn, ImageError> {
        let turn = self.of(name).lock_owned();
        audience.wait_for(wait, turn).await.map(|guard| Turn { _guard: guard })
    }

    /// Locks the mutex of a name if it is free.
    pub(super) fn try_take(&self, name: &str) -> Option<Turn> {
        self.of(name).try_lock_owned().ok().map(|guard| Turn { _guard: guard })
    }

    fn of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut taken = self.lock();
        if let Some(turn) = taken.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        taken.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        taken.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Locks the map of mutexes. No code that can panic runs under the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Weak<tokio::sync::Mutex<()>>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_has_its_turn_after_the_other_and_nobody_waits_for_another_name() {
        let turns = Turns::default();
        let audience = Audience::until(tokio::time::Instant::now() + std::time::Duration::from_secs(600));
        let take = |name| turns.take(name, Wait::SameLayer, &audience);
        let first = take("a").await.unwrap();
        assert!(turns.try_take("a").is_none());
        assert!(turns.try_take("b").is_some());
        let mut second = Box::pin(take("a"));
        assert!(futures::poll!(second.as_mut()).is_pending());
        drop(first);
        drop(second.await.unwrap());
        assert!(turns.try_take("a").is_some());
        drop(take("c").await.unwrap());
        assert_eq!(turns.lock().len(), 1);
    }
}
