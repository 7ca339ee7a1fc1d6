//! The options about a task's host name, DNS and `/etc/hosts`.

use std::net::IpAddr;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{default, optional};
use crate::config::{ConfigError, DriverName, Warnings, reject_nulls, value};

/// The kernel's maximum length of a host name, in bytes.
const HOSTNAME_LIMIT: usize = 64;
/// The maximum length of a DNS label, in bytes.
const LABEL_LIMIT: usize = 63;
/// Docker's word for the address of the host (moby `opts/hosts.go`).
const HOST_GATEWAY: &str = "host-gateway";

/// The options about names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub hostname: Option<String>,
    pub dns: Dns,
    /// Settings of the job for `/etc/resolv.conf`; an empty list is unset.
    pub resolver: DnsOptions,
    /// Entries of `/etc/hosts` in addition to the usual ones.
    pub extra_hosts: Vec<(String, HostAddress)>,
}

/// The address of an entry of `extra_hosts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostAddress {
    Ip(IpAddr),
    /// The host, as the task reaches it: docker's `host-gateway`.
    HostGateway,
}

/// Settings of a resolver: servers, search domains and options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DnsOptions {
    pub servers: Vec<IpAddr>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// The source of a task's `/etc/resolv.conf` if Nomad gives no servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Dns {
    #[default]
    Host,
    Image,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    hostname: Option<String>,
    host_dns: Option<bool>,
    extra_hosts: Option<Vec<Option<String>>>,
    dns_servers: Option<Vec<Option<String>>>,
    dns_search_domains: Option<Vec<Option<String>>>,
    dns_options: Option<Vec<Option<String>>>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("hostname", optional("hostname", "string")),
        ("host_dns", default("host_dns", "bool", "true")),
        ("extra_hosts", optional("extra_hosts", "list(string)")),
        ("dns_servers", optional("dns_servers", "list(string)")),
        ("dns_search_domains", optional("dns_search_domains", "list(string)")),
        ("dns_options", optional("dns_options", "list(string)")),
    ]
}

impl Raw {
    pub(super) fn decode(self, driver: DriverName, warnings: &mut Warnings) -> Result<Names, ConfigError> {
        let Self { hostname, host_dns, extra_hosts, dns_servers, dns_search_domains, dns_options } = self;
        let mut dns_servers = reject_nulls("dns_servers", dns_servers)?;
        if driver.is_docker() {
            leave_out_names(&mut dns_servers, warnings);
        }
        let dns_servers = dns_servers.into_iter().map(server);
        let extra_hosts = reject_nulls("extra_hosts", extra_hosts)?.into_iter().map(extra_host);
        Ok(Names {
            hostname: hostname.filter(|name| !name.is_empty()).map(checked_hostname).transpose()?,
            dns: if host_dns.unwrap_or(true) { Dns::Host } else { Dns::Image },
            extra_hosts: extra_hosts.collect::<Result<_, _>>()?,
            resolver: DnsOptions {
                servers: dns_servers.collect::<Result<_, _>>()?,
                searches: words("dns_search_domains", dns_search_domains)?,
                options: words("dns_options", dns_options)?,
            },
        })
    }
}

fn checked_hostname(name: String) -> Result<String, ConfigError> {
    if name.len() > HOSTNAME_LIMIT {
        return Err(value(
            "hostname",
            name,
            format!("it must not be longer than {HOSTNAME_LIMIT} characters"),
        ));
    }
    if is_hostname(&name) {
        return Ok(name);
    }
    let why = format!(
        "it must be made of letters, digits, hyphens and underscores, with no hyphen at an end of a part between dots, \
         which has at most {LABEL_LIMIT} of them"
    );
    Err(value("hostname", name, why))
}

pub(super) fn is_hostname(name: &str) -> bool {
    name.len() <= HOSTNAME_LIMIT && name.split('.').all(is_label)
}

/// Returns whether a label is one of a host name. An underscore is none of DNS, but docker and the kernel take it.
fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= LABEL_LIMIT
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Decodes an entry of `extra_hosts`. As in docker, the first colon or equals sign ends the name, and an IPv6 address
/// may be in brackets.
fn extra_host(entry: String) -> Result<(String, HostAddress), ConfigError> {
    let Some((name, address)) = entry.split_once(['=', ':']) else {
        return Err(value("extra_hosts", entry, "it must be a name and an address, such as \"db:10.0.0.5\""));
    };
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(value("extra_hosts", entry, "the part in front of the colon must be a host name"));
    }
    if address == HOST_GATEWAY {
        return Ok((name.to_owned(), HostAddress::HostGateway));
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match bare.parse() {
        Ok(address) => Ok((name.to_owned(), HostAddress::Ip(address))),
        Err(_) => {
            let why = format!(
                "{address:?} is neither an IP address nor {HOST_GATEWAY:?}, and names are not resolved here"
            );
            Err(value("extra_hosts", entry, why))
        }
    }
}

/// Leaves out servers that are no addresses, as docker's driver does.
fn leave_out_names(servers: &mut Vec<String>, warnings: &mut Warnings) {
    servers.retain(|text| {
        let is_address = text.parse::<IpAddr>().is_ok();
        if !is_address {
            warnings.add("dns_servers", format!("{text:?} is not an IP address, and is left out"));
        }
        is_address
    });
}

fn server(text: String) -> Result<IpAddr, ConfigError> {
    text.parse().map_err(|_| value("dns_servers", text, "it must be an IP address"))
}

/// Checks that each element is a single word: all of them are written on one line, separated by blanks.
fn words(option: &'static str, list: Option<Vec<Option<String>>>) -> Result<Vec<String>, ConfigError> {
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let word = |text: String| match is_word(&text) {
        true => Ok(text),
        false => Err(value(option, text, "it must be one word without spaces")),
    };
    reject_nulls(option, list)?.into_iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::task::tests::{decode, decode_as, refusal};

    #[test]
    fn hostnames_are_validated() {
        let of = |name: &str| decode(&json!({"image": "redis", "hostname": name})).unwrap().names.hostname;
        for name in ["web-1.example", "web_1", "_dmarc.example"] {
            assert_eq!(of(name), Some(name.to_owned()));
        }
        assert_eq!(of(""), None);
        for wrong in ["-web", "web-", "a..b", ".", "a b", "ü", "a/b", &"x".repeat(64), &"ab.".repeat(30)] {
            refusal("hostname", json!(wrong));
        }
    }

    #[test]
    fn resolver_entries_are_single_words() {
        let all = json!({
            "image": "redis", "dns_servers": ["10.0.0.1", "fd00::1"], "dns_search_domains": ["a.example"],
            "dns_options": ["ndots:2"],
        });
        let DnsOptions { servers, searches, options } = decode(&all).unwrap().names.resolver;
        assert_eq!(servers, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!((searches, options), (vec!["a.example".to_owned()], vec!["ndots:2".to_owned()]));
        refusal("dns_servers", json!(["dns.example"]));
        for option in ["dns_search_domains", "dns_options"] {
            for wrong in [json!("a b"), json!(""), json!("a\nnameserver 10.0.0.1"), json!(null)] {
                refusal(option, json!([wrong]));
            }
        }
    }

    #[test]
    fn under_dockers_name_a_server_that_is_no_address_is_left_out() {
        let options = json!({"image": "redis", "dns_servers": ["dns.example", "10.0.0.1"]});
        let options = decode_as(DriverName::Docker, &options).unwrap();
        assert_eq!(options.names.resolver.servers, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let texts: Vec<_> = options.warnings.texts().collect();
        assert!(texts.len() == 1 && texts[0].starts_with("dns_servers: \"dns.example\""), "{texts:?}");
    }

    #[test]
    fn extra_hosts_are_names_with_addresses() {
        let of = |entry: &str| {
            let hosts = decode(&json!({"image": "redis", "extra_hosts": [entry]})).unwrap().names.extra_hosts;
            let shown = |address| match address {
                HostAddress::Ip(address) => address.to_string(),
                HostAddress::HostGateway => "the host".to_owned(),
            };
            hosts.into_iter().map(|(name, address)| format!("{name} {}", shown(address))).collect::<String>()
        };
        assert_eq!(of("db:10.0.0.5"), "db 10.0.0.5");
        assert_eq!(of("db=10.0.0.5"), "db 10.0.0.5");
        assert_eq!(of("db:fe80::1"), "db fe80::1");
        assert_eq!(of("db:[::1]"), "db ::1");
        assert_eq!(of("node:host-gateway"), "node the host");
        assert_eq!(of("node=host-gateway"), "node the host");
        for wrong in [
            "db",
            "db:",
            ":10.0.0.5",
            "d b:10.0.0.5",
            "db\n:::1",
            "db:other",
            "db:Host-gateway",
            "db:[host-gateway]",
            "db:10.0.0.5:80",
        ] {
            refusal("extra_hosts", json!([wrong]));
        }
        refusal("extra_hosts", json!([null]));
    }
}
