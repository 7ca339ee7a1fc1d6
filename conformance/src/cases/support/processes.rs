//! Processes of a case's tasks.

use anyhow::{Context, Result};
use harness::context::CaseContext;
use harness::leaks::inspect::find_processes;
use harness::task::LIMIT;
use nix::unistd::Pid;

use crate::cases::support::until;

/// Returns the pid of the shim of the case's only task.
pub fn shim_pid(case: &CaseContext) -> Result<Pid> {
    let found = find_processes(&case.state_dir());
    let shim = found.iter().find(|process| !process.is_spare && process.command.contains("containerd-shim"));
    Ok(Pid::from_raw(shim.with_context(|| format!("no shim among {found:?}"))?.pid))
}

/// Waits until a process has exited. It may still be a zombie.
pub async fn ended(pid: i32) -> Result<()> {
    let stat = format!("/proc/{pid}/stat");
    until(LIMIT, "its end", || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")))
        .await
}
