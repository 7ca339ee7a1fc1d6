//! Tasks that have put processes into cgroups of their own, as docker in docker, k3s and systemd do, and tasks that are
//! frozen or stopped. All of a task's processes end with it, and no others.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::cgroup::Nested;
use harness::processes::alive;
use harness::task::{LIMIT, Task};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::cases::support::processes::shim_pid;
use crate::cases::support::stoppable_task::tell_to_end;
use crate::cases::support::{cases, ensure_eq, until};

cases!["own cgroups":
    a_task_with_a_frozen_group_of_its_own_is_killed_at_the_timeout,
    the_exit_of_a_task_with_a_frozen_group_of_its_own_is_reported,
    a_task_that_is_halted_is_killed_at_the_timeout,
    a_task_that_is_all_in_groups_of_its_own_is_killed_though_its_shim_hangs,
    what_a_task_among_the_hosts_processes_has_in_groups_of_its_own_ends_with_it,
    a_process_that_was_moved_out_of_the_tasks_group_outlives_the_plugin,
    a_task_with_groups_of_its_own_is_destroyed_after_its_shim_was_killed,
];

/// Maximum time of a stop beyond the task's own timeout.
const SOON: Duration = Duration::from_secs(10);

/// Starts a task of two processes, which ignores signals and ends with code 11 when `/local/end` appears. Returns the
/// pids of its first process and of the other one.
async fn pair(case: &CaseContext, plugin: &Plugin, pid_mode: &str) -> Result<(Task, i32, i32)> {
    let script =
        "trap '' TERM HUP; sleep 600 & echo up; while [ ! -e /local/end ]; do sleep 0.05; done; exit 11";
    let mut config = case.shell(script);
    if !pid_mode.is_empty() {
        config["pid_mode"] = json!(pid_mode);
    }
    let task = case.run(plugin, &config).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    let first = task.pid()?;
    let sleeper = || {
        let is_sleeper = |pid: &i32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("sleep\x00600") && *pid != first
        };
        task.alloc.cgroup.pids().into_iter().find(is_sleeper)
    };
    until(LIMIT, "the second process", || sleeper().is_some()).await?;
    let second = sleeper().context("no second process")?;
    Ok((task, first, second))
}

async fn stopped_soon(task: &Task, plugin: &Plugin) -> Result<()> {
    let begun = Instant::now();
    task.stop(plugin, Duration::from_secs(1)).await?;
    ensure!(begun.elapsed() < Duration::from_secs(1) + SOON, "the stop took {:?}", begun.elapsed());
    ensure_eq!(task.wait_for_all(plugin).await?, (137, 9));
    Ok(())
}

async fn a_task_with_a_frozen_group_of_its_own_is_killed_at_the_timeout(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for all in [false, true] {
        let (task, first, second) = pair(case, plugin, "").await?;
        let frozen = if all { vec![first, second] } else { vec![second] };
        task.alloc.cgroup.nest("inner", &frozen)?.freeze()?;
        stopped_soon(&task, plugin).await?;
        task.destroy(plugin).await?;
        case.nothing_left()?;
    }
    // A destroy by force doesn't hang either.
    let (task, _, second) = pair(case, plugin, "").await?;
    task.alloc.cgroup.nest("inner", &[second])?.freeze()?;
    tokio::time::timeout(LIMIT, task.end(plugin)).await.context("DestroyTask gave no answer")??;
    case.nothing_left()
}

async fn the_exit_of_a_task_with_a_frozen_group_of_its_own_is_reported(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let (task, _, second) = pair(case, plugin, "").await?;
    task.alloc.cgroup.nest("inner", &[second])?.freeze()?;
    tell_to_end(&task)?;
    ensure_eq!(task.wait_for_all(plugin).await?, (11, 0));
    task.destroy(plugin).await
}

async fn a_task_that_is_halted_is_killed_at_the_timeout(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let (task, first, second) = pair(case, plugin, "").await?;
    for pid in [first, second] {
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
    }
    stopped_soon(&task, plugin).await?;
    task.destroy(plugin).await
}

async fn a_task_that_is_all_in_groups_of_its_own_is_killed_though_its_shim_hangs(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let (task, first, second) = pair(case, plugin, "").await?;
    task.alloc.cgroup.nest("init", &[first])?;
    task.alloc.cgroup.nest("docker", &[second])?;
    kill(shim_pid(case)?, Signal::SIGSTOP)?;
    task.stop(plugin, Duration::from_secs(1)).await?;
    ensure_eq!(task.wait_for_all(plugin).await?, (137, 9));
    task.destroy(plugin).await
}

async fn what_a_task_among_the_hosts_processes_has_in_groups_of_its_own_ends_with_it(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let (task, _, second) = pair(case, plugin, "host").await?;
    task.alloc.cgroup.nest("docker", &[second])?;
    tell_to_end(&task)?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 11);
    ensure!(!alive(second), "what it had in a group of its own runs on");
    task.destroy(plugin).await
}

async fn a_process_that_was_moved_out_of_the_tasks_group_outlives_the_plugin(
    case: &CaseContext,
) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let (task, first, second) = pair(case, &plugin, "").await?;
    let elsewhere = Nested::elsewhere(&format!("of-{}", task.alloc.cgroup.name()), &[second])?;
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    // By now a recovery has ended the processes that it ends.
    ensure_eq!(task.exec(&next, "echo here").await?, (0, "here\n".to_owned()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(alive(first) && alive(second), "a recovery has killed a process of the task");
    tell_to_end(&task)?;
    ensure_eq!(task.wait(&next).await?.exit_code, 11);
    until(LIMIT, "the end of what it had elsewhere", || !alive(second)).await?;
    task.destroy(&next).await?;
    elsewhere.remove()?;
    next.shut_down().await
}

async fn a_task_with_groups_of_its_own_is_destroyed_after_its_shim_was_killed(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let (task, first, second) = pair(case, plugin, "").await?;
    task.alloc.cgroup.nest("init", &[first])?;
    task.alloc.cgroup.nest("docker", &[second])?.freeze()?;
    let waiting = task.wait_answer(plugin);
    kill(shim_pid(case)?, Signal::SIGKILL)?;
    let answer = waiting.await?;
    ensure!(answer.err.contains("shim"), "WaitTask's err is {:?}", answer.err);
    ensure!(!alive(first) && !alive(second), "it is said to have ended, and runs");
    task.destroy(plugin).await?;
    case.nothing_left()
}
