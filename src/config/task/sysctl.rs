//! Kernel parameters that a job may set: only those of a namespace, and only if that is the task's own.
//!
//! Source of the facts: Linux `ipc/ipc_sysctl.c`, `ipc/mq_sysctl.c`, `net/sysctl_net.c`, `kernel/utsname_sysctl.c`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::{ConfigError, string_map, value};

pub(super) const OPTION: &str = "sysctl";
/// Parameters of the IPC namespace, in addition to all of `fs.mqueue`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// The kind of namespace that a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Ipc,
    Network,
    Uts,
}

pub(super) fn decode(given: Option<Value>) -> Result<BTreeMap<String, String>, ConfigError> {
    let one = |(name, text): (String, Option<String>)| {
        owner(&name)?;
        let Some(text) = text else {
            return Err(value(OPTION, name, "its value is null; is a variable in it unset?"));
        };
        Ok((name, text))
    };
    string_map::decode(OPTION, given)?.into_iter().map(one).collect()
}

pub(super) fn owner(name: &str) -> Result<Owner, ConfigError> {
    if name.contains('/') || name.split('.').any(str::is_empty) {
        return Err(value(OPTION, name, "write it with dots, such as \"net.core.somaxconn\""));
    }
    if name == "kernel.hostname" {
        return Err(value(OPTION, name, "use the option hostname"));
    }
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        Ok(Owner::Ipc)
    } else if name.starts_with("net.") {
        Ok(Owner::Network)
    } else if name == "kernel.domainname" {
        Ok(Owner::Uts)
    } else {
        let why = "it applies to the whole host: set it there. A task can set net.*, kernel.msg*, kernel.sem, kernel.shm*, \
         fs.mqueue.* and kernel.domainname";
        Err(value(OPTION, name, why))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::task::tests::{decode as options, refusal};
    use crate::config::{DriverName, TaskOptions};

    fn task(extra: &Value) -> TaskOptions {
        let mut all = json!({"image": "redis", "sysctl": {
            "net.core.somaxconn": "1024", "kernel.shmmax": "1", "fs.mqueue.msg_max": "10", "kernel.domainname": "x",
        }});
        for (key, value) in extra.as_object().unwrap() {
            all[key] = value.clone();
        }
        options(&all).unwrap()
    }

    #[test]
    fn only_namespaced_sysctls_are_allowed() {
        assert_eq!(task(&json!({})).namespaces.sysctl["net.core.somaxconn"], "1024");
        let of_blocks = task(&json!({"sysctl": [{"net.core.somaxconn": 16384}]}));
        assert_eq!(of_blocks.namespaces.sysctl["net.core.somaxconn"], "16384");
        for wrong in
            ["vm.swappiness", "kernel.panic", "kernel.hostname", "net/core/x", "net..x", "", "net", "../x"]
        {
            let error = refusal("sysctl", json!({wrong: "1"}));
            assert!(error.contains(wrong), "{error}");
        }
        refusal("sysctl", json!({"net.core.somaxconn": null}));
    }

    #[test]
    fn sysctls_need_a_namespace_of_the_tasks_own() {
        task(&json!({})).network(DriverName::ContainerdDriver, None).unwrap();
        for (shared, words) in [
            (json!({"network_mode": "host"}), ["net.core.somaxconn", "network_mode"]),
            (json!({"host_network": true}), ["net.core.somaxconn", "host_network"]),
            (json!({"ipc_mode": "host"}), ["fs.mqueue.msg_max", "ipc_mode"]),
            (json!({"uts_mode": "host"}), ["kernel.domainname", "uts_mode"]),
        ] {
            let error = task(&shared).network(DriverName::ContainerdDriver, None).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
