//! Facts of the host that bear on a task's limits, and checks whether those can be met, before anything is made. Pure:
//! the facts have been looked up before.

use nomad_proto::driver as pb;
use oci_spec::runtime::PosixRlimitType;

use super::{SpecError, memory, resources};
use crate::config::{CpuLimits, IdList, Limits, MemoryLimits, PluginLimits, Rlimit, Swap};

/// Facts of the host that bear on limits. An unknown one is empty, and nothing is refused for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostFacts {
    pub is_cgroup_v2: bool,
    /// `true` if the kernel can limit the swap of a task.
    pub can_limit_swap: bool,
    /// `true` if the kernel can limit the number of processes.
    pub can_limit_pids: bool,
    /// The CPUs that are online.
    pub processors: IdList,
    /// The CPUs that Nomad gives to tasks without reserved cores.
    pub shared_processors: IdList,
    pub memory_nodes: IdList,
    pub max_open_files: Option<u64>,
    /// Soft and hard limit of open files that the agent has, if a task does not inherit them.
    pub agent_open_files: Option<(u64, u64)>,
    /// Those of [`super::NETWORK_PARAMETERS`] that the kernel has, and lets the driver set.
    pub network_parameters: Vec<(&'static str, &'static str)>,
}

/// Checks a task's limits against the host.
///
/// # Errors
/// Names the option that can't be applied on this host.
pub(crate) fn check(
    requested: &Limits,
    plugin_limits: &PluginLimits,
    task: &pb::TaskConfig,
    host: &HostFacts,
) -> Result<(), SpecError> {
    let Limits { pids, rlimits, oom_score_adj: _, cpu, memory } = requested;
    if let (Some(limit), false) = (resources::max_pids(*pids, plugin_limits), host.can_limit_pids) {
        let why = "the cgroups of this host have no pids controller: enable it, or leave the option out";
        return Err(refused("pids_limit", &limit, why));
    }
    let given = task.resources.as_ref();
    check_open_files(rlimits, host)?;
    check_cpu(cpu, given.and_then(|given| given.linux_resources.as_ref()), host)?;
    let allotted = given.and_then(|given| given.allocated_resources.as_ref());
    check_memory(memory, allotted.and_then(|allotted| allotted.memory).unwrap_or_default(), host)
}

fn refused(option: &'static str, value: &impl ToString, why: impl Into<String>) -> SpecError {
    SpecError::Unavailable { option, value: value.to_string(), why: why.into() }
}

fn check_open_files(rlimits: &[Rlimit], host: &HostFacts) -> Result<(), SpecError> {
    let requested = rlimits.iter().find(|limit| limit.kind == PosixRlimitType::RlimitNofile);
    let (Some(Rlimit { hard, .. }), Some(most)) = (requested, host.max_open_files) else { return Ok(()) };
    if *hard <= most {
        return Ok(());
    }
    let hard = if *hard == u64::MAX { "-1".to_owned() } else { hard.to_string() };
    let why = format!("the kernel's fs.nr_open allows at most {most} open files");
    Err(refused("ulimit nofile", &hard, why))
}

fn check_cpu(
    requested: &CpuLimits,
    linux: Option<&pb::LinuxResources>,
    host: &HostFacts,
) -> Result<(), SpecError> {
    let CpuLimits { hard_limit_period_us, cpuset_cpus, cpuset_mems } = requested;
    if hard_limit_period_us.is_some() && linux.is_none_or(|linux| linux.percent_ticks <= 0.0) {
        let why =
            "Nomad does not say what part of the node the task is allotted: set cpu or cores in resources";
        return Err(refused("cpu_hard_limit", &true, why));
    }
    if let Some(cpus) = cpuset_cpus {
        if linux.is_some_and(|linux| !linux.cpuset_cpus.is_empty()) {
            let why = "the task has reserved cores: leave out either this option, or cores in resources";
            return Err(refused("cpuset_cpus", cpus, why));
        }
        check_subset("cpuset_cpus", cpus, &host.shared_processors, "the CPUs that tasks share on this node")?;
    }
    match cpuset_mems {
        Some(mems) => check_subset("cpuset_mems", mems, &host.memory_nodes, "the memory nodes of this host"),
        None => Ok(()),
    }
}

fn check_subset(
    option: &'static str,
    requested: &IdList,
    available: &IdList,
    what: &str,
) -> Result<(), SpecError> {
    if available.is_empty() || requested.is_within(available) {
        return Ok(());
    }
    Err(refused(option, requested, format!("{what} are {available}")))
}

fn why_swap_is_refused(total: i64, limit: Option<i64>, host: &HostFacts) -> Option<String> {
    let Some(limit) = limit else {
        return Some("it counts memory and swap together, and the task's memory has no limit".to_owned());
    };
    if total < limit {
        return Some(format!(
            "it counts memory and swap together, and the task's memory alone is {limit} bytes"
        ));
    }
    let why = "the kernel does not count swap: boot it with swapaccount=1, or leave the option out";
    (!host.can_limit_swap).then(|| why.to_owned())
}

fn check_memory(
    requested: &MemoryLimits,
    allotted: pb::AllocatedMemoryResources,
    host: &HostFacts,
) -> Result<(), SpecError> {
    let MemoryLimits { swap, swappiness, reservation_bytes, hard_limit_mib } = requested;
    let limit = memory::hard_limit(requested, allotted);
    if let Some(hard) = hard_limit_mib
        && *hard < allotted.memory_mb
    {
        let why = format!(
            "it is less than the task's memory, {} MiB, which with this option is what is left to the task",
            allotted.memory_mb
        );
        return Err(refused("memory_hard_limit", hard, why));
    }
    if let Some(Swap::TotalBytes(total)) = swap
        && let Some(why) = why_swap_is_refused(*total, limit, host)
    {
        return Err(refused("memory_swap", total, why));
    }
    if let Some(swappiness) = swappiness
        && host.is_cgroup_v2
    {
        let why = "cgroup v2 has no such setting: leave it out, or set the host's vm.swappiness";
        return Err(refused("memory_swappiness", swappiness, why));
    }
    let Some(reservation) = *reservation_bytes else { return Ok(()) };
    if allotted.memory_max_mb != 0 || hard_limit_mib.is_some() {
        let why = "with memory_max in resources, or memory_hard_limit, memory is the reservation: leave out one of them";
        return Err(refused("memory_reservation", &reservation, why));
    }
    match limit {
        Some(limit) if reservation > limit => {
            let why = format!("it is more than the task's memory, {limit} bytes");
            Err(refused("memory_reservation", &reservation, why))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PidsLimit;

    const MIB: i64 = 1024 * 1024;

    fn host() -> HostFacts {
        let list = |text: &str| text.parse().unwrap();
        HostFacts {
            is_cgroup_v2: false,
            can_limit_swap: true,
            can_limit_pids: true,
            processors: list("0-3"),
            shared_processors: list("0-2"),
            memory_nodes: list("0"),
            max_open_files: Some(1000),
            agent_open_files: None,
            network_parameters: Vec::new(),
        }
    }

    fn task(memory_mb: i64, memory_max_mb: i64, cores: &str) -> pb::TaskConfig {
        let allotted = pb::AllocatedTaskResources {
            memory: Some(pb::AllocatedMemoryResources { memory_mb, memory_max_mb }),
            ..Default::default()
        };
        let linux =
            pb::LinuxResources { cpuset_cpus: cores.to_owned(), percent_ticks: 0.1, ..Default::default() };
        let resources = pb::Resources {
            allocated_resources: Some(allotted),
            linux_resources: Some(linux),
            ..Default::default()
        };
        pb::TaskConfig { resources: Some(resources), ..Default::default() }
    }

    fn checked(requested: &Limits, task: &pb::TaskConfig, host: &HostFacts) -> Result<(), SpecError> {
        check(requested, &PluginLimits::default(), task, host)
    }

    fn refusal(requested: &Limits, task: &pb::TaskConfig, host: &HostFacts, words: &[&str]) {
        let error = checked(requested, task, host).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "{word} is not in {error}"));
    }

    #[test]
    fn cpuset_cpus_must_be_shared_cpus_without_reserved_cores() {
        let cpus = |text: &str| {
            let cpu = CpuLimits { cpuset_cpus: Some(text.parse().unwrap()), ..CpuLimits::default() };
            Limits { cpu, ..Limits::default() }
        };
        checked(&cpus("0,2"), &task(64, 0, ""), &host()).unwrap();
        checked(&cpus("7"), &task(64, 0, ""), &HostFacts::default()).unwrap();
        refusal(&cpus("2-3"), &task(64, 0, ""), &host(), &["cpuset_cpus", "2,3", "0,1,2"]);
        refusal(&cpus("0"), &task(64, 0, "3"), &host(), &["cpuset_cpus", "cores"]);
        let cpu = CpuLimits { cpuset_mems: Some("1".parse().unwrap()), ..CpuLimits::default() };
        refusal(&Limits { cpu, ..Limits::default() }, &task(64, 0, ""), &host(), &["cpuset_mems", "1", "0"]);
    }

    #[test]
    fn pids_limit_needs_the_pids_controller() {
        let limited = Limits { pids: PidsLimit::Of(5), ..Limits::default() };
        let uncounted = HostFacts { can_limit_pids: false, ..host() };
        checked(&limited, &task(64, 0, ""), &host()).unwrap();
        checked(&Limits::default(), &task(64, 0, ""), &uncounted).unwrap();
        refusal(&limited, &task(64, 0, ""), &uncounted, &["pids_limit", "5"]);
        let plugin_limits = PluginLimits { pids_limit: Some(7), ..PluginLimits::default() };
        let error = check(&Limits::default(), &plugin_limits, &task(64, 0, ""), &uncounted).unwrap_err();
        assert!(error.to_string().contains('7'), "{error}");
    }

    #[test]
    fn cpu_hard_limit_needs_an_allotment() {
        let cpu = CpuLimits { hard_limit_period_us: Some(1000), ..CpuLimits::default() };
        let requested = Limits { cpu, ..Limits::default() };
        checked(&requested, &task(64, 0, ""), &host()).unwrap();
        refusal(&requested, &pb::TaskConfig::default(), &host(), &["cpu_hard_limit"]);
    }

    #[test]
    fn nofile_is_at_most_nr_open() {
        let files = |hard| {
            let limit = Rlimit { kind: PosixRlimitType::RlimitNofile, soft: 1, hard };
            Limits { rlimits: vec![limit], ..Limits::default() }
        };
        checked(&files(1000), &task(64, 0, ""), &host()).unwrap();
        refusal(&files(1001), &task(64, 0, ""), &host(), &["nofile", "1001", "1000"]);
        refusal(&files(u64::MAX), &task(64, 0, ""), &host(), &["nofile", "-1"]);
    }

    #[test]
    fn memory_swap_includes_memory_and_needs_swap_accounting() {
        let swap = |swap| {
            let memory = MemoryLimits { swap: Some(swap), ..MemoryLimits::default() };
            Limits { memory, ..Limits::default() }
        };
        let of = |mib| swap(Swap::TotalBytes(mib * MIB));
        let uncounted = HostFacts { can_limit_swap: false, ..host() };
        checked(&of(64), &task(64, 0, ""), &host()).unwrap();
        checked(&swap(Swap::Unlimited), &task(64, -1, ""), &uncounted).unwrap();
        refusal(&of(63), &task(64, 0, ""), &host(), &["memory_swap", "alone"]);
        refusal(&of(63), &task(32, 64, ""), &host(), &["memory_swap", "alone"]);
        refusal(&of(64), &task(64, -1, ""), &host(), &["memory_swap", "no limit"]);
        refusal(&of(64), &task(64, 0, ""), &uncounted, &["memory_swap", "swapaccount"]);
    }

    #[test]
    fn memory_reservation_is_below_the_limit() {
        let reserved = |mib: i64| {
            let memory = MemoryLimits { reservation_bytes: Some(mib * MIB), ..MemoryLimits::default() };
            Limits { memory, ..Limits::default() }
        };
        checked(&reserved(32), &task(64, 0, ""), &host()).unwrap();
        refusal(&reserved(65), &task(64, 0, ""), &host(), &["memory_reservation", "more"]);
        refusal(&reserved(32), &task(64, 128, ""), &host(), &["memory_reservation", "memory_max"]);
        let memory = MemoryLimits { swappiness: Some(10), ..MemoryLimits::default() };
        let swappy = Limits { memory, ..Limits::default() };
        checked(&swappy, &task(64, 0, ""), &host()).unwrap();
        let v2 = HostFacts { is_cgroup_v2: true, ..host() };
        refusal(&swappy, &task(64, 0, ""), &v2, &["memory_swappiness", "10"]);
    }
}
