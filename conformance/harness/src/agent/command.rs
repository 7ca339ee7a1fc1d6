//! Runs a command until it exits, with its output collected and a timeout. An interrupt of this program ends the wait.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::leaks::agent::check_interrupt;

#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code. `None` if a signal ended the command.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

impl Output {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// # Errors
/// Fails if the command can't be started, exceeds the timeout, or an interrupt comes. A failure of the command itself
/// is in the output.
pub fn run(command: &mut Command, stdin: &[u8], limit: Duration) -> Result<Output> {
    let shown = shown(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("can't run `{shown}`"))?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    if let Some(mut pipe) = child.stdin.take() {
        let stdin = stdin.to_vec();
        // A command that doesn't read its stdin is no failure.
        thread::spawn(move || drop(pipe.write_all(&stdin)));
    }
    let (sender, end) = mpsc::channel();
    thread::spawn(move || {
        let output = child.wait_with_output();
        drop(sender.send((output, begun.elapsed())));
    });
    loop {
        match end.recv_timeout(Duration::from_millis(100)) {
            Ok((output, took)) => {
                let output = output.with_context(|| format!("can't read what `{shown}` says"))?;
                let code = output.status.code();
                return Ok(Output { code, stdout: output.stdout, stderr: output.stderr, took });
            }
            Err(RecvTimeoutError::Timeout) if begun.elapsed() < limit && check_interrupt().is_ok() => {}
            Err(_) => {
                let _ = kill(pid, Signal::SIGKILL);
                check_interrupt()?;
                bail!("`{shown}` still runs after {} s", limit.as_secs());
            }
        }
    }
}

/// Runs a command that must exit with code 0. Any other end is an error with the command's output.
///
/// # Errors
/// Fails as [`run`] does, or if the exit code isn't 0.
pub fn run_well(command: &mut Command, stdin: &[u8], limit: Duration) -> Result<Output> {
    let output = run(command, stdin, limit)?;
    ensure!(
        output.code == Some(0),
        "`{}` ends with {:?}: {}{}",
        shown(command),
        output.code,
        output.stderr(),
        output.stdout(),
    );
    Ok(output)
}

/// Returns a command as it would be typed.
fn shown(command: &Command) -> String {
    let name = std::path::Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(name).chain(command.get_args()).map(|word| {
        let word = word.to_string_lossy();
        if word.contains(' ') { format!("'{word}'") } else { word.into_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}
