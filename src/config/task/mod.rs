//! The options of a job's `task { driver = "containerd-driver" config { .. } }` block, one file for each group: its
//! schema, the form in which Nomad sends it, and the struct that it is decoded into.

mod archive;
mod devices;
mod labels;
mod limits;
mod logging;
mod mounts;
mod names;
mod namespaces;
mod network;
mod other_drivers;
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
use super::{ConfigError, DriverName, PluginConfig, Warnings, from_msgpack};
pub(crate) use archive::Archive;
pub(crate) use devices::{Device, DevicePath};
pub(crate) use labels::Labels;
pub(crate) use limits::{CpuLimits, Limits, MemoryLimits, PidsLimit, Rlimit, Swap};
#[cfg(test)]
pub(crate) use mounts::HostSource;
pub(crate) use mounts::{ImageVolumes, JobMount, MountSource, Mounts};
pub(crate) use names::{Dns, DnsOptions, HostAddress, Names};
pub(crate) use namespaces::{Namespaces, Sharing};
pub(crate) use network::{Bandwidth, Network, NetworkMode, NetworkOptions, OwnNetworkOptions, Rate};
pub(crate) use process::Process;
pub(crate) use pull::{Auth as TaskAuth, Platform, Pull, PullPolicy};
pub(crate) use security::{SeccompProfile, Security};

const OF: &str = "task configuration";

/// A task's options, checked for themselves, not yet against the operator's limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TaskOptions {
    /// Name of the image, or path of the archive that it is loaded from.
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
    /// Options that are set and have no effect.
    pub warnings: Warnings,
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
    #[serde(flatten)]
    other_drivers: other_drivers::Raw,
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
            other_drivers::schema(),
        ];
        object([("image", required("image", "string"))].into_iter().chain(groups.into_iter().flatten()))
    }

    /// Decodes the configuration that Nomad sends. Some options have docker's defaults under its name.
    ///
    /// # Errors
    /// Names the option that is missing or has an invalid value.
    pub(crate) fn decode(driver: DriverName, msgpack: &[u8]) -> Result<Self, ConfigError> {
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
            other_drivers,
        } = from_msgpack(OF, msgpack)?;
        let image = image.filter(|image| !image.is_empty()).ok_or(ConfigError::Missing {
            of: OF,
            option: "image",
            hint: "name an image, such as \"docker.io/library/redis:alpine\"",
        })?;
        let image = without_scheme(image);
        let mut warnings = Warnings::default();
        other_drivers.decode(&mut warnings)?;
        let process = process.decode()?;
        let names = names.decode(driver, &mut warnings)?;
        let namespaces = namespaces.decode(driver, &mut warnings)?;
        let mounts = mounts.decode(driver, &mut warnings)?;
        namespaces.check_conflicts(&process, &names, &mounts)?;
        let network = network.decode()?;
        network.check_conflicts(&namespaces)?;
        Ok(Self {
            archive: archive.decode(&image)?,
            image,
            process,
            names,
            namespaces,
            network,
            security: security.decode(driver, &mut warnings)?,
            limits: limits.decode(&mut warnings)?,
            mounts,
            devices: devices.decode()?,
            runtime: runtime.decode()?,
            pull: pull.decode(&mut warnings)?,
            labels: labels.decode(&mut warnings)?,
            logging: logging.decode(&mut warnings)?,
            warnings,
        })
    }

    /// Returns the network of the task, given the one that Nomad made for its group, if any.
    ///
    /// # Errors
    /// Names the option that conflicts with that network.
    pub(crate) fn network(
        &self,
        driver: DriverName,
        group: Option<&pb::NetworkIsolationSpec>,
    ) -> Result<Network, ConfigError> {
        self.network.network(driver, &self.namespaces, group)
    }

    /// Like [`Self::network`], and checks a host network that comes from the group's own block against what the
    /// operator allows.
    ///
    /// # Errors
    /// Names the option that conflicts with that network, or the operator's that forbids it.
    pub(crate) fn network_permitted_by(
        &self,
        driver: DriverName,
        group: Option<&pb::NetworkIsolationSpec>,
        allowed: &AllowedModes,
    ) -> Result<Network, ConfigError> {
        use pb::network_isolation_spec::NetworkIsolationMode as Groups;
        let network = self.network(driver, group)?;
        // A host network from the task's own options has been checked by `permitted_by`, under their names.
        if network == Network::Host && group.is_some_and(|group| group.mode() == Groups::Host) {
            AllowedModes::permit_host("network { mode }", "host", "network", &allowed.network)?;
        }
        Ok(network)
    }

    /// Adds a warning for each option that has no effect in the task's network, and that docker's driver takes there.
    pub(crate) fn warn_of_idle(&mut self, driver: DriverName, network: &Network) {
        self.network.warn_of_idle(driver, network, &mut self.warnings);
    }

    /// Returns the options that are set and have no effect, also those that only have none under the plugin's options.
    pub(crate) fn warnings_under(&self, plugin: &PluginConfig) -> Warnings {
        let mut warnings = self.warnings.clone();
        logging::warn_of_limits(&self.logging, plugin.log_collection, &plugin.log_type, &mut warnings);
        warnings
    }

    /// Checks the job's options against what the operator allows.
    ///
    /// # Errors
    /// Names the task's option and the plugin's that forbids it.
    pub(crate) fn permitted_by(&self, plugin: &PluginConfig) -> Result<(), ConfigError> {
        // Mounts and archives are checked where the allocation directory is known (`task/mounts.rs`).
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
            warnings: _,
        } = self;
        namespaces.permitted_by(&plugin.allowed_modes)?;
        network.permitted_by(&plugin.allowed_modes)?;
        security.permitted_by(&plugin.security_policy)?;
        limits.permitted_by(&plugin.limits)?;
        devices::permitted_by(devices, &plugin.devices)?;
        logging::permitted_by(logging, plugin.log_collection, &plugin.log_receivers)?;
        runtime.permitted_by(plugin)
    }
}

/// Returns an image's name without the scheme that docker's or podman's users put in front of it. It says nothing of
/// how the registry is asked, which is the operator's to say.
fn without_scheme(image: String) -> String {
    let rest = ["https://", "http://", "docker://"].into_iter().find_map(|scheme| image.strip_prefix(scheme));
    match rest {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') => rest.to_owned(),
        _ => image,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sys::error_chain::Chained;

    pub(crate) fn decode(options: &Value) -> Result<TaskOptions, ConfigError> {
        decode_as(DriverName::ContainerdDriver, options)
    }

    pub(crate) fn decode_as(driver: DriverName, options: &Value) -> Result<TaskOptions, ConfigError> {
        TaskOptions::decode(driver, &rmp_serde::to_vec_named(options).unwrap())
    }

    /// Returns the error of a job with this option and value.
    pub(crate) fn refusal(option: &str, value: Value) -> String {
        let mut options = serde_json::Map::new();
        options.insert("image".to_owned(), json!("redis"));
        options.insert(option.to_owned(), value);
        let error = decode(&Value::Object(options)).unwrap_err().chain().to_string();
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
    fn an_images_scheme_is_left_out() {
        let image = |name: &str| decode(&json!({"image": name})).unwrap().image;
        for scheme in ["", "https://", "http://", "docker://"] {
            assert_eq!(
                image(&format!("{scheme}registry.example:5000/redis:7")),
                "registry.example:5000/redis:7"
            );
        }
        for other in ["https:///etc/redis.tar", "oci-archive:redis.tar", "https://", "./local/redis.tar"] {
            assert_eq!(image(other), other);
        }
    }

    #[test]
    fn an_invalid_configuration_is_refused() {
        let no_image = decode(&json!({"args": null, "command": "x", "image": null})).unwrap_err().to_string();
        assert!(no_image.contains("image"), "{no_image}");
        for bytes in [&b""[..], b"\xc1", b"\x81\xa5image", &rmp_serde::to_vec(&[1, 2]).unwrap()] {
            let error = TaskOptions::decode(DriverName::Docker, bytes).unwrap_err().to_string();
            assert!(error.starts_with("the task configuration can't be decoded"), "{error}");
        }
    }
}

#[cfg(test)]
mod fuzz {
    use serde_json::Value;

    use super::*;
    use crate::config::{DriverName, PluginConfig};

    fn check(msgpack: &[u8]) {
        for driver in [DriverName::ContainerdDriver, DriverName::Docker] {
            check_as(driver, msgpack);
        }
    }

    fn check_as(driver: DriverName, msgpack: &[u8]) {
        let Ok(options) = TaskOptions::decode(driver, msgpack) else { return };
        for mount in &options.mounts.list {
            assert!(mount.target.starts_with('/') && !mount.target.contains('\0'), "{mount:?}");
            assert!(!mount.target.split('/').any(|part| matches!(part, "." | "..")), "{mount:?}");
        }
        let timeout = options.pull.timeout.unwrap_or_default();
        assert!(std::time::Instant::now().checked_add(timeout).is_some(), "{timeout:?}");
        let plugin = serde_json::json!({"containerd_runtime": "io.containerd.runc.v2"});
        let plugin =
            PluginConfig::decode(DriverName::ContainerdDriver, &rmp_serde::to_vec_named(&plugin).unwrap());
        let _ = options.permitted_by(&plugin.unwrap().unwrap());
    }

    #[test]
    fn messages() {
        crate::fuzz::bytes("task-options-msgpack", check);
    }

    /// As JSON, whose values the fuzzer finds sooner.
    #[test]
    fn options() {
        crate::fuzz::bytes("task-options", |json| {
            let Ok(options) = serde_json::from_slice::<Value>(json) else { return };
            check(&rmp_serde::to_vec_named(&options).unwrap());
        });
    }
}
