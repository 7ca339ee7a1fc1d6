//! AppArmor: which profile a task gets, and the driver's own, the default of tasks where the operator wants one. The
//! decision and the profile's text are pure functions.
//!
//! Source of the facts: apparmor.d(5); Linux' `Documentation/admin-guide/LSM/apparmor.rst`; for what docker's default
//! profile allows and denies, and when a container has it, containerd v2.4 `contrib/apparmor` and `pkg/apparmor`, moby
//! v28 `daemon/apparmor_default.go`, `daemon/container_linux.go` and `daemon/oci_linux.go`.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

mod load_queue;
mod parser;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Confined, ConfinementError};
use crate::config::{Security, SecurityPolicy};
use crate::sys::host_files;
use load_queue::LoadQueue;

/// AppArmor's name for running without a profile.
const UNCONFINED: &str = "unconfined";
/// Name of the driver's own profile.
pub(super) const OWN: &str = "containerd-driver-default";
/// Name of the profile that dockerd makes, and that jobs may name.
const DOCKERS: &str = "docker-default";
const OPTION: &str = "apparmor_profile";

/// Files of the kernel, and the program that loads profiles, below the root.
const ENABLED: &str = "sys/module/apparmor/parameters/enabled";
const LOADED: &str = "sys/kernel/security/apparmor/profiles";
const PARSERS: [&str; 2] = ["sbin/apparmor_parser", "usr/sbin/apparmor_parser"];
/// Directory of the parser, whose file system may be slow.
const SBIN: &str = "/sbin";
/// Label of this process: its profile, and in brackets that profile's mode.
const LABEL: &str = "/proc/self/attr/current";
/// The features of AppArmor 3.0, as a file of the parser's. Later ones deny what the profile doesn't name, such as user
/// namespaces.
const ABI: &str = "/etc/apparmor.d/abi/3.0";
/// Variable that tells a program in a container of most kinds that it is in one.
const CONTAINER: &str = "container";

/// Maximum time that an exec waits for the profile, which its task has.
const EXEC_LIMIT: Duration = Duration::from_secs(30);

/// Whether this process has loaded the profile. One that is there already may be of another version of the driver.
static IS_CURRENT: AtomicBool = AtomicBool::new(false);
/// Lets one start at a time load the profile, for which others wait.
static LOADS: LoadQueue = LoadQueue::new();
/// Whether the log says that tasks run without the profile.
static WARNED: Once = Once::new();

/// AppArmor of this host, where the kernel has it enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AppArmor {
    /// Names of the loaded profiles. `None` if they can't be listed.
    loaded: Option<Vec<String>>,
    /// Path of the program that loads profiles, or the reason that the driver can't load any.
    parser: Result<PathBuf, &'static str>,
}

impl AppArmor {
    /// Looks for AppArmor on this host. `None` if the kernel has it disabled. Blocking: not for an async thread.
    pub(super) fn look() -> Option<Self> {
        let is_contained = std::env::var_os(CONTAINER).is_some_and(|kind| !kind.is_empty());
        Self::below(Path::new("/"), is_contained)
    }

    fn below(root: &Path, is_contained: bool) -> Option<Self> {
        let read = |file: &str| fs::read_to_string(root.join(file)).ok();
        read(ENABLED).filter(|word| word.starts_with('Y'))?;
        let loaded = read(LOADED).map(|list| names(&list));
        let program = PARSERS.map(|path| root.join(path)).into_iter().find(|path| path.is_file());
        let parser = match program {
            _ if is_contained => {
                Err("the agent runs in a container, whose profiles are loaded outside of it")
            }
            _ if loaded.is_none() => Err("/sys/kernel/security/apparmor can't be read; mount securityfs"),
            None => Err("there is no /sbin/apparmor_parser; install the package apparmor"),
            Some(program) => Ok(program),
        };
        Some(Self { loaded, parser })
    }

    fn can_load(&self) -> bool {
        self.parser.is_ok()
    }

    /// Returns whether a profile is loaded. One counts as such where they can't be listed: the runtime reports a missing
    /// one.
    fn may_have(&self, profile: &str) -> bool {
        self.loaded.as_ref().is_none_or(|loaded| loaded.iter().any(|name| name == profile))
    }

    /// Returns whether the driver's own profile is there: as this process has loaded it, which `is_current` says, or, where
    /// this process can load none, as another one has.
    fn has_own(&self, is_current: bool) -> bool {
        self.may_have(OWN) && (is_current || !self.can_load())
    }

    /// Returns whether the driver's own profile has to be loaded before a process can have it. An exec does with that of
    /// another version, which its task may have as well, so that it does not need the parser.
    fn lacks_own(&self, process: Confined, is_current: bool) -> bool {
        !self.has_own(is_current || process == Confined::Exec)
    }
}

/// Parses the kernel's list of profiles. A line has a profile's name and, in brackets, its mode.
pub(super) fn names(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| Some(line.rsplit_once(" (")?.0.to_owned())).collect()
}

/// Returns the profile of a task, which is to be loaded first if it is [`OWN`]. `shares_kernel` says whether the task's
/// processes are processes of the host. Where the driver can't load its own profile, a task whose job names none has none,
/// as under docker. A privileged one is freed from what the runtime and the agent have. On a host without AppArmor, which
/// confines nothing, `unconfined` is accepted, and the name of docker's profile where tasks have one by default.
///
/// # Errors
/// If the job names a profile that is not there.
pub(super) fn profile_of(
    security: &Security,
    security_policy: &SecurityPolicy,
    host: Option<&AppArmor>,
    shares_kernel: bool,
) -> Result<Option<String>, ConfinementError> {
    let can_load = host.is_some_and(AppArmor::can_load);
    let own = || Ok(Some(OWN.to_owned()));
    let Some(name) = security.apparmor_profile.as_deref() else {
        let is_decided = security_policy.apparmor && shares_kernel && can_load;
        return match is_decided {
            true if security.privileged => Ok(Some(UNCONFINED.to_owned())),
            true => own(),
            false => Ok(None),
        };
    };
    let refused = |why: &str| Err(ConfinementError::value(OPTION, name, why));
    let Some(host) = host else {
        return match name {
            UNCONFINED => Ok(None),
            DOCKERS if security_policy.apparmor => Ok(None),
            _ => refused("AppArmor is not enabled on this host; leave the option out, or set \"unconfined\""),
        };
    };
    match name {
        OWN if can_load => own(),
        // Jobs for docker name it, and dockerd may be gone.
        DOCKERS if can_load && security_policy.apparmor && !host.may_have(DOCKERS) => own(),
        _ if name == UNCONFINED || host.may_have(name) => Ok(Some(name.to_owned())),
        _ => refused("no such profile is loaded on this host; load it there with apparmor_parser"),
    }
}

/// Returns the profile of tasks whose jobs name none, for the node to show. `None` where the operator wants none or the
/// kernel has AppArmor disabled. Tasks that run without the profile because it can't be loaded are told to the log, once.
pub(crate) async fn by_default(
    security_policy: &SecurityPolicy,
    shares_kernel: bool,
) -> Option<&'static str> {
    if !security_policy.apparmor || !shares_kernel {
        return None;
    }
    match look().await.ok().flatten()?.parser {
        Ok(_) => Some(OWN),
        Err(why) => {
            WARNED.call_once(|| {
                tracing::warn!(
                    "AppArmor is enabled, and tasks run without the default profile all the same: {why}"
                );
            });
            Some(UNCONFINED)
        }
    }
}

/// Loads the driver's own profile, unless it is there for the process that is to have it. Of those that need it at the
/// same time, one loads it.
///
/// # Errors
/// If it can't be loaded, or for an exec not in time.
pub(super) async fn load_own(process: Confined) -> Result<(), ConfinementError> {
    let load = async {
        match parser_needed_by(process).await? {
            Some(program) => LOADS.run(&program, load_missing(process)).await,
            None => Ok(()),
        }
    };
    match process {
        Confined::Task => load.await,
        Confined::Exec => tokio::time::timeout(EXEC_LIMIT, load).await.unwrap_or_else(|_| {
            Err(not_loaded(format!("the profile {OWN} was not loaded within {} s", EXEC_LIMIT.as_secs())))
        }),
    }
}

/// Returns the error for a profile that another try may find loaded.
fn not_loaded(why: String) -> ConfinementError {
    ConfinementError::AppArmor { program: Path::new("/").join(PARSERS[0]), why, transient: true }
}

/// Returns the program that has to load the driver's own profile. `None` if the profile is there.
async fn parser_needed_by(process: Confined) -> Result<Option<PathBuf>, ConfinementError> {
    let lacks_it = |host: &AppArmor| host.lacks_own(process, IS_CURRENT.load(Ordering::Acquire));
    let parser = look().await?.filter(lacks_it).map(|host| host.parser);
    // It was there when the profile was chosen, such as before an update that replaces it.
    parser.transpose().map_err(|why| not_loaded(why.to_owned()))
}

async fn load_missing(process: Confined) -> Result<(), ConfinementError> {
    // Another start may have loaded it meanwhile.
    let Some(program) = parser_needed_by(process).await? else { return Ok(()) };
    let profile = host_files::look(Path::new(LABEL), host_files::LIMIT, own_profile).await;
    parser::load(&program, &profile.map_err(ConfinementError::host(LABEL))?).await?;
    tracing::info!(profile = OWN, "the default AppArmor profile is loaded");
    IS_CURRENT.store(true, Ordering::Release);
    Ok(())
}

async fn look() -> Result<Option<AppArmor>, ConfinementError> {
    let looked = host_files::look(Path::new(SBIN), host_files::LIMIT, AppArmor::look).await;
    looked.map_err(ConfinementError::host(SBIN))
}

/// Returns the driver's own profile for this host.
fn own_profile() -> String {
    let label = fs::read_to_string(LABEL).unwrap_or_default();
    text(profile_in(&label), Path::new(ABI).exists())
}

/// Returns the profile in a process' label. `None` for a label of several profiles, and for a name with characters that
/// have a meaning in rules.
fn profile_in(label: &str) -> Option<&str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    let name = label.split(" (").next()?.trim();
    (!name.is_empty() && name.chars().all(is_plain)).then_some(name)
}

/// Labels of the processes that may send a task any signal: host processes without a profile, and the runtimes, for
/// which distributions have profiles that limit nothing.
const SENDERS: [&str; 3] = [UNCONFINED, "runc", "crun"];

/// All that a task's capabilities, seccomp filter and mounts leave to it. What is not named here, such as a change to
/// another profile, is denied.
const ALLOWED: &str = "  capability,
  file,
  network,
  unix,
  umount,
  ptrace (readby, tracedby),
  signal (send, receive) set=(exists),
";

/// Exceptions from [`ALLOWED`]: changes to the kernel's settings, also where a job has these unmasked. Files of processes in
/// /proc, the limits of the task's own shared memory and semaphores, and control groups are no such settings.
const DENIED: &str = "  deny mount,
  deny /proc/* w,
  deny /proc/{[^0-9s/],s[^y/],sy[^s/],sys[^/]}*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{[^s],s[^eh],se[^m],sh[^m]}** w,
  deny /proc/{kcore,sysrq-trigger} rwklx,
  deny /sys/{[^f/],f[^s/],fs/[^c/],fs/c[^g/],fs/cg[^r/]}*/** wklx,
  deny /sys/{firmware,devices/virtual/powercap,kernel/security}/** rwklx,
";

/// Returns the text of the driver's own profile. `driver` is the profile of the driver itself, which sends signals to
/// tasks. Tasks can trace and signal each other as far as they share processes.
fn text(driver: Option<&str>, has_abi: bool) -> String {
    let abi = if has_abi { "abi <abi/3.0>,\n\n" } else { "" };
    let senders = SENDERS.into_iter().chain(driver.filter(|name| !SENDERS.contains(name)));
    let signals: Vec<_> = senders.map(|sender| format!("  signal (receive) peer={sender},\n")).collect();
    let signals = signals.concat();
    format!(
        "{abi}profile {OWN} flags=(attach_disconnected,mediate_deleted) {{
{ALLOWED}{signals}  signal (send, receive) peer={OWN},
  ptrace (read, trace) peer={OWN},

{DENIED}}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a host with these loaded profiles, on which the driver can load its own or not.
    fn host(loaded: Option<&[&str]>, can_load: bool) -> AppArmor {
        AppArmor {
            loaded: loaded.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            parser: if can_load { Ok("/sbin/apparmor_parser".into()) } else { Err("it is not there") },
        }
    }

    fn named(profile: &str) -> Security {
        Security { apparmor_profile: Some(profile.to_owned()), ..Security::default() }
    }

    fn policy(apparmor: bool) -> SecurityPolicy {
        SecurityPolicy { apparmor, ..SecurityPolicy::default() }
    }

    #[test]
    fn apparmor_is_there_where_the_kernel_has_it_enabled() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let below = |is_contained| AppArmor::below(root.path(), is_contained);
        assert_eq!(below(false), None);
        write(ENABLED, "N\n");
        assert_eq!(below(false), None);
        write(ENABLED, "Y\n");
        let without_list = below(false).unwrap();
        assert_eq!(without_list.loaded, None);
        assert!(without_list.parser.unwrap_err().contains("securityfs"));
        write(LOADED, "docker-default (enforce)\n/usr/bin/x y (complain)\n");
        let without_parser = below(false).unwrap();
        assert_eq!(without_parser.loaded.unwrap(), ["docker-default", "/usr/bin/x y"]);
        assert!(without_parser.parser.unwrap_err().contains("apparmor_parser"));
        write(PARSERS[1], "");
        assert_eq!(below(false).unwrap().parser, Ok(root.path().join(PARSERS[1])));
        write(PARSERS[0], "");
        assert_eq!(below(false).unwrap().parser, Ok(root.path().join(PARSERS[0])));
        assert!(below(true).unwrap().parser.unwrap_err().contains("container"));
    }

    #[test]
    fn the_profile_of_a_job_has_to_be_there() {
        let profile = |name, host: Option<&AppArmor>| profile_of(&named(name), &policy(false), host, true);
        let mine = host(Some(&["mine"]), true);
        assert_eq!(profile(UNCONFINED, None).unwrap(), None);
        assert_eq!(profile(UNCONFINED, Some(&mine)).unwrap().as_deref(), Some(UNCONFINED));
        assert_eq!(profile("mine", Some(&mine)).unwrap().as_deref(), Some("mine"));
        // If the list can't be read, the profile is passed on, and the runtime reports a missing one.
        assert_eq!(profile("mine", Some(&host(None, false))).unwrap().as_deref(), Some("mine"));
        for (host, word) in [(None, "not enabled"), (Some(&mine), "apparmor_parser")] {
            let error = profile("other", host).unwrap_err().to_string();
            assert!(error.contains("apparmor_profile") && error.contains(word), "{error}");
        }
        let dockers = |apparmor| profile_of(&named(DOCKERS), &policy(apparmor), None, true);
        assert_eq!(dockers(true).unwrap(), None, "docker takes it where AppArmor is off");
        dockers(false).unwrap_err();
        assert_eq!(profile(OWN, Some(&mine)).unwrap().as_deref(), Some(OWN), "it is loaded then");
        profile(OWN, Some(&host(Some(&["mine"]), false))).unwrap_err();
    }

    #[test]
    fn a_task_has_the_default_profile_where_the_operator_wants_it_and_the_host_can_load_it() {
        let has_it = |security: &Security, apparmor, host: Option<&AppArmor>, shares_kernel| {
            let profile = profile_of(security, &policy(apparmor), host, shares_kernel).unwrap();
            assert!(profile.as_deref().is_none_or(|name| name == OWN), "{profile:?}");
            profile.is_some()
        };
        let (usual, able) = (Security::default(), host(Some(&[]), true));
        assert!(has_it(&usual, true, Some(&able), true));
        assert!(!has_it(&usual, false, Some(&able), true));
        assert!(!has_it(&usual, true, Some(&able), false), "gVisor applies none");
        assert!(!has_it(&usual, true, Some(&host(Some(&[OWN]), false)), true), "without a parser");
        assert!(!has_it(&usual, true, None, true), "without AppArmor");
        let unconfined = profile_of(&named(UNCONFINED), &policy(true), Some(&able), true).unwrap();
        assert_eq!(unconfined.as_deref(), Some(UNCONFINED));
    }

    #[test]
    fn a_privileged_task_is_freed_from_other_profiles_where_another_task_has_the_drivers() {
        let privileged = Security { privileged: true, ..Security::default() };
        let profile = |apparmor, host: Option<&AppArmor>, shares_kernel| {
            profile_of(&privileged, &policy(apparmor), host, shares_kernel).unwrap()
        };
        let able = host(Some(&[]), true);
        assert_eq!(profile(true, Some(&able), true).as_deref(), Some(UNCONFINED));
        assert_eq!(profile(false, Some(&able), true), None);
        assert_eq!(profile(true, Some(&able), false), None);
        assert_eq!(profile(true, Some(&host(Some(&[]), false)), true), None);
        assert_eq!(profile(true, None, true), None);
    }

    #[test]
    fn dockers_profile_is_the_default_one_where_dockerd_has_not_loaded_its_own() {
        let profile = |apparmor, host: &AppArmor| {
            profile_of(&named(DOCKERS), &policy(apparmor), Some(host), true).ok().flatten()
        };
        assert_eq!(profile(true, &host(Some(&[]), true)).as_deref(), Some(OWN));
        assert_eq!(profile(true, &host(Some(&[DOCKERS]), true)).as_deref(), Some(DOCKERS));
        assert_eq!(profile(false, &host(Some(&[]), true)), None);
        assert_eq!(profile(true, &host(Some(&[]), false)), None);
    }

    #[test]
    fn the_drivers_profile_is_loaded_once_by_each_plugin_and_again_when_it_is_gone() {
        let (there, gone) = (host(Some(&[OWN]), true), host(Some(&["mine"]), true));
        let lacks = |host: &AppArmor, is_current| host.lacks_own(Confined::Task, is_current);
        assert!(!lacks(&there, true) && lacks(&there, false) && lacks(&gone, true));
        // Without a parser, one that is there has to do.
        assert!(!lacks(&host(Some(&[OWN]), false), false) && lacks(&host(Some(&["mine"]), false), true));
    }

    #[test]
    fn an_exec_needs_the_parser_only_if_the_profile_is_gone() {
        for can_load in [true, false] {
            for is_current in [true, false] {
                let lacks =
                    |names: &[&str]| host(Some(names), can_load).lacks_own(Confined::Exec, is_current);
                assert!(!lacks(&[OWN]) && lacks(&["mine"]), "{can_load} {is_current}");
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_shown_of_apparmor_where_the_operator_wants_no_default() {
        assert_eq!(by_default(&policy(false), true).await, None);
        assert_eq!(by_default(&policy(true), false).await, None);
    }

    #[test]
    fn the_profile_in_a_label_is_a_plain_name() {
        for (label, wanted) in [
            ("unconfined\n", Some("unconfined")),
            ("nomad (enforce)\n", Some("nomad")),
            ("/usr/bin/nomad-1.11 (complain)", Some("/usr/bin/nomad-1.11")),
            ("a//&b (mixed)", None),
            ("system_u:system_r:init_t:s0", None),
            ("x{a,b} (enforce)", None),
            ("", None),
        ] {
            assert_eq!(profile_in(label), wanted, "{label}");
        }
    }

    /// Returns whether the driver's profile denies writes to a path. Its patterns are those of apparmor.d(5).
    fn denies_writes(path: &str) -> bool {
        let mut rules = DENIED.lines().filter_map(|line| line.trim().strip_prefix("deny ")?.split_once(' '));
        let matches = |pattern: &str| {
            let either = pattern.replace('{', "(?:").replace('}', ")").replace(',', "|");
            let expression = either.replace("**", ".+").replace('*', "[^/]*");
            regex_lite::Regex::new(&format!("^{expression}$")).unwrap().is_match(path)
        };
        rules.any(|(pattern, rights)| rights.contains('w') && matches(pattern))
    }

    #[test]
    fn the_kernels_settings_can_not_be_written_under_the_drivers_profile() {
        for denied in [
            "/proc/sysrq-trigger",
            "/proc/kcore",
            "/proc/acpi/wakeup",
            "/proc/irq/1/smp_affinity",
            "/proc/scsi/scsi",
            "/proc/sysvipc/shm",
            "/proc/sys/vm/drop_caches",
            "/proc/sys/fs/mqueue/msg_max",
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/sysrq",
            "/proc/sys/kernel/seccomp/actions_logged",
            "/proc/sys/kernel/yama/ptrace_scope",
            "/sys/kernel/uevent_helper",
            "/sys/kernel/security/apparmor/.remove",
            "/sys/firmware/efi/efivars/x",
            "/sys/fs/bpf/x",
            "/sys/fs/cpuset/x",
            "/sys/module/apparmor/parameters/mode",
            "/sys/devices/virtual/powercap/x/energy_uj",
        ] {
            assert!(denies_writes(denied), "{denied}");
        }
        for allowed in [
            "/proc/1/oom_score_adj",
            "/proc/4711/task/4712/comm",
            "/proc/sys/kernel/shmmax",
            "/proc/sys/kernel/sem",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/a/cgroup.procs",
            "/procession/x",
            "/system/a/b",
            "/etc/passwd",
            "/alloc/data/proc/sys/vm/x",
        ] {
            assert!(!denies_writes(allowed), "{allowed}");
        }
    }

    #[test]
    fn the_drivers_profile_names_who_may_signal_a_task() {
        let usual = text(Some(UNCONFINED), true);
        assert!(usual.starts_with("abi <abi/3.0>,\n"), "{usual}");
        assert_eq!(usual, text(None, true));
        let without_abi = text(None, false);
        assert!(without_abi.starts_with("profile containerd-driver-default flags="), "{without_abi}");
        let confined = text(Some("nomad"), false);
        let more: Vec<_> = confined.lines().filter(|line| !without_abi.contains(line)).collect();
        assert_eq!(more, ["  signal (receive) peer=nomad,"]);
        for rule in [
            "signal (receive) peer=unconfined,",
            "signal (receive) peer=runc,",
            "signal (send, receive) peer=containerd-driver-default,",
            "ptrace (read, trace) peer=containerd-driver-default,",
            "deny mount,",
            "file,",
        ] {
            assert!(usual.lines().any(|line| line.trim() == rule), "{rule} is not in {usual}");
        }
        let mut rules = usual.lines().filter(|line| line.starts_with("  "));
        assert!(rules.all(|line| line.ends_with(',')), "{usual}");
        assert_eq!(usual.matches('{').count(), usual.matches('}').count(), "{usual}");
    }
}
