//! File systems of the host that don't answer: a call that needs one waits for a bounded time, and no other call waits.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use harness::context::CaseContext;
use harness::fixture::hung::HungFilesystem;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use nomad_proto::driver as pb;
use serde_json::json;
use tonic::Status;

use crate::cases::support::stoppable_task::{start_stoppable, tell_to_end};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused};

cases!["hung file system":
    many_starts_on_a_hung_file_system_are_refused_in_time_and_hold_nobody_up,
    starts_whose_seccomp_profile_or_device_is_on_one_are_refused_in_time,
    an_allocation_on_a_hung_file_system_holds_nobody_up,
    tasks_whose_log_pipes_are_on_one_end_and_hold_nobody_up,
    a_start_that_needs_one_whose_server_is_gone_is_tried_again,
];

/// More starts than the plugin has threads.
const MANY: usize = 150;
/// Maximum time for a start that needs nothing of the hung file system, beside so many others.
const OTHERS: Duration = Duration::from_secs(15);
/// The plugin's timeout for a file system, with a margin.
const BOUND: Duration = Duration::from_secs(60);
/// Maximum time for the plugin's answer to a call that needs no file system, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn answers_at_once(plugin: &Plugin) -> Result<()> {
    let begun = Instant::now();
    let capabilities = tokio::time::timeout(LIMIT, plugin.capabilities()).await;
    capabilities.context("no answer")??;
    ensure!(begun.elapsed() < AT_ONCE, "it took {:?} to answer", begun.elapsed());
    Ok(())
}

/// Asserts that each start was refused because a file system doesn't answer, in a way that Nomad tries again.
fn all_starts_are_refused_for_now(
    tasks: &[Task],
    refusals: Vec<Result<pb::StartTaskResponse, Status>>,
) -> Result<()> {
    for (task, refusal) in tasks.iter().zip(refusals) {
        let status = refused(refusal, &[task.id(), "no answer"])?;
        ensure!(is_recoverable(&status)?, "Nomad would not try it again: {status}");
    }
    Ok(())
}

/// Mounts a file system that hangs over the log directories of these tasks.
fn hang_logs(tasks: &[Task]) -> Result<Vec<HungFilesystem>> {
    tasks.iter().map(|task| HungFilesystem::over(&task.alloc.logs())).collect()
}

/// Asserts that, beside calls that hang, the plugin answers, a running task can be used, and another one comes and
/// goes.
async fn others_get_on(case: &CaseContext, plugin: &Plugin, running: &Task) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    answers_at_once(plugin).await?;
    ensure_eq!(running.exec(plugin, "echo here").await?, (0, "here\n".to_owned()));
    let begun = Instant::now();
    case.still_works(plugin).await?;
    ensure!(begun.elapsed() < OTHERS, "it took {:?}", begun.elapsed());
    answers_at_once(plugin).await
}

async fn many_starts_on_a_hung_file_system_are_refused_in_time_and_hold_nobody_up(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let dead = case.directory().join("dead");
    let mut job = case.shell("true");
    job["volumes"] = json!([format!("{}/data:/data", dead.display())]);
    let task = case.prepare(plugin, &job).await?;
    let sound = case.directory().join("sound");
    std::fs::create_dir_all(&sound)?;
    let mut other = case.shell("exit 3");
    other["volumes"] = json!([format!("{}:/data", sound.display())]);
    let hung = HungFilesystem::over(&dead)?;
    let began = Instant::now();
    let starts = (0..MANY).map(|number| {
        let (mut driver, mut config) = (plugin.driver(), task.config.clone());
        config.id = format!("{}{number}", config.id);
        async move { driver.start_task(pb::StartTaskRequest { task: Some(config) }).await }
    });
    let others = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        for job in [&other, &case.shell("exit 3")] {
            let begun = Instant::now();
            let task = case.run(plugin, job).await.context("beside those that wait")?;
            ensure!(begun.elapsed() < OTHERS, "it took {:?} to start", begun.elapsed());
            ensure_eq!(task.wait(plugin).await?.exit_code, 3);
            task.destroy(plugin).await?;
            answers_at_once(plugin).await?;
        }
        Ok(())
    };
    let (refusals, others) = tokio::join!(join_all(starts), others);
    let took = began.elapsed();
    drop(hung);
    others?;
    for refusal in refusals {
        let status = refused(refusal, &[task.id(), "no answer"])?;
        ensure!(is_recoverable(&status)?, "Nomad would not try it again: {status}");
    }
    ensure!(took < BOUND, "the last was reported after {took:?}");
    case.nothing_left()?;
    // The file system answers again, and nothing is held up by what had waited.
    std::fs::create_dir_all(dead.join("data"))?;
    let task = case.run(plugin, &job).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    task.destroy(plugin).await
}

async fn starts_whose_seccomp_profile_or_device_is_on_one_are_refused_in_time(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let dead = case.directory().join("dead");
    let file = dead.join("file");
    let mut tasks = Vec::new();
    for (option, value) in [("seccomp_profile", json!(file)), ("devices", json!([file]))] {
        let mut job = case.shell("true");
        job[option] = value;
        tasks.push(case.prepare(plugin, &job).await?);
    }
    let hung = HungFilesystem::over(&dead)?;
    let starts = join_all(tasks.iter().map(|task| plugin.start_task(task.config.clone())));
    let refusals = tokio::time::timeout(BOUND, starts).await;
    drop(hung);
    all_starts_are_refused_for_now(&tasks, refusals.context("a start waits on")?)?;
    case.nothing_left()
}

async fn an_allocation_on_a_hung_file_system_holds_nobody_up(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let running = start_stoppable(case, plugin).await?;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(case.prepare(plugin, &case.shell("true")).await?);
    }
    let hung = hang_logs(&tasks)?;
    let starts = join_all(tasks.iter().map(|task| plugin.start_task(task.config.clone())));
    let starts = tokio::time::timeout(BOUND, starts);
    let (refusals, others) = tokio::join!(starts, others_get_on(case, plugin, &running));
    drop(hung);
    others?;
    all_starts_are_refused_for_now(&tasks, refusals.context("a start waits on")?)?;
    running.end(plugin).await?;
    case.nothing_left()
}

async fn tasks_whose_log_pipes_are_on_one_end_and_hold_nobody_up(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let running = start_stoppable(case, plugin).await?;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(start_stoppable(case, plugin).await?);
    }
    let hung = hang_logs(&tasks)?;
    tasks.iter().try_for_each(tell_to_end)?;
    let ends = join_all(tasks.iter().map(|task| task.wait(plugin)));
    let (ends, others) = tokio::join!(ends, others_get_on(case, plugin, &running));
    for end in ends {
        ensure_eq!(end.context("its end is not reported")?.exit_code, 11);
    }
    others?;
    for task in &tasks {
        task.destroy(plugin).await?;
    }
    drop(hung);
    running.end(plugin).await?;
    case.nothing_left()
}

async fn a_start_that_needs_one_whose_server_is_gone_is_tried_again(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let dead = case.directory().join("dead");
    let mut job = case.shell("true");
    job["volumes"] = serde_json::json!([format!("{}:/data", dead.display())]);
    let mut filesystem = HungFilesystem::over(&dead)?;
    filesystem.end_server();
    let task = case.prepare(plugin, &job).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[task.id(), "dead"])?;
    ensure!(is_recoverable(&status)?, "Nomad would not try it again: {status}");
    case.nothing_left()?;
    drop(filesystem);
    let task = case.run(plugin, &job).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 0);
    task.destroy(plugin).await
}
