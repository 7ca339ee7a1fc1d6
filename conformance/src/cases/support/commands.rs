//! Commands in a running task.

use anyhow::Result;
use harness::context::CaseContext;
use harness::host::{Exec, Plugin};
use harness::task::Task;

/// Starts a task that sleeps for ten minutes.
pub async fn sleeper(case: &CaseContext, plugin: &Plugin) -> Result<Task> {
    case.run(plugin, &case.shell("sleep 600")).await
}

/// Opens an exec of a shell script in a running task, with or without a terminal.
pub async fn shell(plugin: &Plugin, task: &Task, script: &str, tty: bool) -> Result<Exec> {
    Exec::open(plugin, task.id(), &["/bin/sh", "-c", script], tty).await
}

/// Scripts that don't end by themselves, and run `sleep 77[0-9]` by themselves and in processes of every kind.
pub const SCRIPTS_WITH_CHILDREN: [&str; 7] = [
    "trap '' TERM HUP INT; sleep 777; sleep 778",
    "sleep 777 & sleep 778 & sleep 779",
    // Children in process groups of their own.
    "set -m; sleep 777 & sleep 778 & wait",
    // Children without a parent.
    "(sleep 777 & sleep 778 &); sleep 779",
    // Children in a session of their own.
    "setsid sleep 777 & wait",
    "setsid sh -c 'setsid sleep 777 & sleep 778' & sleep 779",
    // A script that keeps on starting others.
    "while :; do (sleep 0.02; sleep 777) & sleep 0.01; done",
];
