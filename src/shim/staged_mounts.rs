//! Stages the mounts of a container that is about to be created: each source is mounted in the bundle, where nobody but
//! root can reach it, beside a file system for the files that the driver writes for the container, and a snapshot with
//! the image's volumes. The runtime is told those paths, and mounts from there. Afterwards the staged mounts are removed; what the container has stays.
//!
//! The sources are in a file system of their own, so that they go with it at once: an unmount is what takes the time.

#![expect(
    clippy::disallowed_methods,
    reason = "opens what lies in the state directory, which only root can reach"
)]

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::{Bundle, Error};
use crate::sys::mount_table;

const NOTHING: Option<&str> = None;

/// Name of the mount point for the files that the driver writes.
const FILES: &str = "files";
/// Name of the mount point for the snapshot with the image's volumes.
const VOLUMES: &str = "volumes";
/// Name of the mount point for the sources, each of which is mounted below it by its number.
const SOURCES: &str = "sources";
/// Space for the driver's files in all, beyond what the driver has written: a task may change them.
const SPARE_BYTES: usize = 512 * 1024;
/// Maximum number of inodes in the file system of the driver's files: the directory, and each file.
const MAX_INODES: usize = 16;

/// Maximum number of reads of the kernel's list of mounts to find a mount that is there.
const MAX_LISTINGS: usize = 5;

/// The source of a mount, which is to be staged in the bundle.
pub(crate) struct StagedMount<'a> {
    pub source: &'a OwnedFd,
    /// Propagation of the staged mount: how mounts that come and go later spread between it and the host.
    pub propagation: MsFlags,
    /// Whether the staged mount is read-only, with all that is mounted below it.
    pub read_only: bool,
}

impl Bundle {
    fn staging_directory(&self) -> PathBuf {
        self.directory().join("mounts")
    }

    /// Makes a mount point of this name, beside others.
    fn mount_point(&self, name: &str) -> Result<PathBuf, Error> {
        let staging_directory = self.staging_directory();
        // The bundle itself is not created: it may have been taken down meanwhile.
        match fs::DirBuilder::new().mode(0o700).create(&staging_directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::File { doing: "create", path: staging_directory, source: error });
            }
            _ => {}
        }
        let at = staging_directory.join(name);
        fs::DirBuilder::new().mode(0o700).create(&at).map_err(Error::file("create", &at))?;
        Ok(at)
    }

    /// Makes the directory that the snapshot with the image's volumes is to be mounted on.
    ///
    /// # Errors
    /// Names the directory.
    pub(crate) fn make_volumes_mount_point(&self) -> Result<PathBuf, Error> {
        self.mount_point(VOLUMES)
    }

    /// Mounts an empty tmpfs at a new mount point of this name.
    fn mount_tmpfs(&self, name: &str, options: &str) -> Result<PathBuf, Error> {
        let at = self.mount_point(name)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some(options))
            .map_err(Error::errno("mount a tmpfs at", &at))?;
        Ok(at)
    }

    /// Mounts an empty tmpfs for files of `bytes` in all that the container may change, and returns its path. The
    /// container has the files to itself, and they go with it. They can't grow by more than half a mebibyte: a file of
    /// the state directory could grow until the host's /run is full.
    ///
    /// # Errors
    /// Names the path that the tmpfs can't be mounted at.
    pub(crate) fn mount_files(&self, bytes: usize) -> Result<PathBuf, Error> {
        let room_bytes = bytes + SPARE_BYTES;
        self.mount_tmpfs(FILES, &format!("size={room_bytes},nr_inodes={MAX_INODES},mode=0755"))
    }

    /// Mounts sources in the bundle, each with all that is mounted below it, and returns the paths in the same order.
    ///
    /// # Errors
    /// Names the path that a source can't be mounted at.
    pub(crate) fn stage(&self, mounts: &[StagedMount<'_>]) -> Result<Vec<PathBuf>, Error> {
        let all = self.mount_tmpfs(SOURCES, "size=1m,mode=0700")?;
        let staged =
            mounts.iter().enumerate().map(|(number, mount)| mount.mount(all.join(number.to_string())));
        let staged = staged.collect::<Result<Vec<_>, _>>()?;
        let read_only: Vec<usize> = mounts
            .iter()
            .enumerate()
            .filter(|(_, mount)| mount.read_only)
            .map(|(number, _)| number)
            .collect();
        if !read_only.is_empty() {
            make_trees_read_only(&all, &read_only)?;
        }
        Ok(staged)
    }

    /// Unmounts and removes all that is staged in the bundle, if anything is.
    ///
    /// # Errors
    /// Names what is still mounted. It is never walked into.
    pub(crate) fn unstage(&self) -> Result<(), Error> {
        let staging_directory = self.staging_directory();
        // An unmount spreads to the peers of a shared mount: that of a tree whose parts are shared with the host's
        // would take the host's own away below it. So each source is cut off first, also where an earlier version of
        // the driver had the sources: beside the files. The file system that the sources are in is not cut off: its
        // unmount is to spread to namespaces that have copies.
        let sources = staging_directory.join(SOURCES);
        let places = entries(&staging_directory)?;
        for at in places.iter().filter(|at| **at != sources).chain(&entries(&sources)?) {
            make_private(at).map_err(Error::errno("make private the mount", at))?;
        }
        for at in places {
            mount_table::unmount(&at).map_err(Error::errno("unmount", &at))?;
            let removed = match fs::symlink_metadata(&at) {
                Ok(place) if place.is_dir() => fs::remove_dir(&at),
                _ => fs::remove_file(&at),
            };
            // A start that was given up may be removing the same.
            if let Err(error) = removed
                && error.kind() != ErrorKind::NotFound
            {
                return Err(Error::File { doing: "remove", path: at, source: error });
            }
        }
        match fs::remove_dir(&staging_directory) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::File { doing: "remove", path: staging_directory, source: error })
            }
            _ => Ok(()),
        }
    }
}

impl StagedMount<'_> {
    fn mount(&self, at: PathBuf) -> Result<PathBuf, Error> {
        let from = PathBuf::from(format!("/proc/self/fd/{}", self.source.as_raw_fd()));
        let is_directory = fs::metadata(&from).map_err(Error::file("look at", &from))?.is_dir();
        let place = if is_directory {
            fs::DirBuilder::new().mode(0o700).create(&at)
        } else {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at).map(drop)
        };
        place.map_err(Error::file("create", &at))?;
        mount(Some(&from), &at, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)
            .map_err(Error::errno("mount a source at", &at))?;
        mount(NOTHING, &at, NOTHING, self.propagation | MsFlags::MS_REC, NOTHING)
            .map_err(Error::errno("set the propagation of", &at))?;
        Ok(at)
    }
}

/// Makes the sources with these numbers below `all` read-only, with all that is mounted below each.
fn make_trees_read_only(all: &Path, numbers: &[usize]) -> Result<(), Error> {
    let failed = |error| Error::file("list the mounts below", all)(error);
    // The kernel lists mounts by their real paths, and the state directory may have a link in its own.
    let real = all.canonicalize().map_err(failed)?;
    for number in numbers {
        let at = real.join(number.to_string());
        listed_below(&at).map_err(failed)?.iter().try_for_each(make_read_only)?;
    }
    Ok(())
}

/// Returns the mounts at and below a mount point. Before Linux 5.8 the kernel's list can miss a mount while others come
/// and go: it is read again until it has the mount point itself.
fn listed_below(at: &Path) -> std::io::Result<Vec<mount_table::Mount>> {
    for _ in 0..MAX_LISTINGS {
        let table = mount_table::below(at)?;
        if table.iter().any(|mount| mount.point == at) {
            return Ok(table);
        }
    }
    Err(std::io::Error::other(format!("the kernel does not list the mount at {}", at.display())))
}

/// Makes one mount read-only, and keeps its other restrictions.
fn make_read_only(mounted: &mount_table::Mount) -> Result<(), Error> {
    let flags = mounted.flags | MsFlags::MS_RDONLY | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    match mount(NOTHING, &mounted.point, NOTHING, flags, NOTHING) {
        // Something else is mounted over the mount, so that it can't be reached; or the host has unmounted it, and the
        // unmount has spread to here.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        Err(error) => Err(Error::errno("make read-only", &mounted.point)(error)),
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(Error::file("list", directory)))
            .collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::File { doing: "list", path: directory.to_owned(), source }),
    }
}

/// Makes a mount private, with all below it, so that its unmount does not spread. Succeeds for a path that is no mount
/// point, since there is nothing to cut it off from.
fn make_private(at: &Path) -> Result<(), Errno> {
    match mount(NOTHING, at, NOTHING, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NOTHING) {
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        done => done,
    }
}
