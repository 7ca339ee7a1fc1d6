//! Looks up the facts of the host that bear on a task's limits and kernel parameters.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

use std::path::Path;

use crate::cgroup::{self, Cgroup};
use crate::config::IdList;
use crate::spec::{HostFacts, NETWORK_PARAMETERS};
use crate::sys::open_files;
use crate::task::error::{Error, Result};

const PROCESSORS: &str = "/sys/devices/system/cpu/online";
const MAX_OPEN_FILES: &str = "/proc/sys/fs/nr_open";
const PARAMETERS: &str = "/proc/sys";
const GROUP_IDS: &str = "/proc/self/gid_map";
/// The parameter whose value has a group id that a user namespace may lack; the kernel refuses it there.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// # Errors
/// When the lookup breaks off. Facts that the kernel does not tell are left out.
pub(in crate::task) async fn look(cgroup: Cgroup) -> Result<HostFacts> {
    let looked = tokio::task::spawn_blocking(move || {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let list = |text: String| text.trim().parse::<IdList>().unwrap_or_default();
        HostFacts {
            is_cgroup_v2: cgroup::mode() == cgroup::Mode::V2,
            can_limit_swap: cgroup.limits_swap(),
            can_limit_pids: cgroup.limits_pids(),
            processors: list(read(PROCESSORS)),
            shared_processors: list(cgroup.shared_processors()),
            memory_nodes: list(cgroup.shared_memory_nodes()),
            max_open_files: read(MAX_OPEN_FILES).trim().parse().ok(),
            agent_open_files: open_files::agents().map(|agents| (agents.soft, agents.hard)),
            network_parameters: settable_network_parameters(),
        }
    });
    looked.await.map_err(|error| Error::failed(error).context("read the host's limits"))
}

/// Returns those of [`NETWORK_PARAMETERS`] that the kernel has, and lets the driver set. Blocking: not for an async
/// thread.
pub(in crate::task) fn settable_network_parameters() -> Vec<(&'static str, &'static str)> {
    network_parameters(Path::new(PARAMETERS), &std::fs::read_to_string(GROUP_IDS).unwrap_or_default())
}

/// Returns the parameters that are below `directory`, without that of pings where the process has not all group ids.
fn network_parameters(directory: &Path, group_ids: &str) -> Vec<(&'static str, &'static str)> {
    let has_all_groups = group_ids.split_whitespace().eq(["0", "0", "4294967295"]);
    let is_there = |(name, _): &(&str, &str)| directory.join(name.replace('.', "/")).exists();
    let can_be_set = |(name, _): &(&str, &str)| *name != PING_GROUPS || has_all_groups;
    NETWORK_PARAMETERS.into_iter().filter(can_be_set).filter(is_there).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_kernel_and_of_the_user_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let of = |ids: &str| {
            network_parameters(directory.path(), ids).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
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
