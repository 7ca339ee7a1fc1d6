//! The cases that gVisor's sandboxes can't pass, each with the reason.

/// Prefixes of the names of other cases that don't hold in a sandbox, each with the reason.
pub const NOT_IN_A_SANDBOX: &[(&str, &str)] = &[
    ("account: a running task is seen in all its parts", OTHER_PARTS),
    ("csi::a_volume_is_made_written_read_and_removed", REFUSED),
    ("devices: devices of nomads device plugins are there", REFUSED),
    ("ends: a child killed for want of memory", AS_A_WHOLE),
    (
        "ends: a kill is told from a code of the same number",
        "a sandbox tells of a signal as a code of 128 + n",
    ),
    ("ends::a_child_killed_for_want_of_memory_is_an_event", AS_A_WHOLE),
    ("environment::the_memory_limit_is_the_jobs", INSIDE),
    ("exec::a_terminal_has_the_size_of_the_callers", TERMINAL),
    ("exec::a_caller_that_is_killed_takes_its_command_along", PROCESSES),
    ("exec::what_it_writes_is_in_the_task_and_not_on_the_host", INSIDE),
    ("exec end: one in a task that ends ends with it", PROCESSES),
    ("exec terminal: a terminal has the size that it was given", TERMINAL),
    ("exec terminal: the first process ends it", PROCESSES),
    ("exec: an exec is what the task is", INSIDE),
    ("exec: an exec sees the tasks files and environment", INSIDE),
    ("exec: what an exec writes is in the task and not on the host", INSIDE),
    ("limits: a task has no more processes than its pids limit", PIDS),
    ("limits: the operators pids limit is the default and the most", PIDS),
    ("limits: a task runs on the processors that the job names", INSIDE),
    ("limits: how likely a task is killed for memory", INSIDE),
    ("limits: the score for the oom killer is that of the job and not the shims", INSIDE),
    ("modes: a task shares what it asks for and nothing else", REFUSED),
    ("modes: a task that sees its own control group alone sees it as the root", REFUSED),
    ("modes: parameters of the kernel are set where they are the tasks", REFUSED),
    ("modes: the hosts shared memory is seen where it is shared", REFUSED),
    (
        "mounts: a tmpfs has the options it asks for",
        "a file system in memory has the default size written out",
    ),
    ("mounts: the hosts dev takes the place of the containers", "a sandbox has devices of its own"),
    ("mounts: what can not be mounted is refused before anything is made", REFUSED),
    (
        "mounts: what is mounted below a read only source is read only too",
        "a mount is one, whatever is mounted below it",
    ),
    (
        "mounts: what the operator has mounted read only stays so",
        "a source that is mounted read-only is not mounted to write",
    ),
    ("mounts: a start that the plugin does not survive leaves no mount", OTHER_PARTS),
    ("networks: a task gets the address and the names that it asks for", SYS),
    ("networks of docker: a tasks mode counts before its groups network", SYS),
    ("networks: any user listens on low ports", REFUSED),
    ("networks: without a network a task has its loopback alone", SYS),
    ("networks::the_hosts_network_a_described_one_and_none", SYS),
    ("networks::twenty_tasks_at_once", "a sandbox needs more memory than twenty of them have there"),
    ("options::cpuset_cpus", INSIDE),
    ("options::defaults", INSIDE),
    ("options::devices", REFUSED),
    ("options::host_network", SYS),
    ("options::ipc_mode", REFUSED),
    ("options::mac_address", SYS),
    ("options::memory_", INSIDE),
    ("options::no_new_privileges", INSIDE),
    ("options::oom_score_adj", INSIDE),
    ("options::pid_mode", REFUSED),
    ("options::pids_limit", PIDS),
    ("options::privileged", REFUSED),
    ("options::readonly_rootfs", "a sandbox has a /tmp of its own, in memory"),
    ("options::resources", INSIDE),
    ("options::seccomp_architectures", REFUSED),
    ("options::seccomp_profile", REFUSED),
    ("options::security_opt", INSIDE),
    ("options::snapshotter", INSIDE),
    ("options::sysctl", REFUSED),
    ("options::uts_mode", REFUSED),
    ("process: a task with a terminal has all its output in one", TERMINAL),
    ("resources::a_task_makes_room_for_one_with_cores_and_gets_them_back", INSIDE),
    ("resources: a task follows nomads shared processors", INSIDE),
    ("resources: a task with cores of its own runs on them", INSIDE),
    ("script check: at its timeout", PROCESSES),
    ("script check: one that leaves something in the background ends", PROCESSES),
    ("script check: one that takes too long is called off", PROCESSES),
    ("script check: one whose caller goes away is killed", PROCESSES),
    ("shared networks: a task is in the network of another one of its allocation", SYS),
    ("shim failure: a lost shim whose clean up fails leaves nothing that runs", PROCESSES),
    ("shim failure: a runtime that fails", "its shim quotes the log of the runtime alone"),
    ("stats: cpu time is what the kernel counts", PIPES),
    ("stats: memory is what the kernel counts", PIPES),
    ("stop: a task among the hosts processes", REFUSED),
];

const AS_A_WHOLE: &str = "the kernel kills a sandbox as a whole";
const INSIDE: &str = "the kernel that a task sees is its own, and tells nothing of the host's";
const OTHER_PARTS: &str = "a task has other parts there";
const PIDS: &str = "the threads of the sandbox count, too";
const PIPES: &str = "a pipe of the host's is not opened from a sandbox";
const PROCESSES: &str = "a task's processes are none of the host's";
const SYS: &str = "the interfaces are not in the sandbox's /sys, though they can be used";
const TERMINAL: &str = "a terminal has no name in a sandbox";
const REFUSED: &str = "it is refused, see what a sandbox can not have";

/// Returns why the case of this name can't run in gVisor's sandbox, if it can't.
pub fn not_in_a_sandbox(name: &str) -> Option<&'static str> {
    NOT_IN_A_SANDBOX.iter().find(|(begins, _)| name.starts_with(begins)).map(|(_, why)| *why)
}
