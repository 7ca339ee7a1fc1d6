//! The first process of a task, held by a pidfd, which never comes to mean another process: whether it runs, and its
//! exit status from the kernel. Knows neither shims nor Nomad.
//!
//! Source of the facts: pidfd_open(2).

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::exit_info;
use crate::sys::async_fd::KernelFd;
use crate::sys::procfs::{ProcessId, Stat};

pub(crate) struct Init {
    id: ProcessId,
    pidfd: KernelFd,
}

impl Init {
    /// Opens the process. `None` if it has been waited for already, if its pid is another process by now, or if the
    /// kernel has no pidfds.
    pub(crate) fn open(id: ProcessId) -> Option<Self> {
        Self::look(id).unwrap_or_else(|error| {
            tracing::debug!(pid = id.pid, %error, "no pidfd for the process");
            None
        })
    }

    /// Like [`Self::open`], but distinguishes a failed lookup from a missing process.
    ///
    /// # Errors
    /// If the kernel could not be asked, such as for want of descriptors.
    pub(crate) fn look(id: ProcessId) -> io::Result<Option<Self>> {
        let Some(pid) = Some(id.pid).filter(|pid| *pid > 1).and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => KernelFd::new(pidfd)?,
            Err(Errno::SRCH | Errno::INVAL | Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The start time is compared after the pidfd was opened, so that a process that took the pid in between is
        // noticed.
        let is_it = Stat::look(id.pid)?.is_some_and(|stat| stat.is_of(id));
        Ok(is_it.then_some(Self { id, pidfd }))
    }

    /// Kills the process, never another one that has its pid later.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits until the process has exited.
    pub(crate) async fn ended(&self) {
        self.pidfd.wait().await;
    }

    pub(crate) fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Returns the exit status from the kernel. `None` while the process runs; and also after its exit if the kernel,
    /// before Linux 6.15, forgot it when the process was waited for.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        if !self.has_ended() {
            return None;
        }
        let status = exit_info::exit_status(self.pidfd.as_fd()).or_else(|| self.status_of_zombie());
        // The process may have been waited for between the two requests.
        let status = status.or_else(|| exit_info::exit_status(self.pidfd.as_fd()));
        status.map(ExitStatus::from_raw)
    }

    fn status_of_zombie(&self) -> Option<i32> {
        let stat = Stat::read(self.id.pid)?;
        (stat.is_of(self.id) && stat.state == 'Z').then_some(stat.exit_status)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a child to look at, whose stdio is closed")]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn shell(script: &str) -> (Child, Init) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let init = Init::open(ProcessId::of(i32::try_from(child.id()).unwrap())).unwrap();
        (child, init)
    }

    /// Returns true if the kernel keeps the status after the wait: from Linux 6.15 on.
    fn kernel_tells() -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 15)
    }

    #[tokio::test]
    async fn a_kill_is_distinguished_from_a_code_of_the_same_number() {
        for (script, code, signal) in [
            ("read x; exit 137", Some(137), None),
            ("read x; kill -9 $$", None, Some(9)),
            ("read x", Some(1), None),
        ] {
            let (mut child, init) = shell(script);
            assert!(!init.has_ended());
            assert_eq!(init.exit_status(), None);
            drop(child.stdin.take());
            init.ended().await;
            let of_zombie = init.exit_status().unwrap();
            assert_eq!((of_zombie.code(), of_zombie.signal()), (code, signal));
            assert_eq!(child.wait().unwrap(), of_zombie);
            assert!(init.has_ended());
            assert_eq!(init.exit_status(), kernel_tells().then_some(of_zombie));
        }
    }

    #[tokio::test]
    async fn another_process_of_the_same_pid_is_not_taken_for_it() {
        let (mut child, init) = shell("read x");
        assert!(Init::open(init.id).is_some());
        assert!(Init::open(ProcessId { started_ticks: init.id.started_ticks + 1, ..init.id }).is_none());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(Init::open(init.id).is_none());
        assert!(Init::open(ProcessId { pid: -1, started_ticks: 0 }).is_none());
    }
}
