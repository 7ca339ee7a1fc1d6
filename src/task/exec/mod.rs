//! Execs: commands in a running task. A command is declared to the shim, which is sent a Wait for its exit, and
//! started; then its pipes are read and written until it has exited and all that it wrote has come. A command that is
//! given up early is killed with all that it started.

mod error;
mod input;
mod processes;
mod runtimes;
mod script;
mod stale;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use oci_spec::runtime::Process;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::error::{Error, Result};
use super::{Task, auto_runtime, supervisor};
use crate::cgroup::{Cgroup, MoveWindow};
use crate::security::{self, Confined};
use crate::shim::{self, Bundle, Connection, ExecEnds, ExecIo, ExecPipes, Shim};
use crate::spec;
use crate::sys::blocking;
use crate::sys::error_chain::Chained;
use crate::sys::pidfd::Init;
pub(crate) use error::ExecRefused;
pub(crate) use input::{Stdin, Terminal, TerminalSize};
use processes::Root;
pub(crate) use script::ExecOutput;
pub(super) use stale::{StaleExecs, noted_process};

/// Maximum size of one read, which is what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// Time without output after a command's exit until whatever still holds its pipes is taken for a process in the
/// background. A shim that is told to forget the command drops what it can't pass on within two seconds, so it isn't
/// told while a reader is slow.
const SILENCE: Duration = Duration::from_millis(100);
/// Prefix of the ids of all execs.
const PREFIX: &str = "exec-";
/// Maximum time that a shim may take to close the pipes of a command that it was told to forget: those of the runc
/// family need two seconds, and gVisor's doesn't before the last process that holds them.
const LETS_GO: Duration = Duration::from_secs(3);
/// Maximum time that killed processes may take to die.
const DEATH: Duration = Duration::from_secs(10);

/// An exec: a command that runs.
pub(crate) struct Exec {
    guard: Guard,
    ended: shim::PendingWait,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    input: Option<(Stdin, Terminal)>,
    code: Option<i32>,
    /// Time when the pipes are given up that something in the background holds, and the output that was in them then.
    given_up_at: Option<Instant>,
    rest: Vec<Output>,
}

/// The next event of a running command.
#[derive(Debug)]
pub(crate) enum Output {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// The last event: the command has exited, and all of its output was returned.
    Exited(i32),
}

/// A terminal that a command is to have, and its size at the start, if that is known by then.
pub(crate) type WantedTerminal = Option<TerminalSize>;

impl Task {
    /// Runs a command in the task, as the task's own process in all but its arguments.
    ///
    /// # Errors
    /// When the task has ended; a command that can't be run is refused in the inner result, since it is the user's to
    /// see and no failure of the driver.
    pub(crate) async fn exec(
        &self,
        command: &[String],
        terminal: Option<WantedTerminal>,
        stdin: bool,
    ) -> Result<std::result::Result<Exec, ExecRefused>> {
        let doing = format!("exec in task {}", self.id());
        let failed = |error: shim::Error| Error::from(error).context(&doing);
        let ended = || Error::conflict("the task is not running: it has exited").context(&doing);
        if command.is_empty() {
            return Err(Error::invalid("no command is given").context(doing));
        }
        if self.has_exited() {
            return Err(ended());
        }
        if let Err(error) = spec::check_command(command) {
            return Ok(Err(ExecRefused::not_runnable(&error.chain())));
        }
        let shares_kernel = self.driver_state.family().shares_kernel();
        if self.driver_state.chosen_crun {
            auto_runtime::check_for_exec().await.map_err(|error| error.context(&doing))?;
        }
        let process = self.exec_template().await.map_err(|error| error.context(&doing))?;
        security::load_profile(process.apparmor_profile().as_deref(), Confined::Exec)
            .await
            .map_err(|error| Error::from(error).context(&doing))?;
        let size = terminal.flatten();
        let tty = terminal.is_some();
        let console = size.map(|TerminalSize { width, height }| (width.into(), height.into()));
        let process = spec::exec_process(process, command, tty, console);
        let exec_id = next_exec_id();
        let pipes = ExecPipes::at(&self.container.bundle.io_directory(), &exec_id, stdin, tty);
        let start = Start {
            connection: self.connection.clone(),
            exec_id,
            process,
            pipes,
            tty,
            size,
            cgroup: self.driver_state.cgroup.clone(),
            bundle: self.container.bundle.clone(),
            leaves_no_pid: !shares_kernel,
            shim: self.driver_state.shim.clone(),
            moves: shares_kernel,
        };
        let starting = tokio::spawn(start.run());
        let started = starting
            .await
            .map_err(|error| Error::failed(error).context("it was interrupted").context(&doing))?;
        started.map(Ok).or_else(|error| {
            // A pipe of the driver's that can't be made is no fault of the command's.
            if !matches!(error, shim::Error::Call { .. }) {
                return Err(failed(error));
            }
            let text = error.chain().to_string();
            match error::of(&text, command) {
                Some(refused) => Ok(Err(refused)),
                None if error::is_of_an_ended_task(&text) => Err(ended()),
                None => Err(failed(error)),
            }
        })
    }

    /// Returns the task's own process from its specification, which is read from the bundle once.
    async fn exec_template(&self) -> Result<&Process> {
        let read = async {
            let spec = self.container.bundle.off_thread(Bundle::read_spec).await?;
            spec.process()
                .clone()
                .ok_or_else(|| Error::failed("the specification in its bundle has no process"))
        };
        self.exec_template.get_or_try_init(|| read).await
    }
}

/// The parts that a command is started from.
struct Start {
    connection: Connection,
    exec_id: String,
    process: Process,
    pipes: ExecPipes,
    tty: bool,
    size: Option<TerminalSize>,
    cgroup: Cgroup,
    bundle: Bundle,
    /// Whether a shim's files say nothing of the command once it runs.
    leaves_no_pid: bool,
    shim: Shim,
    /// Whether the runtime moves the command between cgroups of the host's.
    moves: bool,
}

impl Start {
    /// Declares a command to the shim and starts it. To be run in a task of its own, so that it is never dropped on the
    /// way: a shim that is opening pipes whose other end has gone answers nobody for half a minute. If the result is
    /// dropped, the command is killed like any other.
    async fn run(self) -> std::result::Result<Exec, shim::Error> {
        let Self {
            connection,
            exec_id,
            process,
            pipes,
            tty,
            size,
            cgroup,
            bundle,
            leaves_no_pid,
            shim,
            moves,
        } = self;
        // Open until the command is where it is to be.
        let window = moves.then(MoveWindow::open);
        let io = ExecIo {
            stdin: pipes.stdin_path(),
            stdout: pipes.stdout_path(),
            stderr: pipes.stderr_path(),
            tty,
        };
        // The shim opens no pipe before the start.
        let pipes = Arc::new(pipes);
        let made = Arc::clone(&pipes);
        let open = blocking::run(move || made.open());
        let (declared, ends) = tokio::join!(connection.exec(&exec_id, &process, io), open);
        declared?;
        let mut guard = Guard::of(connection.clone(), exec_id.clone(), cgroup.clone());
        let ExecEnds { stdin, stdout, stderr } = ends?;
        let ended = shim::wait_pending(&connection, &exec_id).await;
        let requested_at = processes::now();
        let pid = shim::with_runtime_reason(&bundle, connection.exec_start(&exec_id)).await?;
        let root = Root::new(pid, requested_at);
        // The shim has opened all pipes: their names have done their part, but where the next plugin, if this one dies,
        // finds the command by nothing else.
        guard.started(root, leaves_no_pid.then_some(pipes));
        let ended = match root.and_then(|root| Init::open(root.process()?)) {
            Some(process) => supervisor::backed(ended, connection.clone(), exec_id.clone(), process, shim),
            None => ended,
        };
        let named = exec_id.clone();
        // The kernel may take its time for a move, and nobody has to wait for it.
        tokio::task::spawn_blocking(move || {
            let _window = window;
            // Pid 0 would be this plugin.
            if root.is_some()
                && let Err(error) = cgroup.add_process(pid)
            {
                // Most often the command has ended already.
                tracing::debug!(exec = named, pid, %error, "can't move a command to the task's cpuset");
            }
        });
        let terminal = Terminal { connection: connection.clone(), exec_id: exec_id.clone() };
        // Not every runtime sets the size that is in `process`; the same size again is no change.
        if let Some(size) = size {
            terminal.resize(size).await;
        }
        let stdin = Stdin { pipe: stdin, connection, exec_id, tty };
        Ok(Exec {
            guard,
            ended,
            stdout: Some(stdout),
            stderr,
            input: Some((stdin, terminal)),
            code: None,
            given_up_at: None,
            rest: Vec::new(),
        })
    }
}

impl Exec {
    /// Takes the handles to the command's stdin and terminal, once.
    pub(crate) fn input(&mut self) -> Option<(Stdin, Terminal)> {
        self.input.take()
    }

    /// Returns the next event. [`Output::Exited`] is the last one.
    ///
    /// # Errors
    /// When the shim is gone, and the command with it.
    pub(crate) async fn next(&mut self) -> Result<Output> {
        loop {
            if let Some(output) = self.rest.pop() {
                return Ok(output);
            }
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
                    let ended = ended.map_err(Error::failed)?;
                    self.code = Some(i32::try_from(ended.status).unwrap_or(i32::MAX));
                    self.guard.over = true;
                }
                // Ends the pipes that a process in the background holds.
                () = tokio::time::sleep(SILENCE), if self.guard.is_to_be_forgotten(stdout_open || stderr_open) => {
                    self.guard.finish();
                    self.given_up_at = Some(Instant::now() + LETS_GO);
                }
                () = until(self.given_up_at), if stdout_open || stderr_open => {
                    self.rest.extend(last(&mut self.stderr).map(Output::Stderr));
                    self.rest.extend(last(&mut self.stdout).map(Output::Stdout));
                }
                else => {
                    self.guard.finish();
                    return Ok(Output::Exited(self.code.unwrap_or_default()));
                }
            }
        }
    }

    /// Kills the command and all that it started, and waits until they are gone.
    pub(crate) async fn end_by_force(mut self) {
        self.guard.over = false;
        let Some(CommandEnd { killed, forgotten }) = self.guard.finish() else { return };
        if killed.await.is_err() {
            tracing::warn!("the kill of a command was interrupted");
        }
        // A process that the kill has not found may hold the pipes, and keeps nobody waiting.
        let _ = tokio::time::timeout(LETS_GO, forgotten).await;
    }
}

/// The end of a command that is under way.
struct CommandEnd {
    /// Completes when nothing runs any more that was to be killed.
    killed: oneshot::Receiver<()>,
    /// Completes when the shim has forgotten the command.
    forgotten: JoinHandle<()>,
}

/// Sleeps until `time`, or for ever where there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Reads the next bytes of a pipe; `None` at its end.
async fn read(pipe: &mut Option<pipe::Receiver>) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    match pipe.as_mut()?.read_buf(&mut bytes).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(bytes),
    }
}

/// Gives a pipe up, and returns what is in it: no more than it holds.
fn last(pipe: &mut Option<pipe::Receiver>) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    pipe.take()?.try_read_buf(&mut bytes).ok().filter(|count| *count > 0)?;
    Some(bytes)
}

/// The guard of a command, by which its end is its end everywhere: dropped before the command is over, it kills the
/// command.
struct Guard {
    /// Command that the shim knows; `None` once the shim has been told to forget it.
    running: Option<Running>,
    /// Whether the first process has ended. What it left in the background may go on, as after any command.
    over: bool,
}

/// A command that the shim knows.
struct Running {
    connection: Connection,
    exec_id: String,
    cgroup: Cgroup,
    /// First process; `None` while the command is being started, or if it could not be.
    root: Option<Root>,
    /// Pipes whose names stay until the shim has forgotten the command.
    pipes: Option<Arc<ExecPipes>>,
}

impl Guard {
    fn of(connection: Connection, exec_id: String, cgroup: Cgroup) -> Self {
        let running = Running { connection, exec_id, cgroup, root: None, pipes: None };
        Self { running: Some(running), over: false }
    }

    fn started(&mut self, root: Option<Root>, pipes: Option<Arc<ExecPipes>>) {
        if let Some(running) = &mut self.running {
            (running.root, running.pipes) = (root, pipes);
        }
    }

    fn is_to_be_forgotten(&self, pipes_are_open: bool) -> bool {
        self.over && self.running.is_some() && pipes_are_open
    }

    /// Has the shim forget the command, and kills the command before that unless it is over.
    fn finish(&mut self) -> Option<CommandEnd> {
        let (running, kill) = (self.running.take()?, !self.over);
        let (tell, killed) = oneshot::channel();
        let forgotten = tokio::spawn(async move {
            if kill {
                running.kill().await;
            }
            let _ = tell.send(());
            running.forget().await;
            drop(running.pipes);
        });
        Some(CommandEnd { killed, forgotten })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Running {
    /// Has the shim forget the command. Returns false where the shim can't, most often since the command runs.
    async fn forget(&self) -> bool {
        let Self { connection, exec_id, .. } = self;
        let forgotten = connection.exec_delete(exec_id).await;
        if let Err(error) = &forgotten {
            tracing::debug!(exec = exec_id, error = %error.chain(), "the shim can't delete a command");
        }
        forgotten.is_ok()
    }

    async fn kill(&self) {
        let Self { connection, exec_id, cgroup, root, .. } = self;
        let ended = shim::wait_pending(connection, exec_id).await;
        if let Some(root) = *root {
            let cgroup = cgroup.clone();
            let killed = tokio::task::spawn_blocking(move || root.end(&cgroup, DEATH)).await;
            if let Ok(Err(error)) = killed {
                tracing::warn!(exec = exec_id, %error, "processes of a killed command are still running");
            }
        }
        if let Err(error) = connection.exec_kill(exec_id).await {
            // The exit of a command that has never begun is not reported.
            tracing::debug!(exec = exec_id, error = %error.chain(), "can't kill a command");
            return;
        }
        let _ = tokio::time::timeout(DEATH, ended).await;
    }
}

/// Returns an exec id that is unique for the life of a shim, over restarts of the plugin. The shim does not check ids
/// and makes file names of them.
fn next_exec_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{PREFIX}{nanos:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed))
}
