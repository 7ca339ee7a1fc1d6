//! The timelines in a plugin's log.

use anyhow::Result;
use harness::host::Plugin;
use harness::timeline::{self, Told};

/// Returns the timelines of all calls of this kind so far, in the order in which they ended.
pub fn told(plugin: &Plugin, call: &str) -> Result<Vec<Told>> {
    let mut told: Vec<Told> = timeline::told(&plugin.log()).collect::<Result<_>>()?;
    told.retain(|told| told.call == call);
    Ok(told)
}
