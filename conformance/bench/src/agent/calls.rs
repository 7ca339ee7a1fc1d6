//! The names of the calls that are measured under an agent, as they are in series, and what a turn brings of them.

use std::time::Duration;

use anyhow::{Error, anyhow};

use crate::report_data::Key;
use crate::samples::Samples;

/// From the event Task Setup to the first write of the task's process.
pub(crate) const FIRST_WRITE: &str = "first-write";
/// A start by this driver's own timeline.
pub(crate) const TIMELINE: &str = "start-by-timeline";
/// An exec of `true` by the agent's HTTP API, or one by a runtime's command line.
pub(crate) const EXEC: &str = "exec";
/// An exec with much output by the agent's HTTP API.
pub(crate) const OUTPUT: &str = "exec-output";
/// From the request to stop to the exit of a process that heeds SIGTERM.
pub(crate) const EXIT: &str = "stop-exit";
/// From the request to stop until the task is removed.
pub(crate) const REMOVAL: &str = "stop-removal";
/// From the signal to write much output until all of it is in log files.
pub(crate) const LOGS: &str = "logs";
/// The runtime's commands `create` and `start`, both together, and `delete`.
pub(crate) const CREATE: &str = "create";
pub(crate) const START: &str = "start";
pub(crate) const CREATE_AND_START: &str = "create-and-start";
pub(crate) const DELETE: &str = "delete";

/// Number of execs in each single task and container.
pub(crate) const EXECS: usize = 3;

/// The times of a turn: each call by its name, in the order in which they were made.
pub(crate) type Times = Vec<(&'static str, Duration)>;

/// The times of a turn as far as it came, and why it came no further.
pub(crate) struct Turn {
    pub(crate) times: Times,
    pub(crate) error: Option<Error>,
}

/// Records each of the calls that a turn of a round was to make: those that it made with their times, and all others as
/// failed. A call may be among them several times.
pub(crate) fn record(
    samples: &mut Samples,
    key: impl Fn(&str) -> Key,
    calls: &[&'static str],
    round: u32,
    Turn { times, error }: &Turn,
) {
    let count = |calls: &[&str], call: &str| calls.iter().filter(|other| **other == call).count();
    for (place, call) in calls.iter().enumerate() {
        let nth = count(&calls[..place], call);
        let took = times.iter().filter(|(made, _)| made == call).nth(nth).map(|(_, took)| *took);
        let turn = round as usize * count(calls, call) + nth;
        let outcome = took.ok_or_else(|| match error {
            Some(error) => anyhow!("{error:#}"),
            None => anyhow!("it has no time"),
        });
        samples.record(key(call), u32::try_from(turn).unwrap_or(u32::MAX), outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::Conditions;

    const CALLS: [&str; 4] = [FIRST_WRITE, EXEC, EXEC, EXIT];

    #[test]
    fn what_was_measured_before_a_failure_is_kept_and_the_rest_has_failed() {
        let here = Conditions { setup: "a".to_owned(), path: "agent", concurrency: 1, held: 0 };
        let ms = Duration::from_millis;
        let all = vec![(FIRST_WRITE, ms(5)), (EXEC, ms(1)), (EXEC, ms(2)), (EXIT, ms(3))];
        let mut samples = Samples::default();
        let mut record = |round, times: &[_], error| {
            let turn = Turn { times: times.to_vec(), error };
            record(&mut samples, |call| here.key_of(call, 0), &CALLS, round, &turn);
        };
        record(0, &all, None);
        record(1, &all[..2], Some(anyhow!("refused")));
        record(2, &all, None);
        record(3, &all[..3], None);
        let series = samples.into_series();
        let [first, exec, exit] = &*series else { panic!("{series:?}") };
        assert_eq!((first.samples_ns.len(), first.failures.len()), (4, 0));
        assert_eq!(exec.samples_ns.len(), 7);
        let turns = |failures: &[crate::report_data::Failure]| {
            failures.iter().map(|failure| (failure.turn, failure.error.clone())).collect::<Vec<_>>()
        };
        assert_eq!(turns(&exec.failures), [(3, "refused".to_owned())]);
        assert_eq!(turns(&exit.failures), [(1, "refused".to_owned()), (3, "it has no time".to_owned())]);
    }
}
