//! The data of a report, as it is written to and read from a file: series of samples, each with the conditions that it
//! was taken under. Knows neither how a call is made nor how a figure is shown.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Version of the report format. Incremented when a reader of the older format would misread the newer one.
pub(crate) const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) format: u32,
    /// Time of the run, RFC 3339, UTC.
    pub(crate) made_at: String,
    pub(crate) machine: Machine,
    pub(crate) setups: Vec<Setup>,
    pub(crate) settings: Settings,
    pub(crate) series: Vec<Series>,
    #[serde(default)]
    pub(crate) scale: Vec<ScalePoint>,
    #[serde(default)]
    pub(crate) timelines: Vec<Timeline>,
    pub(crate) not_measured: Vec<NotMeasured>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// Version of control groups: "v1", "v1, hybrid", or "v2".
    pub(crate) cgroups: String,
    pub(crate) distribution: String,
    /// Content of `/proc/loadavg` before the first call.
    pub(crate) load_before: String,
}

/// The setup that calls were made on: one shim with one runtime under one containerd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Name of the setup in series, such as `1.6+runc`.
    pub(crate) name: String,
    /// Path and version of each part, as the program prints it. Keys are `containerd`, `shim`, `runtime`, `plugin`.
    pub(crate) parts: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) iterations: u32,
    pub(crate) warm_up: u32,
    /// Duration of the measured iterations, if that rather than their number ended the run.
    pub(crate) duration_ms: Option<u64>,
    /// What else a run was: its arguments, its programs' hashes, and whatever else its figures depend on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) details: BTreeMap<String, String>,
}

/// The key of a series: the conditions that its samples were taken under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) setup: String,
    /// Name of the path: `direct`, `daemon`, `cli`, `plugin`, `agent`.
    pub(crate) path: String,
    /// Name of the call, such as `create`, `exec-first-byte`.
    pub(crate) call: String,
    /// Number of concurrent calls.
    pub(crate) concurrency: u32,
    /// Size of the call's payload, for calls that have one.
    pub(crate) payload_bytes: u64,
    /// Number of other tasks that run meanwhile.
    pub(crate) held: u32,
}

/// The results of all calls of one kind. A failed call has no time, and is never left out of the count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    #[serde(flatten)]
    pub(crate) key: Key,
    /// Times of the successful calls, in the order in which they were made.
    pub(crate) samples_ns: Vec<u64>,
    pub(crate) failures: Vec<Failure>,
    /// Cost of the calls, if it could be measured.
    pub(crate) cost: Option<Cost>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The iteration in which the call failed, counted from 0.
    pub(crate) turn: u32,
    pub(crate) error: String,
}

/// CPU time and memory that the calls of a series cost, by consumer: `plugin`, `shims`, `daemon`, `runtime`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) cpu_ns_per_call: BTreeMap<String, u64>,
    /// Resident set size after the last call.
    pub(crate) resident_bytes: BTreeMap<String, u64>,
    /// Proportional set size after the last call: pages that several processes share are divided among them.
    #[serde(default)]
    pub(crate) proportional_bytes: BTreeMap<String, u64>,
}

/// What many tasks are started for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PointKind {
    /// CPU time and memory while they run, besides their starts and stops.
    #[default]
    Rest,
    /// Their starts and stops alone.
    Flood,
}

/// The cost of this many concurrent tasks, by one path on one setup. A count may have several, one of each round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScalePoint {
    #[serde(default)]
    pub(crate) kind: PointKind,
    pub(crate) setup: String,
    pub(crate) path: String,
    pub(crate) tasks: u32,
    /// Time from the first request of the storm to the answer, for each task.
    pub(crate) start_ns: Vec<u64>,
    pub(crate) stop_ns: Vec<u64>,
    /// Times of execs made while other tasks were starting.
    pub(crate) exec_ns: Vec<u64>,
    /// Time from the first request to the last answer.
    pub(crate) start_storm_ns: u64,
    pub(crate) stop_storm_ns: u64,
    pub(crate) failures: Vec<Failure>,
    /// CPU time per task and second of all processes that take part, while each task's statistics are read every
    /// second, by consumer.
    pub(crate) steady_cpu_ns_per_task_second: BTreeMap<String, u64>,
    /// Proportional set size while the tasks ran, by consumer.
    pub(crate) memory_bytes: BTreeMap<String, u64>,
    /// The part of it that no file has, by consumer. Empty where it wasn't measured.
    #[serde(default)]
    pub(crate) anonymous_bytes: BTreeMap<String, u64>,
}

impl ScalePoint {
    /// Returns a point without anything measured.
    pub(crate) fn empty(kind: PointKind, setup: &str, path: &str, tasks: u32) -> Self {
        Self {
            kind,
            setup: setup.to_owned(),
            path: path.to_owned(),
            tasks,
            start_ns: Vec::new(),
            stop_ns: Vec::new(),
            exec_ns: Vec::new(),
            start_storm_ns: 0,
            stop_storm_ns: 0,
            failures: Vec::new(),
            steady_cpu_ns_per_task_second: BTreeMap::new(),
            memory_bytes: BTreeMap::new(),
            anonymous_bytes: BTreeMap::new(),
        }
    }

    /// Returns whether all of the tasks came up, ran and ended. The figures of any other point are of fewer tasks than they
    /// are divided by.
    pub(crate) fn is_whole(&self) -> bool {
        self.failures.is_empty()
    }

    /// Returns whether the point has CPU time and memory that count.
    pub(crate) fn has_usage(&self) -> bool {
        self.kind == PointKind::Rest && self.is_whole() && !self.memory_bytes.is_empty()
    }

    /// Returns the number of tasks that failed: each one once, and all of them where nothing was measured.
    pub(crate) fn failed(&self) -> u32 {
        let has_data = match self.kind {
            PointKind::Rest => !self.memory_bytes.is_empty(),
            PointKind::Flood => !self.start_ns.is_empty(),
        };
        let turns: BTreeSet<u32> = self.failures.iter().map(|failure| failure.turn).collect();
        if has_data { u32::try_from(turns.len()).unwrap_or(u32::MAX) } else { self.tasks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::growth::tests::point;

    fn failure(turn: u32) -> Failure {
        Failure { turn, error: "refused".to_owned() }
    }

    #[test]
    fn a_point_without_data_counts_as_if_all_of_its_tasks_had_failed() {
        let mut point = point("agent", 500, 7);
        assert!(point.has_usage() && point.failed() == 0);
        point.failures = vec![failure(3), failure(4), failure(3)];
        assert_eq!(point.failed(), 2, "a task that failed twice is one");
        assert!(!point.is_whole() && !point.has_usage());
        point.memory_bytes.clear();
        point.failures.truncate(1);
        assert_eq!(point.failed(), 500);
        point.failures.clear();
        assert!(!point.has_usage());
        let flood = ScalePoint { kind: PointKind::Flood, ..point };
        assert_eq!(flood.failed(), 0);
        assert_eq!(ScalePoint { start_ns: Vec::new(), ..flood }.failed(), 500);
    }

    #[test]
    fn a_point_of_an_earlier_report_is_of_tasks_at_rest() {
        let mut text = serde_json::to_value(point("agent", 5, 7)).unwrap();
        text.as_object_mut().unwrap().remove("kind");
        assert_eq!(serde_json::from_value::<ScalePoint>(text).unwrap().kind, PointKind::Rest);
    }
}

/// The steps of a driver's starts, or of its teardowns, as the driver itself logs them: medians over the successful
/// calls in measured iterations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timeline {
    /// Key of the series. The call is `start` or `teardown`.
    #[serde(flatten)]
    pub(crate) key: Key,
    pub(crate) count: usize,
    pub(crate) total_ns: u64,
    pub(crate) containerd_calls: u64,
    /// Steps, in the order in which they begin.
    pub(crate) steps: Vec<TimelineStep>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TimelineStep {
    /// Name of the step. `shim/exec` is a part of `shim`.
    pub(crate) name: String,
    /// Number of calls that had this step.
    pub(crate) count: usize,
    /// Time from the beginning of the call.
    pub(crate) begin_ns: u64,
    pub(crate) length_ns: u64,
    pub(crate) length_p90_ns: u64,
}

/// A call that was requested and could not be measured, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NotMeasured {
    pub(crate) what: String,
    pub(crate) why: String,
}
