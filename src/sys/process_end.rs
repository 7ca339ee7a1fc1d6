//! Constants about the ends of processes: the exit code for a signal, and the OOM score of processes that serve a task.

/// Base of the exit code of a process that was ended by signal n: 128 + n, as in shells and shims.
pub(crate) const SIGNAL_BASE: i32 = 128;

/// OOM score adjustment of a process that serves a task, by which it is killed among the last: the exit of its task
/// would be lost with it. Killing it would free a few megabytes only, and the value inherited from the agent may be
/// anything.
pub(crate) const SERVANT_OOM_SCORE_ADJ: i32 = -998;
