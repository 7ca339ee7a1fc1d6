//! Input of an exec from its client: stdin and terminal sizes, from before the command's start on.
//!
//! Both come in one stream, and a command may never read its stdin. So that a size does not wait behind stdin for long,
//! a limited amount of stdin is buffered here; only beyond that the client has to wait.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use futures::FutureExt;
use nomad_proto::driver as pb;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tonic::Streaming;

use crate::task::{Stdin, Terminal, TerminalSize};

type Message = pb::ExecTaskStreamingRequest;

/// Maximum amount of stdin that is buffered for a command that does not read, in addition to its pipe.
const KEPT_BYTES: u32 = 1024 * 1024;
/// Maximum wait of an exec's start for the terminal's size, which agents send right after the setup, so that the
/// command never sees another one. A later size has the same effect if the command has not asked for it yet.
const SIZE_COMES_WITHIN: Duration = Duration::from_millis(10);
/// Maximum number of messages that are read before the size arrives.
const EARLY_MESSAGES: usize = 16;

pub(super) struct Inbox {
    stream: Streaming<Message>,
    /// Messages that arrived before the command's start and are not passed on yet.
    early: VecDeque<Message>,
}

/// A chunk of stdin with its permit of the buffer, or the end of stdin.
enum Input<'a> {
    Data(Vec<u8>, SemaphorePermit<'a>),
    End,
}

impl Inbox {
    pub(super) fn new(stream: Streaming<Message>) -> Self {
        Self { stream, early: VecDeque::new() }
    }

    /// Returns the terminal's size, if it arrives at once; the last one if several do.
    pub(super) async fn first_size(&mut self) -> Option<TerminalSize> {
        let mut last = None;
        let look = async {
            while self.early.len() < EARLY_MESSAGES {
                let message = match last {
                    None => self.stream.message().await,
                    // After the first size, only messages that are here already are read for a newer one.
                    Some(_) => match self.stream.message().now_or_never() {
                        Some(message) => message,
                        None => return,
                    },
                };
                let Ok(Some(mut message)) = message else { return };
                last = message.tty_size.take().and_then(size).or(last);
                if message.stdin.is_some() {
                    self.early.push_back(message);
                }
            }
        };
        let _ = tokio::time::timeout(SIZE_COMES_WITHIN, look).await;
        last
    }

    /// Passes on stdin and sizes. Never returns: the command may go on without input.
    pub(super) async fn feed(&mut self, stdin: Stdin, terminal: Terminal) -> Infallible {
        let kept = Semaphore::new(KEPT_BYTES as usize);
        let (input, queue) = mpsc::unbounded_channel();
        let (sizes, newest) = watch::channel(None);
        tokio::join!(self.sort(&kept, input, sizes), write(stdin, queue), resize(terminal, newest),);
        std::future::pending().await
    }

    async fn sort<'a>(
        &mut self,
        kept: &'a Semaphore,
        input: mpsc::UnboundedSender<Input<'a>>,
        sizes: watch::Sender<Option<TerminalSize>>,
    ) {
        while let Some(message) = self.next().await {
            if let Some(size) = message.tty_size.and_then(size) {
                sizes.send_replace(Some(size));
            }
            let Some(pb::ExecTaskStreamingIoOperation { data, close }) = message.stdin else { continue };
            if !data.is_empty() {
                let share = u32::try_from(data.len()).unwrap_or(KEPT_BYTES).min(KEPT_BYTES);
                let Ok(share) = kept.acquire_many(share).await else { return };
                let _ = input.send(Input::Data(data, share));
            }
            if close {
                let _ = input.send(Input::End);
            }
        }
    }

    async fn next(&mut self) -> Option<Message> {
        match self.early.pop_front() {
            Some(message) => Some(message),
            None => self.stream.message().await.ok().flatten(),
        }
    }
}

async fn write(mut stdin: Stdin, mut queue: mpsc::UnboundedReceiver<Input<'_>>) {
    while let Some(input) = queue.recv().await {
        let goes_on = match input {
            Input::Data(data, share) => {
                let written = stdin.write(&data).await.is_ok();
                drop(share);
                written
            }
            Input::End => false,
        };
        if !goes_on {
            stdin.close().await;
        }
    }
    // A client that sends nothing more has not closed stdin.
    std::future::pending::<()>().await;
}

/// Resizes the terminal. Only the newest size counts, so only the last of those that arrive during a resize is kept.
async fn resize(terminal: Terminal, mut newest: watch::Receiver<Option<TerminalSize>>) {
    while newest.changed().await.is_ok() {
        let size = *newest.borrow_and_update();
        if let Some(size) = size {
            terminal.resize(size).await;
        }
    }
}

fn size(size: pb::exec_task_streaming_request::TerminalSize) -> Option<TerminalSize> {
    let pb::exec_task_streaming_request::TerminalSize { height, width } = size;
    Some(TerminalSize { width: u32::try_from(width).ok()?, height: u32::try_from(height).ok()? })
}
