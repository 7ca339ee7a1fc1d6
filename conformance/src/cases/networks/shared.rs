//! Networks that several tasks are in: a group's, and another task's.

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::json;

use crate::cases::support::group_network::GroupNetwork;
use crate::cases::support::web_server::{SERVE, beside, server, serving, with};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused};

cases!["shared networks":
    a_task_is_in_the_network_of_another_one_of_its_allocation,
    a_network_that_is_not_there_is_not_joined,
    the_network_of_a_group_is_joined,
];

async fn a_task_is_in_the_network_of_another_one_of_its_allocation(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for (mode, has_address) in [(json!("bridge"), true), (json!("none"), false)] {
        let first = server(case, plugin, &[("network_mode", mode)]).await?;
        let name = format!("web-{}", &first.alloc.id[..8]);
        let script = "wget -q -O - http://127.0.0.1:8080/hostname; grep -w me /etc/hosts; sleep 600";
        let options = [("network_mode", json!("task:web")), ("hostname", json!("me"))];
        let mut second = beside(case, plugin, &first, &with(case, script, &options)).await?;
        second.start(plugin).await?;
        second.alloc.stdout.to_contain("me\n", LIMIT).await?;
        let network = plugin.inspect_task(second.id()).await?.network_override;
        let address = match &network {
            Some(network) => network.addr.clone(),
            None => "127.0.1.1".to_owned(),
        };
        ensure_eq!(second.alloc.stdout.text(), format!("{name}\n{address} me\n"));
        ensure_eq!(network.is_some(), has_address);
        // The second task keeps the namespace, even when the task that it is from has ended.
        first.end(plugin).await?;
        let (code, output) = second.exec(plugin, "ls /sys/class/net").await?;
        ensure!(code == 0 && output.contains("lo"), "{code}: {output}");
        second.end(plugin).await?;
        case.nothing_left()?;
    }
    Ok(())
}

async fn a_network_that_is_not_there_is_not_joined(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let first = server(case, plugin, &[("host_network", json!(true))]).await?;
    for (mode, recoverable, words) in [
        ("task:db", true, &["task:db", "is not running"][..]),
        ("task:beside", false, &["task:beside", "this task itself"]),
        ("task:web", false, &["task:web", "the host's network", "network_mode = \"host\""]),
        ("cni/absent", false, &["absent", "cni"]),
    ] {
        let config = with(case, "true", &[("network_mode", json!(mode))]);
        let task = beside(case, plugin, &first, &config).await?;
        let status = refused(plugin.start_task(task.config.clone()).await, words)?;
        ensure_eq!(is_recoverable(&status).unwrap_or(false), recoverable);
    }
    first.end(plugin).await?;
    // A task that has ended can't be joined either.
    let ended = case.run(plugin, &with(case, "true", &[("network_mode", json!("none"))])).await?;
    ended.wait(plugin).await?;
    let config = with(case, "true", &[("network_mode", json!("task:web"))]);
    let task = beside(case, plugin, &ended, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["task:web", "is not running"])?;
    ended.destroy(plugin).await?;
    case.nothing_left()
}

async fn the_network_of_a_group_is_joined(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let group = GroupNetwork::make(&case.directory())?;
    let spec = group.spec();
    let mut first = case.prepare(plugin, &with(case, SERVE, &[])).await?;
    first.config.network_isolation_spec = Some(spec.clone());
    let first = serving(first, plugin).await?;
    let name = format!("web-{}", &first.alloc.id[..8]);
    let (code, output) = first
        .exec(plugin, "wget -q -O - http://$(hostname):8080/hostname; grep -w $(hostname) /etc/hosts")
        .await?;
    ensure_eq!((code, output), (0, format!("{name}\n{} {name}\n", GroupNetwork::ADDRESS)));
    // Nomad knows the group's network already.
    ensure_eq!(plugin.inspect_task(first.id()).await?.network_override, None);
    for (option, value) in [
        ("network_mode", json!("bridge")),
        ("network_mode", json!("none")),
        ("network_mode", json!("host")),
        ("host_network", json!(true)),
    ] {
        let mut task = case.prepare(plugin, &with(case, "true", &[(option, value)])).await?;
        task.config.network_isolation_spec = Some(spec.clone());
        refused(plugin.start_task(task.config.clone()).await, &[option, "mode = \"bridge\""])?;
    }
    let mut second =
        beside(case, plugin, &first, &with(case, "wget -q -O - http://127.0.0.1:8080/hostname", &[])).await?;
    second.config.network_isolation_spec = Some(spec);
    second.start(plugin).await?;
    ensure_eq!(second.stdout(plugin).await?, format!("{name}\n"));
    second.destroy(plugin).await?;
    first.end(plugin).await?;
    case.nothing_left()?;
    drop(group);
    Ok(())
}
