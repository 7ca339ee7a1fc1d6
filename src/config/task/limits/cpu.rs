//! The options `cpu_hard_limit`, `cpu_cfs_period`, `cpuset_cpus` and `cpuset_mems`: a limit on CPU time, and the CPUs
//! and memory nodes that a task may use.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::optional;
use crate::config::number::Number;
use crate::config::{ConfigError, IdList, Warnings, value};

/// The kernel's bounds of a CFS period, in microseconds.
const LEAST_PERIOD_US: i64 = 1000;
const MOST_PERIOD_US: i64 = 1_000_000;
const DEFAULT_PERIOD_US: i64 = 100_000;

/// The options about a task's CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CpuLimits {
    /// Period of the hard limit in microseconds: the task gets no more than its share of CPU time, even if nobody else
    /// wants the rest. `None` is no hard limit.
    pub hard_limit_period_us: Option<u64>,
    pub cpuset_cpus: Option<IdList>,
    pub cpuset_mems: Option<IdList>,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    cpu_hard_limit: Option<bool>,
    cpu_cfs_period: Option<Number>,
    cpuset_cpus: Option<String>,
    cpuset_mems: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("cpu_hard_limit", optional("cpu_hard_limit", "bool")),
        ("cpu_cfs_period", optional("cpu_cfs_period", "number")),
        ("cpuset_cpus", optional("cpuset_cpus", "string")),
        ("cpuset_mems", optional("cpuset_mems", "string")),
    ]
}

impl Raw {
    pub(super) fn decode(self, warnings: &mut Warnings) -> Result<CpuLimits, ConfigError> {
        let Self { cpu_hard_limit, cpu_cfs_period, cpuset_cpus, cpuset_mems } = self;
        let is_hard = cpu_hard_limit.unwrap_or(false);
        let period = cpu_cfs_period.filter(|number| !number.is_zero());
        if period.is_some() && !is_hard {
            let why = "it is the period of the hard limit, which is not set: set cpu_hard_limit = true";
            warnings.add("cpu_cfs_period", why);
        }
        let period = period
            .filter(|_| is_hard)
            .map(|number| number.within("cpu_cfs_period", LEAST_PERIOD_US, MOST_PERIOD_US))
            .transpose()?;
        let period = u64::try_from(period.unwrap_or(DEFAULT_PERIOD_US)).unwrap_or_default();
        Ok(CpuLimits {
            hard_limit_period_us: is_hard.then_some(period),
            cpuset_cpus: list("cpuset_cpus", cpuset_cpus)?,
            cpuset_mems: list("cpuset_mems", cpuset_mems)?,
        })
    }
}

impl CpuLimits {
    /// Returns true if the job chooses CPUs or memory nodes itself.
    pub(crate) fn is_pinned(&self) -> bool {
        self.cpuset_cpus.is_some() || self.cpuset_mems.is_some()
    }
}

fn list(option: &'static str, text: Option<String>) -> Result<Option<IdList>, ConfigError> {
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|why| value(option, text, why))).transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::task::tests::{decode, refusal};

    fn cpu(options: &Value) -> CpuLimits {
        let mut options = options.clone();
        options["image"] = json!("redis");
        decode(&options).unwrap().limits.cpu
    }

    #[test]
    fn cpu_hard_limit_periods_are_within_the_kernels_range() {
        assert_eq!(cpu(&json!({})).hard_limit_period_us, None);
        assert_eq!(cpu(&json!({"cpu_hard_limit": false})).hard_limit_period_us, None);
        assert_eq!(cpu(&json!({"cpu_hard_limit": true})).hard_limit_period_us, Some(100_000));
        let both = json!({"cpu_hard_limit": true, "cpu_cfs_period": 50_000});
        assert_eq!(cpu(&both).hard_limit_period_us, Some(50_000));
        let zero = json!({"cpu_hard_limit": true, "cpu_cfs_period": 0});
        assert_eq!(cpu(&zero).hard_limit_period_us, Some(100_000), "as under docker");
        for period in [json!(-1), json!(999), json!(1_000_001), json!(5000.5)] {
            let hard = json!({"image": "redis", "cpu_hard_limit": true, "cpu_cfs_period": period});
            let error = decode(&hard).unwrap_err().to_string();
            assert!(error.contains("cpu_cfs_period"), "{error}");
        }
    }

    #[test]
    fn a_period_without_a_hard_limit_has_no_effect_and_a_warning() {
        let soft = decode(&json!({"image": "redis", "cpu_cfs_period": 50_000})).unwrap();
        assert_eq!(soft.limits.cpu.hard_limit_period_us, None);
        assert_eq!(soft.warnings.options(), ["cpu_cfs_period"]);
    }

    #[test]
    fn cpusets_are_id_lists() {
        let given = cpu(&json!({"cpuset_cpus": "0-1,3", "cpuset_mems": ""}));
        assert_eq!(given.cpuset_cpus, Some("0,1,3".parse().unwrap()));
        assert_eq!(given.cpuset_mems, None);
        assert!(given.is_pinned() && cpu(&json!({"cpuset_mems": "0"})).is_pinned());
        assert!(!cpu(&json!({})).is_pinned());
        refusal("cpuset_cpus", json!("all"));
        refusal("cpuset_mems", json!("0-"));
    }
}
