//! The options of a job's `task { driver = "containerd-driver" config { .. } }` block, a group of them a file: for each
//! the schema, the form in which Nomad sends it, and what it is decoded into.

mod archive;
mod devices;
mod labels;
mod limits;
mod logging;
mod mounts;
mod names;
mod namespaces;
mod network;
mod process;
mod pull;
mod runtime;
pub(crate) mod sandbox;
mod security;
mod security_opt;
mod sysctl;

use nomad_proto::driver as pb;
use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::hclspec::{object, required};
use super::logging::Logging;
use super::plugin::AllowedModes;
use super::{ConfigError, PluginConfig, from_msgpack};
pub(crate) use archive::Archive;
pub(crate) use devices::{Device, DevicePath};
pub(crate) use labels::Labels;
pub(crate) use limits::{CpuLimits, Limits, MemoryLimits, PidsLimit, Rlimit, Swap};
#[cfg(test)]
pub(crate) use mounts::HostSource;
pub(crate) use mounts::{JobMount, MountSource, Mounts};
pub(crate) use names::{Dns, DnsOptions, Names};
pub(crate) use namespaces::{Namespaces, Sharing};
pub(crate) use network::{Bandwidth, Network, NetworkOptions, Rate, Wishes};
pub(crate) use process::Process;
pub(crate) use pull::{Auth as TaskAuth, Pull, PullPolicy};
pub(crate) use security::{SeccompProfile, Security};

const OF: &str = "task configuration";

/// A task's options, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TaskOptions {
    /// A name; or a path, and then it is the archive's.
    pub image: String,
    pub archive: Option<Archive>,
    pub process: Process,
    pub names: Names,
    pub namespaces: Namespaces,
    pub network: NetworkOptions,
    pub limits: Limits,
    pub mounts: Mounts,
    pub security: Security,
    pub runtime: runtime::Runtime,
    pub pull: Pull,
    pub labels: Labels,
    pub devices: Vec<Device>,
    pub logging: Logging,
}

#[derive(Deserialize)]
struct Raw {
    image: Option<String>,
    #[serde(flatten)]
    archive: archive::Raw,
    #[serde(flatten)]
    process: process::Raw,
    #[serde(flatten)]
    names: names::Raw,
    #[serde(flatten)]
    namespaces: namespaces::Raw,
    #[serde(flatten)]
    network: network::Raw,
    #[serde(flatten)]
    limits: limits::Raw,
    #[serde(flatten)]
    mounts: mounts::Raw,
    #[serde(flatten)]
    security: security::Raw,
    #[serde(flatten)]
    runtime: runtime::Raw,
    #[serde(flatten)]
    pull: pull::Raw,
    #[serde(flatten)]
    labels: labels::Raw,
    #[serde(flatten)]
    devices: devices::Raw,
    #[serde(flatten)]
    logging: logging::Raw,
}

impl TaskOptions {
    pub(crate) fn schema() -> Spec {
        let groups = [
            archive::schema(),
            process::schema(),
            names::schema(),
            namespaces::schema(),
            network::schema(),
            security::schema(),
            limits::schema(),
            mounts::schema(),
            devices::schema(),
            runtime::schema(),
            pull::schema(),
            labels::schema(),
            logging::schema(),
        ];
        object([("image", required("image", "string"))].into_iter().chain(groups.into_iter().flatten()))
    }

    /// Decodes what Nomad sends.
    ///
    /// # Errors
    /// Names the option that is missing or can't have its value.
    pub(crate) fn decode(msgpack: &[u8]) -> Result<Self, ConfigError> {
        let Raw {
            image,
            archive,
            process,
            names,
            namespaces,
            network,
            security,
            limits,
            mounts,
            devices,
            runtime,
            pull,
            labels,
            logging,
        } = from_msgpack(OF, msgpack)?;
        let image = image.filter(|image| !image.is_empty()).ok_or(ConfigError::Missing {
            of: OF,
            option: "image",
            hint: "name an image, such as \"docker.io/library/redis:alpine\"",
        })?;
        let (process, names, namespaces) = (process.decode()?, names.decode()?, namespaces.decode()?);
        let mounts = mounts.decode()?;
        namespaces.agree_with(&process, &names, &mounts)?;
        let network = network.decode()?;
        network.agree_with(&namespaces)?;
        Ok(Self {
            archive: archive.decode(&image)?,
            image,
            process,
            names,
            namespaces,
            network,
            security: security.decode()?,
            limits: limits.decode()?,
            mounts,
            devices: devices.decode()?,
            runtime: runtime.decode()?,
            pull: pull.decode()?,
            labels: labels.decode()?,
            logging: logging.decode()?,
        })
    }

    /// Whose network the task is in, beside what Nomad made for its group, if anything.
    ///
    /// # Errors
    /// Names the option that doesn't go with that network.
    pub(crate) fn network(&self, group: Option<&pb::NetworkIsolationSpec>) -> Result<Network, ConfigError> {
        self.network.network(&self.namespaces, group)
    }

    /// As [`Self::network`], held against what the operator allows: a group may be in the host's network by its own block.
    ///
    /// # Errors
    /// Names the option that doesn't go with that network, or the operator's that forbids it.
    pub(crate) fn network_permitted_by(
        &self,
        group: Option<&pb::NetworkIsolationSpec>,
        allowed: &AllowedModes,
    ) -> Result<Network, ConfigError> {
        use pb::network_isolation_spec::NetworkIsolationMode as Groups;
        let network = self.network(group)?;
        // What the task's own options ask for has been held against it before, by their names.
        if network == Network::Host && group.is_some_and(|group| group.mode() == Groups::Host) {
            AllowedModes::permit_host("network { mode }", "host", "network", &allowed.network)?;
        }
        Ok(network)
    }

    /// Holds what a job asks for against what the operator allows.
    ///
    /// # Errors
    /// Names the task's option and the plugin's that forbids it.
    pub(crate) fn permitted_by(&self, plugin: &PluginConfig) -> Result<(), ConfigError> {
        // Mounts and archives are held against the operator's word where it is known whose directory they may be in.
        let Self {
            image: _,
            archive: _,
            process: _,
            names: _,
            namespaces,
            network,
            security,
            limits,
            mounts: _,
            devices,
            runtime,
            pull: _,
            labels: _,
            logging,
        } = self;
        namespaces.permitted_by(&plugin.allowed_modes)?;
        network.permitted_by(&plugin.allowed_modes)?;
        security.permitted_by(&plugin.gates)?;
        limits.permitted_by(&plugin.limits)?;
        devices::permitted_by(devices, &plugin.devices)?;
        logging::permitted_by(logging, plugin.log_collection)?;
        runtime.permitted_by(plugin)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn decode(options: &Value) -> Result<TaskOptions, ConfigError> {
        TaskOptions::decode(&rmp_serde::to_vec_named(options).unwrap())
    }

    /// What refuses an image with this option.
    pub(crate) fn refusal(option: &str, value: Value) -> String {
        let mut options = serde_json::Map::new();
        options.insert("image".to_owned(), json!("redis"));
        options.insert(option.to_owned(), value);
        let error = decode(&Value::Object(options)).unwrap_err().to_string();
        assert!(error.contains(option), "{error}");
        error
    }

    #[test]
    fn nil_is_absent() {
        let Some(nomad_proto::hclspec::spec::Block::Object(object)) = TaskOptions::schema().block else {
            panic!("the schema is an object");
        };
        let mut all: serde_json::Map<_, _> =
            object.attributes.into_keys().map(|name| (name, Value::Null)).collect();
        all.insert("image".to_owned(), json!("redis"));
        let only_image = TaskOptions { image: "redis".to_owned(), ..TaskOptions::default() };
        assert_eq!(decode(&Value::Object(all)).unwrap(), only_image);
        assert_eq!(decode(&json!({"image": "redis"})).unwrap(), only_image);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let no_image = decode(&json!({"args": null, "command": "x", "image": null})).unwrap_err().to_string();
        assert!(no_image.contains("image"), "{no_image}");
        for bytes in [&b""[..], b"\xc1", b"\x81\xa5image", &rmp_serde::to_vec(&[1, 2]).unwrap()] {
            let error = TaskOptions::decode(bytes).unwrap_err().to_string();
            assert!(error.starts_with("the task configuration can't be decoded"), "{error}");
        }
    }
}
