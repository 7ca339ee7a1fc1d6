//! Runs the shim's binary: `start`, which leaves a shim behind, and `delete`, its own clean-up for a shim that is gone.
//! One of the few places of the plugin that start processes.
//!
//! A child gets nothing of ours but what it is to keep for its task: a clean environment (the shim inherits it for good,
//! and the agent's may hold secrets), files for its stdout and stderr (a daemon that kept a pipe of ours would hold up the
//! plugin's end), and no address for events where it can do without (one that does not answer stalls the shim after some
//! forty execs).
#![allow(clippy::disallowed_methods, reason = "this is the launcher that the ban names")]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use shim_protos::Bootstrap;
use tokio::process::Command;

use super::{Bundle, DEFAULT_PATH, Error, Events};
use crate::os_error::{is_transient, tells_transient};
use crate::process_group::ProcessGroup;
use crate::process_stat;

const START: Duration = Duration::from_secs(20);
/// Compiled into the shims.
const SOCKETS: &str = "/run/containerd/s";
/// `delete` kills and removes the container by the runtime.
const DELETE: Duration = Duration::from_secs(60);

/// The first descriptor of those that a shim keeps: far above those that it gives its own children by number.
const FIRST_KEPT: i32 = 100;

/// Launches the shims of one configuration.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    pub binary: PathBuf,
    pub namespace: String,
    /// What the shim takes for containerd's address. It is of no use to it but to name its socket, so it is ours alone:
    /// a daemon on the same host can never mistake our shims for its own.
    pub address: String,
    /// Where a shim that needs such an address sends its events.
    pub events: Events,
}

impl Launcher {
    /// Starts a shim for the bundle and returns where it listens. The shim holds what it is to keep open until it ends; it
    /// knows nothing of that, and its runtime closes it in containers.
    ///
    /// # Errors
    /// With the binary's own words, when it fails or answers nonsense.
    pub(crate) async fn start(
        &self,
        bundle: &Bundle,
        id: &str,
        kept: Vec<OwnedFd>,
    ) -> Result<Bootstrap, Error> {
        let out = bundle.directory().join("start.out");
        let err = bundle.directory().join("start.err");
        let mut command = self.command(bundle, id, &out, &err)?;
        command.args(["-publish-binary", "/bin/true", "start"]);
        if let Some(address) = self.events.address_for(&self.binary).await? {
            command.env("TTRPC_ADDRESS", address);
        }
        if !kept.is_empty() {
            let mappings =
                (FIRST_KEPT..).zip(kept).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
            command.fd_mappings(mappings.collect()).map_err(|error| self.failure("start", id, &error))?;
        }
        let status = self.run(command, "start", id, START).await?;
        if !status.success() {
            return Err(self.failed("start", id, &status, &err));
        }
        let answer = std::fs::read(&out).map_err(Error::file("read", &out))?;
        Bootstrap::parse(&answer).map_err(|source| Error::Answer {
            binary: self.binary.clone(),
            id: id.to_owned(),
            source,
        })
    }

    /// Kills and removes the container of a shim that can't be reached any more. Does nothing where there is none.
    ///
    /// # Errors
    /// With the binary's own words.
    pub(crate) async fn delete(&self, bundle: &Bundle, id: &str) -> Result<(), Error> {
        bundle.settle_for_delete()?;
        let out = bundle.directory().join("delete.out");
        let err = bundle.directory().join("delete.err");
        let mut command = self.command(bundle, id, &out, &err)?;
        command.args(["-publish-binary", "/bin/true", "-bundle"]).arg(bundle.directory()).arg("delete");
        let status = self.run(command, "delete", id, DELETE).await?;
        if status.success() { Ok(()) } else { Err(self.failed("delete", id, &status, &err)) }
    }

    fn command(&self, bundle: &Bundle, id: &str, out: &Path, err: &Path) -> Result<Command, Error> {
        let stdout = File::create(out).map_err(Error::file("create", out))?;
        let stderr = File::create(err).map_err(Error::file("create", err))?;
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let mut command = Command::new(&self.binary);
        command
            .args(["-namespace", &self.namespace, "-address", &self.address, "-id", id])
            .current_dir(bundle.directory())
            .env_clear()
            .env("PATH", path)
            .env("GOMAXPROCS", "2")
            // containerd 2.3's shim reads the address from here.
            .env("GRPC_ADDRESS", &self.address)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            // A binary that hangs may be a script that waits for something; all of it has to go then.
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    async fn run(
        &self,
        mut command: Command,
        action: &'static str,
        id: &str,
        limit: Duration,
    ) -> Result<ExitStatus, Error> {
        let failure = |reason: &dyn std::fmt::Display| self.failure(action, id, reason);
        let mut child = command
            .spawn()
            .map_err(|error| failure(&format_args!("can't be run: {error}")).passing(is_transient(&error)))?;
        let mut group = ProcessGroup::of(&child);
        match tokio::time::timeout(limit, child.wait()).await {
            Ok(status) => {
                // The shim that it leaves behind is in a group of its own.
                group.ended();
                status.map_err(|error| failure(&error))
            }
            Err(_) => Err(failure(&format_args!("did not end within {limit:?}")).passing(true)),
        }
    }

    fn failed(&self, action: &'static str, id: &str, status: &ExitStatus, stderr: &Path) -> Error {
        let words = std::fs::read_to_string(stderr).unwrap_or_default();
        let words = words.trim();
        let failure = if words.is_empty() {
            self.failure(action, id, status)
        } else {
            self.failure(action, id, &format_args!("{status}: {words}"))
        };
        // Nobody kills it but the kernel, where memory is short.
        failure.passing(status.signal().is_some() || tells_transient(words))
    }

    fn failure(&self, action: &'static str, id: &str, reason: &dyn std::fmt::Display) -> Error {
        Error::Binary {
            binary: self.binary.clone(),
            action,
            id: id.to_owned(),
            reason: reason.to_string(),
            passes: false,
        }
    }

    /// Ends whatever shim of this id is left, found by its command line: for one that was started, but died or was cut
    /// off before it was written down where it is. What it has started goes with it: not every shim ends a runtime that
    /// hangs when nobody waits for it any more.
    pub(crate) fn kill_leftovers(&self, id: &str) {
        for pid in self.leftovers(id) {
            tracing::warn!(container = id, pid, "ending a shim that nobody drives");
            let started = process_stat::descendants(pid);
            for pid in std::iter::once(pid).chain(started) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Removes the socket of a shim that nobody got to write down where it is: its name is a hash of what the shim was
    /// started with.
    pub(crate) fn remove_socket(&self, id: &str) {
        let Self { binary: _, namespace, address, events: _ } = self;
        let hash = Sha256::digest(format!("{address}/{namespace}/{id}"));
        let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = std::fs::remove_file(Path::new(SOCKETS).join(name));
    }

    fn leftovers(&self, id: &str) -> Vec<i32> {
        let is_it = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|command| is_shim_of(&command, &self.namespace, &self.address, id))
        };
        process_stat::all_pids().into_iter().filter(is_it).collect()
    }
}

/// Whether a command line is that of our shim for `id`. The shim repeats the arguments that it was started with.
fn is_shim_of(command_line: &[u8], namespace: &str, address: &str, id: &str) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let has = |flag: &str, value: &str| {
        words.windows(2).any(|pair| pair[0] == flag.as_bytes() && pair[1] == value.as_bytes())
    };
    has("-namespace", namespace) && has("-address", address) && has("-id", id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_told_by_its_namespace_address_and_id() {
        let line =
            b"/usr/bin/containerd-shim-runc-v2\0-namespace\0nomad\0-id\0redis-1\0-address\0/run/ours\0";
        assert!(is_shim_of(line, "nomad", "/run/ours", "redis-1"));
        assert!(!is_shim_of(line, "nomad", "/run/ours", "redis-2"));
        assert!(!is_shim_of(line, "nomad", "/run/containerd/containerd.sock", "redis-1"));
        assert!(!is_shim_of(b"redis-1\0nomad\0/run/ours\0", "nomad", "/run/ours", "redis-1"));
    }

    #[tokio::test]
    async fn a_binary_that_fails_is_named_with_its_words() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "x");
        bundle.create(Path::new("/bin/shim")).unwrap();
        let launcher = Launcher {
            binary: "/bin/false".into(),
            namespace: "nomad".to_owned(),
            address: "/run/ours".to_owned(),
            events: Events::of(state.path()),
        };
        let error = launcher.start(&bundle, "x", Vec::new()).await.unwrap_err().to_string();
        assert_eq!(error, "/bin/false start failed for x: exit status: 1");
        let missing = Launcher { binary: "/no/such/shim".into(), ..launcher.clone() };
        let error = missing.start(&bundle, "x", Vec::new()).await.unwrap_err().to_string();
        assert!(error.contains("/no/such/shim start failed for x: can't be run"), "{error}");
        let silent = Launcher { binary: "/bin/true".into(), ..launcher };
        let error = silent.start(&bundle, "x", Vec::new()).await.unwrap_err().to_string();
        assert!(error.contains("/bin/true start can't be used for x: it printed nothing"), "{error}");
    }
}
