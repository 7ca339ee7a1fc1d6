//! Which form of input each shim's binary has taken at its `start`. By file, not by path: an upgrade replaces a shim
//! under a running plugin.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use shim_protos::StartInput;

/// What tells a file from another one, and from what it was before it was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds of its last change.
    changed: (i64, i64),
}

impl FileId {
    /// None where there is no such file.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = path.metadata().ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Self { device: found.dev(), inode: found.ino(), changed })
    }
}

/// The forms that binaries have taken so far; those of one plugin know of each other's.
#[derive(Debug, Clone, Default)]
pub(crate) struct StartInputs {
    taken: Arc<Mutex<HashMap<FileId, StartInput>>>,
}

impl StartInputs {
    pub(super) fn of(&self, binary: Option<FileId>) -> Option<StartInput> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).get(&binary?).copied()
    }

    pub(super) fn remember(&self, binary: Option<FileId>, form: StartInput) {
        if let Some(binary) = binary {
            self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(binary, form);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_binary_is_unknown() {
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
