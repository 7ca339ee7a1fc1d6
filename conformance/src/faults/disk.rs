//! A small disk of a directory, which can be filled and stopped.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Size of the disk: enough for the bundles of some tasks.
const SIZE_BYTES: u64 = 64 * 1024 * 1024;
/// The file that takes the room.
const FILLER: &str = "filler";
/// Room that is left at first by what the filling file needs for itself.
const SPARED_BLOCKS: u64 = 8;

/// A file system of its own, unmounted on drop. It is reached by a descriptor of its root, so that nothing else can be
/// filled or stopped in its place.
pub struct Disk {
    mounted_at: PathBuf,
    root: fs::File,
    /// Whether it can be stopped.
    is_on_loop: bool,
}

impl Disk {
    /// Makes a file system in the file `image`, and mounts it. Where the machine has no loop devices, it is one in memory.
    ///
    /// # Errors
    /// Fails if neither can be mounted.
    pub fn mount(image: &Path, at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        fs::File::create(image)?.set_len(SIZE_BYTES)?;
        // Without blocks that only root may have, the disk is full when it is full.
        let made = run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-E", "nodiscard"]).arg(image))
            .and_then(|()| run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(image).arg(at)));
        let is_on_loop = made.is_ok();
        if let Err(error) = made {
            println!("no disk that can be stopped, so disk-frozen is not tried: {error:#}");
            return Self::in_memory(at, SIZE_BYTES);
        }
        Ok(Self { mounted_at: at.to_owned(), root: fs::File::open(at)?, is_on_loop })
    }

    /// Mounts a file system in memory, which can be filled only.
    ///
    /// # Errors
    /// Fails if it can't be mounted.
    pub fn in_memory(at: &Path, size_bytes: u64) -> Result<Self> {
        fs::create_dir_all(at)?;
        let options = format!("size={size_bytes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at))?;
        Ok(Self { mounted_at: at.to_owned(), root: fs::File::open(at)?, is_on_loop: false })
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// Fails if some is left even so.
    pub fn fill(&self) -> Result<()> {
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file =
            openat(&self.root, FILLER, flags, Mode::S_IRUSR).context("make a file that fills the disk")?;
        let file = fs::File::from(file);
        let block = file.metadata()?.blksize();
        // What is being written takes room a moment later.
        for _ in 0..16 {
            let free = fstatvfs(&self.root)?.blocks_available();
            if free == 0 {
                return Ok(());
            }
            let wanted = if free > SPARED_BLOCKS { free - SPARED_BLOCKS } else { 1 };
            let size = file.metadata()?.len();
            let taken =
                fallocate(&file, FallocateFlags::empty(), size.cast_signed(), (wanted * block).cast_signed());
            if taken == Err(nix::errno::Errno::ENOSPC) {
                return Ok(());
            }
            taken.context("fill the disk")?;
        }
        Ok(())
    }

    /// # Errors
    /// Fails if the filling file can't be removed.
    pub fn make_room(&self) -> Result<()> {
        unlinkat(&self.root, FILLER, UnlinkatFlags::NoRemoveDir).context("make room on the disk")
    }

    /// Has all writers wait until [`Self::thaw`]. Returns whether it can.
    ///
    /// # Errors
    /// Fails if the disk waits already.
    pub fn freeze(&self) -> Result<bool> {
        if self.is_on_loop {
            self.fsfreeze("--freeze")?;
        }
        Ok(self.is_on_loop)
    }

    /// # Errors
    /// Fails if the disk doesn't wait.
    pub fn thaw(&self) -> Result<()> {
        if self.is_on_loop { self.fsfreeze("--unfreeze") } else { Ok(()) }
    }

    fn fsfreeze(&self, what: &str) -> Result<()> {
        run(Command::new("fsfreeze").args([what, "/proc/self/fd/0"]).stdin(self.root.try_clone()?))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.thaw();
        let _ = umount2(&self.mounted_at, MntFlags::MNT_DETACH);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}", command.get_program(), error.trim());
    Ok(())
}
