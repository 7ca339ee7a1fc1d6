//! Networks under the driver's name `docker`: what docker's driver does where this one does something else by its own
//! name.

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::registry::free_port;
use nomad_proto::driver as pb;
use serde_json::{Value, json};

use crate::cases::support::group_network::GroupNetwork;
use crate::cases::support::web_server::{
    PORT, SERVE, beside, fetch_hostname, network_override, offer, port, server, serving, with,
};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused};

cases!["networks of docker":
    a_task_without_a_network_is_on_the_bridge,
    ports_of_a_tasks_own_network_are_published_and_mapped,
    the_words_of_docker_name_a_network,
    a_tasks_mode_counts_before_its_groups_network,
    options_without_an_effect_are_taken,
];

async fn a_task_without_a_network_is_on_the_bridge(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    for mode in [json!(null), json!("default"), json!("bridge")] {
        let options = [("network_mode", mode), ("ports", json!(["http"]))];
        let mut task = case.prepare(&plugin, &with(case, SERVE, &options)).await?;
        let number = free_port()?;
        offer(&mut task, vec![port("http", number, PORT, "127.0.0.1")]);
        let task = serving(task, &plugin).await?;
        let name = format!("web-{}", &task.alloc.id[..8]);
        ensure_eq!(fetch_hostname("127.0.0.1", number)?, name);
        let network = network_override(&plugin, &task).await?;
        let bridge = case.environment().networks().docker();
        ensure!(bridge.has(&network.addr), "{} is not in {}", network.addr, bridge.subnet);
        ensure!(!network.auto_advertise, "the bridge's address is advertised to other nodes");
        task.end(&plugin).await?;
        case.nothing_left()?;
    }
    plugin.shut_down().await
}

async fn ports_of_a_tasks_own_network_are_published_and_mapped(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let script = format!("env | grep ^NOMAD_PORT_; {SERVE}");
    let mut task =
        case.prepare(&plugin, &with(case, &script, &[("port_map", json!([{"http": PORT}]))])).await?;
    let number = free_port()?;
    let network = pb::NetworkResource {
        ip: "127.0.0.1".to_owned(),
        dynamic_ports: vec![pb::NetworkPort { label: "http".to_owned(), value: number.into() }],
        ..Default::default()
    };
    let resources = task.config.resources.as_mut().context("no resources")?;
    resources.allocated_resources.get_or_insert_default().networks = vec![network];
    let task = serving(task, &plugin).await?;
    ensure_eq!(task.alloc.stdout.text(), format!("NOMAD_PORT_http={PORT}\nup\n"));
    ensure_eq!(fetch_hostname("127.0.0.1", number)?, format!("web-{}", &task.alloc.id[..8]));
    task.end(&plugin).await?;
    // The group's ports have a number of their own in the task.
    let mut task =
        case.prepare(&plugin, &with(case, "true", &[("port_map", json!([{"http": PORT}]))])).await?;
    offer(&mut task, vec![port("http", number, 0, "127.0.0.1")]);
    refused(plugin.start_task(task.config.clone()).await, &["port_map", "`to`"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}

/// Returns the options of a plugin with a CNI network `backend`.
fn with_backend(case: &CaseContext) -> Result<Value> {
    let directory = case.directory().join("cni");
    std::fs::create_dir_all(&directory)?;
    let bridge = case.environment().networks().described();
    let described = json!({
        "cniVersion": "1.0.0",
        "name": "backend",
        "plugins": [{
            "type": "bridge", "bridge": bridge.name, "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": case.docker_state_dir().join("leases").display().to_string(),
                "ranges": [[{"subnet": bridge.subnet}]],
            },
        }],
    });
    std::fs::write(directory.join("backend.conflist"), serde_json::to_vec(&described)?)?;
    let mut options = case.docker_options();
    options["cni_config_dir"] = json!(directory.display().to_string());
    Ok(options)
}

async fn the_words_of_docker_name_a_network(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin_as(&case.launch_docker()?, &with_backend(case)?).await?;
    let task = server(case, &plugin, &[("network_mode", json!("backend"))]).await?;
    let network = network_override(&plugin, &task).await?;
    ensure!(case.environment().networks().described().has(&network.addr), "{network:?}");
    let name = format!("web-{}", &task.alloc.id[..8]);
    let script = "wget -q -O - http://127.0.0.1:8080/hostname";
    for container in ["container:web".to_owned(), format!("container:web-{}", task.alloc.id)] {
        let options = [("network_mode", json!(container))];
        let mut second = beside(case, &plugin, &task, &with(case, script, &options)).await?;
        second.start(&plugin).await?;
        ensure_eq!(second.stdout(&plugin).await?, format!("{name}\n"));
        second.destroy(&plugin).await?;
    }
    let file = case.directory().join("cni/frontend.conflist").display().to_string();
    let other = "container:web-5f1b2c3d-0000-4000-8000-00000000000a";
    for (mode, recoverable, words) in [
        ("frontend", false, &["frontend", file.as_str(), "backend"][..]),
        (other, false, &[other, "one group"]),
        ("container:db", true, &["container:db", "is not running"]),
        ("container:beside", false, &["container:beside", "this task itself"]),
    ] {
        let config = with(case, "true", &[("network_mode", json!(mode))]);
        let second = beside(case, &plugin, &task, &config).await?;
        let status = refused(plugin.start_task(second.config.clone()).await, words)?;
        ensure_eq!(is_recoverable(&status).unwrap_or(false), recoverable);
    }
    task.end(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_tasks_mode_counts_before_its_groups_network(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let group = GroupNetwork::make(&case.directory())?;
    let bridge = case.environment().networks().docker();
    let mut task = case.prepare(&plugin, &with(case, SERVE, &[("network_mode", json!("bridge"))])).await?;
    task.config.network_isolation_spec = Some(group.spec());
    let task = serving(task, &plugin).await?;
    let network = network_override(&plugin, &task).await?;
    ensure!(bridge.has(&network.addr), "{} is not in {}", network.addr, bridge.subnet);
    task.end(&plugin).await?;
    let of_host = std::fs::read_link("/proc/self/ns/net")?.display().to_string();
    for (mode, is_hosts) in [("host", true), ("none", false)] {
        let script = "readlink /proc/self/ns/net; ls /sys/class/net";
        let mut task = case.prepare(&plugin, &with(case, script, &[("network_mode", json!(mode))])).await?;
        task.config.network_isolation_spec = Some(group.spec());
        task.start(&plugin).await?;
        let shown = task.stdout(&plugin).await?;
        ensure_eq!(shown.starts_with(&of_host), is_hosts);
        ensure!(is_hosts || shown.ends_with("]\nlo\n"), "it is connected: {shown}");
        task.destroy(&plugin).await?;
    }
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn options_without_an_effect_are_taken(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let group = GroupNetwork::make(&case.directory())?;
    for (mode, spec) in [
        (json!(null), Some(group.spec())),
        (json!("host"), None),
        (json!("none"), None),
        // The bridge has no IPv6 addresses.
        (json!("bridge"), None),
    ] {
        let options =
            [("network_mode", mode), ("ports", json!(["http"])), ("advertise_ipv6_address", json!(true))];
        let mut task = case.prepare(&plugin, &with(case, "echo runs", &options)).await?;
        offer(&mut task, vec![port("http", free_port()?, PORT, "127.0.0.1")]);
        task.config.network_isolation_spec = spec;
        task.start(&plugin).await?;
        ensure_eq!(task.stdout(&plugin).await?, "runs\n");
        task.destroy(&plugin).await?;
    }
    let mut task = case.prepare(&plugin, &with(case, "true", &[("ipv4_address", json!("10.0.0.5"))])).await?;
    task.config.network_isolation_spec = Some(group.spec());
    refused(plugin.start_task(task.config.clone()).await, &["ipv4_address"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}
