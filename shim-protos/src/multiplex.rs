//! Multiplexes concurrent calls over one connection, in the frames of the ttrpc crate.
//!
//! The ttrpc crate's own client assigns a request's stream id in one step and queues the request in another, so that
//! requests of several callers can reach the shim out of order, and shims from containerd 1.7 on refuse those. Here
//! the one task that writes assigns the id when it writes, so that the ids are always in order.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::ttrpc;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use ttrpc::proto::{GenMessage, GenMessageError, Message};
use ttrpc::{Request, Response};

/// The stage at which a call without an answer failed.
#[derive(Debug, Clone)]
pub(crate) enum Broken {
    /// The call was never sent, so that nobody has carried it out.
    Unsent,
    /// The call was sent, and may have been carried out.
    Sent(String),
    /// The call can't be encoded as a frame.
    Unfit(String),
}

type Answer = oneshot::Sender<Result<Response, Broken>>;

struct Call {
    frame: GenMessage,
    answer: Answer,
}

/// A connection with concurrent calls. Clones share it; it is closed with the last of them.
#[derive(Clone)]
pub(crate) struct Multiplex {
    calls: mpsc::UnboundedSender<Call>,
}

impl Multiplex {
    pub(crate) fn over(stream: UnixStream) -> Self {
        // The queue needs no bound: each caller waits for its answer.
        let (calls, queue) = mpsc::unbounded_channel();
        tokio::spawn(run(stream, queue));
        Self { calls }
    }

    /// Returns a connection that is broken from the start.
    pub(crate) fn closed() -> Self {
        let (calls, _) = mpsc::unbounded_channel();
        Self { calls }
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.calls.is_closed()
    }

    pub(crate) async fn call(&self, request: Request) -> Result<Response, Broken> {
        let unfit = |error: ttrpc::Error| Broken::Unfit(error.to_string());
        let message = Message::new_request(0, request).map_err(unfit)?;
        let frame = GenMessage::try_from(message).map_err(|error| Broken::Unfit(error.to_string()))?;
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call { frame, answer }).map_err(|_| Broken::Unsent)?;
        // A call that was sent is answered at the latest when the connection ends. A dropped one was still in the
        // queue.
        answered.await.unwrap_or(Err(Broken::Unsent))
    }
}

/// The calls that were sent and have no answer yet, by stream id.
#[derive(Default)]
struct Pending {
    calls: Mutex<HashMap<u32, Answer>>,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Answer>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: u32, answer: Answer) {
        let mut calls = self.lock();
        // A call whose caller has given up may never be answered.
        calls.retain(|_, answer| !answer.is_closed());
        calls.insert(id, answer);
    }

    fn answer(&self, id: u32, response: Result<Response, Broken>) {
        if let Some(answer) = self.lock().remove(&id) {
            // The caller may be gone.
            let _ = answer.send(response);
        }
    }
}

async fn run(stream: UnixStream, mut queue: mpsc::UnboundedReceiver<Call>) {
    let (reader, writer) = stream.into_split();
    let pending = Pending::default();
    let end = tokio::select! {
        end = write(&mut queue, writer, &pending) => end,
        end = read(reader, &pending) => end,
    };
    // No new call is accepted from here on.
    drop(queue);
    for (_, answer) in pending.lock().drain() {
        let _ = answer.send(Err(Broken::Sent(end.clone())));
    }
}

async fn write(
    queue: &mut mpsc::UnboundedReceiver<Call>,
    mut writer: OwnedWriteHalf,
    pending: &Pending,
) -> String {
    // Clients use the odd stream ids.
    let mut id = 1;
    while let Some(Call { mut frame, answer }) = queue.recv().await {
        if answer.is_closed() {
            continue;
        }
        frame.header.set_stream_id(id);
        pending.add(id, answer);
        if let Err(error) = frame.write_to(&mut writer).await {
            return error.to_string();
        }
        id += 2;
    }
    "nobody calls any more".to_owned()
}

async fn read(mut reader: OwnedReadHalf, pending: &Pending) -> String {
    loop {
        match GenMessage::read_from(&mut reader).await {
            Ok(frame) => {
                let unreadable = |error| Broken::Sent(format!("unreadable answer: {error}"));
                let response = Message::<Response>::try_from(frame.clone()).map_err(unreadable);
                pending.answer(frame.header.stream_id, response.map(|message| message.payload));
            }
            Err(GenMessageError::ReturnError(header, error)) => {
                pending.answer(header.stream_id, Err(Broken::Sent(error.to_string())));
            }
            Err(GenMessageError::InternalError(error)) => return error.to_string(),
        }
    }
}
