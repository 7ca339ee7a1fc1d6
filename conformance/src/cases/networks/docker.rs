//! Networks under the driver's name `docker`: what docker's driver does where this one does something else by its own
//! name.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::context::CaseContext;
use harness::fixture::registry::free_port;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use nomad_proto::driver as pb;
use serde_json::{Value, json};
use tokio::process::Command;
use tonic::Status;

use crate::cases::support::group_network::GroupNetwork;
use crate::cases::support::web_server::{
    PORT, SERVE, beside, fetch_hostname, network_override, offer, port, server, serving, with,
};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["networks of docker":
    a_task_without_a_network_is_on_the_bridge,
    ports_of_a_tasks_own_network_are_published_and_mapped,
    the_words_of_docker_name_a_network,
    a_tasks_mode_counts_before_its_groups_network,
    options_without_an_effect_are_taken,
    the_host_name_is_a_short_id_of_the_attempts_own,
    a_groups_network_is_made_once_and_removed,
    a_groups_network_that_nobody_knows_is_removed,
    the_tasks_of_a_group_have_its_hostname,
    the_parameters_of_a_groups_network_are_set_once,
];

/// Returns whether a host name is docker's: the first digits of a container's id.
fn is_short_id(name: &str) -> bool {
    name.len() == 12 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

async fn a_task_without_a_network_is_on_the_bridge(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    for mode in [json!(null), json!("default"), json!("bridge")] {
        let options = [("network_mode", mode), ("ports", json!(["http"]))];
        let mut task = case.prepare(&plugin, &with(case, SERVE, &options)).await?;
        let number = free_port()?;
        offer(&mut task, vec![port("http", number, PORT, "127.0.0.1")]);
        let task = serving(task, &plugin).await?;
        let name = fetch_hostname("127.0.0.1", number)?;
        ensure!(is_short_id(&name), "the host name is {name:?}");
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
    let name = fetch_hostname("127.0.0.1", number)?;
    ensure!(is_short_id(&name), "the host name is {name:?}");
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
    let name = fetch_hostname(&network.addr, PORT)?;
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
    let mut events = plugin.events().await?;
    for (mode, spec, is_idle) in [
        (json!(null), Some(group.spec()), true),
        (json!("host"), None, true),
        (json!("none"), None, true),
        // The bridge has no IPv6 addresses.
        (json!("bridge"), None, false),
    ] {
        let options = [
            ("network_mode", mode),
            ("ports", json!(["http"])),
            ("advertise_ipv6_address", json!(true)),
            ("mac_address", json!("02:42:ac:11:00:99")),
            ("userns_mode", json!("nonsense")),
            ("dns_servers", json!(["dns.example"])),
        ];
        let mut task = case.prepare(&plugin, &with(case, "echo runs", &options)).await?;
        offer(&mut task, vec![port("http", free_port()?, PORT, "127.0.0.1")]);
        task.config.network_isolation_spec = spec;
        task.start(&plugin).await?;
        ensure_eq!(task.stdout(&plugin).await?, "runs\n");
        task.destroy(&plugin).await?;
        let named = loop {
            let event = tokio::time::timeout(LIMIT, events.message()).await.context("no event came")??;
            let event = event.context("the events ended")?;
            if event.task_id == task.config.id
                && let Some(options) = event.annotations.get("options")
            {
                break options.clone();
            }
        };
        let always = "dns_servers, userns_mode";
        let idle = if is_idle { ", ports, mac_address, advertise_ipv6_address" } else { "" };
        ensure_eq!(named, format!("{always}{idle}"));
    }
    let mut task = case.prepare(&plugin, &with(case, "true", &[("ipv4_address", json!("10.0.0.5"))])).await?;
    task.config.network_isolation_spec = Some(group.spec());
    refused(plugin.start_task(task.config.clone()).await, &["ipv4_address"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn the_host_name_is_a_short_id_of_the_attempts_own(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let script = "hostname; cat /etc/hostname; echo $HOSTNAME; grep $HOSTNAME /etc/hosts";
    let mut names = Vec::new();
    let mut task =
        case.prepare_unread(&plugin, &with(case, &format!("({script}) > /local/said"), &[])).await?;
    for _ in 0..2 {
        task.start(&plugin).await?;
        ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
        let address = network_override(&plugin, &task).await?.addr;
        let said = std::fs::read_to_string(task.alloc.task_path("local/said"))?;
        let name = said.lines().next().unwrap_or_default().to_owned();
        ensure!(is_short_id(&name), "the host name is {name:?}");
        ensure_eq!(said, format!("{name}\n{name}\n{name}\n{address}\t{name}\n"));
        task.destroy(&plugin).await?;
        task.next_attempt()?;
        names.push(name);
    }
    ensure!(names[0] != names[1], "two attempts have one name, {names:?}");
    let of_host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    // The kernel has the host's name, the files and the variable have the task's own.
    let task = case.run(&plugin, &with(case, script, &[("uts_mode", json!("host"))])).await?;
    let said = task.stdout(&plugin).await?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(lines[0] == of_host.trim() && is_short_id(lines[1]) && lines[2] == lines[1], "{said}");
    task.destroy(&plugin).await?;
    // Without an address there is no entry.
    let options = [("network_mode", json!("none")), ("hostname", json!("some.where"))];
    let task = case.run(&plugin, &with(case, "hostname; grep -c where /etc/hosts || :", &options)).await?;
    ensure_eq!(task.stdout(&plugin).await?, "some.where\n0\n");
    task.destroy(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn create(
    plugin: &Plugin,
    alloc_id: &str,
    hostname: &str,
) -> Result<pb::CreateNetworkResponse, Status> {
    let request = pb::CreateNetworkRequest { alloc_id: alloc_id.to_owned(), hostname: hostname.to_owned() };
    plugin.driver().create_network(request).await.map(tonic::Response::into_inner)
}

async fn destroy(plugin: &Plugin, alloc_id: &str, spec: Option<pb::NetworkIsolationSpec>) -> Result<()> {
    let request = pb::DestroyNetworkRequest { alloc_id: alloc_id.to_owned(), isolation_spec: spec };
    plugin.driver().destroy_network(request).await?;
    Ok(())
}

async fn a_groups_network_is_made_once_and_removed(case: &CaseContext) -> Result<()> {
    const ALLOC: &str = "5f1b2c3d-0000-4000-8000-00000000000a";
    let mut other_name = case.plugin().await?;
    ensure!(!other_name.capabilities().await?.must_create_network, "containerd-driver makes networks");
    refused(create(&other_name, ALLOC, "").await, &["CreateNetwork"])?;
    other_name.shut_down().await?;
    let mut plugin = case.docker().await?;
    ensure!(plugin.capabilities().await?.must_create_network, "docker makes no networks");
    let made = create(&plugin, ALLOC, "web").await?;
    ensure!(made.created, "it was there already");
    let spec = made.isolation_spec.context("no specification")?;
    let labels = |spec: &pb::NetworkIsolationSpec| spec.labels.get("docker_sandbox_hostname").cloned();
    ensure_eq!(labels(&spec), Some("web".to_owned()));
    let inode =
        |path: &str| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("it is there"));
    let number = inode(&spec.path);
    // The agent asks again when it was restarted, and the plugin may be another one by then.
    plugin.kill().await?;
    let mut plugin = case.docker().await?;
    let again = create(&plugin, ALLOC, "web").await?;
    ensure!(!again.created, "it was made a second time");
    ensure_eq!(again.isolation_spec, Some(spec.clone()));
    ensure_eq!(inode(&spec.path), number);
    // After a reboot the file may be there without the namespace.
    nix::mount::umount2(Path::new(&spec.path), nix::mount::MntFlags::MNT_DETACH)?;
    let anew = create(&plugin, ALLOC, "").await?;
    ensure!(anew.created, "the namespace is gone");
    let anew = anew.isolation_spec.context("no specification")?;
    ensure_eq!((&anew.path, labels(&anew)), (&spec.path, None));
    destroy(&plugin, ALLOC, Some(spec.clone())).await?;
    // Once more, and without what the agent knows only if it was not restarted.
    destroy(&plugin, ALLOC, None).await?;
    ensure!(!Path::new(&spec.path).exists(), "{} is left", spec.path);
    for (alloc_id, hostname, word) in [
        ("../../etc", "", "../../etc"),
        ("", "", "allocation"),
        (ALLOC, "a b", "a b"),
        (ALLOC, &"x".repeat(65), "64"),
    ] {
        refused(create(&plugin, alloc_id, hostname).await, &[word])?;
    }
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_groups_network_that_nobody_knows_is_removed(case: &CaseContext) -> Result<()> {
    let mut options = case.docker_options();
    options["gc"] = json!({"dangling_containers": {"period": "200ms", "creation_grace": "2s"}});
    let mut plugin = case.plugin_as(&case.launch_docker()?, &options).await?;
    let mut paths = Vec::new();
    for letter in ["a", "b", "c", "d"] {
        let made = create(&plugin, &format!("5f1b2c3d-0000-4000-8000-00000000000{letter}"), "").await?;
        paths.push(made.isolation_spec.context("no specification")?.path);
    }
    let [unknown, used, claimed, waiting] = &paths[..] else { bail!("not four: {paths:?}") };
    let is_there = |path: &str| Path::new(path).exists();
    // One period later each is still there: the agent has asked for them since the launch.
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(paths.iter().all(|path| is_there(path)), "one was removed in its use");
    // All tasks of an allocation that has a directory may be waiting for a restart.
    let task = case.prepare_unread(&plugin, &case.shell("exit 0")).await?;
    let alloc_dirs = task.alloc.directory.parent().context("no parent")?.to_owned();
    let waits = alloc_dirs.join("5f1b2c3d-0000-4000-8000-00000000000d");
    std::fs::create_dir(&waits)?;
    plugin.kill().await?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={used}")).args(["sleep", "600"]).stdin(Stdio::null()).kill_on_drop(true);
    let mut process = command.spawn()?;
    let mut plugin = case.plugin_as(&case.launch_docker()?, &options).await?;
    let again = create(&plugin, "5f1b2c3d-0000-4000-8000-00000000000c", "").await?;
    ensure!(!again.created, "it was gone at once");
    // A task shows where the agent has its allocations.
    let task = case.run(&plugin, &case.shell("exit 0")).await?;
    task.wait(&plugin).await?;
    task.destroy(&plugin).await?;
    let gone = until(LIMIT, "the end of the unknown network", || !is_there(unknown)).await;
    // Some more rounds of the search.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = (is_there(used), is_there(claimed), is_there(waiting));
    process.kill().await?;
    gone?;
    ensure_eq!(left, (true, true, true));
    std::fs::remove_dir(waits)?;
    until(LIMIT, "the end of the network that was waited with", || !is_there(waiting)).await?;
    until(LIMIT, "the end of the network that was used", || !is_there(used)).await?;
    ensure!(is_there(claimed), "a claimed network was removed");
    destroy(&plugin, "5f1b2c3d-0000-4000-8000-00000000000c", None).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}

/// Prepares a task of the group's network as the agent does: with the host name from the network's labels.
fn join(task: &mut Task, spec: &pb::NetworkIsolationSpec, address: &str) {
    let short = |id: &String| id[..12].to_owned();
    let hostname = spec.labels.get("docker_sandbox_hostname").cloned();
    let hostname = hostname.or_else(|| spec.labels.get("docker_sandbox_container_id").map(short));
    let hosts = pb::HostsConfig { hostname: hostname.unwrap_or_default(), address: address.to_owned() };
    task.config.network_isolation_spec =
        Some(pb::NetworkIsolationSpec { hosts_config: Some(hosts), ..spec.clone() });
}

async fn the_tasks_of_a_group_have_its_hostname(case: &CaseContext) -> Result<()> {
    let mut plugin = case.docker().await?;
    let script = "hostname; cat /etc/hostname; echo $HOSTNAME; grep 192.0.2.18 /etc/hosts";
    for (alloc_id, hostname, shown) in [
        ("5f1b2c3d-0000-4000-8000-00000000000a", "web.example", "web.example"),
        ("5f1b2c3d-0000-4000-8000-00000000000b", "", "5f1b2c3d0000"),
    ] {
        let made = create(&plugin, alloc_id, hostname).await?;
        let spec = made.isolation_spec.context("no specification")?;
        let mut first = case.prepare(&plugin, &with(case, &format!("{script}; {SERVE}"), &[])).await?;
        join(&mut first, &spec, GroupNetwork::ADDRESS);
        let first = serving(first, &plugin).await?;
        let same = format!("{shown}\n{shown}\n{shown}\n{} {shown}\n", GroupNetwork::ADDRESS);
        ensure_eq!(first.alloc.stdout.text(), format!("{same}up\n"));
        let fetch = format!("{script}; wget -q -O - http://127.0.0.1:8080/hostname");
        let mut second = beside(case, &plugin, &first, &with(case, &fetch, &[])).await?;
        join(&mut second, &spec, GroupNetwork::ADDRESS);
        second.start(&plugin).await?;
        ensure_eq!(second.stdout(&plugin).await?, format!("{same}{shown}\n"));
        second.destroy(&plugin).await?;
        // A task's own name wins.
        let mut own =
            beside(case, &plugin, &first, &with(case, "hostname", &[("hostname", json!("own"))])).await?;
        join(&mut own, &spec, GroupNetwork::ADDRESS);
        own.start(&plugin).await?;
        ensure_eq!(own.stdout(&plugin).await?, "own\n");
        own.destroy(&plugin).await?;
        first.stop(&plugin, LIMIT).await?;
        first.destroy(&plugin).await?;
        destroy(&plugin, alloc_id, Some(spec)).await?;
        case.nothing_left()?;
    }
    plugin.shut_down().await
}

async fn the_parameters_of_a_groups_network_are_set_once(case: &CaseContext) -> Result<()> {
    const ALLOC: &str = "5f1b2c3d-0000-4000-8000-00000000000a";
    const START: &str = "net.ipv4.ip_unprivileged_port_start";
    let mut plugin = case.docker().await?;
    let spec = create(&plugin, ALLOC, "").await?.isolation_spec.context("no specification")?;
    let show = format!("cat /proc/sys/{} /proc/sys/net/ipv4/ping_group_range", START.replace('.', "/"));
    let pings = "0\t2147483647\n";
    for (sysctl, start) in [(json!(null), "0\n"), (json!({START: "80"}), "80\n"), (json!(null), "80\n")] {
        let mut task = case.prepare(&plugin, &with(case, &show, &[("sysctl", sysctl)])).await?;
        join(&mut task, &spec, GroupNetwork::ADDRESS);
        task.start(&plugin).await?;
        ensure_eq!(task.stdout(&plugin).await?, format!("{start}{pings}"));
        task.destroy(&plugin).await?;
    }
    destroy(&plugin, ALLOC, Some(spec)).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}
