//! The limit of the plugin's open files. It holds a few for each task, and its soft limit may be meant for programs
//! that need few, so it is raised to the hard limit. Processes in tasks shall have the agent's own limit all the same,
//! so that is remembered.
//!
//! Source of the facts: getrlimit(2).

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files per task: a pidfd, one for OOM notifications, and the connection to its shim; and, if the driver collects
/// its logs, two pipes and two files.
const OF_A_TASK: u64 = 7;
/// Open files of everything else: sockets, the async runtime, and files that calls open for a moment.
const BESIDE_TASKS: u64 = 256;
/// Number of tasks below which a warning is logged, and for which files are kept free: more than a node is planned for.
const MANY_TASKS: u64 = 1000;

/// Soft and hard limit of open files. `u64::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    pub soft: u64,
    pub hard: u64,
}

/// The agent's limits, if the plugin has changed its own.
static AGENTS: OnceLock<OpenFiles> = OnceLock::new();

impl OpenFiles {
    /// Returns the plugin's current limits.
    pub(crate) fn now() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        Self { soft: current.unwrap_or(u64::MAX), hard: maximum.unwrap_or(u64::MAX) }
    }

    /// Returns the number of tasks that the limit suffices for.
    pub(crate) fn tasks(self) -> u64 {
        self.soft.saturating_sub(BESIDE_TASKS) / OF_A_TASK
    }

    /// Returns the number of open files that are left with so many tasks, or with as many as can be planned for.
    pub(crate) fn to_spare(self, tasks: u64) -> u64 {
        let of_tasks = MANY_TASKS.max(tasks).saturating_mul(OF_A_TASK);
        self.soft.saturating_sub(BESIDE_TASKS).saturating_sub(of_tasks)
    }

    fn is_enough(self) -> bool {
        self.tasks() >= MANY_TASKS
    }
}

/// Raises the soft limit as far as it goes without a privilege. Must be called before any process is started.
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

/// Returns the agent's limits, for tasks that set none. `None` if tasks inherit them anyway.
pub(crate) fn agents() -> Option<OpenFiles> {
    AGENTS.get().copied()
}

/// Logs a warning if the limit, once raised, is still too low.
pub(crate) fn warn_if_low() {
    let limit = OpenFiles::now();
    if !limit.is_enough() {
        tracing::warn!(
            limit = limit.soft,
            "the agent's limit of open files is enough for {} tasks only; raise it (LimitNOFILE of its unit)",
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
        assert_eq!((of(1024).to_spare(0), of(7256).to_spare(9), of(7300).to_spare(1000)), (0, 0, 44));
        assert_eq!((of(7300).to_spare(1005), of(u64::MAX).to_spare(u64::MAX)), (9, 0));
        let now = OpenFiles::now();
        assert!(now.soft <= now.hard && now.soft > 0);
    }
}
