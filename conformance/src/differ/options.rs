//! The options of docker's driver, and what a task of any driver can have, each with values for the jobs.
//!
//! Source of the facts: Nomad 1.11.3 `drivers/docker/config.go` (the schema), `api/tasks.go` (the fields of a task).

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::job::Job;
use crate::random::Random;

/// An option, and values of it: each is what [`Job::apply`] takes.
pub struct Choice {
    pub option: &'static str,
    values: &'static [&'static str],
}

impl Choice {
    /// Returns a job of each value.
    ///
    /// # Errors
    /// Names a value that is no JSON.
    pub fn jobs(&self) -> Result<Vec<Job>> {
        let job = |text: &&str| {
            let mut job = Job::of(format!("{} {text}", self.option), super::images::PLAIN);
            job.apply(self.option, &parsed(text)?);
            Ok(job)
        };
        self.values.iter().map(job).collect()
    }

    /// Applies one of the values to a job.
    ///
    /// # Errors
    /// Names a value that is no JSON.
    pub fn apply_any(&self, random: &mut Random, job: &mut Job) -> Result<()> {
        job.apply(self.option, &parsed(random.word(self.values))?);
        Ok(())
    }
}

fn parsed(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("the value {text}"))
}

const fn choice(option: &'static str, values: &'static [&'static str]) -> Choice {
    Choice { option, values }
}

/// Returns the choices that set this option of docker's driver, or this field of a task.
pub fn named(word: Option<&str>) -> impl Iterator<Item = &'static Choice> + use<'_> {
    let is_wanted = move |choice: &&Choice| word.is_none_or(|word| choice.option == word);
    OF_DOCKER.iter().chain(&OF_ANY_TASK).filter(is_wanted)
}

/// Each option of docker's driver.
pub const OF_DOCKER: [Choice; 58] = [
    choice(
        "image",
        &[
            r#"{"image": "{registry}/differ:both"}"#,
            r#"{"image": "https://{registry}/differ:plain"}"#,
            r#"{"image": "{registry}/differ@{digest}"}"#,
            r#"{"image": "{registry}/differ:nosuchtag"}"#,
            r#"{"image": "{registry}/Not:A:Name"}"#,
        ],
    ),
    choice("advertise_ipv6_address", &[r#"{"advertise_ipv6_address": true}"#]),
    choice(
        "args",
        &[
            r#"{"args": ["/bin/probe", "one", "two words", "", "$HOME", "${NOMAD_TASK_NAME}", "é"]}"#,
            r#"{"args": []}"#,
            r#"{"command": "/bin/sh", "args": ["-c", "exec /bin/probe \"$0\" \"$@\"", "x", "y z"]}"#,
        ],
    ),
    choice(
        "auth",
        &[
            r#"{"auth": {"username": "u", "password": "p"}}"#,
            r#"{"auth": {"username": "u", "password": "p", "server_address": "{registry}", "email": "u@example.org"}}"#,
        ],
    ),
    choice("auth_soft_fail", &[r#"{"auth_soft_fail": true}"#]),
    choice(
        "cap_add",
        &[
            r#"{"cap_add": ["NET_ADMIN", "sys_ptrace"]}"#,
            r#"{"cap_add": ["ALL"]}"#,
            r#"{"cap_add": ["CAP_NET_RAW", "SYS_ADMIN"]}"#,
            r#"{"cap_add": ["NET_ADMIN"], "task": {"User": "app"}}"#,
            r#"{"cap_add": ["NO_SUCH"]}"#,
        ],
    ),
    choice(
        "cap_drop",
        &[
            r#"{"cap_drop": ["CHOWN", "mknod"]}"#,
            r#"{"cap_drop": ["ALL"]}"#,
            r#"{"cap_drop": ["all"], "cap_add": ["CHOWN"]}"#,
            r#"{"cap_drop": ["SETPCAP"], "task": {"User": "app"}}"#,
        ],
    ),
    choice(
        "cgroupns",
        &[r#"{"cgroupns": "private"}"#, r#"{"cgroupns": "host"}"#, r#"{"cgroupns": "other"}"#],
    ),
    choice(
        "command",
        &[
            r#"{"command": "/bin/probe"}"#,
            r#"{"command": "probe", "args": ["found in PATH"]}"#,
            r#"{"command": "nosuchprogram"}"#,
            r#"{"command": "/bin/not-a-program"}"#,
            r#"{"command": "/etc"}"#,
            r#"{"command": "[\"/bin/probe\"]"}"#,
        ],
    ),
    choice("cpuset_cpus", &[r#"{"cpuset_cpus": "0"}"#, r#"{"cpuset_cpus": "0-1"}"#]),
    choice(
        "cpu_hard_limit",
        &[r#"{"cpu_hard_limit": true}"#, r#"{"cpu_hard_limit": true, "resources": {"CPU": 500}}"#],
    ),
    choice(
        "cpu_cfs_period",
        &[
            r#"{"cpu_hard_limit": true, "cpu_cfs_period": 50000}"#,
            r#"{"cpu_cfs_period": 50000}"#,
            r#"{"cpu_hard_limit": true, "cpu_cfs_period": 0}"#,
            r#"{"cpu_hard_limit": true, "cpu_cfs_period": 1000001}"#,
        ],
    ),
    choice("container_exists_attempts", &[r#"{"container_exists_attempts": 3}"#]),
    choice(
        "devices",
        &[
            r#"{"devices": [{"host_path": "/dev/null", "container_path": "/dev/nothing"}]}"#,
            r#"{"devices": [{"host_path": "/dev/zero", "container_path": "/dev/z", "cgroup_permissions": "r"}]}"#,
            r#"{"devices": [{"host_path": "/dev/loop-control"}]}"#,
            r#"{"devices": [{"host_path": "/dev/nosuchdevice"}]}"#,
            r#"{"devices": [{"host_path": "/dev/zero", "cgroup_permissions": "x"}]}"#,
        ],
    ),
    choice("dns_search_domains", &[r#"{"dns_search_domains": ["a.example", "b.example"]}"#]),
    choice("dns_options", &[r#"{"dns_options": ["ndots:3", "rotate"]}"#]),
    choice(
        "dns_servers",
        &[
            r#"{"dns_servers": ["192.0.2.1", "2001:db8::1"]}"#,
            r#"{"dns_servers": ["192.0.2.1"], "dns_search_domains": ["x.example"], "dns_options": ["timeout:1"]}"#,
            r#"{"dns_servers": ["not-an-address"]}"#,
        ],
    ),
    choice(
        "entrypoint",
        &[
            r#"{"entrypoint": ["/bin/probe", "e"]}"#,
            r#"{"entrypoint": ["/bin/sh", "-c", "exec /bin/probe \"$0\""], "args": ["x"]}"#,
            r#"{"entrypoint": [""], "args": ["/bin/probe", "cleared"]}"#,
            r#"{"entrypoint": ["/bin/probe"], "command": "c", "args": ["d"]}"#,
            r#"{"entrypoint": []}"#,
        ],
    ),
    choice(
        "extra_hosts",
        &[
            r#"{"extra_hosts": ["one:192.0.2.7", "two.example:2001:db8::7"]}"#,
            r#"{"extra_hosts": ["gate:host-gateway"]}"#,
            r#"{"extra_hosts": ["same:192.0.2.7", "same:192.0.2.8"]}"#,
            r#"{"extra_hosts": ["nocolon"]}"#,
        ],
    ),
    choice("force_pull", &[r#"{"force_pull": true}"#]),
    choice(
        "group_add",
        &[
            r#"{"group_add": ["extra", "1234"]}"#,
            r#"{"group_add": ["0"], "task": {"User": "app"}}"#,
            r#"{"group_add": ["nosuchgroup"]}"#,
        ],
    ),
    choice("healthchecks", &[r#"{"healthchecks": {"disable": true}}"#]),
    choice(
        "hostname",
        &[
            r#"{"hostname": "some-name"}"#,
            r#"{"hostname": "some.domain.example"}"#,
            r#"{"hostname": "under_score"}"#,
        ],
    ),
    choice(
        "init",
        &[r#"{"init": true}"#, r#"{"init": true, "end": "deaf"}"#, r#"{"init": true, "end": "7"}"#],
    ),
    choice("interactive", &[r#"{"interactive": true}"#, r#"{"interactive": true, "tty": true}"#]),
    choice(
        "ipc_mode",
        &[
            r#"{"ipc_mode": "host"}"#,
            r#"{"ipc_mode": "private"}"#,
            r#"{"ipc_mode": "none"}"#,
            r#"{"ipc_mode": "shareable"}"#,
        ],
    ),
    choice("ipv4_address", &[r#"{"ipv4_address": "172.17.0.77"}"#]),
    choice("ipv6_address", &[r#"{"ipv6_address": "fd00::7"}"#]),
    choice("isolation", &[r#"{"isolation": "process"}"#]),
    choice("labels", &[r#"{"labels": [{"some": "label", "org.example/y": "x y"}]}"#]),
    choice(
        "load",
        &[
            r#"{"image": "differ:saved", "load": "saved.tar", "task": {"Artifacts": [{"GetterSource": "{files}/saved.tar",
                "RelativeDest": "local/saved.tar", "GetterMode": "file", "GetterOptions": {"archive": "false"}}]}}"#,
            r#"{"image": "differ:saved", "load": "missing.tar"}"#,
        ],
    ),
    choice(
        "logging",
        &[
            r#"{"logging": {"type": "json-file", "config": [{"max-file": "2", "max-size": "1m"}]}}"#,
            r#"{"logging": {"driver": "json-file"}}"#,
            r#"{"logging": {"type": "none"}}"#,
            r#"{"logging": {"type": "nosuchdriver"}}"#,
        ],
    ),
    choice("mac_address", &[r#"{"mac_address": "02:42:ac:11:00:99"}"#, r#"{"mac_address": "nonsense"}"#]),
    choice(
        "memory_hard_limit",
        &[r#"{"memory_hard_limit": 128}"#, r#"{"memory_hard_limit": 128, "resources": {"MemoryMaxMB": 96}}"#],
    ),
    choice("mount", MOUNTS),
    choice("mounts", &[r#"{"mounts": [{"type": "bind", "source": "local", "target": "/v1"}]}"#]),
    choice("network_aliases", &[r#"{"network_aliases": ["alias-of-it"]}"#]),
    choice(
        "network_mode",
        &[
            r#"{"network_mode": "host"}"#,
            r#"{"network_mode": "none"}"#,
            r#"{"network_mode": "bridge"}"#,
            r#"{"network_mode": "default"}"#,
            r#"{"network_mode": "nosuchnetwork"}"#,
        ],
    ),
    choice("oom_score_adj", &[r#"{"oom_score_adj": 500}"#, r#"{"oom_score_adj": 1001}"#]),
    choice("runtime", &[r#"{"runtime": "runc"}"#, r#"{"runtime": "nosuchruntime"}"#]),
    choice("pids_limit", &[r#"{"pids_limit": 77}"#]),
    choice("pid_mode", &[r#"{"pid_mode": "host"}"#, r#"{"pid_mode": "nonsense"}"#]),
    choice(
        "ports",
        &[
            r#"{"ports": ["web"], "group": {"Networks": [{"ReservedPorts": [{"Label": "web", "Value": 8080, "To": 80}]}]}}"#,
            r#"{"ports": ["nosuchport"], "group": {"Networks": [{"ReservedPorts": [{"Label": "web", "Value": 8080}]}]}}"#,
            r#"{"ports": ["web"], "group": {"Networks": [{"Mode": "bridge", "ReservedPorts":
                [{"Label": "web", "Value": 8080, "To": 80}]}]}}"#,
        ],
    ),
    choice(
        "port_map",
        &[
            r#"{"port_map": [{"web": 80}], "resources": {"Networks": [{"ReservedPorts": [{"Label": "web", "Value": 8080}]}]}}"#,
            r#"{"port_map": [{"web": 80}]}"#,
        ],
    ),
    choice("privileged", &[r#"{"privileged": true}"#, r#"{"privileged": true, "task": {"User": "app"}}"#]),
    choice("image_pull_timeout", &[r#"{"image_pull_timeout": "3m"}"#, r#"{"image_pull_timeout": "soon"}"#]),
    choice("readonly_rootfs", &[r#"{"readonly_rootfs": true}"#]),
    choice(
        "security_opt",
        &[
            r#"{"security_opt": ["no-new-privileges"]}"#,
            r#"{"security_opt": ["no-new-privileges=true", "seccomp=unconfined"]}"#,
            r#"{"security_opt": ["seccomp={shared}/seccomp.json"]}"#,
            r#"{"security_opt": ["systempaths=unconfined"]}"#,
            r#"{"security_opt": ["nonsense"]}"#,
            r#"{"security_opt": ["apparmor=unconfined"]}"#,
        ],
    ),
    choice("shm_size", &[r#"{"shm_size": 8388608}"#]),
    choice("storage_opt", &[r#"{"storage_opt": {"size": "1G"}}"#]),
    choice(
        "sysctl",
        &[
            r#"{"sysctl": [{"net.core.somaxconn": "4000", "kernel.msgmax": "16384"}]}"#,
            r#"{"sysctl": [{"net.ipv4.ip_unprivileged_port_start": "1000"}]}"#,
            r#"{"sysctl": [{"vm.swappiness": "1"}]}"#,
            r#"{"sysctl": [{"net.core.somaxconn": "4000"}], "network_mode": "host"}"#,
        ],
    ),
    choice("tty", &[r#"{"tty": true}"#]),
    choice(
        "ulimit",
        &[
            r#"{"ulimit": [{"nofile": "2048:4096", "nproc": "100"}]}"#,
            r#"{"ulimit": [{"core": "0", "memlock": "1024:2048"}]}"#,
            r#"{"ulimit": [{"nosuchlimit": "1"}]}"#,
            r#"{"ulimit": [{"nofile": "many"}]}"#,
        ],
    ),
    choice("uts_mode", &[r#"{"uts_mode": "host"}"#, r#"{"uts_mode": "nonsense"}"#]),
    choice("userns_mode", &[r#"{"userns_mode": "host"}"#, r#"{"userns_mode": "nonsense"}"#]),
    choice("volumes", VOLUMES),
    choice(
        "volume_driver",
        &[r#"{"volume_driver": "local"}"#, r#"{"volume_driver": "nosuchdriver", "volumes": ["n:/v1"]}"#],
    ),
    choice(
        "work_dir",
        &[
            r#"{"work_dir": "/home/app"}"#,
            r#"{"work_dir": "/missing/dir"}"#,
            r#"{"work_dir": "relative"}"#,
            r#"{"work_dir": "/missing/dir", "task": {"User": "app"}}"#,
            r#"{"work_dir": "/etc/passwd"}"#,
        ],
    ),
];

const MOUNTS: &[&str] = &[
    r#"{"mount": [{"type": "bind", "source": "local", "target": "/v1"}]}"#,
    r#"{"mount": [{"type": "bind", "source": "{shared}", "target": "/v1", "readonly": true}]}"#,
    r#"{"mount": [{"type": "bind", "source": "{shared}", "target": "/v1", "bind_options": {"propagation": "rslave"}}]}"#,
    r#"{"mount": [{"type": "bind", "source": "{shared}", "target": "/v1", "bind_options": {"propagation": "nonsense"}}]}"#,
    r#"{"mount": [{"type": "bind", "source": "{shared}/nosuchfile", "target": "/v1"}]}"#,
    r#"{"mount": [{"type": "tmpfs", "target": "/v1", "tmpfs_options": {"size": 1048576, "mode": 448}}]}"#,
    r#"{"mount": [{"type": "tmpfs", "target": "/v1"}]}"#,
    r#"{"mount": [{"type": "tmpfs", "target": "/v1", "readonly": true}]}"#,
    r#"{"mount": [{"type": "volume", "target": "/v1"}]}"#,
    r#"{"mount": [{"type": "volume", "target": "/home/app"}]}"#,
    r#"{"mount": [{"type": "volume", "target": "/home/app", "volume_options": {"no_copy": true}}]}"#,
    r#"{"mount": [{"type": "volume", "source": "named-volume", "target": "/v1", "readonly": true}]}"#,
    r#"{"mount": [{"target": "/v1"}, {"type": "bind", "source": "{shared}/file", "target": "/v2"}]}"#,
    r#"{"mount": [{"type": "nonsense", "target": "/v1"}]}"#,
];

const VOLUMES: &[&str] = &[
    r#"{"volumes": ["{shared}:/v1"]}"#,
    r#"{"volumes": ["{shared}:/v1:ro", "{shared}/file:/v2"]}"#,
    r#"{"volumes": ["local/made/here:/v1", "../alloc/data:/v2:rw"]}"#,
    r#"{"volumes": ["{shared}:/v1:rshared"]}"#,
    r#"{"volumes": ["{own}/made/by/docker:/v1"]}"#,
    r#"{"volumes": ["named-volume:/v1"]}"#,
    r#"{"volumes": ["named-volume:/home/app"]}"#,
    r#"{"volumes": ["{shared}:/home/app:ro,z"]}"#,
    r#"{"volumes": ["{shared}:relative"]}"#,
    r#"{"volumes": ["{shared}:/v1:nonsense"]}"#,
    r#"{"volumes": ["/sys:/v1:ro"]}"#,
    r#"{"volumes": ["{shared}:/alloc/data"]}"#,
    r#"{"volumes": ["{shared}/a:/v1", "{shared}/b:/v1"]}"#,
];

/// What a task of any driver can have.
pub const OF_ANY_TASK: [Choice; 12] = [
    choice("nothing", &["{}", r#"{"end": "deaf"}"#]),
    choice(
        "exit",
        &[
            r#"{"end": "0"}"#,
            r#"{"end": "7"}"#,
            r#"{"end": "255"}"#,
            r#"{"end": "kill -9"}"#,
            r#"{"end": "kill -11", "init": true}"#,
            r#"{"end": "memory", "init": true}"#,
        ],
    ),
    choice(
        "user",
        &[
            r#"{"task": {"User": "app"}}"#,
            r#"{"task": {"User": "1000"}}"#,
            r#"{"task": {"User": "4321:8765"}}"#,
            r#"{"task": {"User": "app:extra"}}"#,
            r#"{"task": {"User": "root"}}"#,
            r#"{"task": {"User": "nosuchuser"}}"#,
        ],
    ),
    choice(
        "env",
        &[
            r#"{"env": {"A": "", "B": "a b", "C": "${NOMAD_TASK_NAME} $HOME", "PATH": "/bin", "HOME": "/x", "UTF": "é\n2"}}"#,
        ],
    ),
    choice(
        "kill_signal",
        &[
            r#"{"task": {"KillSignal": "SIGINT"}}"#,
            r#"{"task": {"KillSignal": "SIGUSR2"}}"#,
            r#"{"task": {"KillSignal": "SIGKILL"}}"#,
            r#"{"task": {"KillSignal": "SIGHUP"}, "end": "deaf"}"#,
        ],
    ),
    choice(
        "resources",
        &[
            r#"{"resources": {"CPU": 1, "MemoryMB": 16}}"#,
            r#"{"resources": {"CPU": 1000, "MemoryMB": 256}}"#,
            r#"{"resources": {"MemoryMB": 32, "MemoryMaxMB": 128}}"#,
            r#"{"resources": {"MemoryMB": 32, "MemoryMaxMB": -1}}"#,
            r#"{"resources": {"CPU": 0, "Cores": 1}}"#,
        ],
    ),
    choice(
        "network",
        &[
            r#"{"group": {"Networks": [{"Mode": "bridge"}]}}"#,
            r#"{"group": {"Networks": [{"Mode": "host"}]}}"#,
            r#"{"group": {"Networks": [{"Mode": "none"}]}}"#,
            r#"{"group": {"Networks": [{"Mode": "bridge", "Hostname": "of-the-group"}]}}"#,
            r#"{"group": {"Networks": [{"Mode": "bridge", "DNS": {"Servers": ["192.0.2.9"], "Searches": ["s.example"],
                "Options": ["ndots:2"]}}]}, "extra_hosts": ["one:192.0.2.7"]}"#,
            r#"{"group": {"Networks": [{"Mode": "bridge"}]}, "hostname": "of-the-task"}"#,
            r#"{"group": {"Networks": [{"Mode": "bridge"}]}, "network_mode": "host"}"#,
        ],
    ),
    choice(
        "template",
        &[
            r#"{"task": {"Templates": [{"EmbeddedTmpl": "A={{ env \"NOMAD_JOB_NAME\" }}", "DestPath": "secrets/t.env", "Envvars": true},
            {"EmbeddedTmpl": "x", "DestPath": "local/t", "Perms": "600"}]}}"#,
        ],
    ),
    choice(
        "volume_mount",
        &[
            r#"{"group": {"Volumes": {"v": {"Name": "v", "Type": "host", "Source": "shared"}}},
                "task": {"VolumeMounts": [{"Volume": "v", "Destination": "/v1"}]}}"#,
            r#"{"group": {"Volumes": {"v": {"Name": "v", "Type": "host", "Source": "shared", "ReadOnly": true}}},
                "task": {"VolumeMounts": [{"Volume": "v", "Destination": "/v1", "PropagationMode": "host-to-task"}]}}"#,
        ],
    ),
    choice(
        "log_config",
        &[r#"{"task": {"LogConfig": {"MaxFiles": 2, "MaxFileSizeMB": 2, "Disabled": true}}}"#],
    ),
    choice("identity", &[r#"{"task": {"Identity": {"Env": true, "File": true}}}"#]),
    choice("unknown", &[r#"{"nosuchoption": true}"#, r#"{"tty": "perhaps"}"#]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_json_and_makes_a_job() {
        for choice in named(None) {
            assert!(!choice.jobs().unwrap().is_empty(), "{}", choice.option);
        }
    }

    #[test]
    fn an_option_of_dockers_is_set_by_its_first_value() {
        for choice in &OF_DOCKER {
            let value = parsed(choice.values[0]).unwrap();
            assert!(value.get(choice.option).is_some(), "{}: {value}", choice.option);
        }
    }
}
