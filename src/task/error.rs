//! Errors of a call from Nomad, classified by what Nomad should do next.
//!
//! The modules below have error types of their own; where one of them reaches the code of a task, it becomes one of
//! these, with its context added once, and stays its source. [`crate::driver::reply`] converts each into a status that
//! Nomad understands.

mod cause;
mod classes;
#[cfg(test)]
mod sources;

use std::error::Error as StdError;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use crate::sys::error_chain::Chained;
use crate::sys::host_path::HostPathError;
use crate::sys::os_error::is_transient;

pub(crate) use self::cause::Cause;
use self::cause::with_context;

/// An error of a call. Its text with those of its sources, printed by [`Chained::chain`], is for the operator: what
/// failed, on what, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// Nomad names a task that this plugin doesn't have: it recovers, or forgets it. The text is Nomad's own.
    #[error("task not found for given id")]
    TaskNotFound,
    /// The job or the plugin's configuration has to change first.
    #[error(transparent)]
    Invalid(Cause),
    /// The same call may succeed later: Nomad may restart the task.
    #[error(transparent)]
    Transient(Cause),
    /// The call comes at the wrong time: a destroy of a running task, a call before the configuration.
    #[error(transparent)]
    Conflict(Cause),
    /// The request is for something that the driver does not support.
    #[error(transparent)]
    Unsupported(Cause),
    /// The call failed here and would fail again.
    #[error(transparent)]
    Failed(Cause),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns the error for what the job or the plugin's configuration has to change first.
    pub(crate) fn invalid(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Invalid(Arc::from(cause.into()))
    }

    /// Returns the error for a failure after which the same call may succeed later.
    pub(crate) fn transient(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Transient(Arc::from(cause.into()))
    }

    /// Returns the error for a call that comes at the wrong time.
    pub(crate) fn conflict(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Conflict(Arc::from(cause.into()))
    }

    /// Returns the error for a request that the driver does not support.
    pub(crate) fn unsupported(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unsupported(Arc::from(cause.into()))
    }

    /// Returns the error for a failure that would happen again.
    pub(crate) fn failed(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Failed(Arc::from(cause.into()))
    }

    /// Returns the error for a failed system call, with the action in front.
    pub(crate) fn system(doing: impl Display, error: std::io::Error) -> Self {
        let transient = is_transient(&error);
        Self::failure(error, transient).context(doing)
    }

    /// Makes the error transient, because the file system of the state directory is full: shims and runtimes write there
    /// as well.
    pub(crate) fn while_full(self, state_dir: &Path) -> Self {
        let directory = state_dir.display();
        self.passes(&format!(
            "no space left on device: the file system of the state directory {directory} is full"
        ))
    }

    /// Makes the error transient, because somebody has removed the snapshot: the next attempt gets one of its own.
    pub(crate) fn without_snapshot(self, key: &str) -> Self {
        self.passes(&format!("its snapshot {key} was removed from containerd meanwhile"))
    }

    /// Makes the error transient, because the runtime's seccomp filter was cut off, and is gone.
    pub(crate) fn with_new_filter(self) -> Self {
        self.passes(
            "crun has kept a seccomp filter that is cut off, as by a full disk; the next start makes it anew",
        )
    }

    /// Makes the error of a shim or a runtime transient for a reason that these report in texts of their own. The reason
    /// ends the text, which is therefore one text without sources.
    fn passes(self, why: &str) -> Self {
        match self {
            Self::Failed(cause) | Self::Transient(cause) => {
                Self::transient(format!("{} ({why})", cause.chain()))
            }
            other => other,
        }
    }

    /// Returns the error for a request that can't be fulfilled: invalid, unless it may succeed later.
    pub(crate) fn refused(cause: impl Into<Box<dyn StdError + Send + Sync>>, transient: bool) -> Self {
        if transient { Self::transient(cause) } else { Self::invalid(cause) }
    }

    /// Returns the error for a failure that may pass by itself, or would happen again.
    pub(crate) fn failure(cause: impl Into<Box<dyn StdError + Send + Sync>>, transient: bool) -> Self {
        if transient { Self::transient(cause) } else { Self::failed(cause) }
    }

    /// Returns the error for a path of the host, such as the source of a mount, that can't be used.
    pub(crate) fn unusable_path(error: HostPathError) -> Self {
        let transient = error.is_transient();
        Self::refused(error, transient)
    }

    /// Puts the action that failed in front of the error, as `verb object id`. The error becomes its source.
    pub(crate) fn context(self, doing: impl Display) -> Self {
        let add = |cause| with_context(cause, &doing);
        match self {
            Self::TaskNotFound => Self::TaskNotFound,
            Self::Invalid(cause) => Self::Invalid(add(cause)),
            Self::Transient(cause) => Self::Transient(add(cause)),
            Self::Conflict(cause) => Self::Conflict(add(cause)),
            Self::Unsupported(cause) => Self::Unsupported(add(cause)),
            Self::Failed(cause) => Self::Failed(add(cause)),
        }
    }
}
