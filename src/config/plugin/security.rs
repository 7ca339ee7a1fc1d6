//! What the operator lets jobs ask for in rights, and what tasks get that ask for nothing. The names are those of Nomad's
//! docker driver; all is allowed by default, as it was under the driver that this one succeeds.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::default;
use crate::config::{CapabilityList, ConfigError};

/// The limits of a task's rights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Gates {
    pub allow_privileged: bool,
    /// What is not in it no task has, by default or by its own wish.
    pub allow_caps: CapabilityList,
    /// Whether a task that does not say so has a seccomp profile.
    pub seccomp: bool,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    allow_privileged: Option<bool>,
    allow_caps: Option<Vec<Option<String>>>,
    seccomp: Option<bool>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("allow_privileged", default("allow_privileged", "bool", "true")),
        ("allow_caps", default("allow_caps", "list(string)", "[\"all\"]")),
        ("seccomp", default("seccomp", "bool", "true")),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<Gates, ConfigError> {
        let Self { allow_privileged, allow_caps, seccomp } = self;
        let all = || vec![Some("all".to_owned())];
        Ok(Gates {
            allow_privileged: allow_privileged.unwrap_or(true),
            allow_caps: CapabilityList::decode("allow_caps", Some(allow_caps.unwrap_or_else(all)))?,
            seccomp: seccomp.unwrap_or(true),
        })
    }
}
