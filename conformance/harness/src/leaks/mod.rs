//! What a driver or an agent can leave on a machine: found, listed, counted, removed by force.

pub mod agent;
pub mod census;
pub mod inspect;
pub mod report;
pub(crate) mod shim_sockets;
pub mod sweep;
