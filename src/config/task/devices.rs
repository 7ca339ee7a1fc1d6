//! The option `devices`: host devices of a task, as paths, as blocks, or by CDI names.
//!
//! Source of the facts: docker's command line for the short form; cncf-tags/container-device-interface `SPEC.md`.

use std::path::{Component, Path, PathBuf};

use nomad_proto::hclspec::Spec;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::hclspec::optional;
use crate::config::plugin::PluginDevices;
use crate::config::{ConfigError, forbidden, value};

const OPTION: &str = "devices";
const ALL_PERMISSIONS: &str = "rwm";
const EXAMPLE: &str = "it must be \"/dev/fuse\", \"/dev/fuse:/dev/other:rw\", the name of a CDI device such as \
                       \"vendor.com/gpu=0\", or a block with host_path";

/// A device that the job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    Path(DevicePath),
    /// CDI name, `vendor/class=name`; its CDI file says what else comes with the device.
    Cdi(String),
}

/// Path on the host of a device, or of a directory of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicePath {
    pub on_host: PathBuf,
    pub in_container: PathBuf,
    /// Permitted access: letters of `rwm` (read, write, mknod).
    pub permissions: String,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    devices: Option<Value>,
}

/// Declares `devices`, whose elements are strings or blocks, so that Nomad can't check them.
pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![(OPTION, optional(OPTION, "any"))]
}

impl Raw {
    pub(super) fn decode(self) -> Result<Vec<Device>, ConfigError> {
        let listed = match self.devices {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        listed.into_iter().map(device).collect()
    }
}

fn device(requested: Value) -> Result<Device, ConfigError> {
    match requested {
        Value::String(text) => short(&text),
        Value::Object(block) => long(&block),
        other => Err(value(OPTION, other.to_string(), EXAMPLE)),
    }
}

/// Decodes `host[:container][:permissions]`, or a CDI name.
fn short(text: &str) -> Result<Device, ConfigError> {
    if is_cdi_name(text) {
        return Ok(Device::Cdi(text.to_owned()));
    }
    let parts: Vec<&str> = text.split(':').collect();
    let (on_host, in_container, permissions) = match parts[..] {
        [host] => (host, host, ALL_PERMISSIONS),
        [host, permissions] if are_permissions(permissions) => (host, host, permissions),
        [host, container] => (host, container, ALL_PERMISSIONS),
        [host, container, permissions] => (host, container, permissions),
        _ => return Err(value(OPTION, text, EXAMPLE)),
    };
    DevicePath::new(on_host, in_container, permissions)
        .map(Device::Path)
        .map_err(|why| value(OPTION, text, why))
}

fn long(block: &Map<String, Value>) -> Result<Device, ConfigError> {
    let shown = || Value::Object(block.clone()).to_string();
    let known = ["host_path", "container_path", "cgroup_permissions"];
    if let Some(key) = block.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(value(OPTION, shown(), format!("unknown key {key}; a device has {}", known.join(", "))));
    }
    let text = |key: &str| match block.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(value(OPTION, shown(), format!("{key} must be a string"))),
    };
    let (host, container, permissions) = (text(known[0])?, text(known[1])?, text(known[2])?);
    if is_cdi_name(host) && container.is_empty() && permissions.is_empty() {
        return Ok(Device::Cdi(host.to_owned()));
    }
    DevicePath::new(host, or(container, host), or(permissions, ALL_PERMISSIONS))
        .map(Device::Path)
        .map_err(|why| value(OPTION, shown(), why))
}

fn or<'a>(given: &'a str, default_value: &'a str) -> &'a str {
    if given.is_empty() { default_value } else { given }
}

impl DevicePath {
    /// Checks the paths and the permissions.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub(crate) fn new(on_host: &str, in_container: &str, permissions: &str) -> Result<Self, String> {
        let (host, container) = (Path::new(on_host), Path::new(in_container));
        if !host.is_absolute() {
            return Err(EXAMPLE.to_owned());
        }
        let leads_up = container.components().any(|part| part == Component::ParentDir);
        if !container.is_absolute() || leads_up || container == Path::new("/") {
            return Err(format!(
                "its path in the container, {in_container:?}, must be absolute, below / and without \"..\""
            ));
        }
        if !are_permissions(permissions) {
            return Err(format!(
                "its permissions are {permissions:?}; they must be of r, w and m, each once"
            ));
        }
        Ok(Self {
            on_host: host.to_owned(),
            in_container: container.to_owned(),
            permissions: permissions.to_owned(),
        })
    }
}

fn are_permissions(text: &str) -> bool {
    let each_once = |c: char| ALL_PERMISSIONS.contains(c) && text.matches(c).count() == 1;
    !text.is_empty() && text.chars().all(each_once)
}

/// Returns true if the text has the form `vendor/class=name` with the characters that each part allows.
fn is_cdi_name(text: &str) -> bool {
    let Some((kind, name)) = text.split_once('=') else { return false };
    let Some((vendor, class)) = kind.split_once('/') else { return false };
    let made_of = |text: &str, others: &str| {
        let plain = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        plain(text.chars().next())
            && plain(text.chars().last())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
    };
    made_of(vendor, "_-.") && made_of(class, "_-.") && made_of(name, "_-.:")
}

/// Checks a job's devices, by the names in the job, against what the operator allows.
pub(super) fn permitted_by(devices: &[Device], operators: &PluginDevices) -> Result<(), ConfigError> {
    let refused = devices.iter().find(|device| match device {
        Device::Path(device) => !operators.allow_path(&device.on_host),
        Device::Cdi(name) => !operators.allow_cdi(name),
    });
    let requested = match refused {
        None => return Ok(()),
        Some(Device::Path(device)) => device.on_host.display().to_string(),
        Some(Device::Cdi(name)) => name.clone(),
    };
    Err(forbidden(OPTION, &requested, "allow_devices", &requested))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::task::tests::{decode, refusal};

    fn devices(requested: &Value) -> Vec<Device> {
        decode(&json!({"image": "x", "devices": requested})).unwrap().devices
    }

    fn path(on_host: &str, in_container: &str, permissions: &str) -> Device {
        Device::Path(DevicePath::new(on_host, in_container, permissions).unwrap())
    }

    #[test]
    fn a_device_is_a_path_a_block_or_a_cdi_name() {
        let listed =
            devices(&json!(["/dev/a", "/dev/a:/dev/b", "/dev/a:r", "/dev/a:/dev/b:rm", "v.com/c-1=all"]));
        let wanted = [
            path("/dev/a", "/dev/a", "rwm"),
            path("/dev/a", "/dev/b", "rwm"),
            path("/dev/a", "/dev/a", "r"),
            path("/dev/a", "/dev/b", "rm"),
            Device::Cdi("v.com/c-1=all".to_owned()),
        ];
        assert_eq!(listed, wanted);
        let blocks = json!([
            {"host_path": "/dev/a"},
            {"host_path": "/dev/a", "container_path": "/dev/b", "cgroup_permissions": "w"},
            {"host_path": "v.com/c=1"},
            "/dev/c",
        ]);
        let wanted = [
            path("/dev/a", "/dev/a", "rwm"),
            path("/dev/a", "/dev/b", "w"),
            Device::Cdi("v.com/c=1".to_owned()),
            path("/dev/c", "/dev/c", "rwm"),
        ];
        assert_eq!(devices(&blocks), wanted);
        assert_eq!(devices(&json!({"host_path": "/dev/a"})), [path("/dev/a", "/dev/a", "rwm")]);
        assert!(devices(&json!([])).is_empty() && devices(&json!(null)).is_empty());
    }

    #[test]
    fn an_invalid_device_is_refused() {
        for (wrong, word) in [
            (json!(["dev/a"]), "dev/a"),
            (json!([""]), "must be"),
            (json!(["/dev/a:/dev/b:x"]), "permissions"),
            (json!(["/dev/a:/dev/b:rr"]), "permissions"),
            (json!(["/dev/a:/dev/b:r:w"]), "/dev/a"),
            (json!(["/dev/a:b"]), "absolute"),
            (json!(["/dev/a:/dev/../etc/b"]), ".."),
            (json!(["/dev/a:/"]), "below /"),
            (json!(["v.com/c=-1"]), "CDI"),
            (json!([null]), "null"),
            (json!([{"container_path": "/dev/a"}]), "host_path"),
            (json!([{"host_path": "/dev/a", "permissions": "r"}]), "cgroup_permissions"),
            (json!([{"host_path": 1}]), "host_path"),
            (json!([{"host_path": "v.com/c=1", "container_path": "/dev/a"}]), "must be"),
        ] {
            let error = refusal("devices", wrong);
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn devices_need_the_operators_permission() {
        let operators = PluginDevices {
            allowed: Some(vec!["/dev/dri".to_owned(), "v.com/c=1".to_owned(), "v.com/d".to_owned()]),
            ..PluginDevices::default()
        };
        let requested = |name: &str| permitted_by(&devices(&json!([name])), &operators);
        for allowed in ["/dev/dri", "/dev/dri/card0:/dev/card:r", "v.com/c=1", "v.com/d=7"] {
            requested(allowed).unwrap();
        }
        for refused in ["/dev/drive", "/dev", "/dev/dri/../sda:/dev/a", "v.com/c=12", "v.com/dd=1"] {
            let error = requested(refused).unwrap_err().to_string();
            let name = refused.trim_end_matches(":/dev/a");
            assert!(error.contains(name) && error.contains("allow_devices"), "{error}");
            permitted_by(&devices(&json!([refused])), &PluginDevices::default()).unwrap();
        }
    }
}
