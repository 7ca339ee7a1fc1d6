//! Images: from a name to a committed snapshot and a configuration, by what the daemon has or else by a pull; or from an
//! archive.
//!
//! An image is looked for without the network first: its record says what the name stands for, and the snapshot of all
//! its layers that it is unpacked. What a digest stands for can't change, so it is remembered; that record and snapshot
//! still exist is asked each time. With what is remembered this takes two calls, without it five, or six for an index.
//! Pulls in flight are owned here: one for each name, whoever asks.

mod archive;
mod challenge;
mod content;
mod documents;
mod download;
mod flight;
mod gc;
mod helper;
mod http;
mod keyring;
mod lease;
mod load;
mod manifest;
mod present;
mod pull;
mod reference;
mod registry;
mod saved;
mod unpack;

use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::{Arch, ImageConfiguration};
use tokio::time::Instant;

pub(crate) use flight::PullEvent;
pub(crate) use gc::Stored as StoredImage;
pub(crate) use keyring::{Credentials, Keyring, is_server};
pub(crate) use load::{NAME_PREFIX as LOADED, Source as ArchiveSource};
pub(crate) use reference::Reference;

use self::flight::{Audience, Errand, Flights};
use self::http::Http;
use self::manifest::Layout;
use self::present::{Known, Present};
use super::{Containerd, Error, Problem};

/// On the record of an image that we brought in; its value tells ours from another plugin's.
const OWNER_LABEL: &str = "containerd-driver/brought-by";

/// An image that is ready: its snapshot is there to be the parent of a task's.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The canonical name.
    pub name: String,
    /// Of the manifest for this platform.
    pub digest: String,
    /// The snapshot of all its layers.
    pub chain_id: String,
    pub config: ImageConfiguration,
}

/// On what terms an image is pulled, if it has to be.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub timeout: Duration,
    /// Those that count before any of the keyring.
    pub credentials: Option<Credentials>,
    /// Goes without credentials where there are none to be had, or where they are not taken.
    pub soft_fail: bool,
}

/// What the images of one [`Containerd`] share.
pub(super) struct State {
    flights: Flights,
    known: Known,
    http: Http,
    keyring: Keyring,
}

impl State {
    pub(super) fn with(keyring: Keyring) -> Self {
        Self { flights: Flights::default(), known: Known::default(), http: Http::default(), keyring }
    }
}

impl Containerd {
    /// The image of that name, unpacked: the one that the daemon has, whatever the registry may have by now, or else a
    /// pulled one. The observer hears of a pull only.
    ///
    /// # Errors
    /// Each names the image; [`Error::is_transient`] tells whether another try makes sense.
    pub(crate) async fn image(
        &self,
        reference: &Reference,
        access: Access,
        observer: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, Error> {
        let name = reference.to_string();
        self.check_snapshotter().await?;
        let present =
            self.present(reference).await.map_err(|error| error.context(&format!("find image {name}")))?;
        if let Present::Ready(layout) = present {
            return Ok(image_of(&name, &layout));
        }
        let (this, reference) = (self.clone(), reference.clone());
        let Access { timeout, credentials, soft_fail } = access;
        let errand = Errand { name, snapshotter: self.snapshotter().to_owned(), credentials, soft_fail };
        let obtain = |errand: Errand, audience: Arc<Audience>| async move {
            this.obtain(&reference, &errand, &audience).await
        };
        self.shared.images.flights.join(errand, timeout, Arc::new(observer), obtain).await
    }

    /// Unpacks what is there, or pulls. Looks once more, because another flight may have landed just now.
    async fn obtain(
        &self,
        reference: &Reference,
        errand: &Errand,
        audience: &Audience,
    ) -> Result<Image, Error> {
        let name = reference.to_string();
        let layout = match self.present(reference).await {
            Ok(Present::Ready(layout)) => layout,
            Ok(Present::Packed(layout)) => match self.unpack_present(&name, &layout).await {
                Ok(()) => layout,
                // A layer's blob is missing.
                Err(error) if error.is_not_found() => self.pull_observed(reference, errand, audience).await?,
                Err(error) => return Err(error.context(&format!("unpack image {name}"))),
            },
            Ok(Present::Absent) => self.pull_observed(reference, errand, audience).await?,
            Err(error) => return Err(error.context(&format!("find image {name}"))),
        };
        Ok(image_of(&name, &layout))
    }

    async fn pull_observed(
        &self,
        reference: &Reference,
        errand: &Errand,
        audience: &Audience,
    ) -> Result<Arc<Layout>, Error> {
        let start = Instant::now();
        audience.started();
        let pull = async {
            match self.pull_as(reference, errand).await {
                Err(error) if errand.soft_fail && error.is_about_credentials() => {
                    tracing::warn!(image = %reference, %error, "trying without credentials (auth_soft_fail)");
                    self.pull(reference, None).await
                }
                outcome => outcome,
            }
        };
        let outcome = tokio::select! {
            outcome = pull => outcome,
            // Each of those who wait says how long that was.
            () = audience.patience_ends() => {
                Err(Problem::Deadline { after: start.elapsed() }.during("download and unpack"))
            }
        };
        let (layout, size_bytes) = outcome.map_err(|error| error.context(&format!("pull {reference}")))?;
        audience.finished(size_bytes, start.elapsed());
        Ok(layout)
    }

    async fn pull_as(&self, reference: &Reference, errand: &Errand) -> Result<(Arc<Layout>, u64), Error> {
        let credentials = match &errand.credentials {
            Some(credentials) => Some(credentials.clone()),
            None => {
                let found = self.shared.images.keyring.credentials(reference.host()).await;
                found.map_err(|problem| problem.during("look for credentials"))?
            }
        };
        self.pull(reference, credentials).await
    }
}

fn image_of(name: &str, layout: &Layout) -> Image {
    Image {
        name: name.to_owned(),
        digest: layout.manifest_digest.clone(),
        chain_id: layout.chain_id().to_owned(),
        config: layout.config.clone(),
    }
}

/// The architecture of this host, as images name it.
fn host() -> Arch {
    Arch::default()
}
