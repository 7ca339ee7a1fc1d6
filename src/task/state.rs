//! The state of a task: its phase and exit, its identity, and the driver state that Nomad keeps for it. Values only.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::DriverNetwork;
use crate::cgroup::Cgroup;
use crate::logs::Target;
use crate::shim::{Family, LogPaths, Shim};
use crate::sys::procfs::ProcessId;

/// A task's exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub code: i32,
    pub signal: i32,
    pub oom_killed: bool,
    pub at: SystemTime,
    /// Reason why the task's own exit status is not known. `code` and `signal` are substitutes then.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Exited(Exit),
}

/// A task's identity in Nomad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub task_id: String,
    pub alloc_id: String,
    pub name: String,
}

/// The driver state: everything needed to find a running task again. Nomad keeps it in the task's handle, and hands it
/// back at a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DriverState {
    pub(super) container_id: String,
    /// Path of the binary that the shim was started from. The shim's own clean-up is run with it.
    pub(super) shim_binary: PathBuf,
    /// Kind of the shim; `None` if an earlier build of the plugin started the task.
    #[serde(default)]
    pub(super) family: Option<Family>,
    pub(super) shim: Shim,
    pub(super) init: ProcessId,
    pub(super) started_at: SystemTime,
    pub(super) logs: LogPaths,
    /// Log files that the driver itself writes the output to; `None` if somebody else reads the pipes. It is there for
    /// each task with a log receiver: after a downgrade, a plugin that knows no receivers reads the task's pipes by it,
    /// so that the task doesn't wait for a reader.
    #[serde(default)]
    pub(super) collected: Option<Target>,
    pub(super) cgroup: Cgroup,
    /// Whether the task is in the host's pid namespace, where its processes don't end with the first one by themselves.
    pub(super) shares_pids: bool,
    pub(super) image_digest: String,
    /// Stop signal that the image names.
    pub(super) stop_signal: Option<String>,
    /// Network that is reported to Nomad, such as one of the task's own.
    #[serde(default)]
    pub(super) network: Option<DriverNetwork>,
    /// Number of OOM kills in the task's cgroup before it was started: those of an earlier attempt. `None` if an
    /// earlier build of the plugin started the task.
    #[serde(default)]
    pub(super) oom_kills: Option<u64>,
    /// Path of the `runsc` that runs a task in gVisor's sandbox.
    #[serde(default)]
    pub(super) runsc: Option<String>,
    /// Way of the output that is sent to a log receiver. The receiver is in the bundle: it has values of the task's
    /// environment, and Nomad keeps this state in its own files.
    #[serde(default)]
    pub(super) forwarded: Option<Forwarded>,
    /// Whether `oci_runtime = "auto"` has chosen crun for the task.
    #[serde(default)]
    pub(super) chosen_crun: bool,
}

/// The log of Nomad's that the output goes on to once it is sent to a log receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Forwarded {
    /// The files of [`DriverState::collected`].
    Files,
    /// Nomad's pipes.
    Pipes(LogPaths),
    Nowhere,
}

impl DriverState {
    pub(super) fn family(&self) -> Family {
        self.family.unwrap_or_else(|| Family::of_binary(&self.shim_binary))
    }
}

/// The result of a start, for Nomad.
pub(crate) struct Started {
    pub driver_state: Vec<u8>,
    pub network: Option<DriverNetwork>,
}
