//! The first process of a task, held by a pidfd, which never comes to mean another process: whether it runs, and the
//! kernel's word on how it ended. Knows neither shims nor Nomad.
//!
//! Source of the facts: pidfd_open(2).

mod exit_info;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::process_stat::{ProcessId, Stat};
use crate::readable::Readable;

pub(crate) struct Init {
    id: ProcessId,
    pidfd: Readable,
}

impl Init {
    /// None where the process has been waited for already, is another one by now, or the kernel has no pidfds.
    pub(crate) fn open(id: ProcessId) -> Option<Self> {
        Self::look(id).unwrap_or_else(|error| {
            tracing::debug!(pid = id.pid, %error, "no pidfd for the process");
            None
        })
    }

    /// As [`Self::open`], where not being able to look is not the same as the process being gone.
    ///
    /// # Errors
    /// When the kernel could not be asked, such as for want of descriptors.
    pub(crate) fn look(id: ProcessId) -> io::Result<Option<Self>> {
        let Some(pid) = Some(id.pid).filter(|pid| *pid > 1).and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Readable::new(pidfd)?,
            Err(Errno::SRCH | Errno::INVAL | Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The pid was looked up before its start is compared, so that a process that took the pid in between is found out.
        let is_it = Stat::look(id.pid)?.is_some_and(|stat| stat.is_of(id));
        Ok(is_it.then_some(Self { id, pidfd }))
    }

    /// Kills the process, and nobody who has its pid later.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Returns once the process has ended.
    pub(crate) async fn ended(&self) {
        self.pidfd.wait().await;
    }

    pub(crate) fn has_ended(&self) -> bool {
        let mut asked = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// The kernel's word on how the process ended. None while it runs; and none after its end where the kernel, before
    /// Linux 6.15, forgot it when the process was waited for.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        if !self.has_ended() {
            return None;
        }
        let status = exit_info::exit_status(self.pidfd.as_fd()).or_else(|| self.status_of_zombie());
        // Waited for between the two questions.
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

    /// From Linux 6.15 on.
    fn kernel_tells() -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 15)
    }

    #[tokio::test]
    async fn a_kill_is_told_from_a_code_of_the_same_number() {
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
