//! Options of gVisor's sandboxes: the operator's file, what a task can't have there, its mounts and networks.

use std::fs;

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use crate::cases::support::group_network::GroupNetwork;
use crate::cases::support::gvisor::{command_line, sandbox};
use crate::cases::support::host_mounts::{HostMounts, host_directory};
use crate::cases::support::web_server::{beside, with};
use crate::cases::support::{cases, ensure_eq, refused};

cases!["gvisor":
    the_operators_file_counts_and_the_drivers_root,
    an_operators_file_that_can_not_be_used_is_named,
    what_a_sandbox_can_not_have_is_refused_by_name,
    what_is_mounted_read_only_is_not_written_wherever_below,
    tasks_of_a_group_share_its_network_and_a_restart_has_it_again,
];

/// Returns the plugin's options with an operator's file of this content.
fn with_file(case: &CaseContext, content: &str) -> Result<Value> {
    let file = case.directory().join("runsc.toml");
    fs::create_dir_all(case.directory())?;
    fs::write(&file, content)?;
    let mut options = case.options();
    options["runtime_options"] = json!([{"runtime": case.programs().shim_runtime(), "config_path": file}]);
    Ok(options)
}

async fn the_operators_file_counts_and_the_drivers_root(case: &CaseContext) -> Result<()> {
    let options =
        with_file(case, "root = \"/nowhere\"\n[runsc_config]\noverlay2 = \"none\"\nnetwork = \"none\"\n")?;
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let command = command_line(sandbox(&task)?.as_raw());
    let root = format!("--root={}", case.state_dir().join("runsc/nomad").display());
    for flag in ["--overlay2=none", "--network=none", &root] {
        ensure!(command.contains(flag), "{flag} is not in {command}");
    }
    // A later change of the operator's file holds for later tasks only.
    fs::write(case.directory().join("runsc.toml"), "this is no TOML")?;
    ensure_eq!(task.exec(&plugin, "echo works").await?, (0, "works\n".to_owned()));
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn an_operators_file_that_can_not_be_used_is_named(case: &CaseContext) -> Result<()> {
    for (content, word) in [
        ("binary_name =", "TOML"),
        ("[runsc_config]\nignore-cgroups = \"true\"\n", "ignore-cgroups"),
        ("[runsc_config]\nnetwork = \"sandbox\"\n", "runsc_config.network"),
        ("binary_name = \"/no/such/runsc\"\n", "/no/such/runsc"),
    ] {
        let mut options = with_file(case, content)?;
        options["oci_runtime"] = Value::Null;
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        let task = case.prepare(&plugin, &case.shell("true")).await?;
        refused(plugin.start_task(task.config.clone()).await, &[word])?;
        case.nothing_left()?;
        plugin.shut_down().await?;
    }
    let mut options = with_file(case, "")?;
    options["runtime_options"][0]["config_path"] = json!("/no/such/file.toml");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.prepare(&plugin, &case.shell("true")).await?;
    let words = ["runtime_options.config_path", "/no/such/file.toml"];
    refused(plugin.start_task(task.config.clone()).await, &words)?;
    plugin.shut_down().await
}

async fn what_a_sandbox_can_not_have_is_refused_by_name(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    for (option, value) in [
        ("pid_mode", json!("host")),
        ("ipc_mode", json!("host")),
        ("uts_mode", json!("host")),
        ("cgroupns", json!("host")),
        ("privileged", json!(true)),
        ("seccomp_profile", json!("/etc/profile.json")),
        ("seccomp_architectures", json!("image")),
        ("apparmor_profile", json!("docker-default")),
        ("sysctl", json!({"net.core.somaxconn": "16384"})),
        ("devices", json!(["/dev/fuse"])),
        ("pids_limit", json!(20)),
        (
            "mount",
            json!([{"type": "bind", "source": "local", "target": "/l", "bind_options": {"propagation": "rshared"}}]),
        ),
    ] {
        let task = case.prepare(plugin, &with(case, "true", &[(option, value)])).await?;
        refused(plugin.start_task(task.config.clone()).await, &[option, "gVisor", "leave it out"])?;
        case.nothing_left()?;
    }
    let mut task = case.prepare(plugin, &case.shell("true")).await?;
    task.config.devices = vec![pb::Device {
        host_path: "/dev/fuse".to_owned(),
        task_path: "/dev/fuse".to_owned(),
        ..pb::Device::default()
    }];
    refused(
        plugin.start_task(task.config.clone()).await,
        &["/dev/fuse", "device block", "gVisor", "leave it out"],
    )?;
    case.still_works(plugin).await
}

async fn what_is_mounted_read_only_is_not_written_wherever_below(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let host = host_directory(case)?;
    let _mounts = HostMounts::nested(&host)?;
    let script = "cat '/t/sub/a b/deepest'; for d in /t /t/sub '/t/sub/a b'; do touch \"$d/x\" && echo written; done; exit 0";
    let volumes = json!([format!("{}:/t:ro", host.display())]);
    let task = case.run(plugin, &with(case, script, &[("volumes", volumes)])).await?;
    ensure_eq!(task.stdout(plugin).await?, "deepest\n");
    task.destroy(plugin).await
}

async fn tasks_of_a_group_share_its_network_and_a_restart_has_it_again(case: &CaseContext) -> Result<()> {
    let network = GroupNetwork::make(&case.directory())?;
    let mut plugin = case.plugin().await?;
    let mut server = case.prepare(&plugin, &case.shell("httpd -f -p 127.0.0.1:8080 -h /etc")).await?;
    server.config.network_isolation_spec = Some(network.spec());
    server.start(&plugin).await?;
    let fetch = "until wget -q -O - http://127.0.0.1:8080/hostname; do sleep 0.1; done";
    for attempt in 0..2 {
        let mut client = beside(case, &plugin, &server, &case.shell(fetch)).await?;
        client.config.network_isolation_spec = Some(network.spec());
        client.start(&plugin).await?;
        let output = client.stdout(&plugin).await?;
        ensure!(output.contains("web-"), "attempt {attempt}: {output}");
        client.destroy(&plugin).await?;
    }
    server.end(&plugin).await?;
    plugin.shut_down().await
}
