//! The leak check at the end of each case finds what it is there to find, and a plugin that has done much holds no more
//! than one that has done little.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::cgroup::is_v2;
use harness::host::{Exec, Plugin};
use harness::leaks::census::{Census, daemon, machine};
use harness::task::{LIMIT, Task};

use crate::cases::support::resource_usage::come_back;
use crate::cases::support::{cases, ensure_eq};

cases!["account":
    a_running_task_is_seen_in_all_its_parts,
    a_census_of_the_machine_finds_a_task_and_a_later_one_finds_it_gone,
    a_plugin_that_has_done_much_holds_no_more_than_before,
];

async fn a_running_task_is_seen_in_all_its_parts(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let seen = case.census();
    for kind in [
        "process ",
        "process in a task's cgroup ",
        "bundle ",
        "runc state ",
        "container record ",
        "lease ",
        "active snapshot ",
    ] {
        ensure!(seen.iter().any(|line| line.starts_with(kind)), "no {kind}among {seen:?}");
    }
    // On v2 the only cgroup is the one that the agent made.
    ensure!(seen.iter().any(|line| line.starts_with("cgroup ")) != is_v2(), "cgroups among {seen:?}");
    task.end(plugin).await?;
    // A spare shim that is being launched looks like the rest of something.
    case.nothing_left_within(LIMIT)
}

/// Takes a census as `conformance census` does, for this driver.
fn census(case: &CaseContext, plugin: &Plugin) -> Result<Census> {
    let mut census = machine::take(&[case.state_dir()], &[i32::try_from(plugin.pid())?])?;
    census.merge(daemon::take(&case.environment().containerd().socket(), None)?, "");
    Ok(census)
}

async fn a_census_of_the_machine_finds_a_task_and_a_later_one_finds_it_gone(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    // The first task makes what later tasks share.
    case.still_works(plugin).await?;
    let before = census(case, plugin)?;
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let seen = census(case, plugin)?.since(&before);
    for kind in [
        "active snapshot",
        "cgroup",
        "container record",
        "descriptor",
        "lease",
        "mount",
        "network namespace",
        "process",
        "shim",
        "socket",
        "state file",
    ] {
        ensure!(seen.of_kind(kind).next().is_some(), "no {kind} among {:?}", seen.lines());
    }
    task.end(plugin).await?;
    // Other programs work on the same machine, and groups are the agent's.
    let (environment, kinds) =
        (case.environment().directory().display().to_string(), ["container", "lease", "active"]);
    let is_ours =
        |line: &String| line.contains(&environment) || kinds.iter().any(|kind| line.starts_with(kind));
    let gone = || -> Result<()> {
        let left = census(case, plugin)?.since(&before).lines();
        let left: Vec<_> = left.into_iter().filter(is_ours).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    };
    come_back(LIMIT, gone).await?;
    Ok(())
}

/// Counts the open files and the threads of the plugin.
fn held(plugin: &Plugin) -> Result<(usize, usize)> {
    let count = |name: &str| {
        Ok::<_, anyhow::Error>(std::fs::read_dir(format!("/proc/{}/{name}", plugin.pid()))?.count())
    };
    Ok((count("fd")?, count("task")?))
}

async fn exec_around(plugin: &Plugin, task: &Task) -> Result<()> {
    ensure_eq!(task.exec(plugin, "exit 4").await?.0, 4);
    let exec = Exec::open(plugin, task.id(), &["sh", "-c", "exit 5"], true).await?;
    ensure_eq!(exec.finish(LIMIT).await?.code()?, 5);
    drop(Exec::open(plugin, task.id(), &["sleep", "600"], false).await?);
    let _ = Exec::open(plugin, task.id(), &["no-such-command"], false).await?.finish(LIMIT).await?;
    Ok(())
}

async fn a_plugin_that_has_done_much_holds_no_more_than_before(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let once = || async {
        let task = case.run(plugin, &case.shell("trap 'exit 0' TERM; while :; do sleep 0.1; done")).await?;
        let mut stats = plugin.stats(task.id(), Duration::from_millis(50)).await;
        exec_around(plugin, &task).await?;
        if let Ok(stream) = &mut stats {
            stream.message().await?;
        }
        task.stop(plugin, LIMIT).await?;
        task.wait(plugin).await?;
        task.destroy(plugin).await
    };
    once().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (files, threads) = held(plugin)?;
    for _ in 0..4 {
        tokio::try_join!(once(), once(), once())?;
    }
    // Idle threads end by themselves, after a while.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (files_after, threads_after) = held(plugin)?;
    ensure!(files_after <= files + 3, "{files} open files became {files_after}");
    ensure!(threads_after <= threads + 20, "{threads} threads became {threads_after}");
    Ok(())
}
