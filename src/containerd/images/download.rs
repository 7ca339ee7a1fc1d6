//! A layer's way from the registry into the content store: streamed, and taken up where it stopped, whether the connection
//! broke or the try before ended. The daemon hashes what it writes, and says at the commit whether it is what was promised.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::image::Descriptor;

use super::super::{Containerd, Error, Labels, Problem};
use super::content::{Ingest, Role};
use super::gate::Gate;
use super::lease::PullLease;
use super::progress::Progress;
use super::registry::Registry;

/// What is written at once: well below the daemon's limit for a message, and enough to make its answer to each cheap. What
/// comes at once is less.
const PART_BYTES: usize = 128 * 1024;
const ROOM_BYTES: usize = 2 * PART_BYTES;
/// Between tries of which none brought anything on: a registry that is started anew is waited for.
const PAUSES_MS: [u64; 7] = [250, 500, 1000, 2000, 4000, 8000, 8000];
/// What a try has to bring to be one that did.
const BRINGS_ON_BYTES: u64 = 64 * 1024;

/// One layer to be fetched.
pub(super) struct Download<'a> {
    registry: &'a Registry<'a>,
    blob: &'a Descriptor,
    gate: &'a Gate,
    progress: &'a Progress,
    /// The hosts that it comes from.
    origins: Mutex<BTreeSet<String>>,
}

impl Containerd {
    /// Stores a layer, unless it is there.
    ///
    /// # Errors
    /// Names the layer. What has come of it stays under the lease, unless it is of no use.
    pub(super) async fn fetch_layer(
        &self,
        download: &Download<'_>,
        labels: &Labels,
        lease: &PullLease,
    ) -> Result<(), Error> {
        let Download { blob, progress, .. } = download;
        loop {
            let waiting = progress.busy();
            let Some(mut ingest) = self.go_on_with_ingest(Role::Layer, blob, lease).await? else {
                progress.found(blob.size());
                return Ok(());
            };
            drop(waiting);
            let begun_bytes = ingest.written_bytes();
            progress.found(begun_bytes);
            let outcome = async {
                download.run(&mut ingest).await?;
                let _busy = progress.busy();
                ingest.commit(labels.clone()).await
            };
            match outcome.await {
                Err(error) if error.is_corrupt() => {
                    progress.lost(ingest.written_bytes());
                    ingest.discard();
                    // What an earlier try left may have been bad, and then this one is not to blame. Nor is the registry
                    // where a mirror is.
                    if begun_bytes == 0 && !download.has_other_hosts() {
                        return Err(error);
                    }
                    tracing::warn!(%error, "a layer is fetched anew, since what came of it is bad");
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
        gate: &'a Gate,
        progress: &'a Progress,
    ) -> Self {
        Self { registry, blob, gate, progress, origins: Mutex::default() }
    }

    /// Beside those that have sent something else.
    fn has_other_hosts(&self) -> bool {
        let origins = std::mem::take(&mut *self.origins());
        self.registry.distrust(&origins)
    }

    /// No code that can panic runs under it.
    fn origins(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, ingest: &mut Ingest) -> Result<(), Error> {
        if ingest.written_bytes() > self.blob.size() {
            return Err(self.failed(Problem::corrupt("more of it is here than there is")));
        }
        let mut idle_tries = 0;
        while ingest.written_bytes() < self.blob.size() {
            let before = ingest.written_bytes();
            let place = self.gate.layer().await;
            let Err(error) = self.go_on(ingest).await else { continue };
            drop(place);
            if ingest.written_bytes() - before >= BRINGS_ON_BYTES {
                idle_tries = 0;
            }
            match PAUSES_MS.get(idle_tries) {
                Some(pause_ms) if error.is_registrys_for_now() => {
                    tracing::debug!(%error, at_bytes = ingest.written_bytes(), "a layer's download is taken up again");
                    idle_tries += 1;
                    tokio::time::sleep(Duration::from_millis(*pause_ms)).await;
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads from where it stopped to the end. What has come when it breaks is written as well.
    async fn go_on(&self, ingest: &mut Ingest) -> Result<(), Error> {
        let begun_bytes = ingest.written_bytes();
        let mut body =
            self.registry.blob(self.blob, begun_bytes).await.map_err(|problem| self.failed(problem))?;
        self.progress.comes_from(body.origin());
        self.origins().insert(body.origin().to_owned());
        let mut part = Vec::with_capacity(ROOM_BYTES);
        loop {
            let before = part.len();
            let came = body.append_to(&mut part).await;
            self.progress.fetched((part.len() - before) as u64);
            let here_bytes = ingest.written_bytes() + part.len() as u64;
            if here_bytes > self.blob.size() {
                let reason = format!("more bytes came than the {} that are promised", self.blob.size());
                return Err(self.failed(Problem::corrupt(reason)));
            }
            if part.len() >= PART_BYTES || !matches!(came, Ok(true)) && !part.is_empty() {
                ingest.write(std::mem::replace(&mut part, Vec::with_capacity(ROOM_BYTES))).await?;
            }
            if !came.map_err(|problem| self.failed(problem))? {
                break;
            }
        }
        if ingest.written_bytes() < self.blob.size() {
            let (here_bytes, size_bytes) = (ingest.written_bytes(), self.blob.size());
            let reason = format!("{here_bytes} bytes came, {size_bytes} are promised");
            return Err(self.failed(Problem::broken(reason)));
        }
        Ok(())
    }

    fn failed(&self, problem: Problem) -> Error {
        problem.during(format!("fetch layer {}", self.blob.digest()))
    }
}
