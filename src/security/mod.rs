//! A task's security settings: decided from the job's options, the operator's and facts of this host, before anything
//! is made. The decisions are pure functions; only [`host`] and [`apparmor`] read from the host. Loads the driver's own
//! AppArmor profile for tasks that are to have it.

mod apparmor;
mod capabilities;
mod host;
mod seccomp;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::OciSpecError;
use oci_spec::image::Arch as ImageArch;
use oci_spec::runtime::{Capability, LinuxDevice, LinuxSeccomp};

use crate::config::{CapabilityList, SeccompArchitectures, SeccompProfile, Security, SecurityPolicy};
use crate::sys::host_files;
use crate::sys::host_path::HostPathError;
pub(crate) use apparmor::by_default as default_apparmor_profile;
use host::Host;

/// A task's security settings, as they are passed to the runtime.
#[derive(Debug, Default)]
pub(crate) struct Confinement {
    pub capabilities: HashSet<Capability>,
    /// Seccomp filter. Shared by tasks with the same capabilities: it is large, and many may be waiting for their
    /// start.
    pub seccomp: Option<Arc<LinuxSeccomp>>,
    /// The architectures that the filter is to have of those in it.
    pub seccomp_architectures: SeccompArchitectures,
    pub apparmor_profile: Option<String>,
    /// Devices of the host that are created in the container.
    pub devices: Vec<LinuxDevice>,
    /// Kernel files to mask in addition to those of every task.
    pub masked_paths: Vec<String>,
}

impl Confinement {
    /// Returns the seccomp filter of a task with an image of this architecture.
    pub(crate) fn seccomp_filter(&self, image: &ImageArch) -> Option<LinuxSeccomp> {
        let mut filter = self.seccomp.as_deref().cloned()?;
        match self.seccomp_architectures {
            SeccompArchitectures::All => {}
            SeccompArchitectures::Image => {
                seccomp::narrow(&mut filter, std::env::consts::ARCH, &image.to_string());
            }
        }
        Some(filter)
    }
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
    #[error(
        "{program} can't load the default AppArmor profile: {why}; mend AppArmor on this host, or do without the profile \
         by apparmor_profile = \"unconfined\" in the job, or apparmor = false in the plugin's options"
    )]
    AppArmor { program: PathBuf, why: String, transient: bool },
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

/// Reads the facts of the host, and decides a task's security settings. `shares_kernel` says whether the task's processes
/// are processes of the host.
///
/// # Errors
/// Names the option that can't be applied, and why.
pub(crate) async fn settle(
    security: &Security,
    security_policy: &SecurityPolicy,
    shares_kernel: bool,
) -> Result<Confinement, ConfinementError> {
    let (security, security_policy) = (security.clone(), security_policy.clone());
    // Files other than the job's profile are the kernel's, so that reading them doesn't hang.
    let profile = security.seccomp_profile.as_ref().map(|named| named.path.clone());
    let place = profile.unwrap_or_else(|| host::STATUS.into());
    let settling = move || {
        let host = Host::look(&security, &security_policy)?;
        decide(&security, &security_policy, shares_kernel, &host)
    };
    let settled = host_files::look(&place, host_files::LIMIT, settling).await;
    let confinement = settled.map_err(ConfinementError::host(&place))??;
    load_profile(confinement.apparmor_profile.as_deref(), Confined::Task).await?;
    Ok(confinement)
}

/// A process that is to have an AppArmor profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confined {
    /// A task's first process.
    Task,
    /// One that is run in a task later.
    Exec,
}

/// Loads the AppArmor profile that a process is to have, if it is the driver's own and isn't there. Other programs may
/// unload it while tasks have it.
///
/// # Errors
/// If it can't be loaded.
pub(crate) async fn load_profile(profile: Option<&str>, process: Confined) -> Result<(), ConfinementError> {
    match profile {
        Some(apparmor::OWN) => Box::pin(apparmor::load_own(process)).await,
        _ => Ok(()),
    }
}

fn decide(
    security: &Security,
    security_policy: &SecurityPolicy,
    shares_kernel: bool,
    host: &Host,
) -> Result<Confinement, ConfinementError> {
    // A job may only ask for privileges where the operator allows them all.
    let every = security.privileged.then(CapabilityList::every);
    let allowed = every.as_ref().unwrap_or(&security_policy.allow_caps);
    let capabilities = capabilities::granted(security, allowed, &host.capabilities)?;
    let seccomp = seccomp(security, security_policy, host, &capabilities)?;
    let apparmor_profile =
        apparmor::profile_of(security, security_policy, host.apparmor.as_ref(), shares_kernel)?;
    let (devices, masked_paths) = (host.devices.clone(), host.thermal_throttles.clone());
    let seccomp_architectures =
        security.seccomp_architectures.unwrap_or(security_policy.seccomp_architectures);
    Ok(Confinement { capabilities, seccomp, seccomp_architectures, apparmor_profile, devices, masked_paths })
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
            let mut filter = profile.for_task(capabilities, host.kernel, std::env::consts::ARCH)?;
            seccomp::tell_apart(&mut filter)?;
            Ok(Some(Arc::new(filter)))
        }
        _ if security.seccomp.unwrap_or(otherwise) => {
            let profile = seccomp::Profile::built_in().map_err(ConfinementError::BuiltIn)?;
            Ok(Some(seccomp::shared(profile, capabilities, host.kernel)?))
        }
        _ => Ok(None),
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
        decide(security, &security_policy, true, &host()).unwrap()
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
    fn the_architectures_of_a_filter_are_the_jobs_word_and_then_the_operators() {
        let architectures = |of_job, of_operator| {
            let security = Security { seccomp_architectures: of_job, ..Security::default() };
            let policy = SecurityPolicy {
                seccomp: true,
                seccomp_architectures: of_operator,
                ..SecurityPolicy::default()
            };
            let filter =
                decide(&security, &policy, true, &host()).unwrap().seccomp_filter(&ImageArch::default());
            filter.unwrap().architectures().as_ref().map_or(0, Vec::len)
        };
        use SeccompArchitectures::{All, Image};
        let all = architectures(None, All);
        assert_eq!(architectures(Some(All), Image), all);
        for (of_job, of_operator) in [(None, Image), (Some(Image), All)] {
            assert_eq!(architectures(of_job, of_operator), all.min(1));
        }
    }

    #[tokio::test]
    async fn settings_are_settled_by_the_facts_of_this_host() {
        let security_policy = SecurityPolicy {
            seccomp: true,
            allow_caps: crate::config::capability_tests::list(&["chown"]),
            ..SecurityPolicy::default()
        };
        let settled = settle(&Security::default(), &security_policy, true).await.unwrap();
        assert!(settled.seccomp.is_some() && settled.capabilities == [Capability::Chown].into());
        let profile = SeccompProfile { option: "seccomp_profile", path: "/no/such/profile".into() };
        let security = Security { seccomp_profile: Some(profile), ..Security::default() };
        let error = settle(&security, &security_policy, true).await.unwrap_err();
        assert!(matches!(error, ConfinementError::Profile { .. }), "{error}");
    }
}
