//! The pipes of one process: made before it is asked for, written and read meanwhile, removed afterwards. Whoever asks for
//! the process is told their paths.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// What an exec's input is made of.
const PATTERN: u8 = 0x5a;

/// Where a process' pipes are. An empty path is none.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// Dropped, they are removed.
pub struct Pipes {
    pub paths: Paths,
    stdin: Option<JoinHandle<Result<()>>>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Pipes {
    /// `input` is what the process will be given; a terminal has no stderr of its own.
    ///
    /// # Errors
    /// When they can't be made or opened.
    pub fn make(directory: &Path, name: &str, input: usize, terminal: bool) -> Result<Self> {
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
            // Held for reading as well, so that the opening doesn't wait for the other end.
            let sender = pipe::OpenOptions::new().read_write(true).open_sender(&stdin)?;
            pipes.stdin = Some(tokio::spawn(write(sender, input)));
        }
        Ok(pipes)
    }

    /// Returns once all of the input is in the pipe, and our end of it closed.
    ///
    /// # Errors
    /// When it breaks.
    pub async fn written(&mut self) -> Result<bool> {
        match self.stdin.take() {
            Some(writing) => writing.await?.map(|()| true),
            None => Ok(false),
        }
    }

    /// Takes what the process writes to its stdout, so that it can be read while other things are waited for.
    pub fn output(&mut self) -> Option<Output> {
        let stdout = self.stdout.take()?;
        Some(Output { stdout, read: 0 })
    }

    /// What the process said on its stderr. To be asked once it is gone.
    pub async fn complaint(&mut self) -> String {
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

/// What comes out of a process.
pub struct Output {
    stdout: pipe::Receiver,
    read: usize,
}

impl Output {
    /// Of a pipe that somebody else has made.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn of(pipe: &Path) -> Result<Self> {
        let opened = pipe::OpenOptions::new().open_receiver(pipe);
        Ok(Self { stdout: opened.with_context(|| format!("open {}", pipe.display()))?, read: 0 })
    }

    /// Returns when the first byte has come.
    ///
    /// # Errors
    /// When the end comes first.
    pub async fn first(&mut self) -> Result<Instant> {
        let mut buffer = [0; 64 * 1024];
        let count = self.stdout.read(&mut buffer).await.context("read stdout")?;
        let now = Instant::now();
        if count == 0 {
            bail!("its output ended before there was any");
        }
        self.read += count;
        Ok(now)
    }

    /// Reads until the end.
    ///
    /// # Errors
    /// When not so many bytes came.
    pub async fn all(mut self, expected: usize) -> Result<()> {
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

    /// Reads to the end, for nobody.
    pub async fn drain(mut self) {
        let mut buffer = vec![0; 4096];
        while self.stdout.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    }
}
