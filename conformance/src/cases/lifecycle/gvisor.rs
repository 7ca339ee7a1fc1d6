//! Tasks in gVisor's sandboxes: their kernel, output, codes and ends.

use std::fs;

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::alloc::set_memory;
use harness::task::LIMIT;
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::cases::support::gvisor::{keeper, sandbox};
use crate::cases::support::output::prepare_unlogged;
use crate::cases::support::web_server::with;
use crate::cases::support::{cases, ensure_eq, until};

cases!["gvisor":
    a_task_runs_on_a_kernel_of_its_own,
    tasks_that_end_at_once_show_their_codes,
    output_that_goes_nowhere_can_be_written,
    a_killed_sandbox_is_reported_and_leaves_nothing,
    a_sandbox_that_runs_out_of_memory_is_reported,
    a_keeper_that_is_killed_leaves_a_task_that_ends_with_its_shim,
    a_task_of_another_runtime_runs_beside_it,
];

async fn a_task_runs_on_a_kernel_of_its_own(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("dmesg; echo kept > /alloc/kept; exit 4")).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 4);
    let output = String::from_utf8_lossy(&task.alloc.stdout.to_end(LIMIT).await?).into_owned();
    ensure!(output.contains("gVisor"), "the kernel says {output:?}");
    ensure_eq!(fs::read_to_string(task.alloc.directory.join("alloc/kept"))?, "kept\n");
    task.destroy(plugin).await
}

async fn tasks_that_end_at_once_show_their_codes(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    for code in [0, 1, 0, 77, 0, 128] {
        let task = case.run(plugin, &case.shell(&format!("exit {code}"))).await?;
        ensure_eq!(task.wait(plugin).await?.exit_code, code);
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn output_that_goes_nowhere_can_be_written(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let script = "head -c 1000000 /dev/zero && head -c 1000000 /dev/zero >&2 && exit 4";
    let mut task = prepare_unlogged(case, plugin, script).await?;
    task.start(plugin).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 4);
    task.destroy(plugin).await
}

async fn a_killed_sandbox_is_reported_and_leaves_nothing(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    for recovered in [false, true] {
        let task = case.run(&plugin, &case.shell("sleep 600")).await?;
        if recovered {
            plugin = case.next_plugin(&mut plugin).await?;
            task.recover(&plugin).await?;
        }
        kill(sandbox(&task)?, Signal::SIGKILL)?;
        let exit = task.wait(&plugin).await?;
        ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, false));
        until(LIMIT, "the end of its processes", || task.alloc.cgroup.pids().is_empty()).await?;
        task.destroy(&plugin).await?;
        case.nothing_left()?;
    }
    plugin.shut_down().await
}

async fn a_sandbox_that_runs_out_of_memory_is_reported(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    // A tmpfs has half of the sandbox's memory.
    let script = "for at in a b c d; do dd if=/dev/urandom of=/$at/file bs=1M count=40; done; exit 0";
    let all = json!(["/a", "/b", "/c", "/d"]);
    let mut task = case.prepare(plugin, &with(case, script, &[("tmpfs", all)])).await?;
    set_memory(&mut task.config, 100, 0);
    task.start(plugin).await?;
    let exit = task.wait(plugin).await?;
    let output = String::from_utf8_lossy(&task.alloc.stderr.to_end(LIMIT).await?).into_owned();
    ensure!(exit.exit_code == 137 && exit.oom_killed, "{exit:?}, and it said {output}");
    task.destroy(plugin).await
}

async fn a_keeper_that_is_killed_leaves_a_task_that_ends_with_its_shim(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    kill(keeper(case)?, Signal::SIGKILL)?;
    let waiting = task.wait_answer(plugin);
    // The shim has an event to send for the exec, and ends since nobody takes it.
    let _ = task.exec(plugin, "true").await;
    let answer = waiting.await?;
    ensure!(answer.err.contains("shim"), "WaitTask's err is {:?}", answer.err);
    until(LIMIT, "the end of its processes", || task.alloc.cgroup.pids().is_empty()).await?;
    task.destroy(plugin).await?;
    case.nothing_left()
}

async fn a_task_of_another_runtime_runs_beside_it(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["allow_runtimes"] = json!(["io.containerd.runc.v2"]);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let mut config = case.shell("dmesg 2>&1 | head -3; echo ends");
    config["runtime"] = json!("io.containerd.runc.v2");
    let task = case.run(&plugin, &config).await?;
    let output = task.stdout(&plugin).await?;
    ensure!(output.ends_with("ends\n") && !output.contains("gVisor"), "{output}");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}
