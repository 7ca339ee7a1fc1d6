//! The named pipes between a task and those who read and write it: Nomad's for the task's logs, our own for execs.
//!
//! The shim opens both ends of each pipe, so what a task writes outlives the plugin and the agent. All that is done
//! here is to make sure that an open never blocks, that a path is really a pipe, and that what was written has been
//! read before the task's end is told.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{ELOOP, O_NOFOLLOW, O_NONBLOCK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use super::Error;

/// How the shims of rust-extensions are called.
const IN_RUST: &[u8] = b"-rs";
/// What Nomad sends when a job's logs are disabled.
pub(crate) const NOWHERE: &str = "/dev/null";
/// As much as the kernel gives to anybody: what a task can write while nobody reads.
const LOG_PIPE_BYTES: i32 = 1 << 20;
/// How often a pipe is looked at that has lost its writer and still holds bytes: the kernel has no event for "empty".
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// And at last, where that takes long.
const LOOK_SELDOM: Duration = Duration::from_millis(50);
/// How long a shim may take to open the stdin of an exec that runs.
const SHIM_COMES: Duration = Duration::from_secs(10);

/// Where a task's output goes, as Nomad gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogPaths {
    pub stdout: PathBuf,
    pub stderr: PathBuf,
}

impl LogPaths {
    /// Opens both pipes, both ways, for as long as the result lives. Meanwhile the shim's own opens find a reader and a
    /// writer and can't block, whether Nomad's log collector is there yet or not; and the collector sees no end between
    /// our close and the shim's open, as long as this is dropped after the create.
    ///
    /// # Errors
    /// Refuses what is not a named pipe: a link in the log directory may be the task's own doing.
    pub(crate) fn hold_open(&self) -> Result<Vec<File>, Error> {
        self.pipes()
            .map(|path| {
                let file = open_pipe(path, OpenOptions::new().read(true).write(true))?;
                Ok(file)
            })
            .collect()
    }

    /// Makes the pipes, large ones, and opens them as [`Self::hold_open`] does.
    ///
    /// # Errors
    /// Names the pipe that could not be made or opened.
    pub(crate) fn make(&self) -> Result<Vec<File>, Error> {
        self.pipes().try_for_each(make_pipe)?;
        let held = self.hold_open()?;
        for pipe in &held {
            // The usual size does, too, where the kernel has no more to give.
            let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(LOG_PIPE_BYTES));
        }
        Ok(held)
    }

    /// Ends for reading of stdout and stderr, where there is a pipe. It does not matter whether anybody writes yet.
    ///
    /// # Errors
    /// Names the pipe that could not be opened.
    pub(crate) fn readers(&self) -> Result<[Option<OwnedFd>; 2], Error> {
        let one = |path: &Path| (path != Path::new(NOWHERE)).then(|| reader(path)).transpose();
        Ok([one(&self.stdout)?, one(&self.stderr)?])
    }

    /// Whether nothing of the output is kept.
    fn are_nowhere(&self) -> bool {
        self.pipes().next().is_none()
    }

    /// # Errors
    /// Where a terminal's output is to go nowhere, and the shim takes it to pipes only.
    pub(crate) fn fit(&self, shim: &Path, tty: bool) -> Result<(), Error> {
        let needs_pipes = shim.as_os_str().as_bytes().ends_with(IN_RUST);
        if tty && self.are_nowhere() && needs_pipes { Err(Error::Unread(shim.to_owned())) } else { Ok(()) }
    }

    /// What a shim is told of them: no path where it needs none, since not every shim writes to what is no pipe. A
    /// terminal has one output, and is to be read whoever wants it.
    pub(super) fn for_shim(&self, tty: bool) -> (String, String) {
        let Self { stdout, stderr } = self;
        let told = |path: &Path| path.display().to_string();
        match tty {
            true => (told(stdout), String::new()),
            false if self.are_nowhere() => (String::new(), String::new()),
            false => (told(stdout), told(stderr)),
        }
    }

    fn pipes(&self) -> impl Iterator<Item = &Path> {
        [self.stdout.as_path(), self.stderr.as_path()].into_iter().filter(|path| *path != Path::new(NOWHERE))
    }
}

fn make_pipe(path: &Path) -> Result<(), Error> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(Error::errno("create the pipe", path))
}

fn reader(path: &Path) -> Result<OwnedFd, Error> {
    Ok(open_pipe(path, OpenOptions::new().read(true))?.into())
}

fn open_pipe(path: &Path, options: &mut OpenOptions) -> Result<File, Error> {
    let refuse = |what| Error::LogPath { path: path.to_owned(), what };
    let file = match options.custom_flags(O_NONBLOCK | O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(ELOOP) => return Err(refuse("is a symbolic link")),
        Err(source) => return Err(Error::File { doing: "open the log pipe", path: path.to_owned(), source }),
    };
    let kind = file.metadata().map_err(Error::file("look at the log pipe", path))?.file_type();
    if kind.is_fifo() { Ok(file) } else { Err(refuse("is not a named pipe")) }
}

/// Waits until the shim has let go of the task's pipes and their readers have taken all that was in them, but no longer
/// than `limit`. It takes no thread: all tasks of a node may end at once.
pub(crate) async fn drained(logs: &LogPaths, limit: Duration) -> bool {
    let all = async {
        for path in logs.pipes() {
            // A reader of its own takes nothing, and lets the writer's end be seen. A pipe that is gone holds nothing.
            let Ok(pipe) = open_pipe(path, OpenOptions::new().read(true)) else { continue };
            // The kernel tells a reader of the last writer's end only if there was one since the reader came.
            drop(open_pipe(path, OpenOptions::new().write(true)));
            let mut pause = LOOK_AGAIN;
            while !is_drained(&pipe) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_SELDOM);
            }
        }
    };
    tokio::time::timeout(limit, all).await.is_ok()
}

/// Asking for nothing reports the last writer's end, and only that.
fn is_drained(pipe: &File) -> bool {
    poll_once(pipe, PollFlags::empty(), Duration::ZERO).contains(PollFlags::POLLHUP)
        && !poll_once(pipe, PollFlags::POLLIN, Duration::ZERO).contains(PollFlags::POLLIN)
}

fn poll_once(pipe: &impl AsFd, events: PollFlags, wait: Duration) -> PollFlags {
    let mut asked = [PollFd::new(pipe.as_fd(), events)];
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    match poll(&mut asked, timeout) {
        Ok(_) => asked[0].revents().unwrap_or(PollFlags::empty()),
        Err(_) => PollFlags::empty(),
    }
}

/// The pipes of one exec, in the task's bundle. Dropped, they are removed.
pub(crate) struct ExecPipes {
    stdin: Option<PathBuf>,
    stdout: PathBuf,
    stderr: Option<PathBuf>,
}

/// Our ends of an exec's pipes.
pub(crate) struct ExecEnds {
    pub stdin: Option<StdinPipe>,
    /// Until the exec has started, this and stderr read as ended: read them only after that.
    pub stdout: pipe::Receiver,
    pub stderr: Option<pipe::Receiver>,
}

impl ExecPipes {
    /// Where the pipes will be. A terminal has no stderr of its own; stdout and stderr are never left out otherwise,
    /// since a shim gives an exec without them a read-only one.
    pub(crate) fn at(directory: &Path, exec_id: &str, stdin: bool, tty: bool) -> Self {
        let at = |name: &str| directory.join(format!("{exec_id}.{name}"));
        Self { stdin: stdin.then(|| at("stdin")), stdout: at("stdout"), stderr: (!tty).then(|| at("stderr")) }
    }

    /// Makes the pipes and opens our ends, so that the shim's opens find the other one.
    ///
    /// # Errors
    /// Names the pipe that could not be made or opened.
    pub(crate) fn open(&self) -> Result<ExecEnds, Error> {
        self.paths().try_for_each(make_pipe)?;
        let read =
            |path: &Path| pipe::OpenOptions::new().open_receiver(path).map_err(Error::file("open", path));
        let write = |path: &Path| {
            let other_end = open_pipe(path, OpenOptions::new().read(true))?;
            let pipe = pipe::OpenOptions::new().open_sender(path).map_err(Error::file("open", path))?;
            Ok(StdinPipe { other_end: Some(other_end), pipe })
        };
        Ok(ExecEnds {
            stdin: self.stdin.as_deref().map(write).transpose()?,
            stdout: read(&self.stdout)?,
            stderr: self.stderr.as_deref().map(read).transpose()?,
        })
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        [self.stdin.as_deref(), Some(self.stdout.as_path()), self.stderr.as_deref()].into_iter().flatten()
    }

    pub(crate) fn stdin_path(&self) -> String {
        self.stdin.as_ref().map_or_else(String::new, |path| path.display().to_string())
    }

    pub(crate) fn stdout_path(&self) -> String {
        self.stdout.display().to_string()
    }

    pub(crate) fn stderr_path(&self) -> String {
        self.stderr.as_ref().map_or_else(String::new, |path| path.display().to_string())
    }
}

impl Drop for ExecPipes {
    fn drop(&mut self) {
        for path in self.paths() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Our end of an exec's stdin.
pub(crate) struct StdinPipe {
    /// Without it there would be no opening ours before the shim opens its own.
    other_end: Option<File>,
    pipe: pipe::Sender,
}

impl StdinPipe {
    /// The shim opens its end some time after it has said that the exec runs. What is written, and then closed, before
    /// that is lost with nobody's end left, and the exec would wait for its input for good.
    ///
    /// # Errors
    /// When the shim doesn't come.
    pub(crate) async fn wait_for_shim(&mut self) -> std::io::Result<()> {
        if self.other_end.take().is_none() {
            return Ok(());
        }
        let comes = async {
            while poll_once(&self.pipe, PollFlags::empty(), Duration::ZERO).contains(PollFlags::POLLERR) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(SHIM_COMES, comes).await.map_err(|_| std::io::ErrorKind::TimedOut.into())
    }

    /// Writes at the reader's speed.
    ///
    /// # Errors
    /// When the shim no longer reads.
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.pipe.write_all(bytes).await
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pipe_at(directory: &Path) -> LogPaths {
        let path = directory.join(".task.stdout.fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        LogPaths { stdout: path, stderr: NOWHERE.into() }
    }

    #[test]
    fn a_shim_is_told_of_no_path_where_nothing_is_kept_but_a_terminals() {
        let nowhere = LogPaths { stdout: NOWHERE.into(), stderr: NOWHERE.into() };
        assert_eq!(nowhere.for_shim(false), (String::new(), String::new()));
        assert_eq!(nowhere.for_shim(true), (NOWHERE.to_owned(), String::new()));
        let kept = LogPaths { stdout: "/o".into(), stderr: "/e".into() };
        assert_eq!(kept.for_shim(false), ("/o".to_owned(), "/e".to_owned()));
        assert_eq!(kept.for_shim(true), ("/o".to_owned(), String::new()));
        let in_rust = Path::new("/opt/containerd-shim-runc-v2-rs");
        kept.fit(in_rust, true).unwrap();
        nowhere.fit(in_rust, false).unwrap();
        nowhere.fit(Path::new("/usr/bin/containerd-shim-runc-v2"), true).unwrap();
        let error = nowhere.fit(in_rust, true).unwrap_err().to_string();
        assert!(error.contains("tty") && error.contains("containerd_runtime"), "{error}");
    }

    #[test]
    fn a_log_path_that_is_a_link_or_a_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let logs = pipe_at(directory.path());
        assert_eq!(logs.hold_open().unwrap().len(), 1);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&logs.stdout, &link).unwrap();
        let error = LogPaths { stdout: link, ..logs.clone() }.hold_open().unwrap_err().to_string();
        assert!(error.ends_with("link is a symbolic link"), "{error}");
        let file = directory.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let error = LogPaths { stdout: file, ..logs }.hold_open().unwrap_err().to_string();
        assert!(error.ends_with("file is not a named pipe"), "{error}");
    }

    #[tokio::test]
    async fn a_pipe_is_drained_when_its_writer_is_gone_and_it_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let logs = pipe_at(directory.path());
        let mut reader = open_pipe(&logs.stdout, OpenOptions::new().read(true)).unwrap();
        let mut writer = open_pipe(&logs.stdout, OpenOptions::new().write(true)).unwrap();
        writer.write_all(b"last words").unwrap();
        assert!(!drained(&logs, Duration::from_millis(20)).await, "the writer is still there");
        drop(writer);
        assert!(!drained(&logs, Duration::from_millis(20)).await, "nobody has read yet");
        let mut words = [0; 10];
        reader.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"last words", "looking took nothing");
        assert!(drained(&logs, Duration::from_millis(200)).await);
    }

    #[tokio::test]
    async fn input_that_ends_before_the_shim_comes_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let pipes = ExecPipes::at(directory.path(), "e1", true, false);
        let mut stdin = pipes.open().unwrap().stdin.unwrap();
        let write = async {
            stdin.wait_for_shim().await.unwrap();
            stdin.write_all(b"all of it").await.unwrap();
            drop(stdin);
        };
        let path = pipes.stdin.clone().unwrap();
        let shim = tokio::task::spawn_blocking(move || {
            // A moment in which the input could get lost.
            std::thread::sleep(Duration::from_millis(20));
            std::fs::read_to_string(path).unwrap()
        });
        let (read, ()) = tokio::join!(shim, write);
        assert_eq!(read.unwrap(), "all of it");
    }

    #[tokio::test]
    async fn pipes_of_an_exec_go_with_their_owner() {
        let directory = tempfile::tempdir().unwrap();
        let pipes = ExecPipes::at(directory.path(), "e1", true, false);
        let _ends = pipes.open().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
        drop(pipes);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
