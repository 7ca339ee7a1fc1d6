//! Tasks while no plugin supervises them: their ends are reported later as they were, or as unknown.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use futures::future::{join_all, try_join_all};
use harness::context::CaseContext;
use harness::host::{Exec, Plugin};
use harness::leaks::sweep;
use harness::task::{LIMIT, Task};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cases::support::plugin_end::PluginEnd;
use crate::cases::support::processes::{ended, shim_pid};
use crate::cases::support::stoppable_task::{start_stoppable, tell_to_end};
use crate::cases::support::{cases, ensure_eq, orphans_are_known, refused, until};

cases!["gaps":
    an_exit_without_a_plugin_is_reported_as_it_was,
    a_task_whose_shim_died_in_the_gap_is_honestly_lost,
    a_reboot_leaves_no_task_to_recover_and_harms_no_stranger,
    many_tasks_are_recovered_beside_one_whose_shim_hangs,
    execs_whose_plugin_died_are_ended_with_all_that_they_started,
];

async fn end_plugin(plugin: &mut Plugin, how: PluginEnd) -> Result<()> {
    match how {
        PluginEnd::Killed => plugin.kill().await,
        PluginEnd::ShutDown => plugin.shut_down().await,
    }
}

async fn an_exit_without_a_plugin_is_reported_as_it_was(case: &CaseContext) -> Result<()> {
    for how in [PluginEnd::Killed, PluginEnd::ShutDown] {
        for (killed, without_containerd) in [(false, false), (true, false), (false, true)] {
            let mut plugin = case.plugin().await?;
            let task = start_stoppable(case, &plugin).await?;
            let pid = task.pid()?;
            end_plugin(&mut plugin, how).await?;
            if without_containerd {
                case.environment().containerd().kill()?;
            }
            if killed {
                kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            } else {
                tell_to_end(&task)?;
            }
            ended(pid).await?;
            if without_containerd {
                case.environment().containerd().start()?;
            }
            let mut next = case.plugin().await?;
            task.recover(&next).await?;
            let exit = task.wait(&next).await?;
            ensure_eq!((exit.exit_code, exit.signal), if killed { (137, 9) } else { (11, 0) });
            let output = task.alloc.stdout.to_end(LIMIT).await?;
            ensure_eq!(String::from_utf8(output)?, if killed { "up\n" } else { "up\ndown\n" });
            ensure!(task.alloc.cgroup.pids().is_empty(), "something was started again");
            task.destroy(&next).await?;
            case.nothing_left()?;
            next.shut_down().await?;
        }
    }
    Ok(())
}

async fn a_task_whose_shim_died_in_the_gap_is_honestly_lost(case: &CaseContext) -> Result<()> {
    for how in [PluginEnd::Killed, PluginEnd::ShutDown] {
        for had_ended in [false, true] {
            let mut plugin = case.plugin().await?;
            let task = start_stoppable(case, &plugin).await?;
            let pid = task.pid()?;
            end_plugin(&mut plugin, how).await?;
            if had_ended {
                tell_to_end(&task)?;
                ended(pid).await?;
            }
            kill(shim_pid(case)?, Signal::SIGKILL)?;
            let mut next = case.plugin().await?;
            refused(next.recover_task(task.kept_handle()?).await, &["shim"])?;
            // The agent destroys the task next.
            task.end(&next).await?;
            case.nothing_left()?;
            next.shut_down().await?;
        }
    }
    Ok(())
}

/// Replaces one number by another everywhere in a value.
fn renumber(value: &mut Value, from: i32, to: u32) {
    match value {
        Value::Number(number) if number.as_i64() == Some(from.into()) => *value = to.into(),
        Value::Array(values) => values.iter_mut().for_each(|value| renumber(value, from, to)),
        Value::Object(values) => values.values_mut().for_each(|value| renumber(value, from, to)),
        _ => {}
    }
}

async fn a_reboot_leaves_no_task_to_recover_and_harms_no_stranger(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let (shim, pid) = (shim_pid(case)?, task.pid()?);
    plugin.kill().await?;
    kill(shim, Signal::SIGKILL)?;
    for pid in task.alloc.cgroup.pids() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    sweep::unmount_under(&case.state_dir());
    until(LIMIT, "the end of all processes", || task.alloc.cgroup.pids().is_empty()).await?;
    // As if bundle and handle were on a disk, the runtime's state was not, and another process had got the pids.
    for state in fs::read_dir(case.state_dir().join("runc/nomad"))? {
        fs::remove_dir_all(state?.path())?;
    }
    case.environment().containerd().kill()?;
    case.environment().containerd().start()?;
    let null = Stdio::null;
    let mut stranger =
        Command::new("sleep").arg("600").stdin(null()).stdout(null()).stderr(null()).spawn()?;
    let mut handle = task.kept_handle()?;
    let mut state: Value = serde_json::from_slice(&handle.driver_state)?;
    renumber(&mut state, pid, stranger.id());
    renumber(&mut state, shim.as_raw(), stranger.id());
    handle.driver_state = serde_json::to_vec(&state)?;
    for bundle in fs::read_dir(case.state_dir().join("nomad"))? {
        let file = bundle?.path().join("shim.json");
        let mut written: Value = serde_json::from_slice(&fs::read(&file)?)?;
        renumber(&mut written, shim.as_raw(), stranger.id());
        fs::write(&file, serde_json::to_vec(&written)?)?;
    }
    let mut next = case.plugin().await?;
    let recovered = refused(next.recover_task(handle).await, &["shim"]);
    let destroyed = task.end(&next).await;
    let unharmed = stranger.try_wait()?.is_none();
    stranger.kill()?;
    stranger.wait()?;
    recovered?;
    destroyed?;
    ensure!(unharmed, "a process that is none of the task's was killed");
    case.nothing_left()?;
    case.still_works(&next).await?;
    next.shut_down().await
}

const MANY: usize = 32;
const AT_A_TIME: usize = 4;

async fn many_tasks_are_recovered_beside_one_whose_shim_hangs(case: &CaseContext) -> Result<()> {
    let mut plugin = case.with_own_shims().plugin().await?;
    let mut tasks = Vec::new();
    while tasks.len() < MANY {
        tasks.extend(try_join_all((0..AT_A_TIME).map(|_| start_stoppable(case, &plugin))).await?);
    }
    let driver = plugin.inspect_task(tasks[0].id()).await?.driver.context("no attributes")?;
    let hung = Pid::from_raw(driver.attributes["shim_pid"].parse()?);
    kill(hung, Signal::SIGSTOP)?;
    plugin.kill().await?;
    // One after the other, as the agent recovers tasks, with the one that hangs first.
    let mut next = case.plugin().await?;
    for task in &tasks {
        tokio::time::timeout(LIMIT, task.recover(&next)).await.context("RecoverTask gave no answer")??;
    }
    next.kill().await?;
    // All tasks at once.
    let mut last = case.plugin().await?;
    let recoveries = tasks.iter().map(|task| tokio::time::timeout(LIMIT, task.recover(&last)));
    for recovered in join_all(recoveries).await {
        recovered.context("RecoverTask gave no answer")??;
    }
    // The task that hangs can be ended by force, and the others are as they were.
    let ended = tokio::time::timeout(2 * LIMIT, tasks[0].end(&last)).await;
    ended.context("DestroyTask gave no answer")??;
    for some in tasks[1..].chunks(AT_A_TIME) {
        try_join_all(some.iter().map(|task| ends_as_it_should(task, &last))).await?;
    }
    case.nothing_left()?;
    last.shut_down().await
}

async fn ends_as_it_should(task: &Task, plugin: &Plugin) -> Result<()> {
    tell_to_end(task)?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 11);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, b"up\ndown\n");
    task.destroy(plugin).await
}

/// Execs at any point of their lives: some run, with children, and some are being started.
async fn execs_whose_plugin_died_are_ended_with_all_that_they_started(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = case.run(&plugin, &case.shell("trap 'exit 3' TERM; echo up; sleep 600 & wait")).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    task.processes_become(2).await?;
    let own = task.alloc.cgroup.pids();
    let mut running = Vec::new();
    for tty in [false, true] {
        let orphan = if orphans_are_known(case, tty) { "(sleep 600 &);" } else { "" };
        let script = format!("trap '' TERM HUP; setsid sleep 600 & {orphan} echo running; exec cat");
        let mut exec = Exec::open(&plugin, task.id(), &["/bin/sh", "-c", &script], tty).await?;
        exec.stdout_to_contain("running", LIMIT).await?;
        running.push(exec);
    }
    for _ in 0..6 {
        running.push(Exec::open(&plugin, task.id(), &["/bin/cat"], false).await?);
    }
    plugin.kill().await?;
    drop(running);
    let mut next = case.plugin().await?;
    task.recover(&next).await?;
    until(LIMIT, "the end of the execs", || task.alloc.cgroup.pids() == own).await?;
    ensure_eq!(task.exec(&next, "echo again").await?, (0, "again\n".to_owned()));
    until(LIMIT, "the end of their pipes and notes", || traces_of_execs(case).is_empty()).await?;
    task.stop(&next, LIMIT).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 3);
    task.destroy(&next).await?;
    next.shut_down().await
}

fn traces_of_execs(case: &CaseContext) -> Vec<String> {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let bundles = entries(&case.state_dir().join("nomad")).map(|bundle| bundle.path());
    let directories = bundles.flat_map(|bundle| [bundle.join("io"), bundle]);
    let names = directories.flat_map(|directory| {
        entries(&directory).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    names.filter(|name| name.starts_with("exec-")).collect()
}
