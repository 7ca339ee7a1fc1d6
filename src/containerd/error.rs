//! How dealing with containerd or a registry failed, by what the caller does next. Each text starts with what was being
//! done and to what; the daemon's own words follow.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};

use crate::os_error::tells_transient;

/// Callers that share one pull share its error, hence `Clone`.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody answers at the socket, or the daemon went away in the middle of the call.
    #[error("{doing}: containerd can't be reached at {}: {reason}", socket.display())]
    Unreachable { doing: String, socket: PathBuf, reason: String },
    /// It may yet be done, or not.
    #[error("{doing}: containerd at {} did not answer within {} s", socket.display(), after.as_secs())]
    TimedOut { doing: String, socket: PathBuf, after: Duration },
    /// The object, or one that it needs, does not exist.
    #[error("{doing}: {reason}")]
    NotFound { doing: String, reason: String },
    /// Somebody else made it first.
    #[error("{doing}: {reason}")]
    AlreadyExists { doing: String, reason: String },
    /// Another client is writing the same content.
    #[error("{doing}: {reason}")]
    Locked { doing: String, reason: String },
    /// The daemon says no, and would again.
    #[error("{doing}: {reason}")]
    Refused { doing: String, reason: String },
    /// The job has to name its image properly.
    #[error("{input:?} is not an image name: {why}")]
    BadReference { input: String, why: &'static str },
    /// The registry or the image itself.
    #[error("{doing}: {problem}")]
    Image { doing: String, problem: Problem },
}

/// What can be wrong with an image or its registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    #[error("not in the registry: {reason}")]
    NotInRegistry { reason: String },
    #[error("the registry denies it: {reason}")]
    Denied { reason: String },
    /// No answer, or one that is of no use.
    #[error("registry: {reason}")]
    Registry { reason: String, transient: bool },
    /// Not what its digest, size or manifest promises, or not readable at all.
    #[error("corrupt: {reason}")]
    Corrupt { reason: String },
    /// It is well, but not for this host or this driver.
    #[error("unsupported: {reason}")]
    Unsupported { reason: String },
    #[error("not done within {} (image_pull_timeout)", humantime::format_duration(*after))]
    Deadline { after: Duration },
    /// One that is to be loaded.
    #[error("the archive: {reason}")]
    Archive { reason: String },
    #[error(
        "the registry has sent nothing for {} (the plugin's option pull_activity_timeout)",
        humantime::format_duration(*after)
    )]
    StandsStill { after: Duration },
    #[error("it is not here, and the job's option image_pull_policy says that it is not to be pulled")]
    NotHere,
    /// What the registry would be asked with can't be had.
    #[error("there are no credentials to be had: {reason}")]
    Credentials { reason: String, transient: bool },
    /// Each of several hosts that are asked for it fails in its own way.
    #[error("no host gives it: {}", told(failures))]
    Hosts { failures: Vec<(String, Problem)> },
}

impl Problem {
    pub(super) fn corrupt(reason: impl Into<String>) -> Self {
        Self::Corrupt { reason: reason.into() }
    }

    pub(super) fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported { reason: reason.into() }
    }

    pub(super) fn broken(reason: impl Into<String>) -> Self {
        Self::Registry { reason: reason.into(), transient: true }
    }

    pub(super) fn useless(reason: impl Into<String>) -> Self {
        Self::Registry { reason: reason.into(), transient: false }
    }

    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Registry { transient, .. } | Self::Credentials { transient, .. } => *transient,
            Self::Deadline { .. } | Self::StandsStill { .. } => true,
            Self::Hosts { failures } => failures.iter().any(|(_, problem)| problem.is_transient()),
            Self::NotInRegistry { .. }
            | Self::Denied { .. }
            | Self::Archive { .. }
            | Self::NotHere
            | Self::Corrupt { .. }
            | Self::Unsupported { .. } => false,
        }
    }

    fn is_about_credentials(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::Credentials { .. } => true,
            Self::Hosts { failures } => failures.iter().any(|(_, problem)| problem.is_about_credentials()),
            _ => false,
        }
    }

    pub(super) fn during(self, doing: impl Into<String>) -> Error {
        Error::Image { doing: doing.into(), problem: self }
    }
}

fn told(failures: &[(String, Problem)]) -> String {
    failures.iter().map(|(host, problem)| format!("{host}: {problem}")).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// What a status from the daemon, or from the connection to it, means.
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
            code if reason.is_empty() => Self::Refused { doing, reason: code.description().to_owned() },
            _ => Self::Refused { doing, reason },
        }
    }

    /// Whether the same call may succeed later with nothing changed on this host or in the job.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Locked { .. } => true,
            Self::Image { problem, .. } => problem.is_transient(),
            Self::Refused { reason, .. } => tells_transient(reason),
            Self::NotFound { .. } | Self::AlreadyExists { .. } | Self::BadReference { .. } => false,
        }
    }

    /// Whether the registry, or the way to it, may serve a moment later.
    pub(super) fn is_registrys_for_now(&self) -> bool {
        matches!(self, Self::Image { problem, .. } if problem.is_transient())
    }

    pub(super) fn is_corrupt(&self) -> bool {
        matches!(self, Self::Image { problem: Problem::Corrupt { .. }, .. })
    }

    /// Whether it might go better without credentials.
    pub(super) fn is_about_credentials(&self) -> bool {
        matches!(self, Self::Image { problem, .. } if problem.is_about_credentials())
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub(crate) fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. })
    }

    /// Puts the larger thing that was being done in front.
    pub(super) fn context(mut self, larger: &str) -> Self {
        match &mut self {
            Self::Unreachable { doing, .. }
            | Self::TimedOut { doing, .. }
            | Self::NotFound { doing, .. }
            | Self::AlreadyExists { doing, .. }
            | Self::Locked { doing, .. }
            | Self::Refused { doing, .. }
            | Self::Image { doing, .. } => *doing = format!("{larger}: {doing}"),
            Self::BadReference { .. } => {}
        }
        self
    }
}

/// The end of a chain of errors is what happened; the links say `transport error`.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: &Status) -> Error {
        Error::answered("stat snapshot a", Path::new("/run/c.sock"), status)
    }

    #[test]
    fn statuses_become_what_to_do_next() {
        assert!(answered(&Status::not_found("no a")).is_not_found());
        assert!(answered(&Status::already_exists("a")).is_already_exists());
        let locked = answered(&Status::new(Code::Unavailable, "ref layer-1 locked for 2s: unavailable"));
        assert!(matches!(&locked, Error::Locked { .. }) && locked.is_transient());
        assert!(!answered(&Status::failed_precondition("parent")).is_transient());
    }

    #[test]
    fn a_text_names_what_was_done_to_what() {
        let error = answered(&Status::not_found("snapshot a does not exist: not found")).context("pull b");
        assert_eq!(error.to_string(), "pull b: stat snapshot a: snapshot a does not exist: not found");
    }
}
