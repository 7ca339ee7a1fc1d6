//! Notifications of the kernel that a cgroup ran out of memory, on either version. The number of kills comes from the
//! kernel's count, not from here.
//!
//! Source of the facts: Linux `Documentation/admin-guide/cgroup-v1/memory.rst` (10, OOM control), `cgroup-v2.rst`
//! (memory.events).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Cgroup, Mode, mode};
use crate::sys::async_fd::KernelFd;

/// Time after a notification in which the count is polled: v1 notifies before it kills.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// Interval of that polling. v2 notifies each time that a limit is hit, which may be often.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Watches the kernel's count of OOM kills in one cgroup.
pub(crate) struct OomWatch {
    cgroup: Cgroup,
    seen: u64,
    /// `None` if the kernel sends no notifications; the count can still be read.
    changed: Option<KernelFd>,
}

impl OomWatch {
    /// Starts a watch. `seen` is the number of kills that were reported before.
    pub(crate) fn begin(cgroup: &Cgroup, seen: u64) -> Self {
        let changed = watch_file(&cgroup.oom_file()).inspect_err(|error| {
            tracing::debug!(cgroup = %cgroup.path.display(), %error, "can't watch the cgroup for OOM kills; they are reported when the task exits");
        });
        Self { cgroup: cgroup.clone(), seen, changed: changed.ok() }
    }

    /// Waits for OOM kills, and returns their number since the last call. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> u64 {
        loop {
            let counted = async {
                loop {
                    match self.count() {
                        0 => tokio::time::sleep(POLL_INTERVAL).await,
                        new => return new,
                    }
                }
            };
            if let Ok(new) = tokio::time::timeout(KILL_GRACE, counted).await {
                return new;
            }
            self.changed().await;
        }
    }

    /// Returns the number of OOM kills since the last call.
    pub(crate) fn count(&mut self) -> u64 {
        let now = self.cgroup.oom_kills();
        // A removed cgroup counts nothing.
        let new = now.saturating_sub(self.seen);
        self.seen = self.seen.max(now);
        new
    }

    async fn changed(&self) {
        match &self.changed {
            Some(changed) => changed.take().await,
            None => std::future::pending().await,
        }
    }
}

fn watch_file(file: &Path) -> io::Result<KernelFd> {
    let subject = File::open(file)?;
    match mode() {
        Mode::V1 => {
            let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            let event = OwnedFd::from(event);
            let control = file.with_file_name("cgroup.event_control");
            std::fs::write(control, format!("{} {}", event.as_raw_fd(), subject.as_raw_fd()))?;
            KernelFd::new(event)
        }
        // Not inotify, since a user may have only a few instances.
        Mode::V2 => KernelFd::changing(subject.into()),
    }
}
