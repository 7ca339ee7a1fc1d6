//! Plays a Nomad client to a plugin binary: starts it as go-plugin does, calls its services, and creates what the
//! client creates around a task (directories, pipes, control groups). Knows nothing of containers.
//!
//! Source of the facts: hashicorp/nomad `plugins/`, `client/`, hashicorp/go-plugin `client.go`.

pub mod alloc;
pub mod cgroup;
pub mod exec;
pub mod hcl;
pub mod launch;
pub mod logmon;
pub mod plugin;
pub mod stats;
pub mod stderr;

pub use alloc::Alloc;
pub use exec::Exec;
pub use launch::Launch;
pub use plugin::Plugin;
