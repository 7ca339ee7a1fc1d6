//! Images: from a name to a committed snapshot and a configuration, by what the daemon has or else by a pull.
//!
//! An image is looked for without the network first: its record says what the name stands for, and the snapshot of all
//! its layers that it is unpacked. What a digest stands for can't change, so it is remembered; that record and snapshot
//! still exist is asked each time. With what is remembered this takes two calls, without it five, or six for an index.
//! Pulls in flight are owned here: one for each name, whoever asks.

mod challenge;
mod content;
mod download;
mod flight;
mod http;
mod lease;
mod manifest;
mod present;
mod pull;
mod reference;
mod registry;
mod unpack;

use std::sync::Arc;

use oci_spec::image::{Arch, ImageConfiguration};
use tokio::time::Instant;

pub(crate) use flight::PullEvent;
pub(crate) use reference::Reference;

use self::flight::{Audience, Flights};
use self::http::Http;
use self::manifest::Layout;
use self::present::{Known, Present};
use super::{Containerd, Error, Problem};

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

/// What the images of one [`Containerd`] share.
#[derive(Default)]
pub(super) struct State {
    flights: Flights,
    known: Known,
    http: Http,
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
        observer: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, Error> {
        let name = reference.to_string();
        let present =
            self.present(reference).await.map_err(|error| error.context(&format!("find image {name}")))?;
        if let Present::Ready(layout) = present {
            return Ok(image_of(&name, &layout));
        }
        let (this, reference) = (self.clone(), reference.clone());
        let obtain = |audience: Arc<Audience>| async move { this.obtain(&reference, &audience).await };
        self.shared.images.flights.join(&name, Arc::new(observer), obtain).await
    }

    /// Unpacks what is there, or pulls. Looks once more, because another flight may have landed just now.
    async fn obtain(&self, reference: &Reference, audience: &Audience) -> Result<Image, Error> {
        let name = reference.to_string();
        let layout = match self.present(reference).await {
            Ok(Present::Ready(layout)) => layout,
            Ok(Present::Packed(layout)) => match self.unpack_present(&name, &layout).await {
                Ok(()) => layout,
                // A layer's blob is missing.
                Err(error) if error.is_not_found() => self.pull_observed(reference, audience).await?,
                Err(error) => return Err(error.context(&format!("unpack image {name}"))),
            },
            Ok(Present::Absent) => self.pull_observed(reference, audience).await?,
            Err(error) => return Err(error.context(&format!("find image {name}"))),
        };
        Ok(image_of(&name, &layout))
    }

    async fn pull_observed(&self, reference: &Reference, audience: &Audience) -> Result<Arc<Layout>, Error> {
        let start = Instant::now();
        audience.started();
        let (layout, size_bytes) =
            self.pull(reference).await.map_err(|error| error.context(&format!("pull {reference}")))?;
        audience.finished(size_bytes, start.elapsed());
        Ok(layout)
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
