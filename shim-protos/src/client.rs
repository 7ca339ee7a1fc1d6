//! The client of a shim's task service, shared by all who control its task.
//!
//! The generated client speaks version 3 only; this one uses the service name of the shim's own version. One
//! connection carries all calls. If it breaks and the shim is still there, the next call reconnects, and a call that
//! was cut off is retried, if it was never sent or is idempotent. Any other call fails, and its caller has to find out
//! whether it took effect.
//!
//! A deadline is the server's context, too: when it passes, or the connection breaks, the shim kills the runc that is
//! running for the call. Calls that fork runc need a long timeout.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use ttrpc::{Code, Request, Response};

use crate::bootstrap::Bootstrap;
use crate::multiplex::{Broken, Multiplex};

/// The failure of a call to a shim, by what the caller can do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The shim is gone, or no process listens at its address.
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

/// A client of the shim's task service. Clones share its connection.
#[derive(Clone)]
pub struct TaskClient {
    connection: Arc<Mutex<Multiplex>>,
    socket: PathBuf,
    service: &'static str,
}

/// Whether a call that the shim may have carried out may be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Never,
    /// The call is idempotent: it only queries, or has the same effect when it is made twice.
    Harmless,
}

/// Time by which the shim's own deadline is later than ours, so that ours always passes first.
const SERVER_GRACE: Duration = Duration::from_millis(500);
/// Timeout of the connection that replaces a broken one.
const RECONNECT: Duration = Duration::from_secs(5);

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident, $method:literal, $request:ty => $response:ty, $repeat:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// See [`CallError`].
        pub async fn $name(&self, request: &$request, limit: Duration) -> Result<$response, CallError> {
            self.call($method, request, Some(limit), Repeat::$repeat).await
        }
    )*};
}

impl TaskClient {
    /// Connects to a shim.
    ///
    /// # Errors
    /// [`CallError::Disconnected`] if nobody listens, [`CallError::TimedOut`] if nobody accepts.
    pub async fn connect(shim: &Bootstrap, limit: Duration) -> Result<Self, CallError> {
        let stream = open(&shim.socket, limit).await?;
        Ok(Self::over(stream, shim))
    }

    /// Returns a client that connects at its first call, and tries again at each later one as long as nobody accepts.
    #[must_use]
    pub fn deferred(shim: &Bootstrap) -> Self {
        Self {
            connection: Arc::new(Mutex::new(Multiplex::closed())),
            socket: shim.socket.clone(),
            service: shim.version.service(),
        }
    }

    fn over(stream: UnixStream, shim: &Bootstrap) -> Self {
        Self {
            connection: Arc::new(Mutex::new(Multiplex::over(stream))),
            socket: shim.socket.clone(),
            service: shim.version.service(),
        }
    }

    calls! {
        /// Creates the container, but doesn't start its process. Forks the runtime.
        create, "Create", CreateTaskRequest => CreateTaskResponse, Never;
        /// Starts the task, or an exec. Forks the runtime. After an exec's start has failed, delete it and never start
        /// it again: a second start crashes the shim.
        start, "Start", StartRequest => StartResponse, Never;
        /// Removes an ended task or an exec, after its output has been copied. For a task, forks the runtime.
        delete, "Delete", DeleteRequest => DeleteResponse, Never;
        /// Declares an exec. A missing process spec crashes the shim.
        exec, "Exec", ExecProcessRequest => Empty, Never;
        /// Sends a signal. For the task, forks the runtime.
        kill, "Kill", KillRequest => Empty, Never;
        /// Returns the state of the task or of an exec, with the exit status if it has exited.
        state, "State", StateRequest => StateResponse, Harmless;
        /// Returns the processes of the container. Forks the runtime.
        pids, "Pids", PidsRequest => PidsResponse, Harmless;
        /// Returns the metrics of the container's cgroup.
        stats, "Stats", StatsRequest => StatsResponse, Harmless;
        /// Changes resource limits. A missing payload crashes the shim. Forks the runtime.
        update, "Update", UpdateTaskRequest => Empty, Harmless;
        /// Sets the size of a terminal; also before its process starts.
        resize_pty, "ResizePty", ResizePtyRequest => Empty, Harmless;
        /// Closes stdin. On a terminal it shuts the whole console and loses output: send the end-of-file character
        /// instead.
        close_io, "CloseIO", CloseIORequest => Empty, Harmless;
        /// Returns the pids of the shim and of the task.
        pids_of_shim_and_task, "Connect", ConnectRequest => ConnectResponse, Harmless;
        /// Shuts the shim down, if no container is left in it. It may exit before its answer arrives.
        shutdown, "Shutdown", ShutdownRequest => Empty, Harmless;
    }

    /// Waits for the exit of the task, or of an exec, however long it takes. Call it before the start. It never
    /// returns for an exec that was not started, and reports 0 for one whose start failed.
    ///
    /// # Errors
    /// See [`CallError`]; there is no deadline.
    pub async fn wait(&self, request: &WaitRequest) -> Result<WaitResponse, CallError> {
        self.call("Wait", request, None, Repeat::Harmless).await
    }

    async fn call<Q: Message, A: Message>(
        &self,
        method: &str,
        message: &Q,
        limit: Option<Duration>,
        repeat: Repeat,
    ) -> Result<A, CallError> {
        let payload = message.write_to_bytes().map_err(|e| CallError::Refused(e.to_string()))?;
        let request = Request {
            service: self.service.to_owned(),
            method: method.to_owned(),
            timeout_nano: limit.map_or(0, |limit| nanoseconds(limit + SERVER_GRACE)),
            payload,
            ..Request::default()
        };
        let exchange = self.exchange(request, repeat);
        let response = match limit {
            None => exchange.await?,
            Some(limit) => {
                tokio::time::timeout(limit, exchange).await.map_err(|_| CallError::TimedOut(limit))??
            }
        };
        succeeded(&response, limit)?;
        A::parse_from_bytes(&response.payload)
            .map_err(|e| CallError::Refused(format!("unreadable answer to {method}: {e}")))
    }

    /// Makes the call, and retries it once over a new connection if that can do no harm.
    async fn exchange(&self, request: Request, repeat: Repeat) -> Result<Response, CallError> {
        let mut first = true;
        loop {
            let connection = self.connection().await?;
            let broken = match connection.call(request.clone()).await {
                Ok(response) => return Ok(response),
                Err(broken) => broken,
            };
            let again = match &broken {
                Broken::Unsent => true,
                Broken::Sent(_) => repeat == Repeat::Harmless,
                Broken::Unfit(_) => false,
            };
            if !again || !first {
                return Err(broken.into());
            }
            first = false;
        }
    }

    /// Returns the connection, or a new one if it is broken. Concurrent callers that find it broken may each make one;
    /// the last is kept.
    async fn connection(&self) -> Result<Multiplex, CallError> {
        let current = self.lock().clone();
        if current.is_open() {
            return Ok(current);
        }
        let new = Multiplex::over(open(&self.socket, RECONNECT).await?);
        *self.lock() = new.clone();
        Ok(new)
    }

    fn lock(&self) -> MutexGuard<'_, Multiplex> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
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

fn succeeded(response: &Response, limit: Option<Duration>) -> Result<(), CallError> {
    let status = response.status.get_or_default();
    let text = || status.message.clone();
    Err(match status.code.enum_value_or_default() {
        Code::OK => return Ok(()),
        Code::DEADLINE_EXCEEDED => CallError::TimedOut(limit.unwrap_or_default()),
        Code::NOT_FOUND => CallError::NotFound(text()),
        Code::ALREADY_EXISTS => CallError::AlreadyExists(text()),
        _ => CallError::Refused(text()),
    })
}

impl From<Broken> for CallError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Unsent => Self::Disconnected("the connection broke before the call".to_owned()),
            Broken::Sent(text) => Self::Disconnected(text),
            Broken::Unfit(text) => Self::Refused(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;
    use ttrpc::proto::{GenMessage, Message as Frame};

    use super::*;
    use crate::bootstrap::ApiVersion;

    const PATIENT: Duration = Duration::from_secs(20);

    fn nowhere(version: ApiVersion) -> Bootstrap {
        Bootstrap { version, socket: "/nowhere.sock".into() }
    }

    async fn next_request(stream: &mut UnixStream) -> Option<(u32, Request)> {
        let frame = GenMessage::read_from(stream).await.ok()?;
        let message = Frame::<Request>::try_from(frame).unwrap();
        Some((message.header.stream_id, message.payload))
    }

    /// Serves requests: answers each with its method's name as an error. Returns the stream ids in the order in which
    /// they came.
    async fn serve(mut stream: UnixStream) -> Vec<u32> {
        let mut ids = Vec::new();
        while let Some((id, request)) = next_request(&mut stream).await {
            ids.push(id);
            let mut response = Response::new();
            let text = format!("{}/{}", request.service, request.method);
            response.set_status(ttrpc::error::get_status(Code::NOT_FOUND, text));
            let mut answer =
                GenMessage { payload: response.write_to_bytes().unwrap(), ..GenMessage::default() };
            let length = u32::try_from(answer.payload.len()).unwrap();
            answer.header = ttrpc::MessageHeader::new_response(id, length);
            // The test ends when the client has closed the connection.
            let _ = answer.write_to(&mut stream).await;
        }
        ids
    }

    #[tokio::test]
    async fn the_service_is_the_one_of_the_version() {
        for (version, service) in
            [(ApiVersion::V2, "containerd.task.v2.Task"), (ApiVersion::V3, "containerd.task.v3.Task")]
        {
            let (ours, theirs) = UnixStream::pair().unwrap();
            tokio::spawn(serve(theirs));
            let client = TaskClient::over(ours, &nowhere(version));
            let error = client.state(&StateRequest::default(), PATIENT).await.unwrap_err();
            let path = format!("{service}/State");
            assert!(matches!(&error, CallError::NotFound(text) if *text == path), "{error}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn concurrent_calls_reach_the_shim_in_the_order_of_their_ids() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = TaskClient::over(ours, &nowhere(ApiVersion::V3));
        // The requests are more than the socket's buffer holds: most wait for the server to read.
        let request = StateRequest { id: "x".repeat(8 * 1024), ..StateRequest::default() };
        let call = |_| {
            let (client, request) = (client.clone(), request.clone());
            tokio::spawn(async move { client.state(&request, PATIENT).await })
        };
        let mut callers: Vec<_> = (0..300).map(call).collect();
        tokio::task::yield_now().await;
        let server = tokio::spawn(serve(theirs));
        callers.extend((0..300).map(call));
        for caller in callers {
            assert!(matches!(caller.await.unwrap(), Err(CallError::NotFound(_))));
        }
        drop(client);
        let ids = server.await.unwrap();
        assert_eq!(ids.len(), 600);
        assert!(ids.is_sorted_by(|earlier, later| earlier < later), "{ids:?}");
    }

    /// Plays a shim that closes its first connection after a request, and serves the second. Sends the method that
    /// came over the first to `came`.
    async fn breaks_once(listener: UnixListener, came: mpsc::UnboundedSender<String>) {
        let (mut first, _) = listener.accept().await.unwrap();
        let (_, request) = next_request(&mut first).await.unwrap();
        came.send(request.method).unwrap();
        drop(first);
        let (second, _) = listener.accept().await.unwrap();
        serve(second).await;
    }

    #[tokio::test]
    async fn a_broken_connection_is_replaced_and_only_harmless_calls_are_made_again() {
        let directory = tempfile::tempdir().unwrap();
        for harmless in [true, false] {
            let socket = directory.path().join(format!("{harmless}.sock"));
            let (sender, mut came) = mpsc::unbounded_channel();
            tokio::spawn(breaks_once(UnixListener::bind(&socket).unwrap(), sender));
            let shim = Bootstrap { version: ApiVersion::V2, socket };
            let client = TaskClient::connect(&shim, PATIENT).await.unwrap();
            let request = StateRequest::default();
            let state = || client.state(&request, PATIENT);
            if harmless {
                assert!(matches!(state().await, Err(CallError::NotFound(_))));
                assert_eq!(came.recv().await.unwrap(), "State");
            } else {
                let killed = client.kill(&KillRequest::default(), PATIENT).await;
                assert!(matches!(killed, Err(CallError::Disconnected(_))), "{killed:?}");
                assert_eq!(came.recv().await.unwrap(), "Kill");
                assert!(matches!(state().await, Err(CallError::NotFound(_))), "the next call works");
            }
        }
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_shim_dies() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = TaskClient::over(ours, &nowhere(ApiVersion::V2));
        let waiting = tokio::spawn(async move { client.wait(&WaitRequest::default()).await });
        drop(theirs);
        let answer = waiting.await.unwrap();
        assert!(matches!(answer, Err(CallError::Disconnected(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn a_shim_that_does_not_answer_is_a_timeout() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let client = TaskClient::over(ours, &nowhere(ApiVersion::V2));
        let answer = client.state(&StateRequest::default(), Duration::from_millis(20)).await;
        assert!(matches!(answer, Err(CallError::TimedOut(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn a_deferred_client_connects_when_somebody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("late.sock");
        let client = TaskClient::deferred(&Bootstrap { version: ApiVersion::V2, socket: socket.clone() });
        let request = StateRequest::default();
        let state = || client.state(&request, PATIENT);
        assert!(matches!(state().await, Err(CallError::Disconnected(_))));
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
        assert!(matches!(state().await, Err(CallError::NotFound(_))));
    }

    #[tokio::test]
    async fn nobody_at_the_address_is_a_disconnect() {
        let answer = TaskClient::connect(&nowhere(ApiVersion::V2), Duration::from_secs(1)).await;
        assert!(matches!(answer.err(), Some(CallError::Disconnected(_))));
    }
}
