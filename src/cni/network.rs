//! A network: a list of plugins with their configurations, and what can be said of it without running one.
//!
//! Source of the facts: the CNI specification 1.1, sections 1 and 3.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::Error;
use super::rules::RuleSet;
use super::version::Version;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    /// Origin for texts: the network's file, or that it is built in.
    pub(super) origin: String,
    /// Versions that the network allows, in ascending order; a single one once it is chosen.
    pub(super) versions: Vec<Version>,
    pub(super) disable_check: bool,
    pub(super) plugins: Vec<Plugin>,
    /// Rules of the packet filter that the network needs beside those of its plugins. They stay when a container is
    /// detached, so no record has them.
    #[serde(skip)]
    pub(super) rules: Vec<RuleSet>,
}

/// A plugin: the name of its program, and its configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Plugin {
    #[serde(rename = "type")]
    pub kind: String,
    pub config: Map<String, Value>,
    /// Name of the capability without which the plugin does nothing, and is not run.
    #[serde(default)]
    pub idle_without: Option<String>,
}

impl Network {
    /// Returns what the plugins take of a job, by the names of the CNI conventions.
    pub(crate) fn capabilities(&self) -> BTreeSet<&str> {
        self.plugins.iter().flat_map(Plugin::capabilities).collect()
    }

    /// Returns the network without the plugins that would do nothing.
    pub(super) fn without_idle_plugins(&self, capability_args: &Map<String, Value>) -> Self {
        let mut network = self.clone();
        let has = |name: &String| capability_args.contains_key(name);
        network.plugins.retain(|plugin| plugin.idle_without.as_ref().is_none_or(has));
        network
    }

    /// Returns the version that the plugins are spoken to in.
    pub(super) fn version(&self) -> Version {
        self.versions.last().copied().unwrap_or(Version::NEWEST)
    }

    /// Returns the programs that the network needs: those of its plugins, and those of their IPAM plugins.
    pub(super) fn programs(&self) -> Vec<&str> {
        self.plugins.iter().flat_map(Plugin::programs).collect()
    }
}

impl Plugin {
    pub(super) fn new(config: Map<String, Value>) -> Result<Self, String> {
        let kind = match config.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            Some(_) => return Err("its type is not a string".to_owned()),
            None => return Err("it has no type".to_owned()),
        };
        if kind.is_empty() || kind == "." || kind == ".." || kind.contains(['/', '\\', '\0']) {
            return Err(format!("its type {kind:?} is not a program name"));
        }
        if !config.get("capabilities").is_none_or(Value::is_object) {
            return Err(format!("the capabilities of {kind} are not an object"));
        }
        Ok(Self { kind, config, idle_without: None })
    }

    fn programs(&self) -> impl Iterator<Item = &str> {
        let delegate = self.config.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
        [Some(self.kind.as_str()), delegate.filter(|kind| !kind.is_empty())].into_iter().flatten()
    }

    /// Returns what the plugin takes of a job.
    pub(super) fn capabilities(&self) -> impl Iterator<Item = &str> {
        let declared = self.config.get("capabilities").and_then(Value::as_object);
        declared.into_iter().flatten().filter(|(_, takes)| **takes == true).map(|(name, _)| name.as_str())
    }

    /// Returns the configuration that the plugin reads on its stdin.
    pub(super) fn request(
        &self,
        network: &Network,
        capability_args: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Map<String, Value> {
        let mut config = self.config.clone();
        // These keys are words between the runtime and whoever wrote the file.
        config.retain(|key, _| key != "capabilities" && !key.starts_with("cni.dev/"));
        config.insert("name".to_owned(), network.name.clone().into());
        config.insert("cniVersion".to_owned(), network.version().to_string().into());
        let taken: Map<String, Value> = self
            .capabilities()
            .filter_map(|name| Some((name.to_owned(), capability_args.get(name)?.clone())))
            .collect();
        if !taken.is_empty() {
            config.insert("runtimeConfig".to_owned(), taken.into());
        }
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        config
    }
}

/// Checks that a text can be the name of a network or the id of a container: it becomes a part of paths.
pub(super) fn check_name(what: &'static str, value: &str) -> Result<(), Error> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let starts_well = value.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && value.chars().all(is_plain) {
        return Ok(());
    }
    let why = "it must start with a letter or digit, and have letters, digits, \"_\", \".\" and \"-\" only"
        .to_owned();
    Err(Error::Name { what, value: value.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn network(plugin: Value) -> Network {
        let Value::Object(config) = plugin else { panic!() };
        Network {
            name: "web".to_owned(),
            origin: "x".to_owned(),
            versions: vec!["1.0.0".parse().unwrap()],
            disable_check: false,
            plugins: vec![Plugin::new(config).unwrap()],
            rules: Vec::new(),
        }
    }

    #[test]
    fn a_request_has_the_config_and_the_capabilities_that_the_plugin_takes() {
        let network = network(json!({
            "type": "portmap", "snat": true, "unknown": {"deep": [1]}, "dns": {"nameservers": ["10.0.0.1"]},
            "cni.dev/attachments": [], "cniVersion": "0.1.0", "name": "other",
            "capabilities": {"portMappings": true, "mac": false, "ips": true},
        }));
        let capability_args = json!({"portMappings": [{"hostPort": 80}], "mac": "02:00:00:00:00:01"});
        let previous = json!({"ips": []});
        let request =
            network.plugins[0].request(&network, capability_args.as_object().unwrap(), Some(&previous));
        assert_eq!(
            Value::Object(request),
            json!({
                "type": "portmap", "snat": true, "unknown": {"deep": [1]}, "dns": {"nameservers": ["10.0.0.1"]},
                "cniVersion": "1.0.0", "name": "web", "prevResult": {"ips": []},
                "runtimeConfig": {"portMappings": [{"hostPort": 80}]},
            })
        );
        let bare = network.plugins[0].request(&network, &Map::new(), None);
        assert!(!bare.contains_key("runtimeConfig") && !bare.contains_key("prevResult"), "{bare:?}");
        assert_eq!(network.capabilities().into_iter().collect::<Vec<_>>(), ["ips", "portMappings"]);
    }

    #[test]
    fn the_programs_of_a_network_are_its_plugins_and_their_delegates() {
        let network = network(json!({"type": "bridge", "ipam": {"type": "host-local"}}));
        assert_eq!(network.programs(), ["bridge", "host-local"]);
    }

    #[test]
    fn names_with_path_parts_are_refused() {
        for wrong in ["", ".", "..", "../x", "a/b", "-a", ".a", "a b", "ä", "a\0"] {
            assert!(check_name("network", wrong).is_err(), "{wrong:?}");
        }
        for right in ["a", "0", "a_b.c-d", "cni0"] {
            check_name("network", right).unwrap();
        }
        for wrong in [json!({}), json!({"type": ""}), json!({"type": "../bridge"}), json!({"type": 1})] {
            assert!(Plugin::new(wrong.as_object().unwrap().clone()).is_err(), "{wrong}");
        }
    }
}
