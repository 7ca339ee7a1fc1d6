//! Access to the files of one directory tree, without following symbolic links and without opening anything but regular
//! files: a pipe would block, and a device may do something once it is opened.
//!
//! Source of the facts: openat2(2), inode(7).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::libc;
use nix::sys::stat::{Mode, fstat};

use super::walk::Kind;
use crate::sys::host_path;

/// A directory of the host, held open.
pub(super) struct Tree(OwnedFd);

impl Tree {
    /// Opens the directory or file at `path`. Its own symbolic links are followed: it is named by the driver, not by an
    /// image or a task.
    ///
    /// # Errors
    /// If it does not exist.
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map(Self)
    }

    /// Returns the kind of the file at `path` in the tree; an empty path is the root.
    ///
    /// # Errors
    /// Any error of the kernel, except that the file does not exist.
    pub(super) fn kind(&self, path: &str) -> Result<Kind, Errno> {
        match self.place(path) {
            Ok(place) => kind_of(&place),
            // A link on the way is an error too: the caller resolves one part at a time, and a link that was not there
            // before counts as missing.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::ELOOP) => Ok(Kind::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Reads a regular file, at most `limit_bytes` and one byte more, by which a longer file is recognized.
    ///
    /// # Errors
    /// Any error of the kernel; or the file is not a regular one.
    pub(super) fn read(&self, path: &str, limit_bytes: u64) -> io::Result<Vec<u8>> {
        let place = self.place(path)?;
        if kind_of(&place)? != Kind::File {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = host_path::reopen(&place, File::options().read(true))?;
        let mut bytes = Vec::new();
        file.take(limit_bytes + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn place(&self, path: &str) -> Result<OwnedFd, Errno> {
        let path = path.trim_start_matches('/');
        if path.is_empty() {
            return self
                .0
                .try_clone()
                .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(self.0.as_fd(), path, how)
    }
}

fn kind_of(place: &OwnedFd) -> Result<Kind, Errno> {
    Ok(match fstat(place)?.st_mode & libc::S_IFMT {
        libc::S_IFREG => Kind::File,
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFLNK => Kind::Link(readlinkat(place, "")?.to_string_lossy().into_owned()),
        libc::S_IFIFO => Kind::Other("a pipe"),
        libc::S_IFSOCK => Kind::Other("a socket"),
        libc::S_IFCHR | libc::S_IFBLK => Kind::Other("a device"),
        _ => Kind::Other("of an unknown kind"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn special_files_are_refused_without_an_open() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        std::fs::write(at("file"), "12345").unwrap();
        symlink("/dev/null", at("link")).unwrap();
        let tree = Tree::open(directory.path()).unwrap();
        for (path, kind) in [
            ("pipe", Kind::Other("a pipe")),
            ("/directory", Kind::Directory),
            ("", Kind::Directory),
            ("file", Kind::File),
            ("link", Kind::Link("/dev/null".to_owned())),
            ("none", Kind::Nothing),
            ("file/x", Kind::Nothing),
        ] {
            assert_eq!(tree.kind(path).unwrap(), kind, "{path}");
        }
        assert_eq!(tree.read("file", 3).unwrap(), b"1234");
        for path in ["pipe", "directory", "link", "none"] {
            assert!(tree.read(path, 3).is_err(), "{path}");
        }
        assert_eq!(Tree::open(Path::new("/dev/null")).unwrap().kind("").unwrap(), Kind::Other("a device"));
    }
}
