//! Compares whole specifications with recorded ones in `src/spec/golden/`, which shows what a change to one option's
//! code does to tasks that don't set it. `UPDATE_GOLDEN=1 cargo test golden` records them anew; the difference is for a
//! person to review.

use std::path::Path;

use nomad_proto::driver as pb;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Capability;
use serde_json::{Value, json};

use super::*;
use crate::config::{DriverName, Network};

/// Returns a task with the values that Nomad sends for every task.
pub(super) fn task() -> pb::TaskConfig {
    pb::TaskConfig {
        id: "a/web/1".to_owned(),
        name: "web".to_owned(),
        alloc_id: "5f1b2c3d-0000-0000-0000-000000000000".to_owned(),
        env: [("NOMAD_ALLOC_DIR", "/alloc"), ("NOMAD_TASK_DIR", "/local"), ("NOMAD_SECRETS_DIR", "/secrets")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        alloc_dir: "/var/nomad/alloc/5f1b2c3d".to_owned(),
        resources: Some(pb::Resources {
            allocated_resources: Some(pb::AllocatedTaskResources {
                cpu: Some(pb::AllocatedCpuResources { cpu_shares: 500 }),
                memory: Some(pb::AllocatedMemoryResources { memory_mb: 256, memory_max_mb: 512 }),
                ..Default::default()
            }),
            linux_resources: Some(pb::LinuxResources {
                cpu_shares: 500,
                memory_limit_bytes: 512 << 20,
                percent_ticks: 0.25,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn image() -> ImageConfiguration {
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {"Entrypoint": ["/entry"], "Cmd": ["serve"], "Env": ["PATH=/bin", "A=image"], "WorkingDir": "/srv"},
    });
    serde_json::from_value(config).unwrap()
}

/// Builds the specification of a task with these options, as it would be in the container's bundle.
pub(super) fn built(options: &TaskOptions, task: &pb::TaskConfig) -> Result<Value, SpecError> {
    let identity = Identity { uid: 1000, gid: 1001, groups: vec![7, 1001], home: "/home/app".to_owned() };
    let group = task.network_isolation_spec.as_ref();
    let network = match options.network(DriverName::ContainerdDriver, group) {
        Ok(Network::Group(path)) => NetNamespace::At(path.into()),
        Ok(Network::Own(_) | Network::OfTask(_) | Network::OfContainer(_)) => {
            NetNamespace::At("/netns".into())
        }
        Ok(Network::Host) => NetNamespace::Host,
        Ok(Network::Private) | Err(_) => NetNamespace::Own,
    };
    // As in the plan of a start.
    let is_groups = matches!(options.network(DriverName::ContainerdDriver, group), Ok(Network::Group(_)));
    let network_parameters = if is_groups { Vec::new() } else { NETWORK_PARAMETERS.to_vec() };
    let to_stage = options.mounts.list.iter().enumerate();
    let staged = |(n, mount): (usize, &crate::config::JobMount)| {
        (mount.target.clone(), StagedSource { at: format!("/pins/{n}").into(), kept: Vec::new() })
    };
    let volumes = task.mounts.iter().enumerate().map(|(n, mount)| {
        (mount.task_path.clone(), StagedSource { at: format!("/volumes/{n}").into(), kept: Vec::new() })
    });
    let sources = to_stage.map(staged).chain(volumes).chain(mounts::tests::staged_by_nomad()).collect();
    let confinement = Confinement {
        capabilities: [Capability::Chown, Capability::Kill].into(),
        apparmor_profile: Some("settled".to_owned()),
        ..Confinement::default()
    };
    let hosts = BoundFile { source: "/names/hosts".into(), at: "/etc/hosts", writable: true };
    let spec = build(&Inputs {
        options,
        plugin_limits: &PluginLimits::default(),
        confinement: &confinement,
        sources: &sources,
        network: &network,
        files: &[hosts],
        image_volumes: &[],
        host: &HostFacts { network_parameters, ..HostFacts::default() },
        devices: &DeviceEdits::default(),
        is_sandboxed: false,
        task,
        image: &image(),
        identity: &identity,
        rootfs: "/run/containerd-driver/nomad/web-1/rootfs".into(),
        hostname: "web-5f1b2c3d".to_owned(),
        cgroup_path: "/nomad/5f1b2c3d.web".into(),
    })?;
    let mut spec = serde_json::to_value(spec).unwrap();
    // Capabilities are sets, and are written in any order.
    let sets = spec.pointer_mut("/process/capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        set.sort_by_key(Value::to_string);
    }
    Ok(spec)
}

fn is_as_recorded(name: &str, options: &Value, change: impl FnOnce(&mut pb::TaskConfig)) {
    let bytes = rmp_serde::to_vec_named(options).unwrap();
    let options = TaskOptions::decode(DriverName::ContainerdDriver, &bytes).unwrap();
    let mut task = task();
    change(&mut task);
    let spec = built(&options, &task).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/spec/golden/{name}.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{spec:#}\n")).unwrap();
    }
    let recorded =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let recorded: Value = serde_json::from_str(&recorded).unwrap();
    assert_eq!(format!("{spec:#}"), format!("{recorded:#}"), "{name}; see this file's head");
}

#[test]
fn a_task_that_sets_nothing() {
    is_as_recorded("default", &json!({"image": "img"}), |_| {});
}

#[test]
fn a_task_that_sets_much() {
    let options = json!({
        "image": "img", "command": "run", "args": ["-x", "a b"], "pid_mode": "host",
        "runtime": "io.containerd.runc.v2", "oci_runtime": "crun", "snapshotter": "native",
        "image_pull_timeout": "1m", "auth": {"username": "me", "password": "hunter2"}, "labels": {"team": "web"},
        "cwd": "/work", "tty": true, "hostname": "my-web", "sysctl": {"net.core.somaxconn": "7"},
        "readonly_rootfs": true, "no_new_privileges": true, "ulimit": {"nofile": "10:20"}, "pids_limit": 100,
        "shm_size": "1m", "tmpfs": ["/run:size=1m"], "volumes": ["/srv/x:/x:ro"], "ipc_mode": "private",
        "cpu_hard_limit": true, "memory_swap": "1g", "oom_score_adj": 5,
    });
    is_as_recorded("options", &options, |_| {});
}

#[test]
fn a_task_of_a_group_with_a_network_and_volumes() {
    is_as_recorded("group", &json!({"image": "img"}), |task| {
        task.network_isolation_spec = Some(pb::NetworkIsolationSpec {
            path: "/var/run/netns/5f1b2c3d".to_owned(),
            ..Default::default()
        });
        task.mounts = vec![pb::Mount {
            task_path: "/data".to_owned(),
            host_path: "/srv/data".to_owned(),
            readonly: true,
            propagation_mode: "private".to_owned(),
            ..Default::default()
        }];
    });
}
