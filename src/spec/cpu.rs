//! A task's CPU limits: its weight among other tasks, its hard limit, and its cpuset.

use nomad_proto::driver as pb;
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxCpu, LinuxCpuBuilder};

use super::host_facts::HostFacts;
use crate::config::CpuLimits;

/// The kernel's minimum of CPU shares.
const MIN_SHARES: f64 = 2.0;
/// The maximum of CPU shares under cgroup v1; the runtime maps shares to weights on v2.
const MAX_SHARES: f64 = 262_144.0;
/// The kernel's minimum of a CFS quota, in microseconds.
const MIN_QUOTA_US: f64 = 1000.0;

pub(super) fn limits(
    requested: &CpuLimits,
    resources: &pb::Resources,
    host: &HostFacts,
) -> Result<LinuxCpu, OciSpecError> {
    let CpuLimits { hard_limit_period_us, cpuset_cpus, cpuset_mems } = requested;
    let none = pb::LinuxResources::default();
    let linux = resources.linux_resources.as_ref().unwrap_or(&none);
    let allotted = resources.allocated_resources.as_ref().and_then(|allotted| allotted.cpu.as_ref());
    let mut limits = LinuxCpuBuilder::default();
    if let Some(mhz) = allotted.map(|cpu| cpu.cpu_shares).filter(|mhz| *mhz > 0) {
        limits = limits.shares(shares(mhz, linux.percent_ticks));
    }
    if let Some(period) = *hard_limit_period_us {
        limits = limits.period(period).quota(quota_us(period, linux.percent_ticks, host.processors.len()));
    }
    // Nomad's reserved cores. A job that has them can't set cpuset_cpus.
    if !linux.cpuset_cpus.is_empty() {
        limits = limits.cpus(linux.cpuset_cpus.clone());
    } else if let Some(cpus) = cpuset_cpus {
        limits = limits.cpus(cpus.to_string());
    } else if cpuset_mems.is_some() && !host.shared_processors.is_empty() {
        // With memory nodes of its own the task is not in the cpuset of the tasks that share CPUs.
        limits = limits.cpus(host.shared_processors.to_string());
    }
    if let Some(mems) = cpuset_mems {
        limits = limits.mems(mems.to_string());
    }
    limits.build()
}

/// Returns a task's CPU shares. Nomad's shares are MHz, which serve as the relative weight, unless the whole node's MHz
/// exceed the kernel's maximum: then it is the task's part of that maximum.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "in range"
)]
fn shares(mhz: i64, part_of_node: f64) -> u64 {
    let mhz = mhz as f64;
    let exceeds = part_of_node > 0.0 && mhz / part_of_node > MAX_SHARES;
    let shares = if exceeds { part_of_node * MAX_SHARES } else { mhz };
    shares.clamp(MIN_SHARES, MAX_SHARES) as u64
}

/// Returns the task's CPU time in each period, on all CPUs together, in microseconds.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a period is a second at most"
)]
fn quota_us(period_us: u64, part_of_node: f64, processors: usize) -> i64 {
    let quota = cpus(part_of_node, processors) * period_us as f64;
    quota.round().max(MIN_QUOTA_US) as i64
}

/// Returns how much of a CPU a task has at most, with a hard limit.
pub(crate) fn hard_limited(
    requested: &CpuLimits,
    resources: &pb::Resources,
    host: &HostFacts,
) -> Option<f64> {
    requested.hard_limit_period_us?;
    let part_of_node = resources.linux_resources.as_ref()?.percent_ticks;
    Some(cpus(part_of_node, host.processors.len()))
}

#[expect(clippy::cast_precision_loss, reason = "no machine has that many CPUs")]
fn cpus(part_of_node: f64, processors: usize) -> f64 {
    part_of_node * processors.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(requested: &CpuLimits, cpu_shares: i64, percent_ticks: f64, cores: &str) -> LinuxCpu {
        let list = |text: &str| text.parse().unwrap();
        let host =
            HostFacts { processors: list("0-3"), shared_processors: list("0-2"), ..HostFacts::default() };
        let resources = pb::Resources {
            allocated_resources: Some(pb::AllocatedTaskResources {
                cpu: Some(pb::AllocatedCpuResources { cpu_shares }),
                ..Default::default()
            }),
            linux_resources: Some(pb::LinuxResources {
                cpuset_cpus: cores.to_owned(),
                percent_ticks,
                ..Default::default()
            }),
            ..Default::default()
        };
        limits(requested, &resources, &host).unwrap()
    }

    #[test]
    fn cpu_shares_are_clamped_and_reserved_cores_pinned() {
        let shares = |mhz, part| made(&CpuLimits::default(), mhz, part, "").shares();
        assert_eq!(shares(500, 0.0), Some(500));
        assert_eq!(shares(500, 0.01), Some(500));
        assert_eq!(shares(1, 0.0), Some(2));
        assert_eq!(shares(10_000_000, 0.0), Some(262_144));
        assert_eq!(shares(0, 0.0), None);
        // On a node of 400000 MHz, an eighth of it is an eighth of the maximum.
        assert_eq!(shares(50_000, 0.125), Some(32_768));
        assert_eq!(made(&CpuLimits::default(), 500, 0.1, "1,3").cpus().as_deref(), Some("1,3"));
    }

    #[test]
    fn a_cpu_quota_is_the_tasks_part_of_all_cpus() {
        let quota = |part| {
            let requested = CpuLimits { hard_limit_period_us: Some(100_000), ..CpuLimits::default() };
            let made = made(&requested, 500, part, "");
            (made.quota(), made.period())
        };
        assert_eq!(quota(0.125), (Some(50_000), Some(100_000)));
        assert_eq!(quota(0.000_001), (Some(1000), Some(100_000)));
        assert_eq!(made(&CpuLimits::default(), 500, 0.125, "").quota(), None);
    }

    #[test]
    fn cpusets_default_to_the_shared_cpus_for_memory_nodes() {
        let cpus = CpuLimits { cpuset_cpus: Some("0-1".parse().unwrap()), ..CpuLimits::default() };
        let made_with = |requested| made(requested, 500, 0.1, "");
        assert_eq!(made_with(&cpus).cpus().as_deref(), Some("0,1"));
        let mems = CpuLimits { cpuset_mems: Some("0".parse().unwrap()), ..CpuLimits::default() };
        assert_eq!(made_with(&mems).cpus().as_deref(), Some("0,1,2"));
        assert_eq!(made_with(&mems).mems().as_deref(), Some("0"));
        assert_eq!(made_with(&CpuLimits::default()).cpus().as_deref(), None);
    }
}
