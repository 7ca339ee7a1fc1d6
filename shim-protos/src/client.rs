//! One connection to a shim, shared by all who drive its task.
//!
//! The generated client speaks version 3 only, and issues concurrent requests with stream ids out of order, which
//! servers from containerd 1.7 on refuse. So requests are built here: the service name is the shim's own, and each
//! request is issued (id taken and queued) in one uninterrupted step.
//!
//! A deadline is the server's context too: when it passes, the shim kills the runc that is running for the call. Give
//! calls that fork runc plenty.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, PidsRequest, PidsResponse, ResizePtyRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc;
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::{Code, Request, Response};

use crate::bootstrap::{ApiVersion, Bootstrap};

/// How a call to a shim failed, by what the caller can do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The shim is gone, or nobody listens at its address.
    #[error("the shim can't be reached: {0}")]
    Disconnected(String),
    /// No answer came in time; whether the call took effect is unknown.
    #[error("the shim did not answer within {0:?}")]
    TimedOut(Duration),
    /// The task or exec that the call names doesn't exist, or has ended already.
    #[error("{0}")]
    NotFound(String),
    /// The task or exec that the call would make exists.
    #[error("{0}")]
    AlreadyExists(String),
    /// The shim or its runtime refused; most wrong states and runtime errors are only told apart by this text.
    #[error("{0}")]
    Refused(String),
}

/// A connection to the shim's task service. Clones share it.
#[derive(Clone)]
pub struct TaskClient {
    client: Client,
    service: &'static str,
    /// Held while one request is issued, never across a wait.
    issue: Arc<Mutex<()>>,
}

/// What a server from containerd 1.7 on says of a stream id that came late. The call was not executed.
const REUSED_STREAM_ID: &str = "StreamID cannot be re-used and must increment";

/// How much later than ours the shim's own deadline is, so that it is always ours that passes first.
const SERVER_GRACE: Duration = Duration::from_millis(500);

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident, $method:literal, $request:ty => $response:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// See [`CallError`].
        pub async fn $name(&self, request: &$request, limit: Duration) -> Result<$response, CallError> {
            self.call($method, request, Some(limit)).await
        }
    )*};
}

impl TaskClient {
    /// Connects to a shim.
    ///
    /// # Errors
    /// [`CallError::Disconnected`] where nobody listens, [`CallError::TimedOut`] where nobody accepts.
    pub async fn connect(shim: &Bootstrap, limit: Duration) -> Result<Self, CallError> {
        let stream = open(&shim.socket, limit).await?;
        Ok(Self::over(stream, shim.version))
    }

    fn over(stream: UnixStream, version: ApiVersion) -> Self {
        Self {
            client: Client::new(Socket::from(stream)),
            service: version.service(),
            issue: Arc::new(Mutex::new(())),
        }
    }

    calls! {
        /// Makes the container, up to but not including its process. Forks the runtime.
        create, "Create", CreateTaskRequest => CreateTaskResponse;
        /// Starts the task, or an exec. Forks the runtime. After an exec's start has failed, delete it and never start
        /// it again: a second start crashes the shim.
        start, "Start", StartRequest => StartResponse;
        /// Removes an ended task or an exec, after its output has been copied. For a task, forks the runtime.
        delete, "Delete", DeleteRequest => DeleteResponse;
        /// Declares an exec. A missing process spec crashes the shim.
        exec, "Exec", ExecProcessRequest => Empty;
        /// Sends a signal. For the task, forks the runtime.
        kill, "Kill", KillRequest => Empty;
        /// What the shim knows of the task, or of an exec; its exit status where it has ended.
        state, "State", StateRequest => StateResponse;
        /// The processes of the container. Forks the runtime.
        pids, "Pids", PidsRequest => PidsResponse;
        /// The metrics of the container's cgroup.
        stats, "Stats", StatsRequest => StatsResponse;
        /// Changes resource limits. A missing payload crashes the shim. Forks the runtime.
        update, "Update", UpdateTaskRequest => Empty;
        /// Sets the size of a terminal; also before its process starts.
        resize_pty, "ResizePty", ResizePtyRequest => Empty;
        /// Ends stdin. On a terminal it shuts the whole console and loses output: send the end-of-file character.
        close_io, "CloseIO", CloseIORequest => Empty;
        /// The pids of the shim and of the task.
        pids_of_shim_and_task, "Connect", ConnectRequest => ConnectResponse;
        /// Ends the shim, if no container is left in it. It may exit before its answer arrives.
        shutdown, "Shutdown", ShutdownRequest => Empty;
    }

    /// Waits for the exit of the task, or of an exec, however long it takes. Call it before the start. It never
    /// returns for an exec that was not started, and reports 0 for one whose start failed.
    ///
    /// # Errors
    /// See [`CallError`]; there is no deadline.
    pub async fn wait(&self, request: &WaitRequest) -> Result<WaitResponse, CallError> {
        self.call("Wait", request, None).await
    }

    async fn call<Q: Message, A: Message>(
        &self,
        method: &str,
        message: &Q,
        limit: Option<Duration>,
    ) -> Result<A, CallError> {
        let payload = message.write_to_bytes().map_err(|e| CallError::Refused(e.to_string()))?;
        let request = || Request {
            service: self.service.to_owned(),
            method: method.to_owned(),
            timeout_nano: limit.map_or(0, |limit| nanoseconds(limit + SERVER_GRACE)),
            payload: payload.clone(),
            ..Request::default()
        };
        let exchange = async {
            match self.issue(request()).await {
                // Our own order is kept, so one more try is plenty.
                Err(ttrpc::Error::RpcStatus(status)) if status.message.contains(REUSED_STREAM_ID) => {
                    self.issue(request()).await
                }
                answer => answer,
            }
        };
        let response = match limit {
            None => exchange.await,
            Some(limit) => {
                tokio::time::timeout(limit, exchange).await.map_err(|_| CallError::TimedOut(limit))?
            }
        }
        .map_err(|error| classify(error, limit))?;
        A::parse_from_bytes(&response.payload)
            .map_err(|e| CallError::Refused(format!("unreadable answer to {method}: {e}")))
    }

    /// Runs the request, with its first step alone: that step takes the stream id and queues the message, and no
    /// other request of this connection may come between the two.
    async fn issue(&self, request: Request) -> ttrpc::Result<Response> {
        let mut running = pin!(tokio::task::unconstrained(self.client.request(request)));
        let mut issued = false;
        std::future::poll_fn(|context| {
            if issued {
                return running.as_mut().poll(context);
            }
            issued = true;
            let _one_at_a_time = self.issue.lock().unwrap_or_else(PoisonError::into_inner);
            running.as_mut().poll(context)
        })
        .await
    }
}

async fn open(socket: &Path, limit: Duration) -> Result<UnixStream, CallError> {
    match tokio::time::timeout(limit, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(CallError::Disconnected(format!("{}: {error}", socket.display()))),
        Err(_) => Err(CallError::TimedOut(limit)),
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn classify(error: ttrpc::Error, limit: Option<Duration>) -> CallError {
    match error {
        ttrpc::Error::RpcStatus(status) => match status.code.enum_value_or_default() {
            Code::DEADLINE_EXCEEDED => CallError::TimedOut(limit.unwrap_or_default()),
            Code::NOT_FOUND => CallError::NotFound(status.message),
            Code::ALREADY_EXISTS => CallError::AlreadyExists(status.message),
            _ => CallError::Refused(status.message),
        },
        ttrpc::Error::Others(text) => CallError::Refused(text),
        other => CallError::Disconnected(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const FRAME_HEADER: usize = 10;

    /// A server that answers each request with its method's name as an error, and refuses ids that don't grow.
    async fn serve(mut stream: UnixStream, out_of_order: Arc<AtomicU32>) {
        let mut last_id = 0;
        let mut header = [0u8; FRAME_HEADER];
        while stream.read_exact(&mut header).await.is_ok() {
            let length = u32::from_be_bytes(header[0..4].try_into().unwrap());
            let id = u32::from_be_bytes(header[4..8].try_into().unwrap());
            let mut body = vec![0; length as usize];
            stream.read_exact(&mut body).await.unwrap();
            if id <= last_id {
                out_of_order.fetch_add(1, Ordering::Relaxed);
            }
            last_id = id;
            let request = Request::parse_from_bytes(&body).unwrap();
            let mut response = Response::new();
            let text = format!("{}/{}", request.service, request.method);
            response.set_status(ttrpc::error::get_status(Code::NOT_FOUND, text));
            let body = response.write_to_bytes().unwrap();
            let mut frame = Vec::new();
            frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
            frame.extend(id.to_be_bytes());
            frame.extend([2, 0]);
            frame.extend(body);
            stream.write_all(&frame).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_service_is_the_one_of_the_version() {
        for (version, service) in
            [(ApiVersion::V2, "containerd.task.v2.Task"), (ApiVersion::V3, "containerd.task.v3.Task")]
        {
            let (ours, theirs) = UnixStream::pair().unwrap();
            tokio::spawn(serve(theirs, Arc::default()));
            let error = TaskClient::over(ours, version)
                .state(&StateRequest::default(), Duration::from_secs(5))
                .await
                .unwrap_err();
            assert!(
                matches!(&error, CallError::NotFound(text) if *text == format!("{service}/State")),
                "{error}"
            );
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn concurrent_calls_are_issued_in_order() {
        let out_of_order = Arc::new(AtomicU32::new(0));
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(serve(theirs, Arc::clone(&out_of_order)));
        let client = TaskClient::over(ours, ApiVersion::V3);
        let callers: Vec<_> = (0..16)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    for _ in 0..200 {
                        let answer = client.state(&StateRequest::default(), Duration::from_secs(20)).await;
                        assert!(matches!(answer, Err(CallError::NotFound(_))));
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        assert_eq!(out_of_order.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_shim_dies() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = TaskClient::over(ours, ApiVersion::V2);
        let waiting = tokio::spawn(async move { client.wait(&WaitRequest::default()).await });
        drop(theirs);
        let answer = waiting.await.unwrap();
        assert!(matches!(answer, Err(CallError::Disconnected(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn a_shim_that_does_not_answer_is_a_timeout() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let client = TaskClient::over(ours, ApiVersion::V2);
        let answer = client.state(&StateRequest::default(), Duration::from_millis(20)).await;
        assert!(matches!(answer, Err(CallError::TimedOut(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn nobody_at_the_address_is_a_disconnect() {
        let directory = std::env::temp_dir().join("no-shim-here.sock");
        let shim = Bootstrap { version: ApiVersion::V2, socket: directory };
        let answer = TaskClient::connect(&shim, Duration::from_secs(1)).await;
        assert!(matches!(answer.err(), Some(CallError::Disconnected(_))));
    }
}
