//! Resource limits of a task beyond those that the job's `resources` set. The names are those of Nomad's docker and
//! podman drivers, and of the driver that this one succeeds.

mod cpu;
mod memory;
mod ulimit;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;
use serde_json::Value;

use crate::config::hclspec::optional;
use crate::config::number::Number;
use crate::config::plugin::PluginLimits;
use crate::config::{ConfigError, MAX_OOM_SCORE_ADJ, MAX_PIDS, Warnings, forbidden, string_map};
pub(crate) use cpu::CpuLimits;
pub(crate) use memory::{MemoryLimits, Swap};
pub(crate) use ulimit::Rlimit;

/// The options about a task's limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub pids: PidsLimit,
    /// Resource limits of the task's processes, sorted by name, without duplicates.
    pub rlimits: Vec<Rlimit>,
    /// OOM score adjustment; `None` is the operator's default.
    pub oom_score_adj: Option<i64>,
    pub cpu: CpuLimits,
    pub memory: MemoryLimits,
}

/// Maximum number of a task's processes; each thread counts as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PidsLimit {
    #[default]
    Operators,
    Unlimited,
    Of(i64),
}

#[derive(Deserialize)]
pub(super) struct Raw {
    pids_limit: Option<Number>,
    ulimit: Option<Value>,
    file_limit: Option<Number>,
    oom_score_adj: Option<Number>,
    #[serde(flatten)]
    cpu: cpu::Raw,
    #[serde(flatten)]
    memory: memory::Raw,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    let own = [
        ("pids_limit", optional("pids_limit", "number")),
        ("ulimit", string_map::schema("ulimit")),
        ("file_limit", optional("file_limit", "number")),
        ("oom_score_adj", optional("oom_score_adj", "number")),
    ];
    own.into_iter().chain(cpu::schema()).chain(memory::schema()).collect()
}

impl Raw {
    pub(super) fn decode(self, warnings: &mut Warnings) -> Result<Limits, ConfigError> {
        let Self { pids_limit, ulimit, file_limit, oom_score_adj, cpu, memory } = self;
        let pids_limit = pids_limit.map(|number| number.within("pids_limit", -1, MAX_PIDS)).transpose()?;
        // A negative value is refused: the task would be killed after the host's own processes.
        let oom_score_adj =
            oom_score_adj.map(|number| number.within("oom_score_adj", 0, MAX_OOM_SCORE_ADJ)).transpose()?;
        Ok(Limits {
            pids: match pids_limit {
                None | Some(0) => PidsLimit::Operators,
                Some(-1) => PidsLimit::Unlimited,
                Some(limit) => PidsLimit::Of(limit),
            },
            rlimits: ulimit::decode(ulimit, file_limit)?,
            oom_score_adj,
            cpu: cpu.decode(warnings)?,
            memory: memory.decode()?,
        })
    }
}

impl Limits {
    pub(super) fn permitted_by(&self, operators: &PluginLimits) -> Result<(), ConfigError> {
        let Self { pids, rlimits: _, oom_score_adj: _, cpu: _, memory: _ } = self;
        let (requested, PluginLimits { pids_limit, oom_score_adj: _ }) = (pids, operators);
        let Some(most) = *pids_limit else { return Ok(()) };
        let too_many = |requested: i64| {
            forbidden("pids_limit", &requested.to_string(), "pids_limit", &requested.to_string())
        };
        match *requested {
            PidsLimit::Unlimited => Err(too_many(-1)),
            PidsLimit::Of(limit) if limit > most => Err(too_many(limit)),
            PidsLimit::Operators | PidsLimit::Of(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn pids_limit_is_at_most_the_operators() {
        let pids = |limit| decode(&json!({"image": "redis", "pids_limit": limit})).unwrap().limits;
        assert_eq!(pids(json!(null)).pids, PidsLimit::Operators);
        assert_eq!(pids(json!(0)).pids, PidsLimit::Operators);
        assert_eq!(pids(json!(7)).pids, PidsLimit::Of(7));
        refusal("pids_limit", json!(-2));
        refusal("pids_limit", json!(1.5));
        let operators = PluginLimits { pids_limit: Some(8), ..PluginLimits::default() };
        pids(json!(8)).permitted_by(&operators).unwrap();
        pids(json!(0)).permitted_by(&operators).unwrap();
        for limit in [9, -1] {
            pids(json!(limit)).permitted_by(&PluginLimits::default()).unwrap();
            let error = pids(json!(limit)).permitted_by(&operators).unwrap_err().to_string();
            assert!(error.contains("pids_limit") && error.contains(&limit.to_string()), "{error}");
        }
    }

    #[test]
    fn oom_score_adj_is_not_negative() {
        let score =
            |score| decode(&json!({"image": "redis", "oom_score_adj": score})).unwrap().limits.oom_score_adj;
        assert_eq!(score(json!(1000)), Some(1000));
        assert_eq!(score(json!(null)), None);
        refusal("oom_score_adj", json!(-1));
        refusal("oom_score_adj", json!(1001));
    }
}
