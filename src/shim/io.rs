//! Handles the named pipes between a task and those who read and write it: Nomad's for the task's logs, and the
//! driver's for logs that the driver collects, for a stdin that stays open, and for execs.
//!
//! The shim opens both ends of each pipe, so what a task writes outlives the plugin and the agent. This module makes
//! sure that an open never blocks, that a path is really a pipe, and that the output has been read before the task's
//! exit is reported.

#![expect(
    clippy::disallowed_methods,
    reason = "opens pipes of the bundle, and those of Nomad that were looked at by descriptor"
)]

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;

use super::{Bundle, Error};
use crate::sys::blocking;
use crate::sys::host_files;
use crate::sys::host_path::{self, HostPathError};

/// Suffix of the names of rust-extensions' shims.
const RUST_SHIM_SUFFIX: &[u8] = b"-rs";
/// Path that Nomad sends for both streams if a job's logs are disabled.
pub(crate) const DEV_NULL: &str = "/dev/null";
/// Path of Nomad's pipes in an allocation's directory.
const ALLOC_LOGS: &str = "alloc/logs";
/// Size of a log pipe that the driver makes: what a task can write while nobody reads. It is the most that the kernel
/// gives to any process.
const LOG_PIPE_BYTES: i32 = 1 << 20;
/// Interval between the first checks of a pipe, which is polled until it has lost its writer and is empty: the kernel
/// has no event for "empty". The same interval is used for whether a shim has opened the stdin of an exec.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Maximum interval between checks of whether a pipe is empty, to which the interval doubles.
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum time for a shim to open the stdin of an exec that runs.
const STDIN_OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The paths of a task's log pipes, or [`DEV_NULL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogPaths {
    pub stdout: PathBuf,
    pub stderr: PathBuf,
}

/// A task's log pipes, held open both ways, and the path of its stdin if that is a pipe, too.
pub(crate) struct HeldPipes {
    stdin: Option<PathBuf>,
    stdout: Option<File>,
    stderr: Option<File>,
    ids: LogPipeIds,
}

impl HeldPipes {
    /// Makes a pipe for the task's stdin in its bundle, and returns a descriptor of its writing end. As long as somebody
    /// holds that, stdin has no end; nothing is written to it.
    ///
    /// # Errors
    /// Names the pipe that could not be made or opened.
    pub(crate) async fn make_stdin(&mut self, bundle: &Bundle) -> Result<OwnedFd, Error> {
        let path = bundle.stdin_pipe();
        self.stdin = Some(path.clone());
        let make = move || -> Result<OwnedFd, Error> {
            make_pipe(&path)?;
            // An open for writing alone would fail without a reader.
            Ok(open_pipe(&path, OpenOptions::new().read(true).write(true))?.into())
        };
        blocking::run(make).await
    }

    /// Returns the path of stdin that a shim is told; empty for a stdin that is at its end.
    pub(super) fn stdin_for_shim(&self) -> String {
        self.stdin.as_ref().map_or_else(String::new, |path| path.display().to_string())
    }

    /// Returns the paths of stdout and stderr that a shim is told: this process's own descriptors, since the path of a
    /// pipe could lead to something else by then, and not every name can be in a path that shims take for a URL. The
    /// shim opens them while it creates its task, and never again. If the logs of both streams are disabled, the paths
    /// are empty, since not every shim writes to what is no pipe; but for a shim that `needs_paths`, as gVisor's, which
    /// without paths gives its tasks an output that can't be written. A terminal has one output, which is to be read
    /// even if the logs are disabled.
    pub(super) fn for_shim(&self, tty: bool, needs_paths: bool) -> (String, String) {
        let own = std::process::id();
        let shown = |pipe: &Option<File>| match pipe {
            Some(pipe) => format!("/proc/{own}/fd/{}", pipe.as_raw_fd()),
            None => DEV_NULL.to_owned(),
        };
        match (tty, &self.stdout, &self.stderr) {
            (true, stdout, _) => (shown(stdout), String::new()),
            (false, None, None) if !needs_paths => (String::new(), String::new()),
            (false, stdout, stderr) => (shown(stdout), shown(stderr)),
        }
    }

    /// Returns what the pipes are.
    pub(crate) fn ids(&self) -> LogPipeIds {
        self.ids.clone()
    }

    fn pipes(&self) -> impl Iterator<Item = &File> {
        [&self.stdout, &self.stderr].into_iter().flatten()
    }
}

/// Devices and inodes of a task's log pipes.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogPipeIds(Vec<(u64, u64)>);

impl LogPipeIds {
    /// Returns whether a process has one of the pipes as its stdout or stderr; false once it has ended.
    ///
    /// # Errors
    /// Names the descriptor that can't be looked at.
    pub(crate) fn are_with(&self, pid: i32) -> Result<bool, Error> {
        for number in [1, 2] {
            let path = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
            match std::fs::metadata(&path) {
                Ok(file) if self.0.contains(&id_of(&file)) => return Ok(true),
                Ok(_) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(Error::file("look at", &path)(error)),
            }
        }
        Ok(false)
    }
}

/// Returns whether the error says that a process has ended, or has closed the descriptor.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

fn id_of(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl LogPaths {
    /// Opens both pipes, both ways, for as long as the result lives. Meanwhile the shim's own opens find a reader and a
    /// writer and can't block, whether Nomad's log collector is there yet or not; and the collector sees no end of file
    /// between the driver's close and the shim's open, as long as the result is dropped after the create.
    ///
    /// # Errors
    /// Refuses a path that is not a named pipe: a link in the log directory may be the task's own doing.
    pub(crate) fn hold_open(&self) -> Result<HeldPipes, Error> {
        let hold = |path: &Path| open_pipe(path, OpenOptions::new().read(true).write(true));
        let [stdout, stderr] =
            [&self.stdout, &self.stderr].map(|path| unless_disabled(path).map(hold).transpose());
        let (stdout, stderr) = (stdout?, stderr?);
        let mut ids = Vec::new();
        for (pipe, path) in [(&stdout, &self.stdout), (&stderr, &self.stderr)] {
            if let Some(pipe) = pipe {
                ids.push(id_of(&pipe.metadata().map_err(Error::file("look at", path))?));
            }
        }
        Ok(HeldPipes { stdin: None, stdout, stderr, ids: LogPipeIds(ids) })
    }

    /// Makes the pipes, of [`LOG_PIPE_BYTES`] each, and opens them as [`Self::hold_open`] does.
    ///
    /// # Errors
    /// Names the pipe that could not be made or opened.
    pub(crate) fn make(&self) -> Result<HeldPipes, Error> {
        self.pipes().try_for_each(make_log_pipe)?;
        let held = self.hold_open()?;
        for pipe in held.pipes() {
            // The default size is enough, too, if the kernel has no more to give.
            let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(LOG_PIPE_BYTES));
        }
        Ok(held)
    }

    /// Makes the pipes, and opens them for reading. Their size is set by whoever comes to use them ([`Self::make`]).
    ///
    /// # Errors
    /// Names the pipe that could not be made or opened.
    pub(super) fn make_readers(&self) -> Result<[Option<OwnedFd>; 2], Error> {
        self.pipes().try_for_each(make_log_pipe)?;
        self.readers()
    }

    /// Opens stdout and stderr for reading, each if it has a pipe, whether or not anybody writes yet.
    ///
    /// # Errors
    /// Names the pipe that could not be opened.
    pub(crate) fn readers(&self) -> Result<[Option<OwnedFd>; 2], Error> {
        let one = |path| unless_disabled(path).map(reader).transpose();
        Ok([one(&self.stdout)?, one(&self.stderr)?])
    }

    /// Opens stdout and stderr for writing, each if it has a pipe, whether or not anybody reads yet, and whether or not the
    /// other one can be opened. They are not open for reading, so that a write fails while nobody reads, rather than waits
    /// for nobody. A path that is not a named pipe is refused, as [`Self::hold_open`] does.
    pub(crate) fn writers(&self) -> [Option<Result<OwnedFd, Error>>; 2] {
        let one = |path| unless_disabled(path).map(writer);
        [one(&self.stdout), one(&self.stderr)]
    }

    /// Checks that a shim can write a task's output to these paths.
    ///
    /// # Errors
    /// [`Error::UndiscardableOutput`] if the output of a terminal is to be discarded, and the shim writes to pipes only.
    pub(crate) fn check_writable_by(&self, shim: &Path, tty: bool) -> Result<(), Error> {
        let needs_pipes = shim.as_os_str().as_bytes().ends_with(RUST_SHIM_SUFFIX);
        let has_pipe = self.pipes().next().is_some();
        if tty && !has_pipe && needs_pipes {
            Err(Error::UndiscardableOutput(shim.to_owned()))
        } else {
            Ok(())
        }
    }

    fn pipes(&self) -> impl Iterator<Item = &Path> {
        [&self.stdout, &self.stderr].into_iter().filter_map(|path| unless_disabled(path))
    }

    /// Opens the pipes for reading, to see when the last writer has closed each; nothing is read from them. Pipes that
    /// are gone are left out, since they hold nothing.
    fn observers(&self) -> Vec<File> {
        let observer = |path: &Path| {
            let place = find_pipe(path).ok()?;
            let pipe = host_path::reopen(&place, OpenOptions::new().read(true)).ok()?;
            // The kernel reports the last writer's close to a reader only if there was a writer since the reader came.
            drop(host_path::reopen(&place, OpenOptions::new().write(true)));
            Some(pipe)
        };
        self.pipes().filter_map(observer).collect()
    }
}

/// Returns the path, unless it is [`DEV_NULL`].
fn unless_disabled(path: &Path) -> Option<&Path> {
    (path != Path::new(DEV_NULL)).then_some(path)
}

/// Makes a pipe unless it is there: a shim that was launched ahead has brought it. Whether what is there is a pipe is found
/// out when it is opened.
fn make_log_pipe(path: &Path) -> Result<(), Error> {
    match make_pipe(path) {
        Err(Error::File { source, .. }) if source.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn make_pipe(path: &Path) -> Result<(), Error> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(Error::errno("create the pipe", path))
}

fn reader(path: &Path) -> Result<OwnedFd, Error> {
    Ok(open_pipe(path, OpenOptions::new().read(true))?.into())
}

fn writer(path: &Path) -> Result<OwnedFd, Error> {
    let place = find_pipe(path)?;
    let open = |options: &mut OpenOptions| {
        host_path::reopen(&place, options).map_err(Error::file("open the log pipe", path))
    };
    // An open for writing alone fails without a reader.
    let _reader = open(OpenOptions::new().read(true))?;
    Ok(open(OpenOptions::new().write(true))?.into())
}

/// Opens a named pipe by the descriptor that was checked, so that nothing else is opened, not even for a moment.
fn open_pipe(path: &Path, options: &mut OpenOptions) -> Result<File, Error> {
    host_path::reopen(&find_pipe(path)?, options).map_err(Error::file("open the log pipe", path))
}

fn find_pipe(path: &Path) -> Result<OwnedFd, Error> {
    let refuse = |what| Error::LogPath { path: path.to_owned(), what };
    let (root, rest) = split_root(path);
    host_path::find_pipe(root, rest).map_err(|error| match error {
        HostPathError::Link { .. } => refuse("is, or goes through, a symbolic link"),
        HostPathError::WrongKind { .. } => refuse("is not a named pipe"),
        HostPathError::Missing(_) => Error::file("open the log pipe", path)(ErrorKind::NotFound.into()),
        HostPathError::Io { source, .. } => Error::file("open the log pipe", path)(source),
        error => Error::file("open the log pipe", path)(io::Error::other(error)),
    })
}

/// Splits a pipe's path into its root and the rest, which others may change: of Nomad's pipes all that is below the
/// allocation's directory, of the driver's own pipes the name alone.
fn split_root(path: &Path) -> (&Path, &Path) {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let allocation = parent.ends_with(ALLOC_LOGS).then(|| parent.parent()?.parent()).flatten();
    let root = allocation.unwrap_or(parent);
    (root, path.strip_prefix(root).unwrap_or(path))
}

/// Waits until the shim has closed the task's pipes and their readers have read all that was in them, but no longer
/// than `limit`; returns whether they have. The wait occupies no thread: all tasks of a node may end at once.
pub(crate) async fn wait_drained(logs: &LogPaths, limit: Duration) -> bool {
    let logs = logs.clone();
    let all = async {
        let place = logs.stdout.clone();
        // A pipe that can't be opened in time counts as not drained.
        let Ok(pipes) = host_files::look(&place, limit, move || logs.observers()).await else { return false };
        for pipe in pipes {
            let mut pause = POLL_INTERVAL;
            while !is_drained(&pipe) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_POLL_INTERVAL);
            }
        }
        true
    };
    tokio::time::timeout(limit, all).await.unwrap_or(false)
}

/// Returns whether a pipe has lost its last writer and is empty. A poll for no events reports the former, and only
/// that.
fn is_drained(pipe: &File) -> bool {
    poll_once(pipe, PollFlags::empty(), Duration::ZERO).contains(PollFlags::POLLHUP)
        && !poll_once(pipe, PollFlags::POLLIN, Duration::ZERO).contains(PollFlags::POLLIN)
}

fn poll_once(pipe: &impl AsFd, events: PollFlags, wait: Duration) -> PollFlags {
    let mut polled = [PollFd::new(pipe.as_fd(), events)];
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    match poll(&mut polled, timeout) {
        Ok(_) => polled[0].revents().unwrap_or(PollFlags::empty()),
        Err(_) => PollFlags::empty(),
    }
}

/// The pipes of one exec, in the task's bundle. Dropped, they are removed.
pub(crate) struct ExecPipes {
    stdin: Option<PathBuf>,
    stdout: PathBuf,
    stderr: Option<PathBuf>,
}

/// The driver's ends of an exec's pipes.
pub(crate) struct ExecEnds {
    pub stdin: Option<StdinPipe>,
    /// The exec's stdout. Until the exec has started, stdout and stderr read as ended: read them only after that.
    pub stdout: pipe::Receiver,
    pub stderr: Option<pipe::Receiver>,
}

impl ExecPipes {
    /// Returns the pipes of an exec, which are not made yet. A terminal has no stderr of its own; stdout and stderr are
    /// never left out otherwise, since a shim gives an exec without them a read-only one.
    pub(crate) fn at(directory: &Path, exec_id: &str, stdin: bool, tty: bool) -> Self {
        let at = |name: &str| directory.join(format!("{exec_id}.{name}"));
        Self { stdin: stdin.then(|| at("stdin")), stdout: at("stdout"), stderr: (!tty).then(|| at("stderr")) }
    }

    /// Makes the pipes and opens the driver's ends, so that the shim's opens find the other end.
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
        let paths: Vec<_> = self.paths().map(Path::to_owned).collect();
        let remove = move || paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// The driver's end of an exec's stdin.
pub(crate) struct StdinPipe {
    /// The reading end, without which the writing end could not be opened before the shim opens the pipe. Closed once
    /// the driver waits for the shim.
    other_end: Option<File>,
    pipe: pipe::Sender,
}

impl StdinPipe {
    /// Waits until the shim has opened its end, which it does some time after it has said that the exec runs. Input
    /// that is written before, in a pipe that is then closed, is lost with the last open end, and the exec would wait
    /// for its input forever.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if the shim doesn't open it.
    pub(crate) async fn wait_for_shim(&mut self) -> io::Result<()> {
        if self.other_end.take().is_none() {
            return Ok(());
        }
        let opened = async {
            while poll_once(&self.pipe, PollFlags::empty(), Duration::ZERO).contains(PollFlags::POLLERR) {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(STDIN_OPEN_TIMEOUT, opened).await.map_err(|_| ErrorKind::TimedOut.into())
    }

    /// Writes at the reader's speed.
    ///
    /// # Errors
    /// When the shim no longer reads.
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
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
        LogPaths { stdout: path, stderr: DEV_NULL.into() }
    }

    #[test]
    fn a_process_has_a_log_pipe_or_others() {
        let directory = tempfile::tempdir().unwrap();
        let own = std::process::id().cast_signed();
        let of = |path: &str| std::fs::metadata(path).map(|file| id_of(&file)).unwrap();
        let pipes = pipe_at(directory.path()).hold_open().unwrap();
        assert!(!pipes.ids().are_with(own).unwrap());
        for number in [1, 2] {
            let mut ids = pipes.ids();
            ids.0.push(of(&format!("/proc/self/fd/{number}")));
            assert!(ids.are_with(own).unwrap() && !ids.are_with(i32::MAX).unwrap());
        }
    }

    #[test]
    fn log_paths_for_a_shim_are_descriptors_and_empty_when_disabled() {
        let shown = |stdout: bool, stderr: bool, tty| {
            let pipe = |kept: bool| kept.then(|| File::open("/dev/null").unwrap());
            let held = HeldPipes {
                stdin: None,
                stdout: pipe(stdout),
                stderr: pipe(stderr),
                ids: LogPipeIds::default(),
            };
            let path = |pipe: &Option<File>| {
                let number = pipe.as_ref().map(AsRawFd::as_raw_fd);
                number.map_or(DEV_NULL.to_owned(), |fd| format!("/proc/{}/fd/{fd}", std::process::id()))
            };
            (held.for_shim(tty, false), (path(&held.stdout), path(&held.stderr)))
        };
        let nothing = (String::new(), String::new());
        assert_eq!(shown(false, false, false).0, nothing);
        assert_eq!(shown(false, false, true).0, (DEV_NULL.to_owned(), String::new()));
        let (both, paths) = shown(true, true, false);
        assert_eq!(both, paths);
        let (one, paths) = shown(true, false, false);
        assert_eq!((one.0, one.1.as_str()), (paths.0, DEV_NULL));
        let (terminal, paths) = shown(true, true, true);
        assert_eq!(terminal, (paths.0, String::new()));
    }

    #[test]
    fn a_rust_shim_is_refused_a_terminal_with_disabled_logs() {
        let nowhere = LogPaths { stdout: DEV_NULL.into(), stderr: DEV_NULL.into() };
        let kept = LogPaths { stdout: "/o".into(), stderr: "/e".into() };
        let in_rust = Path::new("/opt/containerd-shim-runc-v2-rs");
        kept.check_writable_by(in_rust, true).unwrap();
        nowhere.check_writable_by(in_rust, false).unwrap();
        nowhere.check_writable_by(Path::new("/usr/bin/containerd-shim-runc-v2"), true).unwrap();
        let error = nowhere.check_writable_by(in_rust, true).unwrap_err().to_string();
        assert!(error.contains("tty") && error.contains("containerd_runtime"), "{error}");
    }

    #[test]
    fn a_write_to_a_log_pipe_fails_while_nobody_reads() {
        let directory = tempfile::tempdir().unwrap();
        let logs = pipe_at(directory.path());
        let [Some(Ok(writer)), None] = logs.writers() else { panic!("one stream has a pipe") };
        let mut writer = File::from(writer);
        for _ in 0..2 {
            assert_eq!(writer.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
            let _readers = logs.readers().unwrap();
            writer.write_all(b"x").unwrap();
        }
    }

    #[test]
    fn a_log_pipe_is_opened_without_the_other_one() {
        let directory = tempfile::tempdir().unwrap();
        let there = pipe_at(directory.path());
        let file = directory.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&there.stdout, &link).unwrap();
        for other in [directory.path().join("missing"), file, link] {
            let logs = LogPaths { stderr: other.clone(), ..there.clone() };
            let [Some(Ok(_)), Some(Err(error))] = logs.writers() else { panic!("{other:?} is no pipe") };
            assert!(error.is_no_pipe(), "{error}");
        }
    }

    #[test]
    fn log_paths_must_be_named_pipes() {
        let directory = tempfile::tempdir().unwrap();
        let logs = pipe_at(directory.path());
        assert_eq!(logs.hold_open().unwrap().pipes().count(), 1);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&logs.stdout, &link).unwrap();
        let error = LogPaths { stdout: link, ..logs.clone() }.hold_open().err().unwrap().to_string();
        assert!(error.contains("link is, or goes through, a symbolic link"), "{error}");
        let file = directory.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let error = LogPaths { stdout: file, ..logs }.hold_open().err().unwrap().to_string();
        assert!(error.ends_with("file is not a named pipe"), "{error}");
    }

    #[test]
    fn log_pipes_are_resolved_beneath_the_allocation_directory() {
        let parts = |path: &'static str| split_root(Path::new(path));
        let is = |root, rest| (Path::new(root), Path::new(rest));
        assert_eq!(parts("/n/alloc/a1/alloc/logs/.web.fifo"), is("/n/alloc/a1", "alloc/logs/.web.fifo"));
        assert_eq!(parts("/run/bundle/stdout"), is("/run/bundle", "stdout"));
        assert_eq!(parts("/alloc/logs/x"), is("/", "alloc/logs/x"));
    }

    #[tokio::test]
    async fn a_pipe_is_drained_once_empty_and_without_writers() {
        let directory = tempfile::tempdir().unwrap();
        let logs = pipe_at(directory.path());
        let mut reader = open_pipe(&logs.stdout, OpenOptions::new().read(true)).unwrap();
        let mut writer = open_pipe(&logs.stdout, OpenOptions::new().write(true)).unwrap();
        writer.write_all(b"last words").unwrap();
        assert!(!wait_drained(&logs, Duration::from_millis(20)).await, "the writer is still there");
        drop(writer);
        assert!(!wait_drained(&logs, Duration::from_millis(20)).await, "nobody has read yet");
        let mut words = [0; 10];
        reader.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"last words", "looking took nothing");
        assert!(wait_drained(&logs, Duration::from_millis(200)).await);
    }

    #[tokio::test]
    async fn stdin_written_before_the_shim_opens_it_is_not_lost() {
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
    async fn exec_pipes_are_removed_on_drop() {
        let directory = tempfile::tempdir().unwrap();
        let pipes = ExecPipes::at(directory.path(), "e1", true, false);
        let _ends = pipes.open().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
        drop(pipes);
        while std::fs::read_dir(directory.path()).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
