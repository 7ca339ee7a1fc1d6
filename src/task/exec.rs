//! A command in a running task: declared to the shim, asked for its end, started; then its pipes are read and written
//! until it has ended and all that it wrote has come.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use oci_spec::runtime::Process;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use super::{Task, supervisor};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::shim::{self, Connection, ExecIo, ExecPipes};
use crate::spec;

/// As much as a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// What Nomad takes of a script's output is a line or two; more than this is cut.
const OUTPUT_LIMIT_BYTES: usize = 1024 * 1024;
/// What a terminal takes for the end of its input.
const END_OF_TRANSMISSION: &[u8] = &[4];
/// What a shell says of a command that isn't there, and of one that can't be run.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// A command that runs.
pub(crate) struct Exec {
    guard: Guard,
    ended: supervisor::Waiting,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    input: Option<Input>,
    code: Option<i32>,
}

/// The ways into a running command: its stdin, and the size of its terminal.
pub(crate) struct Input {
    stdin: Option<pipe::Sender>,
    connection: Connection,
    exec_id: String,
    tty: bool,
}

/// What a running command says next.
#[derive(Debug)]
pub(crate) enum Output {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// The last: it has ended, and all that it wrote has been said.
    Exited(i32),
}

/// Why a command does not run, in the words and the code that a shell would have for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecRefused {
    pub text: String,
    pub code: i32,
}

/// The whole of a command that took no input.
#[derive(Debug, Default)]
pub(crate) struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub code: i32,
}

impl Task {
    /// Runs a command in the task.
    ///
    /// # Errors
    /// When the task has ended; a command that can't be run is refused in the inner result, since it is the user's to
    /// see and no failure of the driver.
    pub(crate) async fn exec(
        &self,
        command: &[String],
        tty: bool,
        stdin: bool,
    ) -> Result<std::result::Result<Exec, ExecRefused>> {
        let doing = format!("exec in task {}", self.id());
        let failed = |error: shim::Error| Error::from(error).context(&doing);
        if command.is_empty() {
            return Err(Error::Invalid(format!("{doing}: no command is given")));
        }
        if self.has_exited() {
            return Err(Error::Conflict(format!("{doing}: the task has ended")));
        }
        let spec = self.place.bundle.read_spec().map_err(failed)?;
        let process = spec::exec_process(&spec, command, tty)
            .ok_or_else(|| Error::Failed(format!("{doing}: its bundle has no process")))?;
        let exec_id = next_exec_id();
        let pipes =
            ExecPipes::create(&self.place.bundle.io_directory(), &exec_id, stdin, tty).map_err(failed)?;
        let start = Start {
            connection: self.connection.clone(),
            exec_id,
            process,
            pipes,
            tty,
            cgroup: self.saved.cgroup.clone(),
        };
        let starting = tokio::spawn(start.run());
        let started = starting.await.map_err(|error| Error::Failed(format!("{doing}: it broke: {error}")))?;
        match started {
            Ok(exec) => Ok(Ok(exec)),
            Err(error) => refusal(&error.to_string(), command).map(Err).ok_or_else(|| failed(error)),
        }
    }

    /// Runs a command without input to its end and returns what it wrote, cut where that is too much.
    ///
    /// # Errors
    /// When the task has ended, or the command has not within `timeout`; it is killed then.
    pub(crate) async fn exec_output(
        &self,
        command: &[String],
        timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        let mut exec = match self.exec(command, false, false).await? {
            Ok(exec) => exec,
            Err(ExecRefused { text, code }) => {
                return Ok(ExecOutput { stderr: text.into_bytes(), code, ..ExecOutput::default() });
            }
        };
        let Some(limit) = timeout else { return exec.collect().await };
        tokio::time::timeout(limit, exec.collect()).await.map_err(|_| {
            Error::Failed(format!(
                "exec in task {}: {:?} did not end within {limit:?}",
                self.id(),
                command[0]
            ))
        })?
    }
}

/// All that a command is started from.
struct Start {
    connection: Connection,
    exec_id: String,
    process: Process,
    pipes: ExecPipes,
    tty: bool,
    cgroup: Cgroup,
}

impl Start {
    /// Declares a command to the shim and starts it. To be run on a task of its own, so that it is never dropped on the
    /// way: a shim that is opening pipes whose other end has gone answers nobody for half a minute. Dropped once it is
    /// through, the command is killed like any other.
    async fn run(self) -> std::result::Result<Exec, shim::Error> {
        let Self { connection, exec_id, process, pipes, tty, cgroup } = self;
        let io = ExecIo {
            stdin: pipes.stdin_path(),
            stdout: pipes.stdout_path(),
            stderr: pipes.stderr_path(),
            tty,
        };
        let (stdout, stderr) = pipes.readers()?;
        let stdin = pipes.writer()?;
        connection.exec(&exec_id, &process, io).await?;
        let guard = Guard { connection: connection.clone(), exec_id: exec_id.clone(), pipes: Some(pipes) };
        let ended = supervisor::ask(&connection, &exec_id).await;
        let pid = connection.exec_start(&exec_id).await?;
        if let Err(error) = cgroup.place(pid) {
            // Most often it has ended already.
            tracing::debug!(exec = exec_id, pid, %error, "can't put a command into the task's cpuset");
        }
        let input = Input { stdin, connection, exec_id, tty };
        Ok(Exec { guard, ended, stdout: Some(stdout), stderr, input: Some(input), code: None })
    }
}

impl Exec {
    /// Takes the way in, once.
    pub(crate) fn input(&mut self) -> Option<Input> {
        self.input.take()
    }

    /// What comes next. [`Output::Exited`] is the last.
    ///
    /// # Errors
    /// When the shim is gone, and the command with it.
    pub(crate) async fn next(&mut self) -> Result<Output> {
        loop {
            let (stdout_open, stderr_open, running) =
                (self.stdout.is_some(), self.stderr.is_some(), self.code.is_none());
            tokio::select! {
                chunk = read(&mut self.stdout), if stdout_open => match chunk {
                    Some(bytes) => return Ok(Output::Stdout(bytes)),
                    None => self.stdout = None,
                },
                chunk = read(&mut self.stderr), if stderr_open => match chunk {
                    Some(bytes) => return Ok(Output::Stderr(bytes)),
                    None => self.stderr = None,
                },
                ended = &mut self.ended, if running => {
                    let ended = ended.map_err(|error| Error::Failed(error.to_string()))?;
                    self.code = Some(i32::try_from(ended.status).unwrap_or(i32::MAX));
                    // Ends the pipes after what is in them, even those that a process in the background holds.
                    self.guard.forget();
                }
                else => return Ok(Output::Exited(self.code.unwrap_or_default())),
            }
        }
    }

    async fn collect(&mut self) -> Result<ExecOutput> {
        let mut output = ExecOutput::default();
        loop {
            match self.next().await? {
                Output::Stdout(bytes) => append(&mut output.stdout, &bytes),
                Output::Stderr(bytes) => append(&mut output.stderr, &bytes),
                Output::Exited(code) => return Ok(ExecOutput { code, ..output }),
            }
        }
    }
}

const CUT: &[u8] = b"\n(output cut here)\n";

fn append(whole: &mut Vec<u8>, bytes: &[u8]) {
    if whole.len() >= OUTPUT_LIMIT_BYTES {
        return;
    }
    let room = OUTPUT_LIMIT_BYTES - whole.len();
    whole.extend_from_slice(&bytes[..bytes.len().min(room)]);
    if bytes.len() > room {
        whole.truncate(OUTPUT_LIMIT_BYTES - CUT.len());
        whole.extend_from_slice(CUT);
    }
}

/// The next bytes of a pipe, None at its end.
async fn read(pipe: &mut Option<pipe::Receiver>) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    match pipe.as_mut()?.read_buf(&mut bytes).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(bytes),
    }
}

impl Input {
    /// Writes to the command's stdin, at the command's speed.
    ///
    /// # Errors
    /// When the command no longer reads.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.stdin {
            Some(stdin) => stdin.write_all(bytes).await,
            None => Ok(()),
        }
    }

    /// Ends the command's stdin.
    pub(crate) async fn close(&mut self) {
        if self.tty {
            let _ = self.write(END_OF_TRANSMISSION).await;
            return;
        }
        // Closed before the shim is told: it passes on the end only when nobody else can write.
        let Some(stdin) = self.stdin.take() else { return };
        drop(stdin);
        if let Err(error) = self.connection.exec_close_stdin(&self.exec_id).await {
            tracing::debug!(exec = self.exec_id, %error, "the command had ended before its input");
        }
    }

    pub(crate) async fn resize(&self, width: u32, height: u32) {
        if let Err(error) = self.connection.exec_resize(&self.exec_id, width, height).await {
            tracing::debug!(exec = self.exec_id, %error, "can't resize the terminal");
        }
    }
}

/// Sees to it that a command's end is its end everywhere: dropped early, the command is killed.
struct Guard {
    connection: Connection,
    exec_id: String,
    /// Until the shim has been told to forget the command.
    pipes: Option<ExecPipes>,
}

impl Guard {
    /// The command has ended: the shim may forget it.
    fn forget(&mut self) {
        self.finish(false);
    }

    fn finish(&mut self, kill: bool) {
        let Some(pipes) = self.pipes.take() else { return };
        let (connection, exec_id) = (self.connection.clone(), self.exec_id.clone());
        tokio::spawn(async move {
            if kill && let Err(error) = end_by_force(&connection, &exec_id).await {
                tracing::debug!(exec = exec_id, %error, "can't kill a command whose client is gone");
            }
            if let Err(error) = connection.exec_delete(&exec_id).await {
                tracing::debug!(exec = exec_id, %error, "the shim can't forget a command");
            }
            drop(pipes);
        });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.finish(true);
    }
}

async fn end_by_force(connection: &Connection, exec_id: &str) -> std::result::Result<(), shim::Error> {
    let ended = supervisor::ask(connection, exec_id).await;
    connection.exec_kill(exec_id).await?;
    let _ = tokio::time::timeout(Duration::from_secs(10), ended).await;
    Ok(())
}

/// Unique for the life of a shim, over restarts of the plugin. The shim does not check ids and makes file names of them.
fn next_exec_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("exec-{nanos:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// What a runtime says when it can't run a command: it only has text. None where it failed at something else.
fn refusal(text: &str, command: &[String]) -> Option<ExecRefused> {
    let program = Path::new(&command[0]).display();
    let code = if text.contains("executable file not found") || text.contains("no such file or directory") {
        NOT_FOUND
    } else if text.contains("permission denied")
        || text.contains("exec format error")
        || text.contains("is a directory")
    {
        NOT_RUNNABLE
    } else {
        return None;
    };
    let what = if code == NOT_FOUND { "not found in the task" } else { "can't be run" };
    let reason = text.rsplit("exec failed: ").next().unwrap_or(text);
    Some(ExecRefused { text: format!("{program}: {what}: {reason}\n"), code })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_cannot_run_has_a_shells_code() {
        let code = |text: &str| refusal(text, &["x".to_owned()]).map(|refused| refused.code);
        let not_found = r#"OCI runtime exec failed: exec failed: unable to start container process: exec: "x": executable file not found in $PATH: unknown"#;
        assert_eq!(code(not_found), Some(127));
        assert_eq!(code(r#"exec failed: exec: "/x": stat /x: no such file or directory"#), Some(127));
        assert_eq!(code(r#"exec failed: exec: "/x": permission denied"#), Some(126));
        assert_eq!(code("cannot exec in a stopped container"), None);
    }

    #[test]
    fn too_much_output_is_cut_and_says_so() {
        let mut whole = Vec::new();
        for _ in 0..40 {
            append(&mut whole, &[b'x'; 30_000]);
        }
        assert_eq!(whole.len(), OUTPUT_LIMIT_BYTES);
        assert!(whole.ends_with(CUT));
        let mut exact = vec![b'x'; OUTPUT_LIMIT_BYTES - 1];
        append(&mut exact, b"x");
        assert!(!exact.ends_with(CUT));
    }
}
