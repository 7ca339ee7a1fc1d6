//! Limits that a job's options and the operator's options set, seen from inside of the task.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::alloc::set_memory;
use harness::host::cgroup::is_v2;
use harness::processes;
use harness::task::{LIMIT, Task};
use serde_json::{Value, json};

use crate::cases::support::{cases, ensure_eq, refused, until};

const MIB: i64 = 1024 * 1024;

cases!["limits":
    a_task_has_no_more_processes_than_its_pids_limit,
    the_operators_pids_limit_is_the_default_and_the_most,
    a_process_and_an_exec_have_the_limits_that_the_job_sets,
    a_limit_that_can_not_be_is_refused_by_name,
    the_plugin_may_have_more_open_files_than_the_agent_and_its_tasks_may_not,
    how_likely_a_task_is_killed_for_memory_is_the_jobs_word_and_else_the_operators,
    the_score_for_the_oom_killer_is_that_of_the_job_and_not_the_shims,
    a_hard_limit_is_the_tasks_part_of_all_processors,
    a_task_runs_on_the_processors_that_the_job_names,
    processors_that_the_task_can_not_have_are_refused,
    swap_is_what_the_job_asks_for_and_else_none,
    memory_is_swapped_out_and_kept_as_the_job_says,
    a_memory_hard_limit_makes_the_memory_a_reservation,
];

/// Command that starts more processes than any limit here and prints `free`. A shell that can't start another process
/// ends before it prints its last word.
const MANY: &str = "[ -n \"$(for i in $(seq 1 40); do sleep 5 > /dev/null & done 2> /dev/null; echo free)\" ] \
                    && echo free || echo limited";

fn with(mut config: Value, option: &str, value: Value) -> Value {
    config[option] = value;
    config
}

/// Asserts that a start with this option is refused with these words and leaves nothing.
async fn start_is_refused(case: &CaseContext, option: &str, value: Value, words: &[&str]) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = case.prepare(&plugin, &with(case.shell("true"), option, value)).await?;
    refused(plugin.start_task(task.config.clone()).await, &[&[option], words].concat())?;
    case.nothing_left()?;
    plugin.shut_down().await
}

/// Returns the output of a task with this configuration, under a plugin with these options.
async fn stdout_of(case: &CaseContext, options: &Value, config: &Value) -> Result<String> {
    let mut plugin = case.plugin_as(&case.launch(), options).await?;
    let task = case.run(&plugin, config).await?;
    let output = task.stdout(&plugin).await?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await?;
    Ok(output)
}

async fn a_task_has_no_more_processes_than_its_pids_limit(case: &CaseContext) -> Result<()> {
    for (limit, wanted) in [(json!(20), "limited\n"), (json!(-1), "free\n"), (json!(null), "free\n")] {
        let config = with(case.shell(MANY), "pids_limit", limit.clone());
        let output = stdout_of(case, &case.options(), &config).await?;
        ensure!(output == wanted, "{limit}: {output}");
    }
    Ok(())
}

async fn the_operators_pids_limit_is_the_default_and_the_most(case: &CaseContext) -> Result<()> {
    let options = with(case.options(), "pids_limit", json!(20));
    ensure_eq!(stdout_of(case, &options, &case.shell(MANY)).await?, "limited\n");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    for limit in [21, -1] {
        let task = case.prepare(&plugin, &with(case.shell(MANY), "pids_limit", json!(limit))).await?;
        let words = ["pids_limit", &limit.to_string(), "operator"];
        refused(plugin.start_task(task.config.clone()).await, &words)?;
        case.nothing_left()?;
    }
    plugin.shut_down().await
}

async fn a_process_and_an_exec_have_the_limits_that_the_job_sets(case: &CaseContext) -> Result<()> {
    let show = "ulimit -Sn; ulimit -Hn; ulimit -c";
    let mut plugin = case.plugin().await?;
    let limits = json!({"nofile": "100:200", "core": "0"});
    let config = with(case.shell(&format!("{show}; sleep 600")), "ulimit", limits);
    let task = case.run(&plugin, &config).await?;
    task.alloc.stdout.to_contain("100\n200\n0\n", LIMIT).await?;
    // Older runc races with its Go runtime, which may raise the soft limit of open files to the hard one (runc's issue
    // 4195).
    ensure_eq!(task.exec(&plugin, "ulimit -Hn; ulimit -c").await?, (0, "200\n0\n".to_owned()));
    task.end(&plugin).await?;
    plugin.shut_down().await?;
    let config = with(case.shell(show), "file_limit", json!(300));
    let output = stdout_of(case, &case.options(), &config).await?;
    ensure!(output.starts_with("300\n300\n"), "{output}");
    Ok(())
}

async fn a_limit_that_can_not_be_is_refused_by_name(case: &CaseContext) -> Result<()> {
    start_is_refused(case, "ulimit", json!({"files": "1"}), &["files", "nofile"]).await?;
    start_is_refused(case, "ulimit", json!({"nofile": "2:1"}), &["nofile", "soft"]).await?;
    start_is_refused(case, "file_limit", json!(0), &["0"]).await?;
    start_is_refused(case, "oom_score_adj", json!(-500), &["-500", "1000"]).await
}

async fn how_likely_a_task_is_killed_for_memory_is_the_jobs_word_and_else_the_operators(
    case: &CaseContext,
) -> Result<()> {
    let show = case.shell("cat /proc/self/oom_score_adj");
    let options = with(case.options(), "oom_score_adj", json!(300));
    ensure_eq!(stdout_of(case, &options, &show).await?, "300\n");
    ensure_eq!(stdout_of(case, &options, &with(show, "oom_score_adj", json!(700))).await?, "700\n");
    Ok(())
}

/// The scores of the shim and the plugin make no difference: a shim is protected where the plugin may do so, and an
/// agent often is.
async fn the_score_for_the_oom_killer_is_that_of_the_job_and_not_the_shims(case: &CaseContext) -> Result<()> {
    let score = "cat /proc/self/oom_score_adj";
    let options = with(case.options(), "oom_score_adj", json!(300));
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    // An agent's unit may set this score. Not every user may.
    let may = fs::write(format!("/proc/{}/oom_score_adj", plugin.pid()), "-900").is_ok();
    for (jobs, wanted) in [(json!(0), 0), (json!(500), 500), (json!(null), 300)] {
        let config = case.shell(&format!("{score}; sh -c '{score}'; exec sleep 600"));
        let task = case.run(&plugin, &with(config, "oom_score_adj", jobs)).await?;
        task.alloc.stdout.to_contain(&format!("{wanted}\n{wanted}\n"), LIMIT).await?;
        let of_exec = task.exec(&plugin, &format!("{score}; sh -c '{score}'")).await?;
        ensure_eq!(of_exec, (0, format!("{wanted}\n{wanted}\n")));
        let shim = processes::parent(task.pid()?)?;
        let of_shim: i32 = fs::read_to_string(format!("/proc/{shim}/oom_score_adj"))?.trim().parse()?;
        // A shim whose runtime lets all inherit its score has that of its task.
        if case.programs().is_crun() {
            ensure_eq!(of_shim, wanted);
        } else if may {
            ensure_eq!(of_shim, -998);
        }
        task.end(&plugin).await?;
    }
    plugin.shut_down().await
}

/// Starts a task that sleeps, with one more option.
async fn sleeping(case: &CaseContext, plugin: &Plugin, option: &str, value: Value) -> Result<Task> {
    case.run(plugin, &with(case.shell("sleep 600"), option, value)).await
}

async fn a_hard_limit_is_the_tasks_part_of_all_processors(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let count =
        fs::read_to_string("/proc/cpuinfo")?.lines().filter(|line| line.starts_with("processor")).count();
    for (period, shown) in [(json!(null), 100_000), (json!(50_000), 50_000)] {
        let config = with(case.shell("sleep 600"), "cpu_cfs_period", period);
        let task = case.run(&plugin, &with(config, "cpu_hard_limit", json!(true))).await?;
        // The host allots an eighth of the node.
        let quota = count * shown / 8;
        let limit = task.alloc.cgroup.read("cpu", "cpu.cfs_quota_us", "cpu.max")?;
        ensure_eq!(limit, if is_v2() { format!("{quota} {shown}") } else { quota.to_string() });
        if !is_v2() {
            ensure_eq!(task.alloc.cgroup.read("cpu", "cpu.cfs_period_us", "")?, shown.to_string());
        }
        task.end(&plugin).await?;
    }
    let task = sleeping(case, &plugin, "cpu_hard_limit", json!(false)).await?;
    let limit = task.alloc.cgroup.read("cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(["-1", "max 100000"].contains(&&*limit), "limited to {limit}");
    task.end(&plugin).await?;
    // A period alone has no effect, and is no reason to refuse a job of docker's.
    let task = sleeping(case, &plugin, "cpu_cfs_period", json!(50_000)).await?;
    let limit = task.alloc.cgroup.read("cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(["-1", "max 100000"].contains(&&*limit), "limited to {limit}");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_task_runs_on_the_processors_that_the_job_names(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let show = "sed -n 's/_allowed_list:.*[\t ]/ /p' /proc/self/status";
    for (option, wanted) in [("cpuset_cpus", "Cpus 0\n"), ("cpuset_mems", "Mems 0\n")] {
        let config = with(case.shell(&format!("{show}; sleep 600")), option, json!("0"));
        let task = case.run(plugin, &config).await?;
        task.alloc.stdout.to_contain(wanted, LIMIT).await?;
        // An exec is moved into the cpuset only after its start, on hosts where it is moved.
        let (_, in_exec) = task.exec(plugin, &format!("sleep 0.5; {show}")).await?;
        ensure!(in_exec.contains(wanted), "{option} in an exec: {in_exec}");
        task.end(plugin).await?;
    }
    Ok(())
}

async fn processors_that_the_task_can_not_have_are_refused(case: &CaseContext) -> Result<()> {
    start_is_refused(case, "cpuset_cpus", json!("all"), &["all"]).await?;
    start_is_refused(case, "cpuset_cpus", json!("0,8000"), &["0,8000", "share"]).await?;
    start_is_refused(case, "cpuset_mems", json!("8000"), &["8000", "memory nodes"]).await?;
    let mut plugin = case.plugin().await?;
    let mut task = case.prepare(&plugin, &with(case.shell("true"), "cpuset_cpus", json!("0"))).await?;
    let reserve = task.alloc.cgroup.reserve()?;
    let linux = task.config.resources.as_mut().and_then(|resources| resources.linux_resources.as_mut());
    let linux = linux.context("no resources")?;
    linux.cpuset_cpus = "0".to_owned();
    linux.cpuset_cgroup = reserve.display().to_string();
    refused(plugin.start_task(task.config.clone()).await, &["cpuset_cpus", "cores"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn swap_is_what_the_job_asks_for_and_else_none(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    // On v1 swap is counted together with the memory, of which the host allots 128 MiB; on v2 on its own.
    let memory = if is_v2() { 0 } else { 128 * MIB };
    for (option, swap) in [(json!("160m"), Some(32 * MIB)), (json!(null), Some(0)), (json!("-1"), None)] {
        let task = sleeping(case, &plugin, "memory_swap", option).await?;
        let limit = task.alloc.cgroup.read("memory", "memory.memsw.limit_in_bytes", "memory.swap.max")?;
        match swap {
            Some(swap) => ensure_eq!(limit, (memory + swap).to_string()),
            None => ensure!(limit == "max" || limit.parse::<i64>()? > 1 << 50, "{limit} is a limit"),
        }
        task.end(&plugin).await?;
    }
    plugin.shut_down().await?;
    start_is_refused(case, "memory_swap", json!("much"), &["much"]).await?;
    start_is_refused(case, "memory_swap", json!("64m"), &["memory alone"]).await
}

async fn memory_is_swapped_out_and_kept_as_the_job_says(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = sleeping(case, &plugin, "memory_reservation", json!("64m")).await?;
    let reservation = task.alloc.cgroup.read("memory", "memory.soft_limit_in_bytes", "memory.low")?;
    ensure_eq!(reservation, (64 * MIB).to_string());
    task.end(&plugin).await?;
    if !is_v2() {
        let task = sleeping(case, &plugin, "memory_swappiness", json!(7)).await?;
        ensure_eq!(task.alloc.cgroup.read("memory", "memory.swappiness", "")?, "7");
        task.end(&plugin).await?;
    }
    let mut task =
        case.prepare(&plugin, &with(case.shell("true"), "memory_reservation", json!("64m"))).await?;
    set_memory(&mut task.config, 128, 256);
    refused(plugin.start_task(task.config.clone()).await, &["memory_reservation", "memory_max"])?;
    plugin.shut_down().await?;
    start_is_refused(case, "memory_reservation", json!("129m"), &["more"]).await?;
    if is_v2() {
        start_is_refused(case, "memory_swappiness", json!(7), &["v2"]).await?;
    }
    Ok(())
}

async fn a_memory_hard_limit_makes_the_memory_a_reservation(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let job = with(case.shell("sleep 600"), "memory_hard_limit", json!(192));
    for (max, wanted) in [(0, 192), (160, 192), (256, 256)] {
        let mut task = case.prepare(&plugin, &job).await?;
        set_memory(&mut task.config, 128, max);
        task.start(&plugin).await?;
        let read = |v1, v2| task.alloc.cgroup.read("memory", v1, v2);
        ensure_eq!(read("memory.limit_in_bytes", "memory.max")?, (wanted * MIB).to_string());
        ensure_eq!(read("memory.soft_limit_in_bytes", "memory.low")?, (128 * MIB).to_string());
        task.end(&plugin).await?;
    }
    plugin.shut_down().await?;
    start_is_refused(case, "memory_hard_limit", json!(64), &["128 MiB"]).await
}

/// Returns the soft and the hard limit of open files of a process.
fn open_files(pid: u32) -> Result<(String, String)> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut words = line.context("no limit of open files")?.split_whitespace().map(str::to_owned);
    Ok((words.next().context("no soft limit")?, words.next().context("no hard limit")?))
}

async fn the_plugin_may_have_more_open_files_than_the_agent_and_its_tasks_may_not(
    case: &CaseContext,
) -> Result<()> {
    let mut launch = case.launch();
    let wrapper = case.directory().join("limited");
    let script =
        format!("#!/bin/sh\nulimit -Sn 400; ulimit -Hn 1000\nexec {} \"$@\"\n", launch.binary.display());
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    launch.binary = wrapper;
    let mut plugin = case.plugin_as(&launch, &case.options()).await?;
    ensure_eq!(open_files(plugin.pid())?, ("1000".to_owned(), "1000".to_owned()));
    let complains = || plugin.log().all().iter().any(|line| line.contains("LimitNOFILE"));
    until(LIMIT, "the word on few open files", complains).await?;
    let task = case.run(&plugin, &case.shell("ulimit -Sn; ulimit -Hn; sleep 600")).await?;
    task.alloc.stdout.to_contain("400\n1000\n", LIMIT).await?;
    // The Go runtime in runc 1.1 may raise an exec's soft limit once more after runc has set it, if it comes to it
    // late.
    ensure_eq!(task.exec(&plugin, "ulimit -Hn").await?, (0, "1000\n".to_owned()));
    task.end(&plugin).await?;
    let config = with(case.shell("ulimit -Sn; ulimit -Hn"), "ulimit", json!({"nofile": "500:600"}));
    let task = case.run(&plugin, &config).await?;
    ensure_eq!(task.stdout(&plugin).await?, "500\n600\n");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}
