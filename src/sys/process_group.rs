//! Process groups of programs that the plugin starts, of which no process may be left over, and what is said to one.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use super::async_fd::KernelFd;
use super::blocking;
use super::cgroup_spawn::{self, Cgroups, Failure, Spawned};

/// Pause before a child that seems to have ended is waited for again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A process group that is killed on drop, unless its leader has ended by itself.
pub(crate) struct ProcessGroup {
    leader: Option<i32>,
}

impl ProcessGroup {
    /// Returns the group of a child that was started as the leader of one.
    fn of(child: &Child) -> Self {
        Self { leader: child.id().and_then(|pid| i32::try_from(pid).ok()) }
    }

    /// Notes that the leader has ended by itself, since its number may be another's soon.
    pub(crate) fn ended(&mut self) {
        self.leader = None;
    }
}

/// Starts a child as the leader of its process group, on another thread: whoever starts a child waits for the disks of
/// its working directory and its program. A start that nobody waits for any more is undone.
///
/// # Errors
/// The command's.
pub(crate) async fn spawn(mut command: Command) -> io::Result<(ProcessGroup, Child)> {
    let start = move || {
        let child = command.spawn()?;
        Ok((ProcessGroup::of(&child), child))
    };
    blocking::run(start).await
}

/// A child that was started in cgroups of its own, where these can be had.
pub(crate) enum Started {
    Usual(Child),
    InCgroups(Kept),
}

/// A child that is waited for by its pidfd, at the latest after its drop.
pub(crate) struct Kept {
    /// `None` once it was waited for.
    pidfd: Option<KernelFd>,
}

impl Started {
    /// Waits for the child's end.
    ///
    /// # Errors
    /// If it can't be waited for.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Usual(child) => child.wait().await,
            Self::InCgroups(child) => {
                let status = end(child.pidfd.as_ref().ok_or(Errno::ECHILD)?).await;
                child.pidfd = None;
                status
            }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Without a runtime the plugin is at its end.
        let (Some(pidfd), Ok(runtime)) = (self.pidfd.take(), Handle::try_current()) else { return };
        runtime.spawn(async move {
            let _ = end(&pidfd).await;
        });
    }
}

/// Waits for a child's end. It is told of one that can't be waited for yet, such as one that is traced.
async fn end(pidfd: &KernelFd) -> io::Result<ExitStatus> {
    loop {
        pidfd.wait().await;
        if let Some(status) = cgroup_spawn::try_wait(pidfd)? {
            return Ok(status);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Starts a child as [`spawn`] does, in these cgroups. It has `files`, each with its number, 0 to 2 among them, and only
/// the variables that the command sets. Where the cgroups can't be had, it is in those of the plugin, which is warned of,
/// once for each reason.
///
/// # Errors
/// The command's.
pub(crate) async fn spawn_in(
    mut command: Command,
    files: Vec<(OwnedFd, RawFd)>,
    cgroups: impl FnOnce() -> Cgroups + Send + 'static,
) -> io::Result<(ProcessGroup, Started)> {
    let start = move || {
        let Cgroups { v1, v2 } = cgroups();
        let runtime = Handle::current();
        cgroup_spawn::within(&v1, |failures| {
            let _guard = runtime.enter();
            failures.iter().for_each(warn_of_cgroup);
            match v2.map(|v2| cgroup_spawn::spawn(command.as_std(), &files, &v2)) {
                Some(Ok(spawned)) => return keep(spawned),
                Some(Err(Failure::Command(error))) => return Err(error),
                Some(Err(Failure::Cgroup(error))) => warn_of_cgroup(&error),
                None => {}
            }
            let child = with_files(&mut command, files)?.spawn()?;
            Ok((ProcessGroup::of(&child), Started::Usual(child)))
        })?
    };
    blocking::run(start).await
}

/// Gives a command its files, each with its number.
fn with_files(command: &mut Command, files: Vec<(OwnedFd, RawFd)>) -> io::Result<&mut Command> {
    let mut others = Vec::new();
    for (file, number) in files {
        match number {
            0 => drop(command.stdin(file)),
            1 => drop(command.stdout(file)),
            2 => drop(command.stderr(file)),
            child_fd => others.push(FdMapping { parent_fd: file, child_fd }),
        }
    }
    // Even an empty list would have the command forked.
    if others.is_empty() { Ok(command) } else { command.fd_mappings(others).map_err(io::Error::other) }
}

fn keep(spawned: Spawned) -> io::Result<(ProcessGroup, Started)> {
    let Spawned { pid, pidfd } = spawned;
    let group = ProcessGroup { leader: Some(pid) };
    match KernelFd::new(pidfd) {
        Ok(pidfd) => Ok((group, Started::InCgroups(Kept { pidfd: Some(pidfd) }))),
        Err(error) => {
            drop(group);
            let _ = waitpid(Pid::from_raw(pid), None);
            Err(error)
        }
    }
}

/// Warns of a cgroup that can't be had, once for each reason.
fn warn_of_cgroup(error: &io::Error) {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(error.to_string()) {
        tracing::warn!(
            %error,
            "can't start a shim in a cgroup of its own in each hierarchy: where not, its memory counts as the agent's, and \
             with KillMode=control-group it may end with the agent's unit"
        );
    }
}

/// Writes a child's stdin, and returns its exit status, and of its stdout and its stderr, as far as they are pipes, up to
/// `limit_bytes` each. It is waited for last: after an error it still exists, to be killed.
///
/// # Errors
/// When the child's output can't be read, or the child not be waited for.
pub(crate) async fn exchange(
    child: &mut Child,
    input: &[u8],
    limit_bytes: u64,
) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // Fails if the child has closed its stdin unread, which it may.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), out, err) = tokio::join!(write, head(stdout, limit_bytes), head(stderr, limit_bytes));
    let (out, err) = (out?, err?);
    Ok((child.wait().await?, out, err))
}

async fn head(pipe: Option<impl AsyncRead + Unpin>, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(limit_bytes).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

impl Drop for ProcessGroup {
    #[expect(
        clippy::disallowed_methods,
        reason = "the leader is a child that was not waited for: its number is its own"
    )]
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    async fn end_of(script: &str, cgroups: Cgroups) -> Option<i32> {
        #[expect(clippy::disallowed_methods, reason = "its files are given")]
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env_clear().process_group(0);
        #[expect(clippy::disallowed_methods, reason = "a file that nobody shapes")]
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let files = vec![(null(), 0), (null(), 1), (null(), 2), (null(), 9)];
        let (mut group, mut child) = spawn_in(command, files, || cgroups).await.unwrap();
        let status = child.wait().await.unwrap();
        group.ended();
        status.code()
    }

    #[tokio::test]
    async fn a_child_without_its_cgroups_runs_in_the_plugins() {
        let directory = tempfile::tempdir().unwrap();
        let none = Cgroups { v1: Vec::new(), v2: Some(directory.path().join("no-cgroup")) };
        for cgroups in [none, Cgroups::default()] {
            assert_eq!(end_of("test -e /proc/self/fd/9 && exit 3", cgroups).await, Some(3));
        }
    }

    #[tokio::test]
    async fn a_child_that_nobody_waits_for_is_killed_and_reaped() {
        #[expect(clippy::disallowed_methods, reason = "its files are given")]
        let mut command = std::process::Command::new("/bin/sleep");
        command.arg("600").env_clear();
        let spawned = cgroup_spawn::tests::spawn_here(&command);
        let process = format!("/proc/{}", spawned.pid);
        drop(keep(spawned).unwrap());
        // A child that was not waited for stays as a zombie.
        let reaped = async {
            while Path::new(&process).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reaped).await.unwrap();
    }
}
