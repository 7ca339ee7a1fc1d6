//! The kernel parameters that the driver sets in networks of its own making, as docker does, on this host.

use std::path::Path;

use crate::spec::NETWORK_PARAMETERS;

const PARAMETERS: &str = "/proc/sys";
const GROUP_IDS: &str = "/proc/self/gid_map";
/// The parameter whose value has a group id that a user namespace may lack; the kernel refuses it there.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// Returns those of [`NETWORK_PARAMETERS`] that the kernel has, and lets the driver set. Blocking: not for an async
/// thread.
pub(in crate::task) fn settable() -> Vec<(&'static str, &'static str)> {
    those_of(Path::new(PARAMETERS), &group_ids())
}

/// Returns the parameters that are below `directory`, without that of pings where the process has not all group ids.
fn those_of(directory: &Path, group_ids: &str) -> Vec<(&'static str, &'static str)> {
    let has_all_groups = group_ids.split_whitespace().eq(["0", "0", "4294967295"]);
    let is_there = |(name, _): &(&str, &str)| directory.join(name.replace('.', "/")).exists();
    let can_be_set = |(name, _): &(&str, &str)| *name != PING_GROUPS || has_all_groups;
    NETWORK_PARAMETERS.into_iter().filter(can_be_set).filter(is_there).collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc, and nothing that a job names"
)]
fn group_ids() -> String {
    std::fs::read_to_string(GROUP_IDS).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_kernel_and_of_the_user_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let of =
            |ids: &str| those_of(directory.path(), ids).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let (all, some) = ("         0          0 4294967295\n", "0 100000 65536\n");
        assert!(of(all).is_empty());
        let ipv4 = directory.path().join("net/ipv4");
        std::fs::create_dir_all(&ipv4).unwrap();
        std::fs::write(ipv4.join("ping_group_range"), "").unwrap();
        assert_eq!(of(all), [PING_GROUPS]);
        std::fs::write(ipv4.join("ip_unprivileged_port_start"), "").unwrap();
        assert_eq!(of(all), ["net.ipv4.ip_unprivileged_port_start", PING_GROUPS]);
        assert_eq!(of(some), ["net.ipv4.ip_unprivileged_port_start"]);
    }
}
