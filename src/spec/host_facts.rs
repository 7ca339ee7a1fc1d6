//! Facts of the host that bear on a task's limits, and checks whether those can be met, before anything is made. Pure:
//! the facts have been looked up before.

use nomad_proto::driver as pb;
use oci_spec::runtime::PosixRlimitType;

use super::{SpecError, memory, resources};
use crate::config::{CpuLimits, IdList, Limits, MemoryLimits, PluginLimits, Rlimit, Swap};

/// Facts of the host that bear on limits. An unknown one is empty, and nothing is refused for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    pub is_cgroup_v2: bool,
    /// `true` if the kernel can limit the swap of a task.
    pub swap_is_limited: bool,
    /// `true` if the kernel can limit the number of processes.
    pub pids_are_limited: bool,
    /// The CPUs that are online.
    pub processors: IdList,
    /// The CPUs that Nomad gives to tasks without reserved cores.
    pub shared_processors: IdList,
    pub memory_nodes: IdList,
    pub most_open_files: Option<u64>,
    /// Soft and hard limit of open files that the agent has, if a task does not inherit them.
    pub agents_open_files: Option<(u64, u64)>,
}

/// Checks a task's limits against the host.
///
/// # Errors
/// Names the option that can't be applied on this host.
pub(crate) fn check(
    asked: &Limits,
    operators: &PluginLimits,
    task: &pb::TaskConfig,
    node: &Node,
) -> Result<(), SpecError> {
    let Limits { pids, rlimits, oom_score_adj: _, cpu, memory } = asked;
    if let (Some(limit), false) = (resources::most_pids(*pids, operators), node.pids_are_limited) {
        let why = "the control groups here have no pids controller: enable it, or leave the option out";
        return Err(refused("pids_limit", &limit, why));
    }
    let given = task.resources.as_ref();
    check_open_files(rlimits, node)?;
    check_cpu(cpu, given.and_then(|given| given.linux_resources.as_ref()), node)?;
    let allotted = given.and_then(|given| given.allocated_resources.as_ref());
    check_memory(memory, allotted.and_then(|allotted| allotted.memory).unwrap_or_default(), node)
}

fn refused(option: &'static str, value: &impl ToString, why: impl Into<String>) -> SpecError {
    SpecError::NotHere { option, value: value.to_string(), why: why.into() }
}

fn check_open_files(rlimits: &[Rlimit], node: &Node) -> Result<(), SpecError> {
    let asked = rlimits.iter().find(|limit| limit.kind == PosixRlimitType::RlimitNofile);
    let (Some(Rlimit { hard, .. }), Some(most)) = (asked, node.most_open_files) else { return Ok(()) };
    if *hard <= most {
        return Ok(());
    }
    let hard = if *hard == u64::MAX { "-1".to_owned() } else { hard.to_string() };
    let why = format!("the kernel gives no process more than {most} open files, its fs.nr_open");
    Err(refused("ulimit nofile", &hard, why))
}

fn check_cpu(asked: &CpuLimits, linux: Option<&pb::LinuxResources>, node: &Node) -> Result<(), SpecError> {
    let CpuLimits { hard_limit_period_us, cpuset_cpus, cpuset_mems } = asked;
    if hard_limit_period_us.is_some() && linux.is_none_or(|linux| linux.percent_ticks <= 0.0) {
        let why =
            "Nomad does not say what part of the node the task is allotted: set cpu or cores in resources";
        return Err(refused("cpu_hard_limit", &true, why));
    }
    if let Some(cpus) = cpuset_cpus {
        if linux.is_some_and(|linux| !linux.cpuset_cpus.is_empty()) {
            let why = "the task has cores of its own: leave out either it, or cores in resources";
            return Err(refused("cpuset_cpus", cpus, why));
        }
        among(
            "cpuset_cpus",
            cpus,
            &node.shared_processors,
            "the processors that Nomad has tasks share here",
        )?;
    }
    match cpuset_mems {
        Some(mems) => among("cpuset_mems", mems, &node.memory_nodes, "the memory nodes here"),
        None => Ok(()),
    }
}

fn among(option: &'static str, asked: &IdList, there: &IdList, what: &str) -> Result<(), SpecError> {
    if there.is_empty() || asked.is_within(there) {
        return Ok(());
    }
    Err(refused(option, asked, format!("{what} are {there}")))
}

fn why_no_swap(total: i64, limit: Option<i64>, node: &Node) -> Option<String> {
    let Some(limit) = limit else {
        return Some("it counts memory and swap together, and the task's memory has no limit".to_owned());
    };
    if total < limit {
        return Some(format!(
            "it counts memory and swap together, and the task's memory alone is {limit} bytes"
        ));
    }
    let why = "the kernel does not count swap: boot it with swapaccount=1, or leave the option out";
    (!node.swap_is_limited).then(|| why.to_owned())
}

fn check_memory(
    asked: &MemoryLimits,
    allotted: pb::AllocatedMemoryResources,
    node: &Node,
) -> Result<(), SpecError> {
    let MemoryLimits { swap, swappiness, reservation_bytes } = asked;
    let limit = memory::hard_limit(allotted);
    if let Some(Swap::TotalBytes(total)) = swap
        && let Some(why) = why_no_swap(*total, limit, node)
    {
        return Err(refused("memory_swap", total, why));
    }
    if let Some(swappiness) = swappiness
        && node.is_cgroup_v2
    {
        let why = "cgroup v2 has no such setting: leave it out, or set the host's vm.swappiness";
        return Err(refused("memory_swappiness", swappiness, why));
    }
    let Some(reservation) = *reservation_bytes else { return Ok(()) };
    if allotted.memory_max_mb != 0 {
        let why = "with memory_max in resources, memory is the reservation: leave out one of them";
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

    fn node() -> Node {
        let list = |text: &str| text.parse().unwrap();
        Node {
            is_cgroup_v2: false,
            swap_is_limited: true,
            pids_are_limited: true,
            processors: list("0-3"),
            shared_processors: list("0-2"),
            memory_nodes: list("0"),
            most_open_files: Some(1000),
            agents_open_files: None,
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

    fn met(asked: &Limits, task: &pb::TaskConfig, node: &Node) -> Result<(), SpecError> {
        check(asked, &PluginLimits::default(), task, node)
    }

    fn refusal(asked: &Limits, task: &pb::TaskConfig, node: &Node, words: &[&str]) {
        let error = met(asked, task, node).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "{word} is not in {error}"));
    }

    #[test]
    fn processors_are_those_that_tasks_share_and_not_beside_cores() {
        let cpus = |text: &str| {
            let cpu = CpuLimits { cpuset_cpus: Some(text.parse().unwrap()), ..CpuLimits::default() };
            Limits { cpu, ..Limits::default() }
        };
        met(&cpus("0,2"), &task(64, 0, ""), &node()).unwrap();
        met(&cpus("7"), &task(64, 0, ""), &Node::default()).unwrap();
        refusal(&cpus("2-3"), &task(64, 0, ""), &node(), &["cpuset_cpus", "2,3", "0,1,2"]);
        refusal(&cpus("0"), &task(64, 0, "3"), &node(), &["cpuset_cpus", "cores"]);
        let cpu = CpuLimits { cpuset_mems: Some("1".parse().unwrap()), ..CpuLimits::default() };
        refusal(&Limits { cpu, ..Limits::default() }, &task(64, 0, ""), &node(), &["cpuset_mems", "1", "0"]);
    }

    #[test]
    fn processes_are_limited_where_the_kernel_can() {
        let limited = Limits { pids: PidsLimit::Of(5), ..Limits::default() };
        let uncounted = Node { pids_are_limited: false, ..node() };
        met(&limited, &task(64, 0, ""), &node()).unwrap();
        met(&Limits::default(), &task(64, 0, ""), &uncounted).unwrap();
        refusal(&limited, &task(64, 0, ""), &uncounted, &["pids_limit", "5"]);
        let operators = PluginLimits { pids_limit: Some(7), ..PluginLimits::default() };
        let error = check(&Limits::default(), &operators, &task(64, 0, ""), &uncounted).unwrap_err();
        assert!(error.to_string().contains('7'), "{error}");
    }

    #[test]
    fn a_hard_limit_needs_nomads_word_on_the_share() {
        let cpu = CpuLimits { hard_limit_period_us: Some(1000), ..CpuLimits::default() };
        let asked = Limits { cpu, ..Limits::default() };
        met(&asked, &task(64, 0, ""), &node()).unwrap();
        refusal(&asked, &pb::TaskConfig::default(), &node(), &["cpu_hard_limit"]);
    }

    #[test]
    fn no_process_opens_more_files_than_the_kernel_lets_it() {
        let files = |hard| {
            let limit = Rlimit { kind: PosixRlimitType::RlimitNofile, soft: 1, hard };
            Limits { rlimits: vec![limit], ..Limits::default() }
        };
        met(&files(1000), &task(64, 0, ""), &node()).unwrap();
        refusal(&files(1001), &task(64, 0, ""), &node(), &["nofile", "1001", "1000"]);
        refusal(&files(u64::MAX), &task(64, 0, ""), &node(), &["nofile", "-1"]);
    }

    #[test]
    fn swap_counts_memory_too_and_has_to_be_counted_at_all() {
        let swap = |swap| {
            let memory = MemoryLimits { swap: Some(swap), ..MemoryLimits::default() };
            Limits { memory, ..Limits::default() }
        };
        let of = |mib| swap(Swap::TotalBytes(mib * MIB));
        let uncounted = Node { swap_is_limited: false, ..node() };
        met(&of(64), &task(64, 0, ""), &node()).unwrap();
        met(&swap(Swap::Unlimited), &task(64, -1, ""), &uncounted).unwrap();
        refusal(&of(63), &task(64, 0, ""), &node(), &["memory_swap", "alone"]);
        refusal(&of(63), &task(32, 64, ""), &node(), &["memory_swap", "alone"]);
        refusal(&of(64), &task(64, -1, ""), &node(), &["memory_swap", "no limit"]);
        refusal(&of(64), &task(64, 0, ""), &uncounted, &["memory_swap", "swapaccount"]);
    }

    #[test]
    fn a_reservation_is_less_than_the_limit_and_not_beside_a_maximum() {
        let reserved = |mib: i64| {
            let memory = MemoryLimits { reservation_bytes: Some(mib * MIB), ..MemoryLimits::default() };
            Limits { memory, ..Limits::default() }
        };
        met(&reserved(32), &task(64, 0, ""), &node()).unwrap();
        refusal(&reserved(65), &task(64, 0, ""), &node(), &["memory_reservation", "more"]);
        refusal(&reserved(32), &task(64, 128, ""), &node(), &["memory_reservation", "memory_max"]);
        let memory = MemoryLimits { swappiness: Some(10), ..MemoryLimits::default() };
        let swappy = Limits { memory, ..Limits::default() };
        met(&swappy, &task(64, 0, ""), &node()).unwrap();
        let v2 = Node { is_cgroup_v2: true, ..node() };
        refusal(&swappy, &task(64, 0, ""), &v2, &["memory_swappiness", "10"]);
    }
}
