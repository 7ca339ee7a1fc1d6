//! The option `seccomp_architectures`, which plugin and task have alike.

use nomad_proto::hclspec::Spec;

use super::hclspec::{default, optional};
use super::{ConfigError, value};

const ALL: &str = "all";
const IMAGE: &str = "image";

/// The architectures whose programs a task's seccomp filter lets run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum SeccompArchitectures {
    /// The host's own and all others of which it can run programs, as the profile lists them.
    #[default]
    All,
    /// The host's own and that of the image.
    Image,
}

impl SeccompArchitectures {
    pub(super) const OPTION: &str = "seccomp_architectures";

    pub(super) fn plugin_schema() -> (&'static str, Spec) {
        (Self::OPTION, default(Self::OPTION, "string", &format!("\"{ALL}\"")))
    }

    pub(super) fn task_schema() -> (&'static str, Spec) {
        (Self::OPTION, optional(Self::OPTION, "string"))
    }

    /// Decodes the option; `None` if it is not set.
    pub(super) fn decode(given: Option<String>) -> Result<Option<Self>, ConfigError> {
        match given.filter(|word| !word.is_empty()) {
            None => Ok(None),
            Some(word) if word == ALL => Ok(Some(Self::All)),
            Some(word) if word == IMAGE => Ok(Some(Self::Image)),
            Some(word) => {
                let why = "it must be \"all\" or \"image\"";
                Err(value(Self::OPTION, word, why))
            }
        }
    }

    /// Returns the option's value.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::All => ALL,
            Self::Image => IMAGE,
        }
    }

    /// Returns the error for a task that has no filter.
    pub(super) fn without_filter(self) -> ConfigError {
        let why = "the task has no seccomp profile; set seccomp = true, or leave this option out";
        value(Self::OPTION, self.word(), why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_all_and_image() {
        let decode = |word: &str| SeccompArchitectures::decode(Some(word.to_owned()));
        assert_eq!(SeccompArchitectures::decode(None).unwrap(), None);
        assert_eq!(decode("").unwrap(), None);
        assert_eq!(decode("all").unwrap(), Some(SeccompArchitectures::All));
        assert_eq!(decode("image").unwrap(), Some(SeccompArchitectures::Image));
        let error = decode("native").unwrap_err().to_string();
        assert!(error.contains("seccomp_architectures") && error.contains("\"image\""), "{error}");
    }
}
