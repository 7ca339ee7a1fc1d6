//! The lease of a pull: keeps what the pull makes until an image record does. It is labelled as ours, and expires, so that
//! a plugin that dies in a pull leaks nothing for long.
//!
//! Source of the facts: containerd `docs/garbage-collection.md`, `content/local/{store,writer}.go` @ v1.6.20.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio_util::task::TaskTracker;

use super::super::{Containerd, Error, Labels};

/// Past this the daemon itself ends the lease of a pull whose plugin died.
const LEASE_LIFE: Duration = Duration::from_secs(3600);
/// The daemon's label for when a lease ends.
pub(super) const EXPIRY_LABEL: &str = "containerd.io/gc.expire";
/// Tells the leases of pulls from others; the value is the image.
pub(super) const LEASE_LABEL: &str = "containerd-driver/pull";

pub(super) struct PullLease {
    containerd: Containerd,
    id: String,
    leftovers: TaskTracker,
}

impl PullLease {
    pub(super) async fn take(containerd: &Containerd, image: &str) -> Result<Self, Error> {
        let expires: chrono::DateTime<chrono::Utc> = (SystemTime::now() + LEASE_LIFE).into();
        let expires = expires.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let labels =
            Labels::from([(EXPIRY_LABEL.to_owned(), expires), (LEASE_LABEL.to_owned(), image.to_owned())]);
        let id = format!("containerd-driver-pull-{}", unique());
        containerd.create_lease(&id, labels).await?;
        Ok(Self { containerd: containerd.clone(), id, leftovers: TaskTracker::new() })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// What is being cleaned up, and must be before the lease ends: the garbage collector, when it meets a write that is
    /// just being closed, leaves half of it on the disk for good.
    pub(super) fn leftovers(&self) -> &TaskTracker {
        &self.leftovers
    }

    /// After a failure it waits until what is left is collected. If the daemon is gone, the lease expires.
    pub(super) async fn end(self, succeeded: bool) {
        self.leftovers.close();
        // Each of them has deadlines of its own.
        self.leftovers.wait().await;
        if let Err(error) = self.containerd.end_lease(&self.id, !succeeded).await {
            tracing::warn!(%error, "a pull's lease stays until it expires");
        }
    }
}

/// Different in each call, in each process and after each restart.
pub(super) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{:x}-{count:x}", since_epoch.as_nanos(), std::process::id())
}
