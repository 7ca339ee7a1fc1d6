//! An LRU cache for facts that never change, with a maximum number of entries. It only saves work: a forgotten fact can
//! be found out again. The caller bounds the size of each value.

use std::borrow::Borrow;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Maximum number of values in one cache.
const LIMIT: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Cached values by their keys.
pub(crate) struct Cache<K: Hash + Eq, V>(Mutex<LruCache<K, V>>);

impl<K: Hash + Eq, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(LIMIT)))
    }
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.lock().get(key).cloned()
    }

    pub(crate) fn put(&self, key: K, value: V) {
        self.lock().put(key, value);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_entry_is_evicted() {
        let cache = Cache::default();
        cache.put("first".to_owned(), 0);
        for number in 0..LIMIT.get() {
            cache.put(number.to_string(), number);
            assert_eq!(cache.get("0"), Some(0));
        }
        assert_eq!((cache.get("first"), cache.get("255")), (None, Some(255)));
    }
}
