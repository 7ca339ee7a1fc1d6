//! The jobs in `hack/networks`: tasks in networks of every kind, with traffic on them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::Case;
use super::stage::{Stage, eventually};
use crate::fixture::http;
use crate::fixture::registry::free_port;

pub const CASES: &[(&str, Case)] = &[
    ("a_group_in_bridge_mode_is_reached_and_checked", web),
    ("the_hosts_network_a_described_one_and_none", others),
];

mod jobs {
    pub const WEB: &str = include_str!("../../../hack/networks/web.nomad.hcl");
    pub const HOST: &str = include_str!("../../../hack/networks/host.nomad.hcl");
    pub const DESCRIBED: &str = include_str!("../../../hack/networks/described.nomad.hcl");
    pub const ALONE: &str = include_str!("../../../hack/networks/alone.nomad.hcl");
}

/// Waits for a server's page to be the one.
pub fn page_is(address: &str, page: &str) -> Result<()> {
    let mut seen = String::new();
    let asked = eventually(&format!("page {page:?} from {address}"), || {
        seen = match http::request(address, "GET", "/", &[], b"") {
            Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
            Err(error) => format!("{error:#}"),
        };
        Ok(seen.trim_end() == page)
    });
    asked.with_context(|| format!("it answers {seen:?}"))
}

fn web(stage: &mut Stage) -> Result<()> {
    let image = stage.busybox();
    let fixed = free_port()?;
    let id = stage.start("web", jobs::WEB, &[("image", &image), ("fixed", &fixed.to_string())])?;
    stage.done(&id, "look")?;
    let allocation = stage.agent.allocation(&id)?;
    let http = allocation.port("http")?;
    for port in [http, allocation.port("fixed")?, allocation.port("near")?] {
        page_is(&port.address(), "hello from the web")?;
    }
    page_is(&format!("{}:8080", allocation.address()?), "hello from the web")?;
    ensure!(allocation.port("fixed")?.number == fixed, "the fixed port is {:?}", allocation.port("fixed")?);
    let near = stage.world.networks().near().subnet;
    ensure!(allocation.port("near")?.host == near.trim_end_matches("/32"), "not on the network near");
    let service = stage.agent.service("web")?;
    ensure!(service == [http.address().parse()?], "the service is at {service:?}, not {}", http.address());
    let well = ["page", "port"].map(|name| (name.to_owned(), "success".to_owned()));
    let well = BTreeMap::from(well);
    let mut checks = BTreeMap::new();
    eventually("healthy service", || {
        checks = stage.agent.checks(&id)?;
        Ok(checks == well)
    })
    .with_context(|| format!("its checks are {checks:?}"))
}

fn others(stage: &mut Stage) -> Result<()> {
    let image = stage.busybox();
    let variables = [("image", image.as_str())];
    let host = stage.start("host", jobs::HOST, &variables)?;
    let described = stage.start("described", jobs::DESCRIBED, &variables)?;
    let alone = stage.start("alone", jobs::ALONE, &variables)?;

    stage.done(&alone, "main")?;
    stage.done(&host, "look")?;
    page_is(&stage.agent.allocation(&host)?.port("http")?.address(), "hello from the host")?;

    stage.running(&described, "server")?;
    let allocation = stage.agent.allocation(&described)?;
    page_is(&allocation.port("http")?.address(), "hello from the network")?;
    let (address, network) = (allocation.address()?, stage.world.networks().described());
    ensure!(network.has(address), "{address} is not in {}", network.subnet);
    page_is(&format!("{address}:8080"), "hello from the network")
}
