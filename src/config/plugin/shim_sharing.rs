//! The plugin's option about shims that have the containers of several tasks.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::ConfigError;
use crate::config::hclspec::default;

const OPTION: &str = "shim_sharing";

/// The tasks whose containers are under one shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ShimSharing {
    /// Each task has a shim of its own.
    #[default]
    Task,
    /// The tasks of an allocation.
    Allocation,
    /// All tasks of the node.
    Node,
}

impl ShimSharing {
    const ALL: [Self; 3] = [Self::Task, Self::Allocation, Self::Node];

    /// Returns the option's value for this.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Allocation => "allocation",
            Self::Node => "node",
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Raw {
    shim_sharing: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![(OPTION, default(OPTION, "string", &format!("\"{}\"", ShimSharing::Task.name())))]
}

impl Raw {
    pub(super) fn decode(self) -> Result<ShimSharing, ConfigError> {
        let Some(value) = self.shim_sharing.filter(|value| !value.is_empty()) else {
            return Ok(ShimSharing::Task);
        };
        ShimSharing::ALL.into_iter().find(|sharing| sharing.name() == value).ok_or_else(|| {
            let why = "it must be \"task\", \"allocation\" or \"node\"".to_owned();
            ConfigError::Value { option: OPTION, value, why }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::plugin::tests::{decode, plugin};

    #[test]
    fn each_task_has_its_own_shim_unless_told_otherwise() {
        assert_eq!(plugin(json!({})).shim_sharing, ShimSharing::Task);
        for sharing in ShimSharing::ALL {
            assert_eq!(plugin(json!({OPTION: sharing.name()})).shim_sharing, sharing);
        }
        let options = json!({"containerd_runtime": "io.containerd.runc.v2", OPTION: "pod"});
        let error = decode(&options).unwrap_err().to_string();
        assert!(error.contains(OPTION) && error.contains("\"allocation\""), "{error}");
    }
}
