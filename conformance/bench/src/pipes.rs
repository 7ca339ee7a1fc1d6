//! The named pipes for stdin, stdout and stderr of one process: created before the process, written and read while it
//! runs, removed afterwards. Whoever starts the process is given their paths.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// The byte that the input of an exec consists of.
const PATTERN: u8 = 0x5a;

/// Paths of a process' pipes. An empty path is no pipe.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The pipes of a process, removed on drop.
pub(crate) struct Pipes {
    pub(crate) paths: Paths,
    stdin: Option<JoinHandle<Result<()>>>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Pipes {
    /// Creates the pipes. `input` is the number of bytes that the process is given on stdin. A terminal has no stderr
    /// of its own.
    ///
    /// # Errors
    /// Fails if a pipe can't be created or opened.
    pub(crate) fn make(directory: &Path, name: &str, input: usize, terminal: bool) -> Result<Self> {
        let make = |end: &str| -> Result<PathBuf> {
            let path = directory.join(format!("{name}.{end}"));
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
                .with_context(|| format!("make {}", path.display()))?;
            Ok(path)
        };
        let shown = |path: &Path| path.display().to_string();
        let mut pipes = Self { paths: Paths::default(), stdin: None, stdout: None, stderr: None };
        let stdout = make("out")?;
        pipes.paths.stdout = shown(&stdout);
        pipes.stdout = Some(pipe::OpenOptions::new().open_receiver(&stdout)?);
        if !terminal {
            let stderr = make("err")?;
            pipes.paths.stderr = shown(&stderr);
            pipes.stderr = Some(pipe::OpenOptions::new().open_receiver(&stderr)?);
        }
        if input > 0 {
            let stdin = make("in")?;
            pipes.paths.stdin = shown(&stdin);
            // Opened for reading as well, so that the open doesn't block until the other end is opened.
            let sender = pipe::OpenOptions::new().read_write(true).open_sender(&stdin)?;
            pipes.stdin = Some(tokio::spawn(write(sender, input)));
        }
        Ok(pipes)
    }

    /// Waits until all of the input is in the pipe and our end of it is closed. Returns whether there was any input.
    ///
    /// # Errors
    /// Fails if the pipe breaks.
    pub(crate) async fn written(&mut self) -> Result<bool> {
        match self.stdin.take() {
            Some(writing) => writing.await?.map(|()| true),
            None => Ok(false),
        }
    }

    /// Takes the reader of the process' stdout, so that it can be read while other events are awaited.
    pub(crate) fn output(&mut self) -> Option<Output> {
        let stdout = self.stdout.take()?;
        Some(Output { stdout, read: 0 })
    }

    /// Returns what the process wrote to its stderr. Called once the process is gone.
    pub(crate) async fn complaint(&mut self) -> String {
        let mut all = Vec::new();
        if let Some(stderr) = &mut self.stderr {
            let _ = stderr.read_to_end(&mut all).await;
        }
        String::from_utf8_lossy(&all).trim().to_owned()
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        if let Some(writing) = &self.stdin {
            writing.abort();
        }
        let Paths { stdin, stdout, stderr } = &self.paths;
        for path in [stdin, stdout, stderr] {
            if !path.is_empty() {
                let _ = fs::remove_file(path);
            }
        }
    }
}

async fn write(mut sender: pipe::Sender, bytes: usize) -> Result<()> {
    sender.write_all(&vec![PATTERN; bytes]).await.context("write to stdin")
}

/// The reader of a process' stdout.
pub(crate) struct Output {
    stdout: pipe::Receiver,
    read: usize,
}

impl Output {
    /// Opens a pipe that somebody else has created.
    ///
    /// # Errors
    /// Fails if the pipe can't be opened.
    pub(crate) fn of(pipe: &Path) -> Result<Self> {
        let opened = pipe::OpenOptions::new().open_receiver(pipe);
        Ok(Self { stdout: opened.with_context(|| format!("open {}", pipe.display()))?, read: 0 })
    }

    /// Waits for the first byte, and returns when it came.
    ///
    /// # Errors
    /// Fails if the output ends before that.
    pub(crate) async fn first(&mut self) -> Result<Instant> {
        let mut buffer = [0; 64 * 1024];
        let count = self.stdout.read(&mut buffer).await.context("read stdout")?;
        let now = Instant::now();
        if count == 0 {
            bail!("its output ended before there was any");
        }
        self.read += count;
        Ok(now)
    }

    /// Reads until the end of the output.
    ///
    /// # Errors
    /// Fails if the output doesn't have `expected` bytes.
    pub(crate) async fn all(mut self, expected: usize) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = self.stdout.read(&mut buffer).await.context("read stdout")?;
            if count == 0 {
                break;
            }
            self.read += count;
        }
        ensure!(self.read == expected, "{} bytes came out and not {expected}", self.read);
        Ok(())
    }

    /// Reads and discards the rest of the output.
    pub(crate) async fn drain(mut self) {
        let mut buffer = vec![0; 4096];
        while self.stdout.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    }
}
