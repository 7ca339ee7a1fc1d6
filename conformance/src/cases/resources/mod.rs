//! Limits of a task, its cgroup, and its statistics.

pub mod cgroup_moves;
pub mod growth;
pub mod gvisor;
pub mod limits;
pub mod memory_and_cpu;
pub mod own_cgroups;
pub mod stats;
pub mod stats_counts;
