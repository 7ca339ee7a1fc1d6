//! Waiting for a task, inspecting it, and destroying it.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;
use nomad_proto::driver::TaskState;
use tonic::Code;

use crate::cases::support::{cases, ensure_eq, refused};

cases!["wait":
    all_waiters_get_the_exit,
    late_waiters_get_the_exit_until_the_destroy,
    a_wait_that_is_called_off_harms_nobody,
    a_task_is_shown_as_it_is,
    a_running_task_is_only_destroyed_by_force,
    a_destroyed_task_is_gone_and_may_be_destroyed_again,
    a_destroy_tells_those_who_wait,
    an_unknown_task_is_reported_in_nomads_words,
    the_same_allocation_may_try_again,
];

async fn all_waiters_get_the_exit(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 0.5; exit 9")).await?;
    for exit in futures::future::try_join_all((0..8).map(|_| task.wait(plugin))).await? {
        ensure_eq!(exit.exit_code, 9);
    }
    task.destroy(plugin).await
}

async fn late_waiters_get_the_exit_until_the_destroy(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("exit 5")).await?;
    for _ in 0..3 {
        ensure_eq!(task.wait(plugin).await?.exit_code, 5);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    task.destroy(plugin).await?;
    let status = refused(plugin.wait_task(task.id()).await, &["task not found for given id"])?;
    ensure_eq!(status.code(), Code::Unknown);
    Ok(())
}

async fn a_wait_that_is_called_off_harms_nobody(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 1; exit 6")).await?;
    for _ in 0..20 {
        let called_off = tokio::time::timeout(Duration::from_millis(5), plugin.wait_task(task.id())).await;
        ensure!(called_off.is_err(), "it answered {called_off:?}");
    }
    ensure_eq!(task.wait(plugin).await?.exit_code, 6);
    task.destroy(plugin).await
}

async fn a_task_is_shown_as_it_is(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let before = SystemTime::now() - Duration::from_secs(1);
    let script = "while [ ! -e /local/go ]; do sleep 0.05; done; exit 8";
    let task = case.run(plugin, &case.shell(script)).await?;
    let time = |stamp: Option<prost_types::Timestamp>| -> Result<SystemTime> {
        Ok(stamp.context("no time, which crashes the agent")?.try_into()?)
    };
    let shown = plugin.inspect_task(task.id()).await?.task.context("no task, which crashes the agent")?;
    ensure_eq!((shown.id.as_str(), shown.name.as_str()), (task.id(), "web"));
    ensure_eq!(shown.state(), TaskState::Running);
    ensure!(
        shown.result.is_some() && shown.completed_at.is_some(),
        "a part is missing, which crashes the agent"
    );
    std::fs::write(task.alloc.task_path("local/go"), "")?;
    task.wait(plugin).await?;
    let shown = plugin.inspect_task(task.id()).await?;
    ensure!(shown.driver.is_some_and(|driver| !driver.attributes.is_empty()), "no attributes");
    let shown = shown.task.context("no task")?;
    ensure_eq!(shown.state(), TaskState::Exited);
    ensure_eq!(shown.result.context("no result")?.exit_code, 8);
    let (started, completed) = (time(shown.started_at)?, time(shown.completed_at)?);
    ensure!(
        before < started && started <= completed && completed <= SystemTime::now(),
        "{started:?} {completed:?}"
    );
    task.destroy(plugin).await
}

async fn a_running_task_is_only_destroyed_by_force(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("trap '' TERM; sleep 600 & wait; sleep 600")).await?;
    refused(plugin.destroy_task(task.id(), false).await, &["running"])?;
    let shown = plugin.inspect_task(task.id()).await?.task.unwrap_or_default();
    ensure_eq!(shown.state(), TaskState::Running);
    task.end(plugin).await?;
    case.nothing_left()
}

async fn a_destroyed_task_is_gone_and_may_be_destroyed_again(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("exit 0")).await?;
    task.wait(plugin).await?;
    tokio::try_join!(task.destroy(plugin), task.end(plugin))?;
    task.destroy(plugin).await?;
    task.end(plugin).await?;
    case.nothing_left()
}

async fn a_destroy_tells_those_who_wait(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let (waited, ended) = tokio::join!(task.wait_answer(plugin), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        task.end(plugin).await
    });
    ended?;
    let result = waited?.result.context("WaitTask without a result")?;
    ensure_eq!(result.signal, 9);
    Ok(())
}

async fn an_unknown_task_is_reported_in_nomads_words(_: &CaseContext, plugin: &Plugin) -> Result<()> {
    const NOT_HERE: &[&str] = &["task not found for given id"];
    let id = "00000000-1111-2222-3333-444444444444/web/0123abcd";
    refused(plugin.wait_task(id).await, NOT_HERE)?;
    refused(plugin.inspect_task(id).await, NOT_HERE)?;
    refused(plugin.signal_task(id, "SIGTERM").await, NOT_HERE)?;
    refused(plugin.stats(id, LIMIT).await, NOT_HERE)?;
    refused(plugin.exec_task(id, &["true"], LIMIT).await, NOT_HERE)?;
    // A task that is gone counts as stopped.
    plugin.stop_task(id, LIMIT, "").await?;
    plugin.destroy_task(id, true).await?;
    Ok(())
}

async fn the_same_allocation_may_try_again(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task = case.run(plugin, &case.shell("exit 1")).await?;
    for _ in 0..3 {
        ensure_eq!(task.wait(plugin).await?.exit_code, 1);
        task.destroy(plugin).await?;
        task.alloc.stdout.to_end(LIMIT).await?;
        task.alloc.stderr.to_end(LIMIT).await?;
        task.alloc.read_logs()?;
        task.next_attempt()?;
        task.start(plugin).await?;
    }
    task.wait(plugin).await?;
    task.destroy(plugin).await
}
