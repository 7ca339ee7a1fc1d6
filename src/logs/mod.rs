//! The log files of a task whose output the driver collects itself: out of the task's pipes, into the files that Nomad
//! reads, under the names and by the rules of Nomad's own collector. Knows neither the shim nor how tasks start or end.
//!
//! The pipes hold what nobody has taken yet. So whatever hinders the files (a full disk, a directory that is gone, a disk
//! that doesn't answer) makes bytes wait there, as the plugin's own absence does, and at most makes that task wait once its pipe
//! is full.

mod directory;
mod movers;
mod pump;
mod rotation;
mod sink;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use movers::Movers;
pub(crate) use pump::{News, Pump};
pub(crate) use sink::PassedOver;

/// How much of a stream is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub max_files: usize,
    pub max_file_bytes: u64,
}

/// Whose files are written, and where. What is needed to go on after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub alloc_dir: PathBuf,
    /// By its name in the job.
    pub task: String,
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Why bytes have to wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("can't {doing} {path}: {why}")]
pub(crate) struct Trouble {
    doing: &'static str,
    path: PathBuf,
    why: String,
}

impl Trouble {
    fn new(doing: &'static str, path: PathBuf, error: &std::io::Error) -> Self {
        Self { doing, path, why: error.to_string() }
    }
}
