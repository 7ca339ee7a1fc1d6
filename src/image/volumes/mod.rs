//! The volumes that an image declares (`VOLUME`): where they are mounted, and what is in each at first: a copy of what
//! the image has there. Volumes of a job that are filled from the image are made with them.
//!
//! The paths are mostly the image's, and the image may be hostile: they are resolved beneath the image's root, and the
//! number of its own is bounded. What lies in another volume is copied to that one alone, so that all volumes together
//! hold what the image has at most once.
//! Source of the facts: OCI image-spec v1.1 `config.md` (`Volumes`); moby v28 `daemon/create_unix.go`,
//! `container/container_unix.go`; containerd/continuity `fs/copy.go`.

mod copy;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use containerd_client::types::Mount;
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use oci_spec::image::ImageConfiguration;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

use super::mount::{self, MountError};
use copy::Copies;

/// Maximum number of an image's volumes: that of a job's own mounts. Images have a handful.
const VOLUMES_LIMIT: usize = 256;
/// Maximum length of a path, the kernel's.
const PATH_LIMIT_BYTES: usize = 4095;
/// Maximum number of characters of a path in an error.
const SHOWN_CHARACTERS: usize = 200;
/// Mode of a volume at a path that the image doesn't have, as docker's.
const MODE: u32 = 0o755;

/// The way out of an image whose volumes can't be had.
const WAY_OUT: &str = "set the option image_volumes to \"ignore\", and mount what the task needs";

#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumesError {
    #[error("the image has {0} volumes (VOLUME), more than {VOLUMES_LIMIT}; {WAY_OUT}")]
    TooMany(usize),
    #[error("the image's VOLUME {path:?} can't be mounted: {why}; {WAY_OUT}")]
    Unusable { path: String, why: &'static str },
    #[error(
        "the volume at {path:?} can't be filled from the image: {why}; set volume_options {{ no_copy = true }} in its mount, \
         or choose another target"
    )]
    OfJob { path: String, why: &'static str },
    #[error("can't fill the volume {path} from the image: {doing} {}", at.display())]
    Copy { path: String, doing: &'static str, at: PathBuf, source: io::Error },
    #[error("the disk on which containerd keeps the snapshot for the image's volumes has no room for {at}")]
    Full { at: String, source: io::Error },
    #[error("the image has too many directories or links at its VOLUME {path}; {WAY_OUT}")]
    TooLarge { path: String },
    #[error("can't {doing} {}", at.display())]
    Io { doing: &'static str, at: PathBuf, source: io::Error },
    #[error("can't mount the image to fill its volumes")]
    Unmountable(#[source] MountError),
    #[error("it was cancelled")]
    Cancelled,
    #[error("the thread that fills the image's volumes ended early")]
    Lost,
}

/// Returns the paths of an image's volumes, absolute and in their shortest form, each once, parents before those below
/// them.
///
/// # Errors
/// Names a path at which no volume can be, such as the root.
pub(crate) fn paths(config: &ImageConfiguration) -> Result<Vec<String>, VolumesError> {
    let none = Vec::new();
    let declared = config.config().as_ref().and_then(|own| own.volumes().as_ref()).unwrap_or(&none);
    if declared.len() > VOLUMES_LIMIT {
        return Err(VolumesError::TooMany(declared.len()));
    }
    let cleaned = declared.iter().map(|path| clean(path)).collect::<Result<BTreeSet<_>, _>>()?;
    let mut cleaned: Vec<_> = cleaned.into_iter().filter(|path| !is_kernels(Path::new(path))).collect();
    cleaned.sort_by_key(|path| Path::new(path).components().count());
    Ok(cleaned)
}

/// Returns whether a container has files of the kernel's at a path, which no volume hides whatever the image says.
fn is_kernels(path: &Path) -> bool {
    (path.starts_with("/dev") && path != Path::new("/dev/shm")) || path.starts_with("/sys")
}

fn clean(path: &str) -> Result<String, VolumesError> {
    let unusable = |why| Err(VolumesError::Unusable { path: shown(path), why });
    if path.contains('\0') {
        return unusable("it has a NUL byte");
    }
    let mut parts = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => parts.push(name.to_string_lossy()),
            Component::ParentDir => drop(parts.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if parts.is_empty() {
        return unusable("it is the root directory");
    }
    if parts[0] == "proc" {
        return unusable("it is in /proc, where only the kernel's files can be");
    }
    let cleaned = format!("/{}", parts.join("/"));
    if cleaned.len() > PATH_LIMIT_BYTES { unusable("it is too long") } else { Ok(cleaned) }
}

/// Shortens a hostile path for an error.
fn shown(path: &str) -> String {
    path.chars().take(SHOWN_CHARACTERS).collect()
}

/// A volume that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Path in the container, absolute and in its shortest form.
    pub path: String,
    /// Whether it has at first what the image has there.
    pub is_filled: bool,
    /// Whether a job asks for it, and not its image.
    pub is_jobs: bool,
}

impl Wanted {
    /// Opens what the volume is to be filled with, if anything.
    ///
    /// # Errors
    /// As [`source`].
    fn source(&self, image: &OwnedFd) -> Result<Option<OwnedFd>, VolumesError> {
        if self.is_filled { source(image, &self.path).map_err(|error| self.own(error)) } else { Ok(None) }
    }

    /// Returns an error with the way out of whoever asks for the volume.
    fn own(&self, error: VolumesError) -> VolumesError {
        match error {
            VolumesError::Unusable { path, why } if self.is_jobs => VolumesError::OfJob { path, why },
            VolumesError::TooLarge { path } if self.is_jobs => {
                VolumesError::OfJob { path, why: "the image has too many directories or links there" }
            }
            error => error,
        }
    }
}

/// An image whose volumes are to be made, and where.
#[derive(Debug)]
pub(crate) struct Filling {
    /// The container's own mounts, of which only the image's layers are read.
    pub image: Vec<Mount>,
    /// An empty directory, which the image is mounted on where nobody else sees it.
    pub image_at: PathBuf,
    /// The mounts of an empty snapshot for the volumes, and the empty directory that it is mounted on.
    pub snapshot: Vec<Mount>,
    pub at: PathBuf,
    /// The volumes, parents before those below them. Each is a directory named by its position.
    pub wanted: Vec<Wanted>,
}

impl Filling {
    /// Returns each volume with its directory.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = (&Wanted, PathBuf)> {
        self.wanted.iter().enumerate().map(|(number, wanted)| (wanted, self.at.join(number.to_string())))
    }

    /// Mounts the snapshot, and makes and fills the volumes in it. To be called on a thread of its own that ends
    /// afterwards, since it changes its mount namespace. Gives up soon after `stop` is set.
    ///
    /// # Errors
    /// Names the volume, and the file.
    pub(crate) fn run(&self, stop: &AtomicBool) -> Result<(), VolumesError> {
        let goes_on = || if stop.load(Ordering::Relaxed) { Err(VolumesError::Cancelled) } else { Ok(()) };
        goes_on()?;
        mount::mount_writable(&self.snapshot, &self.at).map_err(|error| mount_failed(error, &self.at))?;
        if let Err(cancelled) = goes_on() {
            // A mount may take long, and nobody may be left to undo it. Whoever is finds what stays.
            let _ = mount::unmount_all(&self.snapshot, &self.at);
            return Err(cancelled);
        }
        let volumes = open_directory(&self.at)?;
        apart(&self.image_at)?;
        goes_on()?;
        mount::mount_all(&self.image, &self.image_at).map_err(|error| mount_failed(error, &self.image_at))?;
        let filled =
            open_directory(&self.image_at).and_then(|image| fill(&image, &volumes, &self.wanted, stop));
        let unmounted = mount::unmount_all(&self.image, &self.image_at);
        filled.map_err(without_room)?;
        unmounted.map_err(|error| failed("unmount", &self.image_at)(error.into()))
    }
}

/// Gives the calling thread a mount namespace of its own, whose mounts nobody else sees. What others unmount meanwhile is
/// unmounted there as well: a copy may take long, and is to hold nothing of theirs.
fn apart(at: &Path) -> Result<(), VolumesError> {
    let nothing: Option<&str> = None;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| nix::mount::mount(nothing, "/", nothing, slave, nothing))
        .map_err(|error| failed("make a mount namespace for", at)(error.into()))
}

/// Says of an error of the copy that it is for want of room, if it is.
fn without_room(error: VolumesError) -> VolumesError {
    let is_full =
        |error: &io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    match error {
        VolumesError::Copy { path, source, .. } if is_full(&source) => {
            VolumesError::Full { at: path, source }
        }
        VolumesError::Io { at, source, .. } if is_full(&source) => {
            VolumesError::Full { at: at.display().to_string(), source }
        }
        other => other,
    }
}

fn mount_failed(error: MountError, at: &Path) -> VolumesError {
    match error {
        MountError::Kernel(errno) => failed("mount", at)(errno.into()),
        MountError::Loop(_) => VolumesError::Unmountable(error),
    }
}

fn failed(doing: &'static str, at: &Path) -> impl FnOnce(io::Error) -> VolumesError {
    let at = at.to_owned();
    move |source| VolumesError::Io { doing, at, source }
}

/// Opens a directory of the driver's own.
fn open_directory(at: &Path) -> Result<OwnedFd, VolumesError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, at, flags, Mode::empty()).map_err(|error| failed("open", at)(error.into()))
}

/// Makes the volumes, and fills them with what the image has at their paths.
fn fill(
    image: &OwnedFd,
    volumes: &OwnedFd,
    wanted: &[Wanted],
    stop: &AtomicBool,
) -> Result<(), VolumesError> {
    let sources = wanted.iter().map(|wanted| wanted.source(image)).collect::<Result<Vec<_>, _>>()?;
    let mut copies = Copies::new(stop);
    for source in sources.iter().flatten() {
        copies.leave_out(source).map_err(|error| failed("look at", Path::new("a volume"))(error.into()))?;
    }
    // Of several paths that lead to one directory, the last is mounted over the others.
    for (number, (wanted, source)) in wanted.iter().zip(&sources).enumerate().rev() {
        let (name, path) = (number.to_string(), &wanted.path);
        let target = make(volumes, &name)
            .map_err(|error| failed("make a directory for the volume", Path::new(path))(error.into()))?;
        if let Some(source) = source {
            copies.tree(source, &target).map_err(|error| wanted.own(error.at(path)))?;
        }
    }
    Ok(())
}

/// Opens what the image has at a path, whose links lead nowhere but within the image; `None` if it has nothing.
///
/// # Errors
/// Something else than a directory is there.
fn source(image: &OwnedFd, path: &str) -> Result<Option<OwnedFd>, VolumesError> {
    let relative = path.trim_start_matches('/');
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let unusable = |why| Err(VolumesError::Unusable { path: shown(path), why });
    if leads_astray(image, relative).map_err(failed("look in the image for", Path::new(path)))? {
        return unusable("links of the image lead from it to the root, or to a file system of the kernel's");
    }
    let found = match rustix::fs::openat2(image, relative, flags, Mode::empty(), resolve) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::NOTDIR) => return unusable("the image has a file in its place or on its way"),
        Err(rustix::io::Errno::LOOP) => return unusable("it is a loop of symbolic links"),
        Err(rustix::io::Errno::NAMETOOLONG) => return unusable("it is too long"),
        Err(error) => return Err(failed("look in the image for", Path::new(path))(error.into())),
    };
    let stat = rustix::fs::fstat(&found);
    let stat = stat.map_err(|error| failed("look in the image at", Path::new(path))(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unusable("the image has a file in its place or on its way");
    }
    Ok(Some(found))
}

/// Returns whether a path leads, by links of the image, to its root or to where the kernel's file systems are mounted.
fn leads_astray(image: &OwnedFd, path: &str) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place = |of: &OwnedFd| std::fs::read_link(format!("/proc/thread-self/fd/{}", of.as_raw_fd()));
    let root = place(image)?;
    // What of the path isn't there is made where the rest leads.
    for there in Path::new(path).ancestors() {
        let name = if there.as_os_str().is_empty() { Path::new(".") } else { there };
        let Ok(found) = rustix::fs::openat2(image, name, flags, Mode::empty(), resolve) else { continue };
        let found = place(&found)?;
        let Ok(below) = found.strip_prefix(&root) else { return Ok(true) };
        let rest = Path::new(path).strip_prefix(there).unwrap_or(Path::new(""));
        let led_to = Path::new("/").join(below).join(rest);
        return Ok(led_to == Path::new("/") || led_to.starts_with("/proc") || is_kernels(&led_to));
    }
    Ok(false)
}

fn make(volumes: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let made = || {
        rustix::fs::mkdirat(volumes, name, Mode::from_raw_mode(MODE))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(volumes, name, flags, Mode::empty())?;
        // mkdirat(2) applies the process's umask; this does not.
        rustix::fs::fchmod(&made, Mode::from_raw_mode(MODE))?;
        Ok(made)
    };
    made().map_err(|error: rustix::io::Errno| Errno::from_raw(error.raw_os_error()))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn volume_paths() {
        crate::fuzz::text("image-volumes", |path| {
            let Ok(cleaned) = clean(path) else { return };
            assert!(cleaned.starts_with('/') && cleaned.len() > 1 && !cleaned.contains('\0'), "{cleaned}");
            assert!(!cleaned.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")), "{cleaned}");
            assert!(cleaned != "/proc" && !cleaned.starts_with("/proc/"), "{cleaned}");
            assert_eq!(clean(&cleaned).unwrap(), cleaned);
        });
    }
}
