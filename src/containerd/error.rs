//! Errors of calls to containerd, by what the caller does next. Each text starts with what was being done and to what;
//! the daemon's own words follow.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};

use crate::image::ImageError;
use crate::sys::os_error::{innermost, reports_transient};

/// The error of a call to containerd or of a pull. `Clone`, because callers that share one pull share its error.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// The daemon is away: nobody answers at the socket, or the daemon went away in the middle of the call.
    #[error("{doing}: containerd can't be reached at {}: {reason}", socket.display())]
    Unreachable { doing: String, socket: PathBuf, reason: String },
    /// The daemon did not answer in time: the call may yet take effect, or not.
    #[error("{doing}: containerd at {} did not answer within {} s", socket.display(), after.as_secs())]
    TimedOut { doing: String, socket: PathBuf, after: Duration },
    /// The object, or one that it needs, does not exist.
    #[error("{doing}: {reason}")]
    NotFound { doing: String, reason: String },
    /// The object exists already: another client made it first.
    #[error("{doing}: {reason}")]
    AlreadyExists { doing: String, reason: String },
    /// Another client is writing the same content.
    #[error("{doing}: {reason}")]
    Locked { doing: String, reason: String },
    /// The daemon refuses the call, and would again.
    #[error("{doing}: {reason}")]
    Refused { doing: String, reason: String },
    /// The daemon failed at the call: a full disk, too many open files, an I/O error. A later try may succeed.
    #[error("{doing}: {reason}")]
    Troubled { doing: String, reason: String },
    /// The registry's or the image's own failure.
    #[error("{doing}")]
    Image {
        doing: String,
        #[source]
        error: ImageError,
    },
}

impl ImageError {
    /// Adds the context with which an error of an image or a registry becomes one of a call.
    pub(super) fn during(self, doing: impl Into<String>) -> Error {
        Error::Image { doing: doing.into(), error: self }
    }
}

impl Error {
    /// Maps a status of the daemon, or of the connection to it, to an error.
    pub(super) fn answered(doing: &str, socket: &Path, status: &Status) -> Self {
        let doing = doing.to_owned();
        let reason = status.message().to_owned();
        // The daemon's statuses have no source; the connection's have what broke.
        if let Some(source) = status.source() {
            return Self::Unreachable { doing, socket: socket.to_owned(), reason: innermost(source) };
        }
        match status.code() {
            Code::Unavailable if reason.contains("locked") => Self::Locked { doing, reason },
            Code::Unavailable => Self::Unreachable { doing, socket: socket.to_owned(), reason },
            Code::NotFound => Self::NotFound { doing, reason },
            Code::AlreadyExists => Self::AlreadyExists { doing, reason },
            code => {
                let reason = if reason.is_empty() { code.description().to_owned() } else { reason };
                if is_daemon_failure(code) {
                    Self::Troubled { doing, reason }
                } else {
                    Self::Refused { doing, reason }
                }
            }
        }
    }

    /// Returns whether the same call may succeed later with nothing changed on this host or in the job.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Locked { .. }
            | Self::Troubled { .. } => true,
            Self::Image { error, .. } => error.is_transient(),
            Self::Refused { reason, .. } => reports_transient(reason),
            Self::NotFound { .. } | Self::AlreadyExists { .. } => false,
        }
    }

    /// Returns whether the registry, or the way to it, may serve a moment later.
    pub(super) fn is_registrys_for_now(&self) -> bool {
        matches!(self, Self::Image { error, .. } if error.is_retryable())
    }

    /// Returns whether the registry doesn't have it.
    pub(super) fn is_not_in_registry(&self) -> bool {
        matches!(self, Self::Image { error: ImageError::NotInRegistry { .. }, .. })
    }

    /// Returns whether content from the registry did not match its digest or size.
    pub(super) fn is_damaged(&self) -> bool {
        matches!(self, Self::Image { error, .. } if error.is_damaged())
    }

    /// Returns whether the same pull may succeed without credentials.
    pub(super) fn is_about_credentials(&self) -> bool {
        matches!(self, Self::Image { error, .. } if error.is_about_credentials())
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub(crate) fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. })
    }

    /// Puts the larger operation that failed in front of the text.
    pub(super) fn context(mut self, larger: &str) -> Self {
        match &mut self {
            Self::Unreachable { doing, .. }
            | Self::TimedOut { doing, .. }
            | Self::NotFound { doing, .. }
            | Self::AlreadyExists { doing, .. }
            | Self::Locked { doing, .. }
            | Self::Refused { doing, .. }
            | Self::Troubled { doing, .. }
            | Self::Image { doing, .. } => *doing = format!("{larger}: {doing}"),
        }
        self
    }
}

/// Returns whether a status code of the daemon is about itself and its host rather than about what it was asked for. It
/// has no code of its own for what the kernel refuses it, such as a full disk.
fn is_daemon_failure(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::Internal
            | Code::Aborted
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: &Status) -> Error {
        Error::answered("stat snapshot a", Path::new("/run/c.sock"), status)
    }

    #[test]
    fn statuses_map_to_errors() {
        assert!(answered(&Status::not_found("no a")).is_not_found());
        assert!(answered(&Status::already_exists("a")).is_already_exists());
        let locked = answered(&Status::new(Code::Unavailable, "ref layer-1 locked for 2s: unavailable"));
        assert!(matches!(&locked, Error::Locked { .. }) && locked.is_transient());
        assert!(!answered(&Status::failed_precondition("parent")).is_transient());
        let full = answered(&Status::unknown("write /a: no space left on device"));
        assert!(matches!(&full, Error::Troubled { .. }) && full.is_transient());
    }

    #[test]
    fn error_texts_name_operation_and_object() {
        let error = answered(&Status::not_found("snapshot a does not exist: not found")).context("pull b");
        assert_eq!(error.to_string(), "pull b: stat snapshot a: snapshot a does not exist: not found");
    }
}
