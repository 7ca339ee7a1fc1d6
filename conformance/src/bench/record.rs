//! The data of a report, as it is written to and read from a file: series of samples, each with the conditions that it
//! was taken under. Knows neither how a call is made nor how a figure is shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the report format. Incremented when a reader of the older format would misread the newer one.
pub const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    /// Time of the run, RFC 3339, UTC.
    pub made_at: String,
    pub machine: Machine,
    pub setups: Vec<Setup>,
    pub settings: Settings,
    pub series: Vec<Series>,
    #[serde(default)]
    pub scale: Vec<ScalePoint>,
    #[serde(default)]
    pub timelines: Vec<Timeline>,
    pub not_measured: Vec<NotMeasured>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    /// Version of control groups: "v1", "v1, hybrid", or "v2".
    pub cgroups: String,
    pub distribution: String,
    /// Content of `/proc/loadavg` before the first call.
    pub load_before: String,
}

/// The setup that calls were made on: one shim with one runtime under one containerd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Name of the setup in series, such as `1.6+runc`.
    pub name: String,
    /// Path and version of each part, as the program prints it. Keys are `containerd`, `shim`, `runtime`, `plugin`.
    pub parts: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub iterations: u32,
    pub warm_up: u32,
    /// Duration of the measured iterations, if that rather than their number ended the run.
    pub duration_ms: Option<u64>,
}

/// The key of a series: the conditions that its samples were taken under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub setup: String,
    /// Name of the path: `direct`, `daemon`, `cli`, `plugin`.
    pub path: String,
    /// Name of the call, such as `create`, `exec-first-byte`.
    pub call: String,
    /// Number of concurrent calls.
    pub concurrency: u32,
    /// Size of the call's payload, for calls that have one.
    pub payload_bytes: u64,
    /// Number of other tasks that run meanwhile.
    pub held: u32,
}

/// The results of all calls of one kind. A failed call has no time, and is never left out of the count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    #[serde(flatten)]
    pub key: Key,
    /// Times of the successful calls, in the order in which they were made.
    pub samples_ns: Vec<u64>,
    pub failures: Vec<Failure>,
    /// Cost of the calls, if it could be measured.
    pub cost: Option<Cost>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The iteration in which the call failed, counted from 0.
    pub turn: u32,
    pub error: String,
}

/// CPU time and memory that the calls of a series cost, by consumer: `plugin`, `shims`, `daemon`, `runtime`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub cpu_ns_per_call: BTreeMap<String, u64>,
    /// Resident set size after the last call.
    pub resident_bytes: BTreeMap<String, u64>,
    /// Proportional set size after the last call: pages that several processes share are divided among them.
    #[serde(default)]
    pub proportional_bytes: BTreeMap<String, u64>,
}

/// The cost of this many concurrent tasks, by one path on one setup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalePoint {
    pub setup: String,
    pub path: String,
    pub tasks: u32,
    /// Time from the first request of the storm to the answer, for each task.
    pub start_ns: Vec<u64>,
    pub stop_ns: Vec<u64>,
    /// Times of execs made while other tasks were starting.
    pub exec_ns: Vec<u64>,
    /// Time from the first request to the last answer.
    pub start_storm_ns: u64,
    pub stop_storm_ns: u64,
    pub failures: Vec<Failure>,
    /// CPU time per task and second of all processes that take part, while each task's statistics are read every
    /// second, by consumer.
    pub steady_cpu_ns_per_task_second: BTreeMap<String, u64>,
    /// Proportional set size while the tasks ran, by consumer.
    pub memory_bytes: BTreeMap<String, u64>,
}

/// The steps of a driver's starts, or of its teardowns, as the driver itself logs them: medians over the successful
/// calls in measured iterations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// Key of the series. The call is `start` or `teardown`.
    #[serde(flatten)]
    pub key: Key,
    pub count: usize,
    pub total_ns: u64,
    pub containerd_calls: u64,
    /// Steps, in the order in which they begin.
    pub steps: Vec<TimelineStep>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimelineStep {
    /// Name of the step. `shim/exec` is a part of `shim`.
    pub name: String,
    /// Number of calls that had this step.
    pub count: usize,
    /// Time from the beginning of the call.
    pub begin_ns: u64,
    pub length_ns: u64,
    pub length_p90_ns: u64,
}

/// A call that was requested and could not be measured, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotMeasured {
    pub what: String,
    pub why: String,
}
