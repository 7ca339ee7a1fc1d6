//! Paths of the host that somebody else names. The kernel resolves them, beneath a root that neither a link nor a `..`
//! leads out of, and what it found is held by a descriptor: what was looked at is what is used, whatever the path leads to
//! by then. Knows nothing of what the paths are for.
//!
//! Source of the facts: openat2(2), proc_pid_mountinfo(5).

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::sys::statfs::{
    BPF_FS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, NSFS_MAGIC,
    PROC_SUPER_MAGIC, SECURITYFS_MAGIC, SELINUX_MAGIC, SMACK_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC,
};

/// The kernel gives up where something was renamed anywhere while it resolved a `..`; it is asked again so often.
const TRIES: usize = 128;
/// From the kernel's `include/uapi/linux/magic.h`; nix has no names for them.
const EFIVARFS_MAGIC: FsType = FsType(0xde5e_81e4);
const PSTOREFS_MAGIC: FsType = FsType(0x6165_676c);

/// Why a path can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostPathError {
    #[error("there is no {0}; make it before the task starts")]
    Missing(PathBuf),
    #[error(
        "{path} leads out of {root}, by a link or a \"..\"; name the file or directory itself, which must be beneath {root}"
    )]
    LeadsOut { root: PathBuf, path: PathBuf },
    #[error(
        "{0} goes through one of the kernel's own links in /proc, or through links without an end; name what is meant"
    )]
    MagicLink(PathBuf),
    #[error("can't {doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
}

/// How mounts spread to and from the one that a descriptor is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spreads {
    /// It is of a group of mounts that share what is mounted below any of them.
    pub shared: bool,
    /// It gets what is mounted below another.
    pub slave: bool,
}

/// Opens what `path` leads to from `root` on, as a place only.
///
/// # Errors
/// Says what is wrong with the path.
pub(crate) fn open(root: &Path, path: &Path) -> Result<OwnedFd, HostPathError> {
    let from = open_root(root)?;
    resolve(&from, path, OFlag::O_PATH, escapes(root)).map_err(|error| named(error, root, path))
}

/// As [`open`], for a file that is to be read, and is one: opening a pipe or a device could block, or do something.
///
/// # Errors
/// As [`open`]; or it is no regular file.
pub(crate) fn open_file(root: &Path, path: &Path) -> Result<fs::File, HostPathError> {
    let place = open(root, path)?;
    let whole = root.join(path.strip_prefix(".").unwrap_or(path));
    let io = |source| HostPathError::Io { doing: "read", path: whole.clone(), source };
    let kind = nix::sys::stat::fstat(&place).map_err(|error| io(error.into()))?.st_mode & nix::libc::S_IFMT;
    if kind != nix::libc::S_IFREG {
        return Err(io(std::io::Error::other("it is not a regular file")));
    }
    let system = nix::sys::statfs::fstatfs(&place).map_err(|error| io(error.into()))?.filesystem_type();
    if is_kernels_own(system) {
        return Err(io(std::io::Error::other("it is a file of the kernel's own, not of a disk")));
    }
    // A lease that another holds on the file would be waited for.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let of_place = format!("/proc/self/fd/{}", place.as_raw_fd());
    let file = nix::fcntl::openat(AT_FDCWD, of_place.as_str(), flags, Mode::empty());
    file.map(fs::File::from).map_err(|error| io(error.into()))
}

/// Whether files of that system are made by the kernel as they are read: regular files by their kind, but a read takes
/// lines out of the kernel's log, waits for events, or shows what only root sees.
fn is_kernels_own(system: FsType) -> bool {
    system == PROC_SUPER_MAGIC
        || system == SYSFS_MAGIC
        || system == DEBUGFS_MAGIC
        || system == TRACEFS_MAGIC
        || system == SECURITYFS_MAGIC
        || system == CGROUP_SUPER_MAGIC
        || system == CGROUP2_SUPER_MAGIC
        || system == BPF_FS_MAGIC
        || system == NSFS_MAGIC
        || system == SELINUX_MAGIC
        || system == SMACK_MAGIC
        || system == EFIVARFS_MAGIC
        || system == PSTOREFS_MAGIC
}

/// As [`open`], for a directory; what is missing on the way is made, and the last part gets that mode.
///
/// # Errors
/// As [`open`].
pub(crate) fn make(root: &Path, path: &Path, mode: u32) -> Result<OwnedFd, HostPathError> {
    let from = open_root(root)?;
    let fail = |error| named(error, root, path);
    let mut so_far = PathBuf::from(".");
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let parent =
            resolve(&from, &so_far, OFlag::O_PATH | OFlag::O_DIRECTORY, escapes(root)).map_err(fail)?;
        so_far.push(part);
        let Component::Normal(name) = part else { continue };
        let is_new = make_one(&parent, name).map_err(fail)?;
        if is_new && parts.peek().is_none() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let made =
                resolve(&parent, Path::new(name), flags, ResolveFlag::RESOLVE_BENEATH).map_err(fail)?;
            // The process's umask has had its say before.
            fchmod(&made, Mode::from_bits_truncate(mode)).map_err(fail)?;
        }
    }
    resolve(&from, &so_far, OFlag::O_PATH | OFlag::O_DIRECTORY, escapes(root)).map_err(fail)
}

/// False where something of that name is there.
fn make_one(parent: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A root is the operator's or Nomad's: its own links are followed.
fn open_root(root: &Path) -> Result<OwnedFd, HostPathError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::openat(AT_FDCWD, root, flags, Mode::empty())
        .map_err(|error| named(error, root, Path::new(".")))
}

/// Nothing is outside of `/`, so that links may be absolute there.
fn escapes(root: &Path) -> ResolveFlag {
    if root == Path::new("/") { ResolveFlag::RESOLVE_IN_ROOT } else { ResolveFlag::RESOLVE_BENEATH }
}

fn resolve(from: &OwnedFd, path: &Path, flags: OFlag, escapes: ResolveFlag) -> Result<OwnedFd, Errno> {
    let how =
        OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(escapes | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut opened = Err(Errno::EAGAIN);
    for _ in 0..TRIES {
        opened = openat2(from.as_fd(), path, how);
        if !matches!(opened, Err(Errno::EAGAIN)) {
            break;
        }
    }
    opened
}

fn named(error: Errno, root: &Path, path: &Path) -> HostPathError {
    let whole = root.join(path.strip_prefix(".").unwrap_or(path));
    match error {
        Errno::ENOENT | Errno::ENOTDIR => HostPathError::Missing(whole),
        Errno::EXDEV => HostPathError::LeadsOut { root: root.to_owned(), path: whole },
        Errno::ELOOP => HostPathError::MagicLink(whole),
        error => HostPathError::Io { doing: "look for", path: whole, source: error.into() },
    }
}

/// # Errors
/// When the kernel doesn't say.
pub(crate) fn spreads(place: &OwnedFd) -> Result<Spreads, HostPathError> {
    let read = |path: &str| {
        fs::read_to_string(path).map_err(|source| HostPathError::Io {
            doing: "read",
            path: path.into(),
            source,
        })
    };
    let info = read(&format!("/proc/self/fdinfo/{}", place.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim().to_owned();
    Ok(spreads_of(&id, &read("/proc/self/mountinfo")?))
}

fn spreads_of(mount_id: &str, table: &str) -> Spreads {
    let line = table.lines().find(|line| line.split(' ').next() == Some(mount_id)).unwrap_or_default();
    let tags = line.split(' ').skip(6).take_while(|tag| *tag != "-");
    tags.fold(Spreads::default(), |spreads, tag| Spreads {
        shared: spreads.shared || tag.starts_with("shared:"),
        slave: spreads.slave || tag.starts_with("master:"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    /// A root with `data/file`, and beside it what nobody is to reach.
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
    fn what_is_beneath_the_root_is_found() {
        let (_kept, root) = tree();
        symlink("data", root.join("link")).unwrap();
        for path in ["data/file", "data/../data/file", "link/file", "./data//file"] {
            assert_eq!(read(&open(&root, Path::new(path)).unwrap()), "inside", "{path}");
        }
        open(&root, Path::new(".")).unwrap();
        let error = open(&root, Path::new("data/none")).unwrap_err().to_string();
        assert!(error.contains("data/none") && error.contains("make it"), "{error}");
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
            let error = open_file(&root, Path::new(path)).unwrap_err().to_string();
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
        // A link of the host's own is one that the operator has made.
        let (_kept, root) = tree();
        symlink(root.join("data"), root.join("absolute")).unwrap();
        let path = root.join("absolute/file");
        assert_eq!(read(&open(Path::new("/"), path.strip_prefix("/").unwrap()).unwrap()), "inside");
    }

    #[test]
    fn what_was_opened_stays_what_it_was() {
        let (kept, root) = tree();
        let place = open(&root, Path::new("data/file")).unwrap();
        fs::rename(root.join("data"), root.join("was")).unwrap();
        symlink(kept.path().join("outside"), root.join("data")).unwrap();
        assert_eq!(read(&place), "inside");
    }

    #[test]
    fn directories_are_made_beneath_the_root_only() {
        let (kept, root) = tree();
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
        let made = make(&root, Path::new("a/b/c"), 0o777).unwrap();
        assert_eq!((mode("a"), mode("a/b"), mode("a/b/c")), (0o755, 0o755, 0o777));
        fs::set_permissions(root.join("a/b/c"), fs::Permissions::from_mode(0o700)).unwrap();
        let again = make(&root, Path::new("a/b/c"), 0o777).unwrap();
        let inode =
            |place: &OwnedFd| fs::metadata(format!("/proc/self/fd/{}", place.as_raw_fd())).unwrap().ino();
        assert_eq!((inode(&made), mode("a/b/c")), (inode(&again), 0o700), "what is there stays as it is");
        make(&root, Path::new("a/../z"), 0o755).unwrap();
        assert_eq!(mode("z"), 0o755);
        symlink("../outside", root.join("up")).unwrap();
        symlink("../outside/new", root.join("dangling")).unwrap();
        for path in ["up/new", "dangling", "dangling/x", "../outside/new"] {
            assert!(make(&root, Path::new(path), 0o755).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(kept.path().join("outside")).unwrap().count(), 1);
    }

    #[test]
    fn how_mounts_spread_is_read_from_the_kernels_table() {
        let table = "29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     30 29 0:5 / /dev rw master:2 - devtmpfs dev rw\n\
                     31 29 0:6 / /sys rw shared:3 master:4 - sysfs sys rw\n\
                     32 29 0:7 / /x rw - tmpfs shared:9 rw\n";
        let is = |shared, slave| Spreads { shared, slave };
        assert_eq!(spreads_of("29", table), is(true, false));
        assert_eq!(spreads_of("30", table), is(false, true));
        assert_eq!(spreads_of("31", table), is(true, true));
        assert_eq!(spreads_of("32", table), is(false, false));
        assert_eq!(spreads_of("9", table), is(false, false));
        spreads(&open(Path::new("/"), Path::new(".")).unwrap()).unwrap();
    }
}
