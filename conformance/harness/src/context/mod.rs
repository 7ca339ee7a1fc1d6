//! The contexts of cases: of one against a plugin alone, and of those under a real agent.

pub mod agent;
mod case;
mod docker;

pub use case::CaseContext;
pub use docker::{DockerCluster, DockerDriver, DockerNode, DockerNodeSetup};
