//! The built-in network, which needs no file: a bridge of the host with addresses from its subnets, masqueraded, with
//! ports of the host forwarded to it. Made of the plugins that distributions have, and of rules of the driver's own
//! where it can make them.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::attachment::check_interface;
use super::error::Error;
use super::network::{Network, Plugin, check_name};
use super::rules::{PacketFilter, RuleSet};
use super::version::Version;

/// The operator's settings of the built-in network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DefaultNetwork {
    pub name: String,
    /// Name of the bridge, an interface of the host.
    pub bridge: String,
    /// Subnets in CIDR notation; a task gets an address of each.
    pub subnets: Vec<String>,
    /// Addresses that the bridge itself is to have, one of each subnet.
    pub addresses: Vec<IpAddr>,
    /// Whether a task can reach itself by a port of the host.
    pub hairpin: bool,
    /// Directory in which the IPAM plugin keeps the addresses in use.
    pub leases: PathBuf,
}

impl DefaultNetwork {
    /// Checks that none of the bridge's addresses is one of another interface, by the addresses of all interfaces.
    /// Of two bridges with one subnet, as of two drivers of a node, the kernel would send to one alone.
    ///
    /// # Errors
    /// Names the option, the interface and the address.
    pub(super) fn check_addresses(&self, all: &[(String, IpAddr)]) -> Result<(), Error> {
        let others =
            |(name, address): &&(String, IpAddr)| *name != self.bridge && self.addresses.contains(address);
        let Some((name, address)) = all.iter().find(others) else { return Ok(()) };
        let what = if address.is_ipv6() {
            "the plugin option bridge_network_subnet_ipv6"
        } else {
            "the plugin option bridge_network_subnet"
        };
        let is_same = |subnet: &&String| subnet.contains(':') == address.is_ipv6();
        Err(Error::Taken {
            what,
            value: self.subnets.iter().find(is_same).cloned().unwrap_or_default(),
            why: format!(
                "the interface {name} of the host has its first address, {address}, which the bridge {} is to have; give \
                 each bridge a subnet of its own, or delete the interface if nothing uses it",
                self.bridge
            ),
        })
    }

    /// Returns the rule sets of its subnets.
    ///
    /// # Errors
    /// As [`PacketFilter::sets`].
    pub(super) async fn rule_sets(&self, packet_filter: &PacketFilter) -> Result<Vec<RuleSet>, Error> {
        packet_filter.sets(&self.name, &self.bridge, &self.subnets).await
    }

    /// Returns the network with these rules. Without any, its plugins make rules for each container.
    ///
    /// # Errors
    /// Names what can't be a name of a network or of an interface.
    pub(super) fn network(&self, rules: Vec<RuleSet>) -> Result<Network, Error> {
        check_name("network", &self.name)?;
        check_interface(&self.bridge)?;
        let Self { name, bridge, subnets, addresses: _, hairpin, leases } = self;
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        let everywhere =
            |subnet: &String| json!({"dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" }});
        let mut routes: Vec<Value> = subnets.iter().map(everywhere).collect();
        routes.dedup();
        let by_plugins = rules.is_empty();
        let mut plugins = vec![
            json!({
                "type": "bridge",
                "bridge": bridge,
                "isGateway": true,
                "ipMasq": by_plugins,
                "hairpinMode": hairpin,
                "capabilities": {"ips": true, "mac": true},
                "ipam": {"type": "host-local", "dataDir": leases, "ranges": ranges, "routes": routes},
            }),
            json!({"type": "firewall"}),
            json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        ];
        plugins.retain(|plugin| by_plugins || plugin["type"] != "firewall");
        let origin = "the driver's own".to_owned();
        let plugin = |config: Value| {
            let config: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
            let mut plugin =
                Plugin::new(config).map_err(|why| Error::Config { origin: origin.clone(), why })?;
            plugin.idle_without = match plugin.kind.as_str() {
                "portmap" => Some("portMappings".to_owned()),
                "bandwidth" => Some("bandwidth".to_owned()),
                _ => None,
            };
            Ok(plugin)
        };
        Ok(Network {
            name: name.clone(),
            plugins: plugins.into_iter().map(plugin).collect::<Result<_, _>>()?,
            origin,
            // Debian 12's plugins speak the first of these.
            versions: vec![Version::WITHOUT_FAMILY, Version::WITH_STATUS],
            // Debian 12's portmap looks for rules of version 6, though the task has no such address.
            disable_check: true,
            rules,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_has_no_address_of_another_interface() {
        let network = DefaultNetwork {
            name: "nomad-docker-docker".to_owned(),
            bridge: "nomad-docker".to_owned(),
            subnets: vec!["172.26.96.0/20".to_owned(), "fd00:1::/64".to_owned()],
            addresses: ["172.26.96.1", "fd00:1::1"].map(|address| address.parse().unwrap()).to_vec(),
            hairpin: false,
            leases: "/run/x/leases".into(),
        };
        let check = |interface: &str, address: &str| {
            let all = [("lo", "127.0.0.1"), (interface, address)];
            let all = all.map(|(name, address)| (name.to_owned(), address.parse::<IpAddr>().unwrap()));
            network.check_addresses(&all)
        };
        check("nomad-docker", "172.26.96.1").unwrap();
        check("eth0", "10.0.0.5").unwrap();
        let error = check("nomad-tasks", "172.26.96.1").unwrap_err();
        assert!(error.is_transient(), "the other interface may go");
        let error = error.to_string();
        for words in
            ["bridge_network_subnet \"172.26.96.0/20\"", "nomad-tasks", "172.26.96.1", "nomad-docker"]
        {
            assert!(error.contains(words), "{error}");
        }
        let error = check("nomad-tasks", "fd00:1::1").unwrap_err().to_string();
        assert!(error.contains("bridge_network_subnet_ipv6 \"fd00:1::/64\""), "{error}");
    }
}
