//! How the cost of one task grows with the number of tasks, and from which number on. Knows what was measured, not
//! how.

use std::collections::{BTreeMap, BTreeSet};

use super::report_data::ScalePoint;
use super::statistics::Distribution;

/// Threshold of the knee: the factor by which the start of a task is slower than with the best smaller count.
pub(crate) const KNEE: f64 = 1.25;

/// The cost of one task when this many tasks run at a time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PerTask {
    pub(crate) tasks: u32,
    /// Time of the start storm divided by the number of tasks that it started, in nanoseconds. Less than the start
    /// time of one task, since several starts run concurrently.
    pub(crate) start_ns: Option<f64>,
    pub(crate) stop_ns: Option<f64>,
    /// `None` where it wasn't measured, as `memory_bytes`.
    pub(crate) steady_cpu_ns_per_second: Option<f64>,
    pub(crate) memory_bytes: Option<f64>,
}

impl PerTask {
    pub(crate) fn of(point: &ScalePoint) -> Self {
        let share = |storm_ns: u64, answered: &[u64]| {
            (!answered.is_empty() && storm_ns > 0).then(|| storm_ns as f64 / answered.len() as f64)
        };
        Self {
            tasks: point.tasks,
            start_ns: share(point.start_storm_ns, &point.start_ns),
            stop_ns: share(point.stop_storm_ns, &point.stop_ns),
            steady_cpu_ns_per_second: sum(&point.steady_cpu_ns_per_task_second),
            memory_bytes: sum(&point.memory_bytes).map(|bytes| bytes / f64::from(point.tasks.max(1))),
        }
    }
}

fn sum(parts: &BTreeMap<String, u64>) -> Option<f64> {
    (!parts.is_empty()).then(|| parts.values().sum::<u64>() as f64)
}

/// Merges the points of a setup, path and kind that have the same number of tasks, one of each round: the medians of the
/// values of those without a failure, and the samples and failures of all. Without such a point, there are no values.
pub(crate) fn merged(points: &[ScalePoint]) -> Vec<ScalePoint> {
    let mut groups: Vec<Vec<&ScalePoint>> = Vec::new();
    for point in points {
        let of = |point: &ScalePoint| (point.setup.clone(), point.path.clone(), point.kind, point.tasks);
        match groups.iter_mut().find(|group| of(group[0]) == of(point)) {
            Some(group) => group.push(point),
            None => groups.push(vec![point]),
        }
    }
    groups.iter().map(|group| merged_group(group)).collect()
}

fn merged_group(group: &[&ScalePoint]) -> ScalePoint {
    let all = |samples: fn(&ScalePoint) -> &Vec<u64>| {
        group.iter().flat_map(|point| samples(point)).copied().collect::<Vec<_>>()
    };
    let whole: Vec<&ScalePoint> = group.iter().copied().filter(|point| point.is_whole()).collect();
    let median = |values: Vec<u64>| Distribution::of(&values).percentile(0.5).unwrap_or_default();
    let storm = |of: fn(&ScalePoint) -> u64| median(whole.iter().map(|point| of(point)).collect());
    let parts = |of: fn(&ScalePoint) -> &BTreeMap<String, u64>| {
        let names: BTreeSet<&String> = whole.iter().flat_map(|point| of(point).keys()).collect();
        let value =
            |name: &String| median(whole.iter().filter_map(|point| of(point).get(name).copied()).collect());
        names.into_iter().map(|name| (name.clone(), value(name))).collect()
    };
    ScalePoint {
        start_ns: all(|point| &point.start_ns),
        stop_ns: all(|point| &point.stop_ns),
        exec_ns: all(|point| &point.exec_ns),
        start_storm_ns: storm(|point| point.start_storm_ns),
        stop_storm_ns: storm(|point| point.stop_storm_ns),
        failures: group.iter().flat_map(|point| point.failures.clone()).collect(),
        steady_cpu_ns_per_task_second: parts(|point| &point.steady_cpu_ns_per_task_second),
        memory_bytes: parts(|point| &point.memory_bytes),
        anonymous_bytes: parts(|point| &point.anonymous_bytes),
        ..group[0].clone()
    }
}

/// Groups points by setup and path, and sorts each group by the number of tasks. Of two kinds with as many, the one of
/// tasks at rest is taken.
pub(crate) fn lines<'a>(points: &[&'a ScalePoint]) -> Vec<Vec<&'a ScalePoint>> {
    let mut lines: Vec<Vec<&ScalePoint>> = Vec::new();
    for point in points {
        let is_its =
            |line: &&mut Vec<&ScalePoint>| line[0].setup == point.setup && line[0].path == point.path;
        match lines.iter_mut().find(is_its) {
            Some(line) => line.push(point),
            None => lines.push(vec![point]),
        }
    }
    for line in &mut lines {
        line.sort_by_key(|point| (point.tasks, point.kind));
        line.dedup_by_key(|point| point.tasks);
    }
    lines
}

/// Returns the first count of tasks, in ascending order, at which the start of a task exceeds [`KNEE`] times the best
/// before. `None` if there is none.
pub(crate) fn knee(line: &[PerTask]) -> Option<u32> {
    let mut best = f64::INFINITY;
    for (each, start_ns) in line.iter().filter_map(|each| Some((each, each.start_ns?))) {
        if start_ns > best * KNEE {
            return Some(each.tasks);
        }
        best = best.min(start_ns);
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report_data::{Failure, PointKind};

    pub(crate) fn point(path: &str, tasks: u32, start_storm_ns: u64) -> ScalePoint {
        let all = vec![1_000_000; tasks as usize];
        ScalePoint {
            kind: PointKind::Rest,
            setup: "here".to_owned(),
            path: path.to_owned(),
            tasks,
            start_ns: all.clone(),
            stop_ns: all,
            exec_ns: Vec::new(),
            start_storm_ns,
            stop_storm_ns: start_storm_ns,
            failures: Vec::new(),
            steady_cpu_ns_per_task_second: [("shims".to_owned(), 30), ("daemon".to_owned(), 12)].into(),
            memory_bytes: [("shims".to_owned(), u64::from(tasks) * 100), ("daemon".to_owned(), 1000)].into(),
            anonymous_bytes: BTreeMap::new(),
        }
    }

    fn knee_of(storms: &[(u32, u64)]) -> Option<u32> {
        let line: Vec<_> =
            storms.iter().map(|(tasks, ns)| PerTask::of(&point("direct", *tasks, *ns))).collect();
        knee(&line)
    }

    #[test]
    fn the_knee_is_where_a_task_takes_a_quarter_more_than_the_best() {
        assert_eq!(knee_of(&[(1, 100), (10, 600), (50, 3_500), (100, 7_600), (200, 20_000)]), Some(100));
        assert_eq!(knee_of(&[(1, 100), (10, 600), (100, 7_000)]), None, "ten more per cent are none");
        assert_eq!(knee_of(&[(1, 100), (10, 2_000)]), Some(10));
        assert_eq!(knee_of(&[]), None);
    }

    #[test]
    fn a_task_that_did_not_come_up_shares_nothing() {
        let mut failing = point("direct", 4, 400);
        failing.start_ns.truncate(2);
        failing.failures.push(Failure { turn: 2, error: "refused".to_owned() });
        assert_eq!(PerTask::of(&failing).start_ns, Some(200.0));
        failing.start_ns.clear();
        assert_eq!(PerTask::of(&failing).start_ns, None);
        let each = PerTask::of(&failing);
        assert_eq!((each.steady_cpu_ns_per_second, each.memory_bytes), (Some(42.0), Some(350.0)));
    }

    #[test]
    fn the_points_of_all_rounds_are_one_with_their_medians() {
        let mut rounds = [point("direct", 10, 300), point("direct", 10, 100), point("direct", 10, 200)];
        rounds[1].memory_bytes.clear();
        rounds[2].failures.push(Failure { turn: 2, error: "refused".to_owned() });
        let merged = merged(&[&rounds[..], &[point("plugin", 10, 7)]].concat());
        let [direct, plugin] = &*merged else { panic!("{merged:?}") };
        assert_eq!((direct.start_storm_ns, direct.start_ns.len(), direct.failures.len()), (100, 30, 1));
        assert_eq!((direct.memory_bytes["shims"], plugin.start_storm_ns), (1000, 7));
    }

    #[test]
    fn points_with_failures_have_no_figures_and_those_of_another_kind_are_apart() {
        let mut failing = point("direct", 10, 300);
        failing.failures.push(Failure { turn: 2, error: "refused".to_owned() });
        let flood = ScalePoint { kind: PointKind::Flood, ..point("direct", 10, 5) };
        let merged = merged(&[failing, flood]);
        let [rest, flood] = &*merged else { panic!("{merged:?}") };
        assert_eq!((rest.start_storm_ns, rest.failures.len(), flood.start_storm_ns), (0, 1, 5));
        let each = PerTask::of(rest);
        assert_eq!((each.start_ns, each.steady_cpu_ns_per_second, each.memory_bytes), (None, None, None));
        let lines = lines(&merged.iter().collect::<Vec<_>>());
        assert_eq!(lines[0].iter().map(|point| point.kind).collect::<Vec<_>>(), [PointKind::Rest]);
    }

    #[test]
    fn points_of_a_path_are_a_line_by_their_counts() {
        let points = [point("direct", 10, 1), point("plugin", 1, 1), point("direct", 1, 1)];
        let lines = lines(&points.iter().collect::<Vec<_>>());
        let counts: Vec<Vec<u32>> =
            lines.iter().map(|line| line.iter().map(|point| point.tasks).collect()).collect();
        assert_eq!(counts, [vec![1, 10], vec![1]]);
    }
}
