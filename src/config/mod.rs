//! The options of plugin and task: for each, the schema that Nomad is told and the struct that the configuration is
//! decoded into, side by side. Values are checked here, so that a decoded one is usable; nothing is looked up.

#[cfg(test)]
pub(crate) mod arbitrary;
mod capabilities;
#[cfg(test)]
mod docker_schema;
mod driver_name;
mod hclspec;
mod id_list;
mod logging;
mod number;
#[cfg(test)]
mod option_pages;
mod plugin;
mod seccomp_architectures;
mod size;
mod string_map;
mod task;
mod warnings;

use std::time::Duration;

use serde::Deserialize;

#[cfg(test)]
pub(crate) use capabilities::tests as capability_tests;
pub(crate) use capabilities::{CapabilityList, name_of as capability_name};
pub(crate) use driver_name::DriverName;
pub(crate) use id_list::IdList;
pub(crate) use logging::{
    Attributes as LogAttributes, Compression as GelfCompression, LogEndpoint, LogLimits, LogReceiver,
    LogType, Protocol as LogProtocol, SyslogFormat, TagField, TagPart, TlsPaths, compile as compile_pattern,
};
pub(crate) use plugin::{
    Auth, Bridge, ImageGc, Inline, LogCollection, PluginConfig, PluginDevices, PluginLimits, Pulls,
    ResolvedPath, RuntimeOptions, SecurityPolicy, ShimSharing, TaskDirectory,
};
pub(crate) use seccomp_architectures::SeccompArchitectures;
#[cfg(test)]
pub(crate) use task::HostSource;
pub(crate) use task::{
    Archive, Bandwidth, CpuLimits, Device, DevicePath, Dns, DnsOptions, HostAddress, ImageVolumes, JobMount,
    Labels, Limits, MemoryLimits, MountSource, Mounts, Names, Namespaces, Network, NetworkMode,
    NetworkOptions, OwnNetworkOptions, PidsLimit, Platform, Process, Pull, PullPolicy, Rate, Rlimit,
    SeccompProfile, Security, Sharing, Swap, TaskAuth, TaskOptions, sandbox,
};
pub(crate) use warnings::Warnings;

/// The value of `oci_runtime` that leaves the choice between crun and runc to the driver.
pub(crate) const AUTO_RUNTIME: &str = "auto";

/// Maximum `pids_limit`: the kernel's own maximum of process ids.
const MAX_PIDS: i64 = 1 << 22;
const MAX_OOM_SCORE_ADJ: i64 = 1000;

/// Maximum of a duration, for which longer ones count. What is added to a point in time must not be beyond all times
/// that the system has.
const MAX_DURATION: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// Maximum nesting of a configuration: far beyond any option, and far within a thread's stack.
const MAX_DEPTH: usize = 64;

/// An invalid configuration. The text names the option.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The bytes don't match what the schema lets Nomad send.
    #[error("the {of} can't be decoded")]
    Malformed { of: &'static str, source: rmp_serde::decode::Error },
    #[error("the {of} needs the option {option}: {hint}")]
    Missing { of: &'static str, option: &'static str, hint: &'static str },
    #[error("the option {option} can't be {value:?}: {why}")]
    Value { option: &'static str, value: String, why: String },
    #[error("the options {option} and {other} conflict: leave one of them out")]
    Conflict { option: &'static str, other: &'static str },
    #[error(
        "the option {option} can't be {value:?}: the operator does not allow it; the plugin option {operator_option} \
         needs {needed}"
    )]
    Forbidden { option: &'static str, value: String, operator_option: String, needed: String },
}

/// Decodes the msgpack that Nomad sends, with nesting bounded by [`MAX_DEPTH`].
fn from_msgpack<'a, T: Deserialize<'a>>(of: &'static str, msgpack: &'a [u8]) -> Result<T, ConfigError> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(msgpack);
    decoder.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut decoder).map_err(|source| ConfigError::Malformed { of, source })
}

fn value(option: &'static str, value: impl Into<String>, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { option, value: value.into(), why: why.into() }
}

/// Builds the error for a value that is valid, but that the operator does not allow. `needed` is what the plugin's
/// option `operator_option` would have to have.
fn forbidden(option: &'static str, value: &str, operator_option: &str, needed: &str) -> ConfigError {
    ConfigError::Forbidden {
        option,
        value: value.to_owned(),
        operator_option: operator_option.to_owned(),
        needed: needed.to_owned(),
    }
}

/// Returns the list's strings, or an error if one is null, as Nomad sends an element from an unset variable.
fn reject_nulls(option: &'static str, list: Option<Vec<Option<String>>>) -> Result<Vec<String>, ConfigError> {
    let texts = list.unwrap_or_default().into_iter();
    texts
        .map(|text| {
            text.ok_or_else(|| value(option, "null", "an element is null; is a variable in it unset?"))
        })
        .collect()
}

/// Checks a runtime's name, by which its shim is found, or the path of the shim.
fn runtime(option: &'static str, name: String) -> Result<String, ConfigError> {
    let is_name =
        name.split('.').count() > 1 && name.split('.').all(|part| !part.is_empty()) && !name.contains('/');
    if is_name || name.starts_with('/') {
        return Ok(name);
    }
    let why = "it must be a dotted name such as \"io.containerd.runc.v2\", or the absolute path of a shim; a program \
               such as \"runc\" or \"crun\" is named by the option oci_runtime";
    Err(value(option, name, why))
}

/// Checks the name or path of the OCI runtime that a shim of the runc family runs.
fn program(name: String) -> Result<String, ConfigError> {
    if name.starts_with('/') || !name.contains('/') {
        return Ok(name);
    }
    Err(value("oci_runtime", name, "it must be a program's name such as \"crun\", or its absolute path"))
}

fn duration(option: &'static str, value: String) -> Result<Duration, ConfigError> {
    let parsed = humantime::parse_duration(&value);
    match parsed.or_else(|error| go_duration(&value).ok_or(error)) {
        Ok(duration) if duration.is_zero() => {
            Err(ConfigError::Value { option, value, why: "it must be longer than 0".to_owned() })
        }
        Ok(duration) => Ok(duration.min(MAX_DURATION)),
        Err(error) => Err(ConfigError::Value { option, value, why: format!("{error}; write it as \"5s\"") }),
    }
}

/// Parses a duration with fractions, as Go takes them (`"1.5h"`), and with them Nomad's docker driver.
fn go_duration(text: &str) -> Option<Duration> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c| !is_number(c))?);
        let (unit, tail) = tail.split_at(tail.find(is_number).unwrap_or(tail.len()));
        let unit_s = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let seconds = number.parse::<f64>().ok()? * unit_s;
        total = total.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go_or_in_words() {
        let parsed = |text: &str| duration("timeout", text.to_owned()).map_err(|error| error.to_string());
        for (text, seconds) in
            [("90s", 90.0), ("1h30m", 5400.0), ("1.5h", 5400.0), ("1m0.5s", 60.5), ("2 days", 172_800.0)]
        {
            assert_eq!(parsed(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for wrong in ["", "0s", "0.0s", "1.5", "1..5s", "-1s", "1.5 fortnights", "1.5hm"] {
            assert!(parsed(wrong).unwrap_err().contains("timeout"), "{wrong}");
        }
    }
}
