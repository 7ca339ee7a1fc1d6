//! Caches the form of input that each shim's binary has taken at its `start`. The key is the file, not the path: an
//! upgrade replaces a shim under a running plugin.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use shim_protos::StartInput;

/// Identity of a file and of its content: differs for another file, and after a write to the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    /// Time of the file's last change (ctime), in seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileId {
    /// Returns the identity of the file at a path, links followed. `None` if it can't be looked at.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = path.metadata().ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Self { device: found.dev(), inode: found.ino(), changed })
    }
}

/// Cache of the forms of input that binaries have taken so far. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct StartInputs {
    accepted: Arc<Mutex<HashMap<FileId, StartInput>>>,
}

impl StartInputs {
    pub(super) fn of(&self, binary: Option<FileId>) -> Option<StartInput> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).get(&binary?).copied()
    }

    pub(super) fn remember(&self, binary: Option<FileId>, form: StartInput) {
        if let Some(binary) = binary {
            self.accepted.lock().unwrap_or_else(PoisonError::into_inner).insert(binary, form);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_binary_is_unknown() {
        let directory = tempfile::tempdir().unwrap();
        let (shim, new) = (directory.path().join("shim"), directory.path().join("new"));
        let inputs = StartInputs::default();
        assert_eq!(FileId::of(&shim), None);
        std::fs::write(&shim, "1").unwrap();
        inputs.remember(FileId::of(&shim), StartInput::Params);
        assert_eq!(inputs.of(FileId::of(&shim)), Some(StartInput::Params));
        std::fs::write(&new, "2").unwrap();
        std::fs::rename(&new, &shim).unwrap();
        assert_eq!(inputs.of(FileId::of(&shim)), None);
    }
}
