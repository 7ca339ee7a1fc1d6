//! The order of measurements: every target takes each step of an iteration before any target takes the next, and each time
//! another target is the first. Knows neither what a target nor what a step is.

/// Returns the order in which `targets` targets take a step of an iteration.
pub(crate) fn order(targets: usize, turn: u32, step: usize) -> impl Iterator<Item = usize> {
    let first = turn as usize + step;
    (0..targets).map(move |target| (target + first) % targets)
}

/// The end of a run: after this many iterations, or with the iteration during which the time runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    Turns(u32),
    Elapsed(std::time::Duration),
}

impl Until {
    pub(crate) fn is_over(self, turns: u32, elapsed: std::time::Duration) -> bool {
        match self {
            Self::Turns(all) => turns >= all,
            // At least one iteration is needed for a figure.
            Self::Elapsed(limit) => turns > 0 && elapsed >= limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_lane_comes_once_a_step_and_first_as_often_as_any_other() {
        let mut first = [0; 3];
        for turn in 0..6 {
            let mut targets: Vec<usize> = order(3, turn, 0).collect();
            first[targets[0]] += 1;
            targets.sort_unstable();
            assert_eq!(targets, [0, 1, 2]);
        }
        assert_eq!(first, [2, 2, 2]);
        assert_ne!(order(3, 0, 0).next(), order(3, 0, 1).next());
        assert_eq!(order(0, 5, 5).count(), 0);
    }

    #[test]
    fn a_run_ends_by_count_or_by_time_and_never_empty() {
        let second = Duration::from_secs(1);
        assert!(!Until::Turns(2).is_over(1, second * 100));
        assert!(Until::Turns(2).is_over(2, Duration::ZERO));
        assert!(!Until::Elapsed(second).is_over(0, second * 2));
        assert!(!Until::Elapsed(second).is_over(5, second / 2));
        assert!(Until::Elapsed(second).is_over(1, second));
    }
}
