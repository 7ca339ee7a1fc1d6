//! containerd's death ends no task.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::context::agent::{AgentContext, eventually, jobs};

use super::support::stopped_in;
use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] =
    named_cases![a_task_goes_on_without_containerd, a_job_without_containerd_waits_for_it];

const TICKS: &str = "trap 'exit 42' USR1; trap 'exit 0' TERM; touch /alloc/data/ready
i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done";

fn a_task_goes_on_without_containerd(context: &mut AgentContext) -> Result<()> {
    let first = context.shell("ends-without", TICKS)?;
    let second = context.shell_with("stopped-without", TICKS, &[("kill_timeout", "30s")])?;
    context.made(&first, "ready")?;
    context.made(&second, "ready")?;
    let pid = context.pid(&first)?;

    context.environment.containerd().kill()?;
    let health = context.agent.driver_becomes(false)?;
    let reason = &health.health_description;
    ensure!(reason.contains("containerd"), "the node says {reason:?}");

    ensure!(context.pid(&first)? == pid, "the task has another process");
    let before = context.log(&first, "main", false)?.len();
    eventually("growing log", || Ok(context.log(&first, "main", false)?.len() > before))?;
    let output = context.exec(&first, b"ping\n", &["cat"])?;
    ensure!(
        output.code == Some(0) && output.stdout == b"ping\n",
        "exec: {:?} {}",
        output.code,
        output.stderr()
    );
    context.agent.tell(&["alloc", "signal", "-s", "SIGUSR1", &first, "main"])?;
    let ended = context.dead(&first, "main")?.ended()?;
    ensure!(ended.exit_code == 42, "it ended as {ended:?}");
    context.agent.tell(&["job", "stop", "-detach", "stopped-without"])?;
    let took = stopped_in(context, &second)?;
    ensure!(took < Duration::from_secs(5), "the stop took {took:?}");

    context.environment.containerd().start()?;
    context.agent.driver_becomes(true)?;
    Ok(())
}

/// A job waits while no node has a healthy driver, and runs once one has.
fn a_job_without_containerd_waits_for_it(context: &mut AgentContext) -> Result<()> {
    context.environment.containerd().stop()?;
    context.agent.driver_becomes(false)?;
    let image = context.busybox();
    context.submit("waits", jobs::SHELL, &[("image", &image), ("script", "exit 0")])?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(context.agent.allocations_of("waits")?.is_empty(), "it was placed on an unhealthy driver");
    context.environment.containerd().start()?;
    context.agent.driver_becomes(true)?;
    let id = context.allocations("waits", 1)?.remove(0);
    let ended = context.dead(&id, "main")?.ended()?;
    ensure!(ended.exit_code == 0, "it ended as {ended:?}");
    Ok(())
}
