//! A small disk for a state directory, which can be filled and stopped.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;

/// Size of the disk: enough for the bundles of some tasks.
const SIZE_BYTES: u64 = 64 * 1024 * 1024;
/// Room that is left at first by what the filling file needs for itself.
const SPARED_BLOCKS: u64 = 8;

/// A file system of its own, unmounted on drop.
pub struct Disk {
    mounted_at: PathBuf,
}

impl Disk {
    /// Makes a file system in the file `image`, and mounts it.
    ///
    /// # Errors
    /// Fails if the machine has no loop devices, or no ext4.
    pub fn mount(image: &Path, at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        fs::File::create(image)?.set_len(SIZE_BYTES)?;
        // Without blocks that only root may have, the disk is full when it is full.
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-E", "nodiscard"]).arg(image))?;
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(image).arg(at))?;
        Ok(Self { mounted_at: at.to_owned() })
    }

    fn filler(&self) -> PathBuf {
        self.mounted_at.join("filler")
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// Fails if some is left even so.
    pub fn fill(&self) -> Result<()> {
        let file = fs::File::create(self.filler()).context("make a file that fills the disk")?;
        let block = file.metadata()?.blksize();
        // What is being written takes room a moment later.
        for _ in 0..16 {
            let free = statvfs(&self.mounted_at)?.blocks_available();
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
        fs::remove_file(self.filler()).context("make room on the disk")
    }

    /// Has all writers wait until [`Self::thaw`].
    ///
    /// # Errors
    /// Fails if the disk waits already.
    pub fn freeze(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.mounted_at))
    }

    /// # Errors
    /// Fails if the disk doesn't wait.
    pub fn thaw(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("--unfreeze").arg(&self.mounted_at))
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
