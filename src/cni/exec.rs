//! Runs a plugin once, or another program: a clean environment, its configuration on stdin, its output up to a limit, and
//! a deadline after which nothing of it is left. Knows nothing of networks.
//!
//! Source of the facts: the CNI specification 1.1, section 2; its errors, section 5.
#![allow(clippy::disallowed_methods, reason = "plugins are programs by design; their stdio is set here")]

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

use super::error::RunError;
use crate::sys::process_group::{self, ProcessGroup};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const OUTPUT_LIMIT_BYTES: usize = 1024 * 1024;
/// Maximum number of characters that are shown of an output that is no proper answer.
const QUOTE_LIMIT_CHARS: usize = 2000;
/// Time for which a plugin's pipes are still read after its exit: a child of it may hold them for longer.
const PIPE_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum time that a killed plugin may take to be gone. It takes none, unless the kernel holds the process.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of tries to run a program that is just being written and is busy for now.
const MAX_BUSY_ATTEMPTS: usize = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Run<'a> {
    pub program: &'a Path,
    /// Arguments; a plugin has none.
    pub arguments: &'a [String],
    /// Environment of the plugin, which gets nothing else besides PATH.
    pub environment: Vec<(&'static str, OsString)>,
    pub config: Vec<u8>,
    pub deadline: Duration,
}

#[derive(Deserialize)]
struct ErrorResult {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// Returns the PATH of plugins, in which they find programs of the host.
pub(super) fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())
}

impl Run<'_> {
    /// Runs the plugin, and returns what it printed.
    ///
    /// # Errors
    /// Quotes the plugin's own words.
    pub(super) async fn output(self) -> Result<Vec<u8>, RunError> {
        let started = self.spawn().await;
        let (mut group, mut child) = started.map_err(|error| RunError::from_io("it can't be run", &error))?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let communicated =
            tokio::time::timeout(self.deadline, communicate(&mut child, &self.config, &mut out, &mut err))
                .await;
        match communicated {
            Ok(status) => {
                group.ended();
                let status =
                    status.map_err(|error| RunError::new(format!("can't wait for its exit: {error}")))?;
                interpret(status, out, &err)
            }
            Err(_) => {
                drop(group);
                // What undoes the plugin's work must not meet it.
                let _ = tokio::time::timeout(KILL_TIMEOUT, child.wait()).await;
                let limit = self.deadline.as_secs_f64();
                let reason = format!("it did not exit within {limit} s and was killed{}", quoted(&out, &err));
                Err(RunError { timed_out: true, ..RunError::new(reason) })
            }
        }
    }

    async fn spawn(&self) -> std::io::Result<(ProcessGroup, Child)> {
        for _ in 1..MAX_BUSY_ATTEMPTS {
            match process_group::spawn(self.command()).await {
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                spawned => return spawned,
            }
        }
        process_group::spawn(self.command()).await
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command
            .args(self.arguments)
            .env_clear()
            .env("PATH", search_path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

async fn communicate(
    child: &mut Child,
    config: &[u8],
    out: &mut Vec<u8>,
    err: &mut Vec<u8>,
) -> std::io::Result<ExitStatus> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut communicate = pin!(async {
        tokio::join!(write_stdin(stdin, config), read_pipe(stdout, out), read_pipe(stderr, err))
    });
    let mut is_closed = false;
    let status = loop {
        tokio::select! {
            _ = &mut communicate, if !is_closed => is_closed = true,
            status = child.wait() => break status?,
        }
    };
    if !is_closed {
        let _ = tokio::time::timeout(PIPE_DRAIN_TIMEOUT, communicate).await;
    }
    Ok(status)
}

async fn write_stdin(stdin: Option<ChildStdin>, config: &[u8]) {
    if let Some(mut stdin) = stdin {
        // A plugin that does not read its stdin has closed it.
        let _ = stdin.write_all(config).await;
    }
}

/// Reads a pipe up to the limit, and then closes it, which ends the plugin.
async fn read_pipe(pipe: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    while into.len() <= OUTPUT_LIMIT_BYTES && pipe.read_buf(into).await.is_ok_and(|read| read > 0) {}
}

fn interpret(status: ExitStatus, out: Vec<u8>, err: &[u8]) -> Result<Vec<u8>, RunError> {
    if out.len() > OUTPUT_LIMIT_BYTES || err.len() > OUTPUT_LIMIT_BYTES {
        let reason = format!("it printed more than {OUTPUT_LIMIT_BYTES} bytes{}", quoted(&out, err));
        return Err(RunError::new(reason));
    }
    if status.success() {
        return Ok(out);
    }
    let Ok(ErrorResult { code, msg, details }) = serde_json::from_slice(&out) else {
        let failed = RunError::new(format!("{status}{}", quoted(&out, err)));
        return Err(RunError { exit_code: status.code(), ..failed });
    };
    let details = if details.is_empty() { details } else { format!(": {details}") };
    let reason = format!("{msg}{details} (code {code}){}", quoted(b"", err));
    Err(RunError { code: Some(code), ..RunError::new(reason) })
}

/// Returns what a plugin printed, as a part of a sentence.
pub(super) fn quoted(out: &[u8], err: &[u8]) -> String {
    let words = |name: &str, bytes: &[u8]| {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(OUTPUT_LIMIT_BYTES)]);
        let text = text.trim().replace(char::is_control, " ");
        let shown: String = text.chars().take(QUOTE_LIMIT_CHARS).collect();
        let more = if shown.len() < text.len() { " ..." } else { "" };
        if shown.is_empty() { String::new() } else { format!("; {name}: {shown}{more}") }
    };
    words("stdout", out) + &words("stderr", err)
}

#[cfg(test)]
mod fuzz {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn failures() {
        crate::fuzz::pairs("cni-failure", |out, err| {
            let shown = quoted(out, err);
            assert!(
                shown.chars().count() <= 2 * (QUOTE_LIMIT_CHARS + 20) && !shown.contains(char::is_control),
                "{shown}"
            );
            assert_eq!(interpret(ExitStatus::from_raw(0), out.to_vec(), err).ok().as_deref(), Some(out));
            let Err(error) = interpret(ExitStatus::from_raw(1 << 8), out.to_vec(), err) else {
                panic!("it has failed")
            };
            assert!(!error.to_string().is_empty());
        });
    }
}
