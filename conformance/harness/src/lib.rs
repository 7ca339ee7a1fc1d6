//! The test harness: a private containerd, registry and Consul, the Nomad side of a plugin, a real Nomad agent, and the
//! check that nothing of all that is left. Knows neither the cases nor the benchmark.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test bench prints to a person")]
#![allow(
    clippy::len_without_is_empty,
    clippy::new_without_default,
    reason = "the only callers are our own crates"
)]

pub mod agent;
pub mod apparmor;
pub mod context;
pub mod environment;
pub mod fixture;
pub mod host;
pub mod hugetlb;
pub mod interrupt;
pub mod leaks;
pub mod page;
pub mod processes;
pub mod task;
pub mod timeline;
