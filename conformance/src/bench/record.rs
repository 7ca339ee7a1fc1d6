//! What a run of the benchmark found out, as it is written to and read from a file: series of samples, each with what it
//! was taken on. Knows neither how a call is made nor how a figure is shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Grows when a reader of an older form would misread a newer one.
pub const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    /// RFC 3339, UTC.
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
    /// "v1", "v1, hybrid", or "v2".
    pub cgroups: String,
    pub distribution: String,
    /// What `/proc/loadavg` said before the first call.
    pub load_before: String,
}

/// The parts that calls were made on: one shim with one runtime under one containerd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// By which series name it, such as `1.6+runc`.
    pub name: String,
    /// `containerd`, `shim`, `runtime`, `plugin`: path and version as the program says it.
    pub parts: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub iterations: u32,
    pub warm_up: u32,
    /// Where time rather than a count ended the run.
    pub duration_ms: Option<u64>,
}

/// What tells one series from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub setup: String,
    /// `direct`, `daemon`, `cli`, `plugin`.
    pub path: String,
    /// Such as `create`, `exec-first-byte`.
    pub call: String,
    /// How many of it are under way at a time.
    pub concurrency: u32,
    /// What the call carries, where that can be chosen.
    pub payload_bytes: u64,
    /// How many other tasks run meanwhile.
    pub held: u32,
}

/// All calls of one kind. What failed has no time, and is never left out of the count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    #[serde(flatten)]
    pub key: Key,
    /// In the order in which they were taken.
    pub samples_ns: Vec<u64>,
    pub failures: Vec<Failure>,
    /// Of the processes that take part, where they could be looked at.
    pub cost: Option<Cost>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The turn in which it happened, from 0 on.
    pub turn: u32,
    pub error: String,
}

/// What the calls of a series took of CPU time and memory, by who took it: `plugin`, `shims`, `daemon`, `runtime`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub cpu_ns_per_call: BTreeMap<String, u64>,
    /// Resident after the last call.
    pub resident_bytes: BTreeMap<String, u64>,
    /// The same, with pages that several processes share divided among them.
    #[serde(default)]
    pub proportional_bytes: BTreeMap<String, u64>,
}

/// What so many tasks at a time took, by one path on one setup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalePoint {
    pub setup: String,
    pub path: String,
    pub tasks: u32,
    /// From the first request to the answer, for each task.
    pub start_ns: Vec<u64>,
    pub stop_ns: Vec<u64>,
    /// Execs made while other tasks were starting.
    pub exec_ns: Vec<u64>,
    /// From the first request to the last answer.
    pub start_storm_ns: u64,
    pub stop_storm_ns: u64,
    pub failures: Vec<Failure>,
    /// CPU time of all tasks' company for a second of a task whose statistics are read each second, by who took it.
    pub steady_cpu_ns_per_task_second: BTreeMap<String, u64>,
    /// Proportional set size while they ran, by who took it.
    pub memory_bytes: BTreeMap<String, u64>,
}

/// Where the time of a driver's starts, or of its teardowns, goes by its own word: medians of those that went well in turns
/// that count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// Its call is `start` or `teardown`.
    #[serde(flatten)]
    pub key: Key,
    pub count: usize,
    pub total_ns: u64,
    pub containerd_calls: u64,
    /// In the order in which they begin.
    pub steps: Vec<TimelineStep>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimelineStep {
    /// `shim/exec` is a part of `shim`.
    pub name: String,
    /// How many of the calls had it.
    pub count: usize,
    /// From the call on.
    pub begin_ns: u64,
    pub length_ns: u64,
    pub length_p90_ns: u64,
}

/// What was wanted and could not be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotMeasured {
    pub what: String,
    pub why: String,
}
