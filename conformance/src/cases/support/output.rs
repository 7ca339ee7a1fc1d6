//! A task's output: much of it, and none.

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::Task;

/// Bytes of one megabyte: the size of [`numbered`].
pub const MEGABYTE: usize = 1024 * 1024;

/// Returns one megabyte of numbered lines, 16 bytes each.
pub fn numbered() -> Vec<u8> {
    (0..MEGABYTE / 16).flat_map(|number| format!("{number:015}\n").into_bytes()).collect()
}

/// Asserts that output has arrived whole and unchanged, and says where it differs.
pub fn is_whole(name: &str, got: &[u8], wanted: &[u8]) -> Result<()> {
    let differs = got.iter().zip(wanted).position(|(a, b)| a != b);
    ensure!(got == wanted, "{name}: {} of {} bytes came, alike up to {differs:?}", got.len(), wanted.len());
    Ok(())
}

/// Prepares a task whose job has its logs disabled.
pub async fn prepare_unlogged(case: &CaseContext, plugin: &Plugin, script: &str) -> Result<Task> {
    let mut task = case.prepare_unread(plugin, &case.shell(script)).await?;
    task.config.stdout_path = "/dev/null".to_owned();
    task.config.stderr_path = "/dev/null".to_owned();
    Ok(task)
}
