//! Process groups of programs that the plugin starts, of which no process may be left over.

use std::io;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
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
