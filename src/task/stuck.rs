//! Ends tasks that have exited and can't be over: the first process of a pid namespace does not finish its exit for as
//! long as another process in there can't die. On cgroup v1 a frozen process can't, and a task may have frozen cgroups
//! of its own.
//!
//! Neither the shim nor a pidfd reports such an exit, so all tasks are looked at periodically.

use std::sync::Arc;
use std::time::Duration;

use super::Tasks;
use crate::sys::procfs::is_exiting;

/// Interval between looks at all tasks.
const PERIOD: Duration = Duration::from_secs(5);

impl Tasks {
    /// Kills the processes that keep a task from being over, for as long as the plugin lives.
    pub(super) async fn end_stuck(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let mut running = self.active();
            running.retain(|task| !task.has_exited());
            let look = move || {
                running.retain(|task| is_exiting(task.driver_state.init));
                running
            };
            for task in tokio::task::spawn_blocking(look).await.unwrap_or_default() {
                tracing::warn!(
                    task = task.id(),
                    "its first process has exited, and the others are still running; killing them"
                );
                tokio::spawn(async move {
                    if let Err(error) = task.container.kill_group().await {
                        tracing::warn!(task = task.id(), %error, "can't kill the task's remaining processes");
                    }
                });
            }
        }
    }
}
