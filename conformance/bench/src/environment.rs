//! The environment of a setup's containers: a containerd, private or given, with an image in a namespace of ours, and
//! snapshots of that image under a lease. Knows nothing of tasks.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use containerd_client::services::v1 as pb;
use containerd_client::types::Mount;
use harness::fixture::containerd::NAMESPACE;
use harness::fixture::process::output;
use harness::fixture::{Containerd, images};
use harness::leaks::sweep;
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

/// Name of the image. The registry's domain doesn't exist, so that the image is never pulled from the network.
pub(crate) const IMAGE: &str = "bench.invalid/busybox:latest";
const SNAPSHOTTER: &str = "overlayfs";
/// Timeout of a single call.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Environment {
    pub(crate) setup: Setup,
    /// The containerd namespace of the setup's containers, images and leases.
    namespace: String,
    pub(crate) channel: Channel,
    /// Root directory of all files of the setup.
    directory: PathBuf,
    /// Key of the snapshot of the image's layer, the parent of all container snapshots.
    parent: String,
    socket: PathBuf,
    /// The private containerd, which stops when it is dropped. `None` if the setup uses a running one.
    private: Option<Containerd>,
    tells_events: AtomicBool,
    /// The start input that the setup's shim expects. Set once the shim has been asked for its version.
    pub(crate) start_input: OnceCell<StartInput>,
}

impl Environment {
    /// Starts containerd, unless the setup names a running one, and imports the image.
    ///
    /// # Errors
    /// Names the part that didn't start.
    pub(crate) fn start(runtime: &Runtime, directory: PathBuf, setup: Setup) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        let (private, socket) = match &setup.socket {
            None => {
                let private = Containerd::start_in(&directory.join("c"), setup.programs.clone())?;
                let socket = private.socket();
                (Some(private), socket)
            }
            Some(socket) => (None, socket.clone()),
        };
        // Several setups may share a containerd that isn't ours.
        let of_setup = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let namespace = format!("{}-{of_setup}", name());
        let channel = runtime
            .block_on(containerd_client::connect(&socket))
            .with_context(|| format!("connect to {}", socket.display()))?;
        let parent = String::new();
        let tells_events = AtomicBool::new(false);
        let start_input = OnceCell::new();
        let mut environment =
            Self { setup, namespace, channel, directory, parent, socket, private, tells_events, start_input };
        environment.parent = environment.import(&environment.namespace)?;
        runtime.block_on(environment.lease())?;
        Ok(environment)
    }

    /// Imports the image into a namespace, and returns the key of its snapshot.
    ///
    /// # Errors
    /// Carries the output of `ctr`.
    pub(crate) fn import(&self, namespace: &str) -> Result<String> {
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

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the pid of containerd, if it is a private one.
    pub(crate) fn daemon_pid(&self) -> Option<i32> {
        self.private.as_ref()?.pid().ok()
    }

    /// Returns the address for the events of shims that the benchmark starts itself, if they need one: containerd's
    /// ttrpc socket, which serves events.
    pub(crate) fn events(&self) -> Option<PathBuf> {
        self.tells_events.load(Ordering::Relaxed).then(|| match &self.private {
            Some(private) => private.events_socket(),
            None => self.socket.with_added_extension("ttrpc"),
        })
    }

    pub(crate) fn tell_events(&self) {
        self.tells_events.store(true, Ordering::Relaxed);
    }

    /// Returns the names and pids of the servers that all paths of the setup share. Empty for a containerd that isn't
    /// ours, whose process isn't known.
    pub(crate) fn servers(&self) -> Vec<(&'static str, i32)> {
        self.daemon_pid().map(|pid| ("daemon", pid)).into_iter().collect()
    }

    /// Returns the state directory of OCI runtimes that shims run. Runtimes that the benchmark runs itself have
    /// another one.
    pub(crate) fn runtime_root(&self) -> PathBuf {
        self.directory.join("r")
    }

    /// Returns the path of the control group of a container.
    pub(crate) fn cgroup(id: &str) -> String {
        format!("/{}/{id}", name())
    }

    /// Returns a container id that is unique in this process.
    pub(crate) fn new_id() -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        format!("b{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// Builds a request in the setup's namespace and under its lease, with a timeout of [`LIMIT`].
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.request_without_timeout(message);
        request.set_timeout(LIMIT);
        request
    }

    /// Builds a request as [`Self::request`] does, but without a timeout.
    pub(crate) fn request_without_timeout<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // The namespace consists of characters that are valid in headers.
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

    /// Prepares a snapshot for a container, and returns its mounts.
    ///
    /// # Errors
    /// Carries the daemon's error.
    pub(crate) async fn snapshot(&self, key: &str) -> Result<Vec<Mount>> {
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
    /// Carries the daemon's error.
    pub(crate) async fn remove_snapshot(&self, key: &str) -> Result<()> {
        let remove = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        let answer = SnapshotsClient::new(self.channel.clone()).remove(self.request(remove)).await;
        answer.context("remove a snapshot").map(drop)
    }

    /// Removes the lease and the namespace from a containerd that isn't ours.
    async fn remove_lease(&self) -> Result<()> {
        let id = self.namespace.clone();
        let lease = pb::DeleteRequest { id, sync: true };
        LeasesClient::new(self.channel.clone()).delete(self.request(lease)).await?;
        let name = self.namespace.clone();
        let namespace = pb::DeleteNamespaceRequest { name };
        NamespacesClient::new(self.channel.clone()).delete(self.request(namespace)).await?;
        Ok(())
    }

    /// Cleans up, once nothing runs in the environment any more. A private containerd is ended by the drop.
    ///
    /// # Errors
    /// Names what stays behind in a containerd that isn't ours.
    pub(crate) fn end(self, runtime: &Runtime) -> Result<()> {
        if self.private.is_some() {
            return Ok(());
        }
        for namespace in [&*self.namespace, NAMESPACE] {
            self.ctr(namespace, &["images", "remove", "--sync", IMAGE])?;
        }
        let stays = || format!("{} keeps the namespace {}", self.socket.display(), self.namespace);
        runtime.block_on(self.remove_lease()).with_context(stays)
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        sweep::processes_with(&self.directory, self.daemon_pid());
        sweep::unmount_under(&self.directory);
    }
}

/// Returns the name of this run, which namespaces and control groups are named by.
pub(crate) fn name() -> String {
    format!("bench-{}", std::process::id())
}
