//! Drives a shim and its task from the outside: the bundle on disk, the launch of the shim, the connection, the pipes.
//! Knows neither containerd nor Nomad.
//!
//! Source of the facts: containerd `runtime/v2` (1.x) and `core/runtime/v2`, `cmd/containerd-shim-runc-v2` (2.x).

mod bundle;
mod connection;
mod crun;
mod descriptor_store;
mod events;
mod excerpt;
mod family;
pub(crate) mod gvisor;
mod io;
mod launch;
mod options;
mod own_id;
mod processes;
mod runtime;
mod runtime_log;
mod shared;
mod socket;
mod spare;
mod staged_mounts;
mod start_inputs;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shim_protos::{Bootstrap, BootstrapError, CallError};

use crate::sys::blocking;
use crate::sys::os_error::{is_transient, reports_shortage, reports_transient};
use crate::sys::process_end::SERVANT_OOM_SCORE_ADJ;
use crate::sys::procfs::ProcessId;
pub(crate) use bundle::{Bundle, bundles};
pub(crate) use connection::{Connection, ExecIo, PendingWait, ProcessExit, State, wait_pending};
pub(crate) use crun::{unfit as unfit_crun, unfit_by_cgroups as unfit_crun_by_cgroups};
pub(crate) use descriptor_store::DescriptorStore;
pub(crate) use events::{BundleEventSocket, EventSocket};
pub(crate) use excerpt::head as read_head;
pub(crate) use family::Family;
use family::GVISOR_OPTIONS_TYPE;
pub(crate) use io::{
    DEV_NULL, ExecEnds, ExecPipes, HeldPipes, LogPaths, LogPipeIds, StdinPipe, wait_drained,
};
pub(crate) use launch::Launcher;
pub(crate) use options::CreateOptions;
pub(crate) use processes::blocking as look_at_processes;
pub(crate) use runtime::{RUNC, find_shim, identify_program, require_program, sets_oom_scores};
pub(crate) use runtime_log::with_runtime_reason;
pub(crate) use shared::{
    Found, ShareKey, SharedEnd, SharedPlace, end_removed_shared, find_shared, names_no_shim,
};
pub(crate) use spare::{Holds, Place, Refusal, Spare, end_left_spares};
pub(crate) use staged_mounts::StagedMount;
pub(crate) use start_inputs::{FileId, StartInputs};

/// A running shim, as it can be found again after a restart of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shim {
    pub bootstrap: Bootstrap,
    pub pid: i32,
    /// Start time of the shim's process in clock ticks, which tells it from a later process with the same pid. 0 if an
    /// earlier build of the plugin wrote this down.
    #[serde(default)]
    pub started_ticks: u64,
    /// The shim's own id, if it is one that has the containers of several tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
}

impl Shim {
    /// Gives the shim the OOM score of its task, before the runtime is first run. A runtime inherits the shim's score,
    /// and not every runtime sets the score of a container (crun before 1.9 takes 0 for none) or of an exec (no crun
    /// does).
    pub(crate) fn set_oom_score_of_task(&self, score: i32) {
        self.set_oom_score(score);
    }

    /// Lowers the shim's OOM score, so that the shim is killed among the last when memory is short. Only for a runtime
    /// that sets the score of all that it starts ([`sets_oom_scores`]), and once the container is created: a hook of
    /// the container would inherit the shim's score.
    pub(crate) fn protect(&self) {
        self.set_oom_score(SERVANT_OOM_SCORE_ADJ);
    }

    #[expect(clippy::disallowed_methods, reason = "writes what the kernel makes, below /proc")]
    fn set_oom_score(&self, score: i32) {
        let file = format!("/proc/{}/oom_score_adj", self.pid);
        if let Err(error) = std::fs::write(&file, score.to_string()) {
            // An agent in a container may not lower the score, which is no reason to warn at each start.
            tracing::debug!(file, score, %error, "can't set the shim's OOM score");
        }
    }

    /// Returns whether the shim's process runs. Blocking for a moment at most, since it reads what the kernel makes.
    pub(crate) fn is_alive(&self) -> bool {
        self.process().is_alive()
    }

    /// Returns whether other tasks may have this shim, too.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    pub(super) fn process(&self) -> ProcessId {
        ProcessId { pid: self.pid, started_ticks: self.started_ticks }
    }

    /// Removes the shim's socket: a shim that is killed leaves it behind.
    pub(crate) async fn remove_socket(&self) {
        let socket = self.bootstrap.socket.clone();
        blocking::run(move || drop(std::fs::remove_file(socket))).await;
    }
}

/// The errors of a shim and its bundle, by what can be done about them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A call reached the shim, or should have.
    #[error("{doing}")]
    Call { doing: String, source: CallError },
    /// The shim's binary could not be run, failed, or did not end in time. The reason quotes its stderr.
    #[error("{binary} {action} failed for {id}: {reason}")]
    Binary {
        binary: PathBuf,
        action: &'static str,
        id: String,
        reason: String,
        /// Whether the error is transient: the same may work later.
        transient: bool,
    },
    /// The shim's binary succeeded, but its answer can't be used.
    #[error("the answer of {binary} start for {id} can't be used")]
    Answer { binary: PathBuf, id: String, source: BootstrapError },
    /// A file of the bundle, or a pipe, could not be dealt with.
    #[error("{doing} {path}")]
    File { doing: &'static str, path: PathBuf, source: std::io::Error },
    /// The runtime that is configured has no shim on this host.
    #[error(
        "the shim of the runtime {runtime} is missing: no executable {} {looked_in}; install it, or name another runtime \
         (plugin option containerd_runtime, task option runtime)",
        file.display()
    )]
    ShimMissing { runtime: String, file: PathBuf, looked_in: String },
    /// The program that a shim is told to run is not on this host.
    #[error(
        "the OCI runtime {program} is missing: no executable {looked_in}; install it, or name another program (option \
         oci_runtime of the plugin or of the task)"
    )]
    RuntimeMissing { program: String, looked_in: String },
    /// The logs are disabled, and the shim can't discard the output of a terminal: nobody would read it, and the task
    /// would block.
    #[error(
        "the shim {0} can't discard the output of a terminal: leave out the task option tty, collect the task's logs, or \
         name another runtime (plugin option containerd_runtime, task option runtime)"
    )]
    UndiscardableOutput(PathBuf),
    /// The task would have the log pipes itself. One that locks its pipe, as a `splice(2)` from a silent socket does for as
    /// long as it waits, puts each thread to sleep that reads the pipe, so that not even SIGKILL ends it.
    #[error(
        "the shim {0} gives tasks the log pipes themselves, by which a task can stop their reader: use a release that \
         copies the output (of the shim in Rust 0.2 or later), or name another runtime (plugin option containerd_runtime, \
         task option runtime)"
    )]
    GivesLogPipes(PathBuf),
    /// The shim needs a socket for its events, and the path of the socket is too long.
    #[error(
        "the path {} is too long for a socket, which this shim needs: give the agent a state directory whose path has at \
         most {most} bytes (plugin option state_dir), or name another runtime (plugin option containerd_runtime, task \
         option runtime)",
        socket.display()
    )]
    EventsPath { socket: PathBuf, most: usize },
    /// A log path is not the pipe that Nomad makes.
    #[error("the log path {path} {what}")]
    LogPath { path: PathBuf, what: &'static str },
    /// The shim that answered is not the one that was started.
    #[error(
        "the shim that answers for {id} already has a task (pid {task_pid}): one of an earlier run is still alive"
    )]
    StaleShim { id: String, task_pid: u32 },
    /// The shim that tasks share could not be launched, by another task's start.
    #[error(transparent)]
    OfAnother(std::sync::Arc<Self>),
    /// The start was cancelled, or another step of it has failed.
    #[error("the start was given up")]
    GivenUp,
    /// The process that serves as the shim can't be identified, so that it could never be ended.
    #[error(
        "can't identify the shim of {id}: {binary} reports the pid {reported_pid}, and neither that process nor any \
         other has the shim's arguments"
    )]
    Unidentified { binary: PathBuf, id: String, reported_pid: i32 },
}

impl Error {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    fn errno(doing: &'static str, path: &Path) -> impl FnOnce(nix::errno::Errno) -> Self {
        let failed = Self::file(doing, path);
        move |error| failed(error.into())
    }

    /// Returns whether a path is no named pipe, or nothing at all.
    pub(crate) fn is_no_pipe(&self) -> bool {
        match self {
            Self::LogPath { .. } => true,
            _ => self.is_missing_file(),
        }
    }

    pub(crate) fn is_missing_file(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    /// Returns whether a file could not be moved since the other directory is on another file system.
    pub(crate) fn crosses_file_systems(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == std::io::ErrorKind::CrossesDevices)
    }

    /// Returns whether the same may work later: the shim is gone, does not answer or can't be identified, a shim of an
    /// earlier run is still alive, or the machine lacks something for now.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Call { source: CallError::Disconnected(_) | CallError::TimedOut(_), .. }
            | Self::StaleShim { .. }
            | Self::Unidentified { .. } => true,
            Self::Call { source: CallError::Refused(words), .. } => reports_transient(words),
            Self::Binary { transient, .. } => *transient,
            Self::File { source, .. } => is_transient(source),
            Self::OfAnother(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Merges the errors of two tries to start a binary with the two forms of input. The second error counts, since its
    /// try may have come further. If the second is permanent and differs from the first, both reasons are quoted.
    fn merge_attempts(self, second: Self) -> Self {
        match (self, second) {
            (
                Self::Binary { binary, action, id, reason, .. },
                Self::Binary { reason: second, transient: false, .. },
            ) if reason != second => {
                let reason = format!("{reason}; with the input of other versions: {second}");
                Self::Binary { binary, action, id, reason, transient: false }
            }
            (_, second) => second,
        }
    }

    /// Sets whether the error of a binary is transient. Other errors are returned as they are.
    fn with_transience(mut self, is_transient: bool) -> Self {
        if let Self::Binary { transient, .. } = &mut self {
            *transient = is_transient;
        }
        self
    }

    /// Returns whether the shim has answered that it, or its runtime, can't do what it was asked for.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Call { source: CallError::Refused(_), .. })
    }

    /// Returns whether the shim has refused a call for want of what a process may have: descriptors, processes or memory.
    /// Another shim may have them. What the container's first process lacks is none: it has the job's own limits.
    pub(crate) fn is_shortage(&self) -> bool {
        let Self::Call { source: CallError::Refused(words), .. } = self else { return false };
        let is_of_container =
            ["container init", "container process", "nsexec"].iter().any(|part| words.contains(part));
        !is_of_container && reports_shortage(words)
    }

    /// Returns whether the shim, which was reached, has not answered in time.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self, Self::Call { source: CallError::TimedOut(_), .. })
    }

    /// Returns whether the shim does not know the task or exec: it has ended, or never was.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { source: CallError::NotFound(_), .. })
    }
}

/// Timeout of calls that the shim answers without the runtime.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of calls for which the shim forks the runtime. A deadline kills the runtime in the middle, so this one is
/// long enough for any runtime that doesn't hang.
pub(crate) const RUNTIME_CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of the first descriptor that a shim keeps for its tasks: far above those that it gives its own children by
/// number.
const FIRST_INHERITED_FD: i32 = 100;
/// The PATH in which binaries are found if the agent's environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_containers_own_process_lacks_is_no_shortage_of_the_shims() {
        let refused =
            |text: &str| Error::Call { doing: String::new(), source: CallError::Refused(text.to_owned()) };
        assert!(refused("OCI runtime create failed: pipe2: too many open files: unknown").is_shortage());
        for text in [
            "runc create failed: unable to start container process: too many open files: unknown",
            "error during container init: setns: resource temporarily unavailable",
            "nsexec-1[7]: failed to clone: cannot allocate memory",
            "no such file or directory",
        ] {
            assert!(!refused(text).is_shortage(), "{text}");
        }
        assert!(
            !Error::Call { doing: String::new(), source: CallError::NotFound(String::new()) }.is_shortage()
        );
    }

    #[test]
    fn merged_attempts_keep_the_second_error_and_quote_the_first() {
        let failed = |reason: &str, transient| Error::Binary {
            binary: "/bin/shim".into(),
            action: "start",
            id: "x".to_owned(),
            reason: reason.to_owned(),
            transient,
        };
        let refusal = || failed("deprecated API", false);
        let later = refusal().merge_attempts(failed("no space left on device", true));
        assert!(later.is_transient() && !later.to_string().contains("deprecated"), "{later}");
        let both = refusal().merge_attempts(failed("no such runtime", false));
        assert!(!both.is_transient(), "{both}");
        for word in ["/bin/shim start", "deprecated API", "no such runtime"] {
            assert!(both.to_string().contains(word), "{word} is not in {both}");
        }
        let same = refusal().merge_attempts(refusal());
        assert_eq!(same.to_string(), refusal().to_string());
    }
}
