//! A reader of a task's output like Nomad's logmon: it reads a named pipe until the last writer has closed it. It can
//! be slow or absent, or die and come back.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Interval at which a reader checks whether it has to stop.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    ended: bool,
}

/// The reader of one pipe. Stops reading on drop.
pub struct Reader {
    path: PathBuf,
    kept: Arc<Mutex<Kept>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Returns a reader that has not been started.
    pub fn absent(path: &Path) -> Self {
        Self { path: path.to_owned(), kept: Arc::default(), stop: Arc::default(), thread: None }
    }

    /// Starts to read, with a pause after each 4 KiB.
    ///
    /// # Errors
    /// Names the pipe that can't be opened.
    pub fn start(&mut self, pause: Duration) -> Result<()> {
        // Opened without blocking: as long as there has been no writer, there is nothing to read and no end either.
        let pipe = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&self.path);
        let pipe = pipe.with_context(|| format!("open {} as its reader", self.path.display()))?;
        let (kept, stop) = (Arc::clone(&self.kept), Arc::clone(&self.stop));
        lock(&self.kept).ended = false;
        self.stop.store(false, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("logmon".to_owned());
        self.thread = Some(thread.spawn(move || read(pipe, &kept, &stop, pause))?);
        Ok(())
    }

    /// Stops reading, as a reader that dies does: what it has read is kept, the rest stays in the pipe.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.kept).bytes).into_owned()
    }

    pub fn len(&self) -> usize {
        lock(&self.kept).bytes.len()
    }

    /// Waits until the last writer has closed the pipe, and returns all output.
    ///
    /// # Errors
    /// Fails if the end doesn't come in time, and says how much was read.
    pub async fn to_end(&self, limit: Duration) -> Result<Vec<u8>> {
        self.until(limit, "its end", |kept| kept.ended).await?;
        Ok(lock(&self.kept).bytes.clone())
    }

    /// Waits until the output contains a text.
    ///
    /// # Errors
    /// Shows what came instead.
    pub async fn to_contain(&self, text: &str, limit: Duration) -> Result<()> {
        self.until(limit, text, |kept| String::from_utf8_lossy(&kept.bytes).contains(text)).await
    }

    /// Waits until the output has at least `bytes` bytes.
    ///
    /// # Errors
    /// Shows what came instead.
    pub async fn to_hold(&self, bytes: usize, limit: Duration) -> Result<()> {
        self.until(limit, "so many bytes", |kept| kept.bytes.len() >= bytes).await
    }

    async fn until(&self, limit: Duration, what: &str, done: impl Fn(&Kept) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !done(&lock(&self.kept)) {
            if Instant::now() > deadline {
                let text = self.text();
                let shown: String = text.chars().take(400).collect();
                bail!(
                    "{} did not bring {what:?} in {limit:?}; {} bytes came: {shown}",
                    self.path.display(),
                    text.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(mut pipe: File, kept: &Mutex<Kept>, stop: &AtomicBool, pause: Duration) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let mut asked = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        let woken = poll(&mut asked, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO));
        if matches!(woken, Ok(0) | Err(_)) {
            continue;
        }
        match pipe.read(&mut buffer) {
            Ok(0) => {
                lock(kept).ended = true;
                return;
            }
            Ok(read) => lock(kept).bytes.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}
