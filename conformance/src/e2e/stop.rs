//! Stopping takes as long as the task takes, and no longer than it may.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::agent::Allocation;
use harness::context::agent::{SOON, Stage};

use super::support::stopped_in;
use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    a_task_that_ends_at_once_stops_at_once,
    the_kill_signal_of_the_job_is_sent,
    a_task_that_refuses_is_killed_at_its_timeout,
    a_signal_of_the_operator_reaches_the_task,
    a_restart_by_the_operator_is_a_new_process,
];

fn stop(stage: &Stage, name: &str) -> Result<()> {
    stage.agent.tell(&["job", "stop", "-detach", name]).map(drop)
}

fn a_task_that_ends_at_once_stops_at_once(stage: &mut Stage) -> Result<()> {
    let script = "trap 'exit 0' TERM; touch /alloc/data/ready; sleep 1000 & wait";
    let id = stage.shell_with("at-once", script, &[("kill_timeout", "30s")])?;
    stage.made(&id, "ready")?;
    stop(stage, "at-once")?;
    let took = stopped_in(stage, &id)?;
    ensure!(
        took < Duration::from_secs(10),
        "the stop took {took:?}, as if it had waited for the kill_timeout"
    );
    let ended = stage.dead(&id, "main")?.ended()?;
    ensure!((ended.exit_code, ended.signal) == (0, 0), "it ended as {ended:?}");
    Ok(())
}

fn the_kill_signal_of_the_job_is_sent(stage: &mut Stage) -> Result<()> {
    let script = "trap 'exit 5' INT; trap 'exit 6' TERM; touch /alloc/data/ready; sleep 1000 & wait";
    let id = stage.shell_with("kill-signal", script, &[("kill_signal", "SIGINT")])?;
    stage.made(&id, "ready")?;
    stop(stage, "kill-signal")?;
    let ended = stage.dead(&id, "main")?.ended()?;
    ensure!(ended.exit_code == 5, "it ended as {ended:?}");
    Ok(())
}

fn a_task_that_refuses_is_killed_at_its_timeout(stage: &mut Stage) -> Result<()> {
    let script = "trap '' TERM; touch /alloc/data/ready; while :; do sleep 1; done";
    let id = stage.shell_with("refuses", script, &[("kill_timeout", "2s")])?;
    stage.made(&id, "ready")?;
    stop(stage, "refuses")?;
    let took = stopped_in(stage, &id)?;
    ensure!(took > Duration::from_secs(2) && took < Duration::from_secs(4), "the stop took {took:?}");
    let ended = stage.dead(&id, "main")?.ended()?;
    ensure!(ended.signal == 9, "it ended as {ended:?}");
    Ok(())
}

fn a_signal_of_the_operator_reaches_the_task(stage: &mut Stage) -> Result<()> {
    let script = "trap 'exit 42' USR1; touch /alloc/data/ready; sleep 1000 & wait";
    let id = stage.shell("signalled", script)?;
    stage.made(&id, "ready")?;
    stage.agent.tell(&["alloc", "signal", "-s", "SIGUSR1", &id, "main"])?;
    let ended = stage.dead(&id, "main")?.ended()?;
    ensure!(ended.exit_code == 42, "it ended as {ended:?}");
    Ok(())
}

fn a_restart_by_the_operator_is_a_new_process(stage: &mut Stage) -> Result<()> {
    let script = "trap 'exit 0' TERM; echo begun; touch /alloc/data/ready; sleep 1000 & wait";
    let id = stage.shell("restarted-by-hand", script)?;
    stage.made(&id, "ready")?;
    let pid = stage.pid(&id)?;
    stage.agent.tell(&["alloc", "restart", &id, "main"])?;
    stage.logged(&id, "main", "begun\nbegun\n")?;
    ensure!(stage.pid(&id)? != pid, "it is the same process");
    let again = |allocation: &Allocation| {
        let task = allocation.task("main");
        task.restarts == 1 && task.state == "running"
    };
    stage.agent.allocation_until(&id, "restarted task", SOON, again).map(drop)
}
