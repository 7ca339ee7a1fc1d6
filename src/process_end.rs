//! What holds for the ends of processes on every host: the code by which shells tell of a signal, and the order in which
//! the kernel kills for want of memory.

/// A shell says 128 + n for a process that signal n ended, and so do shims.
pub(crate) const SIGNAL_BASE: i32 = 128;

/// The score by which the OOM killer takes a process that serves a task among the last: the news of its task's end would go
/// with it. Its own few megabytes are a poor choice; what the agent inherited to it may be anything.
pub(crate) const SERVANT_OOM_SCORE_ADJ: i32 = -998;
