//! Garbage collection of images: removes those that no container is made from any more, once nothing has been made from
//! them for a while, or when the disk is full. containerd is asked each time which images are in use, so a plugin that
//! comes back knows as much as one that stayed. A label on each image says since when it is unused.
//!
//! A start that has found its image, and whose record is not there yet, holds the image by name. A held image is not
//! removed. A start that wants to hold an image that is being removed waits for the end of the removal, and finds the
//! image gone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};

use crate::config::ImageGc;
use crate::containerd::{self, LOADED, StoredImage};
use crate::sys::error_chain::Chained;
use crate::task::{Settings, Tasks};

/// Shortest and longest interval between collections; between these, it is a quarter of the delay.
const PERIODS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

#[derive(Default)]
pub(in crate::task) struct ImageUses {
    state: Mutex<Uses>,
    /// Notified when a removal is over.
    freed: Notify,
}

#[derive(Default)]
struct Uses {
    held: HashMap<String, usize>,
    /// Keys of images that are being removed.
    in_removal: HashSet<String>,
    /// Time when each image was last held; forgotten once containerd doesn't have the image any more.
    last: HashMap<String, SystemTime>,
}

/// The reference by which a start keeps its image from garbage collection, until a record keeps the image.
pub(in crate::task) struct Hold {
    uses: Arc<ImageUses>,
    key: String,
}

struct RemovalMark<'a> {
    uses: &'a ImageUses,
    key: String,
}

/// Returns the key by which an image is held. All images from archives have one key, since the name of an archive's
/// image is not known before the archive has been read.
fn key(name: &str) -> &str {
    if name.starts_with(LOADED) { LOADED } else { name }
}

impl ImageUses {
    /// Holds an image, after a removal of it that is under way.
    pub(in crate::task) async fn hold(self: &Arc<Self>, name: &str) -> Hold {
        let key = key(name).to_owned();
        loop {
            let freed = self.freed.notified();
            if self.try_hold(&key) {
                return Hold { uses: Arc::clone(self), key };
            }
            freed.await;
        }
    }

    fn try_hold(&self, key: &str) -> bool {
        let mut uses = self.lock();
        if uses.in_removal.contains(key) {
            return false;
        }
        *uses.held.entry(key.to_owned()).or_default() += 1;
        true
    }

    /// Marks an image as being removed. Returns `None` while a start holds it, or another removal is under way.
    fn mark_for_removal(&self, name: &str) -> Option<RemovalMark<'_>> {
        let key = key(name).to_owned();
        let mut uses = self.lock();
        if uses.held.contains_key(&key) || !uses.in_removal.insert(key.clone()) {
            return None;
        }
        Some(RemovalMark { uses: self, key })
    }

    fn last(&self, name: &str) -> Option<SystemTime> {
        self.lock().last.get(key(name)).copied()
    }

    fn is_held(&self, name: &str) -> bool {
        self.lock().held.contains_key(key(name))
    }

    /// Forgets the last uses of images that containerd doesn't have any more.
    fn forget_all_but(&self, names: &HashSet<&str>) {
        self.lock().last.retain(|name, _| names.contains(name.as_str()));
    }

    fn lock(&self) -> MutexGuard<'_, Uses> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut uses = self.uses.lock();
        if let Some(count) = uses.held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                uses.held.remove(&self.key);
            }
        }
        uses.last.insert(self.key.clone(), SystemTime::now());
    }
}

impl Drop for RemovalMark<'_> {
    fn drop(&mut self) {
        self.uses.lock().in_removal.remove(&self.key);
        self.uses.freed.notify_waiters();
    }
}

impl Tasks {
    /// Collects unused images periodically, from the agent's first fingerprint on.
    pub(in crate::task) async fn collect_images(
        self: Arc<Self>,
        mut settings: watch::Receiver<Option<Arc<Settings>>>,
    ) {
        while let Some(current) = self.own_settings(&mut settings).await {
            let policy = &current.config.gc.images;
            let period = policy.delay.map_or(PERIODS.1, |delay| (delay / 4).clamp(PERIODS.0, PERIODS.1));
            if let Err(error) = self.collect(&current.containerd, policy).await {
                // Unused images stay unused. A containerd that is away or busy is reported elsewhere.
                if error.is_transient() {
                    tracing::debug!(error = %error.chain(), "can't look for unused images now");
                } else {
                    tracing::warn!(error = %error.chain(), "no unused image is removed");
                }
            }
            if let Ok(Err(_)) = tokio::time::timeout(period, settings.changed()).await {
                return;
            }
        }
    }

    async fn collect(
        &self,
        containerd: &containerd::Containerd,
        policy: &ImageGc,
    ) -> Result<(), containerd::Error> {
        containerd.end_expired_leases(SystemTime::now()).await?;
        if policy.delay.is_none() && policy.disk_high_water.is_none() {
            return Ok(());
        }
        let mut unused = self.unused(containerd, policy).await?;
        unused.sort_unstable_by_key(|(since, _)| *since);
        let now = SystemTime::now();
        let is_due = |since: &SystemTime| {
            let age = now.duration_since(*since).unwrap_or_default();
            policy.delay.is_some_and(|delay| age >= delay)
        };
        let (due, young): (Vec<_>, Vec<_>) = unused.into_iter().partition(|(since, _)| is_due(since));
        for (_, name) in due {
            self.remove(containerd, &name, "it has not been used for image_delay").await?;
        }
        let Some(mark) = policy.disk_high_water else { return Ok(()) };
        for (_, name) in young {
            match containerd.disk_use().await {
                Ok(used) if used >= mark => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "gc.disk_high_water has no effect");
                    break;
                }
            }
            self.remove(containerd, &name, "the disk is fuller than disk_high_water").await?;
        }
        Ok(())
    }

    /// Returns the images that may be removed, with the time since when each is unused. Updates that time on the image
    /// if it has changed.
    async fn unused(
        &self,
        containerd: &containerd::Containerd,
        policy: &ImageGc,
    ) -> Result<Vec<(SystemTime, String)>, containerd::Error> {
        let stored = containerd.stored_images().await?;
        let in_use = containerd.images_in_use().await?;
        self.image_uses.forget_all_but(&stored.iter().map(|image| key(&image.name)).collect());
        let mut unused = Vec::new();
        for image in stored.into_iter().filter(|image| is_removable(image, policy)) {
            let uses = &self.image_uses;
            let is_used = in_use.contains(&image.name) || uses.is_held(&image.name);
            let since = unused_since(is_used, image.unused_since, uses.last(&image.name), SystemTime::now());
            if since != image.unused_since {
                containerd.note_unused(&image.name, since).await?;
            }
            unused.extend(since.map(|since| (since, image.name)));
        }
        Ok(unused)
    }

    /// Removes an image, unless it is in use: containerd is asked once more when no start can begin to use it.
    async fn remove(
        &self,
        containerd: &containerd::Containerd,
        name: &str,
        why: &str,
    ) -> Result<(), containerd::Error> {
        let Some(_condemned) = self.image_uses.mark_for_removal(name) else { return Ok(()) };
        if containerd.images_in_use().await?.contains(name) {
            return Ok(());
        }
        containerd.remove_image(name).await?;
        tracing::info!(image = name, "removed: {why}");
        Ok(())
    }
}

fn is_removable(image: &StoredImage, policy: &ImageGc) -> bool {
    !image.is_pinned && (image.is_ours || policy.foreign_images)
}

/// Returns since when an image is unused, as it is to be written on the image; `None` if it is in use. The time that is
/// written there counts, unless the image was used since, or the time is from a clock that was ahead. Without one, the
/// image is unused from now on.
fn unused_since(
    is_used: bool,
    written: Option<SystemTime>,
    last_held: Option<SystemTime>,
    now: SystemTime,
) -> Option<SystemTime> {
    if is_used {
        return None;
    }
    let since = written.map(|written| last_held.map_or(written, |held| held.max(written)));
    Some(since.map_or(now, |since| since.min(now)))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn an_image_is_unused_from_its_last_use_on() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (is_used, written, held, since) in [
            (true, Some(1), None, None),
            (true, None, Some(2), None),
            // Seen unused for the first time.
            (false, None, None, Some(9)),
            (false, None, Some(2), Some(9)),
            (false, Some(3), None, Some(3)),
            (false, Some(3), Some(2), Some(3)),
            // Used, and let go, between two looks.
            (false, Some(3), Some(5), Some(5)),
            // Written by a clock that was ahead.
            (false, Some(50), None, Some(9)),
        ] {
            assert_eq!(
                unused_since(is_used, written.map(at), held.map(at), at(9)),
                since.map(at),
                "{is_used} {written:?} {held:?}"
            );
        }
    }

    #[test]
    fn a_pinned_image_stays_and_a_foreign_one_by_default() {
        let image =
            |is_ours, is_pinned| StoredImage { name: "a".to_owned(), is_ours, is_pinned, unused_since: None };
        let policy = |foreign_images| ImageGc { delay: None, disk_high_water: None, foreign_images };
        assert!(is_removable(&image(true, false), &policy(false)));
        assert!(!is_removable(&image(false, false), &policy(false)));
        assert!(is_removable(&image(false, false), &policy(true)));
        assert!(!is_removable(&image(true, true), &policy(true)));
    }

    #[tokio::test]
    async fn held_images_are_not_removed_and_removals_are_awaited() {
        let uses = Arc::new(ImageUses::default());
        let first = uses.hold("a").await;
        let second = uses.hold("a").await;
        drop(first);
        assert!(uses.mark_for_removal("a").is_none());
        assert!(uses.last("b").is_none());
        drop(second);
        let in_removal = uses.mark_for_removal("a").unwrap();
        assert!(uses.mark_for_removal("a").is_none());
        let mut waiting = Box::pin(uses.hold("a"));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(uses.hold("b").now_or_never().is_some());
        drop(in_removal);
        waiting.await;
        assert!(uses.last("a").is_some() && !uses.is_held("a"));
    }

    #[tokio::test]
    async fn whoever_loads_an_archive_holds_all_that_was_loaded() {
        let uses = Arc::new(ImageUses::default());
        let hold = uses.hold(LOADED).await;
        assert!(uses.mark_for_removal("loaded/docker.io/library/redis:7@sha256:0").is_none());
        assert!(uses.mark_for_removal("docker.io/library/redis:7").is_some());
        drop(hold);
        assert!(uses.mark_for_removal("loaded/docker.io/library/redis:7@sha256:0").is_some());
    }
}
