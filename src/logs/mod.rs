//! Log files of a task whose output the driver collects itself: from the task's pipes into the files that Nomad reads,
//! with the names and rules of Nomad's own collector. Also sends output to log receivers (`forward`). Knows neither the
//! shim nor how tasks start or end.
//!
//! The pipes hold all output that is not written yet. So if the files can't be written (a full disk, a missing
//! directory, a disk that doesn't answer), output waits in the pipe, as it does while the plugin is not running; the
//! task blocks only once its pipe is full.

mod collector;
mod directory;
mod forward;
mod rotation;
mod sink;
mod writer_pool;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use collector::{LogCollector, LogEvent};
pub(crate) use forward::{
    Compression, ContainerFields, Endpoint, Fluentd, Forwarding, Gelf, HostPath, NomadLog, Protocol, Reach,
    Syslog, SyslogFormat, TlsFiles,
};
pub(crate) use sink::SkippedFile;
pub(crate) use writer_pool::WriterPool;

/// Limits of the log files of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub max_files: usize,
    pub max_file_bytes: u64,
}

/// Destination of a task's output. Serialized, so that collection resumes after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub alloc_dir: PathBuf,
    /// Name of the task in the job.
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

/// The reason that output waits in the pipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("can't {doing} {path}: {why}")]
pub(crate) struct LogError {
    doing: &'static str,
    path: PathBuf,
    why: String,
}

impl LogError {
    fn new(doing: &'static str, path: PathBuf, error: &std::io::Error) -> Self {
        Self { doing, path, why: error.to_string() }
    }
}
