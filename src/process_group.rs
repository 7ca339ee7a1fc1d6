//! The processes that a program started by us makes: a group of their own, of which nothing is to be left.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Child;

/// A process group that has to go, unless its leader has ended by itself.
pub(crate) struct ProcessGroup {
    leader: Option<i32>,
}

impl ProcessGroup {
    /// That of a child which was started as the leader of one.
    pub(crate) fn of(child: &Child) -> Self {
        Self { leader: child.id().and_then(|pid| i32::try_from(pid).ok()) }
    }

    /// The leader has ended by itself: its number may be another's soon.
    pub(crate) fn ended(&mut self) {
        self.leader = None;
    }
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
