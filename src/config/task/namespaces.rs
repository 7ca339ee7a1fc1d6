//! The options about a task's namespaces, shared with the host or its own, and about kernel parameters in them.

use std::collections::BTreeMap;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;
use serde_json::Value;

use super::sysctl::{self, Owner};
use super::{Mounts, Names, Network, Process};
use crate::config::hclspec::optional;
use crate::config::plugin::AllowedModes;
use crate::config::{ConfigError, DriverName, Warnings, string_map, value};

/// The options about a task's namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// PID namespace: the processes that the task sees.
    pub pid_mode: Sharing,
    /// IPC namespace: shared memory, semaphores and message queues.
    pub ipc_mode: Sharing,
    /// `true` for an IPC namespace of the task's own without `/dev/shm`.
    pub without_shm: bool,
    /// UTS namespace: the host name.
    pub uts_mode: Sharing,
    /// Cgroup namespace. `None` is docker's default: the task's own under cgroup v2.
    pub cgroupns: Option<Sharing>,
    /// Whether the job asks for the host's user namespace, which every task has, since no other is supported yet.
    pub userns_is_the_hosts: bool,
    pub host_network: bool,
    pub sysctl: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// The task's own.
    #[default]
    Private,
    /// The host's.
    Host,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    pid_mode: Option<String>,
    ipc_mode: Option<String>,
    uts_mode: Option<String>,
    cgroupns: Option<String>,
    userns_mode: Option<String>,
    userns: Option<String>,
    host_network: Option<bool>,
    sysctl: Option<Value>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("pid_mode", optional("pid_mode", "string")),
        ("ipc_mode", optional("ipc_mode", "string")),
        ("uts_mode", optional("uts_mode", "string")),
        ("cgroupns", optional("cgroupns", "string")),
        ("userns_mode", optional("userns_mode", "string")),
        ("userns", optional("userns", "string")),
        ("host_network", optional("host_network", "bool")),
        ("sysctl", string_map::schema("sysctl")),
    ]
}

impl Raw {
    pub(super) fn decode(
        self,
        driver: DriverName,
        warnings: &mut Warnings,
    ) -> Result<Namespaces, ConfigError> {
        let Self { pid_mode, ipc_mode, uts_mode, cgroupns, userns_mode, userns, host_network, sysctl } = self;
        let userns_mode = userns_mode.filter(|mode| {
            // A dockerd that maps no users does not look at the word.
            let is_ignored = driver.is_docker() && !mode.is_empty() && mode != "host";
            if is_ignored {
                let why = format!("{mode:?} is none of its values; the task is in the host's user namespace");
                warnings.add("userns_mode", why);
            }
            !is_ignored
        });
        let sharing = |option, mode| Ok(Sharing::named(option, mode)?.unwrap_or_default());
        let without_shm = ipc_mode.as_deref() == Some("none");
        // Nobody shares a task's own, as somebody could under docker.
        let ipc_mode = ipc_mode.filter(|mode| !matches!(mode.as_str(), "none" | "shareable"));
        Ok(Namespaces {
            pid_mode: sharing("pid_mode", pid_mode)?,
            ipc_mode: sharing("ipc_mode", ipc_mode)?,
            without_shm,
            uts_mode: sharing("uts_mode", uts_mode)?,
            cgroupns: Sharing::named("cgroupns", cgroupns)?,
            userns_is_the_hosts: userns_is_the_hosts("userns_mode", userns_mode)?
                || userns_is_the_hosts("userns", userns)?,
            host_network: host_network.unwrap_or_default(),
            sysctl: sysctl::decode(sysctl)?,
        })
    }
}

impl Sharing {
    fn named(option: &'static str, mode: Option<String>) -> Result<Option<Self>, ConfigError> {
        match mode.unwrap_or_default() {
            mode if mode.is_empty() => Ok(None),
            mode if mode == "private" => Ok(Some(Self::Private)),
            mode if mode == "host" => Ok(Some(Self::Host)),
            mode if mode.starts_with("container:") => {
                let why = "a task shares this with no other container; run both in one task, or let them talk over the group's \
                           network or /alloc";
                Err(value(option, mode, why))
            }
            mode => Err(value(option, mode, "it must be \"private\" or \"host\"")),
        }
    }
}

fn userns_is_the_hosts(option: &'static str, mode: Option<String>) -> Result<bool, ConfigError> {
    match mode.unwrap_or_default() {
        mode if mode.is_empty() => Ok(false),
        mode if mode == "host" => Ok(true),
        mode => Err(value(
            option,
            mode,
            "only \"host\" is supported: another user namespace needs the image's files with other owners, which no \
             snapshotter here provides; run the task as another user (user in the task block), or leave the option \
             out",
        )),
    }
}

impl Namespaces {
    /// Checks for conflicts with the options of other groups.
    pub(super) fn check_conflicts(
        &self,
        process: &Process,
        names: &Names,
        mounts: &Mounts,
    ) -> Result<(), ConfigError> {
        if let (Some(name), Sharing::Host) = (&names.hostname, self.uts_mode) {
            return Err(value(
                "hostname",
                name,
                "with uts_mode = \"host\" it would be the host's: leave out one of the two",
            ));
        }
        if process.init && self.pid_mode == Sharing::Host {
            return Err(value(
                "init",
                "true",
                "with pid_mode = \"host\" the first process of the host reaps what the task leaves: leave out one of the two",
            ));
        }
        if let (Some(size), Sharing::Host) = (mounts.shm_size_bytes, self.ipc_mode) {
            return Err(value(
                "shm_size",
                size.to_string(),
                "with ipc_mode = \"host\" the shared memory is the host's: leave out one of the two",
            ));
        }
        Ok(())
    }

    /// Refuses kernel parameters whose namespace is the host's. `by_mode` says that a host network comes from the
    /// option `network_mode`, for the error.
    ///
    /// # Errors
    /// Names a parameter that would change the host's.
    pub(super) fn own_sysctl(&self, network: &Network, by_mode: bool) -> Result<(), ConfigError> {
        for name in self.sysctl.keys() {
            let (is_hosts, why) = match sysctl::owner(name)? {
                Owner::Ipc => (self.ipc_mode == Sharing::Host, "ipc_mode = \"host\""),
                Owner::Uts => (self.uts_mode == Sharing::Host, "uts_mode = \"host\""),
                Owner::Network if self.host_network => (true, "host_network = true"),
                Owner::Network if by_mode => (true, "network_mode = \"host\""),
                Owner::Network => (*network == Network::Host, "network { mode = \"host\" }"),
            };
            if is_hosts {
                let why = format!("with {why} it would be the host's: leave out one of the two");
                return Err(value(sysctl::OPTION, name, why));
            }
        }
        Ok(())
    }

    pub(super) fn permitted_by(&self, allowed: &AllowedModes) -> Result<(), ConfigError> {
        let Self {
            pid_mode,
            ipc_mode,
            without_shm: _,
            uts_mode,
            cgroupns,
            userns_is_the_hosts,
            host_network,
            // Needs no permission, since only parameters of the task's own namespaces can be set.
            sysctl: _,
        } = self;
        let AllowedModes { pid, ipc, uts, cgroupns: cgroup, userns, network } = allowed;
        for (asks, option, value, kind, list) in [
            (*pid_mode == Sharing::Host, "pid_mode", "host", "pid", pid),
            (*ipc_mode == Sharing::Host, "ipc_mode", "host", "ipc", ipc),
            (*uts_mode == Sharing::Host, "uts_mode", "host", "uts", uts),
            (*cgroupns == Some(Sharing::Host), "cgroupns", "host", "cgroupns", cgroup),
            (*userns_is_the_hosts, "userns_mode", "host", "userns", userns),
            (*host_network, "host_network", "true", "network", network),
        ] {
            if asks {
                AllowedModes::permit_host(option, value, kind, list)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::task::tests::{decode, decode_as, refusal};

    fn of(options: Value) -> Namespaces {
        let mut options = options;
        options["image"] = json!("redis");
        decode(&options).unwrap().namespaces
    }

    #[test]
    fn unknown_namespace_modes_are_refused() {
        for option in ["pid_mode", "ipc_mode", "uts_mode", "cgroupns", "userns_mode", "userns"] {
            assert!(refusal(option, json!("shared")).contains("\"host\""));
        }
        for option in ["pid_mode", "ipc_mode"] {
            assert!(refusal(option, json!("container:db")).contains("/alloc"));
        }
        assert_eq!(of(json!({"ipc_mode": "", "cgroupns": "private"})).cgroupns, Some(Sharing::Private));
    }

    #[test]
    fn under_dockers_name_an_unknown_user_namespace_has_no_effect() {
        let decoded = |options: &Value| decode_as(DriverName::Docker, options).unwrap();
        let ignored = decoded(&json!({"image": "redis", "userns_mode": "nonsense"}));
        assert!(!ignored.namespaces.userns_is_the_hosts);
        assert_eq!(ignored.warnings.options(), ["userns_mode"]);
        let host = decoded(&json!({"image": "redis", "userns_mode": "host"}));
        assert!(host.namespaces.userns_is_the_hosts && host.warnings.is_empty());
        assert!(decode_as(DriverName::Docker, &json!({"image": "redis", "userns": "auto"})).is_err());
    }

    #[test]
    fn dockers_ipc_modes_are_those_of_a_namespace_of_its_own() {
        for (mode, without_shm) in [("none", true), ("shareable", false), ("private", false)] {
            let own = of(json!({"ipc_mode": mode}));
            assert_eq!((own.ipc_mode, own.without_shm), (Sharing::Private, without_shm), "{mode}");
        }
        assert!(of(json!({"userns": "host"})).userns_is_the_hosts);
    }

    #[test]
    fn host_namespaces_need_the_operators_permission() {
        let none = AllowedModes { network: Vec::new(), ..AllowedModes::default() };
        let host = || vec!["host".to_owned()];
        let all = AllowedModes {
            pid: host(),
            ipc: host(),
            uts: host(),
            cgroupns: host(),
            userns: host(),
            network: host(),
        };
        for (option, value, kind) in [
            ("pid_mode", json!("host"), "allowed_modes.pid"),
            ("ipc_mode", json!("host"), "allowed_modes.ipc"),
            ("uts_mode", json!("host"), "allowed_modes.uts"),
            ("cgroupns", json!("host"), "allowed_modes.cgroupns"),
            ("userns_mode", json!("host"), "allowed_modes.userns"),
            ("host_network", json!(true), "allowed_modes.network"),
        ] {
            let requested = of(json!({option: value}));
            let error = requested.permitted_by(&none).unwrap_err().to_string();
            assert!(error.contains(option) && error.contains(kind), "{error}");
            requested.permitted_by(&all).unwrap();
        }
        Namespaces::default().permitted_by(&none).unwrap();
        of(json!({"host_network": true})).permitted_by(&AllowedModes::default()).unwrap();
    }

    #[test]
    fn conflicting_namespace_options_are_refused() {
        for (options, words) in [
            (json!({"image": "x", "hostname": "web", "uts_mode": "host"}), ["hostname", "uts_mode"]),
            (json!({"image": "x", "init": true, "pid_mode": "host"}), ["init", "pid_mode"]),
            (json!({"image": "x", "shm_size": "1m", "ipc_mode": "host"}), ["shm_size", "ipc_mode"]),
        ] {
            let error = decode(&options).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
