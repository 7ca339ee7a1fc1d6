//! The protocol of a containerd shim, for programs that control one: the plugin and the benchmark.
//!
//! - [`bootstrap`]: the three forms of the answer that a shim's `start` prints.
//! - [`start_input`]: the two forms of the input that a shim's `start` reads from stdin.
//! - [`client`]: one connection to a shim, speaking `containerd.task.v2.Task` or `containerd.task.v3.Task` with one set
//!   of messages.
//! - [`events`]: a receiver of the events that a shim sends.
//! - [`any`]: the type URLs that a shim accepts.
//!
//! Knows nothing of bundles, processes or Nomad. Source of the facts: containerd `api/runtime/task/{v2,v3}`,
//! `api/runtime/bootstrap/v1`, and live trials on 1.6, 1.7, 2.1, 2.3 and 2.4.

pub mod any;
pub mod bootstrap;
pub mod client;
pub mod events;
mod multiplex;
pub mod start_input;

pub use bootstrap::{ApiVersion, Bootstrap, BootstrapError};
pub use client::{CallError, TaskClient};
pub use containerd_shim_protos::shim::oci::Options as RuncOptions;
pub use containerd_shim_protos::{api, cgroups, cgroups_v2, protobuf};
pub use start_input::{StartInput, StartParams};
