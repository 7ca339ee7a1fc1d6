//! The lease of a pull: keeps what the pull makes until an image record does. What a pull that may yet succeed has got
//! stays under its lease, for the next one of the same image to go on with; so does what a pull got whose plugin died.
//! What nobody goes on with is removed in time. Each expires as well, should no plugin ever come back.
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
use super::audience::Audience;
use super::timestamp::{text, time};

/// Past this the daemon itself ends the lease of a pull whose plugin never came back.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The daemon's label for when a lease ends.
const EXPIRY_LABEL: &str = "containerd.io/gc.expire";
/// Tells the leases of pulls from others; the value is the image.
const LEASE_LABEL: &str = "containerd-driver/pull";
/// The value is the plugin's owner, by which ours are told from those of another plugin on the same daemon.
const OWNER_LABEL: &str = "containerd-driver/pull-for";

/// What pulls have left that others may go on with: leases by their image, and since when.
#[derive(Default)]
pub(super) struct Left {
    /// Those of earlier plugins have been asked for.
    looked: OnceCell<()>,
    leases: Mutex<HashMap<String, Vec<(String, Instant)>>>,
}

impl Left {
    /// No code that can panic runs under it.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<(String, Instant)>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, image: &str, lease: String) {
        self.lock().entry(image.to_owned()).or_default().push((lease, Instant::now()));
    }

    fn take(&self, image: &str) -> Vec<String> {
        self.lock().remove(image).unwrap_or_default().into_iter().map(|(lease, _)| lease).collect()
    }

    /// Takes those that nobody came back for in so long.
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

pub(super) struct PullLease {
    containerd: Containerd,
    image: String,
    id: String,
    audience: Arc<Audience>,
    /// Of earlier tries; they keep what those have got until this one has it.
    earlier: Vec<String>,
    /// Something has been written under it.
    is_of_use: Arc<AtomicBool>,
    leftovers: TaskTracker,
}

/// How a pull came out, by what is to become of what it has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An image refers to it.
    Made,
    /// Another try may go on with it.
    Keep,
    /// It is of no use.
    Useless,
}

impl Outcome {
    pub(super) fn of<T>(outcome: &Result<T, Error>) -> Self {
        match outcome {
            Ok(_) => Self::Made,
            // On a full disk what is kept would be in the way of the next try.
            Err(Error::Troubled { .. }) => Self::Useless,
            // An image whose registry has a bad layer for good would hold its good ones at each try.
            Err(error) if error.is_damaged() => Self::Useless,
            Err(error) if error.is_transient() => Self::Keep,
            Err(_) => Self::Useless,
        }
    }
}

impl PullLease {
    /// For the pull that these wait for.
    pub(super) async fn take(
        containerd: &Containerd,
        image: &str,
        audience: &Arc<Audience>,
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
            audience: Arc::clone(audience),
            is_of_use: Arc::new(AtomicBool::new(!earlier.is_empty())),
            earlier,
            leftovers: TaskTracker::new(),
        })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Those who wait for the pull that it belongs to: what it waits for itself is marked there.
    pub(super) fn audience(&self) -> &Arc<Audience> {
        &self.audience
    }

    /// What is being cleaned up, and must be before the lease ends: the garbage collector, when it meets a write that is
    /// just being closed, leaves half of it on the disk for good.
    pub(super) fn leftovers(&self) -> &TaskTracker {
        &self.leftovers
    }

    /// To be set once there is something under it that another try can go on with.
    pub(super) fn is_of_use(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_of_use)
    }

    /// Keeps something that is there already, such as another pull's snapshot. Whether it still is has to be looked at
    /// afterwards.
    pub(super) async fn keep(&self, id: &str, kind: String) -> Result<(), Error> {
        let doing = format!("keep {kind} {id}");
        let resource = Resource { id: id.to_owned(), r#type: kind };
        let message = AddResourceRequest { id: self.id.clone(), resource: Some(resource) };
        let request = self.containerd.request(message)?;
        let mut client = self.containerd.lease_client();
        self.containerd.call(&doing, QUICK, client.add_resource(request)).await
    }

    /// Where what there is is of no use, it waits until that is collected. If the daemon is gone, the lease is left.
    pub(super) async fn end(self, outcome: Outcome) {
        self.leftovers.close();
        // Each of them has deadlines of its own.
        self.leftovers.wait().await;
        let left = &self.containerd.shared.images.left;
        let is_kept = outcome == Outcome::Keep && self.is_of_use.load(Ordering::Relaxed);
        for id in self.earlier.into_iter().chain([self.id]) {
            if is_kept {
                left.add(&self.image, id);
            } else if let Err(error) = self.containerd.end_lease(&id, outcome != Outcome::Made).await {
                tracing::warn!(%error, "a pull's lease stays for a while");
                left.add(&self.image, id);
            }
        }
    }
}

impl Containerd {
    /// Ends the leases of pulls that nobody has gone on with for so long, those of earlier plugins among them.
    ///
    /// # Errors
    /// Names the lease. It is tried again.
    pub(crate) async fn end_left_pulls(&self, than: Duration) -> Result<(), Error> {
        self.look_for_left_pulls().await?;
        let left = &self.shared.images.left;
        for (image, lease) in left.take_older(than) {
            if let Err(error) = self.end_lease(&lease, true).await {
                left.add(&image, lease);
                return Err(error);
            }
            tracing::info!(image, "removed what a pull had left that nobody went on with");
        }
        Ok(())
    }

    /// Ends leases of pulls that are past their time, with what they kept, unfinished writes among it. The daemon itself
    /// looks for such only when something else is removed.
    ///
    /// # Errors
    /// Names the lease.
    pub(crate) async fn end_expired_leases(&self, now: SystemTime) -> Result<(), Error> {
        for lease in self.leases_with(LEASE_LABEL).await? {
            if lease.labels.get(EXPIRY_LABEL).and_then(|text| time(text)).is_some_and(|end| end < now) {
                tracing::info!(lease = lease.id, "removing what an unfinished pull has left");
                self.end_lease(&lease.id, true).await?;
            }
        }
        Ok(())
    }

    /// Finds what the pulls of earlier plugins have left, once, before the first of our own.
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

/// Where the plugin was configured anew, what its earlier configuration pulls goes on.
fn is_of_this_process(lease: &str) -> bool {
    lease.contains(&format!("-{:x}-", process_word()))
}

/// A random word by which this process is told from the plugins before it. Its pid is not enough: in a pid namespace of its
/// own the next plugin often has the same one.
fn process_word() -> u64 {
    static WORD: OnceLock<u64> = OnceLock::new();
    *WORD.get_or_init(|| RandomState::new().hash_one(std::process::id()))
}

/// Different in each call, in each process and after each restart.
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
    fn what_is_left_goes_to_whoever_comes_for_it_or_away() {
        let left = Left::default();
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
        // The plugin before it may have had the same pid.
        assert!(!is_of_this_process(&format!("containerd-driver-pull-17f-{:x}-1", std::process::id())));
    }
}
