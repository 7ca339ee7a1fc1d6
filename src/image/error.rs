//! Errors of images and registries, by when another try may succeed. An error has no context yet: what was being done,
//! and to which image, is added where a call ends. Knows nothing of containerd.

use std::time::Duration;

/// The cause of an image's or a registry's failure, before its context is added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageError {
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
    #[error("not finished within {} (image_pull_timeout){}", humantime::format_duration(*after), waiting(waits))]
    Deadline { after: Duration, waits: Vec<String> },
    /// An archive that can't be loaded.
    #[error("the archive: {reason}")]
    Archive { reason: String },
    #[error(
        "the registry has sent nothing for {} (the plugin option pull_activity_timeout)",
        humantime::format_duration(*after)
    )]
    Stalled { after: Duration },
    #[error("it is not present on this node, and the job's option image_pull_policy forbids a pull")]
    NotPresent,
    /// Credentials for the registry could not be obtained.
    #[error("can't get credentials: {reason}")]
    Credentials { reason: String, retry: Retry },
    /// The failures of several hosts that were asked for the same content, each in its own way.
    #[error("no host provides it: {}", joined(failures))]
    Hosts { failures: Vec<(String, ImageError)> },
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

impl ImageError {
    pub(crate) fn corrupt(reason: impl Into<String>) -> Self {
        Self::Corrupt { reason: reason.into() }
    }

    pub(crate) fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported { reason: reason.into() }
    }

    pub(crate) fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged { reason: reason.into() }
    }

    /// Returns the error of a broken connection or answer, which is likely to be better in a moment.
    pub(crate) fn transient(reason: impl Into<String>) -> Self {
        Self::Registry { reason: reason.into(), retry: Retry::Soon }
    }

    /// Returns the error of an unusable answer of a registry, which is no better if asked again at once.
    pub(crate) fn unusable(reason: impl Into<String>) -> Self {
        Self::Registry { reason: reason.into(), retry: Retry::Later }
    }

    /// Returns the error of a wrong setting on this node.
    pub(crate) fn permanent(reason: impl Into<String>) -> Self {
        Self::Registry { reason: reason.into(), retry: Retry::Never }
    }

    /// Turns a corruption into damage on the way, for bytes that a registry sent: that they don't fit is not the
    /// image's fault.
    pub(crate) fn on_the_way(self) -> Self {
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
            | Self::Stalled { .. }
            | Self::Damaged { .. }
            | Self::Denied { own: false, .. } => Retry::Later,
            Self::Hosts { failures } => {
                let of = |retry| failures.iter().any(|(_, error)| error.retry() == retry);
                [Retry::Soon, Retry::Later].into_iter().find(|retry| of(*retry)).unwrap_or(Retry::Never)
            }
            Self::NotInRegistry { .. }
            | Self::Denied { own: true, .. }
            | Self::Archive { .. }
            | Self::NotPresent
            | Self::Corrupt { .. }
            | Self::Unsupported { .. } => Retry::Never,
        }
    }

    /// Returns whether the pull itself retries.
    pub(crate) fn is_retryable(&self) -> bool {
        self.retry() == Retry::Soon
    }

    /// Returns whether Nomad may start the task again.
    pub(crate) fn is_transient(&self) -> bool {
        self.retry() != Retry::Never
    }

    pub(crate) fn is_damaged(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Hosts { failures } => failures.iter().any(|(_, error)| error.is_damaged()),
            _ => false,
        }
    }

    /// Returns whether another try without credentials may succeed.
    pub(crate) fn is_about_credentials(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::Credentials { .. } => true,
            Self::Hosts { failures } => failures.iter().any(|(_, error)| error.is_about_credentials()),
            _ => false,
        }
    }
}

/// Formats what the pull was waiting for at its deadline, for the error's text.
fn waiting(waits: &[String]) -> String {
    match waits {
        [] => String::new(),
        waits => format!("; it was waiting for {}", waits.join(", and for ")),
    }
}

fn joined(failures: &[(String, ImageError)]) -> String {
    failures.iter().map(|(host, error)| format!("{host}: {error}")).collect::<Vec<_>>().join("; ")
}

/// Returns the error of an image that is larger than an option of the plugin allows.
pub(crate) fn too_large(what: &str, size_bytes: u64, limit_bytes: u64, option: &str) -> ImageError {
    let what = format!("{what} {size_bytes} bytes or more");
    ImageError::unsupported(format!("{what}, and the plugin option {option} allows {limit_bytes}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_errors_are_classified() {
        let reason = String::new;
        let denied = |own| ImageError::Denied { reason: reason(), own };
        let registry = |retry| ImageError::Registry { reason: reason(), retry };
        let hosts = |error| ImageError::Hosts {
            failures: vec![
                ("a".to_owned(), ImageError::NotInRegistry { reason: reason() }),
                ("b".to_owned(), error),
            ],
        };
        for (error, in_the_pull, by_nomad) in [
            (registry(Retry::Soon), true, true),
            (registry(Retry::Later), false, true),
            (registry(Retry::Never), false, false),
            (denied(false), false, true),
            (denied(true), false, false),
            (ImageError::damaged(""), false, true),
            (ImageError::corrupt(""), false, false),
            (ImageError::unsupported(""), false, false),
            (ImageError::NotInRegistry { reason: reason() }, false, false),
            (hosts(registry(Retry::Soon)), true, true),
            (hosts(denied(false)), false, true),
            (hosts(denied(true)), false, false),
        ] {
            assert_eq!((error.is_retryable(), error.is_transient()), (in_the_pull, by_nomad), "{error:?}");
        }
    }

    #[test]
    fn a_deadline_names_its_waits() {
        let after = Duration::from_secs(300);
        let text = |waits| ImageError::Deadline { after, waits }.to_string();
        assert_eq!(text(Vec::new()), "not finished within 5m (image_pull_timeout)");
        let waits = text(vec!["other pulls".to_owned(), "the same layer".to_owned()]);
        assert!(waits.ends_with("; it was waiting for other pulls, and for the same layer"), "{waits}");
    }
}
