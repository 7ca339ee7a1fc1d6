//! Orphans: containers that run and that Nomad does not know of.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::cgroup::{Nested, is_v2};
use harness::processes::alive;
use harness::task::LIMIT;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::case::skip;
use crate::cases::support::orphans::options;
use crate::cases::support::processes::shim_pid;
use crate::cases::support::stoppable_task::{end_and_destroy, start_stoppable};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["orphans":
    a_container_that_nobody_recovers_is_taken_down,
    a_recovered_task_is_no_orphan,
    no_orphan_is_taken_down_while_the_agent_is_away_or_recovers_tasks,
    a_plugin_that_stood_still_gives_the_agent_its_time_again,
    a_task_whose_recovery_failed_is_taken_down,
    a_dry_run_only_names_them,
    they_are_left_alone_where_the_operator_says_so,
    a_second_attempt_of_an_orphans_allocation_begins_with_the_orphans_end,
    a_second_attempt_begins_with_the_end_of_one_whose_answer_was_lost,
    a_second_attempt_is_put_off_while_the_first_one_runs,
];

/// Part of the plugin's log line about an orphan.
const NAMED: &str = "Nomad does not know this container";

async fn a_container_that_nobody_recovers_is_taken_down(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let mut next = case.next_plugin_with(&mut plugin, &options(case, &json!({}))).await?;
    case.nothing_left_within(LIMIT)?;
    let log = next.log().all().join("\n");
    ensure!(log.contains(NAMED) && log.contains(&task.alloc.id), "not said in {log}");
    case.still_works(&next).await?;
    next.shut_down().await
}

async fn a_recovered_task_is_no_orphan(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    plugin.kill().await?;
    // An orphan that nobody recovers shows when the grace is over.
    let mut other = case.plugin().await?;
    let orphan = start_stoppable(case, &other).await?;
    let mut next = case.next_plugin_with(&mut other, &options(case, &json!({}))).await?;
    task.recover(&next).await?;
    let fresh = start_stoppable(case, &next).await?;
    until(LIMIT, "the orphan's end", || orphan.alloc.cgroup.pids().is_empty()).await?;
    // Some more rounds of the collection pass.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for task in [task, fresh] {
        end_and_destroy(&task, &next).await?;
    }
    next.shut_down().await
}

async fn no_orphan_is_taken_down_while_the_agent_is_away_or_recovers_tasks(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(start_stoppable(case, &plugin).await?);
    }
    plugin.kill().await?;
    let grace = Duration::from_secs(5);
    let away = grace + Duration::from_secs(1);
    let options = options(case, &json!({"creation_grace": "5s"}));
    let mut next = case.plugin_as(&case.launch(), &options).await?;
    // The agent dies before its recoveries, is away for longer than the grace, and dies again in their middle.
    next.redial().await?;
    tokio::time::sleep(away).await;
    next.listen().await?;
    let orphan = tasks.pop().context("no task")?;
    tasks[0].recover(&next).await?;
    next.redial().await?;
    tokio::time::sleep(away).await;
    next.listen().await?;
    for task in &tasks[1..] {
        tokio::time::sleep(grace / 2).await;
        task.recover(&next).await?;
    }
    ensure!(
        !orphan.alloc.cgroup.pids().is_empty(),
        "it was taken down before the agent had recovered the others"
    );
    until(LIMIT, "the orphan's end", || orphan.alloc.cgroup.pids().is_empty()).await?;
    for task in tasks {
        end_and_destroy(&task, &next).await?;
    }
    next.shut_down().await
}

async fn a_plugin_that_stood_still_gives_the_agent_its_time_again(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let options = options(case, &json!({"creation_grace": "4s"}));
    let mut next = case.next_plugin_with(&mut plugin, &options).await?;
    // It has the state directory by now, and waits for recoveries.
    tokio::time::sleep(Duration::from_secs(1)).await;
    next.process().signal(Signal::SIGSTOP)?;
    tokio::time::sleep(Duration::from_secs(7)).await;
    next.process().signal(Signal::SIGCONT)?;
    // The agent's call comes a moment later.
    tokio::time::sleep(Duration::from_secs(1)).await;
    task.recover(&next).await?;
    ensure_eq!(task.exec(&next, "echo here").await?, (0, "here\n".to_owned()));
    end_and_destroy(&task, &next).await?;
    next.shut_down().await
}

async fn a_task_whose_recovery_failed_is_taken_down(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let mut next = case.next_plugin_with(&mut plugin, &options(case, &json!({}))).await?;
    let mut handle = task.kept_handle()?;
    handle.driver_state = b"{}".to_vec();
    ensure!(next.recover_task(handle).await.is_err(), "it was recovered from nothing");
    case.nothing_left_within(LIMIT)?;
    // The agent would have destroyed the task first.
    task.end(&next).await?;
    next.shut_down().await
}

async fn a_dry_run_only_names_them(case: &CaseContext) -> Result<()> {
    left_alone(case, &json!({"dry_run": true})).await
}

async fn they_are_left_alone_where_the_operator_says_so(case: &CaseContext) -> Result<()> {
    left_alone(case, &json!({"enabled": false})).await?;
    // Young orphans are left alone, too.
    left_alone(case, &json!({"creation_grace": "1h"})).await
}

async fn left_alone(case: &CaseContext, more: &Value) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let mut next = case.next_plugin_with(&mut plugin, &options(case, more)).await?;
    let is_named = || next.log().all().join("\n").contains(NAMED);
    if more.get("dry_run").is_some() {
        until(LIMIT, "a word on the orphan", is_named).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure_eq!(is_named(), more.get("dry_run").is_some());
    task.recover(&next).await?;
    end_and_destroy(&task, &next).await?;
    next.shut_down().await
}

/// The agent dies before it has written down the handle, and starts the same allocation again.
async fn a_second_attempt_of_an_orphans_allocation_begins_with_the_orphans_end(
    case: &CaseContext,
) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let mut task = start_stoppable(case, &plugin).await?;
    let (first, pid) = (shim_pid(case)?, task.pid()?);
    let mut next = case.next_plugin_with(&mut plugin, &options(case, &json!({}))).await?;
    task.next_attempt()?;
    task.start(&next).await?;
    ensure!(!alive(pid) && !alive(first.as_raw()), "two attempts of one task run");
    let second = task.pid()?;
    // Longer than the grace of orphans and some rounds of their collection and of the removal of marked bundles.
    tokio::time::sleep(Duration::from_secs(12)).await;
    ensure_eq!(task.pid()?, second);
    ensure_eq!(task.exec(&next, "echo here").await?, (0, "here\n".to_owned()));
    end_and_destroy(&task, &next).await?;
    next.shut_down().await
}

async fn a_second_attempt_begins_with_the_end_of_one_whose_answer_was_lost(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut task = start_stoppable(case, plugin).await?;
    let pid = task.pid()?;
    // The agent never heard of the first attempt.
    task.next_attempt()?;
    task.start(plugin).await?;
    ensure!(!alive(pid), "two attempts of one task run");
    end_and_destroy(&task, plugin).await?;
    Ok(())
}

/// The first attempt has lost its shim. It can't be killed while it is frozen, and is outside of the task's cgroup.
async fn a_second_attempt_is_put_off_while_the_first_one_runs(case: &CaseContext) -> Result<()> {
    if is_v2() {
        return skip("a frozen process can be killed on cgroup v2");
    }
    let mut plugin = case.plugin().await?;
    let mut task = start_stoppable(case, &plugin).await?;
    let pid = task.pid()?;
    let elsewhere = Nested::elsewhere(&format!("of-{}", task.alloc.cgroup.name()), &[pid])?;
    elsewhere.freeze()?;
    plugin.kill().await?;
    kill(shim_pid(case)?, Signal::SIGKILL)?;
    let container = case.bundle()?;
    let container = container.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut next = case.plugin_as(&case.launch(), &options(case, &json!({}))).await?;
    task.next_attempt()?;
    let status = refused(next.start_task(task.config.clone()).await, &[&container, "earlier attempt"])?;
    ensure!(is_recoverable(&status)?, "Nomad would give up: {status:?}");
    ensure!(alive(pid), "it was not to be killed while it is frozen");
    elsewhere.thaw()?;
    task.start(&next).await?;
    ensure!(!alive(pid), "two attempts of one task run");
    let second = task.pid()?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    ensure_eq!(task.pid()?, second);
    end_and_destroy(&task, &next).await?;
    elsewhere.remove()?;
    next.shut_down().await
}
