//! The timelines in a plugin's log.

use anyhow::Result;
use harness::host::Plugin;
use harness::timeline::{self, LoggedTimeline};

/// Returns the timelines of all calls of this kind so far, in the order in which they ended.
pub fn logged_timelines(plugin: &Plugin, call: &str) -> Result<Vec<LoggedTimeline>> {
    let mut timelines: Vec<LoggedTimeline> = timeline::logged(&plugin.log()).collect::<Result<_>>()?;
    timelines.retain(|timeline| timeline.call == call);
    Ok(timelines)
}
