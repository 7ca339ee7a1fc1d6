//! A task that ends when it is told to, for cases that need it to outlive something.

use anyhow::Result;
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use serde_json::Value;

use crate::cases::support::ensure_eq;

/// Starts a task that ends with code 11 when the file `/local/end` appears.
pub async fn start_stoppable(case: &CaseContext, plugin: &Plugin) -> Result<Task> {
    start_stoppable_with(case, plugin, |_| {}).await
}

/// Starts a task like [`start_stoppable`], with its job changed by `job`.
pub async fn start_stoppable_with(
    case: &CaseContext,
    plugin: &Plugin,
    job: impl FnOnce(&mut Value),
) -> Result<Task> {
    let script = "echo up; while [ ! -e /local/end ]; do sleep 0.05; done; echo down; exit 11";
    let mut config = case.shell(script);
    job(&mut config);
    let task = case.run(plugin, &config).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    Ok(task)
}

/// Tells a task of [`start_stoppable`] to end, by the file that it waits for.
pub fn tell_to_end(task: &Task) -> Result<()> {
    Ok(std::fs::write(task.alloc.task_path("local/end"), "")?)
}

/// Tells a task of [`start_stoppable`] to end, asserts that it does with code 11, and destroys it.
pub async fn end_and_destroy(task: &Task, plugin: &Plugin) -> Result<()> {
    tell_to_end(task)?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal), (11, 0));
    task.destroy(plugin).await
}
