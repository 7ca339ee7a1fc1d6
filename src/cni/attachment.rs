//! An attachment: what is asked of a network for one container, such as the interface's name and the capabilities.
//!
//! Source of the facts: the CNI specification 1.1, section 2; its CONVENTIONS.md for the capabilities.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::Error;
use super::network::{Network, check_name};

/// The kernel's limit for the name of an interface.
const INTERFACE_NAME_LIMIT: usize = 15;

#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub container_id: String,
    pub netns: PathBuf,
    /// Name of the interface in the container.
    pub if_name: String,
    /// Arguments for each plugin (`CNI_ARGS`). An argument that can't be written there is left out.
    pub args: Vec<(String, String)>,
    pub capabilities: Capabilities,
}

/// The capabilities that are asked for; each plugin is given those that it says it takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub port_mappings: Vec<PortMapping>,
    pub dns: Option<Dns>,
    pub bandwidth: Option<Bandwidth>,
    /// Addresses, with or without a prefix length.
    pub ips: Vec<String>,
    pub mac: Option<String>,
    pub aliases: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Rates in bits a second, bursts in bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bandwidth {
    pub ingress_rate: u64,
    pub ingress_burst: u64,
    pub egress_rate: u64,
    pub egress_burst: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    pub nameservers: Vec<String>,
    pub domain: Option<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// An attachment in the form that the record keeps: what its removal needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RuntimeConf {
    pub container_id: String,
    pub netns: PathBuf,
    pub if_name: String,
    pub args: String,
    #[serde(rename = "arguments")]
    pub capability_args: Map<String, Value>,
}

impl Attachment {
    /// Converts the attachment to the form that plugins are told.
    ///
    /// # Errors
    /// Names what can't be asked of any plugin, or not of one of this network.
    pub(super) fn runtime_conf(&self, network: &Network) -> Result<RuntimeConf, Error> {
        let Self { container_id, netns, if_name, args, capabilities } = self;
        check_name("container id", container_id)?;
        check_interface(if_name)?;
        let capability_args = capabilities.capability_args();
        let taken = network.capabilities();
        // The settings of a resolver reach the task by its own file.
        if let Some(capability) = CAPABILITIES
            .into_iter()
            .find(|name| capability_args.contains_key(*name) && !taken.contains(name) && *name != "dns")
        {
            let (network, origin) = (network.name.clone(), network.origin.clone());
            return Err(Error::Capability { capability, network, origin });
        }
        Ok(RuntimeConf {
            container_id: container_id.clone(),
            netns: netns.clone(),
            if_name: if_name.clone(),
            args: cni_args(args),
            capability_args,
        })
    }
}

const CAPABILITIES: [&str; 6] = ["portMappings", "dns", "bandwidth", "ips", "mac", "aliases"];

impl Capabilities {
    /// Returns the capabilities by their names in the CNI conventions, without those that are not asked for.
    fn capability_args(&self) -> Map<String, Value> {
        let Self { port_mappings, dns, bandwidth, ips, mac, aliases } = self;
        let list = |values: &[String]| (!values.is_empty()).then(|| json!(values));
        let dns = dns.as_ref().map(|Dns { nameservers, domain, search, options }| {
            let searches: Vec<&String> = search.iter().chain(domain).collect();
            json!({"servers": nameservers, "searches": searches, "options": options})
        });
        let values = [
            (!port_mappings.is_empty()).then(|| json!(port_mappings)),
            dns,
            bandwidth.map(|bandwidth| json!(bandwidth)),
            list(ips),
            mac.as_ref().map(|mac| json!(mac)),
            list(aliases),
        ];
        CAPABILITIES
            .into_iter()
            .zip(values)
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

pub(super) fn check_interface(name: &str) -> Result<(), Error> {
    let why = if name.is_empty() || name == "." || name == ".." {
        "it is not a name".to_owned()
    } else if name.len() > INTERFACE_NAME_LIMIT {
        format!("it is longer than {INTERFACE_NAME_LIMIT} bytes")
    } else if name.contains(|c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace()) {
        "it has \"/\", \":\" or a space".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Name { what: "interface name", value: name.to_owned(), why })
}

/// Writes `CNI_ARGS`. Its syntax has no way to write a `;` or a `=` in a value, though a name of a job or a group may
/// have either: plugins would read other arguments than those that are meant, or fail. Such an argument is left out.
fn cni_args(args: &[(String, String)]) -> String {
    let is_representable = |(key, value): &&(String, String)| {
        let is_plain = |text: &str| !text.contains([';', '=', '\0']);
        let is_one = !key.is_empty() && is_plain(key) && is_plain(value);
        if !is_one {
            tracing::warn!(
                argument = key,
                value,
                "this argument is not passed to CNI plugins: its value has a \";\" or a \"=\", which CNI_ARGS can't \
                 have"
            );
        }
        is_one
    };
    let entries = args.iter().filter(is_representable).map(|(key, value)| format!("{key}={value}"));
    entries.collect::<Vec<_>>().join(";")
}
