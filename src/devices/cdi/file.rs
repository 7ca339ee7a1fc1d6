//! A CDI file, which describes devices of the Container Device Interface in JSON or YAML.
//!
//! An unknown key makes a file of a known version unreadable, since it is a mistake. In a file of a later version it is
//! ignored if it only describes. If it is one of the edits, exactly the devices that need those edits become unusable:
//! a device that came with less than it needs would fail in ways that are hard to see.

#![expect(
    clippy::disallowed_methods,
    reason = "opens the operator's files, which no job, image or task can shape"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::devices::HookPoint;

/// The latest CDI version whose keys are all known, by its first two numbers.
const KNOWN: (u64, u64) = (1, 1);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct File {
    cdi_version: String,
    /// The kind of the devices, `vendor/class`.
    pub kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    #[serde(default)]
    pub container_edits: RawEdits,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    pub name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub container_edits: RawEdits,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// Edits that are decoded only if a task needs them.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct RawEdits(Value);

impl RawEdits {
    /// Decodes the edits.
    ///
    /// # Errors
    /// Names the edit that is unknown or invalid.
    pub(super) fn decode(&self) -> Result<Edits, String> {
        match &self.0 {
            Value::Null => Ok(Edits::default()),
            edits => Edits::deserialize(edits).map_err(|error| error.to_string()),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Edits {
    pub env: Option<Vec<String>>,
    pub device_nodes: Option<Vec<NodeEdit>>,
    pub mounts: Option<Vec<Mount>>,
    pub hooks: Option<Vec<Hook>>,
    pub additional_gids: Option<Vec<u32>>,
    pub intel_rdt: Option<IgnoredAny>,
    pub net_devices: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NodeEdit {
    pub path: PathBuf,
    pub host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub file_mode: Option<u32>,
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub options: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub hook_name: HookPoint,
    pub path: PathBuf,
    pub args: Option<Vec<String>>,
    pub env: Option<Vec<String>>,
    pub timeout: Option<i64>,
}

/// Returns true if the path has the extension of a CDI file.
pub(super) fn is_one(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json" || extension == "yaml")
}

/// Reads and checks a CDI file.
///
/// # Errors
/// Says why the file is unusable.
pub(super) fn read(path: &Path) -> Result<File, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse(&text, path.extension().is_some_and(|extension| extension == "json"))
}

/// Parses and checks the content of a CDI file, in JSON or else in YAML.
///
/// # Errors
/// Says why the file is unusable.
pub(super) fn parse(text: &str, is_json: bool) -> Result<File, String> {
    let file: File = if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())?
    };
    let shown = &file.cdi_version;
    let mut numbers = shown.trim_start_matches('v').split('.').map(str::parse::<u64>);
    let (Some(Ok(major @ 0..=1)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(format!("its cdiVersion is {shown:?}; 0.x and 1.x are supported"));
    };
    let mut unknown = file.unknown.keys().chain(file.devices.iter().flat_map(|device| device.unknown.keys()));
    match unknown.next() {
        Some(key) if (major, minor) <= KNOWN => {
            Err(format!("it has {key:?}, which cdiVersion {shown} does not define"))
        }
        _ => Ok(file),
    }
}
