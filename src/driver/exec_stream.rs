//! `nomad alloc exec`: stdin, stdout and stderr of an exec over one gRPC stream.
//!
//! The agent never ends its half, and sends empty messages as a heartbeat. It shows no error of the call to the user: a
//! command that can't be run must come back as text and an exit code. The exit is the last message, and always comes.

mod inbox;

use std::sync::Arc;

use nomad_proto::driver as pb;
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::reply;
use crate::sys::error_chain::Chained;
use crate::task::{Error, Exec, ExecRefused, Output, Task};
use inbox::Inbox;

type Message = Result<pb::ExecTaskStreamingResponse, Status>;

/// Maximum number of messages queued for the agent; a command that writes faster than the agent reads is blocked.
const QUEUED_MESSAGES: usize = 4;
/// Exit code if the task is not running, as of `docker exec`.
const TASK_HAS_ENDED: i32 = 1;
/// Exit code if the exec itself fails, not its command, as of docker's tools.
const DRIVER_FAILED: i32 = 125;

/// Runs a command and streams its output. The last message reports the exec exit, with its code.
pub(super) fn run(
    task: Arc<Task>,
    setup: pb::exec_task_streaming_request::Setup,
    input: Streaming<pb::ExecTaskStreamingRequest>,
) -> impl Stream<Item = Message> {
    let (output, messages) = mpsc::channel(QUEUED_MESSAGES);
    tokio::spawn(async move {
        let code = tokio::select! {
            code = drive(&task, &setup, Inbox::new(input), &output) => code,
            // The client is gone. Dropping the exec ends its command.
            () = output.closed() => return,
        };
        let _ = output.send(Ok(reply::exec_exited(code))).await;
    });
    ReceiverStream::new(messages)
}

async fn drive(
    task: &Task,
    setup: &pb::exec_task_streaming_request::Setup,
    mut inbox: Inbox,
    output: &Sender<Message>,
) -> i32 {
    let terminal = if setup.tty { Some(inbox.first_size().await) } else { None };
    let mut exec = match task.exec(&setup.command, terminal, true).await {
        Ok(Ok(exec)) => exec,
        Ok(Err(ExecRefused { text, code })) => return refuse(output, text, code).await,
        Err(error) => return fail(output, &error).await,
    };
    let Some((stdin, terminal)) = exec.input() else { return DRIVER_FAILED };
    tokio::select! {
        code = send(&mut exec, output) => code,
        never = inbox.feed(stdin, terminal) => match never {},
    }
}

async fn send(exec: &mut Exec, output: &Sender<Message>) -> i32 {
    loop {
        let message = match exec.next().await {
            Ok(Output::Stdout(bytes)) => reply::exec_stdout(bytes),
            Ok(Output::Stderr(bytes)) => reply::exec_stderr(bytes),
            Ok(Output::Exited(code)) => return code,
            Err(error) => return fail(output, &error).await,
        };
        // Sending fails only if the client is gone, and then the whole exec is dropped.
        let _ = output.send(Ok(message)).await;
    }
}

async fn fail(output: &Sender<Message>, error: &Error) -> i32 {
    let code = if matches!(error, Error::Conflict(_)) { TASK_HAS_ENDED } else { DRIVER_FAILED };
    refuse(output, format!("{}\n", error.chain()), code).await
}

async fn refuse(output: &Sender<Message>, text: String, code: i32) -> i32 {
    let _ = output.send(Ok(reply::exec_stderr(text.into_bytes()))).await;
    code
}
