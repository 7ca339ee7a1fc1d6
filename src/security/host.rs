//! Facts of this host that decide on a task's security settings. Blocking: not for an async thread.
//!
//! Source of the facts: proc(5) for `/proc/self/status`; moby/moby `oci/devices_linux.go` and containerd
//! `pkg/oci/utils_unix.go` for the devices of a privileged container.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{Capability, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use super::apparmor::AppArmor;
use super::{ConfinementError, capabilities};
use crate::config::{SeccompProfile, Security, SecurityPolicy};
use crate::sys::host_path::{self, HostPathError};

pub(super) const STATUS: &str = "/proc/self/status";
const KERNEL: &str = "/proc/sys/kernel/osrelease";
const DEVICES: &str = "/dev";
/// Maximum size of a seccomp profile. Docker's own has some fifteen thousand bytes.
const PROFILE_LIMIT_BYTES: u64 = 1024 * 1024;
const PERMISSIONS: u32 = 0o7777;
const CPUS: &str = "/sys/devices/system/cpu";
/// Directory of a CPU's throttling counters, which tell how hot it is, and so what runs beside the task.
const HEAT: &str = "thermal_throttle";

/// Facts of this host.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Capabilities in the plugin's own bounding set; it can't give more.
    pub capabilities: HashSet<Capability>,
    pub kernel: (u32, u32),
    /// AppArmor, for a task that may have a profile. `None` if the kernel has it disabled.
    pub apparmor: Option<AppArmor>,
    /// Content of the seccomp profile that the job names.
    pub seccomp_profile: Option<String>,
    /// Host devices of a privileged task; empty for any other.
    pub devices: Vec<LinuxDevice>,
    /// Directories of CPUs with throttling counters, to be masked.
    pub thermal_throttles: Vec<String>,
}

impl Host {
    /// Reads the facts that the options need.
    ///
    /// # Errors
    /// Names the option whose file is missing or invalid, or the file that can't be read.
    pub(super) fn look(
        security: &Security,
        security_policy: &SecurityPolicy,
    ) -> Result<Self, ConfinementError> {
        let status = read(STATUS)?;
        let mask = bounding(&status).ok_or_else(|| missing(STATUS, "no line CapBnd"))?;
        let release = read(KERNEL)?;
        let kernel = version(&release).ok_or_else(|| missing(KERNEL, &release))?;
        let mut devices = Vec::new();
        if security.privileged {
            find_devices(Path::new(DEVICES), &mut devices)?;
        }
        let may_have_profile = security.apparmor_profile.is_some() || security_policy.apparmor;
        Ok(Self {
            capabilities: capabilities::in_mask(mask),
            kernel,
            apparmor: may_have_profile.then(AppArmor::look).flatten(),
            seccomp_profile: security
                .seccomp_profile
                .as_ref()
                .map(|named| profile(named, security_policy))
                .transpose()?,
            devices,
            thermal_throttles: thermal_throttles(Path::new(CPUS)),
        })
    }
}

/// Returns the `thermal_throttle` directories of the CPUs that have one. Empty if the kernel lists no CPUs.
fn thermal_throttles(cpus: &Path) -> Vec<String> {
    let entries = fs::read_dir(cpus).into_iter().flatten().flatten();
    let is_cpu = |name: &str| {
        name.strip_prefix("cpu")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
    };
    let cpus = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_cpu));
    let mut found: Vec<_> = cpus
        .map(|cpu| cpu.path().join(HEAT))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    found.sort_unstable();
    found
}

fn read(path: &str) -> Result<String, ConfinementError> {
    fs::read_to_string(path).map_err(ConfinementError::host(path))
}

fn missing(path: &str, what: &str) -> ConfinementError {
    ConfinementError::host(path)(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
}

fn bounding(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Parses the first two numbers of a kernel's version, such as `6.1.0-18-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Reads a seccomp profile of the host. Only a regular file is opened: opening a device can do harm by itself, such as
/// start a watchdog.
fn profile(named: &SeccompProfile, security_policy: &SecurityPolicy) -> Result<String, ConfinementError> {
    let refused = |why: String| ConfinementError::profile(named, why);
    let unreadable = |source| {
        let SeccompProfile { option, path } = named;
        ConfinementError::Profile { option, path: path.clone(), source }
    };
    // The operator's `seccomp_profile_dirs` has been checked before, with the other options.
    let (root, path) = security_policy.seccomp_profile(&named.path).ok_or_else(|| {
        refused("the plugin option seccomp_profile_dirs has no directory above it".to_owned())
    })?;
    let file = host_path::open_file(&root, &path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let io = |source| unreadable(HostPathError::Io { doing: "read", path: named.path.clone(), source });
    file.take(PROFILE_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > PROFILE_LIMIT_BYTES) {
        return Err(refused(format!("the file has more than {PROFILE_LIMIT_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| refused("the file is not UTF-8 text".to_owned()))
}

/// Collects all devices below a directory, except what a container has of its own (terminals, shared memory, message
/// queues, the console) and hidden files of other programs. Symbolic links are skipped. Devices and directories may
/// disappear at any time.
fn find_devices(directory: &Path, found: &mut Vec<LinuxDevice>) -> Result<(), ConfinementError> {
    const OWN: [&str; 5] = ["pts", "shm", "fd", "mqueue", "console"];
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(ConfinementError::host(directory))?,
    };
    for entry in entries {
        let entry = entry.map_err(ConfinementError::host(directory))?;
        let name = entry.file_name();
        if OWN.iter().any(|own| name == *own) || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let kind = metadata.file_type();
        let kind = if kind.is_dir() {
            find_devices(&path, found)?;
            continue;
        } else if kind.is_char_device() {
            LinuxDeviceType::C
        } else if kind.is_block_device() {
            LinuxDeviceType::B
        } else {
            continue;
        };
        let number = |part: u64| i64::try_from(part).unwrap_or_default();
        let device = LinuxDeviceBuilder::default()
            .path(path)
            .typ(kind)
            .major(number(major(metadata.rdev())))
            .minor(number(minor(metadata.rdev())))
            .file_mode(metadata.mode() & PERMISSIONS)
            .uid(metadata.uid())
            .gid(metadata.gid());
        found.push(device.build()?);
    }
    Ok(())
}

#[cfg(test)]
pub(super) fn check_parsers(text: &str) {
    let _ = bounding(text);
    assert!(super::apparmor::names(text).iter().all(|profile| text.contains(profile.as_str())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::error_chain::Chained;

    fn named(path: impl AsRef<Path>) -> SeccompProfile {
        SeccompProfile { option: "seccomp_profile", path: path.as_ref().to_owned() }
    }

    #[test]
    fn kernel_files_are_parsed() {
        assert_eq!(bounding("Name:\tx\nCapBnd:\t000001fffeffffff\nCapAmb:\t0\n"), Some(0x1ff_feff_ffff));
        assert_eq!(bounding("Name:\tx\n"), None);
        assert_eq!(version("6.1.0-18-amd64\n"), Some((6, 1)));
        assert_eq!(version("4.19"), Some((4, 19)));
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn only_the_facts_that_the_options_need_are_read() {
        let host = Host::look(&Security::default(), &SecurityPolicy::default()).unwrap();
        assert!(host.kernel > (3, 0) && host.capabilities.contains(&Capability::Chown), "{host:?}");
        assert!(host.devices.is_empty() && host.apparmor.is_none() && host.seccomp_profile.is_none());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile");
        fs::write(&path, "{}").unwrap();
        let security =
            Security { privileged: true, seccomp_profile: Some(named(path)), ..Security::default() };
        let host = Host::look(&security, &SecurityPolicy::default()).unwrap();
        assert!(!host.devices.is_empty() && host.seccomp_profile.as_deref() == Some("{}"), "{host:?}");
    }

    #[test]
    fn a_profile_that_is_no_file_of_its_kind_is_refused_at_once_and_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(at("large"), vec![b' '; 1024 * 1024 + 1]).unwrap();
        fs::write(at("binary"), [0xff, 0xfe]).unwrap();
        for (name, why) in [
            ("absent", "does not exist"),
            ("pipe", "not a regular file"),
            ("large", "bytes"),
            ("binary", "not UTF-8"),
            (".", "not a regular file"),
        ] {
            let error =
                profile(&named(at(name)), &SecurityPolicy::default()).unwrap_err().chain().to_string();
            assert!(
                error.contains("seccomp_profile") && error.contains(name) && error.contains(why),
                "{error}"
            );
        }
        fs::write(at("largest"), vec![b' '; 1024 * 1024]).unwrap();
        assert_eq!(profile(&named(at("largest")), &SecurityPolicy::default()).unwrap().len(), 1024 * 1024);
        fs::write(at("good"), "{}").unwrap();
        assert_eq!(profile(&named(at("good")), &SecurityPolicy::default()).unwrap(), "{}");
        let only =
            SecurityPolicy { seccomp_profile_dirs: Some(vec![at("profiles")]), ..SecurityPolicy::default() };
        fs::create_dir(at("profiles")).unwrap();
        fs::write(at("profiles/own"), "{}").unwrap();
        std::os::unix::fs::symlink("../good", at("profiles/out")).unwrap();
        assert_eq!(profile(&named(at("profiles/own")), &only).unwrap(), "{}");
        assert!(profile(&named(at("good")), &only).is_err());
        let error = profile(&named(at("profiles/out")), &only).unwrap_err().chain().to_string();
        assert!(error.contains("leads out"), "{error}");
        // The kernel's log file in /proc is a regular file as well.
        for kernels in ["/proc/kmsg", "/proc/self/environ", "/sys/kernel/uevent_seqnum"] {
            let error = profile(&named(kernels), &SecurityPolicy::default()).unwrap_err().chain().to_string();
            assert!(error.contains("kernel"), "{error}");
        }
    }

    #[test]
    fn processors_that_show_their_heat_are_found() {
        let cpus = tempfile::tempdir().unwrap();
        for name in [
            "cpu0/thermal_throttle",
            "cpu1",
            "cpu12/thermal_throttle",
            "cpufreq/thermal_throttle",
            "cpu/thermal_throttle",
        ] {
            fs::create_dir_all(cpus.path().join(name)).unwrap();
        }
        let wanted = ["cpu0", "cpu12"].map(|cpu| cpus.path().join(cpu).join(HEAT).display().to_string());
        assert_eq!(thermal_throttles(cpus.path()), wanted);
        assert!(thermal_throttles(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn the_hosts_devices_are_found_and_a_containers_own_are_not_among_them() {
        let mut found = Vec::new();
        find_devices(Path::new(DEVICES), &mut found).unwrap();
        let null = found.iter().find(|device| device.path() == Path::new("/dev/null")).unwrap();
        assert_eq!((null.typ(), null.major(), null.minor()), (LinuxDeviceType::C, 1, 3));
        let mode = fs::metadata("/dev/null").unwrap().mode() & 0o7777;
        assert_eq!(null.file_mode(), Some(mode));
        assert!(!found.iter().any(|device| device.path().starts_with("/dev/pts")));
        let error = find_devices(Path::new("/dev/null"), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("/dev/null"), "{error}");
        let count = found.len();
        find_devices(Path::new("/dev/gone-meanwhile"), &mut found).unwrap();
        assert_eq!(found.len(), count);
    }
}
