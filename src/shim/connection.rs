//! The calls to one shim about one container, in the words of a task's life: what each needs, how long it may take, and
//! which of the shim's traps it steps around.

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

use super::{Bundle, CreateOptions, Error, FORKS_RUNTIME, HeldPipes, QUICK};

/// How long a shim that has just said where it listens may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// Removing a task waits for its output to be copied, up to ten seconds in newer shims, and forks the runtime.
const DELETE: Duration = Duration::from_secs(60);

/// A shim's word on how a process ended. 128 + n says that signal n did it, or that the program chose that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub status: u32,
    pub at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Made, but not started.
    Created,
    Running,
    Stopped,
}

/// Where an exec reads and writes.
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

impl Connection {
    /// # Errors
    /// When nobody listens, or nobody accepts in time.
    pub(crate) async fn open(shim: &Bootstrap, id: &str) -> Result<Self, Error> {
        let client =
            TaskClient::connect(shim, CONNECT).await.map_err(failed("connect to the shim of", id))?;
        Ok(Self { client, id: id.to_owned() })
    }

    /// Connects at the first call, and once more at each later one while nobody accepts: for a shim that is known to be
    /// there.
    pub(crate) fn deferred(shim: &Bootstrap, id: &str) -> Self {
        Self { client: TaskClient::deferred(shim), id: id.to_owned() }
    }

    /// Asks the shim for its own pid; it must not have a task yet. 0 where it does not say: some don't, before the
    /// container is made. It is the shim's word only: see [`super::Launcher::identify`].
    ///
    /// # Errors
    /// [`Error::Taken`] where it has one: then a shim of an earlier run answered in place of the new one.
    pub(crate) async fn pid_of_fresh_shim(&self) -> Result<i32, Error> {
        let request = ConnectRequest { id: self.id.clone(), ..ConnectRequest::default() };
        let answer = match self.client.pids_of_shim_and_task(&request, QUICK).await {
            Ok(answer) => answer,
            Err(CallError::NotFound(_)) => return Ok(0),
            Err(error) => return Err(failed("ask for the pids of", &self.id)(error)),
        };
        // Some have their own process in the place of the task's until there is one.
        if answer.task_pid != 0 && answer.task_pid != answer.shim_pid {
            return Err(Error::Taken { id: self.id.clone(), task_pid: answer.task_pid });
        }
        Ok(i32::try_from(answer.shim_pid).unwrap_or(0))
    }

    /// Makes the container; its process waits to be started. Returns the process's pid, by the shim's word.
    ///
    /// # Errors
    /// With the runtime's words. What was made by then is still there.
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
            stdout,
            stderr,
            terminal: tty,
            options: options.into(),
            ..CreateTaskRequest::default()
        };
        let answer = self.client.create(&request, FORKS_RUNTIME).await;
        let answer = answer.map_err(failed("create container", &self.id))?;
        Ok(i32::try_from(answer.pid).unwrap_or(0))
    }

    /// # Errors
    /// With the runtime's words.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        self.start_process("").await.map(drop).map_err(failed("start container", &self.id))
    }

    async fn start_process(&self, exec_id: &str) -> Result<i32, CallError> {
        let request = StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer = self.client.start(&request, FORKS_RUNTIME).await?;
        Ok(i32::try_from(answer.pid).unwrap_or(0))
    }

    /// Waits for the end of the task (`exec_id` empty) or of an exec. Call it before the start.
    ///
    /// # Errors
    /// Ends with the shim.
    pub(crate) async fn wait(&self, exec_id: &str) -> Result<Ended, Error> {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer = self.client.wait(&request).await.map_err(failed("wait for", &self.id))?;
        Ok(Ended { status: answer.exit_status, at: time(answer.exited_at.as_ref()) })
    }

    /// The task's state, and how it ended if it has.
    ///
    /// # Errors
    /// Not found where the task was deleted, or never made.
    pub(crate) async fn state(&self) -> Result<State, Error> {
        let request = StateRequest { id: self.id.clone(), ..StateRequest::default() };
        let answer =
            self.client.state(&request, QUICK).await.map_err(failed("ask for the state of", &self.id))?;
        Ok(match answer.status.enum_value_or_default() {
            Status::CREATED | Status::UNKNOWN => State::Created,
            Status::STOPPED => State::Stopped,
            Status::RUNNING | Status::PAUSED | Status::PAUSING => State::Running,
        })
    }

    /// Sends a signal to the task's first process, or, with `everything`, to all that the runtime finds in its cgroup.
    ///
    /// # Errors
    /// Not found where the task has ended.
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
        self.client.kill(&request, FORKS_RUNTIME).await.map(drop)
    }

    /// The metrics of the container's cgroup, as the shim packs them.
    ///
    /// # Errors
    /// Not found where the task was deleted.
    pub(crate) async fn metrics(&self) -> Result<Any, Error> {
        let request = StatsRequest { id: self.id.clone(), ..StatsRequest::default() };
        let answer =
            self.client.stats(&request, QUICK).await.map_err(failed("read the metrics of", &self.id))?;
        Ok(answer.stats.unwrap_or_default())
    }

    /// Removes the ended task from the shim and the runtime. Gone already is success.
    ///
    /// # Errors
    /// With the runtime's words.
    pub(crate) async fn delete(&self) -> Result<(), Error> {
        self.delete_process("").await.map_err(failed("delete container", &self.id))
    }

    async fn delete_process(&self, exec_id: &str) -> Result<(), CallError> {
        let request =
            DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        match self.client.delete(&request, DELETE).await {
            Ok(_) | Err(CallError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends the shim. Its death before the answer is success.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn shutdown(&self) -> Result<(), Error> {
        let request = ShutdownRequest { id: self.id.clone(), ..ShutdownRequest::default() };
        match self.client.shutdown(&request, QUICK).await {
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
        // Some shims take it up only once the starts before it are through, one after the other.
        self.client.exec(&request, FORKS_RUNTIME).await.map(drop).map_err(doing)
    }

    /// Starts a declared exec; returns its pid once it runs.
    ///
    /// # Errors
    /// With the runtime's words on why it can't run. It is deleted then: a second start would crash the shim.
    pub(crate) async fn exec_start(&self, exec_id: &str) -> Result<i32, Error> {
        match self.start_process(exec_id).await {
            Ok(pid) => Ok(pid),
            Err(error) => {
                let _ = self.delete_process(exec_id).await;
                Err(failed("exec in container", &self.id)(error))
            }
        }
    }

    /// Kills an exec's first process. Ended already is success.
    ///
    /// # Errors
    /// When the shim refuses or is gone.
    pub(crate) async fn exec_kill(&self, exec_id: &str) -> Result<(), Error> {
        match self.kill_process(exec_id, Signal::SIGKILL as i32, false).await {
            Ok(()) | Err(CallError::NotFound(_)) => Ok(()),
            Err(source) => Err(failed("kill an exec in container", &self.id)(source)),
        }
    }

    /// Whether an exec's first process has begun. One that is being started is waited for.
    pub(crate) async fn exec_has_begun(&self, exec_id: &str) -> bool {
        self.kill_process(exec_id, 0, false).await.is_ok()
    }

    /// Forgets an ended exec, and lets go of its pipes.
    ///
    /// # Errors
    /// When the shim refuses or is gone.
    pub(crate) async fn exec_delete(&self, exec_id: &str) -> Result<(), Error> {
        self.delete_process(exec_id).await.map_err(failed("delete an exec of container", &self.id))
    }

    /// The error for an exec that has ended, and of which nobody knows how.
    pub(crate) fn lost_end(&self, exec_id: &str) -> Error {
        let lost = "it has ended, but the shim does not say how, and the kernel has forgotten it: its exit code is not known";
        failed(&format!("wait for {exec_id} in container"), &self.id)(CallError::Refused(lost.to_owned()))
    }

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
            .resize_pty(&request, QUICK)
            .await
            .map(drop)
            .map_err(failed("resize an exec's terminal in container", &self.id))
    }

    /// Ends an exec's stdin, once all other writers of its pipe are closed. Not for a terminal, whose output it loses.
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
            .close_io(&request, QUICK)
            .await
            .map(drop)
            .map_err(failed("close an exec's stdin in container", &self.id))
    }
}

fn failed(verb: &str, id: &str) -> impl FnOnce(CallError) -> Error {
    let doing = format!("{verb} {id}");
    move |source| Error::Call { doing, source }
}

/// Shims say "not yet" with Go's zero time, which is long before the epoch.
fn time(stamp: Option<&Timestamp>) -> SystemTime {
    let since_epoch = stamp.and_then(|stamp| {
        let seconds = u64::try_from(stamp.seconds).ok()?;
        Some(Duration::new(seconds, u32::try_from(stamp.nanos).ok()?))
    });
    since_epoch.map_or_else(SystemTime::now, |since| SystemTime::UNIX_EPOCH + since)
}
