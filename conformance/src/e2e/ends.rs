//! A task's end, as Nomad reports it.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::agent::Ended;
use harness::context::agent::{AgentContext, eventually, jobs};

use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    an_exit_code_is_shown,
    success_is_complete,
    the_signal_that_killed_a_task_is_shown,
    a_task_over_its_memory_is_killed,
    a_child_killed_for_want_of_memory_is_an_event,
    a_failing_task_is_restarted_as_often_as_its_policy_says,
];

fn an_exit_code_is_shown(context: &mut AgentContext) -> Result<()> {
    let id = context.shell("exit-code", "exit 7")?;
    let task = context.dead(&id, "main")?;
    ensure!(task.ended()? == Ended { exit_code: 7, signal: 0 }, "it ended as {:?}", task.ended()?);
    ensure!(task.failed);
    let status = context.agent.tell(&["alloc", "status", &id])?.stdout();
    ensure!(status.contains("Exit Code: 7"), "`nomad alloc status` does not show 7:\n{status}");
    Ok(())
}

fn success_is_complete(context: &mut AgentContext) -> Result<()> {
    let id = context.shell("success", "true")?;
    let task = context.dead(&id, "main")?;
    ensure!(task.ended()? == Ended { exit_code: 0, signal: 0 }, "it ended as {:?}", task.ended()?);
    ensure!(context.agent.allocation(&id)?.client_status == "complete");
    Ok(())
}

fn the_signal_that_killed_a_task_is_shown(context: &mut AgentContext) -> Result<()> {
    let id = context.shell("killed", "sleep 1000")?;
    context.running(&id, "main")?;
    context.agent.tell(&["alloc", "signal", "-s", "SIGKILL", &id, "main"])?;
    let task = context.dead(&id, "main")?;
    ensure!(task.ended()? == Ended { exit_code: 137, signal: 9 }, "it ended as {:?}", task.ended()?);
    let status = context.agent.tell(&["alloc", "status", &id])?.stdout();
    ensure!(status.contains("Signal: 9"), "`nomad alloc status` does not show the signal:\n{status}");
    Ok(())
}

fn a_task_over_its_memory_is_killed(context: &mut AgentContext) -> Result<()> {
    let id = context.shell("out-of-memory", "exec dd if=/dev/zero of=/dev/null bs=300M count=1")?;
    let task = context.dead(&id, "main")?;
    ensure!(task.ended()?.signal == 9, "it ended as {:?}", task.ended()?);
    Ok(())
}

fn a_child_killed_for_want_of_memory_is_an_event(context: &mut AgentContext) -> Result<()> {
    let script = "dd if=/dev/zero of=/dev/null bs=300M count=1; touch /alloc/data/ready; \
                  until [ -e /alloc/data/go ]; do sleep 0.1; done";
    let id = context.shell("child-out-of-memory", script)?;
    context.made(&id, "ready")?;
    eventually("event of the OOM kill", || {
        Ok(context.agent.tell(&["alloc", "status", &id])?.stdout().contains("OOM killed"))
    })?;
    context.running(&id, "main")?;
    std::fs::write(context.data(&id, "go"), b"")?;
    let task = context.dead(&id, "main")?;
    ensure!(!task.failed && task.ended()?.exit_code == 0, "it ended as {:?}", task.ended()?);
    Ok(())
}

fn a_failing_task_is_restarted_as_often_as_its_policy_says(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let id = context.start("restarted", jobs::RESTART, &[("image", &image)])?;
    let task = context.dead(&id, "main")?;
    ensure!(task.restarts == 2 && task.failed, "{} restarts", task.restarts);
    ensure!(task.count("Started") == 3 && task.count("Terminated") == 3);
    let log = context.log(&id, "main", false)?;
    ensure!(log == b"try\ntry\ntry\n", "the log is {:?}", String::from_utf8_lossy(&log));
    let times: Vec<_> = task.events().iter().filter(|event| event.kind == "Terminated").collect();
    ensure!(times[2].at().duration_since(times[0].at())? < Duration::from_secs(10));
    Ok(())
}
