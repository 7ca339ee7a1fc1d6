//! Aggregates the timelines that a driver has logged of its starts and teardowns: medians over the successful ones.
//! Failed calls are counted by whoever made them. Knows neither how the calls were made nor how figures are shown.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use harness::timeline::LoggedTimeline;

use super::report_data::{Key, Timeline, TimelineStep};
use super::samples::Conditions;
use super::statistics::Distribution;

const CALLS: [&str; 2] = ["start", "teardown"];

/// Returns a timeline for each kind of call that the driver has logged.
pub(crate) fn of(conditions: &Conditions, logged: &[LoggedTimeline]) -> Vec<Timeline> {
    let of_call = |call: &str| {
        let went_well = logged.iter().filter(|timeline| timeline.call == call && timeline.outcome == "done");
        timeline(conditions.key_of(call, 0), &went_well.collect::<Vec<_>>())
    };
    CALLS.into_iter().filter_map(of_call).collect()
}

fn timeline(key: Key, calls: &[&LoggedTimeline]) -> Option<Timeline> {
    let mut times: BTreeMap<&str, (Vec<u64>, Vec<u64>)> = BTreeMap::new();
    for (name, (begin_ms, length_ms)) in calls.iter().flat_map(|timeline| &timeline.steps) {
        let (begins, lengths) = times.entry(name).or_default();
        begins.push(in_ns(*begin_ms));
        lengths.push(in_ns(*length_ms));
    }
    let steps = times.into_iter().map(|(name, (begins, lengths))| {
        let lengths = Distribution::of(&lengths);
        Some(TimelineStep {
            name: name.to_owned(),
            count: lengths.count(),
            begin_ns: Distribution::of(&begins).percentile(0.5)?,
            length_ns: lengths.percentile(0.5)?,
            length_p90_ns: lengths.percentile(0.9)?,
        })
    });
    let mut steps = steps.collect::<Option<Vec<_>>>()?;
    // A step begins with its first part, but is longer: it comes before that part.
    steps.sort_by_key(|step| (step.begin_ns, Reverse(step.length_ns)));
    let median = |of: fn(&LoggedTimeline) -> u64| {
        let all: Vec<_> = calls.iter().map(|timeline| of(timeline)).collect();
        Distribution::of(&all).percentile(0.5)
    };
    Some(Timeline {
        key,
        count: calls.len(),
        total_ns: median(|timeline| in_ns(timeline.total_ms))?,
        containerd_calls: median(|timeline| timeline.containerd_calls)?,
        steps,
    })
}

fn in_ns(ms: f64) -> u64 {
    (ms * 1e6).round() as u64
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn logged(call: &str, outcome: &str, total_ms: f64, steps: &[(&str, f64, f64)]) -> LoggedTimeline {
        LoggedTimeline {
            call: call.to_owned(),
            container: "c".to_owned(),
            outcome: outcome.to_owned(),
            at: SystemTime::UNIX_EPOCH,
            total_ms,
            containerd_calls: total_ms as u64 / 10,
            steps: steps
                .iter()
                .map(|(name, begin, length)| ((*name).to_owned(), (*begin, *length)))
                .collect(),
        }
    }

    #[test]
    fn medians_are_of_those_that_went_well_and_steps_stand_in_the_order_of_their_begin() {
        let all = [
            logged(
                "start",
                "done",
                30.0,
                &[("image", 0.3, 1.0), ("shim", 2.0, 20.0), ("shim/exec", 2.0, 9.0)],
            ),
            logged(
                "start",
                "done",
                50.0,
                &[("image", 0.1, 3.0), ("shim", 4.0, 40.0), ("shim/exec", 4.0, 9.5)],
            ),
            logged("start", "done", 40.0, &[("image", 0.2, 2.0), ("cni", 0.4, 9.0), ("shim", 3.0, 30.0)]),
            logged("start", "failed", 900.0, &[("image", 0.2, 800.0)]),
            logged("teardown", "done", 10.0, &[]),
        ];
        let conditions = Conditions { setup: "here".to_owned(), path: "plugin", concurrency: 4, held: 0 };
        let timelines = of(&conditions, &all);
        let [start, teardown] = &*timelines else { panic!("{timelines:?}") };
        assert_eq!((&*start.key.call, start.key.concurrency, start.count), ("start", 4, 3));
        assert_eq!((start.total_ns, start.containerd_calls), (40_000_000, 4));
        let step = |name: &str, count, begin_ns, length_ns, length_p90_ns| TimelineStep {
            name: name.to_owned(),
            count,
            begin_ns,
            length_ns,
            length_p90_ns,
        };
        let expected = [
            step("image", 3, 200_000, 2_000_000, 3_000_000),
            step("cni", 1, 400_000, 9_000_000, 9_000_000),
            step("shim/exec", 2, 2_000_000, 9_000_000, 9_500_000),
            step("shim", 3, 3_000_000, 30_000_000, 40_000_000),
        ];
        assert_eq!(start.steps, expected);
        assert_eq!((&*teardown.key.call, teardown.count, teardown.steps.len()), ("teardown", 1, 0));
    }

    #[test]
    fn a_driver_that_says_nothing_has_none() {
        let conditions = Conditions { setup: "here".to_owned(), path: "plugin", concurrency: 1, held: 0 };
        assert_eq!(of(&conditions, &[]), []);
    }
}
