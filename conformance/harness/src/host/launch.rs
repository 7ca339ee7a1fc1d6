//! Starts and ends a plugin's process as go-plugin does: environment, pipes, handshake, and the three steps of the
//! end.
//!
//! Source of the facts: hashicorp/go-plugin `client.go`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::stderr::Lines;
use crate::fixture::programs::path_with;

const COOKIE_KEY: &str = "NOMAD_PLUGIN_MAGIC_COOKIE";
pub(crate) const COOKIE: &str = "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255";
/// Timeout of the handshake. The agent's is a minute.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);
/// Time that a plugin has to exit after the request to, before it is killed.
pub(crate) const END_LIMIT: Duration = Duration::from_secs(2);

/// The settings for the start of a plugin.
#[derive(Clone)]
pub struct Launch {
    pub binary: PathBuf,
    /// The magic cookie. `None` if its variable is not set at all.
    pub cookie: Option<String>,
    /// Directories that are put in front of the agent's PATH, see [`Self::look_first_in`].
    path: Vec<PathBuf>,
    /// Whether those directories are all of the plugin's PATH, see [`Self::look_only_in`].
    is_whole_path: bool,
    pub environment: Vec<(OsString, OsString)>,
}

impl Launch {
    pub fn new(binary: &Path) -> Self {
        let cookie = Some(COOKIE.to_owned());
        Self {
            binary: binary.to_owned(),
            cookie,
            path: Vec::new(),
            is_whole_path: false,
            environment: Vec::new(),
        }
    }

    /// Puts a directory in front of the plugin's PATH.
    pub fn look_first_in(&mut self, directory: PathBuf) {
        self.path.insert(0, directory);
    }

    /// Replaces the plugin's PATH.
    pub fn look_only_in(&mut self, directories: Vec<PathBuf>) {
        (self.path, self.is_whole_path) = (directories, true);
    }

    /// Starts the process and reads both of its pipes.
    ///
    /// # Errors
    /// Names the binary that can't be started.
    pub fn spawn(&self) -> Result<Process> {
        let mut command = Command::new(&self.binary);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove(COOKIE_KEY);
        command.envs([
            ("PLUGIN_PROTOCOL_VERSIONS", "2"),
            ("PLUGIN_MIN_PORT", "10000"),
            ("PLUGIN_MAX_PORT", "25000"),
        ]);
        command.envs(self.cookie.iter().map(|cookie| (COOKIE_KEY, cookie)));
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let path = match self.is_whole_path {
            true => std::env::join_paths(&self.path)?,
            false => path_with(self.path.iter().map(PathBuf::as_path))?,
        };
        command.env("PATH", path);
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start the plugin {}", self.binary.display()))?;
        let pid = child.id().context("the plugin has no pid")?;
        let stdout = Lines::collect(child.stdout.take().context("no stdout")?);
        let stderr = Lines::collect(child.stderr.take().context("no stderr")?);
        Ok(Process { child, pid, stdout, stderr })
    }
}

/// A plugin's process, killed on drop.
pub struct Process {
    child: Child,
    pid: u32,
    pub stdout: Lines,
    pub stderr: Lines,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the handshake and returns the socket to dial.
    ///
    /// # Errors
    /// Says what the first line was, or that none came.
    pub(crate) async fn handshake(&mut self) -> Result<PathBuf> {
        let first = async {
            loop {
                if let Some(line) = self.stdout.all().into_iter().next() {
                    return Ok(line);
                }
                if let Some(status) = self.child.try_wait()? {
                    bail!("the plugin ended with {status} before its handshake: {}", self.stderr.tail(5));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let line = tokio::time::timeout(HANDSHAKE_LIMIT, first).await.context("no handshake")??;
        parse_handshake(&line)
    }

    /// # Errors
    /// Fails if the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid)?);
        kill(pid, signal).with_context(|| format!("send {signal} to the plugin"))
    }

    /// Returns whether the process runs.
    ///
    /// # Errors
    /// Fails if the system can't say.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for the exit of the process and the end of both pipes, which a child that inherited one would hold open.
    ///
    /// # Errors
    /// Says which of them didn't come.
    pub async fn end_within(&mut self, limit: Duration) -> Result<ExitStatus> {
        let exited = tokio::time::timeout(limit, self.child.wait()).await;
        let status =
            exited.with_context(|| format!("the plugin runs on {limit:?} after it was to end"))??;
        for (name, lines) in [("stdout", &mut self.stdout), ("stderr", &mut self.stderr)] {
            let ended = tokio::time::timeout(Duration::from_secs(1), lines.end()).await;
            ended.with_context(|| format!("the plugin is gone, but a child of it holds its {name} open"))?;
        }
        Ok(status)
    }

    /// Kills the process, and waits as [`Self::end_within`] does.
    ///
    /// # Errors
    /// Fails as [`Self::end_within`] does.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.start_kill().context("kill the plugin")?;
        self.end_within(Duration::from_secs(5)).await.map(drop)
    }
}

/// Parses a handshake line, `core|app|network|address|protocol|certificate`, and returns the socket.
fn parse_handshake(line: &str) -> Result<PathBuf> {
    let fields: Vec<&str> = line.split('|').collect();
    ensure!(fields.len() == 6, "a handshake of {} fields: {line:?}", fields.len());
    ensure!(fields[..3] == ["1", "2", "unix"], "not the protocols of a Nomad plugin: {line:?}");
    ensure!(fields[4..] == ["grpc", ""], "not plain grpc: {line:?}");
    let socket = PathBuf::from(fields[3]);
    ensure!(socket.is_absolute() && fields[3].len() < 108, "not a socket's path: {line:?}");
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_six_fields() {
        assert_eq!(parse_handshake("1|2|unix|/tmp/x.sock|grpc|").unwrap(), Path::new("/tmp/x.sock"));
        for line in
            ["1|2|unix|/tmp/x.sock|grpc", "1|2|tcp|127.0.0.1:1|grpc|", "1|2|unix|x.sock|grpc|", "hello"]
        {
            assert!(parse_handshake(line).is_err(), "{line}");
        }
    }
}
