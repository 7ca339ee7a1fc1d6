//! The calls to one shim about one container, in the terms of a task's life: what each call needs, how long it may
//! take, and which of the shim's traps it avoids.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use oci_spec::runtime::Process;
use shim_protos::api::{
    CloseIORequest, ConnectRequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, Mount,
    ResizePtyRequest, ShutdownRequest, StartRequest, StateRequest, StatsRequest, Status, WaitRequest,
};
use shim_protos::protobuf::well_known_types::any::Any;
use shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use shim_protos::{Bootstrap, CallError, TaskClient, any};

use super::{Bundle, CALL_TIMEOUT, CreateOptions, Error, HeldPipes, RUNTIME_CALL_TIMEOUT};

/// Timeout of the connect to a shim that has just said where it listens.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of Delete, for which the shim waits until the output is copied, up to ten seconds in newer shims, and forks
/// the runtime.
const DELETE_TIMEOUT: Duration = Duration::from_secs(60);

/// The exit of a process as its shim reports it. A status of 128 + n means that signal n ended the process, or that the
/// program chose that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessExit {
    pub status: u32,
    pub at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The container is created, but its process is not started.
    Created,
    Running,
    Stopped,
}

/// The paths of an exec's pipes, empty for a stream that it does not have, and whether it has a terminal.
pub(crate) struct ExecIo {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub tty: bool,
}

/// The connection to the shim of one container. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    client: TaskClient,
    id: String,
}

/// The answer to a Wait that the shim has been sent already.
pub(crate) type PendingWait = Pin<Box<dyn Future<Output = Result<ProcessExit, Error>> + Send>>;

/// Sends the shim a Wait for the exit of its task, or of an exec, and returns the pending answer once the request is on
/// its way. To be called before the start: a process may exit at once.
pub(crate) async fn wait_pending(connection: &Connection, exec_id: &str) -> PendingWait {
    let connection = connection.clone();
    let exec_id = exec_id.to_owned();
    let mut waiting: PendingWait = Box::pin(async move { connection.wait(&exec_id).await });
    match futures::poll!(&mut waiting) {
        std::task::Poll::Ready(answer) => Box::pin(std::future::ready(answer)),
        std::task::Poll::Pending => waiting,
    }
}

impl Connection {
    /// Connects to a shim.
    ///
    /// # Errors
    /// When nobody listens, or nobody accepts in time.
    pub(crate) async fn open(shim: &Bootstrap, id: &str) -> Result<Self, Error> {
        let client =
            TaskClient::connect(shim, CONNECT_TIMEOUT).await.map_err(failed("connect to the shim of", id))?;
        Ok(Self { client, id: id.to_owned() })
    }

    /// Returns a connection that is made at the first call, and tried again at each later one as long as nobody
    /// accepts: for a shim that is known to be there.
    pub(crate) fn deferred(shim: &Bootstrap, id: &str) -> Self {
        Self { client: TaskClient::deferred(shim), id: id.to_owned() }
    }

    /// Returns the shim's own pid, as the shim says it; the shim must not have a task yet. 0 if it does not say: some
    /// shims don't, before the container is created. The pid is not verified: see [`super::Launcher::identify`].
    ///
    /// # Errors
    /// [`Error::StaleShim`] if the shim has a task: then a shim of an earlier run answered in place of the new one.
    pub(crate) async fn pid_of_fresh_shim(&self) -> Result<i32, Error> {
        let request = ConnectRequest { id: self.id.clone(), ..ConnectRequest::default() };
        let answer = match self.client.pids_of_shim_and_task(&request, CALL_TIMEOUT).await {
            Ok(answer) => answer,
            Err(CallError::NotFound(_)) => return Ok(0),
            Err(error) => return Err(failed("ask for the pids of", &self.id)(error)),
        };
        // Some shims give their own pid in the place of the task's until there is a task.
        if answer.task_pid != 0 && answer.task_pid != answer.shim_pid {
            return Err(Error::StaleShim { id: self.id.clone(), task_pid: answer.task_pid });
        }
        Ok(i32::try_from(answer.shim_pid).unwrap_or(0))
    }

    /// Creates the container, whose process waits to be started. Returns the process's pid, as the shim says it; 0 if
    /// it doesn't.
    ///
    /// # Errors
    /// With the runtime's reason. What was made by then is still there.
    pub(crate) async fn create(
        &self,
        bundle: &Bundle,
        rootfs: Vec<Mount>,
        logs: &HeldPipes,
        tty: bool,
        options: &CreateOptions,
    ) -> Result<i32, Error> {
        let needs_paths = matches!(options, CreateOptions::Gvisor { .. });
        let options = options.pack(bundle)?;
        let (stdout, stderr) = logs.for_shim(tty, needs_paths);
        let request = CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.directory().display().to_string(),
            rootfs,
            stdin: logs.stdin_for_shim(),
            stdout,
            stderr,
            terminal: tty,
            options: options.into(),
            ..CreateTaskRequest::default()
        };
        let answer = self.client.create(&request, RUNTIME_CALL_TIMEOUT).await;
        let answer = answer.map_err(failed("create container", &self.id))?;
        Ok(i32::try_from(answer.pid).unwrap_or(0))
    }

    /// Starts the process of the created container.
    ///
    /// # Errors
    /// With the runtime's reason.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        self.start_process("").await.map(drop).map_err(failed("start container", &self.id))
    }

    async fn start_process(&self, exec_id: &str) -> Result<i32, CallError> {
        let request = StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer = self.client.start(&request, RUNTIME_CALL_TIMEOUT).await?;
        Ok(i32::try_from(answer.pid).unwrap_or(0))
    }

    /// Waits for the exit of the task (`exec_id` empty) or of an exec. Call it before the start.
    ///
    /// # Errors
    /// When the shim refuses, or ends first.
    pub(crate) async fn wait(&self, exec_id: &str) -> Result<ProcessExit, Error> {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer = self.client.wait(&request).await.map_err(failed("wait for", &self.id))?;
        Ok(ProcessExit { status: answer.exit_status, at: time(answer.exited_at.as_ref()) })
    }

    /// Returns the task's state.
    ///
    /// # Errors
    /// Not found if the task was deleted, or never created.
    pub(crate) async fn state(&self) -> Result<State, Error> {
        let request = StateRequest { id: self.id.clone(), ..StateRequest::default() };
        let answer = self
            .client
            .state(&request, CALL_TIMEOUT)
            .await
            .map_err(failed("ask for the state of", &self.id))?;
        Ok(match answer.status.enum_value_or_default() {
            Status::CREATED | Status::UNKNOWN => State::Created,
            Status::STOPPED => State::Stopped,
            Status::RUNNING | Status::PAUSED | Status::PAUSING => State::Running,
        })
    }

    /// Sends a signal to the task's first process, or, with `everything`, to all that the runtime finds in its cgroup.
    ///
    /// # Errors
    /// Not found if the task has ended.
    pub(crate) async fn kill(&self, signal: i32, everything: bool) -> Result<(), Error> {
        self.kill_process("", signal, everything).await.map_err(failed("signal container", &self.id))
    }

    async fn kill_process(&self, exec_id: &str, signal: i32, all: bool) -> Result<(), CallError> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal: u32::try_from(signal).unwrap_or(0),
            all,
            ..KillRequest::default()
        };
        self.client.kill(&request, RUNTIME_CALL_TIMEOUT).await.map(drop)
    }

    /// Returns the metrics of the container's cgroup, as the shim packs them.
    ///
    /// # Errors
    /// Not found if the task was deleted.
    pub(crate) async fn metrics(&self) -> Result<Any, Error> {
        let request = StatsRequest { id: self.id.clone(), ..StatsRequest::default() };
        let answer = self
            .client
            .stats(&request, CALL_TIMEOUT)
            .await
            .map_err(failed("read the metrics of", &self.id))?;
        Ok(answer.stats.unwrap_or_default())
    }

    /// Removes the ended task from the shim and the runtime. Succeeds if it is gone already.
    ///
    /// # Errors
    /// With the runtime's reason.
    pub(crate) async fn delete(&self) -> Result<(), Error> {
        self.delete_process("").await.map_err(failed("delete container", &self.id))
    }

    async fn delete_process(&self, exec_id: &str) -> Result<(), CallError> {
        let request =
            DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        match self.client.delete(&request, DELETE_TIMEOUT).await {
            Ok(_) | Err(CallError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends the shim. Succeeds if the shim exits before it answers.
    ///
    /// # Errors
    /// When the shim refuses, or does not answer in time.
    pub(crate) async fn shutdown(&self) -> Result<(), Error> {
        let request = ShutdownRequest { id: self.id.clone(), ..ShutdownRequest::default() };
        match self.client.shutdown(&request, CALL_TIMEOUT).await {
            Ok(_) | Err(CallError::Disconnected(_) | CallError::NotFound(_)) => Ok(()),
            Err(source) => Err(failed("shut down the shim of", &self.id)(source)),
        }
    }

    /// Declares a process to run in the container, which [`Self::exec_start`] then starts.
    ///
    /// # Errors
    /// When the shim has an exec of that id, or is gone.
    pub(crate) async fn exec(&self, exec_id: &str, process: &Process, io: ExecIo) -> Result<(), Error> {
        let doing = |source| failed("exec in container", &self.id)(source);
        let spec = serde_json::to_vec(process).map_err(|e| doing(CallError::Refused(e.to_string())))?;
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            terminal: io.tty,
            stdin: io.stdin,
            stdout: io.stdout,
            stderr: io.stderr,
            spec: Some(any::process(spec)).into(),
            ..ExecProcessRequest::default()
        };
        // Some shims answer only once all earlier starts are through, one after the other.
        self.client.exec(&request, RUNTIME_CALL_TIMEOUT).await.map(drop).map_err(doing)
    }

    /// Starts a declared exec; returns its pid once it runs.
    ///
    /// # Errors
    /// With the runtime's reason why the exec can't run. The exec is deleted then: a second start would crash the shim.
    pub(crate) async fn exec_start(&self, exec_id: &str) -> Result<i32, Error> {
        match self.start_process(exec_id).await {
            Ok(pid) => Ok(pid),
            Err(error) => {
                let _ = self.delete_process(exec_id).await;
                Err(failed("exec in container", &self.id)(error))
            }
        }
    }

    /// Kills an exec's first process. Succeeds if it has ended already.
    ///
    /// # Errors
    /// When the shim refuses or is gone.
    pub(crate) async fn exec_kill(&self, exec_id: &str) -> Result<(), Error> {
        match self.kill_process(exec_id, Signal::SIGKILL as i32, false).await {
            Ok(()) | Err(CallError::NotFound(_)) => Ok(()),
            Err(source) => Err(failed("kill an exec in container", &self.id)(source)),
        }
    }

    /// Returns whether an exec's first process has begun, by sending it signal 0. Waits for an exec that is being
    /// started.
    pub(crate) async fn exec_has_begun(&self, exec_id: &str) -> bool {
        self.kill_process(exec_id, 0, false).await.is_ok()
    }

    /// Has the shim forget an ended exec and close its pipes.
    ///
    /// # Errors
    /// When the shim refuses or is gone.
    pub(crate) async fn exec_delete(&self, exec_id: &str) -> Result<(), Error> {
        self.delete_process(exec_id).await.map_err(failed("delete an exec of container", &self.id))
    }

    /// Returns the error for an exec that has ended, and whose exit status is lost.
    pub(crate) fn lost_end(&self, exec_id: &str) -> Error {
        let lost =
            "it has exited, and its exit code is not known: neither the shim nor the kernel reports it";
        failed(&format!("wait for {exec_id} in container"), &self.id)(CallError::Refused(lost.to_owned()))
    }

    /// Sets the size of an exec's terminal, in characters.
    ///
    /// # Errors
    /// When the exec has no terminal, or has ended.
    pub(crate) async fn exec_resize(&self, exec_id: &str, width: u32, height: u32) -> Result<(), Error> {
        let request = ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            width,
            height,
            ..ResizePtyRequest::default()
        };
        self.client
            .resize_pty(&request, CALL_TIMEOUT)
            .await
            .map(drop)
            .map_err(failed("resize an exec's terminal in container", &self.id))
    }

    /// Closes an exec's stdin, which ends once all other writers of its pipe are closed. Not for a terminal, whose
    /// output it would lose.
    ///
    /// # Errors
    /// When the exec has ended.
    pub(crate) async fn exec_close_stdin(&self, exec_id: &str) -> Result<(), Error> {
        let request = CloseIORequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.client
            .close_io(&request, CALL_TIMEOUT)
            .await
            .map(drop)
            .map_err(failed("close an exec's stdin in container", &self.id))
    }
}

fn failed(verb: &str, id: &str) -> impl FnOnce(CallError) -> Error {
    let doing = format!("{verb} {id}");
    move |source| Error::Call { doing, source }
}

/// Converts a shim's timestamp, and returns the current time in its place if it is missing or lies before the epoch:
/// shims say "not yet" with Go's zero time, which is long before it.
fn time(stamp: Option<&Timestamp>) -> SystemTime {
    let since_epoch = stamp.and_then(|stamp| {
        let seconds = u64::try_from(stamp.seconds).ok()?;
        Some(Duration::new(seconds, u32::try_from(stamp.nanos).ok()?))
    });
    since_epoch.map_or_else(SystemTime::now, |since| SystemTime::UNIX_EPOCH + since)
}
