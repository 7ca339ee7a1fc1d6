//! The places in which a password must not be.

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::Task;

/// Asserts that the secrets with which a running task's image was pulled are in nothing that is kept or shown: handle,
/// log, containerd's records, command lines, bundle.
pub fn assert_not_exposed(case: &CaseContext, plugin: &Plugin, task: &Task, secrets: &[&str]) -> Result<()> {
    let handle = task.handle.clone().context("no handle")?;
    let containerd = case.environment().containerd();
    let id = containerd.ctr(&["containers", "list", "--quiet"])?;
    let mut texts = vec![
        ("the handle's state", String::from_utf8_lossy(&handle.driver_state).into_owned()),
        ("the log", plugin.log().all().join("\n")),
        ("the record", containerd.ctr(&["containers", "info", id.trim()])?),
        ("the leases", containerd.ctr(&["leases", "list"])?),
        ("the images", containerd.ctr(&["images", "list"])?),
    ];
    for process in harness::leaks::inspect::find_processes(&case.directory()) {
        texts.push(("a command line", process.command));
    }
    for entry in std::fs::read_dir(case.state_dir().join("nomad").join(id.trim()))? {
        let path = entry?.path();
        if path.is_file() {
            texts.push(("the bundle", String::from_utf8_lossy(&std::fs::read(path)?).into_owned()));
        }
    }
    for (place, text) in texts {
        let found = secrets.iter().find(|secret| text.contains(**secret));
        ensure!(found.is_none(), "{place} has {found:?}: {text}");
    }
    Ok(())
}
