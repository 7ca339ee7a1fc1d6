//! What a container is that is found on disk or in containerd, and whose id no call has: whose it is to take down.

use std::time::{Duration, SystemTime};

use crate::shim::Bundle;

/// The remains of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::task) enum Remains {
    /// The bundle is gone; a lease may be left.
    NoBundle,
    /// A bundle that is marked for removal, or whose making or removal was cut off.
    Doomed,
    /// The bundle of a task that was started: one to recover, or an orphan. `created_at` is `None` where nothing tells
    /// it.
    Complete { created_at: Option<SystemTime> },
}

impl Remains {
    /// Looks at a bundle. Blocking: not for an async thread.
    pub(in crate::task) fn look(bundle: &Bundle) -> Self {
        if !bundle.exists() {
            Self::NoBundle
        } else if bundle.is_marked_for_removal() {
            Self::Doomed
        } else {
            Self::Complete { created_at: bundle.created_at() }
        }
    }

    /// Returns whether the sweeper takes it down, however old it is: no call will ever come back for it.
    pub(in crate::task) fn is_left_over(self) -> bool {
        matches!(self, Self::NoBundle | Self::Doomed)
    }

    /// Returns whether it is an orphan at the time `now` once the agent has settled: older than `grace`, and complete.
    pub(in crate::task) fn is_orphan(self, now: SystemTime, grace: Duration) -> bool {
        match self {
            Self::NoBundle | Self::Doomed => false,
            Self::Complete { created_at } => {
                created_at.is_some_and(|made| now.duration_since(made).unwrap_or_default() >= grace)
            }
        }
    }
}

/// Returns whether the agent has been there for the time `grace` without a recovery, by how long it has settled.
pub(in crate::task) fn has_settled(settled: Option<Duration>, grace: Duration) -> bool {
    settled.is_some_and(|settled| settled >= grace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(300);

    #[test]
    fn a_container_is_the_sweepers_or_the_agents_and_an_orphan_only_when_old() {
        let now = SystemTime::UNIX_EPOCH + GRACE * 10;
        let made = |ago| Remains::Complete { created_at: Some(now - ago) };
        assert!(Remains::NoBundle.is_left_over() && Remains::Doomed.is_left_over());
        assert!(!Remains::Doomed.is_orphan(now, Duration::ZERO));
        assert!(made(GRACE).is_orphan(now, GRACE) && !made(GRACE).is_left_over());
        assert!(!made(GRACE / 2).is_orphan(now, GRACE));
        assert!(
            !Remains::Complete { created_at: Some(now + GRACE) }.is_orphan(now, GRACE),
            "the clock went back"
        );
    }

    #[test]
    fn an_agent_that_is_away_or_new_makes_no_orphans() {
        assert!(has_settled(Some(GRACE), GRACE));
        assert!(!has_settled(Some(GRACE / 2), GRACE) && !has_settled(None, Duration::ZERO));
    }
}
