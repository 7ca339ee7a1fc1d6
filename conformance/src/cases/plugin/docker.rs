//! The driver under the name `docker`, in the place of Nomad's own docker driver: its name, its defaults, the tasks that
//! dockerd still runs, and both names on one node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::containerd::DOCKERS_NAMESPACE;
use harness::fixture::process::output;
use harness::leaks::inspect::listed;
use harness::task::LIMIT;
use nomad_proto::driver::FingerprintResponse;
use nomad_proto::driver::fingerprint_response::HealthState;
use nomad_proto::structs::attribute::Value;
use serde_json::json;

use crate::cases::support::{cases, ensure_eq, is_recoverable, orphans, refused, until};

cases!["docker":
    a_plugin_file_of_that_name_answers_as_docker,
    it_needs_no_option_and_has_dockers_defaults,
    both_names_on_one_node_do_not_meet,
    a_handle_of_nomads_own_docker_driver_is_refused_by_name,
    a_task_that_dockerd_runs_is_not_started_beside_it,
];

/// Longer than several rounds of a collection of orphans and images.
const ROUNDS: Duration = Duration::from_secs(8);

fn attribute(fingerprint: &FingerprintResponse, name: &str) -> Option<Value> {
    fingerprint.attributes.get(name)?.value.clone()
}

async fn a_plugin_file_of_that_name_answers_as_docker(case: &CaseContext) -> Result<()> {
    let mut options = case.docker_options();
    options["pids_limit"] = json!(77);
    options["allow_privileged"] = json!(true);
    let mut plugin = case.plugin_as(&case.launch_docker()?, &options).await?;
    let info = plugin.info().await?;
    ensure_eq!(info.name, "docker");
    let numbers: Vec<u32> = info.plugin_version.split('.').filter_map(|part| part.parse().ok()).collect();
    ensure!(numbers >= vec![0, 1, 0], "Nomad takes its own docker driver, 0.1.0: {}", info.plugin_version);
    let found = plugin.fingerprints().await?.message().await?.context("no fingerprint")?;
    ensure!(found.health() == HealthState::Healthy, "{}", found.health_description);
    let text = |text: &str| Some(Value::StringVal(text.to_owned()));
    for (name, wanted) in [
        ("driver.docker", Some(Value::BoolVal(true))),
        ("driver.docker.os_type", text("linux")),
        ("driver.docker.pids.limit", Some(Value::IntVal(77))),
        ("driver.docker.privileged.enabled", Some(Value::BoolVal(true))),
        // What isn't so isn't there: a constraint may ask whether it is.
        ("driver.docker.volumes.enabled", None),
        ("driver.containerd-driver", None),
    ] {
        ensure!(attribute(&found, name) == wanted, "{name} is {:?}", attribute(&found, name));
    }
    for (name, word) in
        [("version", "28."), ("bridge_ip", "10.201."), ("runtimes", "runc"), ("containerd_version", ".")]
    {
        let value = attribute(&found, &format!("driver.docker.{name}"));
        let has = matches!(&value, Some(Value::StringVal(text)) if text.contains(word));
        ensure!(has, "driver.docker.{name} is {value:?}");
    }
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn it_needs_no_option_and_has_dockers_defaults(case: &CaseContext) -> Result<()> {
    let mut options = case.docker_options();
    let programs = case.programs();
    if programs.shim_runtime() == "io.containerd.runc.v2" && programs.oci_runtime().is_none() {
        let options = options.as_object_mut().context("no options")?;
        options.remove("containerd_runtime");
        options.remove("oci_runtime");
    }
    let mut plugin = case.plugin_as(&case.launch_docker()?, &options).await?;
    for (option, value, operators) in [
        ("privileged", json!(true), "allow_privileged"),
        ("cap_add", json!(["net_raw"]), "allow_caps"),
        ("volumes", json!(["/srv:/srv"]), "volumes.enabled"),
    ] {
        let mut job = case.shell("true");
        job[option] = value;
        let task = case.prepare(&plugin, &job).await?;
        refused(plugin.start_task(task.config.clone()).await, &[option, operators])?;
    }
    let mut job =
        case.shell("grep CapEff /proc/1/status; grep -c . /proc/net/dev; readlink /proc/self/ns/ipc");
    job["ipc_mode"] = json!("host");
    let task = case.run(&plugin, &job).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    let ipc = std::fs::read_link("/proc/self/ns/ipc")?.display().to_string();
    // Docker's set without NET_RAW.
    for wanted in ["00000000a80405fb", &ipc] {
        task.alloc.stdout.to_contain(wanted, LIMIT).await?;
    }
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn both_names_on_one_node_do_not_meet(case: &CaseContext) -> Result<()> {
    // Each would remove what no agent has recovered, and images that it doesn't use, in a moment.
    let collecting = |mut options: serde_json::Value| {
        let orphans = orphans::options(case, &json!({}));
        options["gc"] = orphans["gc"].clone();
        options["gc"]["image_delay"] = json!("1s");
        options
    };
    let own_options = collecting(case.options());
    let dockers_options = collecting(case.docker_options());
    let mut own = case.plugin_as(&case.launch(), &own_options).await?;
    let mut docker = case.plugin_as(&case.launch_docker()?, &dockers_options).await?;
    let job = case.shell("trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done");
    let of_own = case.run(&own, &job).await?;
    let of_docker = case.run(&docker, &job).await?;
    for (task, plugin) in [(&of_own, &own), (&of_docker, &docker)] {
        task.alloc.stdout.to_contain("up\n", LIMIT).await?;
        ensure_eq!(task.exec(plugin, "echo here").await?, (0, "here\n".to_owned()));
    }
    let containerd = case.environment().containerd();
    let records = |namespace: &str| -> Result<usize> {
        let listed = output(containerd.ctr_command(namespace).args(["containers", "list", "--quiet"]))?;
        Ok(listed.split_whitespace().count())
    };
    ensure_eq!(
        (listed(containerd, &["containers", "list", "--quiet"])?.len(), records(DOCKERS_NAMESPACE)?),
        (1, 1)
    );
    // One of them dies, and its agent is slow to come back.
    docker.kill().await?;
    case.still_works(&own).await?;
    tokio::time::sleep(ROUNDS).await;
    ensure!(!of_docker.alloc.cgroup.pids().is_empty(), "the other one's task is gone");
    let mut docker = case.plugin_as(&case.launch_docker()?, &dockers_options).await?;
    of_docker.recover(&docker).await?;
    containerd.kill()?;
    own.kill().await?;
    containerd.start()?;
    case.still_works(&docker).await?;
    tokio::time::sleep(ROUNDS).await;
    let mut own = case.plugin_as(&case.launch(), &own_options).await?;
    of_own.recover(&own).await?;
    for (task, plugin) in [(of_own, &own), (of_docker, &docker)] {
        ensure_eq!(task.exec(plugin, "cat /app/unread && echo x > /x; exit 6").await?.0, 6);
        task.stop(plugin, LIMIT).await?;
        ensure_eq!(task.wait(plugin).await?.exit_code, 7);
        task.destroy(plugin).await?;
    }
    // Neither knows the other one's state directory.
    own.shut_down().await?;
    docker.shut_down().await
}

/// Returns a driver state as Nomad's own docker driver encodes it.
fn dockers_state(container_id: &str) -> Result<Vec<u8>> {
    let state = json!({"ReattachConfig": null, "ContainerID": container_id, "DriverNetwork": null});
    Ok(rmp_serde::to_vec_named(&state)?)
}

async fn a_handle_of_nomads_own_docker_driver_is_refused_by_name(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let mut task = case.run(&plugin, &case.shell("exit 3")).await?;
    task.wait(&plugin).await?;
    let mut handle = task.kept_handle()?;
    task.destroy(&plugin).await?;
    handle.driver_state = dockers_state("3f5c8a6be1d24f7f9c0d")?;
    refused(plugin.recover_task(handle).await, &["Nomad's own docker driver", "3f5c8a6be1d2"])?;
    // The agent destroys what it can't recover, and starts it anew.
    let gone = plugin.destroy_task(task.id(), true).await;
    ensure!(gone.is_ok_and(|()| true) || case.nothing_left().is_ok(), "something is left");
    task.start(&plugin).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 3);
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn a_task_that_dockerd_runs_is_not_started_beside_it(case: &CaseContext) -> Result<()> {
    // As dockerd has it: by containerd and its shim in the namespace moby, with the task's directory at /local.
    let containerd = case.environment().containerd();
    let moby = |arguments: &[&str]| output(containerd.ctr_command("moby").args(arguments));
    let mut plugin = case.docker().await?;
    let mut task = case.prepare(&plugin, &case.shell("exit 3")).await?;
    let other = case.run(&plugin, &case.shell("exit 3")).await?;
    ensure_eq!(other.wait(&plugin).await?.exit_code, 3);
    other.destroy(&plugin).await?;
    plugin.shut_down().await?;
    let (image, id) = (case.image("busybox:latest"), &"9d1c0ffee0ddba11".repeat(4));
    moby(&["images", "pull", "--plain-http", &image])?;
    let local = task.alloc.task_path("local");
    let mount = format!("type=bind,src={},dst=/local,options=rbind:rw", local.display());
    // Whatever environment the program has.
    moby(&["run", "--detach", "--mount", &mount, &image, id, "/bin/sh", "-c", "exec env -i sleep 600"])?;
    // No more than what was there before this plugin can be dockerd's.
    let mut plugin = case.docker().await?;
    let container = format!("{}-{}", task.config.name, task.alloc.id);
    for _ in 0..2 {
        let refusal = refused(
            plugin.start_task(task.config.clone()).await,
            &[task.id(), &container, "docker rm", &id[..12]],
        )?;
        ensure!(is_recoverable(&refusal)?, "Nomad would not try it again");
    }
    case.still_works(&plugin).await?;
    let mut own = case.plugin().await?;
    let same = case.run(&own, &case.shell("exit 3")).await?;
    same.wait(&own).await?;
    same.destroy(&own).await?;
    own.shut_down().await?;
    moby(&["tasks", "kill", "--signal", "SIGKILL", id])?;
    // Without dockerd nobody asks the shim for the end, and it stays.
    let has_ended = || moby(&["tasks", "list"]).is_ok_and(|tasks| tasks.contains("STOPPED"));
    until(LIMIT, "its end", has_ended).await?;
    task.start(&plugin).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 3);
    task.destroy(&plugin).await?;
    moby(&["tasks", "delete", id])?;
    moby(&["containers", "delete", id])?;
    plugin.shut_down().await
}
