//! The operator's security policy: the rights that jobs may ask for, and the defaults for those that ask for none. The
//! names are those of Nomad's docker driver, and under its name so are the defaults; else all is allowed by default, as
//! it was under the driver that this one succeeds.

use std::path::{Path, PathBuf};

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::directories;
use crate::config::hclspec::{default, optional};
use crate::config::{CapabilityList, ConfigError, DriverName, SeccompArchitectures};

const ALL_CAPS: &str = r#"["all"]"#;
/// The default under docker's name. Source of the fact: hashicorp/nomad `drivers/shared/capabilities`.
const DOCKERS_CAPS: &str = r#"["audit_write", "chown", "dac_override", "fowner", "fsetid", "kill", "mknod", "net_bind_service", "setfcap", "setgid", "setpcap", "setuid", "sys_chroot"]"#;
const PROFILE_DIRS: &str = "seccomp_profile_dirs";

/// The operator's security policy for jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SecurityPolicy {
    pub allow_privileged: bool,
    /// Whether a privileged task also needs `"all"` in `allow_caps`, which it does not under docker's name.
    pub privileged_needs_all_caps: bool,
    /// Capabilities that tasks may have, be it by default or by `cap_add`; any other is never given.
    pub allow_caps: CapabilityList,
    /// Whether a task that does not set `seccomp` has a seccomp profile.
    pub seccomp: bool,
    /// The architectures of a task's filter, where its job does not say.
    pub seccomp_architectures: SeccompArchitectures,
    /// Whether a task that does not set `apparmor_profile` has the driver's own AppArmor profile, as far as the host can
    /// load it.
    pub apparmor: bool,
    /// Host directories of the seccomp profiles that a job may name. `None` allows any path.
    pub seccomp_profile_dirs: Option<Vec<PathBuf>>,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    allow_privileged: Option<bool>,
    allow_caps: Option<Vec<Option<String>>>,
    seccomp: Option<bool>,
    seccomp_architectures: Option<String>,
    apparmor: Option<bool>,
    seccomp_profile_dirs: Option<Vec<Option<String>>>,
}

pub(super) fn schema(name: DriverName) -> Vec<(&'static str, Spec)> {
    vec![
        ("allow_privileged", default("allow_privileged", "bool", name.either("true", "false"))),
        ("allow_caps", default("allow_caps", "list(string)", name.either(ALL_CAPS, DOCKERS_CAPS))),
        ("seccomp", default("seccomp", "bool", "true")),
        SeccompArchitectures::plugin_schema(),
        ("apparmor", default("apparmor", "bool", name.either("false", "true"))),
        // No default in the schema, so that an explicit empty list differs from an unset option.
        (PROFILE_DIRS, optional(PROFILE_DIRS, "list(string)")),
    ]
}

impl Raw {
    pub(super) fn decode(self, name: DriverName) -> Result<SecurityPolicy, ConfigError> {
        let Self {
            allow_privileged,
            allow_caps,
            seccomp,
            seccomp_architectures,
            apparmor,
            seccomp_profile_dirs,
        } = self;
        let usual = || serde_json::from_str(name.either(ALL_CAPS, DOCKERS_CAPS)).unwrap_or_default();
        Ok(SecurityPolicy {
            privileged_needs_all_caps: !name.is_docker(),
            allow_privileged: allow_privileged.unwrap_or(name.either(true, false)),
            allow_caps: CapabilityList::decode("allow_caps", Some(allow_caps.unwrap_or_else(usual)))?,
            seccomp: seccomp.unwrap_or(true),
            seccomp_architectures: SeccompArchitectures::decode(seccomp_architectures)?.unwrap_or_default(),
            apparmor: apparmor.unwrap_or(name.either(false, true)),
            seccomp_profile_dirs: seccomp_profile_dirs
                .map(|given| directories::absolute(PROFILE_DIRS, Some(given)))
                .transpose()?,
        })
    }
}

impl SecurityPolicy {
    /// Splits the path of a profile into the allowed directory that it is in and the rest; `None` if it is in none of
    /// them. Nothing is looked up.
    pub(crate) fn seccomp_profile(&self, path: &Path) -> Option<(PathBuf, PathBuf)> {
        let anywhere = || vec![PathBuf::from("/")];
        let listed = self.seccomp_profile_dirs.clone().unwrap_or_else(anywhere);
        directories::split(path, &listed).filter(|(_, rest)| !rest.as_os_str().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security_policy(directories: &[&str]) -> SecurityPolicy {
        let directories = directories.iter().map(PathBuf::from).collect();
        SecurityPolicy { seccomp_profile_dirs: Some(directories), ..SecurityPolicy::default() }
    }

    #[test]
    fn a_seccomp_profile_is_in_an_allowed_directory() {
        let found = |security_policy: &SecurityPolicy, path: &str| {
            let found = security_policy.seccomp_profile(Path::new(path));
            found.map(|(root, rest)| (root.display().to_string(), rest.display().to_string()))
        };
        let is = |root: &str, rest: &str| Some((root.to_owned(), rest.to_owned()));
        assert_eq!(found(&SecurityPolicy::default(), "/etc/x.json"), is("/", "etc/x.json"));
        let two = security_policy(&["/etc/seccomp", "/etc/seccomp/more/"]);
        assert_eq!(found(&two, "/etc/seccomp/a.json"), is("/etc/seccomp", "a.json"));
        assert_eq!(found(&two, "/etc/seccomp/more/a"), is("/etc/seccomp/more/", "a"));
        // This path leads out of the directory, which the kernel refuses when it is opened.
        assert_eq!(found(&two, "/etc/seccomp/../x"), is("/etc/seccomp", "../x"));
        for path in ["/etc/x.json", "/etc/seccomp", "/etc/seccomp2/x", "/"] {
            assert_eq!(found(&two, path), None);
        }
        assert_eq!(found(&security_policy(&[]), "/etc/x.json"), None);
        for wrong in ["etc", "/etc/../x", ""] {
            let error = directories::absolute(PROFILE_DIRS, Some(vec![Some(wrong.to_owned())]));
            let error = error.unwrap_err().to_string();
            assert!(error.contains("seccomp_profile_dirs"), "{error}");
        }
    }
}
