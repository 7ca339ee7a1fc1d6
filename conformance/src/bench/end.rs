//! When a process really ends, by a pidfd: what the answer of who waits for it is held against.

use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

/// Begins to watch a process. What is returned ends with it.
///
/// # Errors
/// When there is no such process here, as where a container has a kernel of its own.
pub fn watch(pid: i32) -> Result<JoinHandle<Instant>> {
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
