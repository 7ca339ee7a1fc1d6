//! A process held so that a signal reaches it or nobody: the only way in which this plugin sends signals to processes
//! that are not its children. A lint forbids kill(2) elsewhere.
//!
//! Source of the facts: `pidfd_open(2)`, `pidfd_send_signal(2)`, `pidfd_getfd(2)`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;

use crate::sys::procfs::{ProcessId, Stat};

/// Polling interval for the end of a process if the kernel has no pidfds.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A process that was running, and was the intended one, when the handle was opened.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    id: ProcessId,
    /// `None` before Linux 5.3; then the process is checked again before each signal.
    pidfd: Option<OwnedFd>,
}

impl ProcessHandle {
    /// Opens a process. `None` if it has ended, or its pid is another's by now; and also for a pid that means several
    /// processes, or the host's own init.
    ///
    /// # Errors
    /// If the kernel could not be asked, such as for want of descriptors.
    pub(crate) fn open(id: ProcessId) -> io::Result<Option<Self>> {
        let Some(pid) = Some(id.pid).filter(|pid| *pid > 1).and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Some(pidfd),
            Err(Errno::NOSYS) => None,
            // INVAL means that a thread has this pid by now.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Checked after the pidfd was opened, so that a process that took the pid in between is noticed.
        let is_it = Stat::look(id.pid)?.is_some_and(|stat| stat.is_of(id) && !stat.has_ended());
        Ok(is_it.then_some(Self { id, pidfd }))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.id.pid
    }

    /// Returns a copy of one of the process's descriptors, by its number there.
    ///
    /// # Errors
    /// When the process has no such descriptor, or the kernel has no pidfds or does not allow it.
    pub(crate) fn descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        let Some(pidfd) = &self.pidfd else { return Err(io::ErrorKind::Unsupported.into()) };
        Ok(pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())?)
    }

    /// Kills the process. One that has ended is left alone.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Stops the process until it is continued or killed.
    pub(crate) fn halt(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends a signal by its number. Returns false if that is not done here: for a signal of real time, and where the kernel
    /// has no pidfds.
    ///
    /// # Errors
    /// The kernel's, such as when the process has ended.
    pub(crate) fn send(&self, number: i32) -> io::Result<bool> {
        let (Some(pidfd), Some(signal)) = (&self.pidfd, Signal::from_named_raw(number)) else {
            return Ok(false);
        };
        pidfd_send_signal(pidfd, signal)?;
        Ok(true)
    }

    fn signal(&self, signal: Signal) {
        match &self.pidfd {
            Some(pidfd) => drop(pidfd_send_signal(pidfd, signal)),
            None if self.id.is_alive() => signal_by_pid(self.id.pid, signal),
            None => {}
        }
    }

    /// Waits for the end of the process; false if it still runs at the deadline. Blocking: not for an async thread.
    pub(crate) fn ends_before(&self, deadline: Instant) -> bool {
        let Some(pidfd) = &self.pidfd else {
            while self.id.is_alive() {
                if Instant::now() > deadline {
                    return false;
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            return true;
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&limit)) {
                // A signal, such as for another child's end, has interrupted the wait.
                Err(Errno::INTR) => {}
                answer => return answer.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

/// Kills a process, if it still is the intended one.
pub(crate) fn kill(id: ProcessId) {
    match ProcessHandle::open(id) {
        Ok(Some(process)) => process.kill(),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(pid = id.pid, %error, "can't open a pidfd of a process to kill");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the process was looked at, and this kernel has no pidfds")]
fn signal_by_pid(pid: i32, signal: Signal) {
    let _ = Pid::from_raw(pid).map(|pid| rustix::process::kill_process(pid, signal));
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a child to kill, whose stdio is closed")]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn child() -> (Child, ProcessId) {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap());
        (child, id)
    }

    #[test]
    fn a_handle_kills_its_process() {
        let (mut child, id) = child();
        let handle = ProcessHandle::open(id).unwrap().unwrap();
        assert!(!handle.ends_before(Instant::now()));
        handle.halt();
        handle.kill();
        assert!(handle.ends_before(Instant::now() + Duration::from_secs(10)));
        assert!(ProcessHandle::open(id).unwrap().is_none(), "it has ended, and nobody has waited for it yet");
        child.wait().unwrap();
        handle.kill();
    }

    #[test]
    fn without_pidfds_the_start_time_identifies_a_process() {
        let (mut child, id) = child();
        let stranger =
            ProcessHandle { id: ProcessId { started_ticks: id.started_ticks + 1, ..id }, pidfd: None };
        stranger.kill();
        assert!(stranger.ends_before(Instant::now()));
        let handle = ProcessHandle { id, pidfd: None };
        assert!(!handle.ends_before(Instant::now()));
        handle.kill();
        assert!(handle.ends_before(Instant::now() + Duration::from_secs(10)));
        child.wait().unwrap();
    }

    #[test]
    fn an_ambiguous_pid_is_not_held() {
        for pid in [-1, 0, 1] {
            assert!(ProcessHandle::open(ProcessId::of(pid)).unwrap().is_none(), "{pid}");
        }
        let (mut child, id) = child();
        assert!(
            ProcessHandle::open(ProcessId { started_ticks: id.started_ticks + 1, ..id }).unwrap().is_none()
        );
        assert!(ProcessHandle::open(ProcessId { started_ticks: 0, ..id }).unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
