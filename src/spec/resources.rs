//! Limits: what Nomad allots a task and what the job sets beyond that, in the units of the runtime specification.

use nomad_proto::driver as pb;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxMemory, LinuxMemoryBuilder, LinuxPids,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, PosixRlimit, PosixRlimitBuilder,
};

use super::Inputs;
use crate::config::{Limits, PidsLimit, PluginLimits, Rlimit};

const MIB: i64 = 1024 * 1024;
const UNLIMITED: i64 = -1;
/// The kernel takes no fewer.
const LEAST_CPU_SHARES: u64 = 2;
/// The most of cgroup v1; the runtime maps shares to weights on v2.
const MOST_CPU_SHARES: u64 = 262_144;

/// Devices are refused but for the few that the runtime lets every container have.
pub(super) fn limits(inputs: &Inputs<'_>) -> Result<LinuxResources, OciSpecError> {
    let Limits { pids, rlimits: _, oom_score_adj: _ } = &inputs.options.limits;
    let (asked, swap_is_limited) = (inputs.task.resources.as_ref(), inputs.swap_is_limited);
    let no_devices = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let mut limits = LinuxResourcesBuilder::default().devices(vec![no_devices]);
    if let Some(allotted) = asked.and_then(|asked| asked.allocated_resources.as_ref()) {
        if let Some(memory) = &allotted.memory {
            limits = limits.memory(memory_limits(memory, swap_is_limited)?);
        }
        let cpuset =
            asked.and_then(|asked| asked.linux_resources.as_ref()).map(|linux| linux.cpuset_cpus.as_str());
        limits = limits.cpu(cpu_limits(allotted.cpu.as_ref(), cpuset.unwrap_or_default())?);
    }
    if let Some(pids) = pids_limit(*pids, inputs.operators)? {
        limits = limits.pids(pids);
    }
    limits.build()
}

fn pids_limit(asked: PidsLimit, operators: &PluginLimits) -> Result<Option<LinuxPids>, OciSpecError> {
    let limit = match asked {
        PidsLimit::Operators => operators.pids_limit,
        PidsLimit::Unlimited => None,
        PidsLimit::Of(limit) => Some(limit),
    };
    limit.map(|limit| LinuxPidsBuilder::default().limit(limit).build()).transpose()
}

/// The others are those of the agent, which the operator sets; the crate's own default is 1024 open files.
pub(super) fn rlimits(asked: &Limits) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let rlimit = |Rlimit { kind, soft, hard }: &Rlimit| {
        PosixRlimitBuilder::default().typ(*kind).soft(*soft).hard(*hard).build()
    };
    asked.rlimits.iter().map(rlimit).collect()
}

/// Always set: the agent may run with a score of -1000, which its children inherit.
pub(super) fn oom_score_adj(asked: &Limits, operators: &PluginLimits) -> i32 {
    let score = asked.oom_score_adj.unwrap_or(operators.oom_score_adj);
    i32::try_from(score).unwrap_or_default()
}

/// Without a maximum, `memory` is the limit. With one, the maximum is, and `memory` is what is kept under pressure.
/// Swap comes on top only where the operator's kernel can't say no.
fn memory_limits(
    memory: &pb::AllocatedMemoryResources,
    swap_is_limited: bool,
) -> Result<LinuxMemory, OciSpecError> {
    let pb::AllocatedMemoryResources { memory_mb, memory_max_mb } = *memory;
    let limit = match memory_max_mb {
        0 => memory_mb * MIB,
        max if max < 0 => UNLIMITED,
        max => max * MIB,
    };
    let mut limits = LinuxMemoryBuilder::default();
    if limit != 0 {
        limits = limits.limit(limit);
        if swap_is_limited {
            limits = limits.swap(limit);
        }
    }
    if memory_max_mb != 0 && memory_mb > 0 {
        limits = limits.reservation(memory_mb * MIB);
    }
    limits.build()
}

/// Nomad's shares are MHz, which is the relative weight that is wanted.
fn cpu_limits(cpu: Option<&pb::AllocatedCpuResources>, cpuset: &str) -> Result<LinuxCpu, OciSpecError> {
    let mut limits = LinuxCpuBuilder::default();
    if let Some(shares) = cpu.and_then(|cpu| u64::try_from(cpu.cpu_shares).ok()).filter(|shares| *shares > 0)
    {
        limits = limits.shares(shares.clamp(LEAST_CPU_SHARES, MOST_CPU_SHARES));
    }
    if !cpuset.is_empty() {
        limits = limits.cpus(cpuset);
    }
    limits.build()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::PosixRlimitType;

    use super::*;

    fn memory(memory_mb: i64, memory_max_mb: i64) -> (Option<i64>, Option<i64>, Option<i64>) {
        let limits = memory_limits(&pb::AllocatedMemoryResources { memory_mb, memory_max_mb }, true).unwrap();
        (limits.limit(), limits.reservation(), limits.swap())
    }

    #[test]
    fn a_maximum_is_the_limit_and_memory_is_then_the_reservation() {
        assert_eq!(memory(256, 0), (Some(256 * MIB), None, Some(256 * MIB)));
        assert_eq!(memory(256, 512), (Some(512 * MIB), Some(256 * MIB), Some(512 * MIB)));
        assert_eq!(memory(256, -1), (Some(-1), Some(256 * MIB), Some(-1)));
        assert_eq!(memory(0, 0), (None, None, None));
    }

    #[test]
    fn the_operators_word_counts_where_the_job_has_none() {
        let operators = PluginLimits { pids_limit: Some(100), oom_score_adj: 500 };
        let pids = |asked| pids_limit(asked, &operators).unwrap().map(|pids| pids.limit());
        assert_eq!(pids(PidsLimit::Operators), Some(100));
        assert_eq!(pids(PidsLimit::Of(7)), Some(7));
        assert_eq!(pids(PidsLimit::Unlimited), None);
        assert_eq!(oom_score_adj(&Limits::default(), &operators), 500);
        let asked = Limits { oom_score_adj: Some(0), ..Limits::default() };
        assert_eq!(oom_score_adj(&asked, &operators), 0);
    }

    #[test]
    fn the_jobs_limits_of_processes_are_set() {
        let files = Rlimit { kind: PosixRlimitType::RlimitNofile, soft: 5, hard: u64::MAX };
        let made = rlimits(&Limits { rlimits: vec![files], ..Limits::default() }).unwrap();
        let made = serde_json::to_value(&made).unwrap();
        assert_eq!(made, serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 5, "hard": u64::MAX}]));
    }

    #[test]
    fn cpu_shares_stay_in_the_kernels_range_and_reserved_cores_are_pinned() {
        let cpu =
            |cpu_shares, cpuset| cpu_limits(Some(&pb::AllocatedCpuResources { cpu_shares }), cpuset).unwrap();
        assert_eq!(cpu(500, "").shares(), Some(500));
        assert_eq!(cpu(1, "").shares(), Some(2));
        assert_eq!(cpu(10_000_000, "").shares(), Some(262_144));
        assert_eq!(cpu(0, "").shares(), None);
        assert_eq!(cpu(500, "1,3").cpus().as_deref(), Some("1,3"));
    }
}
