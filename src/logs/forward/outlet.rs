//! The way of forwarded output on to Nomad's logs: out of the task's pipe into the log files that the driver writes,
//! the pipe that Nomad's collector reads, or nowhere. Blocking, but for the waits: not for an async thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{SpliceFlags, splice};

use crate::logs::sink::{Sink, SkippedFile, Taken};
use crate::logs::{LogError, Stream, Target};
use crate::sys::async_fd::{KernelFd, Ready};

/// Interval between checks of whether Nomad's pipe is empty: the kernel has no event for that.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Number of tries to move bytes between pipes that both change meanwhile.
const SPLICE_TRIES: u32 = 3;
/// Maximum wait for an event of room in Nomad's pipe.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of bytes that are discarded at once.
const DISCARD_BYTES: usize = 64 << 10;

/// The log of Nomad's that a task's output goes on to.
pub(crate) enum NomadLog {
    /// Log files that the driver writes.
    Files(Target),
    /// The pipes that Nomad's collector reads, open for writing, by their streams.
    Pipes(Vec<(Stream, OwnedFd)>),
    Nothing,
}

/// The outlet of one stream.
pub(super) enum Outlet {
    Files(Box<Sink>),
    Pipe(Arc<KernelFd>),
    Nothing,
}

impl Outlet {
    /// Returns the outlet of a stream.
    ///
    /// # Errors
    /// If the kernel can't notify about Nomad's pipe.
    pub(super) fn of(log: &mut NomadLog, stream: Stream, stopped: Arc<AtomicBool>) -> std::io::Result<Self> {
        match log {
            NomadLog::Files(target) => Ok(Self::Files(Box::new(Sink::new(target.clone(), stream, stopped)))),
            NomadLog::Pipes(pipes) => match pipes.iter().position(|(of, _)| *of == stream) {
                Some(at) => Ok(Self::Pipe(Arc::new(KernelFd::writable(pipes.swap_remove(at).1)?))),
                None => Ok(Self::Nothing),
            },
            NomadLog::Nothing => Ok(Self::Nothing),
        }
    }

    /// Moves up to `most` bytes out of the task's pipe.
    ///
    /// # Errors
    /// When output can't be written now. It stays in the task's pipe.
    pub(super) fn take(&mut self, pipe: BorrowedFd<'_>, most: u64) -> Result<Taken, LogError> {
        let length = usize::try_from(most).unwrap_or(usize::MAX);
        let failed =
            |error: Errno| LogError::new("pass the output on to", "Nomad's log pipe".into(), &error.into());
        match self {
            Self::Files(sink) => sink.take_up_to(pipe, most),
            Self::Pipe(nomads) => {
                for _ in 0..SPLICE_TRIES {
                    match splice(pipe, None, nomads.as_fd(), None, length, SpliceFlags::NONBLOCK) {
                        Ok(0) => return Ok(Taken::Nothing),
                        Ok(moved) => return Ok(Taken::Bytes(moved as u64)),
                        // The kernel has one error for an empty source and for a full pipe.
                        Err(Errno::AGAIN) => {
                            if rustix::io::ioctl_fionread(pipe).map_err(failed)? == 0 {
                                return Ok(Taken::Nothing);
                            }
                            if is_unread(nomads.as_fd()).map_err(failed)? {
                                return Ok(Taken::Unread);
                            }
                            if !has_room(nomads.as_fd()).map_err(failed)? {
                                return Ok(Taken::Full);
                            }
                        }
                        Err(Errno::INTR) => {}
                        Err(Errno::PIPE) => return Ok(Taken::Unread),
                        Err(error) => return Err(failed(error)),
                    }
                }
                Ok(Taken::Full)
            }
            Self::Nothing => {
                let mut discarded = vec![0; length.min(DISCARD_BYTES)];
                match retry_on_intr(|| rustix::io::read(pipe, &mut discarded[..])) {
                    Ok(0) | Err(Errno::AGAIN) => Ok(Taken::Nothing),
                    Ok(taken) => Ok(Taken::Bytes(taken as u64)),
                    Err(error) => Err(failed(error)),
                }
            }
        }
    }

    /// Returns the entries passed over since the last call.
    pub(super) fn skipped(&mut self) -> Vec<SkippedFile> {
        match self {
            Self::Files(sink) => std::mem::take(&mut sink.skipped),
            Self::Pipe(_) | Self::Nothing => Vec::new(),
        }
    }

    /// Returns Nomad's pipe, whose room is to be waited for.
    pub(super) fn pipe(&self) -> Option<Arc<KernelFd>> {
        match self {
            Self::Pipe(pipe) => Some(Arc::clone(pipe)),
            Self::Files(_) | Self::Nothing => None,
        }
    }

    /// Asks the kernel anew to notify of room in Nomad's pipe: once the pipe was without a reader, a notification of
    /// that stays for good.
    pub(super) fn renew(&mut self) {
        if let Self::Pipe(pipe) = self {
            // Without a new one the old one still notifies, if too often.
            if let Ok(again) = pipe.as_fd().try_clone_to_owned().and_then(KernelFd::writable) {
                *pipe = Arc::new(again);
            }
        }
    }

    /// Waits until Nomad's collector has read all that was passed on to it, or is gone.
    pub(super) async fn drained(&self) {
        if let Self::Pipe(pipe) = self {
            let waits = |pipe: BorrowedFd<'_>| {
                Ok::<_, Errno>(rustix::io::ioctl_fionread(pipe)? > 0 && !is_unread(pipe)?)
            };
            while waits(pipe.as_fd()).is_ok_and(|waits| waits) {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }
}

/// Waits for room in Nomad's pipe, or for a second: some kernels (Linux 5.5 to 5.13) notify only where none was left.
pub(super) async fn room(pipe: Option<&KernelFd>) -> Option<Ready<'_>> {
    tokio::time::timeout(ROOM_INTERVAL, pipe?.ready()).await.ok()
}

fn has_room(pipe: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(events(pipe, PollFlags::OUT)?.contains(PollFlags::OUT))
}

/// Returns whether nobody has a pipe open for reading.
fn is_unread(pipe: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(events(pipe, PollFlags::empty())?.contains(PollFlags::ERR))
}

/// Returns the events of a pipe at the moment.
pub(super) fn events(pipe: BorrowedFd<'_>, asked: PollFlags) -> Result<PollFlags, Errno> {
    let mut polled = [PollFd::new(&pipe, asked)];
    retry_on_intr(|| poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))?;
    Ok(polled[0].revents())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::io::{read, write};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[tokio::test]
    async fn an_empty_source_is_told_from_a_full_pipe() {
        let (source, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let (nomads, into) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut outlet = Outlet::Pipe(Arc::new(KernelFd::writable(into).unwrap()));
        let take = |outlet: &mut Outlet, most| outlet.take(source.as_fd(), most).unwrap();
        assert_eq!(take(&mut outlet, 10), Taken::Nothing);
        write(&writer, b"some").unwrap();
        assert_eq!(take(&mut outlet, 3), Taken::Bytes(3));
        while take(&mut outlet, 1) != Taken::Full {
            write(&writer, b"x").unwrap();
        }
        let mut all = vec![0; 1 << 20];
        read(&nomads, &mut all[..]).unwrap();
        assert!(matches!(take(&mut outlet, 1), Taken::Bytes(1)));
        drop(writer);
        while matches!(take(&mut outlet, 1), Taken::Bytes(_)) {}
        assert_eq!(take(&mut outlet, 1), Taken::Nothing);
        assert_eq!(take(&mut Outlet::Nothing, 1), Taken::Nothing);
    }

    #[tokio::test]
    async fn a_pipe_that_nobody_reads_is_told_from_a_full_one() {
        let (source, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let (nomads, into) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut outlet = Outlet::Pipe(Arc::new(KernelFd::writable(into).unwrap()));
        let mut take = || {
            write(&writer, b"x").unwrap();
            outlet.take(source.as_fd(), 1).unwrap()
        };
        while take() != Taken::Full {}
        drop(nomads);
        assert_eq!(take(), Taken::Unread);
        outlet.drained().await;
    }

    #[tokio::test]
    async fn room_is_waited_for_after_a_time_without_a_reader() {
        let (nomads, into) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let by_writer = format!("/proc/self/fd/{}", into.as_raw_fd());
        let mut outlet = Outlet::Pipe(Arc::new(KernelFd::writable(into).unwrap()));
        drop(nomads);
        let without_reader = outlet.pipe().unwrap();
        without_reader.ready().await.clear();
        let mut nomads = std::fs::OpenOptions::new();
        let nomads = nomads.read(true).custom_flags(nix::libc::O_NONBLOCK).open(by_writer).unwrap();
        while write(&without_reader, &[0; 4096]).is_ok() {}
        outlet.renew();
        let pipe = outlet.pipe().unwrap();
        let early = tokio::time::timeout(10 * POLL_INTERVAL, pipe.ready()).await;
        assert!(early.is_err(), "the pipe is full");
        read(&nomads, &mut vec![0; 1 << 20][..]).unwrap();
        pipe.ready().await.clear();
    }
}
