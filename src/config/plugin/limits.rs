//! The operator's limits on a task's resources: defaults, and maximums that no job may exceed. The names are those of
//! Nomad's docker driver.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{default, optional};
use crate::config::number::Number;
use crate::config::{ConfigError, MAX_OOM_SCORE_ADJ, MAX_PIDS};

/// The plugin's options about limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PluginLimits {
    /// Maximum number of processes of a task, and the default for one that sets none. `None` is no limit.
    pub pids_limit: Option<i64>,
    /// Default OOM score adjustment: how likely the kernel kills the task when the machine runs out of memory.
    pub oom_score_adj: i64,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    pids_limit: Option<Number>,
    oom_score_adj: Option<Number>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("pids_limit", optional("pids_limit", "number")),
        ("oom_score_adj", default("oom_score_adj", "number", "0")),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<PluginLimits, ConfigError> {
        let Self { pids_limit, oom_score_adj } = self;
        let pids_limit = pids_limit.map(|number| number.within("pids_limit", 0, MAX_PIDS)).transpose()?;
        let oom_score_adj =
            oom_score_adj.map(|number| number.within("oom_score_adj", 0, MAX_OOM_SCORE_ADJ)).transpose()?;
        Ok(PluginLimits {
            pids_limit: pids_limit.filter(|limit| *limit > 0),
            oom_score_adj: oom_score_adj.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::plugin::tests::{decode, plugin};

    #[test]
    fn limits_are_within_the_kernels_and_no_process_limit_by_default() {
        let limits = |options: Value| plugin(options).limits;
        assert_eq!(limits(json!({})), PluginLimits::default());
        let given = limits(json!({"pids_limit": 100, "oom_score_adj": 500}));
        assert_eq!(given, PluginLimits { pids_limit: Some(100), oom_score_adj: 500 });
        assert_eq!(limits(json!({"pids_limit": 0})).pids_limit, None);
        for (option, wrong) in
            [("pids_limit", -1), ("pids_limit", MAX_PIDS + 1), ("oom_score_adj", -1), ("oom_score_adj", 1001)]
        {
            let options = json!({"containerd_runtime": "io.containerd.runc.v2", option: wrong});
            assert!(decode(&options).unwrap_err().to_string().contains(option), "{option} = {wrong}");
        }
    }
}
