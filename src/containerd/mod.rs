//! containerd over gRPC: images, content, snapshots, leases and container records. Its task service is not used: the
//! shims are driven directly. Knows neither Nomad nor the shim.
//!
//! The channel connects at the first call and again after the daemon was restarted; every call has a deadline.
//! Source of the facts: containerd `api/services`, `services/content/contentserver`, `metadata` @ v1.6.20.

mod error;
mod images;
mod records;
mod snapshots;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::image::platform::Target;
pub(crate) use error::Error;
pub(crate) use images::{
    ArchiveSource, Image, ImageSettings, LOADED, Policy, PullEvent, PullOptions, PullSettings, StoredImage,
};
pub(crate) use records::Record;

/// Labels of an object in the daemon's database.
type Labels = HashMap<String, String>;

/// Timeout of calls that touch only the daemon's database.
const QUICK: Duration = Duration::from_secs(10);
/// Timeout of calls in which a snapshotter may copy, or remove, all the files of an image, or that wait for such a
/// call.
const COPIES: Duration = Duration::from_secs(15 * 60);
/// Timeout of the call for the version: the fingerprint asks often and must notice a hung daemon.
const PING: Duration = Duration::from_secs(3);
/// The daemon's own limit for the size of a message.
const MESSAGE_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// A namespace and a snapshotter of one daemon. Clones use the same connection and share pulls.
#[derive(Clone)]
pub(crate) struct Containerd {
    shared: Arc<Shared>,
    snapshotter: Arc<str>,
    /// The platform of the images that are looked for.
    platform: Arc<Target>,
    /// Number of calls made by this client and its clones.
    calls: Arc<AtomicU32>,
}

struct Shared {
    socket: PathBuf,
    namespace: String,
    channel: OnceLock<Channel>,
    snapshotters: snapshots::Seen,
    images: images::State,
}

impl Containerd {
    /// Creates a client. Does no I/O: the daemon may be down, or come later.
    pub(crate) fn new(socket: PathBuf, namespace: &str, snapshotter: &str, settings: ImageSettings) -> Self {
        Self {
            shared: Arc::new(Shared {
                socket,
                namespace: namespace.to_owned(),
                channel: OnceLock::new(),
                snapshotters: snapshots::Seen::default(),
                images: images::State::with(settings),
            }),
            snapshotter: snapshotter.into(),
            platform: Arc::new(Target::host()),
            calls: Arc::default(),
        }
    }

    /// Returns a clone whose calls are counted on their own.
    pub(crate) fn counted(&self) -> Self {
        Self { calls: Arc::default(), ..self.clone() }
    }

    /// Returns the number of calls since [`Self::counted`].
    pub(crate) fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Returns a client of the same daemon and namespace, with another snapshotter.
    pub(crate) fn with_snapshotter(&self, snapshotter: &str) -> Self {
        Self { snapshotter: snapshotter.into(), ..self.clone() }
    }

    /// Returns a client of the same daemon and namespace, for images of another platform.
    pub(crate) fn with_platform(&self, platform: Target) -> Self {
        Self { platform: Arc::new(platform), ..self.clone() }
    }

    /// Asks for the daemon's version, such as `1.6.20`.
    ///
    /// # Errors
    /// Names the socket if nobody answers there.
    pub(crate) async fn version(&self) -> Result<String, Error> {
        let mut client = VersionClient::new(self.channel());
        let request = self.request(())?;
        let answer = self.call("ask for the version", PING, client.version(request)).await?;
        Ok(plain_version(&answer.version).to_owned())
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    pub(crate) fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    fn platform(&self) -> &Target {
        &self.platform
    }

    /// Returns the channel, made at the first call, because it needs the runtime that it will live on.
    fn channel(&self) -> Channel {
        self.shared.channel.get_or_init(|| lazy_channel(&self.shared.socket)).clone()
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", header("namespace", self.namespace())?);
        Ok(request)
    }

    /// Builds a request whose new content, snapshots and records the lease keeps.
    fn leased_request<T>(&self, message: T, lease: &str) -> Result<Request<T>, Error> {
        let mut request = self.request(message)?;
        request.metadata_mut().insert("containerd-lease", header("lease", lease)?);
        Ok(request)
    }

    async fn call<T>(
        &self,
        doing: &str,
        deadline: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.within(doing, deadline, answer).await.map(Response::into_inner)
    }

    /// Makes a call like [`Self::call`] that may take long where there is much to do. A hung daemon is told from a busy
    /// one by a call for the version now and then, which has to be answered.
    async fn call_while_responsive<T>(
        &self,
        doing: &str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        // Futures of calls are large, and callers hold several.
        let mut answer = Box::pin(answer);
        loop {
            match tokio::time::timeout(QUICK, answer.as_mut()).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => return Err(Error::answered(doing, &self.shared.socket, &status)),
                Err(_) => {}
            }
            let after = begun.elapsed();
            if after >= COPIES || Box::pin(self.version()).await.is_err() {
                let socket = self.shared.socket.clone();
                return Err(Error::TimedOut { doing: doing.to_owned(), socket, after });
            }
            tracing::info!(seconds = after.as_secs(), "{doing}: containerd is still working on it");
        }
    }

    /// Awaits a part of a call, such as the next message of a stream, with a deadline.
    async fn within<T>(
        &self,
        doing: &str,
        deadline: Duration,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(Error::answered(doing, &self.shared.socket, &status)),
            Err(_) => {
                let socket = self.shared.socket.clone();
                Err(Error::TimedOut { doing: doing.to_owned(), socket, after: deadline })
            }
        }
    }
}

/// Strips the suffix that distributions append to a version, which can't be compared.
fn plain_version(version: &str) -> &str {
    let version = version.trim_start_matches('v');
    version.find(['~', '+']).map_or(version, |mark| &version[..mark])
}

fn header(what: &'static str, value: &str) -> Result<MetadataValue<Ascii>, Error> {
    MetadataValue::try_from(value).map_err(|_| Error::Refused {
        doing: format!("name the {what} {value:?}"),
        reason: "it can't be sent in a header".to_owned(),
    })
}

fn lazy_channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is never looked at: the connector knows the socket.
    Endpoint::from_static("http://containerd").connect_timeout(PING).connect_with_connector_lazy(connector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_can_be_compared() {
        for (version, plain) in
            [("1.6.20~ds1", "1.6.20"), ("v2.1.0-rc.1", "2.1.0-rc.1"), ("1.7.2+unknown", "1.7.2")]
        {
            assert_eq!(plain_version(version), plain);
        }
    }

    #[test]
    fn making_a_client_needs_no_runtime() {
        let containerd =
            Containerd::new(PathBuf::from("/nowhere.sock"), "nomad", "overlayfs", ImageSettings::default());
        assert_eq!((containerd.namespace(), containerd.snapshotter()), ("nomad", "overlayfs"));
    }

    #[tokio::test]
    async fn an_absent_daemon_is_transient_and_named() {
        let containerd =
            Containerd::new(PathBuf::from("/nowhere.sock"), "nomad", "overlayfs", ImageSettings::default());
        let error = containerd.version().await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert!(error.to_string().contains("/nowhere.sock"), "{error}");
    }

    #[tokio::test]
    async fn a_daemon_that_comes_later_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("late.sock");
        let containerd = Containerd::new(socket.clone(), "nomad", "overlayfs", ImageSettings::default());
        assert!(containerd.version().await.is_err());
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let accepted = listener.accept();
        let call = containerd.version();
        tokio::select! {
            accepted = accepted => assert!(accepted.is_ok()),
            _ = call => panic!("nobody answered, yet there is an answer"),
        }
    }

    #[tokio::test]
    async fn a_namespace_that_no_header_can_carry_is_refused() {
        let containerd =
            Containerd::new(PathBuf::from("/nowhere.sock"), "no\nmad", "overlayfs", ImageSettings::default());
        assert!(matches!(containerd.version().await, Err(Error::Refused { .. })));
    }
}
