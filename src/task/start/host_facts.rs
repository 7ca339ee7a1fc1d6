//! Looks up the facts of the host that bear on a task's limits and kernel parameters.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what the kernel makes, below /proc and /sys, and nothing that a job names"
)]

use crate::cgroup::{self, Cgroup};
use crate::config::IdList;
use crate::spec::HostFacts;
use crate::sys::open_files;
use crate::task::error::{Error, Result};
use crate::task::network_parameters;

const PROCESSORS: &str = "/sys/devices/system/cpu/online";
const MAX_OPEN_FILES: &str = "/proc/sys/fs/nr_open";

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
            network_parameters: network_parameters::settable(),
        }
    });
    looked.await.map_err(|error| Error::failed(error).context("read the host's limits"))
}
