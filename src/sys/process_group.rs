//! Process groups of programs that the plugin starts, of which no process may be left over, and what is said to one.

use std::io;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::blocking;

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
