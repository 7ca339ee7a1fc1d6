//! What a task shares with the host and with others, and what it has for itself.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::optional;
use crate::config::plugin::AllowedModes;
use crate::config::{ConfigError, value};

/// The options about a task's namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub pid_mode: PidMode,
}

/// Which processes a task sees, and can be seen by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PidMode {
    /// Its own only.
    #[default]
    Private,
    /// All of the host's.
    Host,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    pid_mode: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![("pid_mode", optional("pid_mode", "string"))]
}

impl Raw {
    pub(super) fn decode(self) -> Result<Namespaces, ConfigError> {
        let Self { pid_mode } = self;
        Ok(Namespaces { pid_mode: PidMode::named(pid_mode.unwrap_or_default())? })
    }
}

impl PidMode {
    fn named(mode: String) -> Result<Self, ConfigError> {
        match mode.as_str() {
            "" | "private" => Ok(Self::Private),
            "host" => Ok(Self::Host),
            _ => Err(value("pid_mode", mode, "it must be \"private\" or \"host\"")),
        }
    }
}

impl Namespaces {
    pub(super) fn permitted_by(&self, allowed: &AllowedModes) -> Result<(), ConfigError> {
        let Self { pid_mode } = self;
        match pid_mode {
            PidMode::Private => Ok(()),
            PidMode::Host => AllowedModes::permit("pid_mode", "host", "pid", &allowed.pid),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::task::tests::refusal;

    #[test]
    fn a_mode_is_one_that_there_is_and_that_the_operator_allows() {
        assert!(refusal("pid_mode", json!("shared")).contains("\"host\""));
        let shared = Namespaces { pid_mode: PidMode::Host };
        let error = shared.permitted_by(&AllowedModes::default()).unwrap_err().to_string();
        assert!(error.contains("pid_mode") && error.contains("allowed_modes.pid"), "{error}");
        shared.permitted_by(&AllowedModes { pid: vec!["host".to_owned()] }).unwrap();
    }
}
