//! The options of the agent's `plugin "containerd-driver" { config { .. } }` block.

mod allocation;
mod allowed_modes;
mod auth;
mod devices;
mod directories;
mod gc;
mod labels;
mod limits;
mod logs;
mod network;
mod other_drivers;
mod pulls;
pub(in crate::config) mod resolved_path;
mod runtime;
mod security;
mod shim_sharing;
mod spares;
mod start_limit;
pub(in crate::config) mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::hclspec::{default, object, optional, required};
use super::logging::LogType;
use super::{ConfigError, DriverName, Warnings, duration, from_msgpack, program};
pub(crate) use allowed_modes::AllowedModes;
pub(crate) use auth::{Auth, Inline};
pub(crate) use devices::PluginDevices;
pub(crate) use gc::ImageGc;
use gc::{Gc, RawGc};
pub(crate) use labels::ExtraLabels;
pub(crate) use limits::PluginLimits;
pub(crate) use logs::{LogCollection, LogReceivers};
pub(crate) use network::{Bridge, PluginNetworks};
pub(crate) use pulls::Pulls;
pub(in crate::config) use resolved_path::Access;
pub(crate) use resolved_path::{ResolvedPath, TaskDirectory};
pub(crate) use runtime::{AllowRuntimes, RuntimeOptions};
pub(crate) use security::SecurityPolicy;
pub(crate) use shim_sharing::ShimSharing;
use spares::Spares;
use start_limit::StartLimit;
pub(crate) use volumes::Volumes;

const OF: &str = "plugin configuration";
const DEFAULT_SOCKET: &str = "/run/containerd/containerd.sock";
/// Default of `containerd_runtime` under docker's name: dockerd runs runc.
const DOCKERS_RUNTIME: &str = "io.containerd.runc.v2";
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
const DEFAULT_REGISTRY_CONFIG_DIR: &str = "/etc/containerd/certs.d";
const DEFAULT_STATS_INTERVAL: &str = "1s";
/// Maximum length of `state_dir`. The path of a shim's bundle, and of the pipes in it, begins with it, and the kernel's
/// limit for the options of a mount leaves this much. The socket of events, which only some shims need, leaves less.
const STATE_DIR_LIMIT_BYTES: usize = 200;

/// The plugin's options, checked and with their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PluginConfig {
    /// The name under which the driver answers.
    pub name: DriverName,
    pub enabled: bool,
    /// Name of the default runtime as the operator wrote it: dotted, or the path of a shim's binary.
    pub containerd_runtime: String,
    /// The program that a shim of the runc family runs, by name or path. `None` leaves it to the shim, which runs runc.
    pub oci_runtime: Option<String>,
    pub stats_interval: Duration,
    pub containerd_socket: PathBuf,
    pub state_dir: PathBuf,
    pub gc: Gc,
    pub allowed_modes: AllowedModes,
    pub limits: PluginLimits,
    pub volumes: Volumes,
    /// Path of the init program for tasks with `init = true`. `None` searches the host for one.
    pub init_path: Option<PathBuf>,
    pub security_policy: SecurityPolicy,
    pub allow_runtimes: AllowRuntimes,
    /// Options passed to shims, by the runtime's name or path.
    pub runtime_options: BTreeMap<String, RuntimeOptions>,
    pub extra_labels: ExtraLabels,
    pub snapshotter: String,
    pub auth: Auth,
    /// Directory of containerd's `hosts.toml` files. `None` reads none.
    pub registry_config_dir: Option<PathBuf>,
    pub log_collection: LogCollection,
    /// The log type of a task that names none.
    pub log_type: LogType,
    pub log_receivers: LogReceivers,
    pub devices: PluginDevices,
    pub pulls: Pulls,
    pub start_limit: StartLimit,
    pub spares: Spares,
    pub shim_sharing: ShimSharing,
    pub networks: PluginNetworks,
    /// Options that are set and have no effect.
    pub warnings: Warnings,
}

#[derive(Deserialize)]
struct Raw {
    enabled: Option<bool>,
    containerd_runtime: Option<String>,
    oci_runtime: Option<String>,
    stats_interval: Option<String>,
    containerd_socket: Option<String>,
    state_dir: Option<String>,
    gc: Option<RawGc>,
    allowed_modes: Option<allowed_modes::Raw>,
    #[serde(flatten)]
    limits: limits::Raw,
    volumes: Option<volumes::Raw>,
    init_path: Option<String>,
    #[serde(flatten)]
    security: security::Raw,
    allow_runtimes: Option<Vec<Option<String>>>,
    runtime_options: Option<Vec<runtime::RawOptions>>,
    extra_labels: Option<Vec<Option<String>>>,
    snapshotter: Option<String>,
    auth: Option<auth::Raw>,
    registry_config_dir: Option<String>,
    #[serde(flatten)]
    logs: logs::Raw,
    #[serde(flatten)]
    devices: devices::Raw,
    #[serde(flatten)]
    pulls: pulls::Raw,
    #[serde(flatten)]
    start_limit: start_limit::Raw,
    #[serde(flatten)]
    spares: spares::Raw,
    #[serde(flatten)]
    shim_sharing: shim_sharing::Raw,
    #[serde(flatten)]
    networks: network::Raw,
    #[serde(flatten)]
    other_drivers: other_drivers::Raw,
}

impl PluginConfig {
    /// Returns the schema with the defaults that the options have under a name.
    pub(crate) fn schema(name: DriverName) -> Spec {
        let quoted = |text: &str| format!("\"{text}\"");
        let containerd_runtime = name.either(
            required("containerd_runtime", "string"),
            default("containerd_runtime", "string", &quoted(DOCKERS_RUNTIME)),
        );
        let own = [
            ("enabled", default("enabled", "bool", "true")),
            ("containerd_runtime", containerd_runtime),
            ("oci_runtime", optional("oci_runtime", "string")),
            ("stats_interval", default("stats_interval", "string", &quoted(DEFAULT_STATS_INTERVAL))),
            ("containerd_socket", default("containerd_socket", "string", &quoted(DEFAULT_SOCKET))),
            ("state_dir", default("state_dir", "string", &quoted(name.state_dir()))),
            ("gc", gc::schema()),
            ("allowed_modes", allowed_modes::schema()),
            ("volumes", volumes::schema(name)),
            ("init_path", optional("init_path", "string")),
            ("allow_runtimes", runtime::schema(name)),
            ("runtime_options", runtime::options_schema()),
            ("extra_labels", optional("extra_labels", "list(string)")),
            ("snapshotter", default("snapshotter", "string", &quoted(DEFAULT_SNAPSHOTTER))),
            ("auth", auth::schema()),
            (
                "registry_config_dir",
                default("registry_config_dir", "string", &quoted(DEFAULT_REGISTRY_CONFIG_DIR)),
            ),
        ];
        let groups = [
            limits::schema(),
            security::schema(name),
            devices::schema(),
            pulls::schema(),
            start_limit::schema(),
            spares::schema(),
            shim_sharing::schema(),
            network::schema(name),
            logs::schema(),
            other_drivers::schema(),
        ];
        object(own.into_iter().chain(groups.into_iter().flatten()))
    }

    /// Decodes the plugin's configuration. Returns `None` for an empty one, which Nomad sends when it launches the
    /// plugin only to inspect it.
    ///
    /// # Errors
    /// Names the option that is missing or has an invalid value.
    pub(crate) fn decode(name: DriverName, msgpack: &[u8]) -> Result<Option<Self>, ConfigError> {
        if msgpack.is_empty() {
            return Ok(None);
        }
        let Raw {
            enabled,
            containerd_runtime,
            oci_runtime,
            stats_interval,
            containerd_socket,
            state_dir,
            gc,
            allowed_modes,
            limits,
            volumes,
            init_path,
            security,
            allow_runtimes,
            runtime_options,
            extra_labels,
            snapshotter,
            auth,
            registry_config_dir,
            logs,
            devices,
            pulls,
            start_limit,
            spares,
            shim_sharing,
            networks,
            other_drivers,
        } = from_msgpack(OF, msgpack)?;
        let containerd_runtime = default_runtime(name, containerd_runtime)?;
        let allow_runtimes = runtime::decode(name, allow_runtimes)?;
        let runtime_options = runtime::decode_options(runtime_options, &containerd_runtime, &allow_runtimes)?;
        let mut warnings = other_drivers.decode();
        let logs = logs.decode(name, &mut warnings)?;
        let interval = stats_interval.unwrap_or_else(|| DEFAULT_STATS_INTERVAL.to_owned());
        Ok(Some(Self {
            name,
            enabled: enabled.unwrap_or(true),
            containerd_runtime,
            oci_runtime: oci_runtime.filter(|name| !name.is_empty()).map(program).transpose()?,
            stats_interval: duration("stats_interval", interval)?,
            containerd_socket: absolute("containerd_socket", containerd_socket, DEFAULT_SOCKET)?,
            state_dir: state_directory(absolute("state_dir", state_dir, name.state_dir())?)?,
            gc: gc.unwrap_or_default().decode()?,
            allowed_modes: allowed_modes.unwrap_or_default().decode(name)?,
            limits: limits.decode()?,
            volumes: volumes.unwrap_or_default().decode(name)?,
            init_path: init_path
                .filter(|path| !path.is_empty())
                .map(|path| absolute("init_path", Some(path), ""))
                .transpose()?,
            security_policy: security.decode(name)?,
            allow_runtimes,
            runtime_options,
            extra_labels: labels::decode(extra_labels)?,
            snapshotter: snapshotter
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| DEFAULT_SNAPSHOTTER.to_owned()),
            auth: auth.unwrap_or_default().decode()?,
            registry_config_dir: registry_config_dir_of(registry_config_dir)?,
            log_collection: logs.collection,
            log_type: logs.default_type,
            log_receivers: logs.receivers,
            devices: devices.decode()?,
            pulls: pulls.decode()?,
            start_limit: start_limit.decode()?,
            spares: spares.decode()?,
            shim_sharing: shim_sharing.decode()?,
            networks: networks.decode(name)?,
            warnings,
        }))
    }

    /// Returns the names of the runtimes that tasks may have, sorted.
    pub(crate) fn runtimes(&self) -> Vec<&str> {
        let mut names = self.allow_runtimes.names();
        names.push(&self.containerd_runtime);
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn absolute(
    option: &'static str,
    value: Option<String>,
    default_value: &str,
) -> Result<PathBuf, ConfigError> {
    let value = value.filter(|path| !path.is_empty()).unwrap_or_else(|| default_value.to_owned());
    let path = PathBuf::from(&value);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(ConfigError::Value { option, value, why: "it must be an absolute path".to_owned() })
    }
}

/// Decodes `registry_config_dir`, of which an empty value means none.
fn registry_config_dir_of(value: Option<String>) -> Result<Option<PathBuf>, ConfigError> {
    let given = value.unwrap_or_else(|| DEFAULT_REGISTRY_CONFIG_DIR.to_owned());
    if given.is_empty() { Ok(None) } else { absolute("registry_config_dir", Some(given), "").map(Some) }
}

/// Returns the runtime of tasks that name none.
fn default_runtime(name: DriverName, given: Option<String>) -> Result<String, ConfigError> {
    let runtime = given
        .filter(|runtime| !runtime.is_empty())
        .or_else(|| name.either(None, Some(DOCKERS_RUNTIME.to_owned())))
        .ok_or(ConfigError::Missing {
            of: OF,
            option: "containerd_runtime",
            hint: "name a runtime, such as \"io.containerd.runc.v2\"",
        })?;
    super::runtime("containerd_runtime", runtime)
}

fn state_directory(path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.as_os_str().len() <= STATE_DIR_LIMIT_BYTES {
        return Ok(path);
    }
    let why = format!("it must not be longer than {STATE_DIR_LIMIT_BYTES} bytes");
    Err(ConfigError::Value { option: "state_dir", value: path.display().to_string(), why })
}

#[cfg(test)]
pub(in crate::config) mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    pub(in crate::config) fn decode(options: &Value) -> Result<Option<PluginConfig>, ConfigError> {
        PluginConfig::decode(DriverName::ContainerdDriver, &rmp_serde::to_vec_named(options).unwrap())
    }

    /// Returns the configuration with these options, and a `containerd_runtime` unless they have one.
    pub(in crate::config) fn plugin(mut options: Value) -> PluginConfig {
        let needed = options.as_object_mut().unwrap().entry("containerd_runtime");
        needed.or_insert(json!("io.containerd.runc.v2"));
        decode(&options).unwrap().unwrap()
    }

    #[test]
    fn an_empty_configuration_is_none() {
        assert_eq!(PluginConfig::decode(DriverName::Docker, &[]).unwrap(), None);
    }

    #[test]
    fn under_dockers_name_defaults_are_those_of_its_driver() {
        let decoded = |options: Value| {
            PluginConfig::decode(DriverName::Docker, &rmp_serde::to_vec_named(&options).unwrap())
                .unwrap()
                .unwrap()
        };
        let (docker, other) = (decoded(json!({})), plugin(json!({})));
        assert_eq!(docker.containerd_runtime, "io.containerd.runc.v2");
        assert_ne!(docker.state_dir, other.state_dir);
        assert_ne!(docker.name.containerd_namespace(), other.name.containerd_namespace());
        let bridge = |config: &PluginConfig| config.networks.bridge.clone();
        assert_ne!(bridge(&docker).name, bridge(&other).name);
        assert_ne!(bridge(&docker).subnets, bridge(&other).subnets);
        assert_eq!(bridge(&docker).addresses()[0].to_string(), "172.26.96.1");
        assert!(!docker.volumes.enabled && other.volumes.enabled);
        let caps = |config: &PluginConfig| config.security_policy.allow_caps.clone();
        assert!(!docker.security_policy.allow_privileged && other.security_policy.allow_privileged);
        assert!(docker.security_policy.apparmor && !other.security_policy.apparmor);
        assert_eq!(caps(&docker).named().count(), 13);
        assert!(!caps(&docker).all && caps(&other).all);
        let host = vec!["host".to_owned()];
        assert_eq!((&docker.allowed_modes.pid, &docker.allowed_modes.userns), (&host, &host));
        let given = decoded(json!({
            "allow_caps": ["all"], "allow_privileged": true, "allowed_modes": {"pid": []},
            "apparmor": false, "state_dir": "/run/x", "volumes": {"enabled": true},
        }));
        assert!(given.allowed_modes.pid.is_empty() && given.allowed_modes.ipc == host);
        assert!(given.volumes.enabled && given.security_policy.allow_privileged && caps(&given).all);
        assert_eq!(given.state_dir, PathBuf::from("/run/x"));
        assert!(
            !given.security_policy.apparmor && plugin(json!({"apparmor": true})).security_policy.apparmor
        );
    }

    #[test]
    fn nil_options_get_their_defaults() {
        let all_nil = json!({
            "containerd_runtime": "io.containerd.runc.v2", "containerd_socket": null, "enabled": null,
            "oci_runtime": null, "state_dir": null, "stats_interval": null,
        });
        let config = decode(&all_nil).unwrap().unwrap();
        assert!(config.enabled);
        assert_eq!(config.oci_runtime, None);
        assert_eq!(config.stats_interval, Duration::from_secs(1));
        assert_eq!(config.containerd_socket, PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(config.state_dir, PathBuf::from("/run/containerd-driver"));
        assert_eq!(config.limits, PluginLimits::default());
        assert_eq!(config.registry_config_dir, Some(DEFAULT_REGISTRY_CONFIG_DIR.into()));
        assert_eq!(plugin(json!({"registry_config_dir": ""})).registry_config_dir, None);
        let cdi_spec_dirs = vec!["/etc/cdi".into(), "/var/run/cdi".into()];
        assert_eq!(config.devices, PluginDevices { cdi_spec_dirs, allowed: None });
        let in_minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let dangling = |period, dry_run| gc::DanglingContainers {
            enabled: true,
            dry_run,
            period,
            creation_grace: in_minutes(5),
        };
        assert_eq!(config.gc.dangling_containers, dangling(in_minutes(5), false));
        let some = json!({
            "containerd_runtime": "io.containerd.runc.v2",
            "gc": {"dangling_containers": {"creation_grace": null, "dry_run": true, "enabled": null, "period": "1m"}},
        });
        assert_eq!(decode(&some).unwrap().unwrap().gc.dangling_containers, dangling(in_minutes(1), true));
    }

    #[test]
    fn an_invalid_value_is_refused_by_name() {
        let refused = |key: &str, value: Value| {
            let mut options = BTreeMap::from([("containerd_runtime", json!("io.containerd.runc.v2"))]);
            options.insert(key, value);
            decode(&json!(options)).unwrap_err().to_string()
        };
        for (key, value) in [
            ("containerd_runtime", json!("runc")),
            ("containerd_runtime", json!("")),
            ("containerd_runtime", json!(null)),
            ("oci_runtime", json!("bin/crun")),
            ("stats_interval", json!("soon")),
            ("stats_interval", json!("0s")),
            ("pids_limit", json!(-1)),
            ("cdi_spec_dirs", json!(["etc/cdi"])),
            ("allow_devices", json!([null])),
            ("oom_score_adj", json!(1001)),
            ("gc", json!({"dangling_containers": {"period": "0s"}})),
            ("gc", json!({"dangling_containers": {"creation_grace": "now"}})),
            ("allow_caps", json!(["everything"])),
            ("containerd_socket", json!("containerd.sock")),
            ("init_path", json!("tini")),
            ("registry_config_dir", json!("certs.d")),
            ("state_dir", json!(format!("/{}", "x".repeat(300)))),
        ] {
            let error = refused(key, value);
            assert!(error.contains(key), "{error}");
        }
        assert!(refused("enabled", json!("maybe")).contains("plugin configuration can't be decoded"));
    }
}

#[cfg(test)]
mod fuzz {
    use std::time::Instant;

    use serde_json::Value;

    use super::*;

    #[test]
    fn options() {
        crate::fuzz::bytes("plugin-options", |json| {
            let Ok(options) = serde_json::from_slice::<Value>(json) else { return };
            let options = rmp_serde::to_vec_named(&options).unwrap();
            let names = [DriverName::ContainerdDriver, DriverName::Docker];
            let decoded = names.map(|name| PluginConfig::decode(name, &options));
            for config in decoded.into_iter().flatten().flatten() {
                let Pulls { activity_timeout, timeout, .. } = config.pulls;
                for time in [config.stats_interval, config.networks.cni_timeout, activity_timeout, timeout] {
                    assert!(!time.is_zero() && Instant::now().checked_add(time).is_some(), "{time:?}");
                }
            }
        });
    }
}
