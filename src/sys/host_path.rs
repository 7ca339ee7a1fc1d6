//! Opens paths that a job, an image or a task names or can change. The kernel resolves them beneath a root that neither
//! a symbolic link nor a `..` leads out of, and the result is held by a descriptor: the file that was checked is the
//! one that is used, whatever the path leads to by then. Knows nothing of what the paths are for.
//!
//! Source of the facts: openat2(2), open(2) on `O_PATH`.

#![expect(
    clippy::disallowed_methods,
    reason = "the door by which paths are opened that others shape; it reads mount tables of the kernel's beside"
)]

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::libc::{O_NONBLOCK, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::sys::statfs::{
    BPF_FS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, NSFS_MAGIC,
    PROC_SUPER_MAGIC, SECURITYFS_MAGIC, SELINUX_MAGIC, SMACK_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC, fstatfs,
};

use crate::sys::os_error::is_transient;

/// Maximum number of attempts to resolve a path. The kernel gives up if anything was renamed anywhere while it resolved
/// a `..`.
const TRIES: usize = 128;
/// Flags to resolve a path without symbolic links.
const PLAIN: ResolveFlag = ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS);
/// File systems whose files the kernel generates as they are read: they look like regular files, but a read takes lines
/// out of the kernel's log, waits for events, or shows what only root may see; and a directory that is made there is an
/// object of the kernel. nix has no names for the last four.
const KERNELS_OWN: [FsType; 15] = [
    PROC_SUPER_MAGIC,
    SYSFS_MAGIC,
    DEBUGFS_MAGIC,
    TRACEFS_MAGIC,
    SECURITYFS_MAGIC,
    CGROUP_SUPER_MAGIC,
    CGROUP2_SUPER_MAGIC,
    BPF_FS_MAGIC,
    NSFS_MAGIC,
    SELINUX_MAGIC,
    SMACK_MAGIC,
    // EFIVARFS_MAGIC, PSTOREFS_MAGIC and RDTGROUP_SUPER_MAGIC of linux/magic.h, CONFIGFS_MAGIC of fs/configfs/mount.c.
    FsType(0xde5e_81e4),
    FsType(0x6165_676c),
    FsType(0x0765_5821),
    FsType(0x6265_6570),
];

/// The reason that a path can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostPathError {
    #[error("{0} does not exist; create it before the task starts")]
    Missing(PathBuf),
    #[error(
        "{path} leads out of {root}, by a link or a \"..\"; name the file or directory itself, which must be beneath {root}"
    )]
    LeadsOut { root: PathBuf, path: PathBuf },
    #[error("{0} goes through a magic link of /proc, or a loop of symbolic links; name the target itself")]
    MagicLink(PathBuf),
    #[error("{path} is, or goes through, a symbolic link below {root}, where none is followed")]
    Link { root: PathBuf, path: PathBuf },
    #[error("{path} is not {wanted}")]
    WrongKind { path: PathBuf, wanted: &'static str },
    #[error("can't {doing} {path}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
}

impl HostPathError {
    /// Returns true if the same path may be found later, with nothing changed on this host.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_transient(source))
    }
}

/// The directory or file that paths are resolved beneath: a root of the operator's or Nomad's, whose own symbolic links
/// are followed, and a path below it that has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Area<'a> {
    pub root: &'a Path,
    /// Path relative to the root, without symbolic links. Empty is the root itself.
    pub plain: &'a Path,
}

impl<'a> Area<'a> {
    /// Returns the area that is the root itself.
    fn of(root: &'a Path) -> Self {
        Self { root, plain: Path::new("") }
    }

    /// Opens `path` beneath the area with `O_PATH`, without access to its content.
    ///
    /// # Errors
    /// Says what is wrong with the path.
    pub(crate) fn open(self, path: &Path) -> Result<OwnedFd, HostPathError> {
        let area = self.area()?;
        if is_current_directory(path) {
            return Ok(area);
        }
        resolve_mounted(&area, path, self.bounds()).map_err(|error| self.named(error, path))
    }

    /// Opens a regular file beneath the area for reading. Anything else is refused without being opened: opening a pipe
    /// or a device could block, or have an effect.
    ///
    /// # Errors
    /// As [`Self::open`]; or if it is no regular file, or a file of the kernel's own.
    pub(crate) fn open_file(self, path: &Path) -> Result<fs::File, HostPathError> {
        let (place, whole) = (self.open(path)?, self.whole(path));
        let io = |source| HostPathError::Io { doing: "read", path: whole.clone(), source };
        if kind_of(&place, &whole)? != S_IFREG {
            return Err(io(std::io::Error::other("it is not a regular file")));
        }
        let system = fstatfs(&place).map_err(|error| io(error.into()))?.filesystem_type();
        if KERNELS_OWN.contains(&system) {
            return Err(io(std::io::Error::other("it is a file of a kernel file system, not of a disk")));
        }
        reopen(&place, fs::OpenOptions::new().read(true)).map_err(io)
    }

    /// Opens a directory beneath the area with `O_PATH`. Missing directories on the way are created, and the last one
    /// gets the given mode.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn make(self, path: &Path, mode: u32) -> Result<OwnedFd, HostPathError> {
        let from = open_root(self.root)?;
        let is_last = is_current_directory(path);
        let area = make_along(&from, self.plain, is_last.then_some(mode), PLAIN)
            .map_err(|error| plainly(error, self.root, self.plain))?;
        if is_last {
            return Ok(area);
        }
        make_along(&area, path, Some(mode), self.bounds()).map_err(|error| self.named(error, path))
    }

    fn area(self) -> Result<OwnedFd, HostPathError> {
        if self.plain.as_os_str().is_empty() {
            open_root(self.root)
        } else {
            open_plain(self.root, self.plain)
        }
    }

    /// Returns the flag that bounds the resolution. Nothing is outside of `/`, so symbolic links may be absolute there.
    fn bounds(self) -> ResolveFlag {
        let is_top = self.root == Path::new("/") && self.plain.as_os_str().is_empty();
        if is_top { ResolveFlag::RESOLVE_IN_ROOT } else { ResolveFlag::RESOLVE_BENEATH }
    }

    fn whole(self, path: &Path) -> PathBuf {
        let parts = [self.root, self.plain, path].into_iter().flat_map(Path::components);
        parts.filter(|part| *part != Component::CurDir).collect()
    }

    fn named(self, error: Errno, path: &Path) -> HostPathError {
        let whole = self.whole(path);
        match error {
            Errno::ENOENT | Errno::ENOTDIR => HostPathError::Missing(whole),
            Errno::EXDEV => HostPathError::LeadsOut { root: self.whole(Path::new(".")), path: whole },
            Errno::ELOOP => HostPathError::MagicLink(whole),
            error => HostPathError::Io { doing: "look for", path: whole, source: error.into() },
        }
    }
}

/// Opens `path` beneath `root` with `O_PATH`, as [`Area::open`] does.
///
/// # Errors
/// Says what is wrong with the path.
pub(crate) fn open(root: &Path, path: &Path) -> Result<OwnedFd, HostPathError> {
    Area::of(root).open(path)
}

/// Opens a regular file beneath `root` for reading, as [`Area::open_file`] does.
///
/// # Errors
/// As [`Area::open_file`].
pub(crate) fn open_file(root: &Path, path: &Path) -> Result<fs::File, HostPathError> {
    Area::of(root).open_file(path)
}

/// Opens a directory beneath `root` with `O_PATH`. No part of its path may be a symbolic link.
///
/// # Errors
/// Names the path, and what is there instead.
pub(crate) fn open_directory(root: &Path, path: &Path) -> Result<OwnedFd, HostPathError> {
    open_kind(root, path, S_IFDIR, "a directory")
}

/// Opens a named pipe beneath `root` with `O_PATH`. No part of its path may be a symbolic link. [`reopen`] then opens
/// it without blocking and as often as needed, whatever its path leads to by then.
///
/// # Errors
/// Names the path, and what is there instead.
pub(crate) fn find_pipe(root: &Path, path: &Path) -> Result<OwnedFd, HostPathError> {
    open_kind(root, path, S_IFIFO, "a named pipe")
}

/// Opens the file that an `O_PATH` descriptor refers to. Never blocks, be it on the other end of a pipe or on a lease
/// that another process holds on a file.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn reopen(place: &OwnedFd, options: &mut fs::OpenOptions) -> std::io::Result<fs::File> {
    options.custom_flags(O_NONBLOCK).open(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

fn open_kind(root: &Path, path: &Path, kind: u32, wanted: &'static str) -> Result<OwnedFd, HostPathError> {
    let (place, path) = (open_plain(root, path)?, root.join(path));
    if kind_of(&place, &path)? == kind { Ok(place) } else { Err(HostPathError::WrongKind { path, wanted }) }
}

fn open_plain(root: &Path, path: &Path) -> Result<OwnedFd, HostPathError> {
    resolve(&open_root(root)?, path, OFlag::O_PATH, PLAIN).map_err(|error| plainly(error, root, path))
}

fn kind_of(place: &OwnedFd, path: &Path) -> Result<u32, HostPathError> {
    let stat = fstat(place).map_err(|error| HostPathError::Io {
        doing: "look at",
        path: path.to_owned(),
        source: error.into(),
    })?;
    Ok(stat.st_mode & S_IFMT)
}

/// Returns true for a path that names the directory itself: empty, or a dot.
fn is_current_directory(path: &Path) -> bool {
    path.components().all(|part| part == Component::CurDir)
}

fn make_along(from: &OwnedFd, path: &Path, mode: Option<u32>, bounds: ResolveFlag) -> Result<OwnedFd, Errno> {
    let mut so_far = PathBuf::from(".");
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let parent = resolve(from, &so_far, OFlag::O_PATH | OFlag::O_DIRECTORY, bounds)?;
        so_far.push(part);
        let Component::Normal(name) = part else { continue };
        let is_new = make_one(&parent, name)?;
        if let Some(mode) = mode.filter(|_| is_new && parts.peek().is_none()) {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let made = resolve(&parent, Path::new(name), flags, ResolveFlag::RESOLVE_BENEATH)?;
            // mkdirat(2) applies the process's umask; this does not.
            fchmod(&made, Mode::from_bits_truncate(mode))?;
        }
    }
    resolve(from, &so_far, OFlag::O_PATH | OFlag::O_DIRECTORY, bounds)
}

/// Creates a directory. Returns false if its name exists already, or if the parent is on a file system of the kernel's
/// own, where none is created.
fn make_one(parent: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    if KERNELS_OWN.contains(&fstatfs(parent)?.filesystem_type()) {
        return Ok(false);
    }
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a root. It is the operator's or Nomad's, so its own symbolic links are followed.
fn open_root(root: &Path) -> Result<OwnedFd, HostPathError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, root, flags, Mode::empty()).map_err(|error| Area::of(root).named(error, Path::new(".")))
}

/// Resolves a path with `O_PATH`. A directory is then resolved again as one, which makes the kernel mount what an
/// automount point stands for: the first descriptor would be of the empty directory below it.
fn resolve_mounted(from: &OwnedFd, path: &Path, bounds: ResolveFlag) -> Result<OwnedFd, Errno> {
    let place = resolve(from, path, OFlag::O_PATH, bounds)?;
    if fstat(&place)?.st_mode & S_IFMT == S_IFDIR {
        return resolve(from, path, OFlag::O_PATH | OFlag::O_DIRECTORY, bounds);
    }
    Ok(place)
}

fn resolve(from: &OwnedFd, path: &Path, flags: OFlag, bounds: ResolveFlag) -> Result<OwnedFd, Errno> {
    let how =
        OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(bounds | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut opened = Err(Errno::EAGAIN);
    for _ in 0..TRIES {
        opened = openat2(from.as_fd(), path, how);
        if !matches!(opened, Err(Errno::EAGAIN)) {
            break;
        }
    }
    opened
}

/// Converts the error of a path that was resolved without symbolic links.
fn plainly(error: Errno, root: &Path, path: &Path) -> HostPathError {
    match error {
        Errno::ELOOP => HostPathError::Link { root: root.to_owned(), path: root.join(path) },
        error => Area::of(root).named(error, path),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use nix::sys::statfs::statfs;

    use super::*;
    use crate::sys::error_chain::Chained;

    /// Creates a root with `data/file`, and beside it files that must not be reached.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("data")).unwrap();
        fs::write(root.join("data/file"), "inside").unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/secret"), "secret").unwrap();
        (directory, root)
    }

    fn read(place: &OwnedFd) -> String {
        fs::read_to_string(format!("/proc/self/fd/{}", place.as_raw_fd())).unwrap()
    }

    #[test]
    fn paths_beneath_the_root_are_found() {
        let (_kept, root) = tree();
        symlink("data", root.join("link")).unwrap();
        for path in ["data/file", "data/../data/file", "link/file", "./data//file"] {
            assert_eq!(read(&open(&root, Path::new(path)).unwrap()), "inside", "{path}");
        }
        open(&root, Path::new(".")).unwrap();
        let error = open(&root, Path::new("data/none")).unwrap_err().chain().to_string();
        assert!(error.contains("data/none") && error.contains("create it"), "{error}");
    }

    #[test]
    fn nothing_leads_out_of_the_root() {
        let (kept, root) = tree();
        symlink("../outside", root.join("up")).unwrap();
        symlink("/", root.join("top")).unwrap();
        symlink(root.join("data"), root.join("absolute")).unwrap();
        symlink("up", root.join("twice")).unwrap();
        let paths =
            ["up/secret", "top/etc", "../outside/secret", "data/../../outside/secret", "twice/secret"];
        for path in paths.into_iter().chain(["absolute/file", "/etc/passwd", ".."]) {
            let error = open(&root, Path::new(path)).unwrap_err();
            assert!(matches!(error, HostPathError::LeadsOut { .. }), "{path}: {error}");
        }
        drop(kept);
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let (_kept, root) = tree();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut open_file(&root, Path::new("data/file")).unwrap(), &mut text)
            .unwrap();
        assert_eq!(text, "inside");
        nix::unistd::mkfifo(&root.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        for path in ["pipe", "data"] {
            let error = open_file(&root, Path::new(path)).unwrap_err().chain().to_string();
            assert!(error.contains(path) && error.contains("regular file"), "{error}");
        }
        symlink("../outside/secret", root.join("up")).unwrap();
        assert!(matches!(open_file(&root, Path::new("up")), Err(HostPathError::LeadsOut { .. })));
    }

    #[test]
    fn the_kernels_own_links_are_not_gone_through() {
        for path in ["proc/self/root/etc", "proc/self/cwd", "proc/thread-self/root", "proc/self/fd/0"] {
            let error = open(Path::new("/"), Path::new(path)).unwrap_err();
            assert!(matches!(error, HostPathError::MagicLink(_)), "{path}: {error}");
        }
        // A link in the host's own tree was made by the operator.
        let (_kept, root) = tree();
        symlink(root.join("data"), root.join("absolute")).unwrap();
        let path = root.join("absolute/file");
        assert_eq!(read(&open(Path::new("/"), path.strip_prefix("/").unwrap()).unwrap()), "inside");
    }

    #[test]
    fn an_open_path_is_unaffected_by_later_links() {
        let (kept, root) = tree();
        let place = open(&root, Path::new("data/file")).unwrap();
        fs::rename(root.join("data"), root.join("was")).unwrap();
        symlink(kept.path().join("outside"), root.join("data")).unwrap();
        assert_eq!(read(&place), "inside");
    }

    #[test]
    fn no_directory_is_made_on_a_file_system_of_the_kernels_own() {
        let is_kernels =
            |path: &&str| statfs(*path).is_ok_and(|found| KERNELS_OWN.contains(&found.filesystem_type()));
        let there = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].into_iter().find(is_kernels).unwrap();
        let name = format!("containerd-driver-unit-test-{}", std::process::id());
        let made = Area::of(Path::new(there)).make(Path::new(&name), 0o755);
        let _ = fs::remove_dir(Path::new(there).join(&name));
        assert!(matches!(made, Err(HostPathError::Missing(_))), "{made:?}");
    }

    #[test]
    fn directories_are_made_beneath_the_root_only() {
        let (kept, root) = tree();
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
        let made = Area::of(&root).make(Path::new("a/b/c"), 0o777).unwrap();
        assert_eq!((mode("a"), mode("a/b"), mode("a/b/c")), (0o755, 0o755, 0o777));
        fs::set_permissions(root.join("a/b/c"), fs::Permissions::from_mode(0o700)).unwrap();
        let again = Area::of(&root).make(Path::new("a/b/c"), 0o777).unwrap();
        let inode =
            |place: &OwnedFd| fs::metadata(format!("/proc/self/fd/{}", place.as_raw_fd())).unwrap().ino();
        assert_eq!((inode(&made), mode("a/b/c")), (inode(&again), 0o700), "what is there stays as it is");
        Area::of(&root).make(Path::new("a/../z"), 0o755).unwrap();
        assert_eq!(mode("z"), 0o755);
        symlink("../outside", root.join("up")).unwrap();
        symlink("../outside/new", root.join("dangling")).unwrap();
        for path in ["up/new", "dangling", "dangling/x", "../outside/new"] {
            assert!(Area::of(&root).make(Path::new(path), 0o755).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(kept.path().join("outside")).unwrap().count(), 1);
    }
}
