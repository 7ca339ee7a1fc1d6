//! Jobs as they are written for Nomad's own docker driver, by the driver under its name, which is on the node under both.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use harness::agent::{Allocation, DOCKER, SOON};
use harness::context::agent::{AgentContext, eventually};
use harness::fixture::Form;
use harness::processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::{SCRIPT, kill_plugin, nomads_example, still_works};
use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    the_short_example_of_nomad_runs_unedited,
    the_long_example_of_nomad_runs_unedited,
    tasks_before_beside_and_after_the_main_one,
    a_job_for_each_node,
    a_batch_job_for_each_node,
    a_templates_change_sends_a_signal,
    what_restarts_under_one_name_leaves_the_others_tasks_alone,
];

const LIFECYCLE: &str = include_str!("../../../hack/jobs/docker/lifecycle.nomad.hcl");
const SYSTEM: &str = include_str!("../../../hack/jobs/docker/system.nomad.hcl");
const SIGNALLED: &str = include_str!("../../../hack/jobs/docker/signalled.nomad.hcl");

/// Pushes the image that Nomad's examples name, which the node pulls from the test environment's registry.
fn push_redis(context: &AgentContext) -> Result<()> {
    let environment = &context.environment;
    environment.catalog().redis().push(environment.registry(), "library/redis", "7", Form::OciIndex)
}

/// Runs the job that `nomad job init` writes, and asks its server.
fn runs_example(context: &mut AgentContext, arguments: &[&str]) -> Result<()> {
    push_redis(context)?;
    let job = nomads_example(context, arguments)?;
    let id = context.start("example", &job, &[])?;
    context.running(&id, "redis")?;
    let address = context.agent.allocation(&id)?.port("db")?.address();
    eventually("answer of the server", || Ok(ping(&address).is_ok_and(|answer| answer == "+PONG\r\n")))
        .with_context(|| format!("at {address}: {:?}", ping(&address)))
}

fn ping(address: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn the_short_example_of_nomad_runs_unedited(context: &mut AgentContext) -> Result<()> {
    runs_example(context, &["-short"])
}

fn the_long_example_of_nomad_runs_unedited(context: &mut AgentContext) -> Result<()> {
    runs_example(context, &[])
}

fn tasks_before_beside_and_after_the_main_one(context: &mut AgentContext) -> Result<()> {
    push_redis(context)?;
    let id = context.start("lifecycle", LIFECYCLE, &[])?;
    context.done(&id, "main")?;
    context.done(&id, "clean")?;
    let order = fs::read_to_string(context.data(&id, "order"))?;
    // The two before the main one start at the same time.
    let first = order.strip_suffix("main\nannounce\nend\nclean\n").unwrap_or_default();
    ensure!(["init\nshipper\n", "shipper\ninit\n"].contains(&first), "the order is {order:?}");
    Ok(())
}

fn start_on_each_node(context: &mut AgentContext, kind: &str) -> Result<String> {
    push_redis(context)?;
    context.start(kind, SYSTEM, &[("type", kind)])
}

fn a_job_for_each_node(context: &mut AgentContext) -> Result<()> {
    let id = start_on_each_node(context, "system")?;
    context.running(&id, "main")?;
    context.logged(&id, "main", &fs::read_to_string("/etc/hostname")?)
}

fn a_batch_job_for_each_node(context: &mut AgentContext) -> Result<()> {
    let id = start_on_each_node(context, "sysbatch")?;
    context.done(&id, "main")?;
    context.logged(&id, "main", &fs::read_to_string("/etc/hostname")?)
}

fn a_templates_change_sends_a_signal(context: &mut AgentContext) -> Result<()> {
    push_redis(context)?;
    let variable = |color: &str| {
        let color = format!("color={color}");
        context.agent.tell(&["var", "put", "-force", "nomad/jobs/signalled", &color]).map(drop)
    };
    variable("green")?;
    let id = context.start("signalled", SIGNALLED, &[])?;
    context.running(&id, "main")?;
    context.logged(&id, "main", "green\n")?;
    context.agent.tell(&["var", "put", "-force", "nomad/jobs/signalled", "color=blue"])?;
    context.logged(&id, "main", "green\nblue\n")?;
    context.agent.tell(&["var", "purge", "nomad/jobs/signalled"]).map(drop)
}

fn what_restarts_under_one_name_leaves_the_others_tasks_alone(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let variables = [("image", &*image), ("script", SCRIPT)];
    let shell = harness::agent::SHELL;
    let for_docker = shell.replace("\"containerd-driver\"", "\"docker\"");
    let mut tasks = Vec::new();
    for (name, job) in [("under-own-name", shell), ("under-dockers-name", &for_docker)] {
        let id = context.start(name, job, &variables)?;
        context.made(&id, "ready")?;
        context.running(&id, "main")?;
        let pid = context.pid(&id)?;
        tasks.push((id, pid));
    }
    let run = |context: &AgentContext| -> Result<()> {
        for (id, pid) in &tasks {
            ensure!(processes::alive(*pid), "a task has ended");
            context
                .agent
                .eventually("exec", || Ok(context.agent.exec(id, b"", &["true"])?.code == Some(0)))?;
        }
        Ok(())
    };
    let kill_docker = |context: &AgentContext| -> Result<()> {
        let plugin = context.agent.plugin_of(DOCKER)?;
        kill(Pid::from_raw(plugin), Signal::SIGKILL)?;
        eventually("end of the plugin", || Ok(!processes::alive(plugin)))
    };
    kill_docker(context)?;
    eventually("new plugin", || Ok(context.agent.plugin_of(DOCKER).is_ok()))?;
    run(context)?;
    kill_plugin(context)?;
    eventually("new plugin", || Ok(context.agent.plugin().is_ok()))?;
    run(context)?;
    context.environment.containerd().kill()?;
    run(context)?;
    context.environment.containerd().start()?;
    context.agent.driver_becomes(true)?;
    context.agent.driver_of_becomes(DOCKER, true)?;
    context.agent.stop()?;
    context.agent.launch()?;
    run(context)?;
    context.agent.kill();
    kill_docker(context)?;
    kill_plugin(context)?;
    context.agent.launch()?;
    run(context)?;
    for (id, pid) in &tasks {
        still_works(context, id, *pid)?;
        let restored = |allocation: &Allocation| allocation.task("main").count("Failed Restoring Task") == 0;
        context.agent.allocation_until(id, "task without a failed recovery", SOON, restored)?;
    }
    Ok(())
}
