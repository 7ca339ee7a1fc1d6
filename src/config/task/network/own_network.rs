//! The job's options for a network of the task's own. The names are those of Nomad's docker driver, and `static_ips` of
//! its podman driver.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::bandwidth::{self, Bandwidth};
use crate::config::hclspec::{default, optional};
use crate::config::number::Number;
use crate::config::task::names;
use crate::config::{ConfigError, reject_nulls, value};

/// Length of an Ethernet MAC address, in bytes.
const MAC_BYTES: usize = 6;
/// Options that docker's driver takes for a task in any network, though they have an effect in one of its own alone.
pub(super) const IDLE_ELSEWHERE: [&str; 4] = ["ports", "port_map", "advertise_ipv6_address", "mac_address"];

/// Options that only a network of the task's own can fulfil.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OwnNetworkOptions {
    /// Labels of the group's ports that are published.
    pub ports: Vec<String>,
    /// Numbers in the task of ports of the task's own `resources { network }`, by label; 0 for the number on the host.
    pub port_map: BTreeMap<String, u16>,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    /// MAC address in the kernel's notation.
    pub mac: Option<String>,
    pub aliases: Vec<String>,
    /// `true` to tell Nomad the IPv6 address, not the IPv4 one.
    pub advertise_ipv6: bool,
    pub bandwidth: Bandwidth,
}

/// A block of `port_map`: numbers of ports by their labels. An unset variable makes it, or a number, null.
type RawPortMap = Option<BTreeMap<String, Option<Number>>>;

#[derive(Deserialize)]
pub(super) struct Raw {
    ports: Option<Vec<Option<String>>>,
    port_map: Option<Vec<RawPortMap>>,
    ipv4_address: Option<String>,
    ipv6_address: Option<String>,
    static_ips: Option<Vec<Option<String>>>,
    mac_address: Option<String>,
    static_mac: Option<String>,
    network_aliases: Option<Vec<Option<String>>>,
    advertise_ipv6_address: Option<bool>,
    bandwidth: Option<bandwidth::Raw>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("ports", optional("ports", "list(string)")),
        ("port_map", optional("port_map", "list(map(number))")),
        ("ipv4_address", optional("ipv4_address", "string")),
        ("ipv6_address", optional("ipv6_address", "string")),
        ("static_ips", optional("static_ips", "list(string)")),
        ("mac_address", optional("mac_address", "string")),
        ("static_mac", optional("static_mac", "string")),
        ("network_aliases", optional("network_aliases", "list(string)")),
        ("advertise_ipv6_address", default("advertise_ipv6_address", "bool", "false")),
        ("bandwidth", bandwidth::schema()),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<OwnNetworkOptions, ConfigError> {
        let Self {
            ports,
            port_map,
            ipv4_address,
            ipv6_address,
            static_ips,
            mac_address,
            static_mac,
            network_aliases,
            advertise_ipv6_address,
            bandwidth,
        } = self;
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let mut ipv4 = given(ipv4_address).map(|text| address("ipv4_address", text)).transpose()?;
        let mut ipv6 = given(ipv6_address).map(|text| address("ipv6_address", text)).transpose()?;
        for text in reject_nulls("static_ips", static_ips)? {
            match address::<IpAddr>("static_ips", text)? {
                IpAddr::V4(one) => set_once("ipv4_address", &mut ipv4, one)?,
                IpAddr::V6(one) => set_once("ipv6_address", &mut ipv6, one)?,
            }
        }
        Ok(OwnNetworkOptions {
            ports: reject_nulls("ports", ports)?,
            port_map: port_numbers(port_map)?,
            ipv4,
            ipv6,
            mac: mac_of(given(mac_address), given(static_mac))?,
            aliases: aliases(reject_nulls("network_aliases", network_aliases)?)?,
            advertise_ipv6: advertise_ipv6_address.unwrap_or(false),
            bandwidth: bandwidth.unwrap_or_default().decode()?,
        })
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
            let kind = match option {
                "ipv4_address" => "IPv4",
                "ipv6_address" => "IPv6",
                _ => "IP",
            };
            Err(value(option, text, format!("it must be an {kind} address of the network, without a mask")))
        }
    }
}

/// Sets an address from `static_ips`: the task has one of each IP version.
fn set_once<T>(other: &'static str, place: &mut Option<T>, address: T) -> Result<(), ConfigError>
where
    T: Copy + PartialEq,
    IpAddr: From<T>,
{
    match place.replace(address) {
        Some(earlier) if earlier != address => Err(value(
            "static_ips",
            IpAddr::from(address).to_string(),
            format!(
                "the task has {} already, by this option or {other}: it can have one address of each IP version",
                IpAddr::from(earlier)
            ),
        )),
        _ => Ok(()),
    }
}

/// Decodes `port_map`, whose blocks count as one, as in docker's driver.
fn port_numbers(blocks: Option<Vec<RawPortMap>>) -> Result<BTreeMap<String, u16>, ConfigError> {
    let null = "its value is null; is a variable in it unset?";
    let blocks = blocks.unwrap_or_default().into_iter();
    let blocks: Vec<_> =
        blocks.map(|block| block.ok_or_else(|| value("port_map", "null", null))).collect::<Result<_, _>>()?;
    let number = |(label, number): (String, Option<Number>)| {
        let Some(number) = number else {
            return Err(value("port_map", label, null));
        };
        let number = number.within("port_map", 0, u16::MAX.into())?;
        Ok((label, u16::try_from(number).unwrap_or_default()))
    };
    blocks.into_iter().flatten().map(number).collect()
}

/// Decodes the MAC address from docker's option or podman's.
fn mac_of(mac_address: Option<String>, static_mac: Option<String>) -> Result<Option<String>, ConfigError> {
    let docker = mac_address.map(|text| mac("mac_address", text)).transpose()?;
    let podman = static_mac.map(|text| mac("static_mac", text)).transpose()?;
    match (docker, podman) {
        (Some(docker), Some(podman)) if docker != podman => {
            Err(ConfigError::Conflict { option: "mac_address", other: "static_mac" })
        }
        (docker, podman) => Ok(docker.or(podman)),
    }
}

fn mac(option: &'static str, text: String) -> Result<String, ConfigError> {
    let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    let byte = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| is_byte(part));
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(byte).collect();
    match bytes.as_deref() {
        Some(bytes @ [first, ..]) if bytes.len() == MAC_BYTES && first & 1 == 0 => {
            Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
        }
        _ => Err(value(
            option,
            text,
            "it must be six pairs of hexadecimal digits, such as \"02:68:b3:29:da:98\", and not a multicast address",
        )),
    }
}

fn aliases(names: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let checked = |name: String| match names::is_hostname(&name) {
        true => Ok(name),
        false => Err(value(
            "network_aliases",
            name,
            "it must be a host name: letters, digits, hyphens and underscores",
        )),
    };
    names.into_iter().map(checked).collect()
}

impl OwnNetworkOptions {
    /// Returns the options that are set, with their values.
    pub(super) fn set(&self) -> Vec<(&'static str, String)> {
        let Self { ports, port_map, ipv4, ipv6, mac, aliases, advertise_ipv6, bandwidth } = self;
        let list = |list: &[String]| (!list.is_empty()).then(|| list.join(", "));
        let mapped: Vec<_> = port_map.iter().map(|(label, port)| format!("{label} = {port}")).collect();
        let all = [
            ("ports", list(ports)),
            ("port_map", list(&mapped)),
            ("ipv4_address", ipv4.map(|address| address.to_string())),
            ("ipv6_address", ipv6.map(|address| address.to_string())),
            ("mac_address", mac.clone()),
            ("network_aliases", list(aliases)),
            ("advertise_ipv6_address", advertise_ipv6.then(|| "true".to_owned())),
            ("bandwidth", (*bandwidth != Bandwidth::default()).then(|| "{..}".to_owned())),
        ];
        all.into_iter().filter_map(|(option, requested)| Some((option, requested?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Rate;
    use super::super::tests::{of, refused};
    use super::*;

    #[test]
    fn own_network_options_are_validated() {
        let own_network = of(&json!({
            "network_mode": "bridge", "ports": ["http"], "ipv4_address": "10.0.0.5", "ipv6_address": "fd00::5",
            "mac_address": "02-68-B3-29-DA-98", "network_aliases": ["db-1"], "advertise_ipv6_address": true,
            "bandwidth": {"ingress_rate": "1m", "egress_rate": "2k", "egress_burst": "64k"},
        }))
        .network
        .own_network;
        assert_eq!(own_network.mac.as_deref(), Some("02:68:b3:29:da:98"));
        let by_podman = json!({"network_mode": "bridge", "static_mac": "02:68:b3:29:da:98"});
        assert_eq!(of(&by_podman).network.own_network.mac, own_network.mac);
        let mut two = by_podman;
        two["mac_address"] = json!("02:68:b3:29:da:99");
        refused(&two, &["mac_address", "static_mac"]);
        let rate = |bytes_per_second, burst_bytes| Some(Rate { bytes_per_second, burst_bytes });
        let bandwidth = Bandwidth { ingress: rate(1 << 20, 1 << 20), egress: rate(2 << 10, 64 << 10) };
        assert_eq!(own_network.bandwidth, bandwidth);
        assert_eq!((own_network.ipv4, own_network.ipv6), ("10.0.0.5".parse().ok(), "fd00::5".parse().ok()));
        for (option, wrong) in [
            ("ports", json!([null])),
            ("ipv4_address", json!("10.0.0.5/24")),
            ("ipv4_address", json!("fd00::5")),
            ("ipv4_address", json!("0.0.0.0")),
            ("ipv6_address", json!("10.0.0.5")),
            ("ipv6_address", json!("::1")),
            ("mac_address", json!("01:00:5e:00:00:01")),
            ("mac_address", json!("02:00")),
            ("static_mac", json!("02:00")),
            ("mac_address", json!("02:00:00:00:00:+1")),
            ("network_aliases", json!(["a b"])),
            ("bandwidth", json!({"ingress_rate": "fast"})),
            ("bandwidth", json!({"ingress_rate": "0"})),
            ("bandwidth", json!({"ingress_burst": "1m"})),
            ("bandwidth", json!({"egress_rate": "1m", "egress_burst": "1g"})),
            ("port_map", json!([{"http": -1}])),
            ("port_map", json!([{"http": 65536}])),
            ("port_map", json!([{"http": 1.5}])),
            ("port_map", json!([{"http": null}])),
            ("port_map", json!([null])),
            ("static_ips", json!(["10.0.0.5", "10.0.0.6"])),
            ("static_ips", json!(["10.0.0.0/24"])),
            ("static_ips", json!([null])),
        ] {
            refused(&json!({"network_mode": "bridge", option: wrong}), &[option]);
        }
    }

    #[test]
    fn port_maps_of_several_blocks_count_as_one() {
        let map = |blocks: serde_json::Value| of(&json!({"port_map": blocks})).network.own_network.port_map;
        let both = BTreeMap::from([("db".to_owned(), 5432), ("http".to_owned(), 80)]);
        assert_eq!(map(json!([{"http": 80, "db": 5432}])), both);
        assert_eq!(map(json!([{"http": 80}, {"db": 5432}])), both);
        assert_eq!(map(json!(null)), BTreeMap::new());
        assert_eq!(map(json!([{"http": 0}])), BTreeMap::from([("http".to_owned(), 0)]));
    }

    #[test]
    fn static_ips_are_addresses_of_either_version() {
        let given = of(&json!({"static_ips": ["fd00::5", "10.0.0.5"]})).network.own_network;
        let single = of(&json!({"ipv4_address": "10.0.0.5", "ipv6_address": "fd00::5"})).network.own_network;
        assert_eq!(given, single);
        of(&json!({"static_ips": ["10.0.0.5"], "ipv4_address": "10.0.0.5"}));
        refused(
            &json!({"static_ips": ["10.0.0.5"], "ipv4_address": "10.0.0.6"}),
            &["static_ips", "10.0.0.6"],
        );
    }
}
