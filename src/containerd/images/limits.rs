//! Limits on concurrent pulls and layer downloads, each in FIFO order, and the operator's other settings for pulls.
//! Knows nothing of how a pull is done. A permit is acquired through a pull's [`Observers`] only, which marks and
//! bounds the wait.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::Error;
use super::observers::Observers;
use super::wait::Wait;
use crate::image::{ImageError, too_large};

/// Maximum time that a permit is held until a registry's answer begins. A registry that asks to be left alone for a
/// while, or hangs, holds up nobody for longer.
const ANSWERS: Duration = Duration::from_secs(2);
/// Minimum of [`PullLimits::idle`], however short the operator's timeout: a busy registry is not asked again sooner.
const LEAST_IDLE: Duration = Duration::from_secs(5);

/// The operator's settings for pulls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PullSettings {
    /// Maximum number of concurrent pulls.
    pub pulls_at_once: usize,
    /// Maximum number of concurrent layer downloads, of all pulls together.
    pub layers_at_once: usize,
    /// Time without progress after which a pull fails.
    pub activity_timeout: Duration,
    /// Maximum size of an image's layers in the registry.
    pub image_limit_bytes: Option<u64>,
    /// Maximum size of an image's layers on the disk.
    pub unpacked_limit_bytes: Option<u64>,
}

/// The limits on concurrent pulls, and the settings for all pulls.
pub(super) struct PullLimits {
    pub(super) settings: PullSettings,
    /// The limit on whole pulls.
    pub(super) pulls: Limit,
    /// The limit on downloads of one layer each.
    pub(super) layers: Limit,
}

/// A permit, released on drop. `None` only if the semaphore were closed, which it never is.
pub(super) type Permit = Option<OwnedSemaphorePermit>;

/// A limit on concurrency, in FIFO order.
pub(super) struct Limit {
    semaphore: Arc<Semaphore>,
    wait: Wait,
}

/// A registry's answer that has begun, with the permit for reading it.
pub(super) struct Answered<T> {
    pub answer: T,
    pub permit: Permit,
    /// Set if the answer had to wait for the permit: the registry may have closed the connection meanwhile.
    pub was_kept_waiting: bool,
}

impl Limit {
    fn new(places: usize, wait: Wait) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(places)), wait }
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// Nobody waits for the pull any more.
    pub(super) async fn permit(&self, observers: &Observers) -> Result<Permit, ImageError> {
        let permit = Arc::clone(&self.semaphore).acquire_owned();
        observers.wait_for(self.wait.clone(), permit).await.map(Result::ok)
    }

    /// Asks a registry under a permit, which is released while its answer takes long to begin, and acquired again then.
    ///
    /// # Errors
    /// The question's errors, and those of [`Self::permit`].
    pub(super) async fn answered<T>(
        &self,
        observers: &Observers,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<Answered<T>, Error> {
        let permit =
            || async { self.permit(observers).await.map_err(|error| error.during("wait for a pull slot")) };
        let held = permit().await?;
        let mut question = pin!(question);
        if let Ok(answer) = tokio::time::timeout(ANSWERS, question.as_mut()).await {
            return Ok(Answered { answer: answer?, permit: held, was_kept_waiting: false });
        }
        drop(held);
        let answer = question.await?;
        Ok(Answered { answer, permit: permit().await?, was_kept_waiting: true })
    }
}

impl PullLimits {
    pub(super) fn new(settings: PullSettings) -> Self {
        let most = |places: usize| places.clamp(1, Semaphore::MAX_PERMITS);
        let (pulls, layers) = (most(settings.pulls_at_once), most(settings.layers_at_once));
        Self {
            pulls: Limit::new(pulls, Wait::PullPermit { at_once: pulls }),
            layers: Limit::new(layers, Wait::LayerPermit { at_once: layers }),
            settings,
        }
    }

    /// Returns how long a host may send nothing in the middle of a body before it is asked anew, or, where there is
    /// another host, that one is asked. A longer silence is a stall of the pull.
    pub(super) fn idle(&self) -> Duration {
        (self.settings.activity_timeout / 4).max(LEAST_IDLE)
    }

    /// Checks the size of an image's layers in the registry.
    ///
    /// # Errors
    /// The layers are larger than the operator allows.
    pub(super) fn check_image_size(&self, size_bytes: u64) -> Result<(), ImageError> {
        within("its layers have", size_bytes, self.settings.image_limit_bytes, "max_image_size")
    }

    /// Checks the size of an image's layers on the disk.
    ///
    /// # Errors
    /// The unpacked layers are larger than the operator allows.
    pub(super) fn check_unpacked_size(&self, size_bytes: u64) -> Result<(), ImageError> {
        within("it unpacks to", size_bytes, self.settings.unpacked_limit_bytes, "max_unpacked_size")
    }
}

fn within(what: &str, size_bytes: u64, limit_bytes: Option<u64>, option: &str) -> Result<(), ImageError> {
    match limit_bytes {
        Some(limit_bytes) if size_bytes > limit_bytes => {
            Err(too_large(what, size_bytes, limit_bytes, option))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patient() -> Observers {
        Observers::until(tokio::time::Instant::now() + Duration::from_secs(600))
    }

    #[tokio::test]
    async fn permits_are_granted_in_order() {
        let limits = PullLimits::new(PullSettings { pulls_at_once: 1, ..PullSettings::default() });
        let observers = patient();
        let first = limits.pulls.permit(&observers).await.unwrap();
        let mut second = Box::pin(limits.pulls.permit(&observers));
        assert!(futures::poll!(second.as_mut()).is_pending());
        assert_eq!(observers.waits().subjects(), [Wait::PullPermit { at_once: 1 }]);
        let mut third = Box::pin(limits.pulls.permit(&observers));
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(first);
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(second.await.unwrap());
        assert!(third.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_slow_registry_does_not_hold_a_permit() {
        let limits = PullLimits::new(PullSettings { layers_at_once: 1, ..PullSettings::default() });
        let observers = patient();
        let begun = tokio::time::Instant::now();
        let slow = async {
            tokio::time::sleep(ANSWERS * 2).await;
            Ok(())
        };
        let slow = limits.layers.answered(&observers, slow);
        let other = async {
            tokio::task::yield_now().await;
            let answered = limits.layers.answered(&observers, async { Ok(()) }).await.unwrap();
            (begun.elapsed(), answered.was_kept_waiting)
        };
        let (slow, (took, was_kept_waiting)) = tokio::join!(slow, other);
        assert!(!was_kept_waiting && took < ANSWERS * 2, "{took:?}");
        assert!(slow.unwrap().was_kept_waiting);
    }

    #[test]
    fn image_sizes_are_checked_against_the_options() {
        let settings = PullSettings { image_limit_bytes: Some(5), ..PullSettings::default() };
        let limits = PullLimits::new(settings);
        assert!(limits.check_image_size(5).is_ok() && limits.check_unpacked_size(u64::MAX).is_ok());
        let error = limits.check_image_size(6).unwrap_err();
        assert!(error.to_string().contains("max_image_size") && !error.is_transient(), "{error}");
    }
}
