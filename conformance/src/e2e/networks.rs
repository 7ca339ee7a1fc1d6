//! The jobs in `examples/networks`: tasks in networks of every kind, with traffic on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use harness::context::agent::{AgentContext, eventually};
use harness::fixture::registry::free_port;

use super::support::{kill_plugin, network_jobs as jobs, page_is};
use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    a_group_in_bridge_mode_is_reached_and_checked,
    the_hosts_network_a_described_one_and_none,
    a_service_is_at_the_tasks_own_address_whoever_was_restarted,
    twenty_tasks_at_once_have_an_address_each,
    a_group_has_its_hostname_whoever_was_restarted,
];

fn a_group_in_bridge_mode_is_reached_and_checked(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let fixed = free_port()?;
    let id = context.start("web", jobs::WEB, &[("image", &image), ("fixed", &fixed.to_string())])?;
    context.done(&id, "look")?;
    let allocation = context.agent.allocation(&id)?;
    let http = allocation.port("http")?;
    for port in [http, allocation.port("fixed")?, allocation.port("near")?] {
        page_is(&port.address(), "hello from the web")?;
    }
    page_is(&format!("{}:8080", allocation.address()?), "hello from the web")?;
    ensure!(allocation.port("fixed")?.number == fixed, "the fixed port is {:?}", allocation.port("fixed")?);
    let near = context.environment.networks().near().subnet;
    ensure!(allocation.port("near")?.host == near.trim_end_matches("/32"), "not on the network near");
    let service = context.agent.service("web")?;
    ensure!(service == [http.address().parse()?], "the service is at {service:?}, not {}", http.address());
    checked(context, &id, &["page", "port"])
}

/// Waits until these checks of Nomad's, and no others, are there and healthy.
fn checked(context: &AgentContext, id: &str, names: &[&str]) -> Result<()> {
    let well: BTreeMap<_, _> = names.iter().map(|name| ((*name).to_owned(), "success".to_owned())).collect();
    let mut checks = BTreeMap::new();
    eventually("healthy service", || {
        checks = context.agent.checks(id)?;
        Ok(checks == well)
    })
    .with_context(|| format!("its checks are {checks:?}"))
}

fn the_hosts_network_a_described_one_and_none(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let variables = [("image", image.as_str())];
    let host = context.start("host", jobs::HOST, &variables)?;
    let described = context.start("described", jobs::DESCRIBED, &variables)?;
    let alone = context.start("alone", jobs::ALONE, &variables)?;

    context.done(&alone, "main")?;
    context.done(&host, "look")?;
    page_is(&context.agent.allocation(&host)?.port("http")?.address(), "hello from the host")?;

    context.running(&described, "server")?;
    let allocation = context.agent.allocation(&described)?;
    page_is(&allocation.port("http")?.address(), "hello from the network")?;
    let (address, network) = (allocation.address()?, context.environment.networks().described());
    ensure!(network.has(address), "{address} is not in {}", network.subnet);
    page_is(&format!("{address}:8080"), "hello from the network")
}

fn a_service_is_at_the_tasks_own_address_whoever_was_restarted(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let id = context.start("own", jobs::OWN, &[("image", &image)])?;
    context.running(&id, "server")?;
    let published = context.agent.allocation(&id)?.port("http")?.address();
    page_is(&published, "hello from the task")?;
    let place = own_place(context)?;
    let info = context.agent.tell(&["service", "info", "own"])?.stdout();
    ensure!(info.contains(&place.to_string()), "`nomad service info` says:\n{info}");
    checked(context, &id, &["port"])?;

    kill_plugin(context)?;
    eventually("new plugin", || Ok(context.agent.plugin().is_ok()))?;
    context.agent.driver_becomes(true)?;
    ensure!(own_place(context)? == place, "the service is elsewhere once the plugin has died");
    context.agent.stop()?;
    context.agent.launch()?;
    context.running(&id, "server")?;
    ensure!(own_place(context)? == place, "the service is elsewhere once the agent was restarted");
    page_is(&published, "hello from the task")?;
    checked(context, &id, &["port"])
}

/// Returns the service's address in Nomad, after asserting that it is the task's and answers.
fn own_place(context: &AgentContext) -> Result<SocketAddr> {
    let found = context.agent.service("own")?;
    let [place] = found[..] else { bail!("the service is at {found:?}") };
    let subnet = context.environment.networks().tasks();
    ensure!(place.port() == 8080 && subnet.has(&place.ip().to_string()), "the service is at {place}");
    page_is(&place.to_string(), "hello from the task")?;
    Ok(place)
}

fn twenty_tasks_at_once_have_an_address_each(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    context.submit("many", jobs::MANY, &[("image", &image)])?;
    let ids = context.allocations("many", 20)?;
    let mut addresses = BTreeSet::new();
    for id in &ids {
        context.made(id, "address")?;
        let shown = fs::read_to_string(context.data(id, "address"))?;
        let address = shown.split_whitespace().find_map(|word| word.split_once('/')).context("no address")?.0;
        ensure!(
            context.environment.networks().tasks().has(address),
            "{address} is not of the driver's bridge"
        );
        addresses.insert(address.to_owned());
    }
    ensure!(addresses.len() == ids.len(), "{} tasks have the addresses {addresses:?}", ids.len());
    // Ports of the bridge have to be there while the tasks run; that they are gone afterwards is checked at the end of
    // each case.
    let census = context.environment.networks().census();
    let count = census.iter().filter(|line| line.starts_with("bridge port")).count();
    ensure!(count >= ids.len(), "{count} ports of the bridge:\n{}", census.join("\n"));
    Ok(())
}

fn a_group_has_its_hostname_whoever_was_restarted(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let id = context.start("hostname", jobs::HOSTNAME, &[("image", &image)])?;
    context.done(&id, "look")?;
    let allocation = context.agent.allocation(&id)?;
    page_is(&allocation.port("http")?.address(), "hello from the group")?;
    let groups = context.environment.networks().groups();
    ensure!(groups.has(allocation.address()?), "{} is not in {}", allocation.address()?, groups.subnet);
    context.agent.stop()?;
    context.agent.launch()?;
    context.running(&id, "server")?;
    let again = context.agent.allocation(&id)?;
    ensure!(again.address()? == allocation.address()?, "the group is elsewhere once the agent was restarted");
    page_is(&again.port("http")?.address(), "hello from the group")
}
