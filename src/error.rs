//! What goes wrong in a call from Nomad, by what Nomad should do next.
//!
//! The modules below have errors of their own; where one of them crosses into a task's life it becomes one of these,
//! with its context added once. [`crate::driver::reply`] turns each into the status that Nomad understands.

use std::fmt::Display;

use crate::config::ConfigError;
use crate::confinement::ConfinementError;
use crate::devices::DevicesError;
use crate::names::NamesError;
use crate::netns::NetnsError;
use crate::reaper::ReaperError;
use crate::rootfs::RootfsError;
use crate::spec::SpecError;
use crate::{cni, containerd, shim};

/// The text is for the operator: what failed, on what, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// Nomad names a task that this plugin doesn't have: it recovers, or forgets it. The text is Nomad's own.
    #[error("task not found for given id")]
    TaskNotFound,
    /// The job or the plugin's configuration has to change first.
    #[error("{0}")]
    Invalid(String),
    /// The same call may succeed later: Nomad may restart the task.
    #[error("{0}")]
    Transient(String),
    /// The call is out of turn: a destroy of a running task, a call before the configuration.
    #[error("{0}")]
    Conflict(String),
    /// What is asked for is not offered.
    #[error("{0}")]
    Unsupported(String),
    /// It failed here and would fail again.
    #[error("{0}")]
    Failed(String),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Puts what was being done in front, as `verb object id`.
    pub(crate) fn context(self, doing: impl Display) -> Self {
        let add = |text: String| format!("{doing}: {text}");
        match self {
            Self::TaskNotFound => Self::TaskNotFound,
            Self::Invalid(text) => Self::Invalid(add(text)),
            Self::Transient(text) => Self::Transient(add(text)),
            Self::Conflict(text) => Self::Conflict(add(text)),
            Self::Unsupported(text) => Self::Unsupported(add(text)),
            Self::Failed(text) => Self::Failed(add(text)),
        }
    }
}

impl From<containerd::Error> for Error {
    fn from(error: containerd::Error) -> Self {
        let text = error.to_string();
        match error {
            containerd::Error::BadReference { .. } => Self::Invalid(text),
            // Not found is what another client has just removed: the image under the snapshot, or the lease.
            error if error.is_transient() || error.is_not_found() => Self::Transient(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<shim::Error> for Error {
    fn from(error: shim::Error) -> Self {
        let text = error.to_string();
        match error {
            shim::Error::NoShim { .. }
            | shim::Error::NoProgram { .. }
            | shim::Error::Unread(_)
            | shim::Error::LogPath { .. } => Self::Invalid(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<cni::Error> for Error {
    fn from(error: cni::Error) -> Self {
        let text = error.to_string();
        match error {
            error if error.is_transient() => Self::Transient(text),
            error if error.is_invalid() => Self::Invalid(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<NetnsError> for Error {
    fn from(error: NetnsError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<RootfsError> for Error {
    fn from(error: RootfsError) -> Self {
        let text = error.to_string();
        match error {
            RootfsError::Unknown { .. } => Self::Invalid(text),
            RootfsError::Io { .. } | RootfsError::Lost => Self::Failed(text),
        }
    }
}

impl From<NamesError> for Error {
    fn from(error: NamesError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<ReaperError> for Error {
    fn from(error: ReaperError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<ConfinementError> for Error {
    fn from(error: ConfinementError) -> Self {
        let text = error.to_string();
        match error {
            ConfinementError::Value { .. } => Self::Invalid(text),
            ConfinementError::Host { .. }
            | ConfinementError::BuiltIn(_)
            | ConfinementError::Lost
            | ConfinementError::Incomplete(_) => Self::Failed(text),
        }
    }
}

impl From<DevicesError> for Error {
    fn from(error: DevicesError) -> Self {
        let text = error.to_string();
        match error {
            DevicesError::Lost => Self::Failed(text),
            _ => Self::Invalid(text),
        }
    }
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Self::Invalid(error.to_string())
    }
}
