//! The spare shims of a plugin, as a census finds them.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use harness::context::CaseContext;
use harness::leaks::inspect::{children, find_processes};
use harness::task::LIMIT;

use crate::cases::support::until;

/// Number that a driver keeps by default.
pub const KEPT: usize = 2;

/// Returns the pids of the spare shims, sorted; not those of programs that launch one.
pub fn all(case: &CaseContext) -> Vec<i32> {
    let found = find_processes(&case.state_dir()).into_iter();
    let mut spares: Vec<_> = found
        .filter(|process| process.is_spare && !process.command.ends_with(" start"))
        .map(|process| process.pid)
        .collect();
    spares.sort_unstable();
    spares
}

/// Waits until there are as many as a driver keeps by default, whose launches are over, and returns them.
///
/// # Errors
/// Fails if they aren't there in time.
pub async fn all_there(case: &CaseContext) -> Result<Vec<i32>> {
    all_of(case, KEPT).await
}

/// Waits until there are as many as this, as [`all_there`] does.
///
/// # Errors
/// Fails if they aren't there in time.
pub async fn all_of(case: &CaseContext, count: usize) -> Result<Vec<i32>> {
    let are_there = || {
        let launched =
            children(&directory(case)).into_iter().filter(|place| place.join("shim.json").exists());
        all(case).len() == count && launched.count() == count
    };
    until(LIMIT, "all spare shims", are_there).await?;
    Ok(all(case))
}

/// Takes the spare shims away to where no driver looks for them.
///
/// # Errors
/// Carries the system's.
pub fn take_away(case: &CaseContext) -> Result<()> {
    Ok(fs::rename(directory(case), away(case))?)
}

/// Puts those that were taken away beside those that are there.
///
/// # Errors
/// Carries the system's.
pub fn bring_back(case: &CaseContext) -> Result<()> {
    for spare in children(&away(case)) {
        fs::rename(&spare, directory(case).join(spare.file_name().unwrap_or_default()))?;
    }
    Ok(fs::remove_dir(away(case))?)
}

/// Returns the directory of the spare shims.
pub fn directory(case: &CaseContext) -> PathBuf {
    case.state_dir().join(".spares")
}

fn away(case: &CaseContext) -> PathBuf {
    case.state_dir().join(".spares-away")
}
