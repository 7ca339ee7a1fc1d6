//! Devices of a container, with the mounts, variables, groups and hooks that come with them.

use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Hook, HookBuilder, Hooks, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, Mount, MountBuilder, Spec,
};

use super::process::set_variable;
use crate::devices::{CdiHook, CdiMount, DeviceEdits, DeviceKind, DeviceNode, HookPoint};

/// Adds devices to an otherwise finished specification; their variables, mounts and groups override all others.
pub(super) fn add(spec: &mut Spec, found: &DeviceEdits) -> Result<(), OciSpecError> {
    let DeviceEdits { nodes, env, mounts, hooks, groups } = found;
    let mut user = (0, 0);
    if let Some(process) = spec.process_mut() {
        user = (process.user().uid(), process.user().gid());
        let environment = process.env_mut().get_or_insert_default();
        env.iter().for_each(|entry| set_variable(environment, entry));
        let own = process.user_mut().additional_gids_mut().get_or_insert_default();
        own.extend(groups.iter().filter(|group| !own.contains(group)).copied().collect::<Vec<_>>());
    }
    if let Some(linux) = spec.linux_mut() {
        let made = nodes.iter().map(|node| device(node, user)).collect::<Result<Vec<_>, _>>()?;
        let devices = linux.devices_mut().get_or_insert_default();
        // A privileged task has all devices of the host already.
        devices.retain(|own| !made.iter().any(|device| device.path() == own.path()));
        devices.extend(made);
        let rules = linux.resources_mut().get_or_insert_default().devices_mut().get_or_insert_default();
        let allowed =
            nodes.iter().filter(|node| node.kind != DeviceKind::Pipe && !node.permissions.is_empty());
        rules.extend(allowed.map(rule).collect::<Result<Vec<_>, _>>()?);
    }
    if !mounts.is_empty() {
        let own = spec.mounts_mut().get_or_insert_default();
        own.retain(|own| !mounts.iter().any(|mount| Path::new(&mount.destination) == own.destination()));
        own.extend(mounts.iter().map(mount).collect::<Result<Vec<_>, _>>()?);
        // A mount must come before those below its target, or it would hide them.
        own.sort_by_key(|mount| mount.destination().components().count());
    }
    if !hooks.is_empty() {
        spec.set_hooks(Some(all(hooks)?));
    }
    Ok(())
}

fn kind(node: &DeviceNode) -> LinuxDeviceType {
    match node.kind {
        DeviceKind::Block => LinuxDeviceType::B,
        DeviceKind::Character => LinuxDeviceType::C,
        DeviceKind::Pipe => LinuxDeviceType::P,
    }
}

fn device(node: &DeviceNode, (uid, gid): (u32, u32)) -> Result<LinuxDevice, OciSpecError> {
    let DeviceNode { path, kind: _, major, minor, mode, uid: own_uid, gid: own_gid, permissions: _ } = node;
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(kind(node))
        .major(*major)
        .minor(*minor)
        .file_mode(*mode)
        .uid(own_uid.unwrap_or(uid))
        .gid(own_gid.unwrap_or(gid))
        .build()
}

fn rule(node: &DeviceNode) -> Result<LinuxDeviceCgroup, OciSpecError> {
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(kind(node))
        .major(node.major)
        .minor(node.minor)
        .access(node.permissions.clone())
        .build()
}

fn mount(requested: &CdiMount) -> Result<Mount, OciSpecError> {
    let CdiMount { source, destination, kind, options } = requested;
    let mut options = options.clone();
    if kind == "bind" && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".to_owned());
    }
    MountBuilder::default().destination(destination).source(source).typ(kind.clone()).options(options).build()
}

fn all(hooks: &[CdiHook]) -> Result<Hooks, OciSpecError> {
    let at = |when: HookPoint| {
        let made: Result<Vec<Hook>, _> = hooks.iter().filter(|hook| hook.when == when).map(hook).collect();
        made.map(|made| (!made.is_empty()).then_some(made))
    };
    let mut made = Hooks::default();
    made.set_prestart(at(HookPoint::Prestart)?)
        .set_create_runtime(at(HookPoint::CreateRuntime)?)
        .set_create_container(at(HookPoint::CreateContainer)?)
        .set_start_container(at(HookPoint::StartContainer)?)
        .set_poststart(at(HookPoint::Poststart)?)
        .set_poststop(at(HookPoint::Poststop)?);
    Ok(made)
}

fn hook(requested: &CdiHook) -> Result<Hook, OciSpecError> {
    let CdiHook { when: _, path, args, env, timeout_s } = requested;
    let mut hook = HookBuilder::default().path(path).args(args.clone()).env(env.clone());
    if let Some(timeout) = timeout_s.filter(|timeout| *timeout > 0) {
        hook = hook.timeout(timeout);
    }
    hook.build()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Process, ProcessBuilder, UserBuilder};
    use serde_json::{Value, json};

    use super::*;

    fn process() -> Process {
        let user =
            UserBuilder::default().uid(1000_u32).gid(1001_u32).additional_gids(vec![7]).build().unwrap();
        ProcessBuilder::default().user(user).env(vec!["A=task".to_owned()]).build().unwrap()
    }

    fn added(found: &DeviceEdits) -> Value {
        let mut spec = Spec::default();
        spec.set_process(Some(process())).set_mounts(None);
        add(&mut spec, found).unwrap();
        serde_json::to_value(&spec).unwrap()
    }

    fn node(kind: DeviceKind, permissions: &str, uid: Option<u32>) -> DeviceNode {
        DeviceNode {
            path: "/dev/x".into(),
            kind,
            major: 7,
            minor: 1,
            mode: 0o640,
            uid,
            gid: None,
            permissions: permissions.to_owned(),
        }
    }

    #[test]
    fn devices_get_a_node_and_a_cgroup_rule() {
        let nodes = vec![
            node(DeviceKind::Block, "rw", Some(0)),
            node(DeviceKind::Pipe, "rwm", None),
            node(DeviceKind::Character, "", None),
        ];
        let spec = added(&DeviceEdits { nodes, ..DeviceEdits::default() });
        let wanted = |kind: &str, uid| json!({"path": "/dev/x", "type": kind, "major": 7, "minor": 1, "fileMode": 0o640, "uid": uid, "gid": 1001});
        let devices = &spec["linux"]["devices"];
        assert_eq!(*devices, json!([wanted("b", 0), wanted("p", 1000), wanted("c", 1000)]));
        let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
        let ours = json!({"allow": true, "type": "b", "major": 7, "minor": 1, "access": "rw"});
        assert_eq!(rules.last(), Some(&ours));
        assert_eq!(rules.iter().filter(|rule| rule["allow"] == true).count(), 1, "{rules:?}");
    }

    #[test]
    fn a_device_mount_replaces_the_one_at_its_target() {
        let mut spec = Spec::default();
        let own =
            |at: &str| MountBuilder::default().destination(at).source("own").typ("bind").build().unwrap();
        spec.set_process(Some(process())).set_mounts(Some(["/a/b/c", "/dev", "/a/b"].map(own).to_vec()));
        let of_device = |at: &str| CdiMount {
            source: "device".to_owned(),
            destination: at.to_owned(),
            kind: "bind".to_owned(),
            options: Vec::new(),
        };
        let mounts = ["/a", "/a/b/"].map(of_device).to_vec();
        add(&mut spec, &DeviceEdits { mounts, ..DeviceEdits::default() }).unwrap();
        let made = spec.mounts().clone().unwrap();
        let shown = |mount: &Mount| {
            (mount.destination().display().to_string(), mount.source().clone().unwrap().display().to_string())
        };
        let of = |at: &str, source: &str| (at.to_owned(), source.to_owned());
        assert_eq!(
            made.iter().map(shown).collect::<Vec<_>>(),
            [of("/dev", "own"), of("/a", "device"), of("/a/b/", "device"), of("/a/b/c", "own")]
        );
    }

    #[test]
    fn cdi_edits_are_applied() {
        let hook = |when| CdiHook {
            when,
            path: "/bin/hook".into(),
            args: vec!["hook".to_owned()],
            env: vec!["H=1".to_owned()],
            timeout_s: Some(5),
        };
        let mount = |at: &str, kind: &str, options: &[&str]| CdiMount {
            source: "/lib/x".to_owned(),
            destination: at.to_owned(),
            kind: kind.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let spec = added(&DeviceEdits {
            env: vec!["A=device".to_owned(), "B=1".to_owned()],
            mounts: vec![
                mount("/opt/x", "bind", &["ro"]),
                mount("/opt/y", "bind", &["bind", "ro"]),
                mount("/opt/z", "bind", &["rbind"]),
                mount("/scratch/x", "tmpfs", &[]),
            ],
            hooks: vec![
                hook(HookPoint::CreateRuntime),
                CdiHook { timeout_s: Some(0), ..hook(HookPoint::Poststop) },
                CdiHook { timeout_s: None, ..hook(HookPoint::StartContainer) },
            ],
            groups: vec![7, 44],
            ..DeviceEdits::default()
        });
        assert_eq!(spec["process"]["env"], json!(["A=device", "B=1"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([7, 44]));
        let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "source": "/lib/x", "type": kind, "options": options});
        let mounts = json!([
            mount("/opt/x", "bind", &["ro", "rbind"]),
            mount("/opt/y", "bind", &["bind", "ro"]),
            mount("/opt/z", "bind", &["rbind"]),
            mount("/scratch/x", "tmpfs", &[]),
        ]);
        assert_eq!(spec["mounts"], mounts);
        let unlimited = json!([{"path": "/bin/hook", "args": ["hook"], "env": ["H=1"]}]);
        let mut limited = unlimited.clone();
        limited[0]["timeout"] = json!(5);
        let hooks = json!({"createRuntime": limited, "poststop": unlimited, "startContainer": unlimited});
        assert_eq!(spec["hooks"], hooks);
    }
}
