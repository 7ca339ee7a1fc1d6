//! Copies a directory tree of an image into a volume: owner, mode, times, extended attributes, links, holes and special
//! files as they are.
//!
//! Nothing is opened by a path that a link could change: a directory is opened beneath the tree's root without links,
//! and a file in its directory. The image's tree may be deep, wide or large: directories are worked off a list, not by
//! recursion, and large files in parts.
//! Source of the facts: openat2(2), copy_file_range(2), lseek(2) (`SEEK_DATA`), xattr(7); containerd/continuity
//! `fs/copy.go`.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::VolumesError;

/// Bytes of a file that are copied between two looks at whether to go on.
const PART_BYTES: u64 = 16 * 1024 * 1024;
/// Maximum number of directories that wait to be copied.
const WAITING_LIMIT: usize = 100_000;
/// Maximum number of files with several names in one volume.
const LINKED_LIMIT: usize = 100_000;
/// Maximum size of the paths that are remembered at a time.
const PATHS_LIMIT_BYTES: usize = 32 * 1024 * 1024;
/// Maximum size of the files that are copied once more, since they have a name in another volume, too.
const REPEATED_LIMIT_BYTES: u64 = 1024 * 1024 * 1024;
/// Maximum size of an extended attribute, and of the list of their names: the kernel's.
const XATTR_LIMIT_BYTES: usize = 64 * 1024;
/// Prefixes of attributes that belong to the file system that the image is on, not to its files.
const FOREIGN_XATTRS: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"security.selinux"];

/// The reason that a tree can't be copied, without the volume that it is for.
#[derive(Debug)]
pub(super) enum CopyError {
    File { doing: &'static str, at: PathBuf, source: io::Error },
    TooLarge,
    Stopped,
}

impl CopyError {
    /// Adds the path of the volume.
    pub(super) fn at(self, volume: &str) -> VolumesError {
        let path = volume.to_owned();
        match self {
            Self::File { doing, at, source } => VolumesError::Copy { path, doing, at, source },
            Self::TooLarge => VolumesError::TooLarge { path },
            Self::Stopped => VolumesError::Cancelled,
        }
    }
}

fn failed<E: Into<io::Error>>(doing: &'static str, at: &Path) -> impl FnOnce(E) -> CopyError {
    let at = at.to_owned();
    move |source| CopyError::File { doing, at, source: source.into() }
}

type Inode = (u64, u64);

/// Copies of several trees.
pub(super) struct Copies<'a> {
    stop: &'a AtomicBool,
    /// Directories whose content is left out where they are met: they are the roots of other copies.
    left_out: HashSet<Inode>,
    /// Roots of the copies that were begun.
    copied: HashSet<Inode>,
    /// Files with several names in the trees that were copied.
    linked: HashSet<Inode>,
    repeated_bytes: u64,
}

/// A step of the copy of a tree; the path is relative to its root.
enum Step {
    Enter(PathBuf),
    /// A directory takes over owner, mode, attributes and times of its original once all is in it: what is made in it
    /// would inherit some, and changes others.
    Finish(PathBuf),
}

/// The copy of one tree.
struct Tree<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    /// Paths of the copies of files that have several names.
    linked: HashMap<Inode, PathBuf>,
    steps: Vec<Step>,
    /// Size of the paths in both.
    paths_bytes: usize,
}

impl Tree<'_> {
    /// Counts a path that is going to be remembered.
    fn remember(&mut self, path: &Path) -> Result<(), CopyError> {
        self.paths_bytes += path.as_os_str().len();
        if self.paths_bytes > PATHS_LIMIT_BYTES { Err(CopyError::TooLarge) } else { Ok(()) }
    }

    /// Opens a directory of the tree, and its copy.
    fn both(&self, path: &Path) -> Result<[OwnedFd; 2], CopyError> {
        let opened = |root| open(root, path, OFlags::DIRECTORY).map_err(failed("open", path));
        Ok([opened(self.from)?, opened(self.to)?])
    }
}

impl<'a> Copies<'a> {
    pub(super) fn new(stop: &'a AtomicBool) -> Self {
        let (left_out, copied, linked) = (HashSet::new(), HashSet::new(), HashSet::new());
        Self { stop, left_out, copied, linked, repeated_bytes: 0 }
    }

    /// Leaves out what is in a directory, unless it is the root of the tree that is copied.
    pub(super) fn leave_out(&mut self, directory: &OwnedFd) -> Result<(), Errno> {
        self.left_out.insert(inode(&rustix::fs::fstat(directory)?));
        Ok(())
    }

    /// Copies a tree into an empty directory. A tree that was copied already, by another path, is not copied again.
    ///
    /// # Errors
    /// Names the file by its path in the tree.
    pub(super) fn tree(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<(), CopyError> {
        let root = Path::new(".");
        let stat = rustix::fs::fstat(from).map_err(failed("look at", root))?;
        if !self.copied.insert(inode(&stat)) {
            return Ok(());
        }
        let steps = vec![Step::Enter(PathBuf::from("."))];
        let mut tree = Tree { from, to, linked: HashMap::new(), steps, paths_bytes: 0 };
        self.walk(&mut tree)?;
        self.linked.extend(tree.linked.into_keys());
        Ok(())
    }

    fn walk(&mut self, tree: &mut Tree<'_>) -> Result<(), CopyError> {
        while let Some(step) = tree.steps.pop() {
            self.check()?;
            match step {
                Step::Enter(path) => self.directory(tree, &path)?,
                Step::Finish(path) => {
                    tree.paths_bytes = tree.paths_bytes.saturating_sub(path.as_os_str().len());
                    let [from, to] = tree.both(&path)?;
                    let stat = rustix::fs::fstat(&from).map_err(failed("look at", &path))?;
                    take_over(&from, &to, &stat).map_err(failed("set the owner and the mode of", &path))?;
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), CopyError> {
        if self.stop.load(Ordering::Relaxed) { Err(CopyError::Stopped) } else { Ok(()) }
    }

    /// Copies what is in a directory; those in it are made, and entered later.
    fn directory(&mut self, tree: &mut Tree<'_>, path: &Path) -> Result<(), CopyError> {
        let [from, to] = tree.both(path)?;
        let stat = rustix::fs::fstat(&from).map_err(failed("look at", path))?;
        tree.steps.push(Step::Finish(path.to_owned()));
        if path != Path::new(".") && self.left_out.contains(&inode(&stat)) {
            return Ok(());
        }
        for entry in Dir::read_from(&from).map_err(failed("list", path))? {
            let entry = entry.map_err(failed("list", path))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.check()?;
                let below = path.join(OsStr::from_bytes(name.to_bytes()));
                self.entry(tree, &from, &to, name, below)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        tree: &mut Tree<'_>,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        path: PathBuf,
    ) -> Result<(), CopyError> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(failed("look at", &path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            if tree.steps.len() >= WAITING_LIMIT {
                return Err(CopyError::TooLarge);
            }
            tree.remember(&path)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(failed("make", &path))?;
            tree.steps.push(Step::Enter(path));
            return Ok(());
        }
        if stat.st_nlink > 1 {
            if let Some(first) = tree.linked.get(&inode(&stat)) {
                return rustix::fs::linkat(tree.to, first, to, name, AtFlags::empty())
                    .map_err(failed("link", &path));
            }
            if tree.linked.len() >= LINKED_LIMIT {
                return Err(CopyError::TooLarge);
            }
            if self.linked.contains(&inode(&stat)) {
                self.repeated_bytes = self.repeated_bytes.saturating_add(stat.st_size.cast_unsigned());
            }
            if self.repeated_bytes > REPEATED_LIMIT_BYTES {
                return Err(CopyError::TooLarge);
            }
            tree.remember(&path)?;
            tree.linked.insert(inode(&stat), path.clone());
        }
        match kind {
            FileType::RegularFile => self.file(from, to, name, &stat, &path),
            FileType::Symlink => symlink(from, to, name, &stat).map_err(failed("copy the link", &path)),
            kind => special(to, name, kind, &stat).map_err(failed("make the special file", &path)),
        }
    }

    fn file(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        stat: &Stat,
        path: &Path,
    ) -> Result<(), CopyError> {
        let source = open(from, name, OFlags::NONBLOCK).map_err(failed("open", path))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR);
        let made = made.map_err(failed("make", path))?;
        let (source, made) = (File::from(source), File::from(made));
        self.content(&source, &made, path)?;
        take_over(&source, &made, stat).map_err(failed("set the owner and the mode of", path))
    }

    /// Copies the content of a file, without its holes.
    fn content(&self, mut from: &File, mut to: &File, path: &Path) -> Result<(), CopyError> {
        let size_bytes = from.metadata().map_err(failed("look at", path))?.len();
        to.set_len(size_bytes).map_err(failed("write", path))?;
        let mut at = 0;
        while at < size_bytes {
            let (begin, end) = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
                Ok(begin) => {
                    let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(begin));
                    (begin, end.map_err(failed("read", path))?)
                }
                // The rest is a hole.
                Err(Errno::NXIO) => break,
                // A file system that doesn't tell.
                Err(_) => (at, size_bytes),
            };
            from.seek(SeekFrom::Start(begin)).map_err(failed("read", path))?;
            to.seek(SeekFrom::Start(begin)).map_err(failed("write", path))?;
            at = begin;
            while at < end {
                self.check()?;
                let mut part = from.take(PART_BYTES.min(end - at));
                let copied = io::copy(&mut part, &mut to).map_err(failed("copy", path))?;
                if copied == 0 {
                    return Err(failed("read", path)(io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                at += copied;
            }
        }
        Ok(())
    }
}

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

/// Opens a file beneath a directory, without following any link.
fn open(from: &OwnedFd, path: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(from, path, flags, Mode::empty(), resolve)
}

/// Gives a copy the owner, the mode, the attributes and the times of its original. The owner comes first: a change of it
/// takes others away.
fn take_over(from: impl AsFd, to: impl AsFd, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
    take_over_xattrs(from, &to)?;
    rustix::fs::futimens(&to, &times(stat))
}

fn take_over_xattrs(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let mut names = Vec::with_capacity(XATTR_LIMIT_BYTES);
    match rustix::fs::flistxattr(&from, rustix::buffer::spare_capacity(&mut names)) {
        Err(Errno::OPNOTSUPP) | Ok(0) => return Ok(()),
        listed => listed?,
    };
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if FOREIGN_XATTRS.iter().any(|foreign| name.starts_with(foreign)) {
            continue;
        }
        let mut value = Vec::with_capacity(XATTR_LIMIT_BYTES);
        rustix::fs::fgetxattr(&from, name, rustix::buffer::spare_capacity(&mut value))?;
        match rustix::fs::fsetxattr(&to, name, &value, XattrFlags::empty()) {
            // The volume's file system has none of this kind.
            Err(Errno::OPNOTSUPP) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps {
        last_access: time(stat.st_atime as _, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime as _, stat.st_mtime_nsec as _),
    }
}

fn symlink(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let target: CString = rustix::fs::readlinkat(from, name, Vec::new())?;
    rustix::fs::symlinkat(target.as_c_str(), to, name)?;
    finish(to, name, stat)
}

/// Makes a pipe, a socket or a device.
fn special(to: &OwnedFd, name: &CStr, kind: FileType, stat: &Stat) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(stat.st_mode);
    rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
    // Applies no umask, as mknodat(2) does.
    rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    finish(to, name, stat)
}

/// Sets owner and times of what can't be opened. A change of the owner takes no mode away from it.
fn finish(to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}
