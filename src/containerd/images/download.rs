//! A layer's way from the registry into the content store: streamed, hashed on the way, and taken up where it stopped if
//! the connection breaks.

use oci_spec::image::Descriptor;
use sha2::{Digest, Sha256};

use super::super::{Containerd, Error, Labels, Problem};
use super::content::{Ingest, Role};
use super::lease::PullLease;
use super::manifest::digest_text;
use super::pull::check_digest;
use super::registry::{RETRIES, Registry};

/// Well below the daemon's limit for a message, and enough to make its answer to each cheap.
const PART_BYTES: usize = 1024 * 1024;

/// What of a blob has come so far.
struct Progress {
    hasher: Sha256,
    received_bytes: u64,
    /// Received, and hashed, but not yet written.
    part: Vec<u8>,
}

impl Containerd {
    /// Stores a layer, unless it is there.
    ///
    /// # Errors
    /// Names the layer; nothing of it is left.
    pub(super) async fn fetch_layer(
        &self,
        registry: &Registry<'_>,
        blob: &Descriptor,
        labels: Labels,
        lease: &PullLease,
    ) -> Result<(), Error> {
        let Some(mut ingest) = self.ingest(Role::Layer, blob, lease).await? else {
            return Ok(());
        };
        download(registry, blob, &mut ingest).await?;
        ingest.commit(labels).await
    }
}

async fn download(registry: &Registry<'_>, blob: &Descriptor, ingest: &mut Ingest) -> Result<(), Error> {
    let mut progress = Progress { hasher: Sha256::new(), received_bytes: 0, part: Vec::new() };
    let mut pauses = RETRIES.into_iter();
    while let Err(error) = go_on(registry, blob, &mut progress, ingest).await {
        match (&error, pauses.next()) {
            (Error::Image { problem, .. }, Some(pause)) if problem.is_transient() => {
                tracing::debug!(%error, at_bytes = progress.received_bytes, "a layer's download is taken up again");
                tokio::time::sleep(pause).await;
            }
            _ => return Err(error),
        }
    }
    let failed = |problem: Problem| problem.during(doing(blob));
    if progress.received_bytes != blob.size() {
        let reason = format!("{} bytes came, {} are promised", progress.received_bytes, blob.size());
        return Err(failed(Problem::corrupt(reason)));
    }
    check_digest(blob.digest().as_ref(), &digest_text(&progress.hasher.finalize())).map_err(failed)?;
    ingest.write(progress.part).await
}

/// Reads from where it stopped to the end.
async fn go_on(
    registry: &Registry<'_>,
    blob: &Descriptor,
    progress: &mut Progress,
    ingest: &mut Ingest,
) -> Result<(), Error> {
    let failed = |problem: Problem| problem.during(doing(blob));
    let mut body = registry.blob(blob, progress.received_bytes).await.map_err(failed)?;
    loop {
        let seen = progress.part.len();
        if !body.append_to(&mut progress.part).await.map_err(failed)? {
            return Ok(());
        }
        let fresh = &progress.part[seen..];
        progress.hasher.update(fresh);
        progress.received_bytes += fresh.len() as u64;
        if progress.received_bytes > blob.size() {
            let reason = format!("more bytes came than the {} that are promised", blob.size());
            return Err(failed(Problem::corrupt(reason)));
        }
        if progress.part.len() >= PART_BYTES {
            ingest.write(std::mem::take(&mut progress.part)).await?;
        }
    }
}

fn doing(blob: &Descriptor) -> String {
    format!("fetch layer {}", blob.digest())
}
