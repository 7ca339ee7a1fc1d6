//! Capabilities of a container, and the kernel files that are masked or read-only in it.
//!
//! Source of the facts: moby/moby `oci/defaults.go` (v28: `thermal_throttle`, GHSA-6fw5-f8r9-fgfm).

use std::collections::HashSet;

use oci_spec::OciSpecError;
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

use crate::config::Security;

/// Returns the capability sets of the process. Nothing is inheritable: a program with file capabilities would otherwise
/// gain them from any caller.
pub(super) fn capabilities(set: &HashSet<Capability>) -> Result<LinuxCapabilities, OciSpecError> {
    LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set.clone())
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

/// Kernel files that are masked on every host.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Returns the paths to mask; `hosts` are those that only this host has.
pub(super) fn masked_paths(security: &Security, hosts: &[String]) -> Vec<String> {
    unless_open(security, MASKED.into_iter().chain(hosts.iter().map(String::as_str)))
}

/// Returns the paths to make read-only. `/sys/fs/cgroup` is one of them, because on cgroup v1 the runtime mounts the
/// hierarchies read-only, but not the directory that they are mounted in.
pub(super) fn readonly_paths(security: &Security) -> Vec<String> {
    unless_open(
        security,
        ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys/fs/cgroup"],
    )
}

fn unless_open<'a>(security: &Security, paths: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    if security.privileged || security.system_paths_unconfined {
        return Vec::new();
    }
    paths.into_iter().map(str::to_owned).collect()
}
