//! A descriptor by which the kernel notifies, awaited asynchronously: it becomes readable or writable, or, for a file
//! of a cgroup, has a priority event. Knows nothing of what is notified.
//!
//! Source of the facts: poll(2), Linux `fs/kernfs/file.c`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::{Whence, lseek, read};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

pub(crate) struct KernelFd {
    descriptor: AsyncFd<OwnedFd>,
    interest: Interest,
}

impl KernelFd {
    /// Wraps a descriptor that becomes readable.
    ///
    /// # Errors
    /// If the kernel can't wait for this kind of descriptor.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Self::of(descriptor, Interest::READABLE)
    }

    /// Wraps a descriptor that becomes writable.
    ///
    /// # Errors
    /// If the kernel can't wait for this kind of descriptor.
    pub(crate) fn writable(descriptor: OwnedFd) -> io::Result<Self> {
        Self::of(descriptor, Interest::WRITABLE)
    }

    /// Wraps a file whose changes of content the kernel notifies.
    ///
    /// # Errors
    /// If the kernel can't wait for this kind of file.
    pub(crate) fn changing(file: OwnedFd) -> io::Result<Self> {
        Self::of(file, Interest::PRIORITY)
    }

    #[expect(deprecated, reason = "unsound for types that don't own their descriptor; this one does")]
    fn of(descriptor: OwnedFd, interest: Interest) -> io::Result<Self> {
        Ok(Self { descriptor: AsyncFd::with_interest(descriptor, interest)?, interest })
    }

    /// Waits for a notification. Returns at once while its condition lasts.
    pub(crate) async fn wait(&self) {
        if self.descriptor.ready(self.interest).await.is_err() {
            // Fails only if the async runtime shuts down.
            std::future::pending::<()>().await;
        }
    }

    /// Waits like [`Self::wait`]. [`Ready::clear`] is to be called once the condition is over.
    pub(crate) async fn ready(&self) -> Ready<'_> {
        match self.descriptor.ready(self.interest).await {
            Ok(ready) => Ready(ready),
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits like [`Self::wait`], and reads all data, so that the next notification is a new one.
    pub(crate) async fn take(&self) {
        match self.descriptor.ready(self.interest).await {
            Ok(mut ready) => {
                // Only a file can be rewound.
                let _ = lseek(self.as_fd(), 0, Whence::SeekSet);
                let mut taken = [0; 4096];
                while read(self.as_fd(), &mut taken).is_ok_and(|length| length > 0) {}
                ready.clear_ready();
            }
            Err(_) => std::future::pending().await,
        }
    }
}

/// A notification that was received.
pub(crate) struct Ready<'a>(AsyncFdReadyGuard<'a, OwnedFd>);

impl Ready<'_> {
    /// Marks the notification as handled. Later notifications remain.
    pub(crate) fn clear(mut self) {
        self.0.clear_ready();
    }
}

impl AsFd for KernelFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
