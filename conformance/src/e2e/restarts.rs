//! The task's process outlives the plugin and the agent, and its end is told by whoever comes after.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use harness::agent::Allocation;
use harness::context::agent::{SOON, Stage, eventually};
use harness::processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::{SCRIPT, goes_on, kill_plugin};
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
];

fn started(stage: &mut Stage, name: &str) -> Result<(String, i32)> {
    let id = stage.shell(name, SCRIPT)?;
    stage.made(&id, "ready")?;
    // The agent may hear of the start later than the script can tell of it.
    stage.running(&id, "main")?;
    stage.logged(&id, "main", "before\n")?;
    let pid = stage.pid(&id)?;
    Ok((id, pid))
}

fn plugin_killed(stage: &mut Stage) -> Result<()> {
    let (id, pid) = started(stage, "plugin-killed")?;
    kill_plugin(stage)?;
    eventually("new plugin", || Ok(stage.agent.plugin().is_ok()))?;
    goes_on(stage, &id, pid)
}

fn agent_restarted(stage: &mut Stage) -> Result<()> {
    let (id, pid) = started(stage, "agent-restarted")?;
    stage.agent.stop()?;
    ensure!(processes::alive(pid), "the task ended with the agent");
    stage.agent.launch()?;
    goes_on(stage, &id, pid)
}

fn agent_killed(stage: &mut Stage) -> Result<()> {
    let (id, pid) = started(stage, "agent-killed")?;
    stage.agent.kill();
    ensure!(processes::alive(pid), "the task ended with the agent");
    stage.agent.launch()?;
    goes_on(stage, &id, pid)
}

fn agent_and_plugin_killed(stage: &mut Stage) -> Result<()> {
    let (id, pid) = started(stage, "both-killed")?;
    stage.agent.kill();
    kill_plugin(stage)?;
    ensure!(processes::alive(pid), "the task ended with the plugin");
    stage.agent.launch()?;
    goes_on(stage, &id, pid)
}

fn a_task_that_ends_while_the_agent_is_down(stage: &mut Stage) -> Result<()> {
    let script = "touch /alloc/data/ready; until [ -e /alloc/data/go ]; do sleep 0.1; done; exit 9";
    let id = stage.shell("ended-meanwhile", script)?;
    stage.made(&id, "ready")?;
    let pid = stage.pid(&id)?;
    stage.agent.stop()?;
    fs::write(stage.data(&id, "go"), b"")?;
    eventually("end of the task", || Ok(!processes::alive(pid)))?;
    stage.agent.launch()?;
    let task = stage.dead(&id, "main")?;
    ensure!(task.ended()?.exit_code == 9, "it ended as {:?}", task.ended()?);
    ensure!(task.restarts == 0, "it was restarted");
    Ok(())
}

fn a_task_that_ends_while_all_is_down(stage: &mut Stage) -> Result<()> {
    let script = "echo before; touch /alloc/data/ready; until [ -e /alloc/data/go ]; do sleep 0.1; done; \
                  echo after; exit 9";
    let id = stage.shell("ended-while-all-is-down", script)?;
    stage.made(&id, "ready")?;
    // What the agent has not heard of it can't recover.
    stage.running(&id, "main")?;
    let pid = stage.pid(&id)?;
    stage.agent.kill();
    kill_plugin(stage)?;
    stage.world.containerd().kill()?;
    fs::write(stage.data(&id, "go"), b"")?;
    eventually("end of the task", || Ok(!processes::alive(pid)))?;
    stage.world.containerd().start()?;
    stage.agent.launch()?;
    let task = stage.dead(&id, "main")?;
    ensure!(task.ended()?.exit_code == 9, "it ended as {:?}", task.ended()?);
    ensure!(task.restarts == 0 && task.count("Started") == 1, "it was started again");
    stage.logged(&id, "main", "before\nafter\n")
}

fn a_task_whose_shim_dies_while_the_agent_is_down_is_started_anew(stage: &mut Stage) -> Result<()> {
    let (id, pid) = started(stage, "shim-died")?;
    stage.agent.stop()?;
    let shim = processes::shim_of(pid).context("no shim")?;
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    stage.agent.launch()?;
    // Nomad starts what can't be recovered anew, whatever the job's policy.
    let again = |allocation: &Allocation| allocation.task("main").count("Started") == 2;
    let allocation = stage.agent.allocation_until(&id, "second start", SOON, again)?;
    ensure!(allocation.task("main").count("Failed Restoring Task") == 1, "{}", allocation.story());
    ensure!(!processes::alive(pid), "the first one runs on");
    eventually("word of the second one", || {
        Ok(stage.log(&id, "main", false)?.ends_with(b"before\nbefore\n"))
    })?;
    stage.agent.tell(&["alloc", "signal", "-s", "SIGUSR1", &id, "main"])?;
    let task = stage.dead(&id, "main")?;
    ensure!(task.ended()?.exit_code == 42, "it ended as {:?}", task.ended()?);
    Ok(())
}

fn a_recovery_is_an_event(stage: &mut Stage) -> Result<()> {
    let (id, pid) = started(stage, "recovery-is-told")?;
    let told = |stage: &Stage| -> Result<usize> {
        Ok(stage.agent.tell(&["alloc", "status", &id])?.stdout().matches("Recovered after").count())
    };
    kill_plugin(stage)?;
    eventually("event of the recovery", || Ok(told(stage)? == 1))?;
    stage.agent.stop()?;
    stage.agent.launch()?;
    eventually("event of the second recovery", || Ok(told(stage)? == 2))?;
    goes_on(stage, &id, pid)
}

fn a_task_is_stopped_after_the_plugin_was_killed(stage: &mut Stage) -> Result<()> {
    let script = "trap 'exit 0' TERM; touch /alloc/data/ready; sleep 1000 & wait";
    let id = stage.shell_with("stopped-after", script, &[("kill_timeout", "30s")])?;
    stage.made(&id, "ready")?;
    kill_plugin(stage)?;
    stage.agent.tell(&["job", "stop", "-detach", "stopped-after"])?;
    let task = stage.dead(&id, "main")?;
    ensure!(!task.failed, "{}", stage.agent.allocation(&id)?.story());
    Ok(())
}
