//! The plugin block's `allowed_modes { .. }`: which of the host's namespaces a job may ask for.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block, object, optional};
use crate::config::{ConfigError, forbidden, no_nulls};

/// For each kind of namespace what a task's option for it may be. What shares nothing with the host always may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AllowedModes {
    pub pid: Vec<String>,
}

#[derive(Default, Deserialize)]
pub(super) struct Raw {
    pid: Option<Vec<Option<String>>>,
}

pub(super) fn schema() -> Spec {
    block("allowed_modes", object([("pid", optional("pid", "list(string)"))]))
}

impl Raw {
    pub(super) fn decode(self) -> Result<AllowedModes, ConfigError> {
        let Self { pid } = self;
        Ok(AllowedModes { pid: no_nulls("allowed_modes.pid", pid)? })
    }
}

impl AllowedModes {
    /// # Errors
    /// Names the operator's option, where `mode` is not among what it lists.
    pub(in crate::config) fn permit(
        option: &'static str,
        mode: &str,
        gate: &str,
        allowed: &[String],
    ) -> Result<(), ConfigError> {
        if allowed.iter().any(|one| one == mode) {
            return Ok(());
        }
        Err(forbidden(option, mode, &format!("allowed_modes.{gate}"), &format!("{gate} = [{mode:?}]")))
    }
}
