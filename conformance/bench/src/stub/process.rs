//! A process of the stub: the arguments of a container's or an exec's specification, run on the host in a process
//! group of its own.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

/// Paths of a process' pipes. An empty path is no pipe.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The exit code of a process, and when its exit was seen.
pub(crate) type End = (u32, Instant);

/// The sender of a process' exit.
pub(crate) type Ending = watch::Sender<Option<End>>;

/// A process that runs, or waits for its start.
pub(crate) struct Process {
    pid: i32,
    gate: Option<ChildStdin>,
}

impl Process {
    /// Creates the process of a container. It exists from the container's creation on, and does nothing before it is
    /// started by [`let_go`].
    pub(crate) fn gated(spec: &Value, paths: &Paths, ended: Ending) -> Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read -r go && exec \"$@\" < /dev/null", "sh"]).args(arguments(spec)?);
        command.stdin(Stdio::piped());
        Self::spawn(command, paths, ended)
    }

    /// Starts the process of an exec.
    pub(crate) fn at_once(spec: &Value, paths: &Paths, ended: Ending) -> Result<Self> {
        let words = arguments(spec)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.stdin(input(&paths.stdin)?);
        Self::spawn(command, paths, ended)
    }

    fn spawn(mut command: Command, paths: &Paths, ended: Ending) -> Result<Self> {
        command.stdout(output(&paths.stdout)?).stderr(output(&paths.stderr)?).process_group(0);
        let mut child = command.spawn().context("start a process")?;
        let pid = i32::try_from(child.id().context("a process without a pid")?)?;
        let gate = child.stdin.take();
        tokio::spawn(see_end(child, pid, ended));
        Ok(Self { pid, gate })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Takes the pipe by which the process is started, which works once.
    pub(crate) fn take_gate(&mut self) -> Option<ChildStdin> {
        self.gate.take()
    }

    pub(crate) fn signal(&self, signal: u32) -> Result<()> {
        let signal = Signal::try_from(i32::try_from(signal)?)?;
        kill(Pid::from_raw(self.pid), signal).context("signal a process")
    }
}

/// Starts a process that waits at its gate.
pub(crate) async fn let_go(mut gate: ChildStdin) -> Result<()> {
    gate.write_all(b"go\n").await.context("let the process go")
}

async fn see_end(mut child: Child, pid: i32, ended: Ending) {
    let status = child.wait().await;
    let seen = Instant::now();
    // The process' descendants in its group are killed with it, as in a container.
    let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    let code = status.map_or(255, exit_code);
    ended.send_replace(Some((code, seen)));
}

/// Returns the exit code as shims report it: 128 plus the signal for a killed process.
fn exit_code(status: ExitStatus) -> u32 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u32::try_from(code).unwrap_or(255)
}

/// Opens the input pipe without waiting for the other end, which may have given up.
fn input(path: &str) -> Result<Stdio> {
    if path.is_empty() {
        return Ok(Stdio::null());
    }
    let mut options = OpenOptions::new();
    let pipe = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let pipe = pipe.with_context(|| format!("open {path}"))?;
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::empty())).with_context(|| format!("set up {path}"))?;
    Ok(pipe.into())
}

fn output(path: &str) -> Result<Stdio> {
    if path.is_empty() {
        return Ok(Stdio::null());
    }
    let pipe =
        OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("open {path}"))?;
    Ok(pipe.into())
}

fn arguments(process: &Value) -> Result<Vec<String>> {
    let words = process["args"].as_array().into_iter().flatten();
    let words: Vec<String> = words.filter_map(|word| word.as_str().map(str::to_owned)).collect();
    ensure!(!words.is_empty(), "a process without arguments");
    Ok(words)
}
