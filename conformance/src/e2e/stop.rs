//! Stopping takes as long as the task takes, and no longer than it may.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::agent::Allocation;
use harness::context::agent::{AgentContext, SOON};

use super::support::stopped_in;
use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    a_task_that_ends_at_once_stops_at_once,
    the_kill_signal_of_the_job_is_sent,
    a_task_that_refuses_is_killed_at_its_timeout,
    a_signal_of_the_operator_reaches_the_task,
    a_restart_by_the_operator_is_a_new_process,
];

fn stop(context: &AgentContext, name: &str) -> Result<()> {
    context.agent.tell(&["job", "stop", "-detach", name]).map(drop)
}

fn a_task_that_ends_at_once_stops_at_once(context: &mut AgentContext) -> Result<()> {
    let script = "trap 'exit 0' TERM; touch /alloc/data/ready; sleep 1000 & wait";
    let id = context.shell_with("at-once", script, &[("kill_timeout", "30s")])?;
    context.made(&id, "ready")?;
    stop(context, "at-once")?;
    let took = stopped_in(context, &id)?;
    ensure!(
        took < Duration::from_secs(10),
        "the stop took {took:?}, as if it had waited for the kill_timeout"
    );
    let ended = context.dead(&id, "main")?.ended()?;
    ensure!((ended.exit_code, ended.signal) == (0, 0), "it ended as {ended:?}");
    Ok(())
}

fn the_kill_signal_of_the_job_is_sent(context: &mut AgentContext) -> Result<()> {
    let script = "trap 'exit 5' INT; trap 'exit 6' TERM; touch /alloc/data/ready; sleep 1000 & wait";
    let id = context.shell_with("kill-signal", script, &[("kill_signal", "SIGINT")])?;
    context.made(&id, "ready")?;
    stop(context, "kill-signal")?;
    let ended = context.dead(&id, "main")?.ended()?;
    ensure!(ended.exit_code == 5, "it ended as {ended:?}");
    Ok(())
}

fn a_task_that_refuses_is_killed_at_its_timeout(context: &mut AgentContext) -> Result<()> {
    let script = "trap '' TERM; touch /alloc/data/ready; while :; do sleep 1; done";
    let id = context.shell_with("refuses", script, &[("kill_timeout", "2s")])?;
    context.made(&id, "ready")?;
    stop(context, "refuses")?;
    let took = stopped_in(context, &id)?;
    ensure!(took > Duration::from_secs(2) && took < Duration::from_secs(4), "the stop took {took:?}");
    let ended = context.dead(&id, "main")?.ended()?;
    ensure!(ended.signal == 9, "it ended as {ended:?}");
    Ok(())
}

fn a_signal_of_the_operator_reaches_the_task(context: &mut AgentContext) -> Result<()> {
    let script = "trap 'exit 42' USR1; touch /alloc/data/ready; sleep 1000 & wait";
    let id = context.shell("signalled", script)?;
    context.made(&id, "ready")?;
    context.agent.tell(&["alloc", "signal", "-s", "SIGUSR1", &id, "main"])?;
    let ended = context.dead(&id, "main")?.ended()?;
    ensure!(ended.exit_code == 42, "it ended as {ended:?}");
    Ok(())
}

fn a_restart_by_the_operator_is_a_new_process(context: &mut AgentContext) -> Result<()> {
    let script = "trap 'exit 0' TERM; echo begun; touch /alloc/data/ready; sleep 1000 & wait";
    let id = context.shell("restarted-by-hand", script)?;
    context.made(&id, "ready")?;
    let pid = context.pid(&id)?;
    context.agent.tell(&["alloc", "restart", &id, "main"])?;
    context.logged(&id, "main", "begun\nbegun\n")?;
    ensure!(context.pid(&id)? != pid, "it is the same process");
    let again = |allocation: &Allocation| {
        let task = allocation.task("main");
        task.restarts == 1 && task.state == "running"
    };
    context.agent.allocation_until(&id, "restarted task", SOON, again).map(drop)
}
