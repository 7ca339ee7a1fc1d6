//! Images: resolves a name to a committed snapshot and a configuration, from what the daemon has, else by a pull; or
//! loads an archive.
//!
//! An image is looked up without the network first: its record says what the name stands for, and the snapshot of all
//! its layers says that it is unpacked. What a digest stands for can't change, so it is cached; that record and
//! snapshot still exist is asked each time. With the cache this takes two calls, without it five, or six for an index.
//! Shared pulls are owned here: one for each name, whoever asks.

mod audience;
mod content;
mod documents;
mod download;
mod flight;
mod gate;
mod gc;
mod lease;
mod load;
mod present;
mod progress;
mod pull;
mod remote;
mod timestamp;
mod turns;
mod unpack;
mod waits;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::{Arch, ImageConfiguration};

pub(crate) use audience::PullEvent;
pub(crate) use gate::PullTerms;
pub(crate) use gc::Stored as StoredImage;
pub(crate) use load::{NAME_PREFIX as LOADED, Source as ArchiveSource};

use self::audience::Audience;
use self::flight::{Errand, Flights};
use self::gate::Gate;
use self::lease::{Outcome, PullLease};
use self::present::{Known, Present};
use self::progress::Progress;
use self::turns::Turns;
use self::unpack::Unpacking;
use super::{Containerd, Error};
use crate::cache::Cache;
use crate::image::manifest::Layout;
use crate::image::{ImageError, Reference};
use crate::registry::{CredentialStore, Credentials, PullCredentials, RegistryClient};

/// Label on the record of an image that this driver pulled; its value tells ours from another plugin's.
const OWNER_LABEL: &str = "containerd-driver/brought-by";

/// An image that is ready: its snapshot exists, to be the parent of a task's.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The canonical name.
    pub name: String,
    /// Digest of the manifest for this platform.
    pub digest: String,
    /// Chain id of all its layers, which is the name of its snapshot.
    pub chain_id: String,
    pub config: ImageConfiguration,
}

/// The policy that says when an image is pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Policy {
    /// Pulled if missing locally.
    #[default]
    Missing,
    /// Pulled if missing locally, or if its tag stands for another image by now.
    Always,
    Never,
}

/// A caller's options for a pull, if one is needed.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub policy: Policy,
    pub timeout: Duration,
    /// Credentials of the job, which take precedence over the operator's.
    pub credentials: Option<Credentials>,
    /// Set to pull without credentials where there are none, or where they are denied.
    pub soft_fail: bool,
}

/// The operator's settings for images.
#[derive(Debug, Default)]
pub(crate) struct ImageTerms {
    pub credential_store: CredentialStore,
    /// Directory of containerd's `hosts.toml` files, if there is one.
    pub hosts: Option<PathBuf>,
    pub pulls: PullTerms,
    /// Owner of the images that this plugin pulls.
    pub owner: String,
}

/// State that the clones of one [`Containerd`] share for images.
pub(super) struct State {
    flights: Flights,
    known: Known,
    registry: RegistryClient,
    credential_store: Arc<CredentialStore>,
    turns: Turns,
    gate: Gate,
    left: lease::Left,
    /// Names of the images that were loaded from archives, so that a file is read once.
    loaded: Cache<load::FileKey, String>,
    owner: String,
}

impl State {
    pub(super) fn with(terms: ImageTerms) -> Self {
        let ImageTerms { credential_store, hosts, pulls, owner } = terms;
        let gate = Gate::new(pulls);
        Self {
            flights: Flights::default(),
            known: Known::default(),
            registry: RegistryClient::new(hosts, gate.idle()),
            credential_store: Arc::new(credential_store),
            turns: Turns::default(),
            gate,
            left: lease::Left::default(),
            loaded: Cache::default(),
            owner,
        }
    }
}

impl Containerd {
    /// Returns the image of a name, unpacked: the one that the daemon has, whatever the registry may have by now, or
    /// else a pulled one. The observer receives events of a pull only.
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
        let Access { policy, timeout, credentials, soft_fail } = access;
        // What a digest stands for doesn't change.
        let policy =
            if reference.digest().is_some() && policy == Policy::Always { Policy::Missing } else { policy };
        self.check_snapshotter().await?;
        if policy != Policy::Always {
            let present = self
                .present(reference)
                .await
                .map_err(|error| error.context(&format!("find image {name}")))?;
            match present {
                Present::Ready(layout) => return Ok(image_of(&name, &layout)),
                Present::Absent if policy == Policy::Never => {
                    return Err(ImageError::NotHere.during(format!("find image {name}")));
                }
                Present::Packed(_) | Present::Absent => {}
            }
        }
        let errand =
            Errand { name, snapshotter: self.snapshotter().to_owned(), policy, credentials, soft_fail };
        let obtain = |errand: Errand, audience: Arc<Audience>| {
            let (this, reference) = (self.clone(), reference.clone());
            async move { this.obtain(&reference, &errand, &audience).await }
        };
        self.shared.images.flights.join(errand, timeout, Arc::new(observer), obtain).await
    }

    /// Unpacks the local image, or pulls it. Looks once more, because another pull may have finished just now.
    async fn obtain(
        &self,
        reference: &Reference,
        errand: &Errand,
        audience: &Arc<Audience>,
    ) -> Result<Image, Error> {
        let name = reference.to_string();
        let found = self.present(reference).await;
        let mut found = found.map_err(|error| error.context(&format!("find image {name}")))?;
        let mut current = None;
        if errand.policy == Policy::Always && !matches!(found, Present::Absent) {
            current = self.image_target(&name).await?.map(|target| target.digest);
        }
        if current.is_some()
            && let Some(pulled) = self.pull_for(reference, errand, current.as_deref(), audience).await?
        {
            found = Present::Ready(pulled);
        }
        let layout = match found {
            Present::Ready(layout) => Some(layout),
            Present::Packed(layout) => match self.unpack_present(&name, &layout, audience).await {
                Ok(()) => Some(layout),
                // A layer's blob is missing.
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error.context(&format!("unpack image {name}"))),
            },
            Present::Absent => None,
        };
        let layout = match layout {
            Some(layout) => layout,
            None => self.pull_anew(reference, errand, audience).await?,
        };
        Ok(image_of(&name, &layout))
    }

    async fn pull_anew(
        &self,
        reference: &Reference,
        errand: &Errand,
        audience: &Arc<Audience>,
    ) -> Result<Arc<Layout>, Error> {
        if errand.policy == Policy::Never {
            return Err(ImageError::NotHere.during(format!("find image {reference}")));
        }
        let pulled = self.pull_for(reference, errand, None, audience).await?;
        // `None` means that the current image is up to date, and there is none.
        pulled.ok_or_else(|| {
            ImageError::unusable("it answered that nothing has changed").during(format!("pull {reference}"))
        })
    }

    async fn unpack_present(
        &self,
        name: &str,
        layout: &Layout,
        audience: &Arc<Audience>,
    ) -> Result<(), Error> {
        let progress = Progress::new(name.to_owned(), Arc::clone(audience));
        let lease = PullLease::take(self, name, audience).await?;
        let unpacking = Unpacking::new(self, &lease);
        let outcome =
            pull::bounded(&progress, &self.shared.images.gate, Box::pin(unpacking.all(layout))).await;
        lease.end(Outcome::of(&outcome)).await;
        outcome
    }

    /// Pulls with the credentials of the caller, else the operator's.
    async fn pull_for(
        &self,
        reference: &Reference,
        errand: &Errand,
        current: Option<&str>,
        audience: &Arc<Audience>,
    ) -> Result<Option<Arc<Layout>>, Error> {
        let own = errand.credentials.clone().map(|own| (reference.host().to_owned(), own));
        let pull_credentials =
            PullCredentials { own, credential_store: Some(Arc::clone(&self.shared.images.credential_store)) };
        let outcome = match self.pull(reference, pull_credentials, current, audience).await {
            Err(error) if errand.soft_fail && error.is_about_credentials() => {
                tracing::warn!(image = %reference, %error, "trying without credentials (auth_soft_fail)");
                self.pull(reference, PullCredentials::default(), current, audience).await
            }
            outcome => outcome,
        };
        outcome.map_err(|error| error.context(&format!("pull {reference}")))
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

/// Returns the architecture of this host, as images name it.
fn host() -> Arch {
    Arch::default()
}
