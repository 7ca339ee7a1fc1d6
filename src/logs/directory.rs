//! Access to an allocation's log directory and its files. Tasks may write there, at least those of other drivers in the
//! group, so only a regular file with a single link is ever written, and no symbolic link is followed on the way to it.
//! The checked file is the one that is opened, by its descriptor.
//!
//! Source of the facts: hashicorp/nomad `client/allocdir`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::LogError;
use super::rotation::Series;
use crate::sys::error_chain::Chained;
use crate::sys::host_path::{self, HostPathError};

/// Path of the log directory relative to an allocation's directory.
const LOGS: &str = "alloc/logs";
/// Maximum number of attempts to open or create a file whose name others keep adding and removing.
const MAX_OPEN_ATTEMPTS: usize = 16;

/// An open directory of logs.
pub(super) struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// The entry found under the name of a log file.
pub(super) enum Entry {
    Log(File),
    /// Something that must not be written to, with the reason.
    Unfit(&'static str),
}

impl Directory {
    /// Opens the log directory of an allocation.
    ///
    /// # Errors
    /// If it is missing, or a symbolic link is in its place.
    pub(super) fn open(alloc_dir: &Path) -> Result<Self, LogError> {
        let path = alloc_dir.join(LOGS);
        let why = match host_path::open_directory(alloc_dir, Path::new(LOGS)) {
            Ok(descriptor) => return Ok(Self { descriptor, path }),
            Err(HostPathError::Link { .. }) => "it is a symbolic link".to_owned(),
            Err(HostPathError::Missing(_)) => Errno::ENOENT.desc().to_owned(),
            Err(error) => error.chain().to_string(),
        };
        Err(LogError { doing: "open", path, why })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the indexes of all entries with a name of the series, whatever their type.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub(super) fn indexes(&self, series: &Series) -> Result<Vec<u64>, LogError> {
        let failed = |error: Errno| LogError::new("list", self.path.clone(), &error.into());
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // Opened anew, because duplicates of a descriptor share the read position.
        let mut entries = Dir::openat(&self.descriptor, ".", flags, Mode::empty()).map_err(failed)?;
        let mut indexes = Vec::new();
        for entry in entries.iter() {
            let name = entry.map_err(failed)?;
            indexes.extend(name.file_name().to_str().ok().and_then(|name| series.index(name)));
        }
        Ok(indexes)
    }

    /// Opens a log file for writing; creates it if there is none.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(super) fn log(&self, name: &str) -> Result<Entry, LogError> {
        let failed = |doing, error: io::Error| LogError::new(doing, self.path(name), &error);
        for _ in 0..MAX_OPEN_ATTEMPTS {
            if let Some(found) = self.existing(name)? {
                return Ok(found);
            }
            let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            match openat(&self.descriptor, name, new, Mode::from_bits_truncate(0o644)) {
                Ok(file) => return Ok(Entry::Log(file.into())),
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(failed("create", error.into())),
            }
        }
        Err(failed("open", io::Error::other("other processes keep creating and removing it")))
    }

    /// Like [`Self::log`], but returns `None` instead of creating a missing file.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(super) fn existing(&self, name: &str) -> Result<Option<Entry>, LogError> {
        let failed = |error: io::Error| LogError::new("open", self.path(name), &error);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let place = match openat(&self.descriptor, name, flags, Mode::empty()) {
            Ok(place) => place,
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let stat = fstat(&place).map_err(|error| failed(error.into()))?;
        if let Some(why) = unfit(stat.st_mode, stat.st_nlink) {
            return Ok(Some(Entry::Unfit(why)));
        }
        let file = host_path::reopen(&place, OpenOptions::new().write(true)).map_err(failed)?;
        // A file unlinked in between is not in the directory any more.
        let is_there = file.metadata().map_err(failed)?.nlink() > 0;
        Ok(is_there.then_some(Entry::Log(file)))
    }

    /// Removes a file. A missing one is no error.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(super) fn remove(&self, name: &str) -> Result<(), LogError> {
        match unlinkat(&self.descriptor, name, UnlinkatFlags::NoRemoveDir) {
            // A directory under such a name is not the driver's to remove.
            Ok(()) | Err(Errno::ENOENT | Errno::EISDIR) => Ok(()),
            Err(error) => Err(LogError::new("remove", self.path(name), &error.into())),
        }
    }
}

/// Returns the reason not to write to an entry of this type and link count, if there is one.
fn unfit(mode: nix::libc::mode_t, names: nix::libc::nlink_t) -> Option<&'static str> {
    match mode & nix::libc::S_IFMT {
        nix::libc::S_IFREG if names > 1 => Some("it is a hard link: the file has another name"),
        nix::libc::S_IFREG => None,
        nix::libc::S_IFLNK => Some("it is a symbolic link"),
        nix::libc::S_IFDIR => Some("it is a directory"),
        nix::libc::S_IFIFO => Some("it is a named pipe"),
        _ => Some("it is not a regular file"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn allocation() -> (tempfile::TempDir, PathBuf) {
        let alloc = tempfile::tempdir().unwrap();
        let logs = alloc.path().join(LOGS);
        fs::create_dir_all(&logs).unwrap();
        (alloc, logs)
    }

    #[test]
    fn a_log_file_is_created_or_opened() {
        let (alloc, logs) = allocation();
        let directory = Directory::open(alloc.path()).unwrap();
        for text in ["one", "two"] {
            let Entry::Log(mut file) = directory.log("web.stdout.0").unwrap() else { panic!("it is a log") };
            file.write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(logs.join("web.stdout.0")).unwrap(), "two");
        let mode = fs::metadata(logs.join("web.stdout.0")).unwrap().permissions().mode();
        assert_eq!(mode & 0o600, 0o600);
        fs::create_dir(logs.join("web.stdout.7")).unwrap();
        fs::write(logs.join("web.stderr.0"), "").unwrap();
        let mut indexes = directory.indexes(&Series::of("web", "stdout")).unwrap();
        indexes.sort_unstable();
        assert_eq!(indexes, [0, 7]);
        directory.remove("web.stdout.0").unwrap();
        directory.remove("web.stdout.0").unwrap();
        directory.remove("web.stdout.7").unwrap();
        assert!(logs.join("web.stdout.7").exists());
    }

    #[test]
    fn only_regular_files_with_one_link_are_written() {
        let (alloc, logs) = allocation();
        let precious = alloc.path().join("precious");
        fs::write(&precious, "data").unwrap();
        symlink(&precious, logs.join("link")).unwrap();
        symlink(alloc.path().join("none"), logs.join("dangling")).unwrap();
        fs::hard_link(&precious, logs.join("hard")).unwrap();
        nix::unistd::mkfifo(&logs.join("pipe"), Mode::S_IRWXU).unwrap();
        fs::create_dir(logs.join("directory")).unwrap();
        let directory = Directory::open(alloc.path()).unwrap();
        for (name, word) in [
            ("link", "symbolic"),
            ("dangling", "symbolic"),
            ("hard", "hard link"),
            ("pipe", "pipe"),
            ("directory", "directory"),
        ] {
            match directory.log(name).unwrap() {
                Entry::Unfit(why) => assert!(why.contains(word), "{name}: {why}"),
                Entry::Log(_) => panic!("{name} was opened"),
            }
        }
        assert!(!alloc.path().join("none").exists());
    }

    #[test]
    fn a_link_in_the_directorys_place_is_refused() {
        let (alloc, logs) = allocation();
        fs::rename(&logs, alloc.path().join("elsewhere")).unwrap();
        let error = Directory::open(alloc.path()).err().unwrap().to_string();
        assert!(error.contains("alloc/logs") && error.contains("No such file"), "{error}");
        symlink("../elsewhere", &logs).unwrap();
        let error = Directory::open(alloc.path()).err().unwrap().to_string();
        assert!(error.contains("alloc/logs") && error.contains("symbolic link"), "{error}");
    }
}
