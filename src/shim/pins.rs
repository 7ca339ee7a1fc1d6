//! What a bundle holds in place for a container that is about to be made: the sources of its mounts, each mounted in the
//! bundle, where nobody but root can reach it, and a file system for the files that the driver writes for the container. The
//! runtime is told those places, and mounts them from there. Once it has, they go; what the container has stays.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Bundle, Error};

/// The place of the files that the driver writes, beside the numbered places of sources.
const FILES: &str = "files";
/// What the files may have in all, beyond what the driver has written: a task may change them.
const FILES_ROOM_BYTES: usize = 512 * 1024;
/// The directory, and each file.
const FILES_INODES: usize = 16;

impl Bundle {
    fn pins(&self) -> PathBuf {
        self.directory().join("mounts")
    }

    /// Creates the directory for pins. Not the bundle: it may have been taken down meanwhile.
    fn create_pins(&self) -> Result<PathBuf, Error> {
        let pins = self.pins();
        match fs::DirBuilder::new().mode(0o700).create(&pins) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(Error::File { doing: "create", path: pins, source: error })
            }
            _ => Ok(pins),
        }
    }

    /// Mounts an empty file system in memory for files of `bytes` in all that the container may change, and returns where.
    /// The container has them to itself, and they go with it. They can't grow by more than half a mebibyte: a file of the
    /// state directory could grow until the host's /run is full.
    ///
    /// # Errors
    /// Names the place that it can't be mounted at.
    pub(crate) fn mount_files(&self, bytes: usize) -> Result<PathBuf, Error> {
        let at = self.create_pins()?.join(FILES);
        fs::DirBuilder::new().mode(0o700).create(&at).map_err(Error::file("create", &at))?;
        let room_bytes = bytes + FILES_ROOM_BYTES;
        let options = format!("size={room_bytes},nr_inodes={FILES_INODES},mode=0755");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(Error::errno("mount a file system in memory at", &at))?;
        Ok(at)
    }

    /// Mounts what a descriptor holds, with all that is mounted below it, and returns where. Mounts that come and go later
    /// spread between it and the host as `propagation` says.
    ///
    /// # Errors
    /// Names the place that it can't be mounted at.
    pub(crate) fn pin(
        &self,
        number: usize,
        source: &OwnedFd,
        propagation: MsFlags,
    ) -> Result<PathBuf, Error> {
        let at = self.create_pins()?.join(number.to_string());
        let from = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
        let is_directory = fs::metadata(&from).map_err(Error::file("look at", &from))?.is_dir();
        let place = if is_directory {
            fs::DirBuilder::new().mode(0o700).create(&at)
        } else {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at).map(drop)
        };
        place.map_err(Error::file("create", &at))?;
        let nothing: Option<&str> = None;
        mount(Some(&from), &at, nothing, MsFlags::MS_BIND | MsFlags::MS_REC, nothing)
            .map_err(Error::errno("mount a source at", &at))?;
        mount(nothing, &at, nothing, propagation | MsFlags::MS_REC, nothing)
            .map_err(Error::errno("set the propagation of", &at))?;
        Ok(at)
    }

    /// Takes away what is held in place, whether or not anything is.
    ///
    /// # Errors
    /// Names what is still mounted. It is never walked into.
    pub(crate) fn unpin(&self) -> Result<(), Error> {
        let pins = self.pins();
        let entries = match fs::read_dir(&pins) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::File { doing: "list", path: pins, source }),
        };
        for entry in entries {
            let at = entry.map_err(Error::file("list", &pins))?.path();
            release(&at).map_err(Error::errno("unmount", &at))?;
            let removed = match fs::symlink_metadata(&at) {
                Ok(place) if place.is_dir() => fs::remove_dir(&at),
                _ => fs::remove_file(&at),
            };
            removed.map_err(Error::file("remove", &at))?;
        }
        fs::remove_dir(&pins).map_err(Error::file("remove", &pins))
    }
}

/// An unmount spreads to where a mount is shared with: that of a tree whose parts are shared with the host's would take
/// the host's own away below it. So it is cut off first.
fn release(at: &Path) -> Result<(), Errno> {
    let nothing: Option<&str> = None;
    loop {
        match mount(nothing, at, nothing, MsFlags::MS_PRIVATE | MsFlags::MS_REC, nothing) {
            Ok(()) => umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?,
            // Not a mount point.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
