//! Sandboxes of gVisor whose plugin or bundle is gone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use harness::context::CaseContext;
use harness::host::Exec;
use harness::leaks::inspect::children;
use harness::leaks::sweep;
use harness::task::LIMIT;
use serde_json::json;

use crate::cases::support::call_recorder::CallRecorder;
use crate::cases::support::gvisor::{SOON, known_to_runsc, sleeping};
use crate::cases::support::processes::shim_pid;
use crate::cases::support::{cases, ensure_eq, until};

cases!["gvisor":
    a_task_that_ends_while_nobody_is_there_keeps_its_code,
    a_plugin_that_is_replaced_under_it_starts_others_and_the_next_goes_on,
    a_runsc_that_hangs_when_the_plugin_dies_leaves_nothing,
    a_task_that_has_lost_its_bundle_keeps_its_runsc_and_its_code,
    a_command_that_runs_when_the_plugin_dies_is_killed_by_the_next,
];

async fn a_task_that_ends_while_nobody_is_there_keeps_its_code(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = case.run(&plugin, &case.shell("sleep 2; exit 9")).await?;
    plugin.kill().await?;
    until(LIMIT, "the task's end", || task.alloc.cgroup.pids().is_empty()).await?;
    // Time for the events that the shim sends.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(shim_pid(case).is_ok(), "its shim is gone");
    let mut next = case.plugin().await?;
    task.recover(&next).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 9);
    task.destroy(&next).await?;
    next.shut_down().await
}

async fn a_plugin_that_is_replaced_under_it_starts_others_and_the_next_goes_on(
    case: &CaseContext,
) -> Result<()> {
    let mut launch = case.launch();
    let (here, new) = (case.directory().join("plugin"), case.directory().join("new"));
    fs::copy(&launch.binary, &here)?;
    fs::copy(&launch.binary, &new)?;
    launch.binary = here.clone();
    let mut plugin = case.plugin_as(&launch, &case.options()).await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    fs::rename(&new, &here)?;
    let second = case.run(&plugin, &case.shell("sleep 600")).await?;
    for task in [&task, &second] {
        ensure_eq!(task.exec(&plugin, "echo works").await?, (0, "works\n".to_owned()));
    }
    second.end(&plugin).await?;
    plugin.kill().await?;
    // The agent's plugins are elsewhere from now on.
    fs::remove_file(&here)?;
    let mut next = case.plugin().await?;
    task.recover(&next).await?;
    ensure_eq!(task.exec(&next, "echo works").await?, (0, "works\n".to_owned()));
    task.end(&next).await?;
    case.nothing_left()?;
    next.shut_down().await
}

async fn a_runsc_that_hangs_when_the_plugin_dies_leaves_nothing(case: &CaseContext) -> Result<()> {
    let (runsc, reached) = (case.directory().join("hangs"), case.directory().join("reached"));
    fs::create_dir_all(case.directory())?;
    let real = case.programs().runtime().display().to_string();
    let state = format!("{}/*.state", case.state_dir().join("runsc/nomad").display());
    // At the hang, runsc has made the sandbox, and has not written down that it has.
    let hang = format!("{real} \"$@\"; rm {state}; touch {0}; exec sleep 600", reached.display());
    let is_first = format!("[ \"$word\" = create ] && [ ! -e {} ]", reached.display());
    let script =
        format!("#!/bin/sh\nfor word in \"$@\"; do {is_first} && {{ {hang}; }}; done\nexec {real} \"$@\"\n");
    fs::write(&runsc, script)?;
    fs::set_permissions(&runsc, fs::Permissions::from_mode(0o755))?;
    let mut options = case.options();
    options["oci_runtime"] = json!(runsc);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.prepare(&plugin, &case.shell("sleep 600")).await?;
    tokio::select! {
        started = plugin.start_task(task.config.clone()) => bail!("it was not held up: {started:?}"),
        there = until(LIMIT, "the create", || reached.exists()) => there?,
    }
    let mut next = case.next_plugin_with(&mut plugin, &options).await?;
    case.nothing_left_within(LIMIT * 2)?;
    ensure_eq!(known_to_runsc(case), Vec::<PathBuf>::new());
    case.still_works(&next).await?;
    next.shut_down().await
}

async fn a_task_that_has_lost_its_bundle_keeps_its_runsc_and_its_code(case: &CaseContext) -> Result<()> {
    let runsc = CallRecorder::runtime(case, "another-runsc")?;
    let mut options = case.options();
    options["oci_runtime"] = json!(runsc.path());
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    for (script, code) in
        [("trap 'exit 3' TERM; echo up; sleep 600 & wait", 3), ("echo up; sleep 2; exit 9", 9)]
    {
        let task = case.run(&plugin, &case.shell(script)).await?;
        task.alloc.stdout.to_contain("up\n", LIMIT).await?;
        let bundle = case.bundle()?;
        sweep::unmount_under(&bundle);
        fs::remove_dir_all(&bundle)?;
        ensure!(runsc.has_run("start"), "another one was run");
        let begun = Instant::now();
        if code == 3 {
            task.stop(&plugin, LIMIT).await?;
            ensure!(runsc.has_run("kill"), "another one was run");
        }
        ensure_eq!(task.wait(&plugin).await?.exit_code, code);
        ensure!(begun.elapsed() < Duration::from_secs(5), "its end took {:?}", begun.elapsed());
        task.destroy(&plugin).await?;
        case.nothing_left()?;
        ensure_eq!(known_to_runsc(case), Vec::<PathBuf>::new());
    }
    plugin.shut_down().await
}

async fn a_command_that_runs_when_the_plugin_dies_is_killed_by_the_next(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let pipes = case.bundle()?.join("io");
    let has_pipes = || children(&pipes).iter().any(|pipe| pipe.display().to_string().contains("/exec-"));
    for terminal in [false, true] {
        let script = "sleep 777 & echo up; exec sleep 778";
        let mut exec = Exec::open(&plugin, task.id(), &["sh", "-c", script], terminal).await?;
        exec.stdout_to_contain("up", LIMIT).await?;
        ensure!(sleeping(&plugin, &task, "77").await? == 2, "it does not run");
        plugin = case.next_plugin(&mut plugin).await?;
        task.recover(&plugin).await?;
        let begun = Instant::now();
        while sleeping(&plugin, &task, "77").await? > 0 {
            ensure!(begun.elapsed() < SOON, "it goes on");
        }
        until(LIMIT, "the end of its pipes", || !has_pipes()).await?;
    }
    task.end(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}
