//! Looks up a task's devices on the host: numbers and modes of the nodes at host paths, and the edits of CDI devices in
//! the operator's files. Nothing is made here, and jobs are unknown here.

mod cdi;
mod host;

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::config::{Device, DevicePath, PluginDevices};
use crate::sys::host_files;

/// Everything that comes into a container with its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeviceEdits {
    pub nodes: Vec<DeviceNode>,
    pub env: Vec<String>,
    pub mounts: Vec<CdiMount>,
    pub hooks: Vec<CdiHook>,
    pub groups: Vec<u32>,
}

/// A device node in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: i64,
    pub minor: i64,
    pub mode: u32,
    /// Owner of the node; `None` is the user that the container runs as.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Permitted access to the device: letters of `rwm`.
    pub permissions: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Block,
    Character,
    /// A named pipe, which has neither a device number nor a cgroup rule.
    Pipe,
}

/// A mount that comes with a CDI device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CdiMount {
    pub source: String,
    pub destination: String,
    pub kind: String,
    pub options: Vec<String>,
}

/// A program that a CDI device has run at the container's start or end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CdiHook {
    pub when: HookPoint,
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub timeout_s: Option<i64>,
}

/// Points in a container's life at which hooks run, as in the runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum HookPoint {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DevicesError {
    #[error("the device {}: {why}", path.display())]
    Path { path: PathBuf, why: String },
    #[error("the operator does not allow the device {}; it resolves to {}, which the plugin option allow_devices needs to \
     have", requested.display(), path.display())]
    Forbidden { requested: PathBuf, path: PathBuf },
    #[error("the CDI device {name}: {why}")]
    Cdi { name: String, why: String },
    #[error("two devices have the path {} in the container: give one of them another container_path", .0.display())]
    DuplicatePath(PathBuf),
    #[error("the device {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Looks up the devices that the job asks for, within the operator's limits, and those that Nomad's device plugins gave
/// the task.
///
/// # Errors
/// Names the device that is missing, or is not a device.
pub(crate) async fn find(
    requested: Vec<Device>,
    of_nomad: Vec<DevicePath>,
    plugin_devices: PluginDevices,
) -> Result<DeviceEdits, DevicesError> {
    let mut found = DeviceEdits::default();
    for device in of_nomad {
        found.nodes.extend(nodes(device, PluginDevices::default()).await?);
    }
    let mut names = Vec::new();
    for device in requested {
        match device {
            Device::Path(device) => found.nodes.extend(nodes(device, plugin_devices.clone()).await?),
            Device::Cdi(name) => names.push(name),
        }
    }
    let mut paths = BTreeSet::new();
    if let Some(twice) = found.nodes.iter().find(|node| !paths.insert(&node.path)) {
        return Err(DevicesError::DuplicatePath(twice.path.clone()));
    }
    if names.is_empty() {
        return Ok(found);
    }
    let directories = plugin_devices.cdi_spec_dirs;
    let place = directories.first().cloned().unwrap_or_default();
    let add = move || {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        cdi::add(&mut found, &names, &directories).map(|()| found)
    };
    blocking(place, add).await
}

async fn nodes(device: DevicePath, plugin_devices: PluginDevices) -> Result<Vec<DeviceNode>, DevicesError> {
    blocking(device.on_host.clone(), move || host::nodes(&device, &plugin_devices)).await
}

/// Runs blocking work that may wait for the file system that `path` is on.
async fn blocking<T: Send + 'static>(
    path: PathBuf,
    look: impl FnOnce() -> Result<T, DevicesError> + Send + 'static,
) -> Result<T, DevicesError> {
    let blocking = host_files::look(&path, host_files::LIMIT, look).await;
    blocking.map_err(|source| DevicesError::Io { path, source })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn duplicate_container_paths_are_refused() {
        let device = |on_host| Device::Path(DevicePath::new(on_host, "/dev/x", "r").unwrap());
        let look = |devices| find(devices, Vec::new(), PluginDevices::default());
        assert_eq!(look(vec![device("/dev/null")]).await.unwrap().nodes.len(), 1);
        let twice = look(vec![device("/dev/null"), device("/dev/zero")]).await.unwrap_err().to_string();
        assert!(twice.contains("/dev/x"), "{twice}");
    }
}
