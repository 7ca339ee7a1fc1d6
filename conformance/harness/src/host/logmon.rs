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
/// Number of bytes that are shown of where a word was found.
const SHOWN_BYTES: usize = 200;

#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    ended: bool,
    search: Option<Search>,
}

/// A search for a word in bytes that come in pieces, of which it keeps no more than it needs.
#[derive(Clone)]
pub struct Search {
    word: &'static str,
    /// End of the earlier pieces, which may be the beginning of the word.
    rest: Vec<u8>,
    found: Option<String>,
}

impl Search {
    /// Returns a search for a word, which is not empty.
    pub fn of(word: &'static str) -> Self {
        Self { word, rest: Vec::new(), found: None }
    }

    /// Goes on with the next piece.
    pub fn add(&mut self, piece: &[u8]) {
        if self.found.is_some() {
            return;
        }
        self.rest.extend_from_slice(piece);
        let at = self.rest.windows(self.word.len()).position(|window| window == self.word.as_bytes());
        if let Some(at) = at {
            let end = self.rest.len().min(at + SHOWN_BYTES);
            self.found = Some(String::from_utf8_lossy(&self.rest[at..end]).into_owned());
        }
        self.rest.drain(..self.rest.len().saturating_sub(self.word.len() - 1));
    }

    /// Returns the word with what came after it, if it was found.
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }
}

/// The reader of one pipe. Stops reading on drop.
pub struct Reader {
    path: PathBuf,
    received: Arc<Mutex<Received>>,
    stop: Arc<AtomicBool>,
    kept_bytes: usize,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Returns a reader that has not been started.
    pub fn absent(path: &Path) -> Self {
        let (received, stop) = (Arc::default(), Arc::default());
        Self { path: path.to_owned(), received, stop, kept_bytes: usize::MAX, thread: None }
    }

    /// Keeps no more than the first bytes of what is read from the next start on.
    pub fn keep_only(&mut self, bytes: usize) {
        self.kept_bytes = bytes;
    }

    /// Looks for a word in all that is read, also beyond what is kept.
    pub fn look_for(&self, word: &'static str) {
        lock(&self.received).search = Some(Search::of(word));
    }

    /// Returns the word of [`Self::look_for`] with what came after it, if it was read.
    pub fn found(&self) -> Option<String> {
        lock(&self.received).search.as_ref()?.found().map(str::to_owned)
    }

    /// Starts to read, with a pause after each 4 KiB.
    ///
    /// # Errors
    /// Names the pipe that can't be opened.
    pub fn start(&mut self, pause: Duration) -> Result<()> {
        // Opened without blocking: as long as there has been no writer, there is nothing to read and no end either.
        let pipe = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&self.path);
        let pipe = pipe.with_context(|| format!("open {} as its reader", self.path.display()))?;
        let (received, stop) = (Arc::clone(&self.received), Arc::clone(&self.stop));
        lock(&self.received).ended = false;
        self.stop.store(false, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("logmon".to_owned());
        let kept_bytes = self.kept_bytes;
        self.thread = Some(thread.spawn(move || read(pipe, &received, &stop, pause, kept_bytes))?);
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
        String::from_utf8_lossy(&lock(&self.received).bytes).into_owned()
    }

    pub fn len(&self) -> usize {
        lock(&self.received).bytes.len()
    }

    /// Waits until the last writer has closed the pipe, and returns all output.
    ///
    /// # Errors
    /// Fails if the end doesn't come in time, and says how much was read.
    pub async fn to_end(&self, limit: Duration) -> Result<Vec<u8>> {
        self.until(limit, "its end", |received| received.ended).await?;
        Ok(lock(&self.received).bytes.clone())
    }

    /// Waits until the output contains a text.
    ///
    /// # Errors
    /// Shows what came instead.
    pub async fn to_contain(&self, text: &str, limit: Duration) -> Result<()> {
        self.until(limit, text, |received| String::from_utf8_lossy(&received.bytes).contains(text)).await
    }

    /// Waits until the output has at least `bytes` bytes.
    ///
    /// # Errors
    /// Shows what came instead.
    pub async fn to_hold(&self, bytes: usize, limit: Duration) -> Result<()> {
        self.until(limit, "so many bytes", |received| received.bytes.len() >= bytes).await
    }

    async fn until(&self, limit: Duration, what: &str, done: impl Fn(&Received) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !done(&lock(&self.received)) {
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

fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(mut pipe: File, received: &Mutex<Received>, stop: &AtomicBool, pause: Duration, kept_bytes: usize) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        let woken = poll(&mut polled, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO));
        if matches!(woken, Ok(0) | Err(_)) {
            continue;
        }
        match pipe.read(&mut buffer) {
            Ok(0) => {
                lock(received).ended = true;
                return;
            }
            Ok(read) => {
                let mut received = lock(received);
                let room = kept_bytes.saturating_sub(received.bytes.len());
                received.bytes.extend_from_slice(&buffer[..read.min(room)]);
                if let Some(search) = &mut received.search {
                    search.add(&buffer[..read]);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_wherever_the_pieces_part() {
        for size in 1..20 {
            let mut search = Search::of("BREACH");
            "x BREAK BREBREACH y".as_bytes().chunks(size).for_each(|piece| search.add(piece));
            assert!(search.found().is_some_and(|found| found.starts_with("BREACH")), "{size}");
        }
        let mut search = Search::of("BREACH");
        b"BREACBREAK".repeat(1000).chunks(7).for_each(|piece| search.add(piece));
        assert_eq!((search.found(), search.rest.len()), (None, 5));
    }
}
