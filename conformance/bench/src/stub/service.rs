//! The stub's task service: carries out each call, and answers it after the known time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, PidsRequest, PidsResponse, ResizePtyRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::asynchronous::TtrpcContext;
use containerd_shim_protos::ttrpc::{self, Code, Error, get_status};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use super::delays::{Answers, until};
use super::process::{End, Ending, Paths, Process, let_go};
use crate::call::Call;

/// One container with its processes, keyed by exec id. The key of the container's own process is empty.
pub(crate) struct Stub {
    answers: Answers,
    processes: Mutex<HashMap<String, Process>>,
    /// Execs that are declared but not started.
    declared: Mutex<HashMap<String, (Value, Paths, Ending)>>,
    /// The exits of processes. Kept apart, since an exec can be waited for before its start.
    ends: Mutex<HashMap<String, watch::Receiver<Option<End>>>>,
    calls: Mutex<HashMap<Call, u32>>,
    /// Notified when the shim has to exit.
    pub(crate) over: Arc<Notify>,
}

impl Stub {
    pub(crate) fn new(answers: Answers) -> Self {
        let (processes, declared, ends, calls) = Default::default();
        Self { answers, processes, declared, ends, calls, over: Arc::new(Notify::new()) }
    }

    /// Answers at the call's known time after `begun`, whatever the outcome.
    async fn answer<T>(&self, call: Call, begun: Instant, outcome: Result<T>) -> ttrpc::Result<T> {
        let number = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let count = calls.entry(call).or_default();
            *count += 1;
            *count
        };
        until(begun + self.answers.delay(call)).await;
        if self.answers.fails(call, number) {
            return Err(refusal(&format!("call {number} of {call} fails, as was asked for")));
        }
        outcome.map_err(|error| refusal(&format!("{error:#}")))
    }

    fn with<T>(&self, exec_id: &str, look: impl FnOnce(&mut Process) -> T) -> Result<T> {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.get_mut(exec_id).map(look).with_context(|| format!("there is no process {exec_id:?}"))
    }

    /// Creates the channel for the exit of a process, and returns its sender.
    fn ending(&self, exec_id: &str) -> Ending {
        let (ended, end) = watch::channel(None);
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).insert(exec_id.to_owned(), end);
        ended
    }

    fn end(&self, exec_id: &str) -> Result<watch::Receiver<Option<End>>> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.get(exec_id).cloned().with_context(|| format!("there is no process {exec_id:?}"))
    }

    fn keep(&self, exec_id: &str, process: Process) -> u32 {
        let pid = process.pid();
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).insert(exec_id.to_owned(), process);
        pid.unsigned_abs()
    }

    fn pid(&self) -> Result<u32> {
        self.with("", |process| process.pid().unsigned_abs())
    }

    fn create_now(&self, request: &CreateTaskRequest) -> Result<u32> {
        let config =
            std::fs::read(Path::new(&request.bundle).join("config.json")).context("read config.json")?;
        let config: Value = serde_json::from_slice(&config)?;
        let paths =
            Paths { stdin: String::new(), stdout: request.stdout.clone(), stderr: request.stderr.clone() };
        Ok(self.keep("", Process::gated(&config["process"], &paths, self.ending(""))?))
    }

    fn declare(&self, request: ExecProcessRequest) -> Result<()> {
        let process = serde_json::from_slice(&request.spec.value)?;
        let paths = Paths { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
        let ended = self.ending(&request.exec_id);
        let mut declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        declared.insert(request.exec_id, (process, paths, ended));
        Ok(())
    }

    async fn start_now(&self, exec_id: &str) -> Result<u32> {
        if exec_id.is_empty() {
            let gate = self.with("", Process::take_gate)?.context("it is started already")?;
            let_go(gate).await?;
            return self.pid();
        }
        let declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
        let (process, paths, ended) = declared.with_context(|| format!("there is no exec {exec_id:?}"))?;
        Ok(self.keep(exec_id, Process::at_once(&process, &paths, ended)?))
    }

    async fn end_of(&self, exec_id: &str) -> Result<End> {
        let mut end = self.end(exec_id)?;
        let ended = end.wait_for(Option::is_some).await.context("nobody waits for it")?;
        (*ended).context("it has not ended")
    }

    fn delete_now(&self, exec_id: &str) -> Result<End> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
        let end = (*self.end(exec_id)?.borrow()).context("it still runs")?;
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
        Ok(end)
    }
}

fn refusal(text: &str) -> Error {
    Error::RpcStatus(get_status(Code::UNKNOWN, text))
}

#[async_trait]
impl Task for Stub {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let begun = Instant::now();
        let created = self.create_now(&request);
        let pid = self.answer(Call::Create, begun, created).await?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let begun = Instant::now();
        let started = self.start_now(&request.exec_id).await;
        let call = if request.exec_id.is_empty() { Call::Start } else { Call::ExecStart };
        let pid = self.answer(call, begun, started).await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let end = self.end_of(&request.exec_id).await;
        let seen = end.as_ref().map_or_else(|_| Instant::now(), |(_, seen)| *seen);
        let (exit_status, _) = if request.exec_id.is_empty() {
            self.answer(Call::Wait, seen, end).await?
        } else {
            end.map_err(|error| refusal(&format!("{error:#}")))?
        };
        Ok(WaitResponse { exit_status, ..WaitResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let begun = Instant::now();
        let deleted = self.delete_now(&request.exec_id);
        let (exit_status, _) = if request.exec_id.is_empty() {
            self.answer(Call::Delete, begun, deleted).await?
        } else {
            deleted.map_err(|error| refusal(&format!("{error:#}")))?
        };
        Ok(DeleteResponse { exit_status, ..DeleteResponse::default() })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let begun = Instant::now();
        let declared = self.declare(request);
        self.answer(Call::ExecSetUp, begun, declared).await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let begun = Instant::now();
        let sent = self.with(&request.exec_id, |process| process.signal(request.signal)).flatten();
        self.answer(Call::Kill, begun, sent).await?;
        Ok(Empty::default())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let begun = Instant::now();
        let pid = self.with(&request.exec_id, |process| process.pid().unsigned_abs());
        let pid = self.answer(Call::State, begun, pid).await?;
        Ok(StateResponse { id: request.id, pid, ..StateResponse::default() })
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let begun = Instant::now();
        let task_pid = self.answer(Call::Connect, begun, self.pid()).await?;
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, ..ConnectResponse::default() })
    }

    async fn pids(&self, _: &TtrpcContext, _: PidsRequest) -> ttrpc::Result<PidsResponse> {
        self.answer(Call::Pids, Instant::now(), Ok(PidsResponse::default())).await
    }

    async fn stats(&self, _: &TtrpcContext, _: StatsRequest) -> ttrpc::Result<StatsResponse> {
        self.answer(Call::Stats, Instant::now(), Ok(StatsResponse::default())).await
    }

    async fn resize_pty(&self, _: &TtrpcContext, _: ResizePtyRequest) -> ttrpc::Result<Empty> {
        self.answer(Call::Resize, Instant::now(), Ok(Empty::default())).await
    }

    async fn update(&self, _: &TtrpcContext, _: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        self.answer(Call::Update, Instant::now(), Ok(Empty::default())).await
    }

    /// Answers at once: the writing end of the pipe is the caller's, and is closed already.
    async fn close_io(&self, _: &TtrpcContext, _: CloseIORequest) -> ttrpc::Result<Empty> {
        Ok(Empty::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        let answer = self.answer(Call::Shutdown, Instant::now(), Ok(Empty::default())).await;
        self.over.notify_one();
        answer
    }
}
