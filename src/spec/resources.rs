//! Limits: what Nomad allots a task, in the units of the runtime specification.

use nomad_proto::driver as pb;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxMemory, LinuxMemoryBuilder, LinuxResources,
    LinuxResourcesBuilder,
};

const MIB: i64 = 1024 * 1024;
const UNLIMITED: i64 = -1;
/// The kernel takes no fewer.
const LEAST_CPU_SHARES: u64 = 2;
/// The most of cgroup v1; the runtime maps shares to weights on v2.
const MOST_CPU_SHARES: u64 = 262_144;

/// Devices are refused but for the few that the runtime lets every container have.
pub(super) fn limits(
    asked: Option<&pb::Resources>,
    swap_is_limited: bool,
) -> Result<LinuxResources, OciSpecError> {
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
    limits.build()
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
