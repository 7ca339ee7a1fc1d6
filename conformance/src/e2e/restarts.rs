//! The task's process outlives the plugin and the agent, and its end is reported by whoever comes after.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use harness::agent::{Allocation, SHELL};
use harness::context::agent::{AgentContext, SOON, eventually};
use harness::processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::{SCRIPT, kill_plugin, still_works};
use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    plugin_killed,
    agent_restarted,
    agent_killed,
    agent_and_plugin_killed,
    a_task_that_ends_while_the_agent_is_down,
    a_task_that_ends_while_all_is_down,
    a_task_whose_shim_dies_while_the_agent_is_down_is_started_anew,
    a_recovery_is_an_event,
    a_task_is_stopped_after_the_plugin_was_killed,
    all_tasks_of_a_shim_that_dies_are_started_again,
];

/// Number of tasks that have one shim.
const MANY: usize = 20;

fn started(context: &mut AgentContext, name: &str) -> Result<(String, i32)> {
    let id = context.shell(name, SCRIPT)?;
    context.made(&id, "ready")?;
    // The agent may hear of the start later than the script can tell of it.
    context.running(&id, "main")?;
    context.logged(&id, "main", "before\n")?;
    let pid = context.pid(&id)?;
    Ok((id, pid))
}

fn plugin_killed(context: &mut AgentContext) -> Result<()> {
    let (id, pid) = started(context, "plugin-killed")?;
    kill_plugin(context)?;
    eventually("new plugin", || Ok(context.agent.plugin().is_ok()))?;
    still_works(context, &id, pid)
}

fn agent_restarted(context: &mut AgentContext) -> Result<()> {
    let (id, pid) = started(context, "agent-restarted")?;
    context.agent.stop()?;
    ensure!(processes::alive(pid), "the task ended with the agent");
    context.agent.launch()?;
    still_works(context, &id, pid)
}

fn agent_killed(context: &mut AgentContext) -> Result<()> {
    let (id, pid) = started(context, "agent-killed")?;
    context.agent.kill();
    ensure!(processes::alive(pid), "the task ended with the agent");
    context.agent.launch()?;
    still_works(context, &id, pid)
}

fn agent_and_plugin_killed(context: &mut AgentContext) -> Result<()> {
    let (id, pid) = started(context, "both-killed")?;
    context.agent.kill();
    kill_plugin(context)?;
    ensure!(processes::alive(pid), "the task ended with the plugin");
    context.agent.launch()?;
    still_works(context, &id, pid)
}

fn a_task_that_ends_while_the_agent_is_down(context: &mut AgentContext) -> Result<()> {
    let script = "touch /alloc/data/ready; until [ -e /alloc/data/go ]; do sleep 0.1; done; exit 9";
    let id = context.shell("ended-meanwhile", script)?;
    context.made(&id, "ready")?;
    let pid = context.pid(&id)?;
    context.agent.stop()?;
    fs::write(context.data(&id, "go"), b"")?;
    eventually("end of the task", || Ok(!processes::alive(pid)))?;
    context.agent.launch()?;
    let task = context.dead(&id, "main")?;
    ensure!(task.ended()?.exit_code == 9, "it ended as {:?}", task.ended()?);
    ensure!(task.restarts == 0, "it was restarted");
    Ok(())
}

fn a_task_that_ends_while_all_is_down(context: &mut AgentContext) -> Result<()> {
    let script = "echo before; touch /alloc/data/ready; until [ -e /alloc/data/go ]; do sleep 0.1; done; \
                  echo after; exit 9";
    let id = context.shell("ended-while-all-is-down", script)?;
    context.made(&id, "ready")?;
    // What the agent has not heard of it can't recover.
    context.running(&id, "main")?;
    let pid = context.pid(&id)?;
    context.agent.kill();
    kill_plugin(context)?;
    context.environment.containerd().kill()?;
    fs::write(context.data(&id, "go"), b"")?;
    eventually("end of the task", || Ok(!processes::alive(pid)))?;
    context.environment.containerd().start()?;
    context.agent.launch()?;
    let task = context.dead(&id, "main")?;
    ensure!(task.ended()?.exit_code == 9, "it ended as {:?}", task.ended()?);
    ensure!(task.restarts == 0 && task.count("Started") == 1, "it was started again");
    context.logged(&id, "main", "before\nafter\n")
}

fn a_task_whose_shim_dies_while_the_agent_is_down_is_started_anew(context: &mut AgentContext) -> Result<()> {
    let (id, pid) = started(context, "shim-died")?;
    context.agent.stop()?;
    let shim = processes::shim_of(pid).context("no shim")?;
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    context.agent.launch()?;
    // Nomad starts what can't be recovered anew, whatever the job's policy.
    let again = |allocation: &Allocation| allocation.task("main").count("Started") == 2;
    let allocation = context.agent.allocation_until(&id, "second start", SOON, again)?;
    ensure!(allocation.task("main").count("Failed Restoring Task") == 1, "{}", allocation.summary());
    ensure!(!processes::alive(pid), "the first one runs on");
    eventually("word of the second one", || {
        Ok(context.log(&id, "main", false)?.ends_with(b"before\nbefore\n"))
    })?;
    context.agent.tell(&["alloc", "signal", "-s", "SIGUSR1", &id, "main"])?;
    let task = context.dead(&id, "main")?;
    ensure!(task.ended()?.exit_code == 42, "it ended as {:?}", task.ended()?);
    Ok(())
}

fn a_recovery_is_an_event(context: &mut AgentContext) -> Result<()> {
    let (id, pid) = started(context, "recovery-is-told")?;
    let recoveries = |context: &AgentContext| -> Result<usize> {
        Ok(context.agent.tell(&["alloc", "status", &id])?.stdout().matches("Recovered after").count())
    };
    kill_plugin(context)?;
    eventually("event of the recovery", || Ok(recoveries(context)? == 1))?;
    context.agent.stop()?;
    context.agent.launch()?;
    eventually("event of the second recovery", || Ok(recoveries(context)? == 2))?;
    still_works(context, &id, pid)
}

fn a_task_is_stopped_after_the_plugin_was_killed(context: &mut AgentContext) -> Result<()> {
    let script = "trap 'exit 0' TERM; touch /alloc/data/ready; sleep 1000 & wait";
    let id = context.shell_with("stopped-after", script, &[("kill_timeout", "30s")])?;
    context.made(&id, "ready")?;
    kill_plugin(context)?;
    context.agent.tell(&["job", "stop", "-detach", "stopped-after"])?;
    let task = context.dead(&id, "main")?;
    ensure!(!task.failed, "{}", context.agent.allocation(&id)?.summary());
    Ok(())
}

fn all_tasks_of_a_shim_that_dies_are_started_again(context: &mut AgentContext) -> Result<()> {
    context.agent.share_shims_by("node")?;
    let job =
        SHELL.replacen("attempts = 0", "attempts = 1\n      interval = \"5m\"\n      delay    = \"0s\"", 1);
    let (name, image, count) = ("shared-shim-died", context.busybox(), MANY.to_string());
    let variables = [("image", image.as_str()), ("script", "sleep 10000"), ("count", count.as_str())];
    context.submit(name, &job, &variables)?;
    let ids = context.allocations(name, MANY)?;
    let only_shim = |context: &AgentContext| -> Result<i32> {
        let shims: BTreeSet<_> =
            ids.iter().map(|id| Ok(processes::shim_of(context.pid(id)?))).collect::<Result<_>>()?;
        ensure!(shims.len() == 1, "they have the shims {shims:?}");
        shims.first().copied().flatten().context("no shim")
    };
    ids.iter().try_for_each(|id| context.running(id, "main"))?;
    let (shim, pids) =
        (only_shim(context)?, ids.iter().map(|id| context.pid(id)).collect::<Result<Vec<_>>>()?);
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    for id in &ids {
        let again = |allocation: &Allocation| allocation.task("main").count("Started") == 2;
        let task = context.agent.allocation_until(id, "second start", SOON, again)?.task("main");
        let told = &task.event("Terminated")?.display_message;
        ensure!(told.contains("shim died") && task.restarts == 1, "{} restarts, {told:?}", task.restarts);
    }
    let left: Vec<_> = pids.into_iter().filter(|pid| processes::alive(*pid)).collect();
    ensure!(left.is_empty(), "of the first ones run on: {left:?}");
    ensure!(only_shim(context)? != shim, "they have the dead shim");
    Ok(())
}
