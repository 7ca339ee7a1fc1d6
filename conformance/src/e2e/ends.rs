//! A task's end, as Nomad reports it.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::agent::Ended;
use harness::context::agent::{Stage, eventually, jobs};

use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    an_exit_code_is_shown,
    success_is_complete,
    the_signal_that_killed_a_task_is_shown,
    a_task_over_its_memory_is_killed,
    a_child_killed_for_want_of_memory_is_an_event,
    a_failing_task_is_restarted_as_often_as_its_policy_says,
];

fn an_exit_code_is_shown(stage: &mut Stage) -> Result<()> {
    let id = stage.shell("exit-code", "exit 7")?;
    let task = stage.dead(&id, "main")?;
    ensure!(task.ended()? == Ended { exit_code: 7, signal: 0 }, "it ended as {:?}", task.ended()?);
    ensure!(task.failed);
    let status = stage.agent.tell(&["alloc", "status", &id])?.stdout();
    ensure!(status.contains("Exit Code: 7"), "`nomad alloc status` does not show 7:\n{status}");
    Ok(())
}

fn success_is_complete(stage: &mut Stage) -> Result<()> {
    let id = stage.shell("success", "true")?;
    let task = stage.dead(&id, "main")?;
    ensure!(task.ended()? == Ended { exit_code: 0, signal: 0 }, "it ended as {:?}", task.ended()?);
    ensure!(stage.agent.allocation(&id)?.client_status == "complete");
    Ok(())
}

fn the_signal_that_killed_a_task_is_shown(stage: &mut Stage) -> Result<()> {
    let id = stage.shell("killed", "sleep 1000")?;
    stage.running(&id, "main")?;
    stage.agent.tell(&["alloc", "signal", "-s", "SIGKILL", &id, "main"])?;
    let task = stage.dead(&id, "main")?;
    ensure!(task.ended()? == Ended { exit_code: 137, signal: 9 }, "it ended as {:?}", task.ended()?);
    let status = stage.agent.tell(&["alloc", "status", &id])?.stdout();
    ensure!(status.contains("Signal: 9"), "`nomad alloc status` does not show the signal:\n{status}");
    Ok(())
}

fn a_task_over_its_memory_is_killed(stage: &mut Stage) -> Result<()> {
    let id = stage.shell("out-of-memory", "exec dd if=/dev/zero of=/dev/null bs=300M count=1")?;
    let task = stage.dead(&id, "main")?;
    ensure!(task.ended()?.signal == 9, "it ended as {:?}", task.ended()?);
    Ok(())
}

fn a_child_killed_for_want_of_memory_is_an_event(stage: &mut Stage) -> Result<()> {
    let script = "dd if=/dev/zero of=/dev/null bs=300M count=1; touch /alloc/data/ready; \
                  until [ -e /alloc/data/go ]; do sleep 0.1; done";
    let id = stage.shell("child-out-of-memory", script)?;
    stage.made(&id, "ready")?;
    eventually("event of the OOM kill", || {
        Ok(stage.agent.tell(&["alloc", "status", &id])?.stdout().contains("OOM killed"))
    })?;
    stage.running(&id, "main")?;
    std::fs::write(stage.data(&id, "go"), b"")?;
    let task = stage.dead(&id, "main")?;
    ensure!(!task.failed && task.ended()?.exit_code == 0, "it ended as {:?}", task.ended()?);
    Ok(())
}

fn a_failing_task_is_restarted_as_often_as_its_policy_says(stage: &mut Stage) -> Result<()> {
    let image = stage.busybox();
    let id = stage.start("restarted", jobs::RESTART, &[("image", &image)])?;
    let task = stage.dead(&id, "main")?;
    ensure!(task.restarts == 2 && task.failed, "{} restarts", task.restarts);
    ensure!(task.count("Started") == 3 && task.count("Terminated") == 3);
    let log = stage.log(&id, "main", false)?;
    ensure!(log == b"try\ntry\ntry\n", "the log is {:?}", String::from_utf8_lossy(&log));
    let times: Vec<_> = task.events().iter().filter(|event| event.kind == "Terminated").collect();
    ensure!(times[2].at().duration_since(times[0].at())? < Duration::from_secs(10));
    Ok(())
}
