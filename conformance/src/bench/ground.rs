//! What a setup's containers are made from: a containerd, private or given, with an image in a namespace of ours, and
//! snapshots of it under a lease. Knows nothing of tasks.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use containerd_client::services::v1 as pb;
use containerd_client::types::Mount;
use pb::leases_client::LeasesClient;
use pb::namespaces_client::NamespacesClient;
use pb::snapshots::snapshots_client::SnapshotsClient;
use pb::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use serde_json::json;
use shim_protos::StartInput;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use super::setup::Setup;
use crate::fixture::containerd::NAMESPACE;
use crate::fixture::process::output;
use crate::fixture::{Containerd, images, sweep};

/// Nobody's, so it is never asked for over the network.
pub const IMAGE: &str = "bench.invalid/busybox:latest";
const SNAPSHOTTER: &str = "overlayfs";
/// What any one call may take.
pub const LIMIT: Duration = Duration::from_secs(60);

pub struct Ground {
    pub setup: Setup,
    /// In whose namespace of containerd all is.
    namespace: String,
    pub channel: Channel,
    /// All files of it are below.
    directory: PathBuf,
    /// The image's snapshot.
    parent: String,
    socket: PathBuf,
    /// Stops when it is dropped.
    private: Option<Containerd>,
    tells_events: AtomicBool,
    /// Of the shim at hand, once it was asked.
    pub start_input: OnceCell<StartInput>,
}

impl Ground {
    /// Starts containerd if it is to be a private one, and brings the image.
    ///
    /// # Errors
    /// Says what didn't come up.
    pub fn start(runtime: &Runtime, directory: PathBuf, setup: Setup) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        let (private, socket) = match &setup.socket {
            None => {
                let private = Containerd::start_in(&directory.join("c"), setup.programs.clone())?;
                let socket = private.socket();
                (Some(private), socket)
            }
            Some(socket) => (None, socket.clone()),
        };
        // Several setups may be on one containerd that isn't ours.
        let of_setup = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let namespace = format!("{}-{of_setup}", name());
        let channel = runtime
            .block_on(containerd_client::connect(&socket))
            .with_context(|| format!("connect to {}", socket.display()))?;
        let parent = String::new();
        let tells_events = AtomicBool::new(false);
        let start_input = OnceCell::new();
        let mut ground =
            Self { setup, namespace, channel, directory, parent, socket, private, tells_events, start_input };
        ground.parent = ground.import(&ground.namespace)?;
        runtime.block_on(ground.lease())?;
        Ok(ground)
    }

    /// Brings the image into a namespace, and tells its snapshot.
    ///
    /// # Errors
    /// Carries what `ctr` said.
    pub fn import(&self, namespace: &str) -> Result<String> {
        let image = images::busybox(json!({"Cmd": ["sh"]}))?;
        let archive = self.directory.join("image.tar");
        fs::write(&archive, image.docker_archive(&[IMAGE])?)?;
        self.ctr(
            namespace,
            &["images", "import", "--snapshotter", SNAPSHOTTER, &archive.display().to_string()],
        )?;
        Ok(image.layers.first().context("an image without a layer")?.diff_id.clone())
    }

    fn ctr(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.setup.programs.ctr());
        command.arg("--address").arg(&self.socket).args(["--namespace", namespace]);
        output(command.args(arguments))
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// containerd's process, where it is ours.
    pub fn daemon_pid(&self) -> Option<i32> {
        self.private.as_ref()?.pid().ok()
    }

    /// Where shims that are started here tell their events, if they have to: to containerd, which has a service for it.
    pub fn events(&self) -> Option<PathBuf> {
        self.tells_events.load(Ordering::Relaxed).then(|| match &self.private {
            Some(private) => private.events_socket(),
            None => self.socket.with_added_extension("ttrpc"),
        })
    }

    pub fn tell_events(&self) {
        self.tells_events.store(true, Ordering::Relaxed);
    }

    /// The processes that all of its paths have in common. Of a containerd that isn't ours nothing is known.
    pub fn servers(&self) -> Vec<(&'static str, i32)> {
        self.daemon_pid().map(|pid| ("daemon", pid)).into_iter().collect()
    }

    /// Where runtimes keep their state, those that the harness runs itself apart from those that shims run.
    pub fn runtime_root(&self) -> PathBuf {
        self.directory.join("r")
    }

    /// A control group of a container.
    pub fn cgroup(id: &str) -> String {
        format!("/{}/{id}", name())
    }

    /// An id that no other container of this process has.
    pub fn new_id() -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        format!("b{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// In our namespace, under our lease, and not for ever.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.lasting(message);
        request.set_timeout(LIMIT);
        request
    }

    /// As [`Self::request`], for what may take as long as it likes.
    pub fn lasting<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // Our name is of letters that headers can have.
        if let Ok(name) = MetadataValue::try_from(&self.namespace) {
            request.metadata_mut().insert("containerd-namespace", name.clone());
            request.metadata_mut().insert("containerd-lease", name);
        }
        request
    }

    async fn lease(&self) -> Result<()> {
        let id = self.namespace.clone();
        let lease = pb::CreateRequest { id, labels: HashMap::new() };
        LeasesClient::new(self.channel.clone()).create(self.request(lease)).await.context("make a lease")?;
        Ok(())
    }

    /// A snapshot to run a container on.
    ///
    /// # Errors
    /// Carries the daemon's refusal.
    pub async fn snapshot(&self, key: &str) -> Result<Vec<Mount>> {
        let prepare = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
            parent: self.parent.clone(),
            ..PrepareSnapshotRequest::default()
        };
        let answer = SnapshotsClient::new(self.channel.clone()).prepare(self.request(prepare)).await;
        Ok(answer.context("prepare a snapshot")?.into_inner().mounts)
    }

    /// # Errors
    /// Carries the daemon's refusal.
    pub async fn remove_snapshot(&self, key: &str) -> Result<()> {
        let remove = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        let answer = SnapshotsClient::new(self.channel.clone()).remove(self.request(remove)).await;
        answer.context("remove a snapshot").map(drop)
    }

    /// Leaves a containerd that isn't ours as it was.
    async fn take_back(&self) -> Result<()> {
        let id = self.namespace.clone();
        let lease = pb::DeleteRequest { id, sync: true };
        LeasesClient::new(self.channel.clone()).delete(self.request(lease)).await?;
        let name = self.namespace.clone();
        let namespace = pb::DeleteNamespaceRequest { name };
        NamespacesClient::new(self.channel.clone()).delete(self.request(namespace)).await?;
        Ok(())
    }

    /// Ends it, once nothing runs on it any more.
    ///
    /// # Errors
    /// Says what of it stays behind in a containerd that isn't ours.
    pub fn end(self, runtime: &Runtime) -> Result<()> {
        if self.private.is_some() {
            return Ok(());
        }
        for namespace in [&*self.namespace, NAMESPACE] {
            self.ctr(namespace, &["images", "remove", "--sync", IMAGE])?;
        }
        let stays = || format!("{} keeps the namespace {}", self.socket.display(), self.namespace);
        runtime.block_on(self.take_back()).with_context(stays)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        sweep::processes_with(&self.directory, self.daemon_pid());
        sweep::unmount_under(&self.directory);
    }
}

/// By which all that is ours is known.
pub fn name() -> String {
    format!("bench-{}", std::process::id())
}
