//! The options about a task's rights, beyond or short of the defaults.

use std::path::PathBuf;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::security_opt::SecurityOpt;
use crate::config::hclspec::{default, optional};
use crate::config::plugin::SecurityPolicy;
use crate::config::{
    CapabilityList, ConfigError, DriverName, SeccompArchitectures, Warnings, forbidden, value,
};

/// The options about a task's rights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Security {
    /// Privileged mode: all capabilities and devices, no kernel file system masked or read-only.
    pub privileged: bool,
    pub readonly_rootfs: bool,
    /// The flag no_new_privs: programs gain no rights by a setuid bit or by file capabilities.
    pub no_new_privileges: bool,
    pub cap_add: CapabilityList,
    pub cap_drop: CapabilityList,
    /// Seccomp on or off; `None` is the operator's default.
    pub seccomp: Option<bool>,
    pub seccomp_profile: Option<SeccompProfile>,
    /// The architectures of the filter; `None` is the operator's default.
    pub seccomp_architectures: Option<SeccompArchitectures>,
    /// AppArmor profile; `None` is the operator's default.
    pub apparmor_profile: Option<String>,
    /// `true` to leave all kernel file systems unmasked and writable.
    pub system_paths_unconfined: bool,
}

/// A seccomp profile of the host, which lists the system calls that a task may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeccompProfile {
    /// Name of the option that the path comes from.
    pub option: &'static str,
    pub path: PathBuf,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    privileged: Option<bool>,
    readonly_rootfs: Option<bool>,
    no_new_privileges: Option<bool>,
    cap_add: Option<Vec<Option<String>>>,
    cap_drop: Option<Vec<Option<String>>>,
    seccomp: Option<bool>,
    seccomp_profile: Option<String>,
    seccomp_architectures: Option<String>,
    apparmor_profile: Option<String>,
    security_opt: Option<Vec<Option<String>>>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("privileged", default("privileged", "bool", "false")),
        ("readonly_rootfs", default("readonly_rootfs", "bool", "false")),
        // No default in the schema, so that security_opt can set it, too.
        ("no_new_privileges", optional("no_new_privileges", "bool")),
        ("cap_add", optional("cap_add", "list(string)")),
        ("cap_drop", optional("cap_drop", "list(string)")),
        ("seccomp", optional("seccomp", "bool")),
        ("seccomp_profile", optional("seccomp_profile", "string")),
        SeccompArchitectures::task_schema(),
        ("apparmor_profile", optional("apparmor_profile", "string")),
        ("security_opt", optional("security_opt", "list(string)")),
    ]
}

impl Raw {
    pub(super) fn decode(self, driver: DriverName, warnings: &mut Warnings) -> Result<Security, ConfigError> {
        let Self {
            privileged,
            readonly_rootfs,
            no_new_privileges,
            cap_add,
            cap_drop,
            seccomp,
            seccomp_profile,
            seccomp_architectures,
            apparmor_profile,
            security_opt,
        } = self;
        let opt = SecurityOpt::decode(security_opt)?;
        let cap_add = CapabilityList::decode("cap_add", cap_add)?;
        let mut cap_drop = CapabilityList::decode("cap_drop", cap_drop)?;
        let apparmor_profile = apparmor_profile.filter(|name| !name.is_empty());
        let mut apparmor_profile = one("apparmor_profile", apparmor_profile, opt.apparmor)?;
        // docker gives a privileged task all.
        if driver.is_docker() && privileged == Some(true) {
            if !std::mem::take(&mut cap_drop).is_empty() {
                let why = "a privileged task has all capabilities, as under docker: leave out privileged";
                warnings.add("cap_drop", why);
            }
            if apparmor_profile.take().is_some() {
                warnings.add("apparmor_profile", "a privileged task is unconfined, as under docker");
            }
        }
        if cap_add.all && cap_drop.all {
            return Err(value(
                "cap_drop",
                "all",
                "cap_add has \"all\" as well; list the capabilities to drop",
            ));
        }
        let seccomp_profile = seccomp_profile
            .filter(|path| !path.is_empty())
            .map(|path| profile("seccomp_profile", path))
            .transpose()?;
        let (seccomp, seccomp_profile) = match opt.seccomp {
            None => (seccomp, seccomp_profile),
            Some(_) if seccomp.is_some() => return Err(set_twice("seccomp")),
            Some(_) if seccomp_profile.is_some() => return Err(set_twice("seccomp_profile")),
            Some(word) if word == "unconfined" => (Some(false), None),
            Some(word) if word == "builtin" => (Some(true), None),
            Some(path) => (Some(true), Some(profile("security_opt", path)?)),
        };
        Ok(Security {
            privileged: privileged.unwrap_or_default(),
            readonly_rootfs: readonly_rootfs.unwrap_or_default(),
            no_new_privileges: one("no_new_privileges", no_new_privileges, opt.no_new_privileges)?
                .unwrap_or_default(),
            cap_add,
            cap_drop,
            seccomp,
            seccomp_profile,
            seccomp_architectures: SeccompArchitectures::decode(seccomp_architectures)?,
            apparmor_profile,
            system_paths_unconfined: opt.system_paths_unconfined,
        })
    }
}

/// Merges an option with the same one in `security_opt`.
fn one<T>(option: &'static str, own: Option<T>, opt: Option<T>) -> Result<Option<T>, ConfigError> {
    if own.is_some() && opt.is_some() {
        return Err(set_twice(option));
    }
    Ok(own.or(opt))
}

fn set_twice(option: &'static str) -> ConfigError {
    ConfigError::Conflict { option, other: "security_opt" }
}

fn profile(option: &'static str, path: String) -> Result<SeccompProfile, ConfigError> {
    if path.starts_with('/') {
        return Ok(SeccompProfile { option, path: path.into() });
    }
    let why = "it must be the profile's absolute path on the host; \"unconfined\" and \"builtin\" are values of security_opt";
    Err(value(option, path, why))
}

impl Security {
    /// Checks the options against the operator's policy. `privileged` gives everything, so all capabilities must be
    /// allowed, too. So must they for unprotected system paths, since root needs no capability to write them.
    pub(super) fn permitted_by(&self, security_policy: &SecurityPolicy) -> Result<(), ConfigError> {
        let Self {
            privileged,
            readonly_rootfs: _,
            no_new_privileges: _,
            cap_add,
            cap_drop: _,
            seccomp,
            seccomp_profile,
            seccomp_architectures,
            apparmor_profile: _,
            system_paths_unconfined,
        } = self;
        let SecurityPolicy {
            allow_privileged,
            privileged_needs_all_caps,
            allow_caps,
            seccomp: seccomp_by_default,
            seccomp_architectures: _,
            apparmor: _,
            seccomp_profile_dirs,
        } = security_policy;
        let all = [
            ("privileged", "true", *privileged),
            ("security_opt", "systempaths=unconfined", *system_paths_unconfined),
        ];
        for (option, value, _) in all.into_iter().filter(|(_, _, requested)| *requested) {
            if !allow_privileged {
                return Err(forbidden(option, value, "allow_privileged", "the value true"));
            }
            if *privileged_needs_all_caps && !allow_caps.all {
                return Err(forbidden(option, value, "allow_caps", "\"all\" in it"));
            }
        }
        let beyond = cap_add.beyond(allow_caps);
        if !beyond.is_empty() {
            let names = beyond.to_string();
            return Err(forbidden("cap_add", &names, "allow_caps", &format!("{names} in it")));
        }
        if let Some(SeccompProfile { option, path }) = seccomp_profile
            && !seccomp.unwrap_or(*seccomp_by_default)
        {
            let why = "seccomp is off for this task; set seccomp = true";
            return Err(value(option, path.display().to_string(), why));
        }
        let has_filter = seccomp_profile.is_some() || seccomp.unwrap_or(*seccomp_by_default && !privileged);
        if let Some(architectures) = seccomp_architectures.filter(|_| !has_filter) {
            return Err(architectures.without_filter());
        }
        // This check comes before any look at the file, so that the error tells nothing about other files of the host.
        if let Some(SeccompProfile { option, path }) = seccomp_profile
            && security_policy.seccomp_profile(path).is_none()
        {
            let shown = path.display().to_string();
            let directories = seccomp_profile_dirs.as_deref().unwrap_or_default();
            let needed = format!("a directory above it; it has {directories:?}");
            return Err(forbidden(option, &shown, "seccomp_profile_dirs", &needed));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::capabilities::tests::list;
    use crate::config::task::tests::{decode, decode_as, refusal};

    fn security_policy() -> SecurityPolicy {
        SecurityPolicy {
            privileged_needs_all_caps: true,
            allow_privileged: true,
            allow_caps: list(&["all"]),
            seccomp: true,
            seccomp_architectures: SeccompArchitectures::All,
            apparmor: false,
            seccomp_profile_dirs: None,
        }
    }

    fn security(options: &Value) -> Result<Security, ConfigError> {
        let mut all = json!({"image": "redis"});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        decode(&all).map(|options| options.security)
    }

    fn opt(words: &[&str]) -> Security {
        security(&json!({ "security_opt": words })).unwrap()
    }

    #[test]
    fn a_privileged_task_drops_no_capability_under_dockers_name() {
        let dropped = |driver, options: &Value| {
            let options = decode_as(driver, options).unwrap();
            (options.security.cap_drop, options.warnings.options())
        };
        let options =
            |privileged: bool| json!({"image": "redis", "privileged": privileged, "cap_drop": ["all"]});
        let all = || CapabilityList::every();
        assert_eq!(
            dropped(DriverName::Docker, &options(true)),
            (CapabilityList::default(), vec!["cap_drop"])
        );
        assert_eq!(dropped(DriverName::Docker, &options(false)), (all(), vec![]));
        assert_eq!(dropped(DriverName::ContainerdDriver, &options(true)), (all(), vec![]));
    }

    #[test]
    fn a_privileged_task_is_unconfined_under_dockers_name_whatever_profile_it_names() {
        let named = |driver, options: &Value| {
            let options = decode_as(driver, options).unwrap();
            (options.security.apparmor_profile, options.warnings.options())
        };
        for option in [json!({"apparmor_profile": "mine"}), json!({"security_opt": ["apparmor=mine"]})] {
            let options = |privileged: bool| {
                let mut options = json!({"image": "redis", "privileged": privileged});
                options.as_object_mut().unwrap().extend(option.as_object().unwrap().clone());
                options
            };
            let mine = || Some("mine".to_owned());
            assert_eq!(named(DriverName::Docker, &options(true)), (None, vec!["apparmor_profile"]));
            assert_eq!(named(DriverName::Docker, &options(false)), (mine(), vec![]));
            assert_eq!(named(DriverName::ContainerdDriver, &options(true)), (mine(), vec![]));
        }
    }

    #[test]
    fn security_opt_matches_the_separate_options() {
        assert!(opt(&["no-new-privileges"]).no_new_privileges);
        assert!(opt(&["no-new-privileges:true"]).no_new_privileges);
        assert!(!opt(&["no-new-privileges=false"]).no_new_privileges);
        assert_eq!(opt(&["seccomp=unconfined"]), security(&json!({"seccomp": false})).unwrap());
        assert_eq!(opt(&["seccomp:builtin"]), security(&json!({"seccomp": true})).unwrap());
        let named = opt(&["seccomp=/etc/x.json"]);
        let profile = SeccompProfile { option: "security_opt", path: "/etc/x.json".into() };
        assert_eq!((named.seccomp, named.seccomp_profile), (Some(true), Some(profile)));
        let apparmor = json!({"apparmor_profile": "mine"});
        assert_eq!(opt(&["apparmor=mine"]), security(&apparmor).unwrap());
        assert!(opt(&["systempaths=unconfined", "label=disable"]).system_paths_unconfined);
    }

    #[test]
    fn options_set_twice_are_refused_by_both_names() {
        for (option, own, word) in [
            ("seccomp", json!(true), "seccomp=builtin"),
            ("seccomp_profile", json!("/x"), "seccomp=/x"),
            ("no_new_privileges", json!(true), "no-new-privileges"),
            ("apparmor_profile", json!("a"), "apparmor=a"),
        ] {
            let mut options = json!({ "security_opt": [word] });
            options[option] = own;
            let error = security(&options).unwrap_err().to_string();
            assert!(error.contains(option) && error.contains("security_opt"), "{error}");
        }
        let error = security(&json!({"cap_add": ["ALL"], "cap_drop": ["all"]})).unwrap_err().to_string();
        assert!(error.contains("cap_add") && error.contains("cap_drop"), "{error}");
    }

    #[test]
    fn architectures_of_a_filter_need_one() {
        let permitted = |options: Value, by_default: bool| {
            let policy = SecurityPolicy { seccomp: by_default, ..security_policy() };
            security(&options).unwrap().permitted_by(&policy).map_err(|error| error.to_string())
        };
        permitted(json!({"seccomp_architectures": "image"}), true).unwrap();
        permitted(json!({"seccomp_architectures": "all", "seccomp": true}), false).unwrap();
        permitted(json!({"seccomp_architectures": "image", "privileged": true, "seccomp": true}), true)
            .unwrap();
        permitted(
            json!({"seccomp_architectures": "image", "seccomp_profile": "/x", "privileged": true}),
            true,
        )
        .unwrap();
        for (options, by_default) in [
            (json!({"seccomp_architectures": "image"}), false),
            (json!({"seccomp_architectures": "all", "seccomp": false}), true),
            (json!({"seccomp_architectures": "image", "privileged": true}), true),
        ] {
            let error = permitted(options, by_default).unwrap_err();
            assert!(error.contains("seccomp_architectures") && error.contains("seccomp = true"), "{error}");
        }
        assert!(refusal("seccomp_architectures", json!("x86")).contains("\"all\" or \"image\""));
    }

    #[test]
    fn a_profile_is_an_absolute_path_and_needs_seccomp() {
        assert!(refusal("seccomp_profile", json!("seccomp.json")).contains("absolute"));
        let off = SecurityPolicy { seccomp: false, ..security_policy() };
        let named = security(&json!({"seccomp_profile": "/x.json"})).unwrap();
        named.permitted_by(&security_policy()).unwrap();
        let error = named.permitted_by(&off).unwrap_err().to_string();
        assert!(error.contains("seccomp_profile") && error.contains("seccomp = true"), "{error}");
        let on = security(&json!({"seccomp_profile": "/x.json", "seccomp": true})).unwrap();
        on.permitted_by(&off).unwrap();
        let against_itself = security(&json!({"seccomp_profile": "/x.json", "seccomp": false})).unwrap();
        against_itself.permitted_by(&security_policy()).unwrap_err();
    }

    #[test]
    fn options_beyond_the_policy_are_refused_by_name() {
        let few = SecurityPolicy { allow_caps: list(&["chown"]), ..security_policy() };
        let unprivileged = SecurityPolicy { allow_privileged: false, ..security_policy() };
        let no_profiles =
            SecurityPolicy { seccomp_profile_dirs: Some(vec!["/srv".into()]), ..security_policy() };
        for (options, security_policy, words) in [
            (json!({"privileged": true}), &unprivileged, ["privileged", "allow_privileged"]),
            (json!({"privileged": true}), &few, ["privileged", "allow_caps"]),
            (
                json!({"security_opt": ["systempaths=unconfined"]}),
                &unprivileged,
                ["systempaths", "allow_privileged"],
            ),
            (json!({"cap_add": ["chown", "net_admin"]}), &few, ["CAP_NET_ADMIN", "allow_caps"]),
            (json!({"cap_add": ["all"]}), &few, ["all", "allow_caps"]),
            (
                json!({"seccomp_profile": "/etc/shadow"}),
                &no_profiles,
                ["seccomp_profile", "seccomp_profile_dirs"],
            ),
            (json!({"security_opt": ["seccomp=/x"]}), &no_profiles, ["security_opt", "seccomp_profile_dirs"]),
        ] {
            let error = security(&options).unwrap().permitted_by(security_policy).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
            assert!(!error.contains("CAP_CHOWN"), "{error}");
        }
        let dockers =
            SecurityPolicy { allow_privileged: true, privileged_needs_all_caps: false, ..few.clone() };
        security(&json!({"privileged": true})).unwrap().permitted_by(&dockers).unwrap();
        let all = json!({"privileged": true, "cap_add": ["all"]});
        security(&all).unwrap().permitted_by(&security_policy()).unwrap();
        security(&json!({"cap_add": ["chown"], "cap_drop": ["kill"]})).unwrap().permitted_by(&few).unwrap();
    }
}
