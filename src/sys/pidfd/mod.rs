//! Processes held by a pidfd, which never comes to mean another process: to send a signal, to wait for an exit, and to
//! read its exit status.

mod exit_info;
mod handle;
mod init;

pub(crate) use handle::{ProcessHandle, kill};
pub(crate) use init::Init;
