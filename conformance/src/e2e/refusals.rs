//! A job that can't run is reported in its task's events, with the cause by name, and the agent goes on.

use anyhow::{Result, ensure};
use harness::agent::Allocation;
use harness::context::agent::{AgentContext, SOON, jobs};

use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    an_image_that_does_not_exist_is_named,
    an_image_with_an_unreadable_layer_is_named,
    a_command_that_does_not_exist_is_named,
    an_option_that_does_not_exist_is_named,
    a_user_that_the_image_does_not_know_is_named,
    the_hosts_network_beside_the_groups_is_refused_with_both_named,
    a_groups_hostname_is_refused_by_the_agent,
];

const USER: &str = include_str!("../../../examples/task-options/user.nomad.hcl");
const HOST_NETWORK: &str = include_str!("../../../examples/task-options/host_network.nomad.hcl");

/// Kinds of events for a refusal, by the driver or by the agent on the driver's schema.
const FAILURES: [&str; 3] = ["Driver Failure", "Failed Validation", "Setup Failure"];

/// Runs a job to its failure, and asserts that one event of a failure has all of the words.
fn refused(context: &mut AgentContext, job: &str, hcl: &str, image: &str, words: &[&str]) -> Result<()> {
    let id = context.start(job, hcl, &[("image", image)])?;
    let task = context.dead(&id, "main")?;
    ensure!(
        task.failed && task.count("Started") == 0,
        "it started: {}",
        context.agent.allocation(&id)?.summary()
    );
    let failures = task.events().iter().filter(|event| FAILURES.contains(&event.kind.as_str()));
    let reported =
        failures.map(|event| &event.display_message).any(|text| words.iter().all(|word| text.contains(word)));
    ensure!(reported, "no failure says {words:?}: {}", context.agent.allocation(&id)?.summary());
    let status = context.agent.tell(&["alloc", "status", "-verbose", &id])?.stdout();
    ensure!(words.iter().all(|word| status.contains(word)), "`nomad alloc status` does not tell:\n{status}");
    ensure!(context.agent.is_alive(), "the agent has died");
    ensure!(context.agent.driver()?.healthy, "the driver is unhealthy");
    Ok(())
}

fn an_image_that_does_not_exist_is_named(context: &mut AgentContext) -> Result<()> {
    let image = context.environment.image("library/nothing:latest");
    refused(context, "missing-image", jobs::MISSING_IMAGE, &image, &[&image, "not in the registry"])
}

fn an_image_with_an_unreadable_layer_is_named(context: &mut AgentContext) -> Result<()> {
    let image = context.environment.image("broken:unreadable");
    refused(context, "unreadable-layer", jobs::MISSING_IMAGE, &image, &[&image])
}

fn a_command_that_does_not_exist_is_named(context: &mut AgentContext) -> Result<()> {
    let hcl = jobs::SHELL.replace("\"sh\"", "\"no-such-command\"");
    let hcl = hcl
        .replace("args    = [\"-c\", var.script]", "")
        .replace("variable \"script\" {\n  type = string\n}", "");
    let image = context.busybox();
    refused(context, "missing-command", &hcl, &image, &["no-such-command"])
}

fn an_option_that_does_not_exist_is_named(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    refused(context, "unknown-option", jobs::UNKNOWN_OPTION, &image, &["foo"])
}

fn a_user_that_the_image_does_not_know_is_named(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    refused(context, "unknown-user", &USER.replace("1000:2000", "ghost"), &image, &["ghost", "/etc/passwd"])
}

fn the_hosts_network_beside_the_groups_is_refused_with_both_named(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let hcl = with_bridge(HOST_NETWORK, "");
    refused(context, "two-networks", &hcl, &image, &["host_network", "bridge"])
}

/// Nomad gives a group's hostname to docker's driver alone, and fails the allocation before its tasks.
fn a_groups_hostname_is_refused_by_the_agent(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let hcl = with_bridge(jobs::MISSING_IMAGE, "hostname = \"shop\"\n");
    let id = context.start("group-hostname", &hcl, &[("image", &image)])?;
    context.agent.allocation_until(&id, "failed allocation", SOON, Allocation::is_terminal)?;
    let status = context.agent.tell(&["alloc", "status", &id])?.stdout();
    ensure!(status.contains("hostname is not"), "`nomad alloc status` does not tell:\n{status}");
    Ok(())
}

/// Returns the job with a network in bridge mode for its group.
fn with_bridge(hcl: &str, more: &str) -> String {
    let task = "    task \"main\" {";
    hcl.replace(task, &format!("    network {{\n      mode = \"bridge\"\n      {more}    }}\n{task}"))
}
