//! Statistics in fast samples, by both sources of a plugin's figures.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::cgroup::is_v2;
use harness::host::stats::Sample;
use harness::task::Task;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::case::skip;

/// Interval of samples that is fast enough for a case.
pub const FAST: Duration = Duration::from_millis(200);

/// The source of a task's figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The files of the task's cgroup, which a shim of runc's family is known to report, too.
    Files,
    /// The shim, whose name is one that the driver doesn't know.
    Shim,
}

/// Starts a plugin that samples ten times a second, and has its figures from `source`.
pub async fn fast_plugin(case: &CaseContext, source: Source) -> Result<Plugin> {
    let (launch, mut options) = (case.launch(), case.options());
    options["stats_interval"] = serde_json::json!("100ms");
    if source == Source::Shim {
        shim_counts(case)?;
        if case.programs().oci_runtime().is_some() {
            return skip(
                "a shim of which the driver knows no more than its name is told of no runtime but its own",
            );
        }
        let shim = case.directory().join("containerd-shim-other-v1");
        symlink(case.programs().shim(), &shim).context("give the shim another name")?;
        options["containerd_runtime"] = serde_json::json!(shim);
        // One of an unknown family is not shared.
        options["shim_sharing"] = serde_json::json!("task");
    }
    case.plugin_as(&launch, &options).await
}

/// Skips a case about the shim's own figures if it has none.
pub fn shim_counts(case: &CaseContext) -> Result<()> {
    if case.programs().is_rust_shim() && !is_v2() {
        return skip("the shim in Rust counts neither CPU time nor all of the memory on cgroup v1");
    }
    Ok(())
}

/// Returns the CPU time in seconds between two consecutive samples, by the second one.
pub fn core_seconds(pair: &[Sample]) -> f64 {
    pair[1].cpu.percent / 100.0 * pair[1].at.saturating_sub(pair[0].at).as_secs_f64()
}

/// Starts a task whose script waits for a line from the pipe `/local/cue`, which the returned file writes.
pub async fn on_cue(case: &CaseContext, plugin: &Plugin, script: &str) -> Result<(Task, File)> {
    let mut task = case.prepare(plugin, &case.shell(script)).await?;
    let path = task.alloc.task_path("local/cue");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).context("make the pipe for the cue")?;
    // Opened with both ends, so that the open doesn't block.
    let cue = File::options().read(true).write(true).open(&path).context("open the pipe for the cue")?;
    task.start(plugin).await?;
    Ok((task, cue))
}
