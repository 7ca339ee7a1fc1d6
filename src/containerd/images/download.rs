//! Downloads of layers into the content store: streamed, and resumed where they stopped, whether the connection broke
//! or an earlier try ended. The daemon hashes what it writes, and checks the digest at the commit.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::image::Descriptor;
use tokio::time::Instant;

use super::super::{Containerd, Error, Labels};
use super::content::{Ingest, Role};
use super::lease::PullLease;
use super::limits::{Answered, Permit, PullLimits};
use super::progress::Progress;
use crate::image::ImageError;
use crate::registry::Registry;
use crate::sys::error_chain::Chained;

/// Bytes written at once: well below the daemon's limit for a message, and enough to make its answer to each cheap. A
/// chunk from the network is smaller.
const PART_BYTES: usize = 128 * 1024;
/// Capacity of the buffer: a part, and the chunk that completes it.
const ROOM_BYTES: usize = 2 * PART_BYTES;
/// Pauses, in milliseconds, between tries without progress: enough for a registry to restart.
const PAUSES_MS: [u64; 7] = [250, 500, 1000, 2000, 4000, 8000, 8000];
/// Bytes that a try has to bring to count as progress.
const BRINGS_ON_BYTES: u64 = 64 * 1024;
/// Time within which a download has to make progress to keep its permit.
const SLOW_AFTER: Duration = Duration::from_secs(5);
/// Maximum number of times that bytes come which don't match the digest, from whatever hosts.
const MOST_BAD_TRIES: usize = 5;

/// The download of one layer.
pub(super) struct Download<'a> {
    registry: &'a Registry<'a>,
    blob: &'a Descriptor,
    limits: &'a PullLimits,
    progress: &'a Progress,
    /// Hosts that the layer comes from.
    origins: Mutex<BTreeSet<String>>,
}

impl Containerd {
    /// Stores a layer, unless it is there.
    ///
    /// # Errors
    /// Names the layer. Bytes already received stay under the lease, unless they are of no use.
    pub(super) async fn fetch_layer(
        &self,
        download: &Download<'_>,
        labels: &Labels,
        lease: &PullLease,
    ) -> Result<(), Error> {
        let Download { blob, progress, .. } = download;
        let mut bad_tries = 0;
        let mut has_been_whole = false;
        loop {
            let Some(mut ingest) = self.resume_ingest(Role::Layer, blob, lease).await? else {
                progress.found(blob.size());
                return Ok(());
            };
            let begun_bytes = ingest.written_bytes();
            progress.found(begun_bytes);
            let outcome = async {
                download.run(&mut ingest).await?;
                ingest.commit(labels.clone()).await
            };
            match outcome.await {
                Err(error) if error.is_damaged() => {
                    progress.lost(ingest.written_bytes());
                    ingest.discard();
                    let has_others = download.has_other_hosts();
                    // Bytes that an earlier try left may have been bad, and then this one is not to blame. Nor is the
                    // registry where a mirror is. A cache on the way that was bad once may be better the next time.
                    let is_whole = begun_bytes == 0;
                    bad_tries += 1;
                    if bad_tries >= MOST_BAD_TRIES || is_whole && has_been_whole && !has_others {
                        return Err(error);
                    }
                    has_been_whole |= is_whole;
                    tracing::warn!(error = %error.chain(), "downloading a layer again, since its content was bad");
                }
                outcome => return outcome,
            }
        }
    }
}

impl<'a> Download<'a> {
    pub(super) fn new(
        registry: &'a Registry<'a>,
        blob: &'a Descriptor,
        limits: &'a PullLimits,
        progress: &'a Progress,
    ) -> Self {
        Self { registry, blob, limits, progress, origins: Mutex::default() }
    }

    /// Marks the hosts that sent bad content as failing; returns whether others are left.
    fn has_other_hosts(&self) -> bool {
        let origins = std::mem::take(&mut *self.origins());
        self.registry.mark_bad_content(&origins)
    }

    /// Locks the hosts. No code that can panic runs under the lock.
    fn origins(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, ingest: &mut Ingest) -> Result<(), Error> {
        if ingest.written_bytes() > self.blob.size() {
            return Err(self.failed(ImageError::damaged("it has more bytes than its size")));
        }
        let mut idle_tries = 0;
        while ingest.written_bytes() < self.blob.size() {
            let before = ingest.written_bytes();
            let mut was_kept_waiting = false;
            let Err(error) = self.resume(ingest, &mut was_kept_waiting).await else { continue };
            if ingest.written_bytes() - before >= BRINGS_ON_BYTES {
                idle_tries = 0;
            }
            match PAUSES_MS.get(idle_tries) {
                Some(pause_ms) if error.is_registrys_for_now() => {
                    tracing::debug!(error = %error.chain(), at_bytes = ingest.written_bytes(), "resuming the download of a layer");
                    // A registry that was kept waiting for our permit may well hang up.
                    idle_tries += usize::from(!was_kept_waiting);
                    tokio::time::sleep(Duration::from_millis(*pause_ms)).await;
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }

    /// Downloads from where the write stopped to the end. Bytes that came before the connection breaks are written as
    /// well. A permit is held while bytes come, and for a moment until the first of them.
    async fn resume(&self, ingest: &mut Ingest, was_kept_waiting: &mut bool) -> Result<(), Error> {
        let begun_bytes = ingest.written_bytes();
        let request =
            async { self.registry.blob(self.blob, begun_bytes).await.map_err(|error| self.failed(error)) };
        let answered = self.limits.layers.answered(self.progress.observers(), request).await?;
        let Answered { answer: mut body, permit, was_kept_waiting: was_kept } = answered;
        let mut pace = Pace { permit: Some(permit), since: Instant::now(), came_bytes: 0 };
        *was_kept_waiting = was_kept;
        self.progress.comes_from(body.origin());
        self.origins().insert(body.origin().to_owned());
        let mut part = Vec::with_capacity(ROOM_BYTES);
        loop {
            let (before, came_before) = (part.len(), body.came_bytes());
            let came = pace.keep(body.append_to(&mut part)).await;
            let came_bytes = body.came_bytes() - came_before;
            self.progress.fetched((part.len() - before) as u64, came_bytes);
            if pace.is_to_wait(came_bytes) {
                *was_kept_waiting = true;
                let permit = self.limits.layers.permit(self.progress.observers()).await;
                pace.permit = Some(permit.map_err(|error| self.failed(error))?);
            }
            let here_bytes = ingest.written_bytes() + part.len() as u64;
            if here_bytes > self.blob.size() {
                let reason = format!("received more than its {} bytes", self.blob.size());
                return Err(self.failed(ImageError::damaged(reason)));
            }
            if part.len() >= PART_BYTES || !matches!(came, Ok(true)) && !part.is_empty() {
                ingest.write(std::mem::replace(&mut part, Vec::with_capacity(ROOM_BYTES))).await?;
            }
            if !came.map_err(|error| self.failed(error))? {
                break;
            }
        }
        if ingest.written_bytes() < self.blob.size() {
            let (here_bytes, size_bytes) = (ingest.written_bytes(), self.blob.size());
            let reason = format!("received {here_bytes} of {size_bytes} bytes");
            return Err(self.failed(ImageError::transient(reason)));
        }
        Ok(())
    }

    fn failed(&self, error: ImageError) -> Error {
        error.during(format!("fetch layer {}", self.blob.digest()))
    }
}

/// The permit of a download while bytes come. It is released while hardly any do, and acquired again for more.
struct Pace {
    permit: Option<Permit>,
    since: Instant,
    came_bytes: u64,
}

impl Pace {
    /// Awaits the next bytes, and releases the permit if they are late.
    async fn keep<T>(&mut self, next: impl Future<Output = T>) -> T {
        let mut next = pin!(next);
        if let Ok(came) = tokio::time::timeout_at(self.since + SLOW_AFTER, next.as_mut()).await {
            return came;
        }
        if self.came_bytes < BRINGS_ON_BYTES {
            self.permit = None;
        }
        next.await
    }

    /// Counts bytes received. Returns whether the permit has to be acquired again before more is read.
    fn is_to_wait(&mut self, came_bytes: u64) -> bool {
        self.came_bytes += came_bytes;
        let is_enough = self.came_bytes >= BRINGS_ON_BYTES;
        if is_enough || self.since.elapsed() >= SLOW_AFTER {
            if !is_enough {
                self.permit = None;
            }
            (self.since, self.came_bytes) = (Instant::now(), 0);
        }
        is_enough && self.permit.is_none()
    }
}
