//! Options that a task on a kernel of its own (gVisor) can't have. gVisor ignores most of them silently, which would
//! mislead the job's author.

use super::namespaces::Sharing;
use super::{Device, JobMount, TaskOptions};
use crate::config::{ConfigError, PidsLimit, SeccompArchitectures, value};

/// Minimum `pids_limit`. A sandbox that does nothing has some twenty threads, one that works more.
const LEAST_PIDS: i64 = 64;

/// The reason that a sandbox has no host devices, be they from the job's options or from Nomad's device plugins.
pub(crate) const NO_DEVICES: &str = "a task has no host devices";
/// The reason that a sandbox has no seccomp filter of the host's.
const NO_SYSTEM_CALLS: &str = "a task's system calls don't reach the host's kernel";
/// The reason that a sandbox has no shared mounts, be they from the job's options or from its `volume_mount` blocks.
pub(crate) const NO_SPREADING: &str = "mounts of a task don't reach the host";

/// Returns the text of a refusal: why a task in a sandbox can't have something, and the way out.
pub(crate) fn unfit_for_sandbox(why: &str) -> String {
    format!(
        "under gVisor {why}; leave it out, or give the task a runtime of the runc family (option runtime)"
    )
}

impl TaskOptions {
    /// Checks that the task asks for nothing that a sandbox can't provide.
    ///
    /// # Errors
    /// Names the option that a sandboxed task can't have, and the way out.
    pub(crate) fn fit_sandbox(&self) -> Result<(), ConfigError> {
        let Self { namespaces, security, devices, mounts, limits, .. } = self;
        let unfit =
            |option: &'static str, given: &str, why: &str| Err(value(option, given, unfit_for_sandbox(why)));
        let shared = [
            ("pid_mode", namespaces.pid_mode, "a task sees no processes but its own"),
            ("ipc_mode", namespaces.ipc_mode, "a task shares no memory with the host"),
            ("uts_mode", namespaces.uts_mode, "a task has a host name of its own"),
            ("cgroupns", namespaces.cgroupns.unwrap_or_default(), "a task does not see the host's cgroups"),
        ];
        if let Some((option, _, why)) = shared.into_iter().find(|(_, sharing, _)| *sharing == Sharing::Host) {
            return unfit(option, "host", why);
        }
        if security.privileged {
            return unfit(
                "privileged",
                "true",
                "a task reaches neither the host's devices nor its kernel, whatever its rights (cap_add works)",
            );
        }
        if let Some(profile) = &security.seccomp_profile {
            let given = profile.path.display().to_string();
            return unfit(profile.option, &given, NO_SYSTEM_CALLS);
        }
        if let Some(architectures) = security.seccomp_architectures {
            return unfit(SeccompArchitectures::OPTION, architectures.word(), NO_SYSTEM_CALLS);
        }
        if let Some(name) = security.apparmor_profile.as_ref().filter(|name| *name != "unconfined") {
            return unfit("apparmor_profile", name, "no profile is applied to a task");
        }
        if let Some((name, _)) = namespaces.sysctl.first_key_value() {
            return unfit("sysctl", name, "kernel parameters can't be set for a task");
        }
        if let PidsLimit::Of(count) = limits.pids
            && count < LEAST_PIDS
        {
            let why = format!("the threads of the sandbox itself count, so that a task needs {LEAST_PIDS}");
            return unfit("pids_limit", &count.to_string(), &why);
        }
        if let Some(device) = devices.first() {
            let given = match device {
                Device::Path(device) => device.on_host.display().to_string(),
                Device::Cdi(name) => name.clone(),
            };
            return unfit("devices", &given, NO_DEVICES);
        }
        let spreads = |mount: &&JobMount| mount.propagation().is_some_and(|word| word.ends_with("shared"));
        if let Some(mount) = mounts.list.iter().find(spreads) {
            return unfit(mount.option, &mount.target, NO_SPREADING);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::task::tests::decode;

    #[test]
    fn words_about_the_hosts_seccomp_filter_are_refused() {
        decode(&json!({"image": "a"})).unwrap().fit_sandbox().unwrap();
        for (option, value) in [
            ("seccomp_profile", "/etc/profile.json"),
            ("seccomp_architectures", "image"),
            ("seccomp_architectures", "all"),
        ] {
            let options = decode(&json!({"image": "a", option: value})).unwrap();
            let error = options.fit_sandbox().unwrap_err().to_string();
            for word in [option, value, "gVisor", "leave it out"] {
                assert!(error.contains(word), "{word} is not in {error}");
            }
        }
    }
}
