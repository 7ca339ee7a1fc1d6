//! Device nodes at a path of the host: a single device, or all below a directory.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};

use super::{DeviceKind, DeviceNode, DevicesError};
use crate::config::{DevicePath, PluginDevices};

/// Names of directories that hold no devices of the host: a container has its own of them.
const SKIPPED_ENTRIES: [&str; 4] = ["fd", "mqueue", "pts", "shm"];
const PERMISSION_BITS: u32 = 0o777;

/// Returns the device nodes at a path. Symbolic links are followed, and the operator's limits apply to their target.
pub(super) fn nodes(
    requested: &DevicePath,
    plugin_devices: &PluginDevices,
) -> Result<Vec<DeviceNode>, DevicesError> {
    let DevicePath { on_host, in_container, permissions } = requested;
    let refused = |why: String| DevicesError::Path { path: on_host.clone(), why };
    let io = |source| DevicesError::Io { path: on_host.clone(), source };
    let path = fs::canonicalize(on_host).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => refused(format!("can't find it: {error}")),
        _ => io(error),
    })?;
    if !plugin_devices.allow_path(&path) {
        return Err(DevicesError::Forbidden { requested: on_host.clone(), path });
    }
    let metadata = fs::metadata(&path).map_err(io)?;
    if !metadata.is_dir() {
        let node = node(&metadata, in_container, permissions);
        return Ok(vec![node.ok_or_else(|| refused("it is a file, not a device".to_owned()))?]);
    }
    let mut nodes = Vec::new();
    below(&path, in_container, permissions, &mut nodes).map_err(io)?;
    if nodes.is_empty() {
        return Err(refused("it is a directory without devices".to_owned()));
    }
    Ok(nodes)
}

fn below(
    directory: &Path,
    in_container: &Path,
    permissions: &str,
    nodes: &mut Vec<DeviceNode>,
) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Metadata of the entry itself: a symbolic link is no device, nor is an entry that was just removed.
        let Ok(metadata) = entry.metadata() else { continue };
        let at = in_container.join(entry.file_name());
        if metadata.is_dir() {
            if !SKIPPED_ENTRIES.iter().any(|name| entry.file_name() == *name) {
                below(&entry.path(), &at, permissions, nodes)?;
            }
        } else {
            nodes.extend(node(&metadata, &at, permissions));
        }
    }
    Ok(())
}

fn node(metadata: &Metadata, at: &Path, permissions: &str) -> Option<DeviceNode> {
    let (kind, major, minor) = numbers(metadata)?;
    Some(DeviceNode {
        path: at.to_owned(),
        kind,
        major,
        minor,
        mode: mode(metadata),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        permissions: permissions.to_owned(),
    })
}

pub(super) fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & PERMISSION_BITS
}

/// Returns the type and numbers of a device node; `None` if the file is no device.
pub(super) fn numbers(metadata: &Metadata) -> Option<(DeviceKind, i64, i64)> {
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => DeviceKind::Block,
        kind if kind.is_char_device() => DeviceKind::Character,
        _ => return None,
    };
    let number = |number: u64| i64::try_from(number).unwrap_or_default();
    Some((kind, number(major(metadata.rdev())), number(minor(metadata.rdev()))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    fn requested(on_host: &Path) -> DevicePath {
        DevicePath::new(on_host.to_str().unwrap(), "/dev/x", "rw").unwrap()
    }

    fn refusal(on_host: &Path, plugin_devices: &PluginDevices) -> String {
        nodes(&requested(on_host), plugin_devices).unwrap_err().to_string()
    }

    #[test]
    fn a_device_is_found_by_its_path_and_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        symlink("/dev/null", &link).unwrap();
        for path in [Path::new("/dev/null"), &link] {
            let [node] = &nodes(&requested(path), &PluginDevices::default()).unwrap()[..] else {
                panic!("one")
            };
            assert_eq!((node.kind, node.major, node.minor), (DeviceKind::Character, 1, 3));
            assert_eq!((node.path.clone(), node.permissions.as_str()), (PathBuf::from("/dev/x"), "rw"));
        }
        let here = directory.path().display().to_string();
        let plugin_devices = PluginDevices { allowed: Some(vec![here]), ..PluginDevices::default() };
        let forbidden = refusal(&link, &plugin_devices);
        assert!(forbidden.contains("/dev/null") && forbidden.contains("allow_devices"), "{forbidden}");
    }

    #[test]
    fn missing_paths_and_plain_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let all = PluginDevices::default();
        let file = directory.path().join("file");
        assert!(refusal(&file, &all).contains("can't find it"));
        fs::write(&file, "").unwrap();
        assert!(refusal(&file, &all).contains("not a device"));
        symlink("/dev/null", directory.path().join("link")).unwrap();
        let empty = refusal(directory.path(), &all);
        assert!(empty.contains("directory without") && empty.contains(directory.path().to_str().unwrap()));
    }

    #[test]
    fn a_directory_expands_to_its_devices() {
        let found = nodes(&requested(Path::new("/dev")), &PluginDevices::default()).unwrap();
        assert!(found.iter().any(|node| node.path == Path::new("/dev/x/null")));
        assert!(!found.iter().any(|node| node.path.starts_with("/dev/x/pts")));
    }
}
