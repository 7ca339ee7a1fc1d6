//! The objects by which the daemon, and a person with `ctr`, knows a container: its record, and the lease that keeps
//! its snapshot from the garbage collector.
//!
//! A record has no SnapshotKey on purpose: `ctr c rm` would remove the snapshot of a running container with it. A label
//! refers to the snapshot instead.
//! Source of the facts: containerd `metadata/{containers,leases,gc}.go`, `filters` @ v1.6.20.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateRequest, DeleteContainerRequest, DeleteRequest,
    GetContainerRequest, ListRequest, container,
};
use tonic::transport::Channel;

use super::{Containerd, Error, MESSAGE_LIMIT_BYTES, QUICK};

/// Timeout of deleting a lease: a synchronous deletion waits for a whole run of the garbage collector.
const COLLECTS_GARBAGE: Duration = Duration::from_secs(60);

/// The spec of each record: the daemon takes no record without one, and never reads it. The real one would let another
/// client start a second container in the task's own cgroup, and kill the task with it; this one can't be started.
const EMPTY_SPEC: &str = r#"{"ociVersion":"1.0.2"}"#;
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The daemon's limit for the key of a label and its value together.
const LABEL_LIMIT_BYTES: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub id: String,
    pub labels: HashMap<String, String>,
}

/// A container's record for the daemon. The container's snapshot has the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub id: String,
    pub image: String,
    pub runtime: String,
    pub labels: HashMap<String, String>,
    pub lease: String,
}

impl Containerd {
    /// Creates a lease.
    ///
    /// # Errors
    /// That it already exists is an error: a lease belongs to one task.
    pub(crate) async fn create_lease(&self, id: &str, labels: HashMap<String, String>) -> Result<(), Error> {
        let request = self.request(CreateRequest { id: id.to_owned(), labels })?;
        let doing = format!("create lease {id}");
        self.call(&doing, QUICK, self.lease_client().create(request)).await.map(drop)
    }

    /// Deletes a lease; the daemon collects later what only the lease kept. A lease that is gone already is a success.
    ///
    /// # Errors
    /// Names the lease.
    pub(crate) async fn delete_lease(&self, id: &str) -> Result<(), Error> {
        self.end_lease(id, false).await
    }

    pub(super) async fn end_lease(&self, id: &str, sync: bool) -> Result<(), Error> {
        let request = self.request(DeleteRequest { id: id.to_owned(), sync })?;
        let doing = format!("delete lease {id}");
        match self.call(&doing, COLLECTS_GARBAGE, self.lease_client().delete(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Lists the leases with a label of this value.
    ///
    /// # Errors
    /// Names the label.
    pub(crate) async fn leases(&self, label: &str, value: &str) -> Result<Vec<Lease>, Error> {
        self.leases_that(format!("labels.{}=={}", quoted(label), quoted(value))).await
    }

    /// Lists the leases with a label, whatever its value.
    pub(super) async fn leases_with(&self, label: &str) -> Result<Vec<Lease>, Error> {
        self.leases_that(format!("labels.{}", quoted(label))).await
    }

    async fn leases_that(&self, filter: String) -> Result<Vec<Lease>, Error> {
        let doing = format!("list leases with {filter}");
        let request = self.request(ListRequest { filters: vec![filter] })?;
        let listed = self.call(&doing, QUICK, self.lease_client().list(request)).await?;
        Ok(listed.leases.into_iter().map(|lease| Lease { id: lease.id, labels: lease.labels }).collect())
    }

    /// Creates the record of a container.
    ///
    /// # Errors
    /// That it already exists is an error, which [`Error::is_already_exists`] tells.
    pub(crate) async fn create_record(&self, record: Record) -> Result<(), Error> {
        let Record { id, image, runtime, labels, lease } = record;
        let mut labels: HashMap<_, _> = labels.into_iter().map(fitting).collect();
        labels.insert(format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter()), id.clone());
        let doing = format!("create container record {id}");
        let container = Container {
            id,
            labels,
            image,
            runtime: Some(container::Runtime { name: runtime, options: None }),
            spec: Some(prost_types::Any { type_url: SPEC_TYPE.to_owned(), value: EMPTY_SPEC.into() }),
            snapshotter: self.snapshotter().to_owned(),
            ..Container::default()
        };
        let request = self.leased_request(CreateContainerRequest { container: Some(container) }, &lease)?;
        self.call(&doing, QUICK, self.containers().create(request)).await.map(drop)
    }

    /// Returns the labels of a record; empty where there is no such record.
    ///
    /// # Errors
    /// Names the record.
    pub(crate) async fn labels(&self, id: &str) -> Result<HashMap<String, String>, Error> {
        let request = self.request(GetContainerRequest { id: id.to_owned() })?;
        let doing = format!("read container record {id}");
        match self.call(&doing, QUICK, self.containers().get(request)).await {
            Ok(answer) => Ok(answer.container.unwrap_or_default().labels),
            Err(error) if error.is_not_found() => Ok(HashMap::new()),
            Err(error) => Err(error),
        }
    }

    /// Deletes the record of a container. One that is gone already is a success.
    ///
    /// # Errors
    /// Names the record.
    pub(crate) async fn delete_record(&self, id: &str) -> Result<(), Error> {
        let request = self.request(DeleteContainerRequest { id: id.to_owned() })?;
        let doing = format!("delete container record {id}");
        match self.call(&doing, QUICK, self.containers().delete(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn lease_client(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
    }

    pub(super) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
    }
}

/// Cuts the value of a label to the daemon's limit, which a job's name, for instance, may exceed.
fn fitting((key, mut value): (String, String)) -> (String, String) {
    value.truncate(value.floor_char_boundary(LABEL_LIMIT_BYTES.saturating_sub(key.len())));
    (key, value)
}

/// Quotes a string for the daemon's filters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_cut_to_the_daemons_limit() {
        let cut = |value: String| fitting(("nomad/job".to_owned(), value)).1;
        assert_eq!(cut("web".to_owned()), "web");
        let value = cut("ü".repeat(4000));
        assert_eq!(("nomad/job".len() + value.len(), value.chars().next()), (4095, Some('ü')));
        assert_eq!(fitting(("k".repeat(5000), "v".to_owned())).1, "");
    }

    #[test]
    fn filters_are_quoted() {
        assert_eq!(quoted(r#"a"b\c"#), r#""a\"b\\c""#);
    }
}
