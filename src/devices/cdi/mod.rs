//! Devices of the Container Device Interface: files in the operator's directories list, for each device by its name,
//! the nodes, mounts, variables and hooks that come into a container with it.
//!
//! Source of the facts: cncf-tags/container-device-interface `SPEC.md` 0.3 to 1.0; its `pkg/cdi` for the order of edits
//! and the precedence of directories.

mod file;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{CdiHook, CdiMount, DeviceEdits, DeviceKind, DeviceNode, DevicesError, host};
use file::{Edits, File, NodeEdit};

const DEFAULT_MODE: u32 = 0o666;

/// A CDI file with the rank of its directory: later directories take precedence.
struct RankedFile {
    rank: usize,
    path: PathBuf,
    file: File,
}

/// Adds the edits of the named devices. The edits that a file has for all its devices are added once, before the first
/// device.
pub(super) fn add(
    found: &mut DeviceEdits,
    names: &[&str],
    directories: &[PathBuf],
) -> Result<(), DevicesError> {
    let (read, unreadable) = read(directories);
    let mut used = Vec::new();
    for name in names {
        let refused = |why| DevicesError::Cdi { name: (*name).to_owned(), why };
        let (index, device) = named(name, &read).map_err(|why| {
            let besides: String = unreadable.iter().map(|why| format!("; {why}")).collect();
            let searched: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
            refused(format!("{why} (cdi_spec_dirs: {}){besides}", searched.join(", ")))
        })?;
        let RankedFile { file, .. } = &read[index];
        if !used.contains(&index) {
            used.push(index);
            apply(found, &file.container_edits.decode().map_err(refused)?).map_err(refused)?;
        }
        apply(found, &file.devices[device].container_edits.decode().map_err(refused)?).map_err(refused)?;
    }
    Ok(())
}

/// Reads all files; also returns an error text for each that can't be used.
fn read(directories: &[PathBuf]) -> (Vec<RankedFile>, Vec<String>) {
    let (mut read, mut unreadable) = (Vec::new(), Vec::new());
    for (rank, directory) in directories.iter().enumerate() {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                unreadable.push(format!("{} can't be read: {error}", directory.display()));
                continue;
            }
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths.into_iter().filter(|path| file::is_one(path)) {
            match file::read(&path) {
                Ok(file) => read.push(RankedFile { rank, path, file }),
                Err(why) => unreadable.push(format!("{} can't be read: {why}", path.display())),
            }
        }
    }
    (read, unreadable)
}

/// Finds a device by its name: the index of its file, and of the device in it.
fn named(name: &str, read: &[RankedFile]) -> Result<(usize, usize), String> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (index, RankedFile { rank, file, .. }) in read.iter().enumerate() {
        let is_it = |device: &file::Device| format!("{}={}", file.kind, device.name) == name;
        let Some(device) = file.devices.iter().position(is_it) else { continue };
        found.retain(|(earlier, _)| read[*earlier].rank == *rank);
        found.push((index, device));
    }
    match found[..] {
        [] => Err("no file describes it".to_owned()),
        [one] => Ok(one),
        _ => {
            let paths: Vec<_> =
                found.iter().map(|(file, _)| read[*file].path.display().to_string()).collect();
            Err(format!("several files describe it: {}", paths.join(", ")))
        }
    }
}

fn apply(found: &mut DeviceEdits, edits: &Edits) -> Result<(), String> {
    if edits.intel_rdt.is_some() || edits.net_devices.is_some() {
        return Err("it needs intelRdt or netDevices, which are not supported".to_owned());
    }
    for edit in edits.device_nodes.iter().flatten() {
        let node = node(edit)?;
        // Several devices of a kind may each name a node that they share.
        found.nodes.retain(|other| other.path != node.path);
        found.nodes.push(node);
    }
    if let Some(wrong) = edits.env.iter().flatten().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return Err(format!("its variable {wrong:?} is not of the form NAME=value"));
    }
    found.env.extend(edits.env.iter().flatten().cloned());
    for file::Mount { host_path, container_path, kind, options } in edits.mounts.iter().flatten() {
        // Several devices of a kind may each name a mount that they share, too.
        found.mounts.retain(|other| Path::new(&other.destination) != Path::new(container_path));
        found.mounts.push(CdiMount {
            source: host_path.clone(),
            destination: container_path.clone(),
            kind: kind.clone().filter(|kind| !kind.is_empty()).unwrap_or_else(|| "bind".to_owned()),
            options: options.clone().unwrap_or_default(),
        });
    }
    for file::Hook { hook_name, path, args, env, timeout } in edits.hooks.iter().flatten() {
        found.hooks.push(CdiHook {
            when: *hook_name,
            path: path.clone(),
            args: args.clone().unwrap_or_default(),
            env: env.clone().unwrap_or_default(),
            timeout_s: *timeout,
        });
    }
    if edits.additional_gids.iter().flatten().any(|group| *group == u32::MAX) {
        return Err(format!("its group {} means no group", u32::MAX));
    }
    // A device can't give group 0 to a container that does not have it.
    found.groups.extend(edits.additional_gids.iter().flatten().filter(|group| **group > 0));
    Ok(())
}

/// Converts a node. Attributes that the file leaves out are those of the host's node.
fn node(edit: &NodeEdit) -> Result<DeviceNode, String> {
    let NodeEdit { path, host_path, kind, major, minor, file_mode, permissions, uid, gid } = edit;
    if !path.is_absolute() {
        return Err(format!("its node {} is no absolute path", path.display()));
    }
    if let Some(wrong) = [*major, *minor].into_iter().flatten().find(|number| *number < 0) {
        return Err(format!("its node {} has the device number {wrong}", path.display()));
    }
    if let Some(wrong) = permissions.as_deref().filter(|given| !matches!(*given, "none") && !is_access(given))
    {
        return Err(format!("its node {} has the permissions {wrong:?}, not letters of rwm", path.display()));
    }
    let named = match kind.as_deref() {
        None | Some("") => None,
        Some("b") => Some(DeviceKind::Block),
        Some("c" | "u") => Some(DeviceKind::Character),
        Some("p") => Some(DeviceKind::Pipe),
        Some(other) => {
            return Err(format!("its node {} has the type {other:?}, not b, c, u or p", path.display()));
        }
    };
    let (kind, major, minor, mode) = match (named, *major) {
        (Some(DeviceKind::Pipe), _) => (DeviceKind::Pipe, 0, 0, DEFAULT_MODE),
        (Some(kind), Some(major)) => (kind, major, minor.unwrap_or_default(), DEFAULT_MODE),
        _ => on_host(host_path.as_ref().unwrap_or(path), named)?,
    };
    Ok(DeviceNode {
        path: path.clone(),
        kind,
        major,
        minor,
        mode: file_mode.unwrap_or(mode),
        uid: *uid,
        gid: *gid,
        permissions: match permissions.as_deref() {
            None | Some("") => "rwm".to_owned(),
            Some("none") => String::new(),
            Some(given) => given.to_owned(),
        },
    })
}

fn is_access(permissions: &str) -> bool {
    permissions.chars().all(|letter| matches!(letter, 'r' | 'w' | 'm'))
}

fn on_host(path: &Path, named: Option<DeviceKind>) -> Result<(DeviceKind, i64, i64, u32), String> {
    let shown = path.display();
    let metadata =
        fs::metadata(path).map_err(|error| format!("its node {shown} is not on the host: {error}"))?;
    let (kind, major, minor) =
        host::numbers(&metadata).ok_or_else(|| format!("its node {shown} is not a device"))?;
    if named.is_some_and(|named| named != kind) {
        return Err(format!("its node {shown} is of another type on the host"));
    }
    Ok((kind, major, minor, host::mode(&metadata)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::HookPoint;

    const FULL: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.com/gpu
annotations: {"vendor.com/note": "x"}
containerEdits:
  env: [ALL=1]
devices:
- name: "0"
  containerEdits:
    env: [ONE=0]
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/null
      permissions: rw
      fileMode: 384
      uid: 7
    - {path: /dev/shared, type: c, major: 1, minor: 5}
    mounts:
    - {hostPath: /lib/x, containerPath: /opt/x, options: [ro, rbind]}
    hooks:
    - {hookName: createContainer, path: /bin/hook, args: [hook, a], env: [H=1], timeout: 5}
    additionalGids: [0, 44]
- name: "1"
  containerEdits:
    deviceNodes:
    - {path: /dev/shared, type: c, major: 1, minor: 5}
"#;

    fn device(version: &str, path: &str) -> String {
        format!(
            r#"{{"cdiVersion": "{version}", "kind": "vendor.com/gpu", "devices":
               [{{"name": "0", "containerEdits": {{"deviceNodes": [{{"path": "{path}"}}]}}}}]}}"#
        )
    }

    fn found(files: &[(&str, &str)], names: &[&str]) -> Result<DeviceEdits, String> {
        let root = tempfile::tempdir().unwrap();
        let directories = ["etc", "run", "absent"].map(|name| root.path().join(name));
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut found = DeviceEdits::default();
        add(&mut found, names, &directories).map_err(|error| error.to_string()).map(|()| found)
    }

    #[test]
    fn edits_of_several_devices_are_merged() {
        let found = found(&[("etc/a.yaml", FULL)], &["vendor.com/gpu=0", "vendor.com/gpu=1"]).unwrap();
        assert_eq!(found.env, ["ALL=1", "ONE=0"]);
        let [gpu, shared] = &found.nodes[..] else { panic!("{:?}", found.nodes) };
        assert_eq!((gpu.kind, gpu.major, gpu.minor, gpu.mode), (DeviceKind::Character, 1, 3, 0o600));
        assert_eq!((gpu.uid, gpu.gid, gpu.permissions.as_str()), (Some(7), None, "rw"));
        assert_eq!((shared.major, shared.minor, shared.mode), (1, 5, 0o666));
        let mount = &found.mounts[0];
        assert_eq!((mount.source.as_str(), mount.destination.as_str()), ("/lib/x", "/opt/x"));
        assert_eq!(mount.kind, "bind");
        let hook = &found.hooks[0];
        assert_eq!((hook.when, hook.timeout_s), (HookPoint::CreateContainer, Some(5)));
        assert_eq!(
            (&hook.args[..], &hook.env[..]),
            (&["hook".to_owned(), "a".to_owned()][..], &["H=1".to_owned()][..])
        );
        assert_eq!(found.groups, [44]);
    }

    #[test]
    fn a_shared_mount_is_added_once() {
        let text = r#"{"cdiVersion": "0.6.0", "kind": "v/c", "devices": [
            {"name": "0", "containerEdits": {"mounts": [{"hostPath": "/a", "containerPath": "/opt/x/"},
                                                        {"hostPath": "/b", "containerPath": "/opt/y"}]}},
            {"name": "1", "containerEdits": {"mounts": [{"hostPath": "/c", "containerPath": "/opt/x"}]}}]}"#;
        let found = found(&[("etc/a.json", text)], &["v/c=0", "v/c=1"]).unwrap();
        let mounts: Vec<_> = found.mounts.iter().map(|mount| (&*mount.source, &*mount.destination)).collect();
        assert_eq!(mounts, [("/b", "/opt/y"), ("/c", "/opt/x")]);
    }

    #[test]
    fn fields_of_later_versions_disable_only_their_devices() {
        let text = |version: &str| {
            format!(
                r#"{{"cdiVersion": "{version}", "kind": "v/c", "described": true, "devices": [
                    {{"name": "old", "note": 1, "containerEdits": {{"env": ["A=1"]}}}},
                    {{"name": "new", "containerEdits": {{"env": ["A=1"], "later": [1]}}}}]}}"#
            )
        };
        let of = |version: &str, name: &str| found(&[("etc/a.json", &text(version))], &[name]);
        assert_eq!(of("1.2.0", "v/c=old").unwrap().env, ["A=1"]);
        let error = of("1.2.0", "v/c=new").unwrap_err();
        assert!(error.contains("v/c=new") && error.contains("later"), "{error}");
        let error = of("1.0.0", "v/c=old").unwrap_err();
        assert!(error.contains("\"described\"") && error.contains("1.0.0"), "{error}");
    }

    #[test]
    fn later_directories_take_precedence() {
        let (first, second) = (device("0.3.0", "/dev/null"), device("1.0.0", "/dev/zero"));
        let path = |files: &[(&str, &str)]| {
            found(files, &["vendor.com/gpu=0"]).map(|found| found.nodes[0].path.display().to_string())
        };
        assert_eq!(path(&[("etc/a.json", &first), ("run/b.json", &second)]).unwrap(), "/dev/zero");
        assert_eq!(path(&[("etc/a.json", &first), ("etc/b.txt", &second)]).unwrap(), "/dev/null");
        let both = path(&[("run/a.json", &first), ("run/b.json", &second)]).unwrap_err();
        assert!(both.contains("vendor.com/gpu=0") && both.contains("b.json"), "{both}");
    }

    #[test]
    fn unresolvable_cdi_devices_are_refused_by_name() {
        let refusal = |text: &str, name: &str| found(&[("etc/a.yaml", text)], &[name]).unwrap_err();
        let absent = refusal(FULL, "vendor.com/gpu=7");
        assert!(absent.contains("vendor.com/gpu=7") && absent.contains("/etc"), "{absent}");
        let broken = refusal("kind: [", "vendor.com/gpu=0");
        assert!(broken.contains("a.yaml"), "{broken}");
        let no_directory = found(&[("run", "")], &["vendor.com/gpu=0"]).unwrap_err();
        assert!(no_directory.contains("/run can't be read"), "{no_directory}");
        let edit = |edits: &str| {
            refusal(
                &format!(
                    r#"{{"cdiVersion": "0.5.0", "kind": "v/c", "devices": [{{"name": "x", "containerEdits": {edits}}}]}}"#
                ),
                "v/c=x",
            )
        };
        for (edits, word) in [
            (r#"{"deviceNodes": [{"path": "/dev/not-there"}]}"#, "/dev/not-there"),
            (r#"{"deviceNodes": [{"path": "/etc/passwd"}]}"#, "not a device"),
            (r#"{"deviceNodes": [{"path": "/dev/null", "type": "b"}]}"#, "another type"),
            (r#"{"deviceNodes": [{"path": "/dev/null", "type": "x"}]}"#, "\"x\""),
            (r#"{"deviceNodes": [{"path": "/dev/null", "permissions": "rwx"}]}"#, "\"rwx\""),
            (r#"{"env": ["=1"]}"#, "=1"),
            (r#"{"netDevices": [{}]}"#, "netDevices"),
            (r#"{"hooks": [{"hookName": "never", "path": "/x"}]}"#, "never"),
            (r#"{"later": 1}"#, "later"),
        ] {
            let error = edit(edits);
            assert!(error.contains(word) && error.contains("v/c=x"), "{word}: {error}");
        }
        let future =
            found(&[("etc/a.json", &device("2.0.0", "/dev/null"))], &["vendor.com/gpu=0"]).unwrap_err();
        assert!(future.contains("2.0.0"), "{future}");
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn files() {
        crate::fuzz::text("cdi", |text| {
            for is_json in [true, false] {
                let Ok(file) = file::parse(text, is_json) else { continue };
                let mut found = DeviceEdits::default();
                for edits in [&file.container_edits]
                    .into_iter()
                    .chain(file.devices.iter().map(|device| &device.container_edits))
                {
                    let Ok(edits) = edits.decode() else { continue };
                    let _ = apply(&mut found, &edits);
                }
                assert!(
                    found.env.iter().all(|entry| entry.find('=').is_some_and(|at| at > 0)),
                    "{:?}",
                    found.env
                );
                assert!(found.groups.iter().all(|group| *group > 0));
                let paths: std::collections::BTreeSet<_> =
                    found.nodes.iter().map(|node| &node.path).collect();
                assert_eq!(paths.len(), found.nodes.len());
                assert!(found.nodes.iter().all(|node| is_access(&node.permissions)), "{:?}", found.nodes);
            }
        });
    }
}
