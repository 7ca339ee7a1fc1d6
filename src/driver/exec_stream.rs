//! A command's streams over one gRPC stream: `nomad alloc exec`.
//!
//! The agent never ends its half, and sends empty messages as a heartbeat. It shows no error of the call to the user: a
//! command that can't be run must come back as text and an exit code. The exit is the last message, and always comes.

use std::sync::Arc;

use nomad_proto::driver as pb;
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::reply;
use crate::error::Error;
use crate::task::{Exec, ExecRefused, Input, Output, Task};

type Message = Result<pb::ExecTaskStreamingResponse, Status>;

/// Messages under way to the agent; a command that writes faster than the agent reads waits.
const QUEUED_MESSAGES: usize = 4;
/// The code of a command that the driver could not run for reasons of its own.
const DRIVER_FAILED: i32 = 126;

pub(super) fn run(
    task: Arc<Task>,
    setup: pb::exec_task_streaming_request::Setup,
    input: Streaming<pb::ExecTaskStreamingRequest>,
) -> impl Stream<Item = Message> {
    let (output, messages) = mpsc::channel(QUEUED_MESSAGES);
    tokio::spawn(async move {
        let code = tokio::select! {
            code = drive(&task, &setup, input, &output) => code,
            // The client is gone, and with the exec's end here goes its command.
            () = output.closed() => return,
        };
        let _ = output.send(Ok(reply::exec_exited(code))).await;
    });
    ReceiverStream::new(messages)
}

async fn drive(
    task: &Task,
    setup: &pb::exec_task_streaming_request::Setup,
    input: Streaming<pb::ExecTaskStreamingRequest>,
    output: &Sender<Message>,
) -> i32 {
    let mut exec = match task.exec(&setup.command, setup.tty, true).await {
        Ok(Ok(exec)) => exec,
        Ok(Err(ExecRefused { text, code })) => return refuse(output, text, code).await,
        Err(error) => return fail(output, &error).await,
    };
    let Some(way_in) = exec.input() else { return DRIVER_FAILED };
    tokio::select! {
        code = send(&mut exec, output) => code,
        never = feed(way_in, input) => match never {},
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
        // An error is the client's going away, which ends all this from outside.
        let _ = output.send(Ok(message)).await;
    }
}

async fn fail(output: &Sender<Message>, error: &Error) -> i32 {
    refuse(output, format!("{error}\n"), DRIVER_FAILED).await
}

async fn refuse(output: &Sender<Message>, text: String, code: i32) -> i32 {
    let _ = output.send(Ok(reply::exec_stderr(text.into_bytes()))).await;
    code
}

/// Passes on what the client sends. Never ends by itself: the command may go on without input.
async fn feed(
    mut way_in: Input,
    mut input: Streaming<pb::ExecTaskStreamingRequest>,
) -> std::convert::Infallible {
    while let Ok(Some(message)) = input.message().await {
        if let Some(pb::exec_task_streaming_request::TerminalSize { height, width }) = message.tty_size
            && let (Ok(width), Ok(height)) = (u32::try_from(width), u32::try_from(height))
        {
            way_in.resize(width, height).await;
        }
        if let Some(stdin) = message.stdin {
            let unread = !stdin.data.is_empty() && way_in.write(&stdin.data).await.is_err();
            if stdin.close || unread {
                way_in.close().await;
            }
        }
    }
    std::future::pending().await
}
