//! Tasks whose bundle directory somebody has removed, such as an operator who cleans up by hand: every part of them is
//! ended nevertheless.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::leaks::sweep;
use harness::task::{LIMIT, Task};
use nix::libc::EBUSY;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::cases::support::processes::shim_pid;
use crate::cases::support::{cases, ensure_eq, refused, until};

cases!["lost bundle":
    a_task_without_its_bundle_is_stopped_and_destroyed,
    a_task_without_its_bundle_is_destroyed_by_force,
    a_task_that_lost_its_bundle_between_two_plugins_is_destroyed,
    a_task_that_lost_its_bundle_and_then_its_shim_is_ended,
    a_container_with_neither_a_bundle_nor_a_handle_is_ended,
    a_bundle_that_a_refused_recovery_restored_is_removed_at_once,
];

/// The removed part of a bundle.
#[derive(Clone, Copy, Debug)]
enum Lost {
    /// The whole bundle, as by an unmount and a removal by hand.
    All,
    /// The files only, as by a removal without an unmount, which fails at the rootfs.
    Files,
}

/// Returns jobs whose processes end with the first one, and jobs whose processes don't. A sandbox has none of the
/// second kind.
fn jobs(case: &CaseContext) -> Vec<Value> {
    let script = "trap 'exit 3' TERM; setsid sleep 600 & echo up; wait";
    let (alone, mut with_host) = (case.shell(script), case.shell(script));
    with_host["pid_mode"] = json!("host");
    if case.programs().is_gvisor() { vec![alone] } else { vec![alone, with_host] }
}

async fn run(case: &CaseContext, plugin: &Plugin, job: &Value) -> Result<Task> {
    let task = case.run(plugin, job).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    if !case.programs().is_gvisor() {
        task.processes_become(2).await?;
    }
    Ok(task)
}

fn lose(case: &CaseContext, lost: Lost) -> Result<()> {
    let bundle = case.bundle()?;
    match lost {
        Lost::All => {
            sweep::unmount_under(&bundle);
            fs::remove_dir_all(&bundle)?;
        }
        Lost::Files => {
            for entry in fs::read_dir(&bundle)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    let removed = fs::remove_file(entry.path());
                    // A network's namespace is a mount, which can't be removed.
                    let is_held = |error: &std::io::Error| error.raw_os_error() == Some(EBUSY);
                    ensure!(removed.as_ref().err().is_none_or(is_held), "remove {entry:?}: {removed:?}");
                }
            }
        }
    }
    Ok(())
}

fn nothing_is_left(case: &CaseContext, task: &Task) -> Result<()> {
    ensure_eq!(task.alloc.cgroup.pids(), Vec::<i32>::new());
    case.nothing_left()
}

async fn a_task_without_its_bundle_is_stopped_and_destroyed(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for job in jobs(case) {
        for lost in [Lost::All, Lost::Files] {
            let task = run(case, plugin, &job).await?;
            lose(case, lost)?;
            task.stop(plugin, LIMIT).await.with_context(|| format!("stop without {lost:?}"))?;
            ensure_eq!(task.wait(plugin).await?.exit_code, 3);
            task.destroy(plugin).await.with_context(|| format!("destroy without {lost:?}"))?;
            nothing_is_left(case, &task).with_context(|| format!("without {lost:?}"))?;
        }
    }
    case.still_works(plugin).await
}

async fn a_task_without_its_bundle_is_destroyed_by_force(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    for job in jobs(case) {
        for lost in [Lost::All, Lost::Files] {
            let task = run(case, plugin, &job).await?;
            lose(case, lost)?;
            task.end(plugin).await.with_context(|| format!("destroy without {lost:?}"))?;
            nothing_is_left(case, &task).with_context(|| format!("without {lost:?}"))?;
        }
    }
    Ok(())
}

async fn a_task_that_lost_its_bundle_between_two_plugins_is_destroyed(case: &CaseContext) -> Result<()> {
    for job in jobs(case) {
        for lost in [Lost::All, Lost::Files] {
            for has_shim in [true, false] {
                let mut plugin = case.plugin().await?;
                let task = run(case, &plugin, &job).await?;
                plugin.kill().await?;
                let shim = shim_pid(case)?;
                lose(case, lost)?;
                if !has_shim {
                    kill(shim, Signal::SIGKILL)?;
                }
                let mut next = case.plugin().await?;
                refused(next.recover_task(task.kept_handle()?).await, &["bundle", "removed"])?;
                // The agent destroys the task next.
                task.end(&next).await.with_context(|| format!("destroy without {lost:?}, {has_shim}"))?;
                let left = nothing_is_left(case, &task);
                left.with_context(|| format!("without {lost:?}, {has_shim}"))?;
                next.shut_down().await?;
            }
        }
    }
    Ok(())
}

async fn a_task_that_lost_its_bundle_and_then_its_shim_is_ended(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for job in jobs(case) {
        let task = run(case, plugin, &job).await?;
        let shim = shim_pid(case)?;
        lose(case, Lost::All)?;
        let waiting = task.wait_answer(plugin);
        kill(shim, Signal::SIGKILL)?;
        let answer = waiting.await?;
        ensure!(answer.err.contains("shim"), "WaitTask's err is {:?}", answer.err);
        ensure_eq!(task.alloc.cgroup.pids(), Vec::<i32>::new());
        task.destroy(plugin).await?;
        nothing_is_left(case, &task)?;
    }
    Ok(())
}

/// The agent has lost its state as well, so that nothing knows the task.
async fn a_container_with_neither_a_bundle_nor_a_handle_is_ended(case: &CaseContext) -> Result<()> {
    for job in jobs(case) {
        for lost in [Lost::All, Lost::Files] {
            let mut plugin = case.plugin().await?;
            let task = run(case, &plugin, &job).await?;
            plugin.kill().await?;
            lose(case, lost)?;
            let mut next = case.plugin().await?;
            until(LIMIT, "the end of its processes", || task.alloc.cgroup.pids().is_empty()).await?;
            // The cgroup is Nomad's own, and nothing says whose it was.
            sweep::cgroups(task.alloc.cgroup.name());
            case.nothing_left_within(LIMIT).with_context(|| format!("without {lost:?}"))?;
            next.shut_down().await?;
        }
    }
    Ok(())
}

/// The plugin dies while it destroys a task, and the next one removes the rest before it is asked to recover the task.
async fn a_bundle_that_a_refused_recovery_restored_is_removed_at_once(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = case.run(&plugin, &case.shell("exit 3")).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 3);
    task.destroy(&plugin).await?;
    let mut next = case.next_plugin(&mut plugin).await?;
    // A sweep of its own accord comes ten seconds later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    refused(next.recover_task(task.kept_handle()?).await, &["bundle directory", "was removed"])?;
    case.nothing_left_within(Duration::from_secs(5))?;
    next.shut_down().await
}
