//! Runs lookups of host files, which may be on a file system that does not answer, such as a network disk whose server
//! is gone. A caller waits for a bounded time, and lookups that hang occupy a bounded number of threads: none that
//! another file system needs, and never all. Knows nothing of what is looked up.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::sys::mount_table;

/// Maximum time for a file system to answer a start that needs it.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// Maximum number of lookups that run without a check of their file system. Only one that does not answer keeps them
/// all busy.
const AT_ONCE: usize = 16;
/// Maximum number of further lookups per file system, and on all of them: fewer than the plugin's blocking threads.
const AT_A_PLACE: usize = 8;
const AT_ALL_PLACES: usize = 64;
/// Number of file systems above which unused entries are removed.
const PLACES: usize = 64;

static LOOKUPS: LazyLock<Lookups> = LazyLock::new(Lookups::new);

/// Runs `look`, which may wait for the file system that `place` is on, on a thread of its own. The limit counts from
/// the call; past it, the thread goes on, and its result is dropped.
///
/// # Errors
/// [`ErrorKind::TimedOut`] if there is no result in time.
pub(crate) async fn look<T: Send + 'static>(
    place: &Path,
    limit: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    LOOKUPS.look(place, limit, look).await
}

struct Lookups {
    unasked: Arc<Semaphore>,
    all: Arc<Semaphore>,
    places: Mutex<HashMap<PathBuf, Arc<Semaphore>>>,
}

/// The permits of one lookup.
struct Permits {
    _all: OwnedSemaphorePermit,
    _place: Option<OwnedSemaphorePermit>,
}

impl Lookups {
    fn new() -> Self {
        Self {
            unasked: Arc::new(Semaphore::new(AT_ONCE)),
            all: Arc::new(Semaphore::new(AT_ALL_PLACES)),
            places: Mutex::default(),
        }
    }

    async fn look<T: Send + 'static>(
        &self,
        place: &Path,
        limit: Duration,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let looked = async {
            let permits = self.permits(place).await?;
            let work = move || {
                let _permits = permits;
                look()
            };
            spawn_blocking(work).await.map_err(io::Error::other)
        };
        tokio::time::timeout(limit, looked).await.unwrap_or_else(|_| {
            let text = format!("the file system of {} gave no answer in {limit:?}", place.display());
            Err(io::Error::new(ErrorKind::TimedOut, text))
        })
    }

    /// Waits for a permit to run a lookup. The permit of its file system comes first, so that lookups on one file
    /// system don't block those on others.
    async fn permits(&self, place: &Path) -> io::Result<Permits> {
        if let Ok(permit) = Arc::clone(&self.unasked).try_acquire_owned() {
            return Ok(Permits { _all: permit, _place: None });
        }
        let whole = place.to_owned();
        let found = spawn_blocking(move || subject(&whole));
        let semaphore = self.of(found.await.map_err(io::Error::other)?);
        let place = semaphore.acquire_owned().await.map_err(io::Error::other)?;
        let all = Arc::clone(&self.all).acquire_owned().await.map_err(io::Error::other)?;
        Ok(Permits { _all: all, _place: Some(place) })
    }

    fn of(&self, subject: PathBuf) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= PLACES {
            places.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        Arc::clone(places.entry(subject).or_insert_with(|| Arc::new(Semaphore::new(AT_A_PLACE))))
    }
}

/// Returns the part of the file tree that hangs as a whole: the mount that a path is on, or, on the host's root file
/// system, the first directory, which may be a link to another one.
fn subject(path: &Path) -> PathBuf {
    match mount_table::point_of(path) {
        Some(point) if point != Path::new("/") => point,
        _ => path.components().take(2).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn paths_of_one_mount_are_one_subject() {
        for (path, wanted) in [("/no-such/a/b", "/no-such"), ("/", "/"), ("/proc/1/stat", "/proc")] {
            assert_eq!(subject(Path::new(path)), Path::new(wanted), "{path}");
        }
    }

    #[tokio::test]
    async fn a_hung_file_system_does_not_delay_others() {
        let lookups = Arc::new(Lookups::new());
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let stuck: Vec<_> = (0..AT_ONCE + AT_A_PLACE * 3)
            .map(|_| {
                let (lookups, released) = (Arc::clone(&lookups), Arc::clone(&released));
                tokio::spawn(async move {
                    let wait = move || {
                        let _ = released.lock().map(|released| released.recv());
                    };
                    lookups.look(Path::new("/dead/disk"), Duration::from_millis(500), wait).await
                })
            })
            .collect();
        while lookups.unasked.available_permits() > 0
            || lookups.all.available_permits() > AT_ALL_PLACES - AT_A_PLACE
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(lookups.look(Path::new("/sound/disk"), SOON, || 7).await.unwrap(), 7);
        for look in stuck {
            let error = look.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!(
                error.to_string().contains("/dead/disk") && error.to_string().contains("no answer"),
                "{error}"
            );
        }
        // One file system has so many threads, and no more.
        assert_eq!(lookups.all.available_permits(), AT_ALL_PLACES - AT_A_PLACE);
        drop(release);
        assert_eq!(lookups.look(Path::new("/dead/disk"), SOON, || 7).await.unwrap(), 7);
    }
}
