//! Whose network a task is in, and what it asks of one of its own. The names are those of Nomad's docker driver.
//!
//! Source of the facts: the CNI specification's `CONVENTIONS.md` (what the terms of a capability are).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomad_proto::driver as pb;
use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::namespaces::Namespaces;
use super::sysctl;
use crate::config::hclspec::{block, default, object, optional};
use crate::config::plugin::AllowedModes;
use crate::config::size::size;
use crate::config::{ConfigError, no_nulls, value};

const MODES: &str =
    "it must be \"none\", \"host\", \"bridge\", \"cni/<network>\" or \"task:<another task of the group>\"";
/// The lengths of a MAC address are those of the kernel's for Ethernet.
const MAC_BYTES: usize = 6;
/// What the plugin for bandwidth takes for a burst at most, in bytes: it counts bits in 32 bits.
const MOST_BURST_BYTES: u64 = u32::MAX as u64 / 8;

/// The options about a task's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NetworkOptions {
    /// None is what follows from the group and from `host_network`.
    pub mode: Option<NetworkMode>,
    pub wishes: Wishes,
}

/// What only a network of the task's own can give.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// Which of the group's ports are published, by their labels.
    pub ports: Vec<String>,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    /// As the kernel writes it.
    pub mac: Option<String>,
    pub aliases: Vec<String>,
    /// Nomad is told the address of version 6.
    pub advertise_ipv6: bool,
    pub bandwidth: Bandwidth,
}

/// In bytes, and bytes a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    /// What comes to the task.
    pub ingress: Option<Rate>,
    /// What it sends.
    pub egress: Option<Rate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub bytes_per_second: u64,
    pub burst_bytes: u64,
}

/// What `network_mode` can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    None,
    Host,
    Bridge,
    Cni(String),
    /// By the other task's name.
    Task(String),
}

/// Whose network a task is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// An empty one of its own.
    Private,
    /// That of the group, by the path of its namespace.
    Group(String),
    /// One of its own that CNI plugins connect: the built-in bridge, or that of a name.
    Own(Option<String>),
    /// That of another task of the same allocation.
    OfTask(String),
    Host,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    network_mode: Option<String>,
    ports: Option<Vec<Option<String>>>,
    ipv4_address: Option<String>,
    ipv6_address: Option<String>,
    mac_address: Option<String>,
    network_aliases: Option<Vec<Option<String>>>,
    advertise_ipv6_address: Option<bool>,
    bandwidth: Option<RawBandwidth>,
}

#[derive(Default, Deserialize)]
struct RawBandwidth {
    ingress_rate: Option<String>,
    ingress_burst: Option<String>,
    egress_rate: Option<String>,
    egress_burst: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    let terms = ["ingress_rate", "ingress_burst", "egress_rate", "egress_burst"];
    vec![
        ("network_mode", optional("network_mode", "string")),
        ("ports", optional("ports", "list(string)")),
        ("ipv4_address", optional("ipv4_address", "string")),
        ("ipv6_address", optional("ipv6_address", "string")),
        ("mac_address", optional("mac_address", "string")),
        ("network_aliases", optional("network_aliases", "list(string)")),
        ("advertise_ipv6_address", default("advertise_ipv6_address", "bool", "false")),
        ("bandwidth", block("bandwidth", object(terms.map(|term| (term, optional(term, "string")))))),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<NetworkOptions, ConfigError> {
        let Self {
            network_mode,
            ports,
            ipv4_address,
            ipv6_address,
            mac_address,
            network_aliases,
            advertise_ipv6_address,
            bandwidth,
        } = self;
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let wishes = Wishes {
            ports: no_nulls("ports", ports)?,
            ipv4: given(ipv4_address).map(|text| address("ipv4_address", text)).transpose()?,
            ipv6: given(ipv6_address).map(|text| address("ipv6_address", text)).transpose()?,
            mac: given(mac_address).map(mac).transpose()?,
            aliases: aliases(no_nulls("network_aliases", network_aliases)?)?,
            advertise_ipv6: advertise_ipv6_address.unwrap_or(false),
            bandwidth: bandwidth.unwrap_or_default().decode()?,
        };
        let options =
            NetworkOptions { mode: given(network_mode).map(NetworkMode::named).transpose()?, wishes };
        options.agrees()?;
        Ok(options)
    }
}

fn address<T>(option: &'static str, text: String) -> Result<T, ConfigError>
where
    T: Copy + std::str::FromStr,
    IpAddr: From<T>,
{
    match text.parse::<T>() {
        Ok(address) if !IpAddr::from(address).is_unspecified() && !IpAddr::from(address).is_loopback() => {
            Ok(address)
        }
        _ => {
            let kind = option.trim_end_matches("_address").replace("ip", "IP");
            Err(value(option, text, format!("it must be an {kind} address of the network, without a mask")))
        }
    }
}

fn mac(text: String) -> Result<String, ConfigError> {
    let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    let byte = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| is_byte(part));
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(byte).collect();
    match bytes.as_deref() {
        Some(bytes @ [first, ..]) if bytes.len() == MAC_BYTES && first & 1 == 0 => {
            Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
        }
        _ => Err(value(
            "mac_address",
            text,
            "it must be six pairs of hexadecimal digits, such as \"02:68:b3:29:da:98\", and no group address",
        )),
    }
}

fn aliases(names: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let checked = |name: String| match super::names::is_hostname(&name) {
        true => Ok(name),
        false => Err(value("network_aliases", name, "it must be a host's name: letters, digits and hyphens")),
    };
    names.into_iter().map(checked).collect()
}

impl RawBandwidth {
    fn decode(self) -> Result<Bandwidth, ConfigError> {
        let Self { ingress_rate, ingress_burst, egress_rate, egress_burst } = self;
        Ok(Bandwidth {
            ingress: rate("bandwidth.ingress_rate", ingress_rate, "bandwidth.ingress_burst", ingress_burst)?,
            egress: rate("bandwidth.egress_rate", egress_rate, "bandwidth.egress_burst", egress_burst)?,
        })
    }
}

/// Without a burst of its own, a second's worth may come at once.
fn rate(
    option: &'static str,
    rate: Option<String>,
    burst_option: &'static str,
    burst: Option<String>,
) -> Result<Option<Rate>, ConfigError> {
    let given = |option: &'static str, text: Option<String>, most: u64| {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
        match size(option, text.clone())? {
            bytes if bytes > 0 && bytes <= most => Ok(Some(bytes)),
            _ => Err(value(option, text, format!("it must be more than nothing, and at most {most} bytes"))),
        }
    };
    match (given(option, rate, u64::MAX / 8)?, given(burst_option, burst.clone(), MOST_BURST_BYTES)?) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(value(burst_option, burst.unwrap_or_default(), format!("it says nothing without {option}")))
        }
        (Some(bytes_per_second), burst) => {
            let burst_bytes = burst.unwrap_or_else(|| bytes_per_second.min(MOST_BURST_BYTES));
            Ok(Some(Rate { bytes_per_second, burst_bytes }))
        }
    }
}

impl NetworkMode {
    fn named(mode: String) -> Result<Self, ConfigError> {
        match mode.as_str() {
            "none" => return Ok(Self::None),
            "host" => return Ok(Self::Host),
            "bridge" => return Ok(Self::Bridge),
            _ => {}
        }
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        };
        match mode.split_once(['/', ':']) {
            Some(("cni", name)) if mode.starts_with("cni/") && is_name(name) => {
                Ok(Self::Cni(name.to_owned()))
            }
            Some(("task", name)) if mode.starts_with("task:") && !name.is_empty() => {
                Ok(Self::Task(name.to_owned()))
            }
            Some(("container", _)) => Err(value(
                "network_mode",
                mode,
                "a task shares the network of another one of its group: write \"task:<its name>\"",
            )),
            _ => Err(value("network_mode", mode, MODES)),
        }
    }

    fn is_connected(&self) -> bool {
        matches!(self, Self::Bridge | Self::Cni(_))
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Host => f.write_str("host"),
            Self::Bridge => f.write_str("bridge"),
            Self::Cni(name) => write!(f, "cni/{name}"),
            Self::Task(name) => write!(f, "task:{name}"),
        }
    }
}

impl Wishes {
    /// The first option that asks for something, with what it asks for.
    fn first(&self) -> Option<(&'static str, String)> {
        let Self { ports, ipv4, ipv6, mac, aliases, advertise_ipv6, bandwidth } = self;
        let list = |list: &[String]| (!list.is_empty()).then(|| list.join(", "));
        [
            ("ports", list(ports)),
            ("ipv4_address", ipv4.map(|address| address.to_string())),
            ("ipv6_address", ipv6.map(|address| address.to_string())),
            ("mac_address", mac.clone()),
            ("network_aliases", list(aliases)),
            ("advertise_ipv6_address", advertise_ipv6.then(|| "true".to_owned())),
            ("bandwidth", (*bandwidth != Bandwidth::default()).then(|| "{..}".to_owned())),
        ]
        .into_iter()
        .find_map(|(option, asked)| Some((option, asked?)))
    }
}

impl NetworkOptions {
    fn agrees(&self) -> Result<(), ConfigError> {
        if self.mode.as_ref().is_some_and(NetworkMode::is_connected) {
            return Ok(());
        }
        let Some((option, asked)) = self.wishes.first() else { return Ok(()) };
        let mode = self
            .mode
            .as_ref()
            .map_or("no network_mode".to_owned(), |mode| format!("network_mode = \"{mode}\""));
        let why = format!(
            "it needs a network of the task's own, network_mode = \"bridge\" or \"cni/<network>\", and the task has {mode}; \
             in a group's network it is the group's network block that says it"
        );
        Err(value(option, asked, why))
    }

    pub(super) fn permitted_by(&self, allowed: &AllowedModes) -> Result<(), ConfigError> {
        match self.mode {
            Some(NetworkMode::Host) => {
                AllowedModes::permit_host("network_mode", "host", "network", &allowed.network)
            }
            _ => Ok(()),
        }
    }

    /// Refuses what the options of other groups say otherwise.
    pub(super) fn agree_with(&self, namespaces: &Namespaces) -> Result<(), ConfigError> {
        match &self.mode {
            Some(mode) if namespaces.host_network && *mode != NetworkMode::Host => Err(value(
                "network_mode",
                mode.to_string(),
                "with host_network = true the task is in the host's network: leave out one of the two",
            )),
            _ => Ok(()),
        }
    }

    /// Whose network the task is in, beside what Nomad made for its group, if anything.
    ///
    /// # Errors
    /// Names the option that doesn't go with that network.
    pub(super) fn network(
        &self,
        namespaces: &Namespaces,
        group: Option<&pb::NetworkIsolationSpec>,
    ) -> Result<Network, ConfigError> {
        use pb::network_isolation_spec::NetworkIsolationMode as Groups;
        let made = group.map(|group| group.path.as_str()).filter(|path| !path.is_empty());
        let refuse = |option, asked: String| {
            let why = "the group has a network of its own, by network { mode = \"bridge\" } or a CNI network: leave out one \
                       of the two";
            Err(value(option, asked, why))
        };
        let network = match (made, &self.mode) {
            (Some(_), _) if namespaces.host_network => return refuse("host_network", "true".to_owned()),
            (Some(_), Some(mode)) => return refuse("network_mode", mode.to_string()),
            (Some(path), None) => Network::Group(path.to_owned()),
            (None, _) if namespaces.host_network => Network::Host,
            (None, Some(NetworkMode::None)) => Network::Private,
            (None, Some(NetworkMode::Host)) => Network::Host,
            (None, Some(NetworkMode::Bridge)) => Network::Own(None),
            (None, Some(NetworkMode::Cni(name))) => Network::Own(Some(name.clone())),
            (None, Some(NetworkMode::Task(name))) => Network::OfTask(name.clone()),
            (None, None) if group.is_some_and(|group| group.mode() == Groups::Host) => Network::Host,
            (None, None) => Network::Private,
        };
        sysctl::belong_to(namespaces, &network, self.mode == Some(NetworkMode::Host))?;
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::TaskOptions;
    use crate::config::task::tests::{decode, refusal};

    fn of(options: &Value) -> TaskOptions {
        let mut all = json!({"image": "redis"});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        decode(&all).unwrap()
    }

    fn refused(options: &Value, words: &[&str]) {
        let mut all = json!({"image": "redis"});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let error = decode(&all).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }

    fn group(mode: pb::network_isolation_spec::NetworkIsolationMode, path: &str) -> pb::NetworkIsolationSpec {
        pb::NetworkIsolationSpec { mode: mode.into(), path: path.to_owned(), ..Default::default() }
    }

    #[test]
    fn the_network_is_the_groups_the_hosts_or_an_empty_one() {
        use pb::network_isolation_spec::NetworkIsolationMode::{Group, Host, None as Without};
        let (own, host) = (of(&json!({})), of(&json!({"host_network": true})));
        let made = group(Group, "/var/run/netns/a");
        assert_eq!(own.network(None).unwrap(), Network::Private);
        assert_eq!(own.network(Some(&group(Without, ""))).unwrap(), Network::Private);
        assert_eq!(own.network(Some(&made)).unwrap(), Network::Group("/var/run/netns/a".to_owned()));
        assert_eq!(own.network(Some(&group(Host, ""))).unwrap(), Network::Host);
        assert_eq!(host.network(None).unwrap(), Network::Host);
        let error = host.network(Some(&made)).unwrap_err().to_string();
        assert!(error.contains("host_network") && error.contains("mode = \"bridge\""), "{error}");
    }

    #[test]
    fn a_mode_counts_where_the_group_has_no_network() {
        use pb::network_isolation_spec::NetworkIsolationMode::{Group, Host};
        for (mode, network) in [
            ("none", Network::Private),
            ("host", Network::Host),
            ("bridge", Network::Own(None)),
            ("cni/web.1", Network::Own(Some("web.1".to_owned()))),
            ("task:db", Network::OfTask("db".to_owned())),
        ] {
            let options = of(&json!({"network_mode": mode}));
            assert_eq!(options.network(None).unwrap(), network);
            assert_eq!(options.network(Some(&group(Host, ""))).unwrap(), network);
            let error = options.network(Some(&group(Group, "/n"))).unwrap_err().to_string();
            assert!(error.contains("network_mode") && error.contains("mode = \"bridge\""), "{error}");
        }
        for wrong in ["Host", "cni/", "cni/../x", "cni:x", "task/", "task:", "nat", "cni/-x"] {
            assert!(refusal("network_mode", json!(wrong)).contains("cni/<network>"));
        }
        assert!(refusal("network_mode", json!("container:db")).contains("task:"));
    }

    #[test]
    fn two_options_do_not_say_two_networks() {
        refused(&json!({"network_mode": "bridge", "host_network": true}), &["network_mode", "host_network"]);
        assert_eq!(
            of(&json!({"network_mode": "host", "host_network": true})).network(None).unwrap(),
            Network::Host
        );
        for mode in [json!(null), json!("none"), json!("host"), json!("task:db")] {
            for (option, asked) in [
                ("ports", json!(["http"])),
                ("ipv4_address", json!("10.0.0.5")),
                ("ipv6_address", json!("fd00::5")),
                ("mac_address", json!("02:00:00:00:00:01")),
                ("network_aliases", json!(["db"])),
                ("advertise_ipv6_address", json!(true)),
                ("bandwidth", json!({"egress_rate": "1m"})),
            ] {
                let words = [option, mode.as_str().unwrap_or("no network_mode")];
                refused(&json!({"network_mode": mode, option: asked}), &words);
            }
        }
    }

    #[test]
    fn what_is_asked_of_a_network_is_checked() {
        let wishes = of(&json!({
            "network_mode": "bridge", "ports": ["http"], "ipv4_address": "10.0.0.5", "ipv6_address": "fd00::5",
            "mac_address": "02-68-B3-29-DA-98", "network_aliases": ["db-1"], "advertise_ipv6_address": true,
            "bandwidth": {"ingress_rate": "1m", "egress_rate": "2k", "egress_burst": "64k"},
        }))
        .network
        .wishes;
        assert_eq!(wishes.mac.as_deref(), Some("02:68:b3:29:da:98"));
        let rate = |bytes_per_second, burst_bytes| Some(Rate { bytes_per_second, burst_bytes });
        let bandwidth = Bandwidth { ingress: rate(1 << 20, 1 << 20), egress: rate(2 << 10, 64 << 10) };
        assert_eq!(wishes.bandwidth, bandwidth);
        assert_eq!((wishes.ipv4, wishes.ipv6), ("10.0.0.5".parse().ok(), "fd00::5".parse().ok()));
        for (option, wrong) in [
            ("ports", json!([null])),
            ("ipv4_address", json!("10.0.0.5/24")),
            ("ipv4_address", json!("fd00::5")),
            ("ipv4_address", json!("0.0.0.0")),
            ("ipv6_address", json!("10.0.0.5")),
            ("ipv6_address", json!("::1")),
            ("mac_address", json!("01:00:5e:00:00:01")),
            ("mac_address", json!("02:00")),
            ("mac_address", json!("02:00:00:00:00:+1")),
            ("network_aliases", json!(["a b"])),
            ("bandwidth", json!({"ingress_rate": "fast"})),
            ("bandwidth", json!({"ingress_rate": "0"})),
            ("bandwidth", json!({"ingress_burst": "1m"})),
            ("bandwidth", json!({"egress_rate": "1m", "egress_burst": "1g"})),
        ] {
            refused(&json!({"network_mode": "bridge", option: wrong}), &[option]);
        }
    }

    #[test]
    fn the_hosts_network_is_the_operators_to_allow() {
        let none = AllowedModes { network: Vec::new(), ..AllowedModes::default() };
        let host = of(&json!({"network_mode": "host"})).network;
        let error = host.permitted_by(&none).unwrap_err().to_string();
        assert!(error.contains("network_mode") && error.contains("allowed_modes.network"), "{error}");
        host.permitted_by(&AllowedModes::default()).unwrap();
        of(&json!({"network_mode": "bridge"})).network.permitted_by(&none).unwrap();
    }
}
