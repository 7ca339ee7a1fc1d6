//! Snapshots: the writable layer of a task, and the steps by which an image's layers become snapshots.
//!
//! Source of the facts: containerd `api/services/snapshots/v1`, `metadata/snapshot.go` @ v1.6.20.

use std::collections::HashMap;

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::Mount;
use tonic::transport::Channel;

use super::{Containerd, Error, QUICK};

impl Containerd {
    /// Makes the writable snapshot of a task on top of an image, kept by the lease.
    ///
    /// # Errors
    /// Names the key; not found is the parent, whose image was removed a moment ago.
    pub(crate) async fn prepare_snapshot(
        &self,
        key: &str,
        parent_chain_id: &str,
        lease: &str,
    ) -> Result<Vec<Mount>, Error> {
        self.prepare(key, parent_chain_id, HashMap::new(), lease).await
    }

    /// Gone already is success.
    ///
    /// # Errors
    /// Names the key; one that is still mounted may be refused by its snapshotter.
    pub(crate) async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: key.to_owned(),
        })?;
        let doing = format!("remove snapshot {key}");
        match self.call(&doing, QUICK, self.snapshots().remove(request)).await {
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
        Ok(self.call(&doing, QUICK, self.snapshots().prepare(request)).await?.mounts)
    }

    /// Gives an active snapshot its final name; its contents never change again.
    pub(super) async fn commit_snapshot(&self, key: &str, name: &str, lease: &str) -> Result<(), Error> {
        let message = CommitSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: HashMap::new(),
        };
        let request = self.leased_request(message, lease)?;
        let doing = format!("commit snapshot {key}");
        self.call(&doing, QUICK, self.snapshots().commit(request)).await
    }

    pub(super) async fn snapshot_exists(&self, key: &str) -> Result<bool, Error> {
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

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel())
    }
}
