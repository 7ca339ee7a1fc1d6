//! A streaming exec, as the client forwards it from `nomad alloc exec`: it never half-closes its stream, and sends
//! heartbeats, which are empty messages.
//!
//! Source of the facts: hashicorp/nomad `plugins/drivers/execstreaming.go`, `command/agent/http_exec.go`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nomad_proto::driver as pb;
use pb::{ExecTaskStreamingIoOperation as Operation, ExecTaskStreamingRequest as Request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::plugin::Plugin;

/// Returns a message with input.
pub fn data_of(data: &[u8]) -> Request {
    let stdin = Some(Operation { data: data.to_vec(), close: false });
    Request { stdin, ..Request::default() }
}

/// Returns the message that ends the input.
pub fn end_of_stdin() -> Request {
    let stdin = Some(Operation { data: Vec::new(), close: true });
    Request { stdin, ..Request::default() }
}

/// Returns a message with the terminal's size.
pub fn size_of(height: i32, width: i32) -> Request {
    let tty_size = Some(pb::exec_task_streaming_request::TerminalSize { height, width });
    Request { tty_size, ..Request::default() }
}

/// The output of an exec, and its result.
#[derive(Debug, Default)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub result: Option<pb::ExitResult>,
    /// Number of messages with output, and the size of the largest output in bytes.
    pub messages: usize,
    pub largest: usize,
}

impl ExecOutput {
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// # Errors
    /// Fails if the exit frame is missing, which the command line tool shows as an error.
    pub fn code(&self) -> Result<i32> {
        let result = self.result.as_ref();
        Ok(result
            .with_context(|| format!("no exit frame; {:?} {:?}", self.stdout_text(), self.stderr_text()))?
            .exit_code)
    }
}

pub struct Exec {
    input: mpsc::Sender<Request>,
    responses: Streaming<pb::ExecTaskStreamingResponse>,
    output: ExecOutput,
}

impl Exec {
    /// Opens the stream with its first message. An error of the call itself is a failure of the driver: the command line
    /// tool doesn't show it.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn open(plugin: &Plugin, task_id: &str, command: &[&str], tty: bool) -> Result<Self> {
        Self::open_saying(plugin, task_id, command, tty, Vec::new()).await
    }

    /// Opens the stream as [`Self::open`] does, with further messages that are sent at once.
    ///
    /// # Errors
    /// Carries the plugin's error.
    pub async fn open_saying(
        plugin: &Plugin,
        task_id: &str,
        command: &[&str],
        tty: bool,
        early: Vec<Request>,
    ) -> Result<Self> {
        let (input, requests) = mpsc::channel(early.len() + 16);
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let setup = pb::exec_task_streaming_request::Setup { task_id: task_id.to_owned(), command, tty };
        input.send(Request { setup: Some(setup), ..Request::default() }).await?;
        for message in early {
            input.send(message).await?;
        }
        let answer = plugin.driver().exec_task_streaming(ReceiverStream::new(requests)).await?;
        Ok(Self { input, responses: answer.into_inner(), output: ExecOutput::default() })
    }

    async fn send(&self, request: Request) -> Result<()> {
        self.input.send(request).await.context("the plugin has closed the exec's input")
    }

    /// # Errors
    /// Fails if the exec has ended.
    pub async fn stdin(&self, data: &[u8]) -> Result<()> {
        self.send(data_of(data)).await
    }

    /// # Errors
    /// Fails if the exec has ended.
    pub async fn close_stdin(&self) -> Result<()> {
        self.send(end_of_stdin()).await
    }

    /// # Errors
    /// Fails if the exec has ended.
    pub async fn resize(&self, height: i32, width: i32) -> Result<()> {
        self.send(size_of(height, width)).await
    }

    /// # Errors
    /// Fails if the exec has ended.
    pub async fn heartbeat(&self) -> Result<()> {
        self.send(Request::default()).await
    }

    /// Reads until stdout contains a text.
    ///
    /// # Errors
    /// Shows what came instead.
    pub async fn stdout_to_contain(&mut self, text: &str, limit: Duration) -> Result<()> {
        let read = self.read_until(|output| output.stdout_text().contains(text), limit).await;
        read.with_context(|| {
            format!("wait for {text:?} in {:?} {:?}", self.output.stdout_text(), self.output.stderr_text())
        })
    }

    /// Reads until stdout has at least `bytes` bytes, and no further.
    ///
    /// # Errors
    /// Says how many came.
    pub async fn stdout_to_have(&mut self, bytes: usize, limit: Duration) -> Result<()> {
        let read = self.read_until(|output| output.stdout.len() >= bytes, limit).await;
        read.with_context(|| format!("wait for {bytes} bytes, {} came", self.output.stdout.len()))
    }

    async fn read_until(&mut self, is_enough: impl Fn(&ExecOutput) -> bool, limit: Duration) -> Result<()> {
        let read = async {
            while !is_enough(&self.output) {
                if !Self::take(&mut self.responses, &mut self.output).await? {
                    bail!("the stream ended");
                }
            }
            Ok(())
        };
        tokio::time::timeout(limit, read).await.map_err(anyhow::Error::from).flatten()
    }

    /// Reads to the end of the stream, without half-closing it first.
    ///
    /// # Errors
    /// Shows what came instead of an end.
    pub async fn finish(mut self, limit: Duration) -> Result<ExecOutput> {
        let read = async {
            while Self::take(&mut self.responses, &mut self.output).await? {}
            Ok(())
        };
        let read: Result<()> = tokio::time::timeout(limit, read).await.map_err(anyhow::Error::from).flatten();
        read.with_context(|| {
            format!(
                "wait for the exec's end after {:?} {:?}",
                self.output.stdout_text(),
                self.output.stderr_text()
            )
        })?;
        Ok(self.output)
    }

    async fn take(
        responses: &mut Streaming<pb::ExecTaskStreamingResponse>,
        output: &mut ExecOutput,
    ) -> Result<bool> {
        let Some(message) = responses.message().await.context("the exec's stream broke")? else {
            return Ok(false);
        };
        if output.result.is_some() {
            bail!("a message after the exit frame: {message:?}");
        }
        for part in [&message.stdout, &message.stderr].into_iter().flatten() {
            output.messages += 1;
            output.largest = output.largest.max(part.data.len());
        }
        output.stdout.extend(message.stdout.map(|stdout| stdout.data).unwrap_or_default());
        output.stderr.extend(message.stderr.map(|stderr| stderr.data).unwrap_or_default());
        if message.exited {
            output.result = Some(message.result.context("an exit frame without a result crashes the agent")?);
        }
        Ok(true)
    }
}
