//! Signals to a task, and its stop: the stop signal, the kill timeout, then SIGKILL.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::error::{Error, Result};
use super::slot::{AtStop, Occupant};
use super::{Phase, Slot, Task, Tasks, container, signal};
use crate::shim::{self, Family};
use crate::sys::error_chain::Chained;
use crate::sys::pidfd::ProcessHandle;

/// Maximum time that a killed task may take to exit. The kernel needs no time, but a process stuck in a device does.
const AFTER_SIGKILL: Duration = Duration::from_secs(30);
/// Maximum time that the shim may take to report the exit of a task that the kernel has killed. After it the shim is
/// asked to kill the task, too: its runtime may keep the processes elsewhere.
const SHIM_TELLS: Duration = Duration::from_secs(2);
/// Maximum time that the shim may take to deliver SIGKILL.
const SHIM_KILLS: Duration = Duration::from_secs(5);
/// Maximum number of tries to send a stop signal.
const SIGNAL_ATTEMPTS: usize = 3;
/// Pause between two tries to send a stop signal.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Number of the last signal before those of real time.
const LAST_WITH_A_NAME: i32 = 31;

impl Tasks {
    /// Stops a task. A start that is under way is cancelled, and has stopped once nothing is left of it. A task that is
    /// not in the registry counts as stopped: the agent repeats a stop that fails for minutes.
    ///
    /// # Errors
    /// When not even SIGKILL ends the task.
    pub(crate) async fn stop(&self, task_id: &str, requested: &str, timeout: Duration) -> Result<()> {
        let task = loop {
            let freed = self.freed.notified();
            {
                let slots = self.lock();
                let slot = slots.get(&container::container_id(task_id));
                match (Occupant::of(slot).at_stop(), slot) {
                    (AtStop::Ask, Some(Slot::Active(task))) => break Arc::clone(task),
                    (AtStop::CancelAndWait, Some(Slot::Starting(starting))) => starting.cancelled.cancel(),
                    _ => return Ok(()),
                }
            }
            freed.await;
        };
        task.stop(requested, timeout).await
    }
}

impl Task {
    /// Asks the task to exit, by the signal `requested`, else by the image's, else by SIGTERM, and kills it at the timeout.
    /// Returns once it has exited.
    ///
    /// # Errors
    /// When not even SIGKILL ends the task.
    async fn stop(&self, requested: &str, timeout: Duration) -> Result<()> {
        let signal = stop_signal(self.id(), requested, self.driver_state.stop_signal.as_deref())
            .map(|signal| deliverable(signal, self.driver_state.family()));
        if self.has_exited() {
            return Ok(());
        }
        // A runtime delivers no signal where it can't write its log into the bundle.
        self.container.restore_off_thread().await;
        let ends = async {
            let Some(signal) = signal else { return self.wait().await };
            tokio::select! {
                ended = self.wait() => ended,
                () = self.send_stop_signal(signal) => self.wait().await,
            }
        };
        // A shim that hangs has no more time than the task.
        if tokio::time::timeout(timeout, ends).await.is_ok() {
            return Ok(());
        }
        tracing::info!(task = self.id(), ?timeout, "still running after its kill timeout; killing it");
        self.kill_all().await
    }

    /// Has the shim send the stop signal, again if its runtime fails, which may have been killed for want of memory: a task
    /// without the signal would be killed at its timeout. A shim that gives no answer may have sent it.
    async fn send_stop_signal(&self, signal: i32) {
        for _ in 0..SIGNAL_ATTEMPTS {
            let Err(error) = self.deliver(signal).await else { return };
            // Most often the task has just ended by itself.
            tracing::debug!(task = self.id(), signal, error = %error.chain(), "the stop signal was not delivered");
            if !error.is_refusal() {
                return;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Kills every process of the task, and returns once it has exited.
    ///
    /// The kernel kills first: a shim may hang, and one that kills some forty processes at once does, where it is their
    /// reaper.
    ///
    /// # Errors
    /// When not even SIGKILL ends it.
    pub(super) async fn kill_all(&self) -> Result<()> {
        let init = self.driver_state.init;
        // On a thread that no file system can keep from a kill.
        let was_running = tokio::task::spawn_blocking(move || init.is_alive()).await.unwrap_or(false);
        let is_alone = match self.container.kill_group().await {
            Ok(is_alone) => {
                self.container.was_killed.fetch_or(was_running && is_alone, Ordering::Release);
                is_alone
            }
            Err(error) => {
                tracing::warn!(task = self.id(), %error, "not all of its processes have exited yet");
                true
            }
        };
        if self.ends_within(SHIM_TELLS).await {
            return Ok(());
        }
        let by_shim = self.connection.kill(Signal::SIGKILL as i32, is_alone);
        let by_shim = tokio::time::timeout(SHIM_KILLS, by_shim).await;
        if self.ends_within(AFTER_SIGKILL).await {
            return Ok(());
        }
        // The word of it may be waiting behind what the shim does for others.
        if !tokio::task::spawn_blocking(move || init.is_alive()).await.unwrap_or(true) {
            return Ok(());
        }
        let why = match by_shim {
            Ok(Err(error)) => Error::failed(error),
            _ => Error::failed("it is still running after SIGKILL"),
        };
        Err(why.context(format_args!("stop task {}", self.id())))
    }

    /// Sends a signal to the task's process.
    ///
    /// # Errors
    /// When the signal doesn't exist, or the task has ended.
    pub(crate) async fn signal(&self, name: &str) -> Result<()> {
        let signal = signal::parse(name)?;
        if self.has_exited() {
            return Err(Error::conflict(format!("signal task {}: it has exited", self.id())));
        }
        self.container.restore_off_thread().await;
        self.deliver(signal).await.map_err(Error::failed)
    }

    /// Sends a signal to the task's first process: by its shim, or by the kernel where the shim has others' tasks, too, and
    /// may have no time for this one.
    async fn deliver(&self, signal: i32) -> std::result::Result<(), shim::Error> {
        let init = self.driver_state.init;
        if self.driver_state.shim.is_shared() {
            let send = move || ProcessHandle::open(init)?.map_or(Ok(false), |process| process.send(signal));
            if let Ok(Ok(true)) = tokio::task::spawn_blocking(send).await {
                return Ok(());
            }
        }
        self.connection.kill(signal, false).await
    }

    pub(super) fn has_exited(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Exited(_))
    }

    async fn ends_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.wait()).await.is_ok()
    }
}

/// Returns the signal that a task is asked to exit by: the requested one, else the image's, else SIGTERM. SIGTERM also
/// stands in for a signal that does not exist, so that the task can be stopped all the same. `None` for Nomad's SIGNULL.
fn stop_signal(task: &str, requested: &str, of_image: Option<&str>) -> Option<i32> {
    if signal::is_none(requested) {
        return None;
    }
    let wanted = if requested.is_empty() { of_image.unwrap_or_default() } else { requested };
    if wanted.is_empty() {
        return Some(Signal::SIGTERM as i32);
    }
    let parsed = signal::parse(wanted).unwrap_or_else(|error| {
        tracing::warn!(task, error = %error.chain(), "the task is stopped by SIGTERM instead");
        Signal::SIGTERM as i32
    });
    Some(parsed)
}

/// Returns the signal to deliver: SIGTERM in the place of a real-time signal under gVisor, whose runtime knows none.
fn deliverable(signal: i32, family: Family) -> i32 {
    if family == Family::Gvisor && signal > LAST_WITH_A_NAME { Signal::SIGTERM as i32 } else { signal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_stop_signal_counts_before_the_images() {
        for (requested, of_image, signal) in [
            ("SIGINT", Some("SIGQUIT"), Some(2)),
            ("", Some("SIGQUIT"), Some(3)),
            ("", Some(""), Some(15)),
            ("", None, Some(15)),
            ("SIGNULL", Some("SIGQUIT"), None),
            ("SIGNONE", Some("SIGQUIT"), Some(15)),
            ("", Some("SIGNONE"), Some(15)),
        ] {
            assert_eq!(stop_signal("web", requested, of_image), signal, "{requested:?} {of_image:?}");
        }
    }

    #[test]
    fn sandboxes_get_sigterm_instead_of_real_time_signals() {
        assert_eq!(deliverable(36, Family::Gvisor), 15);
        assert_eq!(deliverable(36, Family::Runc), 36);
        assert_eq!(deliverable(10, Family::Gvisor), 10);
    }
}
