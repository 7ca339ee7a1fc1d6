//! The lock on a state directory, which one plugin holds at a time. A plugin that waits for it announces itself by a
//! lock of its own, so that a plugin that nobody needs any more can give way. Knows nothing of tasks, nor of who is
//! needed.
//!
//! A lock belongs to a file, not to its name. So both the directory and a file in it are locked: removing the file lets
//! nobody else in. If the whole directory is replaced, the new one is not locked; the holder has to check for that.
//!
//! Both locks belong to open files: the kernel releases them when their process ends, however it ends, and the pid of
//! an ended process can't be taken for one that lives.
//!
//! Source of the facts: flock(2).

#![expect(
    clippy::disallowed_methods,
    reason = "opens what lies in the state directory, which only root can reach"
)]

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::mem::ManuallyDrop;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use serde::{Deserialize, Serialize};

use crate::sys::os_error::is_transient;

const LOCK: &str = "lock";
const SUCCESSOR: &str = "successor";
/// Maximum length of the holder's record, which is far shorter.
const HOLDER_LIMIT_BYTES: u64 = 1024;

/// The plugin that has a state directory, as recorded in the lock's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pid: u32,
    /// Start time in seconds since 1970.
    started_at: u64,
}

/// The reason that a state directory can't be locked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateLockError {
    #[error(
        "{} has the state directory {directory}: end that plugin, or give this agent a state directory of its own (plugin \
         option state_dir)",
        named(holder.as_ref())
    )]
    Held { directory: PathBuf, holder: Option<Holder> },
    #[error(
        "can't lock the state directory {directory}: its file system has no locks ({error}); put it on a local one, such \
         as /run (plugin option state_dir)"
    )]
    Unsupported { directory: PathBuf, error: io::Error },
    #[error("can't lock the state directory: can't {doing} {path}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

/// The last second of the year 9999.
const LATEST_S: u64 = 253_402_300_799;

fn named(holder: Option<&Holder>) -> String {
    let Some(Holder { pid, started_at }) = holder else { return "another plugin".to_owned() };
    // A later time can't be formatted.
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs((*started_at).min(LATEST_S));
    format!("another plugin (pid {pid}, started {})", humantime::format_rfc3339_seconds(started))
}

impl StateLockError {
    /// Returns true if the directory may be available later, with nothing changed on this host.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Held { .. } => true,
            Self::Unsupported { .. } => false,
            Self::Io { source, .. } => is_transient(source),
        }
    }

    fn held(directory: &Path) -> Self {
        let holder = existing(&directory.join(LOCK)).and_then(|mut file| holder(&mut file));
        Self::Held { directory: directory.to_owned(), holder }
    }

    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// The lock on a state directory, released on drop.
#[derive(Debug)]
pub(crate) struct StateLock {
    path: PathBuf,
    started: SystemTime,
    /// Not locked if its file system supports locks for regular files only.
    directory: File,
    file: File,
}

impl StateLock {
    /// Locks the directory; creates it if it doesn't exist. Blocking: not for an async thread.
    ///
    /// # Errors
    /// Says who has it, or why it can't be locked.
    pub(crate) fn acquire(path: &Path, started: SystemTime) -> Result<Self, StateLockError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path).map_err(StateLockError::io("create", path))?;
        let directory = File::open(path).map_err(StateLockError::io("open", path))?;
        match directory.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(StateLockError::held(path)),
            Err(TryLockError::Error(source)) if !is_unsupported(&source) => {
                return Err(StateLockError::io("lock", path)(source));
            }
            _ => {}
        }
        let file = lock_file(path, started)?;
        let lock = Self { path: path.to_owned(), started, directory, file };
        // The directory, or its file, was removed or replaced before it was locked.
        if lock.is_in_place() { Ok(lock) } else { Err(StateLockError::held(path)) }
    }

    /// Keeps the lock until the process has ended, so that nothing that still runs at its end meets another plugin's
    /// work.
    pub(crate) fn keep_until_exit(self) -> LockUntilExit {
        LockUntilExit(ManuallyDrop::new(self))
    }

    fn is_in_place(&self) -> bool {
        is_at(&self.directory, fs::metadata(&self.path)) && self.has_its_file()
    }

    fn has_its_file(&self) -> bool {
        is_at(&self.file, fs::symlink_metadata(self.path.join(LOCK)))
    }
}

/// A lock on a state directory that is held until the process ends.
#[derive(Debug)]
pub(crate) struct LockUntilExit(ManuallyDrop<StateLock>);

impl LockUntilExit {
    /// Checks whether somebody has removed or replaced the directory, or the lock's file, and if so locks what is there
    /// now. Returns whether that was so. Blocking.
    ///
    /// # Errors
    /// Says who was faster, or why it can't be locked again now.
    pub(crate) fn keep_up(&mut self) -> Result<bool, StateLockError> {
        let lock = &mut *self.0;
        if lock.is_in_place() {
            return Ok(false);
        }
        if is_at(&lock.directory, fs::metadata(&lock.path)) {
            lock.file = lock_file(&lock.path, lock.started)?;
        } else {
            *lock = StateLock::acquire(&lock.path, lock.started)?;
        }
        Ok(true)
    }
}

/// Locks the file in a state directory, and records the holder in it.
fn lock_file(directory: &Path, started: SystemTime) -> Result<File, StateLockError> {
    let path = directory.join(LOCK);
    let mut file = open(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StateLockError::held(directory)),
        Err(TryLockError::Error(error)) if is_unsupported(&error) => {
            return Err(StateLockError::Unsupported { directory: directory.to_owned(), error });
        }
        Err(TryLockError::Error(source)) => return Err(StateLockError::io("lock", &path)(source)),
    }
    // The record is only for messages of others; if the directory is full, they do without.
    if let Err(error) = write_holder(&mut file, started) {
        tracing::warn!(path = %path.display(), %error, "can't record which process has locked the state directory");
    }
    Ok(file)
}

/// Returns true if an open file is the one that was found at a path.
fn is_at(file: &File, found: io::Result<fs::Metadata>) -> bool {
    let number = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().is_ok_and(|own| found.is_ok_and(|there| number(own) == number(there)))
}

/// The announcement of a plugin that waits to take over a state directory, withdrawn on drop.
#[derive(Debug)]
pub(crate) struct Successor {
    file: File,
    path: PathBuf,
}

impl Successor {
    /// Announces that this process waits. `None` if another one does already, or the announcement fails. Blocking.
    pub(crate) fn announce(directory: &Path) -> Option<Self> {
        let path = directory.join(SUCCESSOR);
        let file = open(&path).ok()?;
        file.try_lock().ok()?;
        let successor = Self { file, path };
        successor.is_known().then_some(successor)
    }

    /// Returns true if others can see the announcement: another process's file may have been removed right when this
    /// one was locked. Blocking.
    pub(crate) fn is_known(&self) -> bool {
        is_at(&self.file, fs::symlink_metadata(&self.path))
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.is_known() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns true if a living process waits for the directory. Blocking.
pub(crate) fn has_successor(directory: &Path) -> bool {
    let file = existing(&directory.join(SUCCESSOR));
    file.is_some_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    options
}

fn existing(path: &Path) -> Option<File> {
    options().open(path).ok()
}

fn open(path: &Path) -> Result<File, StateLockError> {
    let file = options().create(true).truncate(false).open(path).map_err(StateLockError::io("open", path))?;
    if file.metadata().is_ok_and(|found| found.is_file()) {
        Ok(file)
    } else {
        Err(StateLockError::io("open", path)(io::Error::other("it is not a regular file; remove it")))
    }
}

/// Returns true if the file system doesn't support locks, like some network file systems, or lacks the daemon that
/// keeps them.
fn is_unsupported(error: &io::Error) -> bool {
    let unsupported =
        [Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EINVAL, Errno::ENOLCK, Errno::ENOTTY, Errno::EBADF];
    error.kind() == ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|code| unsupported.contains(&Errno::from_raw(code)))
}

fn write_holder(file: &mut File, started: SystemTime) -> io::Result<()> {
    let started_at = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let holder = Holder { pid: std::process::id(), started_at };
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&serde_json::to_vec(&holder)?)
}

/// Returns the lock's holder, if its file has a valid record.
fn holder(file: &mut File) -> Option<Holder> {
    let mut text = Vec::new();
    file.take(HOLDER_LIMIT_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire(directory: &Path) -> Result<StateLock, StateLockError> {
        StateLock::acquire(directory, SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
    }

    #[test]
    fn a_state_directory_has_one_holder_who_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("a/state");
        let first = acquire(&directory).unwrap();
        let error = acquire(&directory).unwrap_err();
        assert!(error.is_transient());
        let text = error.to_string();
        for word in [&directory.display().to_string(), "2023-11-14T22:13:20Z", "state_dir"] {
            assert!(text.contains(word), "{text}");
        }
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        acquire(&parent.path().join("another")).unwrap();
        drop(first);
        // The file may have any content.
        fs::write(directory.join(LOCK), "half").unwrap();
        let _second = acquire(&directory).unwrap();
        fs::write(directory.join(LOCK), "half").unwrap();
        let text = acquire(&directory).unwrap_err().to_string();
        assert!(text.starts_with("another plugin has the state directory"), "{text}");
    }

    #[test]
    fn a_directory_that_can_not_be_locked_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = acquire(&file).unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("file"), "{error}");
        let state = directory.path().join("state");
        fs::create_dir(&state).unwrap();
        std::os::unix::fs::symlink(&file, state.join(LOCK)).unwrap();
        let error = acquire(&state).unwrap_err().to_string();
        assert!(error.contains("state/lock"), "{error}");
    }

    #[test]
    fn a_lock_outlives_its_file_and_its_directory() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        let mut held = acquire(&directory).unwrap().keep_until_exit();
        assert!(!held.keep_up().unwrap());
        fs::remove_file(directory.join(LOCK)).unwrap();
        let error = acquire(&directory).unwrap_err();
        assert!(matches!(error, StateLockError::Held { .. }), "{error}");
        assert!(held.keep_up().unwrap() && !held.keep_up().unwrap());
        let error = acquire(&directory).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        fs::remove_dir_all(&directory).unwrap();
        assert!(held.keep_up().unwrap() && !held.keep_up().unwrap());
        assert!(acquire(&directory).is_err());
        // Another process was faster.
        fs::rename(&directory, parent.path().join("elsewhere")).unwrap();
        let other = acquire(&directory).unwrap();
        assert!(matches!(held.keep_up().unwrap_err(), StateLockError::Held { .. }));
        drop(other);
        assert!(held.keep_up().unwrap());
    }

    #[test]
    fn a_successor_is_known_for_as_long_as_it_waits() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        assert!(!has_successor(directory));
        let first = Successor::announce(directory).unwrap();
        assert!(has_successor(directory) && first.is_known());
        assert!(Successor::announce(directory).is_none());
        fs::remove_file(directory.join(SUCCESSOR)).unwrap();
        assert!(!first.is_known());
        let second = Successor::announce(directory).unwrap();
        drop(first);
        assert!(has_successor(directory), "it took another one's word back");
        drop(second);
        assert!(!has_successor(directory) && !directory.join(SUCCESSOR).exists());
        // The process was killed, so nobody holds the lock.
        fs::write(directory.join(SUCCESSOR), "").unwrap();
        assert!(!has_successor(directory));
    }
}
