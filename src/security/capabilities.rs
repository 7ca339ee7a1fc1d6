//! The capabilities of a task.
//!
//! Source of the facts: moby/moby `oci/caps/defaults.go` and `utils.go` (`TweakCapabilities`); the numbers are those of
//! Linux' `include/uapi/linux/capability.h`.

use std::collections::HashSet;

use oci_spec::runtime::Capability;

use super::ConfinementError;
use crate::config::{CapabilityList, Security, capability_name};

/// Docker's default capabilities of a container.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability, each at the index that is its number.
const NUMBERED: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Returns the capabilities whose bits are set in the mask.
pub(super) fn in_mask(mask: u64) -> HashSet<Capability> {
    NUMBERED.into_iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, one)| one).collect()
}

/// Returns the capabilities of a task, by docker's rules: `cap_drop` is removed from the default set, then `cap_add` is
/// added, even if it is dropped as well; but if `cap_add` has `all`, `cap_drop` is removed from all. A privileged task
/// starts from all.
///
/// # Errors
/// Names a capability of `cap_add` that this host can't give.
pub(super) fn granted(
    requested: &Security,
    allowed: &CapabilityList,
    available: &HashSet<Capability>,
) -> Result<HashSet<Capability>, ConfinementError> {
    let Security { privileged, cap_add: add, cap_drop: drop, .. } = requested;
    if let Some(missing) = add.named().find(|one| !available.contains(one)) {
        let why = "this host can't grant it: the kernel is too old for it, or the Nomad agent itself runs without it";
        return Err(ConfinementError::value("cap_add", capability_name(missing), why));
    }
    let dropped: HashSet<Capability> = drop.named().collect();
    if add.all {
        return Ok(available - &dropped);
    }
    let start: HashSet<Capability> = match (drop.all, privileged) {
        (true, _) => HashSet::new(),
        (false, true) => available.clone(),
        (false, false) => DEFAULT.into_iter().filter(|one| allowed.contains(*one)).collect(),
    };
    Ok((&start - &dropped).into_iter().chain(add.named()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::capability_tests::list;

    fn given(privileged: bool, add: &[&str], drop: &[&str], allowed: &[&str]) -> HashSet<Capability> {
        let requested =
            Security { privileged, cap_add: list(add), cap_drop: list(drop), ..Security::default() };
        granted(&requested, &list(allowed), &in_mask(u64::MAX)).unwrap()
    }

    #[test]
    fn the_numbers_are_the_kernels() {
        assert_eq!(in_mask(0), HashSet::new());
        assert_eq!(in_mask(1 << 21 | 1 << 40), [Capability::SysAdmin, Capability::CheckpointRestore].into());
        assert_eq!(in_mask(0xa804_25fb), DEFAULT.into());
        assert_eq!(in_mask(u64::MAX).len(), NUMBERED.len());
    }

    #[test]
    fn cap_add_and_cap_drop_follow_dockers_rules() {
        let default: HashSet<_> = DEFAULT.into();
        let (all, any) = (in_mask(u64::MAX), &["all"][..]);
        assert_eq!(given(false, &[], &[], any), default);
        assert_eq!(given(false, &["sys_admin"], &[], any), &default | &[Capability::SysAdmin].into());
        assert_eq!(given(false, &[], &["chown", "sys_admin"], any), &default - &[Capability::Chown].into());
        assert_eq!(given(false, &["chown"], &["chown"], any), default);
        assert_eq!(given(false, &[], &["all"], any), HashSet::new());
        assert_eq!(given(false, &["chown"], &["all", "kill"], any), [Capability::Chown].into());
        assert_eq!(given(false, &["all"], &["chown"], any), &all - &[Capability::Chown].into());
        assert_eq!(given(true, &[], &[], any), all);
        assert_eq!(given(true, &[], &["sys_admin"], any), &all - &[Capability::SysAdmin].into());
    }

    #[test]
    fn capabilities_that_are_not_allowed_are_never_granted() {
        let few = &["chown", "net_admin"][..];
        assert_eq!(given(false, &[], &[], few), [Capability::Chown].into());
        assert_eq!(given(false, &["net_admin"], &[], few), in_mask(1 | 1 << 12));
        assert_eq!(given(false, &[], &[], &[]), HashSet::new());
    }

    #[test]
    fn capabilities_that_the_host_lacks_are_refused_and_not_in_all() {
        let old = in_mask((1 << 38) - 1);
        let requested = |add| Security { cap_add: list(add), ..Security::default() };
        let error = granted(&requested(&["bpf"]), &list(&["all"]), &old).unwrap_err().to_string();
        assert!(error.contains("cap_add") && error.contains("CAP_BPF"), "{error}");
        assert_eq!(granted(&requested(&["all"]), &list(&["all"]), &old).unwrap(), old);
    }
}
