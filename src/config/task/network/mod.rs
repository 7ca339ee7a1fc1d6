//! The network of a task. The names are those of Nomad's docker driver.

mod bandwidth;
mod own_network;

use std::fmt;

use nomad_proto::driver as pb;
use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::namespaces::Namespaces;
use crate::config::hclspec::optional;
use crate::config::plugin::AllowedModes;
use crate::config::{ConfigError, value};
pub(crate) use bandwidth::{Bandwidth, Rate};
pub(crate) use own_network::OwnNetworkOptions;

const MODES: &str =
    "it must be \"none\", \"host\", \"bridge\", \"cni/<network>\" or \"task:<another task of the group>\"";
/// The options about a task's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NetworkOptions {
    /// `None` derives the network from the group and from `host_network`.
    pub mode: Option<NetworkMode>,
    pub own_network: OwnNetworkOptions,
}

/// A value of `network_mode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    None,
    Host,
    Bridge,
    Cni(String),
    /// The network of another task, by that task's name.
    Task(String),
}

/// The network namespace that a task runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// A namespace of its own, without a connection.
    Private,
    /// The group's, by the path of its namespace.
    Group(String),
    /// A namespace of its own that CNI plugins connect: to the built-in bridge, or to the network of this name.
    Own(Option<String>),
    /// The network of another task of the same allocation, by its name.
    OfTask(String),
    Host,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    network_mode: Option<String>,
    #[serde(flatten)]
    own_network: own_network::Raw,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    let mut options = own_network::schema();
    options.push(("network_mode", optional("network_mode", "string")));
    options
}

impl Raw {
    pub(super) fn decode(self) -> Result<NetworkOptions, ConfigError> {
        let Self { network_mode, own_network } = self;
        let mode = network_mode.filter(|mode| !mode.is_empty()).map(NetworkMode::named).transpose()?;
        let options = NetworkOptions { mode, own_network: own_network.decode()? };
        options.check_mode()?;
        Ok(options)
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

impl NetworkOptions {
    fn check_mode(&self) -> Result<(), ConfigError> {
        if self.mode.as_ref().is_some_and(NetworkMode::is_connected) {
            return Ok(());
        }
        let Some((option, requested)) = self.own_network.first() else { return Ok(()) };
        let mode = self
            .mode
            .as_ref()
            .map_or("no network_mode".to_owned(), |mode| format!("network_mode = \"{mode}\""));
        let why = format!(
            "it needs a network of the task's own, network_mode = \"bridge\" or \"cni/<network>\", and the task has \
             {mode}; for a group's network set it in the group's network block"
        );
        Err(value(option, requested, why))
    }

    pub(super) fn permitted_by(&self, allowed: &AllowedModes) -> Result<(), ConfigError> {
        match self.mode {
            Some(NetworkMode::Host) => {
                AllowedModes::permit_host("network_mode", "host", "network", &allowed.network)
            }
            _ => Ok(()),
        }
    }

    /// Checks for conflicts with the options of other groups.
    pub(super) fn check_conflicts(&self, namespaces: &Namespaces) -> Result<(), ConfigError> {
        match &self.mode {
            Some(mode) if namespaces.host_network && *mode != NetworkMode::Host => Err(value(
                "network_mode",
                mode.to_string(),
                "with host_network = true the task is in the host's network: leave out one of the two",
            )),
            _ => Ok(()),
        }
    }

    /// Returns the network of the task, given the one that Nomad made for its group, if any.
    ///
    /// # Errors
    /// Names the option that conflicts with that network.
    pub(super) fn network(
        &self,
        namespaces: &Namespaces,
        group: Option<&pb::NetworkIsolationSpec>,
    ) -> Result<Network, ConfigError> {
        use pb::network_isolation_spec::NetworkIsolationMode as Groups;
        let made = group.map(|group| group.path.as_str()).filter(|path| !path.is_empty());
        let refuse = |option, requested: String| {
            let why = "the group has a network of its own, by network { mode = \"bridge\" } or a CNI network: leave out one \
                       of the two";
            Err(value(option, requested, why))
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
        namespaces.own_sysctl(&network, self.mode == Some(NetworkMode::Host))?;
        Ok(network)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::TaskOptions;
    use crate::config::task::tests::{decode, refusal};

    pub(in crate::config) fn of(options: &Value) -> TaskOptions {
        let mut all = json!({"image": "redis"});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        decode(&all).unwrap()
    }

    pub(in crate::config) fn refused(options: &Value, words: &[&str]) {
        let mut all = json!({"image": "redis"});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let error = decode(&all).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }

    fn group(mode: pb::network_isolation_spec::NetworkIsolationMode, path: &str) -> pb::NetworkIsolationSpec {
        pb::NetworkIsolationSpec { mode: mode.into(), path: path.to_owned(), ..Default::default() }
    }

    #[test]
    fn without_network_mode_the_group_decides() {
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
    fn network_mode_needs_a_group_without_network() {
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
    fn conflicting_network_options_are_refused() {
        refused(&json!({"network_mode": "bridge", "host_network": true}), &["network_mode", "host_network"]);
        assert_eq!(
            of(&json!({"network_mode": "host", "host_network": true})).network(None).unwrap(),
            Network::Host
        );
        for mode in [json!(null), json!("none"), json!("host"), json!("task:db")] {
            for (option, requested) in [
                ("ports", json!(["http"])),
                ("ipv4_address", json!("10.0.0.5")),
                ("ipv6_address", json!("fd00::5")),
                ("mac_address", json!("02:00:00:00:00:01")),
                ("network_aliases", json!(["db"])),
                ("advertise_ipv6_address", json!(true)),
                ("bandwidth", json!({"egress_rate": "1m"})),
            ] {
                let words = [option, mode.as_str().unwrap_or("no network_mode")];
                refused(&json!({"network_mode": mode, option: requested}), &words);
            }
        }
    }

    #[test]
    fn host_network_needs_the_operators_permission() {
        let none = AllowedModes { network: Vec::new(), ..AllowedModes::default() };
        let host = of(&json!({"network_mode": "host"})).network;
        let error = host.permitted_by(&none).unwrap_err().to_string();
        assert!(error.contains("network_mode") && error.contains("allowed_modes.network"), "{error}");
        host.permitted_by(&AllowedModes::default()).unwrap();
        of(&json!({"network_mode": "bridge"})).network.permitted_by(&none).unwrap();
    }

    #[test]
    fn a_groups_host_network_needs_the_operators_permission() {
        use pb::network_isolation_spec::NetworkIsolationMode::{Group, Host};
        let none = AllowedModes { network: Vec::new(), ..AllowedModes::default() };
        let of_host = group(Host, "");
        let permitted = |options: &Value, group: &pb::NetworkIsolationSpec, allowed: &AllowedModes| {
            of(options).network_permitted_by(Some(group), allowed).map_err(|error| error.to_string())
        };
        let error = permitted(&json!({}), &of_host, &none).unwrap_err();
        assert!(error.contains("allowed_modes.network"), "{error}");
        assert_eq!(permitted(&json!({}), &of_host, &AllowedModes::default()), Ok(Network::Host));
        let own = permitted(&json!({"network_mode": "none"}), &of_host, &none);
        assert_eq!(own, Ok(Network::Private));
        assert_eq!(permitted(&json!({}), &group(Group, "/n"), &none), Ok(Network::Group("/n".to_owned())));
    }
}
