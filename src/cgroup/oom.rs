//! The kernel's news that a cgroup has run out of memory, on either version. News only: what was killed is in the count.
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
use crate::readable::Readable;

/// v1 tells that the memory is short before it kills: the count follows within this.
const KILL_FOLLOWS: Duration = Duration::from_secs(1);
/// v2 tells of each time that a limit was met, which may be often.
const IS_IT_COUNTED: Duration = Duration::from_millis(50);

/// Follows the kernel's count of OOM kills in one cgroup.
pub(crate) struct OomWatch {
    cgroup: Cgroup,
    seen: u64,
    /// None where the kernel does not tell; the count can still be read.
    news: Option<Readable>,
}

impl OomWatch {
    /// Begins with what was told before by `seen`.
    pub(crate) fn begin(cgroup: &Cgroup, seen: u64) -> Self {
        let news = ask_for_news(&cgroup.oom_file()).inspect_err(|error| {
            tracing::debug!(cgroup = %cgroup.path.display(), %error, "the kernel tells no OOM kills as they happen");
        });
        Self { cgroup: cgroup.clone(), seen, news: news.ok() }
    }

    /// Returns how many processes were killed since it was last asked, once there are any. Dropped, it misses none.
    pub(crate) async fn next(&mut self) -> u64 {
        loop {
            let counted = async {
                loop {
                    match self.count() {
                        0 => tokio::time::sleep(IS_IT_COUNTED).await,
                        new => return new,
                    }
                }
            };
            if let Ok(new) = tokio::time::timeout(KILL_FOLLOWS, counted).await {
                return new;
            }
            self.news().await;
        }
    }

    /// How many processes were killed since it was last asked.
    pub(crate) fn count(&mut self) -> u64 {
        let now = self.cgroup.oom_kills();
        // A cgroup that is gone counts nothing.
        let new = now.saturating_sub(self.seen);
        self.seen = self.seen.max(now);
        new
    }

    async fn news(&self) {
        match &self.news {
            Some(news) => news.take().await,
            None => std::future::pending().await,
        }
    }
}

fn ask_for_news(file: &Path) -> io::Result<Readable> {
    let subject = File::open(file)?;
    match mode() {
        Mode::V1 => {
            let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            let event = OwnedFd::from(event);
            let control = file.with_file_name("cgroup.event_control");
            std::fs::write(control, format!("{} {}", event.as_raw_fd(), subject.as_raw_fd()))?;
            Readable::new(event)
        }
        // Not by inotify, of which a user has few.
        Mode::V2 => Readable::changing(subject.into()),
    }
}
