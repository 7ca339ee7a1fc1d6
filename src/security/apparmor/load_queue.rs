//! Lets one start at a time load a profile. Others wait for a bounded time, and get the failure of the load that they have
//! waited for: a parser that hangs is not waited for once for each task.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::security::ConfinementError;

/// Maximum time to wait for other loads. One takes less: looks at two file systems, and the parser.
const LIMIT: Duration = Duration::from_secs(100);

/// A failure that others share.
#[derive(Debug, Clone)]
struct Failure {
    why: String,
    transient: bool,
}

/// The loads under way.
#[derive(Debug)]
pub(super) struct LoadQueue {
    free: Semaphore,
    /// Number of loads that have failed, and the last one's failure.
    failed: Mutex<(u64, Option<Failure>)>,
}

impl LoadQueue {
    pub(super) const fn new() -> Self {
        Self { free: Semaphore::const_new(1), failed: Mutex::new((0, None)) }
    }

    /// Runs a load by `program` when no other one is under way.
    ///
    /// # Errors
    /// The load's, that of another one that has failed meanwhile, or a transient one if others take too long.
    pub(super) async fn run(
        &self,
        program: &Path,
        load: impl Future<Output = Result<(), ConfinementError>>,
    ) -> Result<(), ConfinementError> {
        let failed = |Failure { why, transient }| {
            Err(ConfinementError::AppArmor { program: program.to_owned(), why, transient })
        };
        let (failed_before, _) = self.failures();
        let Ok(_permit) = tokio::time::timeout(LIMIT, self.free.acquire()).await else {
            let why = format!("other starts have kept it busy for {} s", LIMIT.as_secs());
            return failed(Failure { why, transient: true });
        };
        match self.failures() {
            (number, Some(failure)) if number != failed_before => return failed(failure),
            _ => {}
        }
        let loaded = load.await;
        if let Err(ConfinementError::AppArmor { why, transient, .. }) = &loaded {
            let failure = Failure { why: why.clone(), transient: *transient };
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            *failed = (failed.0 + 1, Some(failure));
        }
        loaded
    }

    fn failures(&self) -> (u64, Option<Failure>) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const PARSER: &str = "/sbin/apparmor_parser";

    /// Runs three loads at once, of which each ends so, and returns their outcomes and the number that ran.
    async fn three_at_once(fails: bool) -> (Vec<Result<(), ConfinementError>>, usize) {
        let (queue, ran) = (LoadQueue::new(), AtomicUsize::new(0));
        let load = async || {
            ran.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            if !fails {
                return Ok(());
            }
            let why = "it hangs".to_owned();
            Err(ConfinementError::AppArmor { program: PARSER.into(), why, transient: true })
        };
        let run = || queue.run(Path::new(PARSER), load());
        let (first, second, third) = tokio::join!(run(), run(), run());
        (vec![first, second, third], ran.into_inner())
    }

    #[tokio::test]
    async fn who_waits_for_a_permit_gets_the_failure_of_the_one_before() {
        let (outcomes, ran) = three_at_once(true).await;
        assert_eq!(ran, 1);
        for outcome in outcomes {
            let error = outcome.unwrap_err();
            assert!(error.to_string().contains("it hangs"), "{error}");
            assert!(matches!(error, ConfinementError::AppArmor { transient: true, .. }), "{error:?}");
        }
        let (outcomes, ran) = three_at_once(false).await;
        assert!(outcomes.iter().all(Result::is_ok) && ran == 3, "each looks whether it is there by now");
    }

    #[tokio::test]
    async fn a_failure_is_not_that_of_a_later_load() {
        let queue = LoadQueue::new();
        let failure =
            || ConfinementError::AppArmor { program: PARSER.into(), why: String::new(), transient: false };
        queue.run(Path::new(PARSER), async { Err(failure()) }).await.unwrap_err();
        queue.run(Path::new(PARSER), async { Ok(()) }).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn no_permit_in_time_is_transient() {
        let queue = LoadQueue::new();
        let held = queue.free.acquire().await.unwrap();
        let error = queue.run(Path::new(PARSER), async { Ok(()) }).await.unwrap_err();
        assert!(matches!(error, ConfinementError::AppArmor { transient: true, .. }), "{error:?}");
        drop(held);
        queue.run(Path::new(PARSER), async { Ok(()) }).await.unwrap();
    }
}
