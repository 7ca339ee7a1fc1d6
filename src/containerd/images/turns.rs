//! Who does what several may want: by its name, one at a time and in the order in which they came. Whoever comes later
//! finds it done. Knows nothing of what is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

#[derive(Default)]
pub(super) struct Turns {
    taken: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// Held by whose turn it is.
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl Turns {
    pub(super) async fn take(&self, name: &str) -> Turn {
        Turn { _guard: self.of(name).lock_owned().await }
    }

    /// None where it is another's turn.
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

    /// No code that can panic runs under it.
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
        let first = turns.take("a").await;
        assert!(turns.try_take("a").is_none());
        assert!(turns.try_take("b").is_some());
        let mut second = Box::pin(turns.take("a"));
        assert!(futures::poll!(second.as_mut()).is_pending());
        drop(first);
        drop(second.await);
        assert!(turns.try_take("a").is_some());
        drop(turns.take("c").await);
        assert_eq!(turns.lock().len(), 1);
    }
}
