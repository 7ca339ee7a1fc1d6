//! The order of start and stop of the plugin process, and its exit codes.

mod cgroup;
mod config;
mod containerd;
mod driver;
mod error;
mod go_plugin;
mod log;
mod rootfs;
mod shim;
mod spec;
mod task;

fn main() {}
