//! What a network gave to a container, read from the last plugin's result.
//!
//! Source of the facts: the CNI specification 1.1, section 5.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attachment::Dns;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Added {
    /// Those of the container, of version 4 first.
    pub addresses: Vec<IpAddr>,
    pub gateways: Vec<IpAddr>,
    /// That of the interface which was asked for.
    pub mac: Option<String>,
    pub dns: Dns,
    pub interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The namespace that it is in, where that is not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Answer {
    interfaces: Vec<Interface>,
    ips: Vec<Address>,
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
    gateway: Option<IpAddr>,
    interface: Option<usize>,
}

impl Added {
    /// # Errors
    /// Says what of the result is none.
    pub(super) fn read(result: &Value, if_name: &str) -> Result<Self, String> {
        let Answer { interfaces, ips, dns } =
            Answer::deserialize(result).map_err(|error| error.to_string())?;
        let is_inside =
            |interface: &Interface| interface.sandbox.as_ref().is_some_and(|path| !path.is_empty());
        let mut added = Self { dns: dns.unwrap_or_default(), ..Self::default() };
        for Address { address, gateway, interface } in ips {
            let inside = match interface {
                None => true,
                Some(number) => interfaces.get(number).map(is_inside).ok_or_else(|| {
                    format!("the address {address} is of interface {number}, which is not told")
                })?,
            };
            let bare = address.split('/').next().unwrap_or_default();
            let bare = bare.parse().map_err(|_| format!("{address:?} is no address"))?;
            if inside {
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
