//! A task's output.

pub mod driver_log_failures;
pub mod driver_logs;
pub mod pipes;
pub mod receivers;
