//! The record of an attachment on the disk, so that it can be undone even if this process dies: the network as it was,
//! what was asked of it, and what its plugins have answered so far.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what lies in the state directory, which only root can reach"
)]

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ValidAttachment;
use super::attachment::RuntimeConf;
use super::error::Error;
use super::network::Network;
use crate::sys::blocking;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub phase: Phase,
    pub network: Network,
    #[serde(rename = "attached")]
    pub conf: RuntimeConf,
    /// Directories of the plugins then; the operator may have moved them since.
    pub directories: Vec<PathBuf>,
    /// Number of plugins that have connected the container, in their order. The next one may have begun.
    #[serde(rename = "answered")]
    pub completed: usize,
    /// Result of the last plugin that has connected the container.
    pub result: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// An ADD of the attachment is under way, or was cut off: a plugin may be running.
    Adding,
    Added,
    /// A DEL of the attachment is under way, or was cut off: a plugin may be running.
    Deleting,
}

impl Record {
    /// Returns a record for an attachment whose own is gone, with what is known of it.
    pub(super) fn without_own_record(network: &Network, holder: ValidAttachment) -> Self {
        let ValidAttachment { container_id, if_name } = holder;
        let conf = RuntimeConf { container_id, if_name, ..RuntimeConf::default() };
        Self {
            phase: Phase::Deleting,
            network: network.clone(),
            conf,
            directories: Vec::new(),
            completed: network.plugins.len(),
            result: None,
        }
    }

    /// Reads a record; `None` if there is none.
    pub(super) async fn read(path: &Path) -> Result<Option<Self>, Error> {
        let path = path.to_owned();
        blocking::run(move || {
            let text = match fs::read(&path) {
                Ok(text) => text,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    return Ok(None);
                }
                Err(error) => return Err(Error::io("read", &path)(error)),
            };
            serde_json::from_slice(&text).map(Some).map_err(Error::io("read", &path))
        })
        .await
    }

    /// Replaces the record as a whole, so that a crash leaves the old or the new one.
    pub(super) async fn write(&self, path: &Path) -> Result<(), Error> {
        let (path, new) = (path.to_owned(), path.with_extension("new"));
        let text = serde_json::to_vec(self).map_err(Error::io("write", &path))?;
        blocking::run(move || {
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
            file.and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&new, &path))
            .map_err(Error::io("write", &path))
        })
        .await
    }

    pub(super) async fn remove(path: &Path) -> Result<(), Error> {
        let (path, new) = (path.to_owned(), path.with_extension("new"));
        blocking::run(move || {
            for path in [new, path] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(Error::io("remove", &path)(error));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn records() {
        crate::fuzz::bytes("cni-record", |text| {
            let Ok(record) = serde_json::from_slice::<Record>(text) else { return };
            let stored = serde_json::to_vec(&record).unwrap();
            assert_eq!(serde_json::from_slice::<Record>(&stored).unwrap(), record);
            let _ = (record.network.version(), record.network.programs(), record.network.capabilities());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_record_that_cant_be_read_is_no_absent_one() {
        let directory = tempfile::tempdir().unwrap();
        let read = async |name: &str| Record::read(&directory.path().join(name)).await;
        fs::write(directory.path().join("file"), "{").unwrap();
        assert!(read("absent").await.unwrap().is_none() && read("file/below").await.unwrap().is_none());
        assert!(read("file").await.is_err() && read(".").await.is_err());
    }
}
