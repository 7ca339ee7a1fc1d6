//! The driver's own bridge for tasks: the operator's options for it, and what tasks do on it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::process;
use harness::fixture::registry::free_port;
use harness::host::Plugin;
use serde_json::json;

use crate::cases::support::web_server::{
    PORT, SERVE, fetch_hostname, network_override, offer, port, server, serving, with,
};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused};

cases!["bridges":
    the_bridge_and_its_addresses_are_the_operators_choice,
    an_address_of_another_interface_is_refused_for_the_bridge,
    a_task_reaches_itself_by_its_port_where_the_bridge_lets_it,
    a_task_is_as_fast_as_its_bandwidth,
    many_tasks_start_and_end_on_the_bridge_at_once,
];

async fn the_bridge_and_its_addresses_are_the_operators_choice(case: &CaseContext) -> Result<()> {
    // A bridge other than that of the other cases.
    let bridge = case.environment().networks().described();
    let mut options = case.options();
    options["bridge_network_name"] = json!(bridge.name);
    options["bridge_network_subnet"] = json!(bridge.subnet);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = server(case, &plugin, &[("network_mode", json!("bridge"))]).await?;
    let address: Ipv4Addr = network_override(&plugin, &task).await?.addr.parse()?;
    let (network, prefix) = bridge.subnet.split_once('/').context("a subnet has a prefix")?;
    let (network, host_bits) = (network.parse::<Ipv4Addr>()?, 32 - prefix.parse::<u32>()?);
    ensure_eq!(address.to_bits() >> host_bits, network.to_bits() >> host_bits);
    let ports = process::output(Command::new("ip").args(["-o", "link", "show", "master", &bridge.name]))?;
    ensure_eq!(ports.lines().count(), 1);
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn an_address_of_another_interface_is_refused_for_the_bridge(case: &CaseContext) -> Result<()> {
    let bridge = case.environment().networks().tasks();
    let other = format!("{}x", bridge.name);
    let first = format!("{}1", bridge.subnet.split("0/").next().context("no subnet")?);
    let ip = |arguments: &[&str]| process::output(Command::new("ip").args(arguments));
    ip(&["link", "add", &other, "type", "bridge"])?;
    // Before the plugin: it looks until it has found no such interface once.
    let refused_start = async {
        ip(&["address", "add", &format!("{first}/32"), "dev", &other])?;
        let plugin = case.plugin().await?;
        let config = with(case, "true", &[("network_mode", json!("bridge"))]);
        let task = case.prepare(&plugin, &config).await?;
        anyhow::Ok((plugin.start_task(task.config.clone()).await, plugin, config))
    };
    let tried = refused_start.await;
    ip(&["link", "delete", &other])?;
    let (answer, mut plugin, config) = tried?;
    let status = refused(answer, &["bridge_network_subnet", &other, &first])?;
    ensure!(is_recoverable(&status)?, "the interface may go: {status}");
    case.nothing_left()?;
    let task = case.run(&plugin, &config).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    task.destroy(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_task_reaches_itself_by_its_port_where_the_bridge_lets_it(case: &CaseContext) -> Result<()> {
    let near = case.environment().networks().make_near()?;
    let host = near.subnet.split('/').next().context("no address")?.to_owned();
    let mut options = case.options();
    options["bridge_network_hairpin_mode"] = json!(true);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let options = [("network_mode", json!("bridge")), ("ports", json!(["http"]))];
    let mut task = case.prepare(&plugin, &with(case, SERVE, &options)).await?;
    let number = free_port()?;
    offer(&mut task, vec![port("http", number, PORT, &host)]);
    let task = serving(task, &plugin).await?;
    let itself = format!("timeout 10 wget -q -O - http://{host}:{number}/hostname");
    ensure_eq!(task.exec(&plugin, &itself).await?, (0, format!("web-{}\n", &task.alloc.id[..8])));
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_task_is_as_fast_as_its_bandwidth(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let limits = json!({"egress_rate": "1m", "egress_burst": "64k", "ingress_rate": "2m"});
    let task = server(case, plugin, &[("network_mode", json!("bridge")), ("bandwidth", limits)]).await?;
    ensure_eq!(
        fetch_hostname(&network_override(plugin, &task).await?.addr, PORT)?,
        format!("web-{}", &task.alloc.id[..8])
    );
    let shaped = process::output(Command::new("tc").args(["qdisc", "show"]))?;
    // Rates in bits a second: of what comes to the task, and, by a second interface, of what it sends.
    let of_tasks: Vec<_> = shaped.lines().filter(|line| line.contains("tbf")).collect();
    for rate in ["rate 16777Kbit", "rate 8388Kbit"] {
        ensure!(of_tasks.iter().any(|line| line.contains(rate)), "no {rate} in {of_tasks:?}");
    }
    task.end(plugin).await?;
    case.nothing_left()?;
    let left = process::output(Command::new("tc").args(["qdisc", "show"]))?;
    ensure!(!left.contains("rate 8388Kbit"), "left: {left}");
    Ok(())
}

const MANY: usize = 12;

async fn many_tasks_start_and_end_on_the_bridge_at_once(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let bridge = [("network_mode", json!("bridge"))];
    let tasks = futures::future::try_join_all((0..MANY).map(|_| server(case, plugin, &bridge))).await?;
    let mut addresses = BTreeSet::new();
    for task in &tasks {
        let address = network_override(plugin, task).await?.addr;
        ensure_eq!(fetch_hostname(&address, PORT)?, format!("web-{}", &task.alloc.id[..8]));
        addresses.insert(address.parse::<IpAddr>()?);
    }
    ensure_eq!(addresses.len(), MANY);
    futures::future::try_join_all(tasks.iter().map(|task| task.end(plugin))).await?;
    case.nothing_left()
}
