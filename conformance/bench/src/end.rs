//! Watches for the exit of a process by a pidfd. The answer of a wait is timed against that.

use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

/// Starts to watch a process. The returned task ends when the process exits, and yields the time of that.
///
/// # Errors
/// Fails if there is no such process on this kernel, as where a container has a kernel of its own.
pub(crate) fn watch(pid: i32) -> Result<JoinHandle<Instant>> {
    let raw = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
    let opened = pidfd_open(raw.with_context(|| format!("{pid} is no pid"))?, PidfdFlags::NONBLOCK);
    let pidfd = opened.with_context(|| format!("watch process {pid}, which has to be one of this kernel"))?;
    let pidfd = readable(pidfd)?;
    Ok(tokio::spawn(async move {
        let _ = pidfd.readable().await;
        Instant::now()
    }))
}

#[expect(deprecated, reason = "unsound for types that don't own their descriptor; this one does")]
fn readable(pidfd: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    Ok(AsyncFd::with_interest(pidfd, Interest::READABLE)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_end_is_seen_when_it_comes() {
        let mut child = Command::new("sleep").arg("0.2").spawn().unwrap();
        let begun = Instant::now();
        let ended = watch(i32::try_from(child.id()).unwrap()).unwrap().await.unwrap();
        assert!(ended - begun > Duration::from_millis(100));
        child.wait().unwrap();
        assert!(watch(0).is_err());
    }
}
