//! Processes and files of gVisor's sandboxes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::leaks::inspect::{children, find_processes};
use harness::leaks::report::NULL_NETNS;
use harness::task::Task;
use nix::unistd::Pid;

/// Returns the process of a task's sandbox, found by the name that it gives itself.
pub fn sandbox(task: &Task) -> Result<Pid> {
    let pids = task.alloc.cgroup.pids();
    let is_sandbox = |pid: &&i32| command_line(**pid).starts_with("runsc-sandbox");
    Ok(Pid::from_raw(*pids.iter().find(is_sandbox).with_context(|| format!("no sandbox among {pids:?}"))?))
}

/// Returns the command line of a process, with spaces between the arguments. Empty for one that has exited.
pub fn command_line(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
}

/// Returns the files of runsc's state directory for containers, without the one that newer releases keep for all.
pub fn known_to_runsc(case: &CaseContext) -> Vec<PathBuf> {
    let kept = case.state_dir().join(NULL_NETNS);
    children(&case.state_dir().join("runsc/nomad")).into_iter().filter(|file| *file != kept).collect()
}

/// Returns the process of the keeper of a case's only task.
pub fn keeper(case: &CaseContext) -> Result<Pid> {
    let found = find_processes(&case.state_dir());
    let keeper = found.iter().find(|process| process.command.starts_with("gvisor-keeper"));
    Ok(Pid::from_raw(keeper.with_context(|| format!("no keeper among {found:?}"))?.pid))
}

/// Returns the number of a task's processes that run `sleep` with a number that begins with these digits.
pub async fn sleeping(plugin: &Plugin, task: &Task, digits: &str) -> Result<usize> {
    let count = format!("ps -o args | grep -c '^sleep {digits}'; true");
    Ok(task.exec(plugin, &count).await?.1.trim().parse()?)
}

/// Maximum time for a command that ends by itself, or at its timeout of a second, on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);
