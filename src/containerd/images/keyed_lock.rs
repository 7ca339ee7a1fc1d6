//! Fair mutexes by name, so that concurrent pulls do shared work once: whoever waited finds it done. Knows nothing of
//! the work. A mutex is locked through a pull's [`Observers`] only, which marks and bounds the wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::observers::Observers;
use super::wait::Wait;
use crate::image::ImageError;

#[derive(Default)]
/// The mutexes in use, by name.
pub(super) struct KeyedLocks {
    taken: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// The guard of a locked mutex.
pub(super) struct KeyGuard {
    _guard: OwnedMutexGuard<()>,
}

impl KeyedLocks {
    /// Locks the mutex of a name; callers get it in FIFO order.
    ///
    /// # Errors
    /// Nobody waits for the pull any more.
    pub(super) async fn acquire(
        &self,
        name: &str,
        wait: Wait,
        observers: &Observers,
    ) -> Result<KeyGuard, ImageError> {
        let guard = self.of(name).lock_owned();
        observers.wait_for(wait, guard).await.map(|guard| KeyGuard { _guard: guard })
    }

    /// Locks the mutex of a name if it is free.
    pub(super) fn try_acquire(&self, name: &str) -> Option<KeyGuard> {
        self.of(name).try_lock_owned().ok().map(|guard| KeyGuard { _guard: guard })
    }

    fn of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut taken = self.lock();
        if let Some(mutex) = taken.get(name).and_then(Weak::upgrade) {
            return mutex;
        }
        taken.retain(|_, mutex| mutex.strong_count() > 0);
        let mutex = Arc::default();
        taken.insert(name.to_owned(), Arc::downgrade(&mutex));
        mutex
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
    async fn locks_are_fair_per_key_and_independent() {
        let locks = KeyedLocks::default();
        let observers = Observers::until(tokio::time::Instant::now() + std::time::Duration::from_secs(600));
        let acquire = |name| locks.acquire(name, Wait::SameLayer, &observers);
        let first = acquire("a").await.unwrap();
        assert!(locks.try_acquire("a").is_none());
        assert!(locks.try_acquire("b").is_some());
        let mut second = Box::pin(acquire("a"));
        assert!(futures::poll!(second.as_mut()).is_pending());
        drop(first);
        drop(second.await.unwrap());
        assert!(locks.try_acquire("a").is_some());
        drop(acquire("c").await.unwrap());
        assert_eq!(locks.lock().len(), 1);
    }
}
