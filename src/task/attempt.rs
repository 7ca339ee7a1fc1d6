//! An attempt of a task, and the file in its bundle that identifies it.

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::shim::{self, Bundle};

/// Name of the file in a bundle that identifies its attempt.
pub(super) const FILE: &str = "task";
/// Name of the file in a bundle that has the container's specification.
const CONFIG: &str = "config.json";

/// An attempt: the allocation and task that a bundle belongs to, and the cgroup of its processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub(super) alloc_id: String,
    pub(super) task: String,
    /// Path of the cgroup below the root of each hierarchy.
    pub(super) cgroup: PathBuf,
}

impl Attempt {
    /// Writes the attempt into its bundle, whole or not at all.
    ///
    /// # Errors
    /// Names the file that can't be written.
    pub(super) fn write(&self, bundle: &Bundle) -> Result<()> {
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::failed(error).context("record the owner of the container"))?;
        Ok(bundle.write(FILE, &json)?)
    }

    /// Reads the attempt from its bundle. Returns `None` where the bundle doesn't name one, as before its container is
    /// made.
    ///
    /// # Errors
    /// When the bundle's files can't be read, such as for want of descriptors.
    pub(super) fn read(bundle: &Bundle) -> std::result::Result<Option<Self>, shim::Error> {
        if let Some(own) = bundle.read_json(FILE)? {
            return Ok(Some(own));
        }
        let spec: Option<Spec> = bundle.read_json(CONFIG)?;
        let cgroup = spec.and_then(|spec| spec.linux().as_ref()?.cgroups_path().clone());
        Ok(cgroup.map(|cgroup| Self { alloc_id: String::new(), task: String::new(), cgroup }))
    }

    /// Removes the attempt from its bundle once none of its processes runs: its cgroup is another attempt's alone from
    /// then on.
    ///
    /// # Errors
    /// Names the file that can't be removed.
    pub(super) fn forget(bundle: &Bundle) -> Result<()> {
        Ok(bundle.remove_file(FILE)?)
    }

    /// Returns whether both are attempts of one task: by its name, or by its cgroup where one of them has no name.
    pub(super) fn is_of_same_task(&self, other: &Self) -> bool {
        if self.alloc_id.is_empty() || other.alloc_id.is_empty() {
            return self.cgroup == other.cgroup;
        }
        self.alloc_id == other.alloc_id && self.task == other.task
    }

    /// Returns whether the cgroup of one attempt may have processes of the other.
    pub(super) fn may_share_cgroup(&self, other: &Self) -> bool {
        self.is_of_same_task(other) || self.cgroup == other.cgroup
    }
}
