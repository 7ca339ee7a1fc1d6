//! A descriptor by which the kernel tells of something: it becomes readable, or, for a file of a cgroup, there is a
//! condition on it. Knows nothing of what is told.
//!
//! Source of the facts: poll(2), Linux `fs/kernfs/file.c`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::{Whence, lseek, read};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

pub(crate) struct Readable {
    descriptor: AsyncFd<OwnedFd>,
    interest: Interest,
}

impl Readable {
    /// # Errors
    /// When the kernel can't wait for this kind of descriptor.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Self::of(descriptor, Interest::READABLE)
    }

    /// A file whose content the kernel changes, and says so.
    ///
    /// # Errors
    /// When the kernel can't wait for this kind of file.
    pub(crate) fn changing(file: OwnedFd) -> io::Result<Self> {
        Self::of(file, Interest::PRIORITY)
    }

    #[expect(deprecated, reason = "unsound for types that don't own their descriptor; this one does")]
    fn of(descriptor: OwnedFd, interest: Interest) -> io::Result<Self> {
        Ok(Self { descriptor: AsyncFd::with_interest(descriptor, interest)?, interest })
    }

    /// Returns once there is something, and at once while it stays so.
    pub(crate) async fn wait(&self) {
        if self.descriptor.ready(self.interest).await.is_err() {
            // Only a runtime that shuts down says so.
            std::future::pending::<()>().await;
        }
    }

    /// As [`Self::wait`]; what it returns is for [`Ready::clear`], once there is nothing any more.
    pub(crate) async fn ready(&self) -> Ready<'_> {
        match self.descriptor.ready(self.interest).await {
            Ok(ready) => Ready(ready),
            Err(_) => std::future::pending().await,
        }
    }

    /// As [`Self::wait`], and takes what there is to read, so that the next is news.
    pub(crate) async fn take(&self) {
        match self.descriptor.ready(self.interest).await {
            Ok(mut ready) => {
                // Only a file has a beginning.
                let _ = lseek(self.as_fd(), 0, Whence::SeekSet);
                let mut taken = [0; 4096];
                while read(self.as_fd(), &mut taken).is_ok_and(|length| length > 0) {}
                ready.clear_ready();
            }
            Err(_) => std::future::pending().await,
        }
    }
}

/// That there was something.
pub(crate) struct Ready<'a>(AsyncFdReadyGuard<'a, OwnedFd>);

impl Ready<'_> {
    /// It was taken. What has come since, and was told of since, stays news.
    pub(crate) fn clear(mut self) {
        self.0.clear_ready();
    }
}

impl AsFd for Readable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
