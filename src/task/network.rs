//! A task's network: which namespace it is in, how a network of the task's own is made, and how it is taken down again.
//!
//! Everything about a network of the task's own is in its bundle: the namespace is kept at `netns`, and by
//! `network.json` the CNI plugins are told to undo what they did. So it is found by the task's id alone, whatever was
//! cut off when.

#![expect(clippy::disallowed_methods, reason = "opens network namespaces of Nomad's and of the kernel's")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use nomad_proto::driver as pb;
use serde::{Deserialize, Serialize};

use super::container::ContainerHandles;
use super::error::{Error, Result};
use super::{Phase, Settings, Task, Tasks};
use crate::cni::{self, AddResult, Attachment, Capabilities, PortMapping, Protocol};
use crate::config::{
    Bandwidth, Bridge, DriverName, Network, NetworkMode, NetworkOptions, OwnNetworkOptions, Rate,
};
use crate::spec::NetNamespace;
use crate::sys::blocking;
use crate::sys::error_chain::Chained;
use crate::sys::netns;
use crate::sys::pidfd::Init;

/// Name of the interface that CNI plugins make in the namespace.
pub(super) const INTERFACE: &str = "eth0";
/// Protocols of each published port: both, since a job's port has no protocol; as Nomad and docker's driver do.
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Time that a task waits for the one whose network it is to share, unless that one waits for its start permit: the
/// tasks of a group are started side by side.
const NEIGHBOUR: Duration = Duration::from_secs(5);
/// Length of an allocation's id.
const UUID_BYTES: usize = 36;
const OWN_NETWORK: &str = "/proc/self/ns/net";

/// A task's network as reported to Nomad, so that services can be advertised at the task's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DriverNetwork {
    pub address: IpAddr,
    /// Ports in the task, by label.
    pub ports: BTreeMap<String, u16>,
    /// Whether services that don't choose an address are advertised at this one.
    pub auto_advertise: bool,
}

/// The plan of a task's network, found to be possible.
pub(super) struct NetworkPlan {
    driver: DriverName,
    network: Network,
    /// The job's `network_mode`, for errors.
    mode: Option<NetworkMode>,
    own_network: OwnNetworkOptions,
    /// Ports of the group that are to be published.
    ports: Vec<pb::PortMapping>,
    /// Plugins of a network of the task's own.
    plugins: Option<cni::Network>,
}

/// A task's network once it is set up.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) namespace: NetNamespace,
    /// Addresses by which others reach the task.
    pub(super) addresses: Vec<IpAddr>,
    /// The network's gateways, as far as the CNI plugins tell.
    gateways: Vec<IpAddr>,
    /// Settings of the resolver from the CNI plugins.
    pub(super) dns: cni::Dns,
    pub(super) driver_network: Option<DriverNetwork>,
}

impl Joined {
    fn at(namespace: NetNamespace, addresses: Vec<IpAddr>) -> Self {
        let dns = cni::Dns::default();
        Self { namespace, addresses, gateways: Vec::new(), dns, driver_network: None }
    }

    /// Returns the addresses by which the task reaches the host, as [`addresses_of_host`] chooses them.
    ///
    /// # Errors
    /// Names the namespace whose routes or addresses can't be read.
    pub(super) async fn addresses_of_host(&self, bridge: &Bridge) -> Result<Vec<IpAddr>> {
        let gateways = match &self.namespace {
            NetNamespace::Host => return Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]),
            NetNamespace::At(path) if self.gateways.is_empty() => netns::gateways(path).await?,
            NetNamespace::At(_) | NetNamespace::Own => self.gateways.clone(),
        };
        Ok(addresses_of_host(gateways, bridge.addresses(), &netns::hosts_addresses().await?))
    }
}

/// Returns the addresses by which a task reaches the host whose own ones are `hosts`: the gateways of its network, if
/// they are the host's, and not those of a router that its network has beside the host, as one of macvlan. Else the
/// driver's bridge's, as docker takes those of its own; before there is a bridge, the node's.
fn addresses_of_host(gateways: Vec<IpAddr>, bridge: Vec<IpAddr>, hosts: &[IpAddr]) -> Vec<IpAddr> {
    let of_host = |addresses: Vec<IpAddr>| {
        let found: Vec<_> = addresses.into_iter().filter(|address| hosts.contains(address)).collect();
        Some(found).filter(|found| !found.is_empty())
    };
    let nodes = || hosts.first().map(|address| vec![*address]);
    of_host(gateways).or_else(|| of_host(bridge.clone())).or_else(nodes).unwrap_or(bridge)
}

impl NetworkPlan {
    /// # Errors
    /// Names the option that can't be had with the networks that there are.
    pub(super) async fn of(
        settings: &Settings,
        network: Network,
        options: &NetworkOptions,
        config: &pb::TaskConfig,
    ) -> Result<Self> {
        let (driver, mode, own_network) =
            (settings.config.name, options.mode.clone(), options.own_network.clone());
        let network = match network {
            Network::OfContainer(container) => {
                Network::OfTask(task_of_container(&container, &config.alloc_id)?)
            }
            network => network,
        };
        let plugins = match &network {
            Network::Own(name) => Some(plugins(settings, name.as_deref(), mode.as_ref()).await?),
            Network::OfTask(name) if *name == config.name => {
                let mode = mode.map(|mode| mode.to_string()).unwrap_or_default();
                return Err(Error::invalid(format!(
                    "the option network_mode can't be {mode:?}: that is this task itself"
                )));
            }
            _ => None,
        };
        let ports = published(driver, &network, &own_network, config.resources.as_ref())?;
        Ok(Self { driver, network, mode, own_network, ports, plugins })
    }

    /// Returns the option that asks for the network, as the job says it.
    fn shown_mode(&self) -> String {
        let mode = self.mode.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("network_mode = {mode:?}")
    }

    pub(super) fn is_the_hosts(&self) -> bool {
        self.network == Network::Host
    }

    /// Returns whether the network is one that others than the task use.
    pub(super) fn is_shared(&self) -> bool {
        match self.network {
            Network::Host | Network::Group(_) | Network::OfTask(_) | Network::OfContainer(_) => true,
            Network::Own(_) | Network::Private => false,
        }
    }

    /// Returns the other names by which the task goes.
    pub(super) fn aliases(&self) -> &[String] {
        &self.own_network.aliases
    }

    /// Waits until the task runs whose network this one is to share, if it shares one.
    ///
    /// # Errors
    /// When that task does not come.
    pub(super) async fn comes(&self, tasks: &Tasks, config: &pb::TaskConfig) -> Result<()> {
        match &self.network {
            Network::OfTask(name) => {
                let comes = tasks.neighbour(&config.alloc_id, name).await;
                comes.map(drop).map_err(|error| error.context(self.shown_mode()))
            }
            _ => Ok(()),
        }
    }

    /// Makes or finds the network. Whatever was made is removed by [`ContainerHandles::end_network`], however this
    /// ends.
    ///
    /// # Errors
    /// Says what of the network can't be had.
    pub(super) async fn join(
        &self,
        tasks: &Tasks,
        container: &ContainerHandles,
        config: &pb::TaskConfig,
        is_sandboxed: bool,
    ) -> Result<Joined> {
        match (&self.network, &self.plugins) {
            (Network::Host, _) => Ok(Joined::at(NetNamespace::Host, Vec::new())),
            (Network::Group(path), _) => {
                let addresses = netns::addresses(Path::new(path)).await?;
                Ok(Joined::at(NetNamespace::At(path.into()), addresses))
            }
            (Network::OfTask(name), _) => {
                let shared = share(tasks, container, config, name).await;
                shared.map_err(|error| error.context(self.shown_mode()))
            }
            (Network::Own(name), Some(plugins)) => {
                self.connect(name.as_deref(), plugins, container, config).await
            }
            // The sandbox's runtime would leave the loopback interface down.
            (Network::Private, _) if is_sandboxed => {
                let path = container.bundle.network_namespace();
                netns::create(&path).await?;
                Ok(Joined::at(NetNamespace::At(path), Vec::new()))
            }
            // `of` has found the task of a container.
            (Network::Own(_) | Network::OfContainer(_) | Network::Private, _) => {
                Ok(Joined::at(NetNamespace::Own, Vec::new()))
            }
        }
    }

    async fn connect(
        &self,
        name: Option<&str>,
        plugins: &cni::Network,
        container: &ContainerHandles,
        config: &pb::TaskConfig,
    ) -> Result<Joined> {
        let path = container.bundle.network_namespace();
        netns::create(&path).await?;
        let attachment = Attachment {
            container_id: container.id.clone(),
            netns: path.clone(),
            if_name: INTERFACE.to_owned(),
            args: arguments(config),
            capabilities: self.capabilities(plugins),
        };
        let added = container.cni.add(plugins, &attachment, &container.bundle.network_record()).await?;
        let AddResult { addresses, gateways, mac, dns, .. } = added;
        self.is_met(&plugins.name, &addresses, mac.as_deref())?;
        let driver_network = self.driver_network(name, &addresses)?;
        Ok(Joined { namespace: NetNamespace::At(path), addresses, gateways, dns, driver_network })
    }

    /// Returns the CNI capabilities that the network is asked for. A network refuses what none of its plugins takes;
    /// aliases are left out then, since they are also in the task's own files.
    fn capabilities(&self, plugins: &cni::Network) -> Capabilities {
        let OwnNetworkOptions {
            ports: _,
            port_map: _,
            ipv4,
            ipv6,
            mac,
            aliases,
            advertise_ipv6: _,
            bandwidth,
        } = &self.own_network;
        let ips = ipv4.iter().map(ToString::to_string).chain(ipv6.iter().map(ToString::to_string));
        let takes_aliases = plugins.capabilities().contains("aliases");
        Capabilities {
            port_mappings: self.ports.iter().flat_map(mappings).collect(),
            dns: None,
            bandwidth: (*bandwidth != Bandwidth::default()).then(|| in_bits(bandwidth)),
            ips: ips.collect(),
            mac: mac.clone(),
            aliases: if takes_aliases { aliases.clone() } else { Vec::new() },
        }
    }

    /// Checks that the network has given the task what was asked for, which plugins may pass over in silence.
    fn is_met(&self, network: &str, addresses: &[IpAddr], mac: Option<&str>) -> Result<()> {
        let unmet = |option: &str, requested: &str| {
            Error::invalid(format!(
                "the option {option} can't be {requested:?}: network {network} has given the task another one"
            ))
        };
        let OwnNetworkOptions { ipv4, ipv6, mac: wanted_mac, .. } = &self.own_network;
        let wanted = [("ipv4_address", ipv4.map(IpAddr::from)), ("ipv6_address", ipv6.map(IpAddr::from))];
        for (option, address) in wanted {
            if let Some(address) = address
                && !addresses.contains(&address)
            {
                return Err(unmet(option, &address.to_string()));
            }
        }
        if let Some(wanted) = wanted_mac
            && !mac.is_some_and(|mac| mac.eq_ignore_ascii_case(wanted))
        {
            return Err(unmet("mac_address", wanted));
        }
        for port in &self.ports {
            if let Ok(host) = port.host_ip.parse::<IpAddr>()
                && !addresses.iter().any(|address| address.is_ipv4() == host.is_ipv4())
            {
                return Err(Error::invalid(format!(
                    "the option ports can't have {:?}: the host's address for it is {host}, and the task's network \
                     has no address of that IP version",
                    port.label
                )));
            }
        }
        Ok(())
    }

    /// Returns the network as reported to Nomad. The address of the default network is not advertised unless a service
    /// asks for it: it means nothing to other nodes.
    fn driver_network(&self, name: Option<&str>, addresses: &[IpAddr]) -> Result<Option<DriverNetwork>> {
        let advertise_ipv6 = self.own_network.advertise_ipv6;
        let wanted = addresses.iter().find(|address| address.is_ipv6() == advertise_ipv6);
        if advertise_ipv6 && wanted.is_none() && self.driver.is_docker() {
            tracing::warn!(
                "the task's network has no IPv6 address that advertise_ipv6_address could tell Nomad"
            );
            return Ok(None);
        }
        if advertise_ipv6 && wanted.is_none() {
            let why = "the task's network has given it no IPv6 address";
            return Err(Error::invalid(format!("the option advertise_ipv6_address can't be true: {why}")));
        }
        let Some(&address) = wanted.or(addresses.first()) else { return Ok(None) };
        let ports = self.ports.iter().map(|port| (port.label.clone(), inside(port))).collect();
        Ok(Some(DriverNetwork { address, ports, auto_advertise: advertise_ipv6 || name.is_some() }))
    }
}

/// Loads the network of this name, or the driver's bridge.
async fn plugins(
    settings: &Settings,
    name: Option<&str>,
    mode: Option<&NetworkMode>,
) -> Result<cni::Network> {
    if name.is_none() {
        settings.cni.check_bridge().await?;
    }
    let found = settings.cni.network(name).await;
    found.map_err(|error| match (&error, mode) {
        (cni::Error::Unknown { directory, .. }, Some(NetworkMode::Named(name))) => {
            let file = directory.join(format!("{name}.conflist"));
            let why = format!(
                "network_mode = {name:?} (a network that dockerd has made is not one here: describe it as a CNI network \
                 of this name, in a file such as {}, or set \"bridge\")",
                file.display()
            );
            Error::from(error).context(why)
        }
        _ => error.into(),
    })
}

/// Returns the name of the task that a container of docker's is: its name is the task's with `-` and the id of the
/// allocation after it. The task's name alone is taken as well.
fn task_of_container(container: &str, alloc_id: &str) -> Result<String> {
    let is_id = |text: &str| {
        text.len() == UUID_BYTES && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
    };
    let split = container.len().checked_sub(UUID_BYTES + 1).and_then(|at| container.split_at_checked(at));
    let of = split.and_then(|(name, rest)| Some((name, rest.strip_prefix('-').filter(|id| is_id(id))?)));
    match of {
        None => Ok(container.to_owned()),
        Some((name, id)) if id == alloc_id && !name.is_empty() => Ok(name.to_owned()),
        Some(_) => Err(Error::invalid(format!(
            "the option network_mode can't be \"container:{container}\": a task shares the network of another task of its \
             own group alone; write \"container:<its name>\", and put both into one group"
        ))),
    }
}

/// Returns the ports to publish: those of the group with the labels of `ports`, else those of the task's own
/// `resources { network }`. As in docker's driver, `port_map` is about the latter alone.
fn published(
    driver: DriverName,
    network: &Network,
    options: &OwnNetworkOptions,
    resources: Option<&pb::Resources>,
) -> Result<Vec<pb::PortMapping>> {
    let OwnNetworkOptions { ports, port_map, .. } = options;
    let offered = resources.map(|resources| &resources.ports[..]).unwrap_or_default();
    let is_own = matches!(network, Network::Own(_));
    if !ports.is_empty() {
        // Docker's driver does not look for ports of a network that others have made.
        let is_shared = matches!(network, Network::Group(_) | Network::OfTask(_));
        let found = if is_shared { Vec::new() } else { with_labels(ports, offered)? };
        return Ok(if is_own { found } else { Vec::new() });
    }
    let own = resources.and_then(|resources| resources.allocated_resources.as_ref()?.networks.first());
    match own {
        Some(own) if driver.is_docker() || !port_map.is_empty() => {
            let mapping = |port: &pb::NetworkPort| pb::PortMapping {
                label: port.label.clone(),
                value: port.value,
                to: port_map.get(&port.label).copied().unwrap_or_default().into(),
                host_ip: own.ip.clone(),
            };
            let all = own.reserved_ports.iter().chain(&own.dynamic_ports).map(mapping);
            Ok(if is_own { all.collect() } else { Vec::new() })
        }
        _ if port_map.is_empty() => Ok(Vec::new()),
        _ if offered.is_empty() => Err(Error::invalid(
            "the option port_map has nothing to map: neither the task's resources nor its group have a network with \
             ports; give the group a network block with ports, and list them in the option ports",
        )),
        _ => Err(Error::invalid(
            "the option port_map can't map ports of the group's network block: set `to` in its port blocks, and list the \
             ports in the option ports",
        )),
    }
}

/// Returns the group's ports with these labels.
fn with_labels(labels: &[String], offered: &[pb::PortMapping]) -> Result<Vec<pb::PortMapping>> {
    let find = |label: &String| {
        let found: Vec<_> = offered.iter().filter(|port| port.label == *label).cloned().collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let known: Vec<_> = offered.iter().map(|port| port.label.as_str()).collect();
        Err(Error::invalid(format!(
            "the option ports can't have {label:?}: the group's network block has {}",
            if known.is_empty() { "no ports".to_owned() } else { format!("the ports {}", known.join(", ")) }
        )))
    };
    Ok(labels.iter().map(find).collect::<Result<Vec<_>>>()?.concat())
}

/// Returns a port's number in the task.
fn inside(port: &pb::PortMapping) -> u16 {
    let number = if port.to > 0 { port.to } else { port.value };
    u16::try_from(number).unwrap_or_default()
}

fn mappings(port: &pb::PortMapping) -> impl Iterator<Item = PortMapping> {
    let (host_port, container_port) = (u16::try_from(port.value).unwrap_or_default(), inside(port));
    let host_ip = port.host_ip.parse().ok();
    PROTOCOLS.map(|protocol| PortMapping { host_port, container_port, protocol, host_ip }).into_iter()
}

/// Converts the limits to bits, with 0 for no limit.
fn in_bits(bandwidth: &Bandwidth) -> cni::Bandwidth {
    let bits =
        |rate: Option<Rate>| rate.map_or((0, 0), |rate| (rate.bytes_per_second * 8, rate.burst_bytes * 8));
    let (ingress_rate, ingress_burst) = bits(bandwidth.ingress);
    let (egress_rate, egress_burst) = bits(bandwidth.egress);
    cni::Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst }
}

/// Returns the `CNI_ARGS` that Nomad gives for its own networks, for plugins that look up whose container it is.
fn arguments(config: &pb::TaskConfig) -> Vec<(String, String)> {
    let pb::TaskConfig { alloc_id, name, task_group_name, job_id, namespace, .. } = config;
    [
        ("IgnoreUnknown", "true"),
        ("NOMAD_ALLOC_ID", alloc_id),
        ("NOMAD_GROUP_NAME", task_group_name),
        ("NOMAD_JOB_ID", job_id),
        ("NOMAD_NAMESPACE", namespace),
        ("NOMAD_TASK_NAME", name),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

/// Joins the network of another task of the allocation, which [`NetworkPlan::comes`] has waited for. If that task has
/// gone since, this fails and does not wait: the caller holds a start permit, and the other task may wait for that very
/// one.
async fn share(
    tasks: &Tasks,
    container: &ContainerHandles,
    config: &pb::TaskConfig,
    name: &str,
) -> Result<Joined> {
    let gone = || does_not_run(name);
    let neighbour = tasks.running_neighbour(&config.alloc_id, name).ok_or_else(gone)?;
    let id = neighbour.driver_state.init;
    let init = Init::open(id).ok_or_else(gone)?;
    let path = PathBuf::from(format!("/proc/{}/ns/net", id.pid));
    let namespace = File::open(&path).map_err(|_| gone())?;
    // Otherwise the pid may have been another process' when the namespace was opened by it.
    if init.has_ended() {
        return Err(gone());
    }
    if is_same(&namespace, OWN_NETWORK) {
        let why = "that task uses the host's network; set network_mode = \"host\" instead";
        return Err(Error::invalid(why));
    }
    let at = container.bundle.network_namespace();
    netns::pin(OwnedFd::from(namespace), &at).await?;
    let addresses = netns::addresses(&at).await?;
    let mut joined = Joined::at(NetNamespace::At(at), addresses);
    let driver_network =
        |address: &IpAddr| DriverNetwork { address: *address, ports: BTreeMap::new(), auto_advertise: false };
    joined.driver_network = joined.addresses.first().map(driver_network);
    Ok(joined)
}

fn does_not_run(name: &str) -> Error {
    Error::transient(format!("the task {name:?} of this allocation is not running"))
}

fn is_same(namespace: &File, other: &str) -> bool {
    let number = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (one, other) = (namespace.metadata(), std::fs::metadata(other));
    one.is_ok_and(|one| other.is_ok_and(|other| number(one) == number(other)))
}

impl Tasks {
    /// Returns the running task of this name of an allocation, without waiting for one.
    fn running_neighbour(&self, alloc_id: &str, name: &str) -> Option<Arc<Task>> {
        let is_it = |task: &Arc<Task>| task.identity.alloc_id == alloc_id && task.identity.name == name;
        self.active().into_iter().find(|task| is_it(task) && matches!(task.phase(), Phase::Running))
    }

    /// Waits until the task of this name of an allocation runs. A task that waits for its start permit is waited for,
    /// however many starts come before it: so no caller may hold a start permit.
    ///
    /// # Errors
    /// When that task neither runs nor is about to.
    async fn neighbour(&self, alloc_id: &str, name: &str) -> Result<Arc<Task>> {
        let found = async {
            loop {
                let changed = self.freed.notified();
                if let Some(task) = self.running_neighbour(alloc_id, name) {
                    return task;
                }
                changed.await;
            }
        };
        let mut found = pin!(found);
        loop {
            match tokio::time::timeout(NEIGHBOUR, found.as_mut()).await {
                Ok(task) => return Ok(task),
                Err(_) if self.is_coming(alloc_id, name) => {}
                Err(_) => return Err(does_not_run(name)),
            }
        }
    }
}

impl ContainerHandles {
    /// Logs a warning if the task's network is no longer as it was made.
    pub(super) async fn check_network(&self) {
        let record = self.bundle.network_record();
        let path = record.clone();
        if blocking::run(move || path.exists()).await
            && let Err(error) = self.cni.check(&record).await
        {
            tracing::warn!(container = self.id, error = %error.chain(), "the task's network was changed or removed; restart the task");
        }
    }

    /// Has the CNI plugins undo what they did, and removes the namespace, if the task has a network of its own.
    ///
    /// # Errors
    /// Names the plugin, or the file. What could not be undone is still recorded then.
    pub(super) async fn end_network(&self) -> Result<()> {
        self.cni.delete(&self.bundle.network_record()).await?;
        Ok(netns::remove(&self.bundle.network_namespace()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOC: &str = "5f1b2c3d-0000-4000-8000-00000000000a";

    #[test]
    fn a_container_of_dockers_is_a_task_of_the_same_allocation() {
        let of = |container: &str| task_of_container(container, ALLOC).map_err(|error| error.to_string());
        assert_eq!(of("db"), Ok("db".to_owned()));
        assert_eq!(of("my-db"), Ok("my-db".to_owned()));
        assert_eq!(of(&format!("my-db-{ALLOC}")), Ok("my-db".to_owned()));
        assert_eq!(
            of("ünïcödé-and-then-some-more-letters-ü"),
            Ok("ünïcödé-and-then-some-more-letters-ü".to_owned())
        );
        for other in ["db-5f1b2c3d-0000-4000-8000-00000000000b".to_owned(), format!("-{ALLOC}")] {
            let error = of(&other).unwrap_err();
            assert!(error.contains(&other) && error.contains("one group"), "{error}");
        }
    }

    #[test]
    fn a_task_reaches_the_host_by_an_address_that_the_host_has() {
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let of = |gateways: &[&str], hosts: &[&str]| {
            addresses_of_host(all(gateways), all(&["172.26.80.1", "fd00::1"]), &all(hosts))
        };
        let hosts = ["10.0.0.5", "172.26.64.1", "172.26.80.1"];
        assert_eq!(of(&["172.26.64.1"], &hosts), all(&["172.26.64.1"]));
        assert_eq!(of(&["172.26.64.1", "fd00:9::1"], &hosts), all(&["172.26.64.1"]));
        assert_eq!(
            of(&["10.0.0.1"], &hosts),
            all(&["172.26.80.1"]),
            "that is the router of a macvlan network"
        );
        assert_eq!(of(&["10.0.0.1"], &hosts[..2]), all(&["10.0.0.5"]), "there is no bridge yet");
        assert_eq!(of(&[], &hosts), all(&["172.26.80.1"]));
        assert_eq!(of(&[], &[]), all(&["172.26.80.1", "fd00::1"]));
    }

    #[test]
    fn a_network_that_others_use_is_shared() {
        let is_shared = |network: Network| {
            let (driver, own_network) = (DriverName::Docker, OwnNetworkOptions::default());
            NetworkPlan { driver, network, mode: None, own_network, ports: Vec::new(), plugins: None }
                .is_shared()
        };
        assert!(is_shared(Network::Host) && is_shared(Network::Group("/n".to_owned())));
        assert!(
            is_shared(Network::OfTask("a".to_owned())) && is_shared(Network::OfContainer("a".to_owned()))
        );
        assert!(!is_shared(Network::Own(None)) && !is_shared(Network::Private));
    }

    fn port(label: &str, value: i32, to: i32, host_ip: &str) -> pb::PortMapping {
        pb::PortMapping { label: label.to_owned(), value, to, host_ip: host_ip.to_owned() }
    }

    fn of_group() -> pb::Resources {
        let ports = vec![port("http", 20000, 8080, "10.0.0.1"), port("db", 20001, 0, "10.0.0.1")];
        pb::Resources { ports, ..Default::default() }
    }

    fn of_task() -> pb::Resources {
        let port = |label: &str, value| pb::NetworkPort { label: label.to_owned(), value };
        let network = pb::NetworkResource {
            ip: "10.0.0.1".to_owned(),
            reserved_ports: vec![port("http", 8088)],
            dynamic_ports: vec![port("db", 20001)],
            ..Default::default()
        };
        let allocated = pb::AllocatedTaskResources { networks: vec![network], ..Default::default() };
        pb::Resources { allocated_resources: Some(allocated), ..Default::default() }
    }

    fn of(
        driver: DriverName,
        network: &Network,
        options: &OwnNetworkOptions,
        resources: &pb::Resources,
    ) -> std::result::Result<Vec<pb::PortMapping>, String> {
        published(driver, network, options, Some(resources)).map_err(|error| error.to_string())
    }

    #[test]
    fn ports_and_port_map_are_those_of_dockers_driver() {
        use DriverName::{ContainerdDriver, Docker};
        let labels = |ports: &[&str]| OwnNetworkOptions {
            ports: ports.iter().map(|&label| label.to_owned()).collect(),
            ..Default::default()
        };
        let mapped = OwnNetworkOptions { port_map: [("http".to_owned(), 80)].into(), ..Default::default() };
        let same = OwnNetworkOptions { port_map: [("http".to_owned(), 0)].into(), ..Default::default() };
        let none = OwnNetworkOptions::default();
        let (own, group) = (Network::Own(None), Network::Group("/n".to_owned()));
        let all_mapped = vec![port("http", 8088, 80, "10.0.0.1"), port("db", 20001, 0, "10.0.0.1")];
        for driver in [ContainerdDriver, Docker] {
            assert_eq!(of(driver, &own, &labels(&["http"]), &of_group()).unwrap(), of_group().ports[..1]);
            assert_eq!(of(driver, &own, &none, &of_group()).unwrap(), []);
            assert_eq!(of(driver, &own, &mapped, &of_task()).unwrap(), all_mapped);
            let numbers = of(driver, &own, &same, &of_task()).unwrap();
            assert_eq!(numbers.iter().map(inside).collect::<Vec<_>>(), [8088, 20001], "as on the host");
            assert!(of(driver, &own, &labels(&["web"]), &of_group()).unwrap_err().contains("http, db"));
            assert!(of(driver, &own, &mapped, &of_group()).unwrap_err().contains("set `to`"));
            let nothing = of(driver, &own, &mapped, &pb::Resources::default()).unwrap_err();
            assert!(nothing.contains("port_map") && nothing.contains("network block"), "{nothing}");
        }
        let unmapped: Vec<_> = all_mapped.into_iter().map(|port| pb::PortMapping { to: 0, ..port }).collect();
        assert_eq!(of(Docker, &own, &none, &of_task()).unwrap(), unmapped);
        assert_eq!(of(ContainerdDriver, &own, &none, &of_task()).unwrap(), []);
        // Elsewhere none is published, whether or not there is one of that label.
        assert_eq!(of(Docker, &group, &labels(&["web"]), &of_group()).unwrap(), []);
        assert_eq!(of(Docker, &Network::Host, &labels(&["http"]), &of_group()).unwrap(), []);
        assert_eq!(of(Docker, &Network::Host, &none, &of_task()).unwrap(), []);
    }
}
