//! Commands in a running task.

pub mod ends;
pub mod gvisor;
pub mod many;
pub mod scripts;
pub mod streams;
pub mod terminal;
