//! Calls that are interrupted: by the plugin's end, the task's end, an exec's end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::{Exec, Plugin};
use harness::task::{LIMIT, Task};

use crate::cases::support::plugin_end::{PluginEnd, starts_cut_off};
use crate::cases::support::{cases, ensure_eq};

cases!["in flight":
    a_plugin_with_calls_under_way_ends_in_time_and_the_task_goes_on,
    a_plugin_that_ends_in_the_middle_of_a_start_leaves_nothing,
    an_exec_ends_with_its_task,
    an_exec_ends_with_its_task_by_force,
    an_interactive_shell_takes_what_is_typed,
    stops_and_destroys_and_execs_at_once_end_in_order,
];

/// Starts a task that ends with code 3 at SIGTERM.
async fn sleeper(case: &CaseContext, plugin: &Plugin) -> Result<Task> {
    let task =
        case.run(plugin, &case.shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done")).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    Ok(task)
}

async fn a_plugin_with_calls_under_way_ends_in_time_and_the_task_goes_on(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = sleeper(case, &plugin).await?;
    let mut calls = Vec::new();
    for _ in 0..3 {
        let (mut driver, task_id) = (plugin.driver(), task.id().to_owned());
        calls.push(tokio::spawn(async move {
            driver.wait_task(nomad_proto::driver::WaitTaskRequest { task_id }).await.is_ok()
        }));
    }
    let _stats = plugin.stats(task.id(), Duration::from_millis(100)).await;
    let mut exec = Exec::open(&plugin, task.id(), &["sh", "-c", "echo up; sleep 600"], true).await?;
    exec.stdout_to_contain("up", LIMIT).await?;
    plugin.shut_down().await?;
    for call in calls {
        ensure!(!call.await?, "the task's end was reported, but it runs");
    }
    let mut next = case.plugin().await?;
    task.recover(&next).await?;
    task.stop(&next, LIMIT).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 3);
    task.destroy(&next).await?;
    next.shut_down().await
}

async fn a_plugin_that_ends_in_the_middle_of_a_start_leaves_nothing(case: &CaseContext) -> Result<()> {
    starts_cut_off(case, PluginEnd::ShutDown, &[5, 30, 60, 90]).await
}

async fn an_exec_ends_with_its_task(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let mut execs = Vec::new();
    for tty in [false, true] {
        let mut exec = Exec::open(plugin, task.id(), &["sh", "-c", "echo up; sleep 600"], tty).await?;
        exec.stdout_to_contain("up", LIMIT).await?;
        execs.push(exec);
    }
    task.stop(plugin, LIMIT).await?;
    for exec in execs {
        ensure!(exec.finish(LIMIT).await?.code()? != 0, "it looks like success");
    }
    ensure_eq!(task.wait(plugin).await?.exit_code, 3);
    task.destroy(plugin).await
}

async fn an_exec_ends_with_its_task_by_force(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let mut exec = Exec::open(plugin, task.id(), &["sh", "-c", "echo up; sleep 600"], false).await?;
    exec.stdout_to_contain("up", LIMIT).await?;
    let (ended, output) = tokio::join!(task.end(plugin), exec.finish(LIMIT));
    ended?;
    // The stream ends with an exit frame or with an error.
    if let Ok(output) = output {
        ensure!(output.code()? != 0, "it looks like success");
    }
    case.nothing_left()?;
    Ok(())
}

async fn an_interactive_shell_takes_what_is_typed(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let mut exec = Exec::open(plugin, task.id(), &["sh"], true).await?;
    exec.resize(24, 80).await?;
    exec.stdin(b"echo $((6 * 7)); tty\n").await?;
    exec.stdout_to_contain("42\r\n/dev/pts/", LIMIT).await?;
    exec.resize(50, 132).await?;
    exec.stdin(b"stty size\n").await?;
    exec.stdout_to_contain("50 132\r\n", LIMIT).await?;
    // Ctrl-C ends the command that runs in the shell, and not the shell.
    exec.stdin(b"sleep 600\n").await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    exec.stdin(b"\x03").await?;
    exec.stdin(b"echo after $?; exit 9\n").await?;
    exec.stdout_to_contain("after 130", LIMIT).await?;
    ensure_eq!(exec.finish(LIMIT).await?.code()?, 9);
    // The client's end of input ends a shell, whose output so far isn't lost.
    let mut exec = Exec::open(plugin, task.id(), &["sh"], true).await?;
    exec.stdin(b"echo typed\n").await?;
    exec.stdout_to_contain("typed\r\n", LIMIT).await?;
    exec.close_stdin().await?;
    ensure_eq!(exec.finish(LIMIT).await?.code()?, 0);
    task.end(plugin).await
}

async fn stops_and_destroys_and_execs_at_once_end_in_order(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for _ in 0..5 {
        let task = case.run(plugin, &case.shell("trap 'exit 3' TERM; while :; do sleep 0.1; done")).await?;
        let calls = async {
            let stop = task.stop(plugin, LIMIT);
            let destroy = task.end(plugin);
            let exec = task.exec(plugin, "true");
            let wait = plugin.wait_task(task.id());
            let signal = plugin.signal_task(task.id(), "SIGHUP");
            tokio::join!(stop, destroy, exec, wait, signal)
        };
        let (_, destroyed, ..) =
            tokio::time::timeout(LIMIT, calls).await.context("they block one another")?;
        destroyed?;
        task.end(plugin).await?;
        case.nothing_left()?;
    }
    case.still_works(plugin).await
}
