//! By which names a task goes and finds others.

use std::net::IpAddr;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{default, optional};
use crate::config::{ConfigError, no_nulls, value};

/// The kernel's limit for a host's name.
const HOSTNAME_LIMIT: usize = 64;
/// DNS' limit for what is between two dots.
const LABEL_LIMIT: usize = 63;

/// The options about names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub hostname: Option<String>,
    pub dns: Dns,
    /// What is in `/etc/hosts` beside the usual.
    pub extra_hosts: Vec<(String, IpAddr)>,
}

/// Whose `/etc/resolv.conf` a task has, where Nomad gives no servers.
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
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("hostname", optional("hostname", "string")),
        ("host_dns", default("host_dns", "bool", "true")),
        ("extra_hosts", optional("extra_hosts", "list(string)")),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<Names, ConfigError> {
        let Self { hostname, host_dns, extra_hosts } = self;
        let extra_hosts = no_nulls("extra_hosts", extra_hosts)?.into_iter().map(extra_host);
        Ok(Names {
            hostname: hostname.filter(|name| !name.is_empty()).map(checked_hostname).transpose()?,
            dns: if host_dns.unwrap_or(true) { Dns::Host } else { Dns::Image },
            extra_hosts: extra_hosts.collect::<Result<_, _>>()?,
        })
    }
}

fn checked_hostname(name: String) -> Result<String, ConfigError> {
    if name.len() > HOSTNAME_LIMIT {
        return Err(value("hostname", name, format!("it must not be longer than {HOSTNAME_LIMIT} letters")));
    }
    if name.split('.').all(is_label) {
        return Ok(name);
    }
    let why = format!(
        "it must be made of letters, digits and hyphens, with a letter or a digit at both ends of each part between dots, \
         which has at most {LABEL_LIMIT} of them"
    );
    Err(value("hostname", name, why))
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= LABEL_LIMIT
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// By docker's rule the first colon, or an equals sign, ends the name; an address of version 6 may be in brackets.
fn extra_host(entry: String) -> Result<(String, IpAddr), ConfigError> {
    let Some((name, address)) = entry.split_once(['=', ':']) else {
        return Err(value("extra_hosts", entry, "it must be a name and an address, such as \"db:10.0.0.5\""));
    };
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(value("extra_hosts", entry, "in front of the colon there must be a host's name"));
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match bare.parse() {
        Ok(address) => Ok((name.to_owned(), address)),
        Err(_) => {
            let why = format!("{address:?} is no IP address; names are not looked up here");
            Err(value("extra_hosts", entry, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn a_hostname_has_only_the_letters_of_one() {
        let of = |name: &str| decode(&json!({"image": "redis", "hostname": name})).unwrap().names.hostname;
        assert_eq!(of("web-1.example"), Some("web-1.example".to_owned()));
        assert_eq!(of(""), None);
        for wrong in
            ["web_1", "-web", "web-", "a..b", ".", "a b", "ü", "a/b", &"x".repeat(64), &"ab.".repeat(30)]
        {
            refusal("hostname", json!(wrong));
        }
    }

    #[test]
    fn an_extra_host_is_a_name_and_an_address() {
        let of = |entry: &str| {
            let hosts = decode(&json!({"image": "redis", "extra_hosts": [entry]})).unwrap().names.extra_hosts;
            hosts.into_iter().map(|(name, address)| format!("{name} {address}")).collect::<String>()
        };
        assert_eq!(of("db:10.0.0.5"), "db 10.0.0.5");
        assert_eq!(of("db=10.0.0.5"), "db 10.0.0.5");
        assert_eq!(of("db:fe80::1"), "db fe80::1");
        assert_eq!(of("db:[::1]"), "db ::1");
        for wrong in [
            "db",
            "db:",
            ":10.0.0.5",
            "d b:10.0.0.5",
            "db\n:::1",
            "db:other",
            "db:host-gateway",
            "db:10.0.0.5:80",
        ] {
            refusal("extra_hosts", json!([wrong]));
        }
        refusal("extra_hosts", json!([null]));
    }
}
