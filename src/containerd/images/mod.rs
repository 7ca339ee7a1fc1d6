//! Images: resolves a name to a committed snapshot and a configuration, from what the daemon has, else by a pull; or
//! loads an archive.
//!
//! An image is looked up without the network first: its record says what the name stands for, and the snapshot of all
//! its layers says that it is unpacked. What a digest stands for can't change, so it is cached; that record and
//! snapshot still exist is asked each time. With the cache this takes two calls, without it five, or six for an index.
//! Shared pulls are owned here: one for each name, whoever asks.

mod content;
mod download;
mod gc;
mod keyed_lock;
mod lease;
mod limits;
mod load;
mod local;
mod observers;
mod progress;
mod pull;
mod remote_snapshotter;
mod single_flight;
mod store;
mod timestamp;
mod unpack;
mod wait;
mod waits;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;

pub(crate) use gc::Stored as StoredImage;
pub(crate) use limits::PullSettings;
pub(crate) use load::{NAME_PREFIX as LOADED, Source as ArchiveSource};
pub(crate) use observers::PullEvent;

use self::keyed_lock::KeyedLocks;
use self::lease::{Outcome, PullLease};
use self::limits::PullLimits;
use self::local::{LayoutCache, LocalImage};
use self::observers::Observers;
use self::progress::Progress;
use self::single_flight::{PullKey, SingleFlight};
use self::unpack::Unpacking;
use super::{Containerd, Error};
use crate::cache::Cache;
use crate::image::manifest::Layout;
use crate::image::{ImageError, Reference};
use crate::registry::{CredentialStore, Credentials, PullCredentials, RegistryClient};
use crate::sys::error_chain::Chained;

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
pub(crate) struct PullOptions {
    pub policy: Policy,
    pub timeout: Duration,
    /// Credentials of the job, which take precedence over the operator's.
    pub credentials: Option<Credentials>,
    /// Set to pull without credentials where there are none, or where they are denied.
    pub soft_fail: bool,
}

/// The operator's settings for images.
#[derive(Debug, Default)]
pub(crate) struct ImageSettings {
    pub credential_store: CredentialStore,
    /// Directory of containerd's `hosts.toml` files, if there is one.
    pub hosts: Option<PathBuf>,
    pub pulls: PullSettings,
    /// Owner of the images that this plugin pulls.
    pub owner: String,
}

/// State that the clones of one [`Containerd`] share for images.
pub(super) struct State {
    single_flight: SingleFlight,
    layouts: LayoutCache,
    registry: RegistryClient,
    credential_store: Arc<CredentialStore>,
    locks: KeyedLocks,
    limits: PullLimits,
    left: lease::AbandonedLeases,
    /// Names of the images that were loaded from archives, so that a file is read once.
    loaded: Cache<load::FileKey, String>,
    owner: String,
}

impl State {
    pub(super) fn with(settings: ImageSettings) -> Self {
        let ImageSettings { credential_store, hosts, pulls, owner } = settings;
        let limits = PullLimits::new(pulls);
        Self {
            single_flight: SingleFlight::default(),
            layouts: LayoutCache::default(),
            registry: RegistryClient::new(hosts, limits.idle()),
            credential_store: Arc::new(credential_store),
            locks: KeyedLocks::default(),
            limits,
            left: lease::AbandonedLeases::default(),
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
        pull_options: PullOptions,
        observer: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, Error> {
        let name = reference.to_string();
        let PullOptions { policy, timeout, credentials, soft_fail } = pull_options;
        // What a digest stands for doesn't change.
        let policy =
            if reference.digest().is_some() && policy == Policy::Always { Policy::Missing } else { policy };
        self.check_snapshotter().await?;
        if policy != Policy::Always {
            let local_image = self
                .local_image(reference)
                .await
                .map_err(|error| error.context(&format!("find image {name}")))?;
            match local_image {
                LocalImage::Unpacked(layout) => return Ok(image_of(&name, &layout)),
                LocalImage::Missing if policy == Policy::Never => {
                    return Err(ImageError::NotPresent.during(format!("find image {name}")));
                }
                LocalImage::Packed(_) | LocalImage::Missing => {}
            }
        }
        let key = PullKey { name, form: self.form(), policy, credentials, soft_fail };
        let find_or_pull = |key: PullKey, observers: Arc<Observers>| {
            let (this, reference) = (self.clone(), reference.clone());
            async move { this.find_or_pull(&reference, &key, &observers).await }
        };
        self.shared.images.single_flight.join(key, timeout, Arc::new(observer), find_or_pull).await
    }

    /// Names the form in which this client wants images: snapshotter and platform.
    fn form(&self) -> String {
        format!("{} {}", self.snapshotter(), self.platform())
    }

    /// Unpacks the local image, or pulls it. Looks once more, because another pull may have finished just now.
    async fn find_or_pull(
        &self,
        reference: &Reference,
        key: &PullKey,
        observers: &Arc<Observers>,
    ) -> Result<Image, Error> {
        let name = reference.to_string();
        let found = self.local_image(reference).await;
        let mut found = found.map_err(|error| error.context(&format!("find image {name}")))?;
        let mut current = None;
        if key.policy == Policy::Always && !matches!(found, LocalImage::Missing) {
            current = self.image_target(&name).await?.map(|target| target.digest);
        }
        if current.is_some()
            && let Some(pulled) =
                self.pull_with_credentials(reference, key, current.as_deref(), observers).await?
        {
            found = LocalImage::Unpacked(pulled);
        }
        let layout = match found {
            LocalImage::Unpacked(layout) => Some(layout),
            LocalImage::Packed(layout) => match self.unpack_local(&name, &layout, observers).await {
                Ok(()) => Some(layout),
                // A layer's blob is missing.
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error.context(&format!("unpack image {name}"))),
            },
            LocalImage::Missing => None,
        };
        let layout = match layout {
            Some(layout) => layout,
            None => self.pull_missing(reference, key, observers).await?,
        };
        Ok(image_of(&name, &layout))
    }

    async fn pull_missing(
        &self,
        reference: &Reference,
        key: &PullKey,
        observers: &Arc<Observers>,
    ) -> Result<Arc<Layout>, Error> {
        if key.policy == Policy::Never {
            return Err(ImageError::NotPresent.during(format!("find image {reference}")));
        }
        let pulled = self.pull_with_credentials(reference, key, None, observers).await?;
        // `None` means that the current image is up to date, and there is none.
        pulled.ok_or_else(|| {
            ImageError::unusable("it answered that nothing has changed").during(format!("pull {reference}"))
        })
    }

    async fn unpack_local(
        &self,
        name: &str,
        layout: &Layout,
        observers: &Arc<Observers>,
    ) -> Result<(), Error> {
        let progress = Progress::new(name.to_owned(), Arc::clone(observers));
        let lease = PullLease::take(self, name, observers).await?;
        let unpacking = Unpacking::new(self, &lease);
        let outcome =
            pull::bounded(&progress, &self.shared.images.limits, Box::pin(unpacking.all(layout))).await;
        lease.end(Outcome::of(&outcome)).await;
        outcome
    }

    /// Pulls with the credentials of the caller, else the operator's.
    async fn pull_with_credentials(
        &self,
        reference: &Reference,
        key: &PullKey,
        current: Option<&str>,
        observers: &Arc<Observers>,
    ) -> Result<Option<Arc<Layout>>, Error> {
        let own = key.credentials.clone().map(|own| (reference.host().to_owned(), own));
        let pull_credentials =
            PullCredentials { own, credential_store: Some(Arc::clone(&self.shared.images.credential_store)) };
        let outcome = match self.pull(reference, pull_credentials, current, observers).await {
            Err(error) if key.soft_fail && error.is_about_credentials() => {
                tracing::warn!(image = %reference, error = %error.chain(), "trying without credentials (auth_soft_fail)");
                self.pull(reference, PullCredentials::default(), current, observers).await
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
