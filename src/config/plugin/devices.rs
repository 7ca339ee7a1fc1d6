//! The plugin's options about devices: those of the host that jobs may have, and the directories of CDI files.

use std::path::{Component, Path, PathBuf};

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{default, optional};
use crate::config::{ConfigError, reject_nulls, value};

const CDI_SPEC_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// The plugin's options about devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PluginDevices {
    /// Directories of CDI files; a later one takes precedence over an earlier one.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Paths, which include all below them, and CDI names or kinds. `None` allows all devices.
    pub allowed: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    cdi_spec_dirs: Option<Vec<Option<String>>>,
    allow_devices: Option<Vec<Option<String>>>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    let directories = CDI_SPEC_DIRS.map(|directory| format!("{directory:?}")).join(", ");
    vec![
        ("cdi_spec_dirs", default("cdi_spec_dirs", "list(string)", &format!("[{directories}]"))),
        ("allow_devices", optional("allow_devices", "list(string)")),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<PluginDevices, ConfigError> {
        let Self { cdi_spec_dirs, allow_devices } = self;
        let directories = match cdi_spec_dirs {
            None => CDI_SPEC_DIRS.map(str::to_owned).to_vec(),
            given => reject_nulls("cdi_spec_dirs", given)?,
        };
        if let Some(relative) = directories.iter().find(|directory| !Path::new(directory).is_absolute()) {
            return Err(value("cdi_spec_dirs", relative, "it must be an absolute path"));
        }
        Ok(PluginDevices {
            cdi_spec_dirs: directories.into_iter().map(PathBuf::from).collect(),
            allowed: allow_devices.map(|given| reject_nulls("allow_devices", Some(given))).transpose()?,
        })
    }
}

impl PluginDevices {
    /// Returns true if the path, or a directory above it, is allowed.
    pub(crate) fn allow_path(&self, path: &Path) -> bool {
        let leads_up = path.components().any(|part| part == Component::ParentDir);
        let is_below = |allowed: &String| allowed.starts_with('/') && path.starts_with(allowed);
        self.allowed.as_ref().is_none_or(|allowed| !leads_up && allowed.iter().any(is_below))
    }

    /// Returns true if the CDI device, or its kind, is allowed.
    pub(crate) fn allow_cdi(&self, name: &str) -> bool {
        let kind = name.split_once('=').map(|(kind, _)| kind);
        let is_named = |allowed: &String| allowed == name || Some(allowed.as_str()) == kind;
        self.allowed.as_ref().is_none_or(|allowed| allowed.iter().any(is_named))
    }
}
