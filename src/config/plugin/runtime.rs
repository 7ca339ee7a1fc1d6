//! The plugin block's `allow_runtimes`: what a job may name to make its container with. It runs as root on the host.

use nomad_proto::hclspec::Spec;

use crate::config::hclspec::default;
use crate::config::{ConfigError, forbidden, no_nulls};

/// Names that are looked for in the operator's own directories only.
const DEFAULT: &str = r#"["io.containerd.runc.v2", "runc", "crun"]"#;

/// Runtimes, by name or path, beside those that the plugin is configured with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AllowRuntimes(Vec<String>);

pub(super) fn schema() -> Spec {
    default("allow_runtimes", "list(string)", DEFAULT)
}

pub(super) fn decode(raw: Option<Vec<Option<String>>>) -> Result<AllowRuntimes, ConfigError> {
    let well_known = || serde_json::from_str(DEFAULT).unwrap_or_default();
    no_nulls("allow_runtimes", Some(raw.unwrap_or_else(well_known))).map(AllowRuntimes)
}

impl AllowRuntimes {
    /// # Errors
    /// Names the operator's option, where `name` is not among what it lists.
    pub(in crate::config) fn permit(&self, option: &'static str, name: &str) -> Result<(), ConfigError> {
        if self.0.iter().any(|one| one == name) {
            return Ok(());
        }
        Err(forbidden(option, name, "allow_runtimes", &format!("{name:?}")))
    }
}
