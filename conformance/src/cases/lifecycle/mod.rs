//! A task from its start to its end: run, stop, wait, exit status, and starts that fail or wait.

pub mod auto_runtime;
pub mod events;
pub mod exit_status;
pub mod gvisor;
pub mod labels;
pub mod process;
pub mod run;
pub mod runtimes;
pub mod shared_shims;
pub mod shim_failures;
pub mod spares;
pub mod start_failures;
pub mod start_limit;
pub mod stop;
pub mod timelines;
pub mod unmounts;
pub mod wait;
