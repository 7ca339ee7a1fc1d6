//! What a task may do and see: privileges, mounts, devices, namespaces, sandboxes.

pub mod allowed_modes;
pub mod capabilities;
pub mod devices;
pub mod docker;
pub mod gvisor;
pub mod mounts;
pub mod privileged;
pub mod propagation;
pub mod sandbox;
pub mod seccomp;
pub mod security;
pub mod volume_policy;
