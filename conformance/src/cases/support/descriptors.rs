//! A plugin without free file descriptors.

use anyhow::{Context, Result, ensure};
use harness::host::Plugin;
use harness::task::Task;

/// Sets a process' soft limit of open files; files that are open stay open.
pub fn limit_files(pid: u32, count: usize) -> Result<()> {
    let arguments = [format!("--pid={pid}"), format!("--nofile={count}:")];
    let status = std::process::Command::new("prlimit").args(arguments).status()?;
    ensure!(status.success(), "prlimit ended with {status}");
    Ok(())
}

/// Has a plugin that has no free file descriptor recover a task.
pub async fn recover_without_descriptors(task: &Task, plugin: &Plugin) -> Result<()> {
    let hard = std::fs::read_to_string(format!("/proc/{}/limits", plugin.pid()))?;
    let hard = hard.lines().find(|line| line.starts_with("Max open files")).context("no limit")?;
    let hard: usize = hard.split_whitespace().nth(4).context("no hard limit")?.parse()?;
    limit_files(plugin.pid(), 3)?;
    let recovered = task.recover(plugin).await;
    limit_files(plugin.pid(), hard)?;
    recovered.context("the plugin's own trouble was taken for the task's end")
}
