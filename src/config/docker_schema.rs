//! Tests the schemas against those of Nomad's docker driver, whose jobs and plugin blocks are to be taken unedited: each
//! of its options is one here, with a type that takes all of its values.
//!
//! Source of the facts: hashicorp/nomad `drivers/docker/config.go` @ v1.11.3, and `allowed_modes` of 2.0.6-dev.

use serde_json::{Map, Value, json};

use super::option_pages::schema::declared;
use super::{DriverName, PluginConfig, TaskOptions};

/// The options of a task, with those in blocks, by their types. `list(map(..))` is a map in the forms of
/// [`super::string_map`].
const TASK: [(&str, &str); 84] = [
    ("advertise_ipv6_address", "bool"),
    ("args", "list(string)"),
    ("auth", "block"),
    ("auth.email", "string"),
    ("auth.password", "string"),
    ("auth.server_address", "string"),
    ("auth.username", "string"),
    ("auth_soft_fail", "bool"),
    ("cap_add", "list(string)"),
    ("cap_drop", "list(string)"),
    ("cgroupns", "string"),
    ("command", "string"),
    ("container_exists_attempts", "number"),
    ("cpu_cfs_period", "number"),
    ("cpu_hard_limit", "bool"),
    ("cpuset_cpus", "string"),
    ("devices", "block"),
    ("dns_options", "list(string)"),
    ("dns_search_domains", "list(string)"),
    ("dns_servers", "list(string)"),
    ("entrypoint", "list(string)"),
    ("extra_hosts", "list(string)"),
    ("force_pull", "bool"),
    ("group_add", "list(string)"),
    ("healthchecks", "block"),
    ("healthchecks.disable", "bool"),
    ("hostname", "string"),
    ("image", "string"),
    ("image_pull_timeout", "string"),
    ("init", "bool"),
    ("interactive", "bool"),
    ("ipc_mode", "string"),
    ("ipv4_address", "string"),
    ("ipv6_address", "string"),
    ("isolation", "string"),
    ("labels", "list(map(string))"),
    ("load", "string"),
    ("logging", "block"),
    ("logging.config", "list(map(string))"),
    ("logging.driver", "string"),
    ("logging.type", "string"),
    ("mac_address", "string"),
    ("memory_hard_limit", "number"),
    ("mount", "block"),
    ("mount.bind_options", "block"),
    ("mount.bind_options.propagation", "string"),
    ("mount.readonly", "bool"),
    ("mount.source", "string"),
    ("mount.target", "string"),
    ("mount.tmpfs_options", "block"),
    ("mount.tmpfs_options.mode", "number"),
    ("mount.tmpfs_options.size", "number"),
    ("mount.type", "string"),
    ("mount.volume_options", "block"),
    ("mount.volume_options.driver_config", "block"),
    ("mount.volume_options.driver_config.name", "string"),
    ("mount.volume_options.driver_config.options", "list(map(string))"),
    ("mount.volume_options.labels", "list(map(string))"),
    ("mount.volume_options.no_copy", "bool"),
    ("mounts", "block"),
    ("network_aliases", "list(string)"),
    ("network_mode", "string"),
    ("oom_score_adj", "number"),
    ("pid_mode", "string"),
    ("pids_limit", "number"),
    ("port_map", "list(map(number))"),
    ("ports", "list(string)"),
    ("privileged", "bool"),
    ("readonly_rootfs", "bool"),
    ("runtime", "string"),
    ("security_opt", "list(string)"),
    ("shm_size", "number"),
    ("storage_opt", "map(string)"),
    ("sysctl", "list(map(string))"),
    ("tty", "bool"),
    ("ulimit", "list(map(string))"),
    ("userns_mode", "string"),
    ("uts_mode", "string"),
    ("volume_driver", "string"),
    ("volumes", "list(string)"),
    ("work_dir", "string"),
    // Podman's that docker has not.
    ("arch", "string"),
    ("selinux_opts", "list(string)"),
    ("working_dir", "string"),
];

/// The options of the plugin, like [`TASK`].
const PLUGIN: [(&str, &str); 42] = [
    ("allow_caps", "list(string)"),
    ("allow_privileged", "bool"),
    ("allow_runtimes", "list(string)"),
    ("allowed_modes", "block"),
    ("allowed_modes.ipc", "list(string)"),
    ("allowed_modes.pid", "list(string)"),
    ("allowed_modes.userns", "list(string)"),
    ("allowed_modes.uts", "list(string)"),
    ("auth", "block"),
    ("auth.config", "string"),
    ("auth.helper", "string"),
    ("container_exists_attempts", "number"),
    ("disable_log_collection", "bool"),
    ("endpoint", "string"),
    ("extra_labels", "list(string)"),
    ("gc", "block"),
    ("gc.container", "bool"),
    ("gc.dangling_containers", "block"),
    ("gc.dangling_containers.creation_grace", "string"),
    ("gc.dangling_containers.dry_run", "bool"),
    ("gc.dangling_containers.enabled", "bool"),
    ("gc.dangling_containers.period", "string"),
    ("gc.image", "bool"),
    ("gc.image_delay", "string"),
    ("image_pull_timeout", "string"),
    ("infra_image", "string"),
    ("infra_image_pull_timeout", "string"),
    ("logging", "block"),
    ("logging.config", "map(string)"),
    ("logging.type", "string"),
    ("nvidia_runtime", "string"),
    ("oom_score_adj", "number"),
    ("pids_limit", "number"),
    ("pull_activity_timeout", "string"),
    ("tls", "block"),
    ("tls.ca", "string"),
    ("tls.cert", "string"),
    ("tls.key", "string"),
    ("volumes", "block"),
    ("volumes.enabled", "bool"),
    ("volumes.selinuxlabel", "string"),
    ("windows_allow_insecure_container_admin", "bool"),
];

/// Returns whether an option of the type `ours` takes all values of one of the type `dockers`; `None` takes any.
fn takes(ours: Option<&str>, dockers: &str) -> bool {
    match (ours, dockers) {
        (None, _) => true,
        // Nomad turns a number into a string where one is needed.
        (Some("string"), "number") => true,
        (Some(ours), dockers) => ours == dockers,
    }
}

#[test]
fn every_option_of_docker_is_one_here_with_its_type() {
    let plugin = PluginConfig::schema(DriverName::Docker);
    for (schema, dockers) in [(TaskOptions::schema(), &TASK[..]), (plugin, &PLUGIN[..])] {
        let ours = declared(&schema);
        for (name, kind) in dockers {
            let option = ours.get(*name).unwrap_or_else(|| panic!("the option {name} is missing"));
            assert!(takes(option.kind.as_deref(), kind), "{name} is a {kind}, and here {:?}", option.kind);
        }
    }
}

/// How a job's option is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Done,
    /// With a warning.
    Warned,
    /// Refused, with this word in the error.
    Refused(&'static str),
}
use Taken::{Done, Refused, Warned};

/// Returns options of docker jobs, each as Nomad sends it, with others that it needs.
fn jobs() -> Vec<(Value, Taken)> {
    [jobs_with_options_to_labels(), jobs_with_options_from_load()].concat()
}

/// Returns the options with a network of the task's own, which they need.
fn bridge(mut options: Value) -> Value {
    options["network_mode"] = json!("bridge");
    options
}

fn jobs_with_options_to_labels() -> Vec<(Value, Taken)> {
    vec![
        (bridge(json!({"advertise_ipv6_address": true})), Done),
        (json!({"args": ["-p", "80"]}), Done),
        (
            json!({"auth": {"username": "u", "password": "p", "server_address": "https://index.docker.io/v1/"}}),
            Done,
        ),
        (json!({"auth": {"username": "u", "password": "p", "email": "a@b.c"}}), Warned),
        (json!({"auth_soft_fail": true}), Done),
        (json!({"cap_add": ["net_admin", "CAP_SYS_TIME"]}), Done),
        (json!({"cap_drop": ["all"]}), Done),
        (json!({"cgroupns": "private"}), Done),
        (json!({"command": "redis-server"}), Done),
        (json!({"container_exists_attempts": 10}), Warned),
        (json!({"cpu_cfs_period": 0}), Done),
        (json!({"cpu_cfs_period": 50_000}), Warned),
        (json!({"cpu_hard_limit": true, "cpu_cfs_period": 100_000}), Done),
        (json!({"cpuset_cpus": "0-3"}), Done),
        (json!({"devices": [{"host_path": "/dev/fuse"}]}), Done),
        (
            json!({"dns_servers": ["10.0.0.1"], "dns_search_domains": ["a.b"], "dns_options": ["ndots:2"]}),
            Done,
        ),
        (json!({"entrypoint": ["/bin/sh", "-c"]}), Done),
        (json!({"entrypoint": [""]}), Done),
        (json!({"extra_hosts": ["a:10.0.0.1"]}), Done),
        (json!({"force_pull": true}), Done),
        (json!({"group_add": ["audio"]}), Done),
        (json!({"healthchecks": {"disable": true}}), Done),
        (json!({"healthchecks": {"disable": false}}), Warned),
        (json!({"hostname": "my_host.example"}), Done),
        (json!({"image": "https://registry.example/redis:7"}), Done),
        (json!({"image_pull_timeout": "10m"}), Done),
        (json!({"init": true}), Done),
        (json!({"interactive": true}), Done),
        (json!({"ipc_mode": "shareable"}), Done),
        (json!({"ipc_mode": "none"}), Done),
        (json!({"ipc_mode": "container:abc"}), Refused("ipc_mode")),
        (bridge(json!({"ipv4_address": "172.20.0.5", "ipv6_address": "fd00::5"})), Done),
        (json!({"isolation": "hyperv"}), Refused("Windows")),
        (json!({"labels": {"team": "web"}}), Done),
        (json!({"labels": [{"team": "web"}, {"port": 80}]}), Done),
        (json!({"labels": [{"team": ""}]}), Warned),
    ]
}

fn jobs_with_options_from_load() -> Vec<(Value, Taken)> {
    let volume = |options: Value| json!({"mount": [{"target": "/t", "volume_options": options}]});
    vec![
        (json!({"load": "redis.tar"}), Done),
        (json!({"logging": {"type": "json-file", "config": [{"max-file": "3", "max-size": "10m"}]}}), Done),
        (json!({"logging": {"driver": "syslog", "config": [{"tag": "{{.Name}}"}]}}), Done),
        (json!({"logging": {"type": "json-file", "config": [{"compress": "true"}]}}), Warned),
        (json!({"logging": {"type": "splunk"}}), Refused("fluentd")),
        (bridge(json!({"mac_address": "02:68:b3:29:da:98"})), Done),
        (json!({"memory_hard_limit": 512}), Done),
        (json!({"mount": [{"type": "bind", "source": "local/a", "target": "/a", "readonly": true}]}), Done),
        (json!({"mounts": [{"type": "bind", "source": "local/a", "target": "/a"}]}), Done),
        (
            json!({"mounts": [{"type": "tmpfs", "target": "/a", "tmpfs_options": {"size": 0, "mode": 511}}]}),
            Done,
        ),
        (json!({"mount": [{"type": "volume", "target": "/a"}]}), Done),
        (json!({"mount": [{"type": "volume", "target": "/a", "source": "data"}]}), Refused("volume_mount")),
        (volume(json!({"no_copy": true})), Done),
        (volume(json!({"labels": [{"foo": "bar"}]})), Warned),
        (volume(json!({"driver_config": {"name": "pxd", "options": [{"size": "10G"}]}})), Refused("CSI")),
        (bridge(json!({"network_aliases": ["my_service"]})), Done),
        (json!({"network_mode": "host"}), Done),
        (json!({"oom_score_adj": 500}), Done),
        (json!({"pid_mode": "host"}), Done),
        (json!({"pids_limit": 100}), Done),
        (bridge(json!({"ports": ["http"]})), Done),
        (json!({"privileged": true}), Done),
        (json!({"readonly_rootfs": true}), Done),
        (json!({"runtime": "runc"}), Done),
        (json!({"runtime": "nvidia"}), Refused("CDI")),
        (json!({"security_opt": ["no-new-privileges", "seccomp=unconfined", "apparmor:unconfined"]}), Done),
        (json!({"shm_size": "268435456"}), Done),
        (json!({"shm_size": "0"}), Done),
        (json!({"storage_opt": {"size": "40G"}}), Refused("storage_opt")),
        (json!({"sysctl": [{"net.core.somaxconn": "16384"}]}), Done),
        (json!({"tty": true}), Done),
        (json!({"ulimit": [{"nproc": "4242", "nofile": "2048:4096"}]}), Done),
        (json!({"userns_mode": "host"}), Done),
        (json!({"uts_mode": "host"}), Done),
        (json!({"volume_driver": "local"}), Done),
        (json!({"volume_driver": "pxd", "volumes": ["name:/data"]}), Refused("volume_driver")),
        (json!({"volumes": ["/srv/a:/a:ro", "local/b:/b", "name:/c"]}), Done),
        (json!({"work_dir": "/srv"}), Done),
    ]
}

#[test]
fn docker_jobs_are_taken() {
    let jobs = jobs();
    for (job, wanted) in &jobs {
        let mut all = Map::from_iter([("image".to_owned(), json!("redis"))]);
        all.extend(job.as_object().unwrap().clone());
        let bytes = rmp_serde::to_vec_named(&all).unwrap();
        let taken = match TaskOptions::decode(DriverName::ContainerdDriver, &bytes) {
            Ok(options) if options.warnings.is_empty() => Done,
            Ok(_) => Warned,
            Err(error) => match wanted {
                Refused(word) if error.to_string().contains(word) => *wanted,
                _ => panic!("{job}: {error}"),
            },
        };
        assert_eq!(taken, *wanted, "{job}");
    }
    let is_set = |name: &str| jobs.iter().any(|(job, _)| job.get(name).is_some());
    let top = TASK.iter().map(|(name, _)| *name).filter(|name| !name.contains('.'));
    let untried: Vec<_> = top.filter(|name| !is_set(name)).collect();
    assert_eq!(untried, ["port_map", "arch", "selinux_opts", "working_dir"]);
}
