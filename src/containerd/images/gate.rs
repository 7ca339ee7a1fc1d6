//! How much is pulled at once: whole pulls and layers, each in the order in which they came; and the operator's other words
//! on pulls. Knows nothing of how a pull is done.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::super::Problem;

/// The operator's word on pulls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PullTerms {
    pub pulls_at_once: usize,
    /// Of all pulls together.
    pub layers_at_once: usize,
    /// A pull of which nothing comes for so long is given up.
    pub activity_timeout: Duration,
    /// The most bytes that an image's layers have in the registry.
    pub image_limit_bytes: Option<u64>,
    /// The most bytes that an image's layers take on the disk.
    pub unpacked_limit_bytes: Option<u64>,
}

pub(super) struct Gate {
    pub(super) terms: PullTerms,
    pulls: Arc<Semaphore>,
    layers: Arc<Semaphore>,
}

/// A place that is given back when it is dropped. None is one where nobody counts, which does not happen.
pub(super) type Place = Option<OwnedSemaphorePermit>;

impl Gate {
    pub(super) fn new(terms: PullTerms) -> Self {
        let semaphore = |places: usize| Arc::new(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)));
        Self { pulls: semaphore(terms.pulls_at_once), layers: semaphore(terms.layers_at_once), terms }
    }

    /// A place for a pull, after those who came before. Says when it has to be waited for.
    pub(super) async fn pull(&self, waits: impl FnOnce()) -> Place {
        if let Err(TryAcquireError::NoPermits) = self.pulls.try_acquire() {
            waits();
        }
        Arc::clone(&self.pulls).acquire_owned().await.ok()
    }

    /// A place for one layer's download, after those who came before.
    pub(super) async fn layer(&self) -> Place {
        Arc::clone(&self.layers).acquire_owned().await.ok()
    }

    /// # Errors
    /// The layers are larger than the operator lets them be.
    pub(super) fn check_image_size(&self, size_bytes: u64) -> Result<(), Problem> {
        within("its layers have", size_bytes, self.terms.image_limit_bytes, "max_image_size")
    }

    /// # Errors
    /// As [`Self::check_image_size`], unpacked.
    pub(super) fn check_unpacked_size(&self, size_bytes: u64) -> Result<(), Problem> {
        within("it unpacks to", size_bytes, self.terms.unpacked_limit_bytes, "max_unpacked_size")
    }
}

fn within(what: &str, size_bytes: u64, limit_bytes: Option<u64>, option: &str) -> Result<(), Problem> {
    match limit_bytes {
        Some(limit_bytes) if size_bytes > limit_bytes => Err(Problem::unsupported(format!(
            "{what} {size_bytes} bytes or more, and the plugin's option {option} allows {limit_bytes}"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_are_given_in_order() {
        let gate = Gate::new(PullTerms { pulls_at_once: 1, ..PullTerms::default() });
        let first = gate.pull(|| panic!("there is a place")).await;
        let mut waited = false;
        let mut second = Box::pin(gate.pull(|| waited = true));
        assert!(futures::poll!(second.as_mut()).is_pending());
        let mut third = Box::pin(gate.pull(|| {}));
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(first);
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(second.await);
        assert!(third.await.is_some() && waited);
    }

    #[test]
    fn a_size_is_held_against_the_operators_word() {
        let terms = PullTerms { image_limit_bytes: Some(5), ..PullTerms::default() };
        let gate = Gate::new(terms);
        assert!(gate.check_image_size(5).is_ok() && gate.check_unpacked_size(u64::MAX).is_ok());
        let error = gate.check_image_size(6).unwrap_err();
        assert!(error.to_string().contains("max_image_size") && !error.is_transient(), "{error}");
    }
}
