//! The result of an ADD: what a network gave to a container, read from the last plugin's result.
//!
//! Source of the facts: the CNI specification 1.1, section 5.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attachment::Dns;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddResult {
    /// Addresses of the container, those of version 4 first.
    pub addresses: Vec<IpAddr>,
    pub gateways: Vec<IpAddr>,
    /// MAC address of the interface that was asked for.
    pub mac: Option<String>,
    pub dns: Dns,
    pub interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Path of the namespace that the interface is in; `None` on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// A plugin's result. Go writes an empty list as null, too.
#[derive(Deserialize)]
struct RawResult {
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<RawAddress>>,
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct RawAddress {
    address: String,
    gateway: Option<IpAddr>,
    interface: Option<usize>,
}

impl AddResult {
    /// # Errors
    /// Says what of the result can't be read.
    pub(super) fn read(result: &Value, if_name: &str) -> Result<Self, String> {
        let RawResult { interfaces, ips, dns } =
            RawResult::deserialize(result).map_err(|error| error.to_string())?;
        let is_inside =
            |interface: &Interface| interface.sandbox.as_ref().is_some_and(|path| !path.is_empty());
        let interfaces = interfaces.unwrap_or_default();
        let mut added = Self { dns: dns.unwrap_or_default(), ..Self::default() };
        for RawAddress { address, gateway, interface } in ips.into_iter().flatten() {
            let inside = match interface {
                None => true,
                Some(number) => interfaces.get(number).map(is_inside).ok_or_else(|| {
                    format!("the address {address} belongs to interface {number}, which is not in the result")
                })?,
            };
            let bare = address.split('/').next().unwrap_or_default();
            let bare: IpAddr = bare.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
            // The loopback plugin reports its own addresses as well.
            if inside && !bare.is_loopback() {
                added.addresses.push(bare);
                added.gateways.extend(gateway);
            }
        }
        added.addresses.sort_by_key(IpAddr::is_ipv6);
        added.gateways.sort_by_key(IpAddr::is_ipv6);
        let own = interfaces.iter().find(|interface| is_inside(interface) && interface.name == if_name);
        added.mac = own.and_then(|interface| interface.mac.clone());
        added.interfaces = interfaces;
        Ok(added)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_the_host_and_loopback_are_left_out() {
        let result = json!({
            "interfaces": [
                {"name": "br0", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "02:00:00:00:00:02"},
                {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/netns"},
            ],
            "ips": [
                {"address": "fd00::2/64", "gateway": "fd00::1", "interface": 2},
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 2},
                {"address": "10.0.0.3"},
                {"address": "127.0.0.1/8"},
                {"address": "::1/128"},
            ],
            "dns": {"nameservers": ["10.0.0.1"], "search": ["x"]},
        });
        let added = AddResult::read(&result, "eth0").unwrap();
        let texts = |addresses: &[IpAddr]| addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&added.addresses), ["10.0.0.2", "10.0.0.3", "fd00::2"]);
        assert_eq!(texts(&added.gateways), ["10.0.0.1", "fd00::1"]);
        assert_eq!(added.mac.as_deref(), Some("02:00:00:00:00:03"));
        assert_eq!((&added.dns.nameservers[..], added.interfaces.len()), (&["10.0.0.1".to_owned()][..], 3));
        let stored: AddResult = serde_json::from_value(json!(added)).unwrap();
        assert_eq!(stored, added);
    }

    #[test]
    fn an_empty_result_is_valid() {
        for result in [json!({}), json!({"ips": null, "interfaces": null, "dns": null}), json!({"dns": {}})] {
            assert_eq!(AddResult::read(&result, "eth0").unwrap(), AddResult::default());
        }
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::cni::version::{Version, convert};

    #[test]
    fn results() {
        crate::fuzz::bytes("cni-result", |text| {
            let Ok(result) = serde_json::from_slice::<Value>(text) else { return };
            if !result.is_object() {
                return;
            }
            for version in ["0.3.1", "1.1.0"].map(|version| version.parse::<Version>().unwrap()) {
                let converted = convert(result.clone(), version);
                assert_eq!(convert(converted.clone(), version), converted);
                let Ok(added) = AddResult::read(&converted, "eth0") else { continue };
                assert!(added.addresses.is_sorted_by_key(IpAddr::is_ipv6), "{added:?}");
                assert!(added.addresses.iter().all(|address| !address.is_loopback()), "{added:?}");
                let stored = serde_json::to_vec(&added).unwrap();
                assert_eq!(serde_json::from_slice::<AddResult>(&stored).unwrap(), added);
            }
        });
    }
}
