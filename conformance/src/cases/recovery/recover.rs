//! Recovery: tasks outlive the plugin, and the next plugin takes them over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;
use nix::sys::signal::{Signal, kill};
use nomad_proto::driver::TaskState;

use crate::cases::support::descriptors::recover_without_descriptors;
use crate::cases::support::plugin_end::{PluginEnd, starts_cut_off};
use crate::cases::support::processes::shim_pid;
use crate::cases::support::stoppable_task::{end_and_destroy, start_stoppable, tell_to_end};
use crate::cases::support::{cases, ensure_eq, refused, until};

cases!["recover":
    a_plugin_killed_in_the_middle_of_a_start_leaves_nothing,
    a_start_that_is_tried_again_after_the_plugins_death_works,
    a_plugin_killed_in_the_middle_of_a_destroy_leaves_nothing,
    a_task_runs_on_when_the_plugin_is_killed,
    a_task_runs_on_when_the_plugin_is_shut_down,
    an_exit_while_the_plugin_is_down_is_reported_later,
    output_while_the_plugin_is_down_is_not_lost,
    a_recovery_needs_no_reader_of_the_logs,
    recovering_twice_is_recovering_once,
    a_recovered_task_can_do_everything,
    a_task_is_recovered_under_another_runtime_option,
    a_handle_that_is_not_ours_is_refused,
    a_task_that_is_gone_is_not_recovered,
    a_shim_that_is_killed_is_an_error_that_names_it,
    a_shim_that_was_killed_meanwhile_is_no_task_to_recover,
    a_plugin_that_can_open_nothing_loses_no_task,
];

async fn a_plugin_killed_in_the_middle_of_a_start_leaves_nothing(case: &CaseContext) -> Result<()> {
    // The first task pulls the image, so that the others are killed within the steps after the pull.
    let mut plugin = case.plugin().await?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await?;
    starts_cut_off(case, PluginEnd::Killed, &[2, 10, 20, 30, 45, 60, 80, 100]).await
}

async fn a_start_that_is_tried_again_after_the_plugins_death_works(case: &CaseContext) -> Result<()> {
    // The image is pulled first: a pull that is cut off keeps its lease until that expires.
    let mut plugin = case.plugin().await?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await?;
    for delay_ms in [5, 25, 50, 75, 100] {
        let mut plugin = case.plugin().await?;
        let mut task = case.prepare(&plugin, &case.shell("exit 4")).await?;
        let _ = tokio::time::timeout(Duration::from_millis(delay_ms), task.start(&plugin)).await;
        let mut next = case.next_plugin(&mut plugin).await?;
        // The agent sends the same request again.
        let again = task.start(&next).await;
        again.with_context(|| format!("again, after a death {delay_ms} ms into the first"))?;
        ensure_eq!(task.wait(&next).await?.exit_code, 4);
        task.destroy(&next).await?;
        case.nothing_left()?;
        next.shut_down().await?;
    }
    Ok(())
}

async fn a_plugin_killed_in_the_middle_of_a_destroy_leaves_nothing(case: &CaseContext) -> Result<()> {
    for delay_ms in [1, 10, 30, 60] {
        let mut plugin = case.plugin().await?;
        let task = case.run(&plugin, &case.shell("sleep 600")).await?;
        let _ = tokio::time::timeout(Duration::from_millis(delay_ms), task.end(&plugin)).await;
        let mut next = case.next_plugin(&mut plugin).await?;
        // The agent recovers the tasks that it knows, and destroys those that can't be recovered.
        let _ = task.recover(&next).await;
        task.end(&next).await?;
        let left = case.nothing_left_within(Duration::from_secs(15));
        left.with_context(|| format!("killed {delay_ms} ms after DestroyTask"))?;
        next.shut_down().await?;
    }
    Ok(())
}

async fn a_task_runs_on_when_the_plugin_is_killed(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let pid = task.pid()?;
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    ensure_eq!(task.pid()?, pid);
    let shown = next.inspect_task(task.id()).await?.task.unwrap_or_default();
    ensure_eq!((shown.state(), shown.name.as_str()), (TaskState::Running, "web"));
    tell_to_end(&task)?;
    ensure_eq!(task.wait(&next).await?.exit_code, 11);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, b"up\ndown\n");
    task.destroy(&next).await?;
    next.shut_down().await
}

async fn a_task_runs_on_when_the_plugin_is_shut_down(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let pid = task.pid()?;
    plugin.shut_down().await?;
    ensure_eq!(task.pid()?, pid);
    let mut next = case.plugin().await?;
    task.recover(&next).await?;
    end_and_destroy(&task, &next).await?;
    next.shut_down().await
}

async fn an_exit_while_the_plugin_is_down_is_reported_later(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let pid = task.pid()?;
    plugin.kill().await?;
    tell_to_end(&task)?;
    until(LIMIT, "its end", || !std::path::Path::new(&format!("/proc/{pid}")).exists()).await?;
    let mut next = case.plugin().await?;
    task.recover(&next).await?;
    let exit = task.wait(&next).await?;
    ensure_eq!((exit.exit_code, exit.signal), (11, 0));
    let shown = next.inspect_task(task.id()).await?.task.unwrap_or_default();
    ensure_eq!(shown.state(), TaskState::Exited);
    task.destroy(&next).await?;
    next.shut_down().await
}

async fn output_while_the_plugin_is_down_is_not_lost(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.005; done";
    let task = case.run(&plugin, &case.shell(script)).await?;
    task.alloc.stdout.to_contain("line 10\n", LIMIT).await?;
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 0);
    let wanted: String = (0..400).map(|number| format!("line {number}\n")).collect();
    ensure_eq!(String::from_utf8(task.alloc.stdout.to_end(LIMIT).await?)?, wanted);
    task.destroy(&next).await?;
    next.shut_down().await
}

async fn a_recovery_needs_no_reader_of_the_logs(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let script = "echo up; while [ ! -e /local/go ]; do sleep 0.05; done; yes | head -c 1000000; exit 12";
    let mut task = case.run(&plugin, &case.shell(script)).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    // The agent dies, and its log collector with it.
    task.alloc.stdout.stop();
    task.alloc.stderr.stop();
    std::fs::write(task.alloc.task_path("local/go"), "")?;
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    ensure_eq!(next.inspect_task(task.id()).await?.task.unwrap_or_default().id, task.id());
    task.alloc.read_logs()?;
    ensure_eq!(task.wait(&next).await?.exit_code, 12);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?.len(), 1_000_003);
    task.destroy(&next).await?;
    next.shut_down().await
}

async fn recovering_twice_is_recovering_once(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    // The task is recovered by a plugin that has never lost it.
    task.recover(&plugin).await?;
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    task.recover(&next).await?;
    tell_to_end(&task)?;
    ensure_eq!(task.wait(&next).await?.exit_code, 11);
    task.recover(&next).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 11);
    task.destroy(&next).await?;
    next.shut_down().await
}

async fn a_recovered_task_can_do_everything(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let script =
        "trap 'echo got HUP' HUP; trap 'exit 13' TERM; echo up; while :; do sleep 600 & wait $!; done";
    let task = case.run(&plugin, &case.shell(script)).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    ensure_eq!(
        task.exec(&next, "cat /app/unread; exit 2").await?,
        (2, "nobody has read this yet\n".to_owned())
    );
    next.signal_task(task.id(), "SIGHUP").await?;
    task.alloc.stdout.to_contain("got HUP\n", LIMIT).await?;
    task.stop(&next, LIMIT).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 13);
    task.destroy(&next).await?;
    next.shut_down().await
}

async fn a_task_is_recovered_under_another_runtime_option(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    plugin.shut_down().await?;
    let mut options = case.options();
    options["containerd_runtime"] = serde_json::json!("io.containerd.nope.v9");
    // Shims of another family are not shared.
    options["shim_sharing"] = serde_json::json!("task");
    let mut next = case.plugin_as(&case.launch(), &options).await?;
    task.recover(&next).await?;
    ensure_eq!(task.exec(&next, "exit 3").await?.0, 3);
    end_and_destroy(&task, &next).await?;
    next.shut_down().await
}

async fn a_handle_that_is_not_ours_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let good = task.kept_handle()?;
    task.end(plugin).await?;
    for garbage in [&b""[..], b"\x00\xff\xfe", b"{}", b"{\"container_id\":\"../../etc\"}"] {
        let mut handle = good.clone();
        handle.driver_state = garbage.to_vec();
        refused(plugin.recover_task(handle).await, &[])?;
    }
    let mut handle = good;
    handle.config = None;
    refused(plugin.recover_task(handle).await, &["config"])?;
    case.still_works(plugin).await
}

async fn a_task_that_is_gone_is_not_recovered(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("exit 0")).await?;
    let handle = task.kept_handle()?;
    task.wait(plugin).await?;
    task.destroy(plugin).await?;
    refused(plugin.recover_task(handle.clone()).await, &[])?;
    // The agent destroys the task next.
    task.end(plugin).await
}

async fn a_shim_that_is_killed_is_an_error_that_names_it(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600 & sleep 600")).await?;
    until(LIMIT, "both processes", || task.alloc.cgroup.pids().len() >= 2).await?;
    let waiting = task.wait_answer(plugin);
    kill(shim_pid(case)?, Signal::SIGKILL)?;
    let answer = waiting.await?;
    ensure!(answer.err.contains("shim"), "WaitTask's err is {:?}", answer.err);
    ensure!(answer.result.is_some(), "no result, which crashes the agent");
    // A task that is reported as ended has no running processes.
    until(LIMIT, "the end of its processes", || task.alloc.cgroup.pids().is_empty()).await?;
    task.destroy(plugin).await?;
    case.nothing_left()?;
    case.still_works(plugin).await
}

async fn a_shim_that_was_killed_meanwhile_is_no_task_to_recover(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    plugin.kill().await?;
    kill(shim_pid(case)?, Signal::SIGKILL)?;
    let mut next = case.plugin().await?;
    refused(next.recover_task(task.kept_handle()?).await, &["shim"])?;
    task.end(&next).await?;
    case.nothing_left()?;
    next.shut_down().await
}

async fn a_plugin_that_can_open_nothing_loses_no_task(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let pid = task.pid()?;
    let mut next = case.next_plugin(&mut plugin).await?;
    recover_without_descriptors(&task, &next).await?;
    ensure_eq!(task.pid()?, pid);
    ensure_eq!(next.inspect_task(task.id()).await?.task.unwrap_or_default().state(), TaskState::Running);
    end_and_destroy(&task, &next).await?;
    next.shut_down().await
}
