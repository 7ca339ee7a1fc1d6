//! A task's security settings: decided from the job's options, the operator's and facts of this host, before anything
//! is made. The decisions are pure functions; only [`host`] reads from the host.

mod capabilities;
mod host;
mod seccomp;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::OciSpecError;
use oci_spec::runtime::{Capability, LinuxDevice, LinuxSeccomp};

use crate::config::{CapabilityList, SeccompProfile, Security, SecurityPolicy};
use crate::sys::host_files;
use crate::sys::host_path::HostPathError;
use host::Host;

/// AppArmor's name for running without a profile.
const UNCONFINED: &str = "unconfined";

/// A task's security settings, as they are passed to the runtime.
#[derive(Debug, Default)]
pub(crate) struct Confinement {
    pub capabilities: HashSet<Capability>,
    /// Seccomp filter. Shared by tasks with the same capabilities: it is large, and many may be waiting for their
    /// start.
    pub seccomp: Option<Arc<LinuxSeccomp>>,
    pub apparmor_profile: Option<String>,
    /// Devices of the host that are created in the container.
    pub devices: Vec<LinuxDevice>,
    /// Kernel files to mask in addition to those of every task.
    pub masked_paths: Vec<String>,
}

/// The reason that the requested security settings can't be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfinementError {
    #[error("the option {option} can't be {value:?}: {why}")]
    Value { option: &'static str, value: String, why: String },
    #[error("the option {option} can't be {path:?}")]
    Profile { option: &'static str, path: PathBuf, source: HostPathError },
    #[error("can't read {path}")]
    Host { path: PathBuf, source: std::io::Error },
    #[error("the built-in seccomp profile can't be used: {0}")]
    BuiltIn(String),
    #[error(transparent)]
    Incomplete(#[from] OciSpecError),
}

impl ConfinementError {
    fn value(option: &'static str, value: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Value { option, value: value.into(), why: why.into() }
    }

    fn profile(profile: &SeccompProfile, why: impl Into<String>) -> Self {
        Self::value(profile.option, profile.path.display().to_string(), why)
    }

    fn host(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Host { path: path.as_ref().to_owned(), source }
    }
}

/// Reads the facts of the host, and decides a task's security settings.
///
/// # Errors
/// Names the option that can't be applied, and why.
pub(crate) async fn settle(
    security: &Security,
    security_policy: &SecurityPolicy,
) -> Result<Confinement, ConfinementError> {
    let (security, security_policy) = (security.clone(), security_policy.clone());
    // Files other than the job's profile are the kernel's, so that reading them doesn't hang.
    let profile = security.seccomp_profile.as_ref().map(|named| named.path.clone());
    let place = profile.unwrap_or_else(|| host::STATUS.into());
    let settling = move || decide(&security, &security_policy, &Host::look(&security, &security_policy)?);
    host_files::look(&place, host_files::LIMIT, settling).await.map_err(ConfinementError::host(&place))?
}

fn decide(
    security: &Security,
    security_policy: &SecurityPolicy,
    host: &Host,
) -> Result<Confinement, ConfinementError> {
    // A job may only ask for privileges where the operator allows them all.
    let every = security.privileged.then(CapabilityList::every);
    let allowed = every.as_ref().unwrap_or(&security_policy.allow_caps);
    let capabilities = capabilities::granted(security, allowed, &host.capabilities)?;
    let seccomp = seccomp(security, security_policy, host, &capabilities)?;
    let apparmor_profile = apparmor_profile(security, host)?;
    let (devices, masked_paths) = (host.devices.clone(), host.thermal_throttles.clone());
    Ok(Confinement { capabilities, seccomp, apparmor_profile, devices, masked_paths })
}

/// Returns the task's seccomp filter. A privileged task has none unless its job asks for one.
fn seccomp(
    security: &Security,
    security_policy: &SecurityPolicy,
    host: &Host,
    capabilities: &HashSet<Capability>,
) -> Result<Option<Arc<LinuxSeccomp>>, ConfinementError> {
    let otherwise = security_policy.seccomp && !security.privileged;
    match (&security.seccomp_profile, &host.seccomp_profile) {
        (Some(named), Some(text)) => {
            let profile =
                seccomp::Profile::read(text).map_err(|why| ConfinementError::profile(named, why))?;
            Ok(Some(Arc::new(profile.for_task(capabilities, host.kernel, std::env::consts::ARCH)?)))
        }
        _ if security.seccomp.unwrap_or(otherwise) => {
            let profile = seccomp::Profile::built_in().map_err(ConfinementError::BuiltIn)?;
            Ok(Some(seccomp::shared(profile, capabilities, host.kernel)?))
        }
        _ => Ok(None),
    }
}

/// Returns the task's AppArmor profile. `unconfined` is accepted on a host without AppArmor, which confines nothing.
fn apparmor_profile(security: &Security, host: &Host) -> Result<Option<String>, ConfinementError> {
    let Some(name) = &security.apparmor_profile else { return Ok(None) };
    let refused = |why: &str| Err(ConfinementError::value("apparmor_profile", name, why));
    match &host.apparmor {
        None if name == UNCONFINED => Ok(None),
        None => refused("AppArmor is not enabled on this host; leave the option out, or set \"unconfined\""),
        Some(loaded) if name == UNCONFINED || loaded.as_ref().is_none_or(|loaded| loaded.contains(name)) => {
            Ok(Some(name.clone()))
        }
        Some(_) => refused("no such profile is loaded on this host; load it there with apparmor_parser"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { kernel: (6, 1), capabilities: capabilities::in_mask(u64::MAX), ..Host::default() }
    }

    fn decided(security: &Security, seccomp_by_default: bool) -> Confinement {
        let security_policy = SecurityPolicy {
            seccomp: seccomp_by_default,
            allow_caps: crate::config::capability_tests::list(&["all"]),
            ..SecurityPolicy::default()
        };
        decide(security, &security_policy, &host()).unwrap()
    }

    #[test]
    fn seccomp_is_the_jobs_word_and_then_the_operators() {
        let has_one = |seccomp, privileged, by_default| {
            let security = Security { seccomp, privileged, ..Security::default() };
            decided(&security, by_default).seccomp.is_some()
        };
        assert!(has_one(None, false, true) && !has_one(None, false, false));
        assert!(has_one(Some(true), false, false) && !has_one(Some(false), false, true));
        assert!(!has_one(None, true, true) && has_one(Some(true), true, false));
    }

    #[test]
    fn an_apparmor_profile_has_to_be_there() {
        let requested =
            |name: &str| Security { apparmor_profile: Some(name.to_owned()), ..Security::default() };
        let profile = |name, apparmor| apparmor_profile(&requested(name), &Host { apparmor, ..host() });
        let loaded = || Some(Some(vec!["mine".to_owned()]));
        assert_eq!(profile(UNCONFINED, None).unwrap(), None);
        assert_eq!(profile(UNCONFINED, loaded()).unwrap().as_deref(), Some(UNCONFINED));
        assert_eq!(profile("mine", loaded()).unwrap().as_deref(), Some("mine"));
        // If the list can't be read, the profile is passed on, and the runtime reports a missing one.
        assert_eq!(profile("mine", Some(None)).unwrap().as_deref(), Some("mine"));
        for (host, word) in [(None, "not enabled"), (loaded(), "apparmor_parser")] {
            let error = profile("other", host).unwrap_err().to_string();
            assert!(error.contains("apparmor_profile") && error.contains(word), "{error}");
        }
    }

    #[tokio::test]
    async fn settings_are_settled_by_the_facts_of_this_host() {
        let security_policy = SecurityPolicy {
            seccomp: true,
            allow_caps: crate::config::capability_tests::list(&["chown"]),
            ..SecurityPolicy::default()
        };
        let settled = settle(&Security::default(), &security_policy).await.unwrap();
        assert!(settled.seccomp.is_some() && settled.capabilities == [Capability::Chown].into());
        let profile = SeccompProfile { option: "seccomp_profile", path: "/no/such/profile".into() };
        let security = Security { seccomp_profile: Some(profile), ..Security::default() };
        let error = settle(&security, &security_policy).await.unwrap_err();
        assert!(matches!(error, ConfinementError::Profile { .. }), "{error}");
    }
}
