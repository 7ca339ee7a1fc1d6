//! Resource limits in the units of the runtime specification: Nomad's allotment to a task, and the job's further
//! options.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxDeviceCgroupBuilder, LinuxPids, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType::RlimitNofile,
};

use super::{HostFacts, Inputs, cpu, memory};
use crate::config::{Limits, PidsLimit, PluginLimits, Rlimit};

/// Returns the limits of a container. Devices are denied, except for the few that the runtime allows every container; a
/// privileged one has all. The task's own devices are added later.
pub(super) fn limits(inputs: &Inputs<'_>) -> Result<LinuxResources, OciSpecError> {
    let Limits { pids, rlimits: _, oom_score_adj: _, cpu, memory } = &inputs.options.limits;
    let privileged = inputs.options.security.privileged;
    let devices = LinuxDeviceCgroupBuilder::default().allow(privileged).access("rwm").build()?;
    let mut limits = LinuxResourcesBuilder::default().devices(vec![devices]);
    if let Some(resources) = &inputs.task.resources {
        let allotted = resources.allocated_resources.as_ref().and_then(|allotted| allotted.memory);
        limits = limits.memory(memory::limits(memory, allotted.unwrap_or_default(), inputs.host)?);
        limits = limits.cpu(cpu::limits(cpu, resources, inputs.host)?);
    }
    if let Some(pids) = pids_limit(*pids, inputs.plugin_limits)? {
        limits = limits.pids(pids);
    }
    limits.build()
}

fn pids_limit(requested: PidsLimit, plugin_limits: &PluginLimits) -> Result<Option<LinuxPids>, OciSpecError> {
    let limit = max_pids(requested, plugin_limits);
    limit.map(|limit| LinuxPidsBuilder::default().limit(limit).build()).transpose()
}

/// Returns the maximum number of processes; `None` is no limit.
pub(super) fn max_pids(requested: PidsLimit, plugin_limits: &PluginLimits) -> Option<i64> {
    match requested {
        PidsLimit::Operators => plugin_limits.pids_limit,
        PidsLimit::Unlimited => None,
        PidsLimit::Of(limit) => Some(limit),
    }
}

/// Returns the resource limits to set: the job's, and the agent's limit of open files if the plugin has changed its
/// own. All others are inherited from the agent, which the operator sets. An explicit list also replaces the crate's
/// default, 1024 open files.
pub(super) fn rlimits(requested: &Limits, host: &HostFacts) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let rlimit = |Rlimit { kind, soft, hard }: &Rlimit| {
        PosixRlimitBuilder::default().typ(*kind).soft(*soft).hard(*hard).build()
    };
    let agents = host.agent_open_files.map(|(soft, hard)| Rlimit { kind: RlimitNofile, soft, hard });
    let agents = agents.filter(|agents| requested.rlimits.iter().all(|limit| limit.kind != agents.kind));
    requested.rlimits.iter().chain(&agents).map(rlimit).collect()
}

/// Returns the OOM score adjustment of a task: the job's, or else the operator's. It is always set, since the agent may
/// run with -1000, which its children inherit.
pub(crate) fn oom_score_adj(requested: &Limits, plugin_limits: &PluginLimits) -> i32 {
    let score = requested.oom_score_adj.unwrap_or(plugin_limits.oom_score_adj);
    i32::try_from(score).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::PosixRlimitType;

    use super::*;

    #[test]
    fn nofile_defaults_to_the_agents_limit() {
        let files = |requested: &[(PosixRlimitType, u64)], agents| {
            let rlimits = requested.iter().map(|(kind, soft)| Rlimit { kind: *kind, soft: *soft, hard: 9 });
            let requested = Limits { rlimits: rlimits.collect(), ..Limits::default() };
            let limits =
                rlimits_of(&requested, &HostFacts { agent_open_files: agents, ..HostFacts::default() });
            limits.iter().map(|limit| (limit.typ(), limit.soft())).collect::<Vec<_>>()
        };
        let (core, nofile) = (PosixRlimitType::RlimitCore, RlimitNofile);
        assert_eq!(files(&[], None), []);
        assert_eq!(files(&[(core, 1)], Some((2, 9))), [(core, 1), (nofile, 2)]);
        assert_eq!(files(&[(nofile, 1)], Some((2, 9))), [(nofile, 1)]);
    }

    fn rlimits_of(requested: &Limits, host: &HostFacts) -> Vec<PosixRlimit> {
        rlimits(requested, host).unwrap()
    }

    #[test]
    fn plugin_limits_apply_where_the_job_sets_none() {
        let plugin_limits = PluginLimits { pids_limit: Some(100), oom_score_adj: 500 };
        let pids = |requested| pids_limit(requested, &plugin_limits).unwrap().map(|pids| pids.limit());
        assert_eq!(pids(PidsLimit::Operators), Some(100));
        assert_eq!(pids(PidsLimit::Of(7)), Some(7));
        assert_eq!(pids(PidsLimit::Unlimited), None);
        assert_eq!(oom_score_adj(&Limits::default(), &plugin_limits), 500);
        let requested = Limits { oom_score_adj: Some(0), ..Limits::default() };
        assert_eq!(oom_score_adj(&requested, &plugin_limits), 0);
    }

    #[test]
    fn ulimits_are_applied() {
        let files = Rlimit { kind: RlimitNofile, soft: 5, hard: u64::MAX };
        let made = rlimits_of(&Limits { rlimits: vec![files], ..Limits::default() }, &HostFacts::default());
        let made = serde_json::to_value(&made).unwrap();
        assert_eq!(made, serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 5, "hard": u64::MAX}]));
    }
}
