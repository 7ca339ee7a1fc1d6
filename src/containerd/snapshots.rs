//! Snapshots: the writable layer of a task, the volumes of its image, and the steps by which an image's layers become
//! snapshots.
//!
//! Source of the facts: containerd `api/services/snapshots/v1`, `metadata/snapshot.go` @ v1.6.20.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest,
};
use containerd_client::services::v1::{ListResourcesRequest, PluginsRequest};
use containerd_client::types::Mount;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{Containerd, Error, Labels, QUICK};

/// Timeout of calls in which the daemon looks at each file of a snapshot.
const COUNTS_FILES: Duration = Duration::from_secs(60);
/// Type of the daemon's snapshotter plugins, in its introspection.
const PLUGIN_TYPE: &str = "io.containerd.snapshotter.v1";
/// Prefix of the type of a snapshot in a lease; the snapshotter's name follows.
const RESOURCE: &str = "snapshots/";

/// Cache of the snapshotters that the daemon has, and whether each is remote, that is, a program of its own. Should the
/// daemon lose one, its own errors say so.
#[derive(Default)]
pub(super) struct Seen {
    are_remote: Mutex<HashMap<String, bool>>,
}

/// Returns the key of the snapshot for the volumes of a task's image.
fn volumes_key(id: &str) -> String {
    format!("{id}-volumes")
}

impl Containerd {
    /// Checks that the daemon has our snapshotter, and that it works. A success is cached.
    ///
    /// # Errors
    /// Names our snapshotter, and those that there are.
    pub(crate) async fn check_snapshotter(&self) -> Result<(), Error> {
        self.has_remote_snapshotter().await.map(drop)
    }

    /// Returns whether our snapshotter is a program that the daemon connects to. Such a remote snapshotter may have
    /// layers without a download; the daemon's built-in ones never do.
    ///
    /// # Errors
    /// As [`Self::check_snapshotter`].
    pub(super) async fn has_remote_snapshotter(&self) -> Result<bool, Error> {
        let wanted = self.snapshotter();
        let seen = &self.shared.snapshotters.are_remote;
        if let Some(is_remote) = seen.lock().unwrap_or_else(PoisonError::into_inner).get(wanted) {
            return Ok(*is_remote);
        }
        let doing = format!("use snapshotter {wanted}");
        let request = self.request(PluginsRequest { filters: vec![format!("type=={PLUGIN_TYPE}")] })?;
        let mut client = IntrospectionClient::new(self.channel());
        let plugins = self.call(&doing, QUICK, client.plugins(request)).await?.plugins;
        let works = plugins.into_iter().filter(|plugin| plugin.init_err.is_none());
        let there: BTreeMap<_, _> =
            works.map(|plugin| (plugin.id, plugin.exports.contains_key("address"))).collect();
        if let Some(is_remote) = there.get(wanted) {
            seen.lock().unwrap_or_else(PoisonError::into_inner).insert(wanted.to_owned(), *is_remote);
            return Ok(*is_remote);
        }
        let there: Vec<_> = there.into_keys().collect();
        let reason = format!(
            "containerd has no working snapshotter of that name; the option snapshotter can be {}",
            there.join(", ")
        );
        Err(Error::Refused { doing, reason })
    }

    /// Removes the snapshots of a task, its own and that of its image's volumes, from the snapshotter that made them,
    /// which the lease with the same id tells. A snapshot that is gone already is a success.
    ///
    /// # Errors
    /// Names the key; a snapshotter may refuse to remove a snapshot that is still mounted.
    pub(crate) async fn remove_snapshots_of(&self, id: &str) -> Result<(), Error> {
        self.remove_kept(id, &[&volumes_key(id), id]).await
    }

    /// Removes the snapshot of the volumes of a task's image, as [`Self::remove_snapshots_of`] does.
    ///
    /// # Errors
    /// As [`Self::remove_snapshots_of`].
    pub(crate) async fn remove_volumes_of(&self, id: &str) -> Result<(), Error> {
        self.remove_kept(id, &[&volumes_key(id)]).await
    }

    /// Removes those snapshots of a lease that have these keys.
    async fn remove_kept(&self, id: &str, keys: &[&str]) -> Result<(), Error> {
        let request = self.request(ListResourcesRequest { id: id.to_owned() })?;
        let doing = format!("ask what lease {id} keeps");
        let mut leases = LeasesClient::new(self.channel());
        let kept = match self.call(&doing, QUICK, leases.list_resources(request)).await {
            Ok(answer) => answer.resources,
            // Another client removed the lease. What nothing refers to is garbage-collected; ours is removed at once.
            Err(error) if error.is_not_found() => {
                if self.check_snapshotter().await.is_ok() {
                    for key in keys {
                        self.remove_snapshot(key).await?;
                    }
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for resource in kept.iter().filter(|resource| keys.contains(&resource.id.as_str())) {
            if let Some(snapshotter) = resource.r#type.strip_prefix(RESOURCE) {
                self.with_snapshotter(snapshotter).remove_snapshot(&resource.id).await?;
            }
        }
        Ok(())
    }

    /// Makes the writable snapshot of a task on top of an image, kept by the lease. Waits for a snapshotter that copies
    /// all files for it, unless `given_up`: a snapshot that the daemon makes then, it collects once the lease is gone.
    ///
    /// # Errors
    /// Names the key; not found if the parent is missing, whose image was removed a moment ago.
    pub(crate) async fn prepare_snapshot(
        &self,
        key: &str,
        parent_chain_id: &str,
        lease: &str,
        given_up: &CancellationToken,
    ) -> Result<Vec<Mount>, Error> {
        tokio::select! {
            made = self.prepare(key, parent_chain_id, HashMap::new(), lease) => made,
            () = given_up.cancelled() => {
                let doing = format!("prepare snapshot {key}");
                Err(Error::Refused { doing, reason: "it was cancelled".to_owned() })
            }
        }
    }

    /// Makes the empty snapshot for the volumes of a task's image, kept by the task's lease, as
    /// [`Self::prepare_snapshot`] does.
    ///
    /// # Errors
    /// Names the key.
    pub(crate) async fn prepare_volumes(
        &self,
        id: &str,
        given_up: &CancellationToken,
    ) -> Result<Vec<Mount>, Error> {
        self.prepare_snapshot(&volumes_key(id), "", id, given_up).await
    }

    /// Removes a snapshot. One that is gone already is a success.
    ///
    /// # Errors
    /// Names the key; a snapshotter may refuse to remove a snapshot that is still mounted.
    pub(super) async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: key.to_owned(),
        })?;
        let doing = format!("remove snapshot {key}");
        match self.call_while_responsive(&doing, self.snapshots().remove(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
        lease: &str,
    ) -> Result<Vec<Mount>, Error> {
        let message = PrepareSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        let request = self.leased_request(message, lease)?;
        let doing = format!("prepare snapshot {key}");
        Ok(self.call_while_responsive(&doing, self.snapshots().prepare(request)).await?.mounts)
    }

    /// Commits an active snapshot under its final name; its contents never change again.
    pub(super) async fn commit_snapshot(
        &self,
        key: &str,
        name: &str,
        labels: Labels,
        lease: &str,
    ) -> Result<(), Error> {
        let message = CommitSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
        };
        let request = self.leased_request(message, lease)?;
        let doing = format!("commit snapshot {key}");
        self.call_while_responsive(&doing, self.snapshots().commit(request)).await
    }

    /// Returns whether our snapshotter has a snapshot.
    ///
    /// # Errors
    /// The daemon's.
    pub(crate) async fn snapshot_exists(&self, key: &str) -> Result<bool, Error> {
        let request = self.request(StatSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: key.to_owned(),
        })?;
        let doing = format!("stat snapshot {key}");
        match self.call(&doing, QUICK, self.snapshots().stat(request)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the size of a snapshot on the disk in bytes, without those below it. For an uncommitted snapshot the
    /// daemon counts its files.
    pub(super) async fn snapshot_size(&self, key: &str) -> Result<u64, Error> {
        let request =
            self.request(UsageRequest { snapshotter: self.snapshotter().to_owned(), key: key.to_owned() })?;
        let doing = format!("ask for the size of snapshot {key}");
        let usage = self.call(&doing, COUNTS_FILES, self.snapshots().usage(request)).await?;
        Ok(u64::try_from(usage.size).unwrap_or(0))
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel())
    }
}
