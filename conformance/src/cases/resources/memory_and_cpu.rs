//! Memory, CPU and the cgroup that Nomad made for the task.

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::alloc::set_memory;
use harness::host::cgroup::{is_v2, processors_of as allowed};
use harness::task::LIMIT;

use crate::cases::support::{cases, ensure_eq};

cases!["resources":
    a_task_lives_in_the_group_that_nomad_made,
    the_limits_stand_in_the_groups_files,
    the_higher_limit_is_the_hard_one_and_minus_one_is_none,
    a_task_that_takes_too_much_memory_is_reported_as_oom_killed,
    a_group_that_nomad_kills_ends_the_task,
    a_task_follows_nomads_shared_processors,
    a_task_with_cores_of_its_own_runs_on_them,
    the_limit_of_open_files_is_the_agents,
];

const MIB: i64 = 1024 * 1024;

async fn a_task_lives_in_the_group_that_nomad_made(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let name = task.alloc.cgroup.name();
    let line = if is_v2() { format!("{name}.scope\n") } else { format!(":freezer:/nomad/{name}\n") };
    let groups = groups_of(task.pid()?)?;
    ensure!(groups.contains(&line), "it is in {groups}");
    ensure!(!task.alloc.cgroup.pids().is_empty(), "nothing is in the group");
    task.end(plugin).await
}

async fn the_limits_stand_in_the_groups_files(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let cgroup = &task.alloc.cgroup;
    ensure_eq!(cgroup.read("memory", "memory.limit_in_bytes", "memory.max")?, (128 * MIB).to_string());
    // On v2 a weight of 1 to 10000 stands for shares of 2 to 262144.
    ensure_eq!(cgroup.read("cpu", "cpu.shares", "cpu.weight")?, if is_v2() { "19" } else { "500" });
    if is_v2() {
        ensure_eq!(cgroup.read("", "", "memory.swap.max")?, "0");
    }
    task.end(plugin).await
}

async fn the_higher_limit_is_the_hard_one_and_minus_one_is_none(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for (memory_max_mb, hard) in [(256, Some(256)), (-1, None)] {
        let mut task = case.prepare(plugin, &case.shell("sleep 600")).await?;
        set_memory(&mut task.config, 64, memory_max_mb);
        task.start(plugin).await?;
        let cgroup = &task.alloc.cgroup;
        let limit = cgroup.read("memory", "memory.limit_in_bytes", "memory.max")?;
        match hard {
            Some(mib) => ensure_eq!(limit, (mib * MIB).to_string()),
            None => ensure!(limit == "max" || limit.parse::<i64>()? > 1 << 50, "{limit} is a limit"),
        }
        ensure_eq!(
            cgroup.read("memory", "memory.soft_limit_in_bytes", "memory.low")?,
            (64 * MIB).to_string()
        );
        task.end(plugin).await?;
    }
    Ok(())
}

async fn a_task_that_takes_too_much_memory_is_reported_as_oom_killed(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let greedy = ["if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"];
    let config = config! { image = case.image("busybox:latest"), command = "dd", args = greedy };
    let mut task = case.prepare(plugin, &config).await?;
    set_memory(&mut task.config, 32, 0);
    task.start(plugin).await?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, true));
    let inspected = plugin.inspect_task(task.id()).await?;
    ensure!(
        inspected.task.and_then(|status| status.result).is_some_and(|result| result.oom_killed),
        "inspect differs"
    );
    task.destroy(plugin).await
}

async fn a_group_that_nomad_kills_ends_the_task(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600 & sleep 600")).await?;
    task.alloc.cgroup.kill()?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal), (137, 9));
    task.destroy(plugin).await
}

async fn a_task_follows_nomads_shared_processors(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let share = task.alloc.cgroup.shared_processors();
    let mut all = std::fs::read_to_string(&share)?;
    if all.trim().is_empty() {
        // On v2 the processors are the parent cgroup's, and can't be written while there are processes in it.
        all = std::fs::read_to_string(share.with_file_name("cpuset.cpus.effective"))?;
    }
    let before = allowed(task.pid()?)?;
    std::fs::write(&share, "0")?;
    let on = allowed(task.pid()?);
    // The exec is moved to its cgroup once it has started.
    let in_exec = task.exec(plugin, "sleep 0.5; grep Cpus_allowed_list /proc/self/status").await;
    std::fs::write(&share, &all)?;
    ensure_eq!(on?, "0");
    ensure!(in_exec?.1.ends_with("\t0\n"), "not in an exec");
    ensure_eq!(allowed(task.pid()?)?, before);
    task.end(plugin).await
}

async fn a_task_with_cores_of_its_own_runs_on_them(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task = case.prepare(plugin, &case.shell("sleep 600")).await?;
    let reserve = task.alloc.cgroup.reserve()?;
    let linux = task.config.resources.as_mut().and_then(|resources| resources.linux_resources.as_mut());
    let linux = linux.context("no resources")?;
    linux.cpuset_cpus = "1".to_owned();
    linux.cpuset_cgroup = reserve.display().to_string();
    task.start(plugin).await?;
    if is_v2() {
        let group = format!("0::/nomad.slice/reserve.slice/{}.scope\n", task.alloc.cgroup.name());
        ensure_eq!(groups_of(task.pid()?)?, group);
    }
    ensure_eq!(allowed(task.pid()?)?, "1");
    ensure!(
        task.exec(plugin, "grep Cpus_allowed_list /proc/self/status").await?.1.ends_with("\t1\n"),
        "not in an exec"
    );
    task.end(plugin).await
}

/// Returns a process' cgroups, as the host sees them.
fn groups_of(pid: i32) -> Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read a task's control groups")
}

async fn the_limit_of_open_files_is_the_agents(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", plugin.pid()))?;
    let line =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("unknown limit")?;
    let hard = line.split_whitespace().nth(1).context("no hard limit")?;
    let task = case.run(plugin, &case.shell("ulimit -Hn")).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, format!("{hard}\n").into_bytes());
    task.destroy(plugin).await
}
