//! The network of a task. The names are those of Nomad's docker driver.

mod bandwidth;
mod mode;
mod own_network;

use nomad_proto::driver as pb;
use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::namespaces::Namespaces;
use crate::config::hclspec::optional;
use crate::config::plugin::AllowedModes;
use crate::config::{ConfigError, DriverName, Warnings, value};
pub(crate) use bandwidth::{Bandwidth, Rate};
pub(crate) use mode::NetworkMode;
pub(crate) use own_network::OwnNetworkOptions;

/// The options about a task's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NetworkOptions {
    /// `None` derives the network from the group and from `host_network`.
    pub mode: Option<NetworkMode>,
    pub own_network: OwnNetworkOptions,
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
    /// The network of another task, by docker's name of its container: the task's name, also with `-` and the
    /// allocation's id after it.
    OfContainer(String),
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
        let mode = network_mode.filter(|mode| !mode.is_empty()).map(NetworkMode::parse).transpose()?;
        Ok(NetworkOptions { mode, own_network: own_network.decode()? })
    }
}

impl NetworkOptions {
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

    /// Returns the network of the task, given the one that Nomad made for its group, if any. Under docker's name a task
    /// without a network is on the bridge, and its own mode counts before the group's network.
    ///
    /// # Errors
    /// Names the option that conflicts with that network.
    pub(super) fn network(
        &self,
        driver: DriverName,
        namespaces: &Namespaces,
        group: Option<&pb::NetworkIsolationSpec>,
    ) -> Result<Network, ConfigError> {
        use pb::network_isolation_spec::NetworkIsolationMode as Groups;
        let is_docker = driver.is_docker();
        let made = group.map(|group| group.path.as_str()).filter(|path| !path.is_empty());
        let refuse = |option, requested: String| {
            let why = "the group has a network of its own, by network { mode = \"bridge\" } or a CNI network: leave out one \
                       of the two";
            Err(value(option, requested, why))
        };
        let is_groups = |mode| group.is_some_and(|group| group.mode() == mode);
        let network = match (made, &self.mode) {
            (Some(_), _) if namespaces.host_network => return refuse("host_network", "true".to_owned()),
            (Some(_), Some(mode)) if !is_docker => return refuse("network_mode", mode.to_string()),
            (None, _) if namespaces.host_network => Network::Host,
            (_, Some(mode)) => mode.network(driver)?,
            (Some(path), None) => Network::Group(path.to_owned()),
            (None, None) if is_groups(Groups::None) => Network::Private,
            (None, None) if is_docker => Network::Own(None),
            (None, None) if is_groups(Groups::Host) => Network::Host,
            (None, None) => Network::Private,
        };
        self.check_own_network(driver, &network)?;
        namespaces.own_sysctl(&network, self.mode == Some(NetworkMode::Host))?;
        Ok(network)
    }

    /// Adds a warning for each option that docker's driver takes, and that has no effect in the task's network.
    pub(super) fn warn_of_idle(&self, driver: DriverName, network: &Network, warnings: &mut Warnings) {
        if !driver.is_docker() || matches!(network, Network::Own(_)) {
            return;
        }
        let why = "only a network of the task's own has it, and the task is in another one";
        let set = self.own_network.set().into_iter().map(|(option, _)| option);
        for option in set.filter(|option| own_network::IDLE_ELSEWHERE.contains(option)) {
            warnings.add(option, why);
        }
    }

    /// Refuses options that only a network of the task's own can fulfil. Docker's driver takes some of them everywhere.
    fn check_own_network(&self, driver: DriverName, network: &Network) -> Result<(), ConfigError> {
        if matches!(network, Network::Own(_)) {
            return Ok(());
        }
        let mut set = self.own_network.set();
        if driver.is_docker() {
            set.retain(|(option, _)| !own_network::IDLE_ELSEWHERE.contains(option));
        }
        let Some((option, requested)) = set.into_iter().next() else { return Ok(()) };
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
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::TaskOptions;
    use crate::config::task::tests::decode;

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

    const OURS: DriverName = DriverName::ContainerdDriver;
    const DOCKER: DriverName = DriverName::Docker;

    fn error_of(options: &Value, driver: DriverName, group: Option<&pb::NetworkIsolationSpec>) -> String {
        of(options).network(driver, group).unwrap_err().to_string()
    }

    #[test]
    fn without_network_mode_the_group_decides() {
        use pb::network_isolation_spec::NetworkIsolationMode::{Group, Host, None as Without};
        let (own, host) = (of(&json!({})), of(&json!({"host_network": true})));
        let made = group(Group, "/var/run/netns/a");
        assert_eq!(own.network(OURS, None).unwrap(), Network::Private);
        assert_eq!(own.network(OURS, Some(&group(Without, ""))).unwrap(), Network::Private);
        assert_eq!(own.network(OURS, Some(&made)).unwrap(), Network::Group("/var/run/netns/a".to_owned()));
        assert_eq!(own.network(OURS, Some(&group(Host, ""))).unwrap(), Network::Host);
        assert_eq!(host.network(OURS, None).unwrap(), Network::Host);
        let error = host.network(OURS, Some(&made)).unwrap_err().to_string();
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
            ("container:db", Network::OfContainer("db".to_owned())),
        ] {
            let options = of(&json!({"network_mode": mode}));
            assert_eq!(options.network(OURS, None).unwrap(), network);
            assert_eq!(options.network(OURS, Some(&group(Host, ""))).unwrap(), network);
            let error = options.network(OURS, Some(&group(Group, "/n"))).unwrap_err().to_string();
            assert!(error.contains("network_mode") && error.contains("mode = \"bridge\""), "{error}");
        }
    }

    #[test]
    fn under_dockers_name_a_task_is_on_the_bridge_and_its_mode_counts_before_the_group() {
        use pb::network_isolation_spec::NetworkIsolationMode::{Group, Host, None as Without};
        let (own, made) = (of(&json!({})), group(Group, "/n"));
        assert_eq!(own.network(DOCKER, None).unwrap(), Network::Own(None));
        assert_eq!(own.network(DOCKER, Some(&group(Host, ""))).unwrap(), Network::Own(None));
        assert_eq!(own.network(DOCKER, Some(&group(Without, ""))).unwrap(), Network::Private);
        assert_eq!(own.network(DOCKER, Some(&made)).unwrap(), Network::Group("/n".to_owned()));
        for (mode, network) in [
            ("default", Network::Own(None)),
            ("bridge", Network::Own(None)),
            ("host", Network::Host),
            ("none", Network::Private),
            ("backend", Network::Own(Some("backend".to_owned()))),
            ("container:db", Network::OfContainer("db".to_owned())),
        ] {
            let options = of(&json!({"network_mode": mode}));
            assert_eq!(options.network(DOCKER, Some(&made)).unwrap(), network);
            assert_eq!(options.network(DOCKER, None).unwrap(), network);
        }
        let host = json!({"host_network": true});
        assert_eq!(of(&host).network(DOCKER, None).unwrap(), Network::Host);
        assert!(error_of(&host, DOCKER, Some(&made)).contains("host_network"));
    }

    #[test]
    fn conflicting_network_options_are_refused() {
        refused(&json!({"network_mode": "bridge", "host_network": true}), &["network_mode", "host_network"]);
        assert_eq!(
            of(&json!({"network_mode": "host", "host_network": true})).network(OURS, None).unwrap(),
            Network::Host
        );
        let made = group(pb::network_isolation_spec::NetworkIsolationMode::Group, "/n");
        for mode in [json!(null), json!("none"), json!("host"), json!("task:db")] {
            for (option, requested, is_idle) in [
                ("ports", json!(["http"]), true),
                ("port_map", json!([{"http": 80}]), true),
                ("advertise_ipv6_address", json!(true), true),
                ("ipv4_address", json!("10.0.0.5"), false),
                ("ipv6_address", json!("fd00::5"), false),
                ("mac_address", json!("02:00:00:00:00:01"), true),
                ("network_aliases", json!(["db"]), false),
                ("bandwidth", json!({"egress_rate": "1m"}), false),
            ] {
                let options = json!({"network_mode": mode, option: requested});
                let error = error_of(&options, OURS, None);
                let words = [option, mode.as_str().unwrap_or("no network_mode")];
                assert!(words.iter().all(|word| error.contains(word)), "{error}");
                let mut taken = of(&options);
                let in_group = taken.network(DOCKER, Some(&made));
                assert_eq!(in_group.is_ok(), is_idle, "{options}: {in_group:?}");
                if let Ok(network) = in_group {
                    taken.warn_of_idle(OURS, &network);
                    taken.warn_of_idle(DOCKER, &Network::Own(None));
                    assert!(taken.warnings.is_empty(), "{options}");
                    taken.warn_of_idle(DOCKER, &network);
                    assert_eq!(taken.warnings.options(), [option], "{options}");
                }
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
            of(options).network_permitted_by(OURS, Some(group), allowed).map_err(|error| error.to_string())
        };
        let error = permitted(&json!({}), &of_host, &none).unwrap_err();
        assert!(error.contains("allowed_modes.network"), "{error}");
        assert_eq!(permitted(&json!({}), &of_host, &AllowedModes::default()), Ok(Network::Host));
        let own = permitted(&json!({"network_mode": "none"}), &of_host, &none);
        assert_eq!(own, Ok(Network::Private));
        assert_eq!(permitted(&json!({}), &group(Group, "/n"), &none), Ok(Network::Group("/n".to_owned())));
        let docker = of(&json!({})).network_permitted_by(DOCKER, Some(&of_host), &none).unwrap();
        assert_eq!(docker, Network::Own(None), "docker's driver has it on the bridge");
    }
}
