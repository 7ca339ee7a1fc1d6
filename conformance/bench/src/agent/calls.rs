//! The names of the calls that are measured under an agent, as they are in series.

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
/// From a task's first byte of much output until all of it is in log files.
pub(crate) const LOGS: &str = "logs";
/// The runtime's commands `create` and `start`, and both together.
pub(crate) const CREATE: &str = "create";
pub(crate) const START: &str = "start";
pub(crate) const CREATE_AND_START: &str = "create-and-start";

/// Number of execs in each single task and container.
pub(crate) const EXECS: usize = 3;
