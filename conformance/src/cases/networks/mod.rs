//! Networks of tasks, and their names.

pub mod bridges;
pub mod cni;
pub mod docker;
pub mod failures;
pub mod names;
pub mod own;
pub mod shared;
