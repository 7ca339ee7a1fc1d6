//! Errors of calls to containerd and to registries, by what the caller does next. Each text starts with what was being
//! done and to what; the daemon's own words follow.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};

use crate::sys::os_error::tells_transient;

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
    #[error("{doing}: {problem}")]
    Image { doing: String, problem: Problem },
}

/// The cause of an image's or a registry's failure, before its context is added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    #[error("not in the registry: {reason}")]
    NotInRegistry { reason: String },
    /// Access denied. Permanent with the job's own `auth` (`own`); other credentials may be better ones at the next
    /// start.
    #[error("the registry denies it: {reason}")]
    Denied { reason: String, own: bool },
    /// No answer from the registry, or an unusable one.
    #[error("registry: {reason}")]
    Registry { reason: String, retry: Retry },
    /// Content that doesn't match its digest or size: damaged on the way, or in a cache on the way.
    #[error("damaged on the way: {reason}")]
    Damaged { reason: String },
    /// The image itself can't be read, or contradicts itself.
    #[error("corrupt: {reason}")]
    Corrupt { reason: String },
    /// An intact image that doesn't fit this host or this driver.
    #[error("unsupported: {reason}")]
    Unsupported { reason: String },
    #[error("not done within {} (image_pull_timeout){}", humantime::format_duration(*after), waiting(waits))]
    Deadline { after: Duration, waits: Vec<String> },
    /// An archive that can't be loaded.
    #[error("the archive: {reason}")]
    Archive { reason: String },
    #[error(
        "the registry has sent nothing for {} (the plugin's option pull_activity_timeout)",
        humantime::format_duration(*after)
    )]
    StandsStill { after: Duration },
    #[error("it is not here, and the job's option image_pull_policy says that it is not to be pulled")]
    NotHere,
    /// Credentials for the registry could not be obtained.
    #[error("there are no credentials to be had: {reason}")]
    Credentials { reason: String, retry: Retry },
    /// The failures of several hosts that were asked for the same content, each in its own way.
    #[error("no host gives it: {}", told(failures))]
    Hosts { failures: Vec<(String, Problem)> },
}

/// Earliest time at which another try may succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// In a moment: the pull itself retries.
    Soon,
    /// Later, without a change to this node or the job: Nomad may start the task again.
    Later,
    /// Not before somebody has changed something on this node, in the job, or in the registry.
    Never,
}

impl Problem {
    pub(super) fn corrupt(reason: impl Into<String>) -> Self {
        Self::Corrupt { reason: reason.into() }
    }

    pub(super) fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported { reason: reason.into() }
    }

    pub(super) fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged { reason: reason.into() }
    }

    /// Returns the error of a broken connection or answer, which is likely to be better in a moment.
    pub(super) fn broken(reason: impl Into<String>) -> Self {
        Self::Registry { reason: reason.into(), retry: Retry::Soon }
    }

    /// Returns the error of an unusable answer of a registry, which is no better if asked again at once.
    pub(super) fn unfit(reason: impl Into<String>) -> Self {
        Self::Registry { reason: reason.into(), retry: Retry::Later }
    }

    /// Returns the error of a wrong setting on this node.
    pub(super) fn useless(reason: impl Into<String>) -> Self {
        Self::Registry { reason: reason.into(), retry: Retry::Never }
    }

    /// Turns a corruption into damage on the way, for bytes that a registry sent: that they don't fit is not the
    /// image's fault.
    pub(super) fn on_the_way(self) -> Self {
        match self {
            Self::Corrupt { reason } => Self::Damaged { reason },
            other => other,
        }
    }

    /// Returns when another try may succeed; the table in docs/troubleshooting.md says the same.
    fn retry(&self) -> Retry {
        match self {
            Self::Registry { retry, .. } | Self::Credentials { retry, .. } => *retry,
            Self::Deadline { .. }
            | Self::StandsStill { .. }
            | Self::Damaged { .. }
            | Self::Denied { own: false, .. } => Retry::Later,
            Self::Hosts { failures } => {
                let of = |retry| failures.iter().any(|(_, problem)| problem.retry() == retry);
                [Retry::Soon, Retry::Later].into_iter().find(|retry| of(*retry)).unwrap_or(Retry::Never)
            }
            Self::NotInRegistry { .. }
            | Self::Denied { own: true, .. }
            | Self::Archive { .. }
            | Self::NotHere
            | Self::Corrupt { .. }
            | Self::Unsupported { .. } => Retry::Never,
        }
    }

    /// Returns whether the pull itself retries.
    pub(super) fn is_retryable(&self) -> bool {
        self.retry() == Retry::Soon
    }

    /// Returns whether Nomad may start the task again.
    pub(super) fn is_transient(&self) -> bool {
        self.retry() != Retry::Never
    }

    pub(super) fn is_damaged(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Hosts { failures } => failures.iter().any(|(_, problem)| problem.is_damaged()),
            _ => false,
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

/// Formats what the pull was waiting for at its deadline, for the error's text.
fn waiting(waits: &[String]) -> String {
    match waits {
        [] => String::new(),
        waits => format!("; it was waiting for {}", waits.join(", and for ")),
    }
}

fn told(failures: &[(String, Problem)]) -> String {
    failures.iter().map(|(host, problem)| format!("{host}: {problem}")).collect::<Vec<_>>().join("; ")
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
                if is_trouble(code) {
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
            Self::Image { problem, .. } => problem.is_transient(),
            Self::Refused { reason, .. } => tells_transient(reason),
            Self::NotFound { .. } | Self::AlreadyExists { .. } => false,
        }
    }

    /// Returns whether the registry, or the way to it, may serve a moment later.
    pub(super) fn is_registrys_for_now(&self) -> bool {
        matches!(self, Self::Image { problem, .. } if problem.is_retryable())
    }

    /// Returns whether content from the registry did not match its digest or size.
    pub(super) fn is_damaged(&self) -> bool {
        matches!(self, Self::Image { problem, .. } if problem.is_damaged())
    }

    /// Returns whether the same pull may succeed without credentials.
    pub(super) fn is_about_credentials(&self) -> bool {
        matches!(self, Self::Image { problem, .. } if problem.is_about_credentials())
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
fn is_trouble(code: Code) -> bool {
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

/// Returns the last error of a chain, which says what happened; the links before it say only `transport error`.
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
        let full = answered(&Status::unknown("write /a: no space left on device"));
        assert!(matches!(&full, Error::Troubled { .. }) && full.is_transient());
    }

    #[test]
    fn a_text_names_what_was_done_to_what() {
        let error = answered(&Status::not_found("snapshot a does not exist: not found")).context("pull b");
        assert_eq!(error.to_string(), "pull b: stat snapshot a: snapshot a does not exist: not found");
    }

    #[test]
    fn problems_are_classed_as_the_table_says() {
        let reason = String::new;
        let denied = |own| Problem::Denied { reason: reason(), own };
        let registry = |retry| Problem::Registry { reason: reason(), retry };
        let hosts = |problem| Problem::Hosts {
            failures: vec![
                ("a".to_owned(), Problem::NotInRegistry { reason: reason() }),
                ("b".to_owned(), problem),
            ],
        };
        for (problem, in_the_pull, by_nomad) in [
            (registry(Retry::Soon), true, true),
            (registry(Retry::Later), false, true),
            (registry(Retry::Never), false, false),
            (denied(false), false, true),
            (denied(true), false, false),
            (Problem::damaged(""), false, true),
            (Problem::corrupt(""), false, false),
            (Problem::unsupported(""), false, false),
            (Problem::NotInRegistry { reason: reason() }, false, false),
            (hosts(registry(Retry::Soon)), true, true),
            (hosts(denied(false)), false, true),
            (hosts(denied(true)), false, false),
        ] {
            assert_eq!(
                (problem.is_retryable(), problem.is_transient()),
                (in_the_pull, by_nomad),
                "{problem:?}"
            );
        }
    }

    #[test]
    fn a_deadline_says_what_was_waited_for() {
        let after = Duration::from_secs(300);
        let text = |waits| Problem::Deadline { after, waits }.to_string();
        assert_eq!(text(Vec::new()), "not done within 5m (image_pull_timeout)");
        let waits = text(vec!["other pulls".to_owned(), "the same layer".to_owned()]);
        assert!(waits.ends_with("; it was waiting for other pulls, and for the same layer"), "{waits}");
    }
}
