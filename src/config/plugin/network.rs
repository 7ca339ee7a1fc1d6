//! The plugin block's options about tasks' own networks. Those of the bridge have the names of Nomad's client options.

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::absolute;
use crate::config::hclspec::{default, optional};
use crate::config::{ConfigError, DriverName, duration, value};

/// Directories where Nomad, and the packages of distributions, install CNI plugins.
const CNI_PATH: &str = "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni";
/// Nomad's own directory, so that one file configures a network for groups and for tasks.
const CNI_CONFIG_DIR: &str = "/opt/cni/config";
const CNI_TIMEOUT: &str = "30s";
const EXAMPLE: &str = "172.26.80.0/20";
/// The kernel's maximum length of an interface's name, in bytes.
const INTERFACE_NAME_BYTES: usize = 15;
/// Minimum number of host bits of a subnet: one address each for the network, the bridge, the broadcast and a task.
const MIN_HOST_BITS: u32 = 2;

/// Settings of tasks' own networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PluginNetworks {
    /// Directories of CNI plugins; the first one that has a plugin wins.
    pub cni_path: Vec<PathBuf>,
    /// Directory of CNI network configurations.
    pub cni_config_dir: PathBuf,
    /// Maximum run time of a CNI plugin.
    pub cni_timeout: Duration,
    pub bridge: Bridge,
}

/// The built-in bridge network, which needs no configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bridge {
    pub name: String,
    /// The IPv4 subnet and, if configured, the IPv6 subnet, in CIDR notation.
    pub subnets: Vec<String>,
    pub hairpin: bool,
}

impl Bridge {
    /// Returns the bridge's own addresses: the first one of each subnet, as the CNI plugins choose it.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let first = |subnet: &String| match subnet.split('/').next()?.parse().ok()? {
            IpAddr::V4(network) => Some(IpAddr::V4(Ipv4Addr::from_bits(network.to_bits().checked_add(1)?))),
            IpAddr::V6(network) => Some(IpAddr::V6(Ipv6Addr::from_bits(network.to_bits().checked_add(1)?))),
        };
        self.subnets.iter().filter_map(first).collect()
    }
}

#[derive(Deserialize)]
pub(super) struct Raw {
    cni_path: Option<String>,
    cni_config_dir: Option<String>,
    cni_timeout: Option<String>,
    bridge_network_name: Option<String>,
    bridge_network_subnet: Option<String>,
    bridge_network_subnet_ipv6: Option<String>,
    bridge_network_hairpin_mode: Option<bool>,
}

pub(super) fn schema(driver: DriverName) -> Vec<(&'static str, Spec)> {
    let text = |name: &'static str, value: &str| (name, default(name, "string", &format!("\"{value}\"")));
    vec![
        text("cni_path", CNI_PATH),
        text("cni_config_dir", CNI_CONFIG_DIR),
        text("cni_timeout", CNI_TIMEOUT),
        text("bridge_network_name", driver.bridge()),
        text("bridge_network_subnet", driver.subnet()),
        ("bridge_network_subnet_ipv6", optional("bridge_network_subnet_ipv6", "string")),
        ("bridge_network_hairpin_mode", default("bridge_network_hairpin_mode", "bool", "false")),
    ]
}

impl Raw {
    pub(super) fn decode(self, driver: DriverName) -> Result<PluginNetworks, ConfigError> {
        let Self {
            cni_path,
            cni_config_dir,
            cni_timeout,
            bridge_network_name,
            bridge_network_subnet,
            bridge_network_subnet_ipv6,
            bridge_network_hairpin_mode,
        } = self;
        let given = |text: Option<String>, default_value: &str| {
            text.filter(|text| !text.is_empty()).unwrap_or_else(|| default_value.to_owned())
        };
        let paths = given(cni_path, CNI_PATH);
        let paths = paths
            .split(':')
            .filter(|path| !path.is_empty())
            .map(|path| absolute("cni_path", Some(path.to_owned()), ""));
        let ipv4 =
            subnet::<Ipv4Addr>("bridge_network_subnet", given(bridge_network_subnet, driver.subnet()))?;
        let ipv6 = bridge_network_subnet_ipv6.filter(|text| !text.is_empty());
        let ipv6 = ipv6.map(|text| subnet::<Ipv6Addr>("bridge_network_subnet_ipv6", text));
        Ok(PluginNetworks {
            cni_path: paths.collect::<Result<_, _>>()?,
            cni_config_dir: absolute("cni_config_dir", cni_config_dir, CNI_CONFIG_DIR)?,
            cni_timeout: duration("cni_timeout", given(cni_timeout, CNI_TIMEOUT))?,
            bridge: Bridge {
                name: interface(given(bridge_network_name, driver.bridge()))?,
                subnets: iter::once(Ok(ipv4)).chain(ipv6).collect::<Result<_, _>>()?,
                hairpin: bridge_network_hairpin_mode.unwrap_or(false),
            },
        })
    }
}

fn interface(name: String) -> Result<String, ConfigError> {
    let is_name = name.len() <= INTERFACE_NAME_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !matches!(name.as_str(), "." | ".." | "lo" | "all" | "default");
    if is_name {
        return Ok(name);
    }
    let why =
        format!("it must be an interface name of at most {INTERFACE_NAME_BYTES} letters, digits and hyphens");
    Err(value("bridge_network_name", name, why))
}

fn subnet<T>(option: &'static str, text: String) -> Result<String, ConfigError>
where
    T: std::str::FromStr,
    IpAddr: From<T>,
{
    let parts = text.split_once('/').and_then(|(address, prefix)| {
        Some((IpAddr::from(address.parse::<T>().ok()?), prefix.parse::<u32>().ok()?))
    });
    let bits = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let has_room = |(address, prefix): &(IpAddr, u32)| (1..=bits(address) - MIN_HOST_BITS).contains(prefix);
    let Some((address, prefix)) = parts.filter(has_room) else {
        let why = format!(
            "it must be a subnet such as {EXAMPLE:?}, of the option's IP version, with room for a task"
        );
        return Err(value(option, text, why));
    };
    let host_bits = bits(&address) - prefix;
    let number = match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    };
    if number.trailing_zeros() < host_bits {
        return Err(value(
            option,
            text,
            format!("its last {host_bits} bits are not 0: name the network, not an address in it"),
        ));
    }
    Ok(format!("{address}/{prefix}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::PluginConfig;

    fn decode(options: &serde_json::Value) -> Result<PluginNetworks, ConfigError> {
        let mut all = json!({"containerd_runtime": "io.containerd.runc.v2"});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let all = rmp_serde::to_vec_named(&all).unwrap();
        PluginConfig::decode(DriverName::ContainerdDriver, &all).map(|config| config.unwrap().networks)
    }

    #[test]
    fn network_defaults_differ_from_nomads_bridge() {
        let networks = decode(&json!({"cni_path": null, "cni_config_dir": ""})).unwrap();
        assert_eq!(
            networks.cni_path,
            ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from)
        );
        assert_eq!(networks.cni_config_dir, PathBuf::from("/opt/cni/config"));
        let bridge = Bridge {
            name: "nomad-tasks".to_owned(),
            subnets: vec!["172.26.80.0/20".to_owned()],
            hairpin: false,
        };
        assert_eq!((networks.bridge, networks.cni_timeout), (bridge, Duration::from_secs(30)));
    }

    #[test]
    fn an_invalid_network_is_refused_by_name() {
        let networks = decode(&json!({
            "cni_path": "/a::/b", "bridge_network_name": "br0", "bridge_network_subnet": "10.1.0.0/16",
            "bridge_network_subnet_ipv6": "fd00:1::/64", "bridge_network_hairpin_mode": true, "cni_timeout": "5s",
        }))
        .unwrap();
        assert_eq!(networks.cni_path, ["/a", "/b"].map(PathBuf::from));
        assert_eq!(networks.bridge.subnets, ["10.1.0.0/16", "fd00:1::/64"]);
        let own: [IpAddr; 2] = ["10.1.0.1".parse().unwrap(), "fd00:1::1".parse().unwrap()];
        assert_eq!(networks.bridge.addresses(), own);
        for (option, wrong) in [
            ("cni_path", json!("bin:/b")),
            ("cni_config_dir", json!("config")),
            ("cni_timeout", json!("0s")),
            ("bridge_network_name", json!("much-too-long-a-name")),
            ("bridge_network_name", json!("a/b")),
            ("bridge_network_name", json!("lo")),
            ("bridge_network_subnet", json!("10.0.0.0")),
            ("bridge_network_subnet", json!("10.0.0.0/31")),
            ("bridge_network_subnet", json!("10.0.0.0/0")),
            ("bridge_network_subnet", json!("10.0.0.128/24")),
            ("bridge_network_subnet", json!("fd00::/64")),
            ("bridge_network_subnet_ipv6", json!("10.0.0.0/8")),
            ("bridge_network_subnet_ipv6", json!("fd00::1/64")),
            ("bridge_network_subnet_ipv6", json!("fd00::/127")),
        ] {
            let error = decode(&json!({option: wrong})).unwrap_err().to_string();
            assert!(error.contains(option), "{error}");
        }
    }
}
