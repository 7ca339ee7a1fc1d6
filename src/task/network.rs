//! A task's network: which namespace it is in, how a network of the task's own is made, and how it is taken down again.
//!
//! Everything about a network of the task's own is in its bundle: the namespace is kept at `netns`, and by
//! `network.json` the CNI plugins are told to undo what they did. So it is found by the task's id alone, whatever was
//! cut off when.

#![expect(clippy::disallowed_methods, reason = "opens network namespaces of Nomad's and of the kernel's")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
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
use crate::config::{Bandwidth, Network, NetworkOptions, OwnNetworkOptions, Rate};
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
    network: Network,
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
    /// Settings of the resolver from the CNI plugins.
    pub(super) dns: cni::Dns,
    pub(super) driver_network: Option<DriverNetwork>,
}

impl Joined {
    fn at(namespace: NetNamespace, addresses: Vec<IpAddr>) -> Self {
        Self { namespace, addresses, dns: cni::Dns::default(), driver_network: None }
    }
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
        let own_network = options.own_network.clone();
        let plugins = match &network {
            Network::Own(name) => Some(settings.cni.network(name.as_deref()).await?),
            Network::OfTask(name) if *name == config.name => {
                return Err(Error::invalid(format!(
                    "the option network_mode can't be \"task:{name}\": that is this task itself"
                )));
            }
            _ => None,
        };
        let offered = config.resources.as_ref().map(|resources| &resources.ports[..]).unwrap_or_default();
        let ports = published(&own_network.ports, offered)?;
        Ok(Self { network, own_network, ports, plugins })
    }

    pub(super) fn is_the_hosts(&self) -> bool {
        self.network == Network::Host
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
                comes.map(drop).map_err(|error| error.context(of_task(name)))
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
                share(tasks, container, config, name).await.map_err(|error| error.context(of_task(name)))
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
            (Network::Own(_) | Network::Private, _) => Ok(Joined::at(NetNamespace::Own, Vec::new())),
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
        let AddResult { addresses, mac, dns, .. } = added;
        self.is_met(&plugins.name, &addresses, mac.as_deref())?;
        let driver_network = self.driver_network(name, &addresses)?;
        Ok(Joined { namespace: NetNamespace::At(path), addresses, dns, driver_network })
    }

    /// Returns the CNI capabilities that the network is asked for. A network refuses what none of its plugins takes;
    /// aliases are left out then, since they are also in the task's own files.
    fn capabilities(&self, plugins: &cni::Network) -> Capabilities {
        let OwnNetworkOptions { ports: _, ipv4, ipv6, mac, aliases, advertise_ipv6: _, bandwidth } =
            &self.own_network;
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
        if advertise_ipv6 && wanted.is_none() {
            let why = "the task's network has given it no IPv6 address";
            return Err(Error::invalid(format!("the option advertise_ipv6_address can't be true: {why}")));
        }
        let Some(&address) = wanted.or(addresses.first()) else { return Ok(None) };
        let ports = self.ports.iter().map(|port| (port.label.clone(), inside(port))).collect();
        Ok(Some(DriverNetwork { address, ports, auto_advertise: advertise_ipv6 || name.is_some() }))
    }
}

/// Returns the group's ports with these labels.
fn published(labels: &[String], offered: &[pb::PortMapping]) -> Result<Vec<pb::PortMapping>> {
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

fn of_task(name: &str) -> String {
    format!("network_mode = \"task:{name}\"")
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
