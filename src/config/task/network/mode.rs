//! The option `network_mode`: the words of this driver's, and docker's.
//!
//! Source of the facts: moby `api/types/container/hostconfig.go` (`NetworkMode`); hashicorp/nomad
//! `drivers/docker/driver.go`.

use std::fmt;

use super::Network;
use crate::config::{ConfigError, DriverName, value};

const OPTION: &str = "network_mode";
const MODES: &str =
    "it must be \"none\", \"host\", \"bridge\", \"cni/<network>\", or \"task:<another task of the group>\"";

/// A value of `network_mode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    None,
    Host,
    Bridge,
    /// Docker's word for its bridge.
    Default,
    Cni(String),
    /// The network of another task, by that task's name.
    Task(String),
    /// The network of a container of docker's: of another task, by its name, or by its name and its allocation's id.
    Container(String),
    /// A network of docker's own, by its name.
    Named(String),
}

impl NetworkMode {
    pub(super) fn parse(mode: String) -> Result<Self, ConfigError> {
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        };
        match mode.as_str() {
            "none" => return Ok(Self::None),
            "host" => return Ok(Self::Host),
            "bridge" => return Ok(Self::Bridge),
            "default" => return Ok(Self::Default),
            name if is_name(name) => return Ok(Self::Named(mode)),
            _ => {}
        }
        if let Some(name) = mode.strip_prefix("cni/").filter(|name| is_name(name)) {
            return Ok(Self::Cni(name.to_owned()));
        }
        if let Some(name) = mode.strip_prefix("task:").filter(|name| !name.is_empty()) {
            return Ok(Self::Task(name.to_owned()));
        }
        if let Some(name) = mode.strip_prefix("container:").filter(|name| !name.is_empty()) {
            return Ok(Self::Container(name.to_owned()));
        }
        Err(value(OPTION, mode, MODES))
    }

    /// Returns the network of a task with this mode. The words that are docker's alone are taken under its name only.
    ///
    /// # Errors
    /// Lists the words that there are.
    pub(super) fn network(&self, driver: DriverName) -> Result<Network, ConfigError> {
        let is_docker = driver.is_docker();
        match self {
            Self::None => Ok(Network::Private),
            Self::Host => Ok(Network::Host),
            Self::Bridge => Ok(Network::Own(None)),
            Self::Default if is_docker => Ok(Network::Own(None)),
            Self::Cni(name) => Ok(Network::Own(Some(name.clone()))),
            Self::Named(name) if is_docker => Ok(Network::Own(Some(name.clone()))),
            Self::Task(name) => Ok(Network::OfTask(name.clone())),
            Self::Container(container) => Ok(Network::OfContainer(container.clone())),
            Self::Default | Self::Named(_) => Err(value(OPTION, self.to_string(), MODES)),
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Host => f.write_str("host"),
            Self::Bridge => f.write_str("bridge"),
            Self::Default => f.write_str("default"),
            Self::Cni(name) => write!(f, "cni/{name}"),
            Self::Task(name) => write!(f, "task:{name}"),
            Self::Container(container) => write!(f, "container:{container}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::of;
    use super::*;
    use crate::config::task::tests::refusal;

    #[test]
    fn a_network_mode_is_one_of_the_words() {
        for wrong in
            ["cni/", "cni/../x", "cni:x", "task/", "task:", "container:", "cni/-x", "-x", "a b", "../x"]
        {
            assert!(refusal("network_mode", json!(wrong)).contains("cni/<network>"), "{wrong}");
        }
        for mode in ["none", "host", "bridge", "default", "cni/web.1", "task:db", "container:db", "web_1"] {
            let parsed = of(&json!({"network_mode": mode})).network.mode.unwrap();
            assert_eq!(parsed.to_string(), mode);
        }
    }

    #[test]
    fn dockers_words_are_taken_under_its_name() {
        for (mode, network) in
            [("default", Network::Own(None)), ("backend", Network::Own(Some("backend".to_owned())))]
        {
            let mode = NetworkMode::parse(mode.to_owned()).unwrap();
            assert_eq!(mode.network(DriverName::Docker).unwrap(), network);
            let error = mode.network(DriverName::ContainerdDriver).unwrap_err().to_string();
            assert!(error.contains(&mode.to_string()) && error.contains("cni/<network>"), "{error}");
        }
        let container = NetworkMode::parse("container:db".to_owned()).unwrap();
        for driver in [DriverName::ContainerdDriver, DriverName::Docker] {
            assert_eq!(container.network(driver).unwrap(), Network::OfContainer("db".to_owned()));
        }
    }
}
