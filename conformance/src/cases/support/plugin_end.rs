//! The ends of a plugin, and starts that one of them cuts off.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::context::CaseContext;
use harness::task::LIMIT;

use crate::cases::support::orphans;

/// The end of a plugin.
#[derive(Clone, Copy, Debug)]
pub enum PluginEnd {
    Killed,
    ShutDown,
}

/// Ends a plugin at each of these times after the request to start a task, and has the next plugin clean up: starts
/// that were cut off, and starts that had just succeeded, of which nobody but the driver can know.
pub async fn starts_cut_off(case: &CaseContext, how: PluginEnd, delays_ms: &[u64]) -> Result<()> {
    for &delay_ms in delays_ms {
        let mut plugin = case.plugin().await?;
        let mut task = case.prepare(&plugin, &case.shell("sleep 600")).await?;
        let cut = tokio::time::timeout(Duration::from_millis(delay_ms), task.start(&plugin)).await;
        match how {
            PluginEnd::Killed => plugin.kill().await?,
            PluginEnd::ShutDown => plugin.shut_down().await?,
        }
        let options = orphans::options(case, &serde_json::json!({"creation_grace": "5s"}));
        let mut next = case.plugin_as(&case.launch(), &options).await?;
        match cut {
            Ok(started) => {
                started?;
                task.recover(&next).await?;
                task.end(&next).await?;
                case.nothing_left()?;
            }
            Err(_) => {
                let cleared = case.nothing_left_within(LIMIT);
                cleared.with_context(|| format!("{how:?} {delay_ms} ms after StartTask"))?;
            }
        }
        next.shut_down().await?;
    }
    Ok(())
}
