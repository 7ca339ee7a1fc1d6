//! A file that describes devices of the Container Device Interface, JSON or YAML. What it has beyond what is known here
//! makes it unreadable: a device that came with less than it needs would fail in ways that are hard to see.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::devices::When;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    cdi_version: String,
    /// `vendor/class`
    pub kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    #[serde(default)]
    pub container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub container_edits: Edits,
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
    pub hook_name: When,
    pub path: PathBuf,
    pub args: Option<Vec<String>>,
    pub env: Option<Vec<String>>,
    pub timeout: Option<i64>,
}

/// Whether a path is that of such a file, by its name.
pub(super) fn is_one(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json" || extension == "yaml")
}

/// # Errors
/// Says why it is of no use.
pub(super) fn read(path: &Path) -> Result<File, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let file: File = if path.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(&text).map_err(|error| error.to_string())?
    } else {
        serde_saphyr::from_str(&text).map_err(|error| error.to_string())?
    };
    match file.cdi_version.split('.').next() {
        Some("0" | "1") => Ok(file),
        _ => Err(format!("its cdiVersion is {:?}; 0.x and 1.x are known", file.cdi_version)),
    }
}
