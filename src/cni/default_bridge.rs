//! The built-in network, which needs no file: a bridge of the host with addresses from its subnets, masqueraded, with
//! ports of the host forwarded to it. Made of the plugins that distributions have.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::attachment::check_interface;
use super::error::Error;
use super::network::{Network, Plugin, check_name};
use super::version::Version;

/// The operator's settings of the built-in network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DefaultNetwork {
    pub name: String,
    /// Name of the bridge, an interface of the host.
    pub bridge: String,
    /// Subnets in CIDR notation; a task gets an address of each.
    pub subnets: Vec<String>,
    /// Whether a task can reach itself by a port of the host.
    pub hairpin: bool,
    /// Directory in which the IPAM plugin keeps the addresses in use.
    pub leases: PathBuf,
}

impl DefaultNetwork {
    pub(super) fn network(&self) -> Result<Network, Error> {
        check_name("network", &self.name)?;
        check_interface(&self.bridge)?;
        let Self { name, bridge, subnets, hairpin, leases } = self;
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        let everywhere =
            |subnet: &String| json!({"dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" }});
        let mut routes: Vec<Value> = subnets.iter().map(everywhere).collect();
        routes.dedup();
        let plugins = [
            json!({
                "type": "bridge",
                "bridge": bridge,
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": hairpin,
                "capabilities": {"ips": true, "mac": true},
                "ipam": {"type": "host-local", "dataDir": leases, "ranges": ranges, "routes": routes},
            }),
            json!({"type": "firewall"}),
            json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        ];
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
        })
    }
}
