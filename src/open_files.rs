//! How many files the plugin may have open. It holds a few for each task, and its soft limit may be one for programs that
//! hold few at all: it is raised to the hard one. What runs in tasks is to have the agent's own limit all the same, so what
//! that was is remembered.
//!
//! Source of the facts: getrlimit(2).

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A pidfd, one that the kernel tells of OOM kills by, and the connection to its shim; and where its log is collected here,
/// two pipes and two files.
const OF_A_TASK: u64 = 7;
/// For all that is not a task's: sockets, the runtime's own, and what calls have open for a moment.
const BESIDE_TASKS: u64 = 256;
/// More than a node is planned for.
const MANY_TASKS: u64 = 1000;

/// A soft and a hard limit. The largest number is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    pub soft: u64,
    pub hard: u64,
}

/// What the agent's limits were, where ours differ.
static AGENTS: OnceLock<OpenFiles> = OnceLock::new();

impl OpenFiles {
    /// The plugin's own.
    pub(crate) fn now() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        Self { soft: current.unwrap_or(u64::MAX), hard: maximum.unwrap_or(u64::MAX) }
    }

    /// For how many tasks there are enough.
    pub(crate) fn tasks(self) -> u64 {
        self.soft.saturating_sub(BESIDE_TASKS) / OF_A_TASK
    }

    fn is_enough(self) -> bool {
        self.tasks() >= MANY_TASKS
    }
}

/// Raises the limit as far as it goes without a privilege. To be called before any process is started.
pub(crate) fn raise() {
    let before = OpenFiles::now();
    if before.soft >= before.hard {
        return;
    }
    let finite = |limit: u64| (limit != u64::MAX).then_some(limit);
    let most = Rlimit { current: finite(before.hard), maximum: finite(before.hard) };
    match setrlimit(Resource::Nofile, most) {
        Ok(()) => drop(AGENTS.set(before)),
        Err(error) => tracing::warn!(%error, "can't raise the limit of open files from {}", before.soft),
    }
}

/// The agent's limits, which tasks are to have that ask for none. None is those that they inherit anyway.
pub(crate) fn agents() -> Option<OpenFiles> {
    AGENTS.get().copied()
}

/// Says so where the limit, raised, is still too low.
pub(crate) fn complain() {
    let limit = OpenFiles::now();
    if !limit.is_enough() {
        tracing::warn!(
            limit = limit.soft,
            "the agent may have so few open files that there are enough for {} tasks only; raise its limit \
             (LimitNOFILE of its unit)",
            limit.tasks()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_enough_for_some_tasks() {
        let of = |soft| OpenFiles { soft, hard: soft };
        assert_eq!(of(BESIDE_TASKS + 5 * OF_A_TASK).tasks(), 5);
        assert_eq!(of(10).tasks(), 0);
        assert!(!of(1024).is_enough() && of(8192).is_enough() && of(u64::MAX).is_enough());
        let now = OpenFiles::now();
        assert!(now.soft <= now.hard && now.soft > 0);
    }
}
