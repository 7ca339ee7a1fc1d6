//! The pipes of one exec that is asked for without the plugin: made, read to their end, removed, as the plugin does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

pub struct Pipes {
    pub exec_id: String,
    stdout: PathBuf,
    stderr: PathBuf,
    readers: [pipe::Receiver; 2],
}

impl Pipes {
    /// # Errors
    /// When they can't be made or opened.
    pub fn make(directory: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let exec_id = format!("measure-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let [stdout, stderr] = ["out", "err"].map(|end| directory.join(format!("{exec_id}.{end}")));
        let open = |path: &Path| -> Result<_> {
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            Ok(pipe::OpenOptions::new().open_receiver(path)?)
        };
        let readers = [open(&stdout)?, open(&stderr)?];
        Ok(Self { exec_id, stdout, stderr, readers })
    }

    pub fn stdout(&self) -> String {
        self.stdout.display().to_string()
    }

    pub fn stderr(&self) -> String {
        self.stderr.display().to_string()
    }

    /// Reads both to their ends, once nobody holds them any more.
    ///
    /// # Errors
    /// When they break.
    pub async fn drain(mut self) -> Result<()> {
        let mut all = Vec::new();
        for reader in &mut self.readers {
            reader.read_to_end(&mut all).await?;
        }
        Ok(())
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        let _ = (fs::remove_file(&self.stdout), fs::remove_file(&self.stderr));
    }
}
