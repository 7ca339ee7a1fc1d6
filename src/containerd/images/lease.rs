//! The lease of a pull, which keeps content and snapshots until an image record does. A failed pull that may yet
//! succeed leaves what it fetched under its lease, for the next pull of the same image to resume; so does a pull whose
//! plugin died. Leases that nobody resumes are removed in time. Each also expires, should no plugin ever come back.
//!
//! Source of the facts: containerd `docs/garbage-collection.md`, `content/local/{store,writer}.go` @ v1.6.20.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use containerd_client::services::v1::{AddResourceRequest, Resource};
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use super::super::{Containerd, Error, Labels, QUICK};
use super::observers::Observers;
use super::timestamp::{text, time};
use crate::sys::error_chain::Chained;

/// Lifetime of a lease; the daemon itself ends the lease of a pull whose plugin never came back.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The daemon's label for the time at which a lease ends.
const EXPIRY_LABEL: &str = "containerd.io/gc.expire";
/// Label that tells the leases of pulls from others; its value is the image.
const LEASE_LABEL: &str = "containerd-driver/pull";
/// Label with the plugin's owner as its value, which tells our leases from those of another plugin on the same daemon.
const OWNER_LABEL: &str = "containerd-driver/pull-for";

/// Leases of ended pulls that others may resume, by image, each with the time since when.
#[derive(Default)]
pub(super) struct AbandonedLeases {
    /// Set once the leases of earlier plugins have been listed.
    looked: OnceCell<()>,
    leases: Mutex<HashMap<String, Vec<(String, Instant)>>>,
}

impl AbandonedLeases {
    /// Locks the leases. No code that can panic runs under the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<(String, Instant)>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, image: &str, lease: String) {
        self.lock().entry(image.to_owned()).or_default().push((lease, Instant::now()));
    }

    fn take(&self, image: &str) -> Vec<String> {
        self.lock().remove(image).unwrap_or_default().into_iter().map(|(lease, _)| lease).collect()
    }

    /// Takes the leases that nobody has resumed for `than`.
    fn take_older(&self, than: Duration) -> Vec<(String, String)> {
        let mut old = Vec::new();
        self.lock().retain(|image, leases| {
            leases.retain(|(lease, since)| {
                let is_old = since.elapsed() >= than;
                if is_old {
                    old.push((image.clone(), lease.clone()));
                }
                !is_old
            });
            !leases.is_empty()
        });
        old
    }
}

/// The lease of one pull, and what is to be cleaned up before it ends.
pub(super) struct PullLease {
    containerd: Containerd,
    image: String,
    id: String,
    observers: Arc<Observers>,
    /// Leases of earlier tries; they keep what those fetched until this one has it.
    earlier: Vec<String>,
    /// Set once the lease keeps something that another try can resume.
    is_resumable: Arc<AtomicBool>,
    leftovers: TaskTracker,
}

/// The outcome of a pull, by what becomes of the content that it fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Success: an image record refers to the content.
    Made,
    /// Another try may resume it.
    Keep,
    /// The content is of no use.
    Useless,
}

impl Outcome {
    pub(super) fn of<T>(outcome: &Result<T, Error>) -> Self {
        match outcome {
            Ok(_) => Self::Made,
            // On a full disk, kept content would be in the way of the next try.
            Err(Error::Troubled { .. }) => Self::Useless,
            // An image whose registry has a permanently bad layer would keep its good ones at each try.
            Err(error) if error.is_damaged() => Self::Useless,
            Err(error) if error.is_transient() => Self::Keep,
            Err(_) => Self::Useless,
        }
    }
}

impl PullLease {
    /// Creates the lease of a pull, and takes over the leases that earlier tries left. `observers` are the pull's
    /// observers.
    pub(super) async fn take(
        containerd: &Containerd,
        image: &str,
        observers: &Arc<Observers>,
    ) -> Result<Self, Error> {
        containerd.look_for_left_pulls().await?;
        let labels = Labels::from([
            (EXPIRY_LABEL.to_owned(), text(SystemTime::now() + LEASE_LIFE)),
            (LEASE_LABEL.to_owned(), image.to_owned()),
            (OWNER_LABEL.to_owned(), containerd.shared.images.owner.clone()),
        ]);
        let id = format!("containerd-driver-pull-{}", unique());
        containerd.create_lease(&id, labels).await?;
        let earlier = containerd.shared.images.left.take(image);
        Ok(Self {
            containerd: containerd.clone(),
            image: image.to_owned(),
            id,
            observers: Arc::clone(observers),
            is_resumable: Arc::new(AtomicBool::new(!earlier.is_empty())),
            earlier,
            leftovers: TaskTracker::new(),
        })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Returns the observers of the pull; what the pull itself waits for is noted there.
    pub(super) fn observers(&self) -> &Arc<Observers> {
        &self.observers
    }

    /// Returns the cleanups under way, which have to end before the lease does: the garbage collector, when it meets a
    /// write that is just being closed, leaves half of it on the disk for good.
    pub(super) fn leftovers(&self) -> &TaskTracker {
        &self.leftovers
    }

    /// Returns the flag to set once the lease keeps something that another try can resume.
    pub(super) fn is_resumable(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_resumable)
    }

    /// Adds an existing object to the lease, such as another pull's snapshot. The caller has to check afterwards that
    /// it still exists.
    pub(super) async fn keep(&self, id: &str, kind: String) -> Result<(), Error> {
        let doing = format!("keep {kind} {id}");
        let resource = Resource { id: id.to_owned(), r#type: kind };
        let message = AddResourceRequest { id: self.id.clone(), resource: Some(resource) };
        let request = self.containerd.request(message)?;
        let mut client = self.containerd.lease_client();
        self.containerd.call(&doing, QUICK, client.add_resource(request)).await
    }

    /// Ends the lease, or leaves it for the next try to resume. Unless an image record keeps the content, waits until
    /// it is collected. If the daemon is gone, the lease is left.
    pub(super) async fn end(self, outcome: Outcome) {
        self.leftovers.close();
        // Each cleanup has deadlines of its own.
        self.leftovers.wait().await;
        let left = &self.containerd.shared.images.left;
        let is_left = outcome == Outcome::Keep && self.is_resumable.load(Ordering::Relaxed);
        for id in self.earlier.into_iter().chain([self.id]) {
            if is_left {
                left.add(&self.image, id);
            } else if let Err(error) = self.containerd.end_lease(&id, outcome != Outcome::Made).await {
                tracing::warn!(error = %error.chain(), "can't remove the lease of a pull yet");
                left.add(&self.image, id);
            }
        }
    }
}

impl Containerd {
    /// Ends the leases of pulls, also of earlier plugins, that nobody has resumed for `than`.
    ///
    /// # Errors
    /// The first lease that can't be ended; a later call tries it again.
    pub(crate) async fn end_left_pulls(&self, than: Duration) -> Result<(), Error> {
        self.look_for_left_pulls().await?;
        let left = &self.shared.images.left;
        for (image, lease) in left.take_older(than) {
            if let Err(error) = self.end_lease(&lease, true).await {
                left.add(&image, lease);
                return Err(error);
            }
            tracing::info!(image, "removed the lease of an abandoned pull");
        }
        Ok(())
    }

    /// Ends the expired leases of pulls, with what they kept, unfinished writes included. The daemon itself looks for
    /// expired leases only when something else is removed.
    ///
    /// # Errors
    /// The first lease that can't be ended.
    pub(crate) async fn end_expired_leases(&self, now: SystemTime) -> Result<(), Error> {
        for lease in self.leases_with(LEASE_LABEL).await? {
            if lease.labels.get(EXPIRY_LABEL).and_then(|text| time(text)).is_some_and(|end| end < now) {
                tracing::info!(lease = lease.id, "removing the lease of an unfinished pull");
                self.end_lease(&lease.id, true).await?;
            }
        }
        Ok(())
    }

    /// Lists the leases that pulls of earlier plugins left, once, before the first pull of our own.
    async fn look_for_left_pulls(&self) -> Result<(), Error> {
        let left = &self.shared.images.left;
        let look = async || {
            for lease in self.leases(OWNER_LABEL, &self.shared.images.owner).await? {
                if let Some(image) = lease.labels.get(LEASE_LABEL).filter(|_| !is_of_this_process(&lease.id))
                {
                    left.add(image, lease.id.clone());
                }
            }
            Ok(())
        };
        left.looked.get_or_try_init(look).await.map(drop)
    }
}

/// Returns whether this process made the lease. Its pull may still run: one that an earlier configuration of the plugin
/// began goes on.
fn is_of_this_process(lease: &str) -> bool {
    lease.contains(&format!("-{:x}-", process_word()))
}

/// Returns a random word that tells this process from the plugins before it. The pid is not enough: in a pid namespace
/// of its own the next plugin often has the same one.
fn process_word() -> u64 {
    static WORD: OnceLock<u64> = OnceLock::new();
    *WORD.get_or_init(|| RandomState::new().hash_one(std::process::id()))
}

/// Returns a text that differs in each call, in each process and after each restart.
pub(super) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{:x}-{count:x}", since_epoch.as_nanos(), process_word())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_content_is_adopted_or_removed() {
        let left = AbandonedLeases::default();
        for lease in ["1", "2"] {
            left.add("a", lease.to_owned());
        }
        left.add("b", "3".to_owned());
        assert_eq!(left.take("a"), ["1", "2"]);
        assert!(left.take("a").is_empty() && left.take_older(Duration::from_secs(600)).is_empty());
        assert_eq!(left.take_older(Duration::ZERO), [("b".to_owned(), "3".to_owned())]);
        assert!(left.lock().is_empty());
    }

    #[test]
    fn a_lease_of_this_process_is_known() {
        assert!(is_of_this_process(&format!("containerd-driver-pull-{}", unique())));
        // The plugin before may have had the same pid.
        assert!(!is_of_this_process(&format!("containerd-driver-pull-17f-{:x}-1", std::process::id())));
    }
}
