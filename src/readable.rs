//! A descriptor by which the kernel tells of something: it becomes readable. Knows nothing of what is told.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(crate) struct Readable {
    descriptor: AsyncFd<OwnedFd>,
}

impl Readable {
    /// # Errors
    /// When the kernel can't wait for this kind of descriptor.
    #[expect(deprecated, reason = "unsound for types that don't own their descriptor; this one does")]
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self { descriptor: AsyncFd::with_interest(descriptor, Interest::READABLE)? })
    }

    /// Returns once it is readable, and at once while it stays so.
    pub(crate) async fn wait(&self) {
        if self.descriptor.readable().await.is_err() {
            // Only a runtime that shuts down says so.
            std::future::pending::<()>().await;
        }
    }

    /// As [`Self::wait`], and takes what there is to read.
    pub(crate) async fn take(&self) {
        match self.descriptor.readable().await {
            Ok(mut ready) => {
                let mut taken = [0; 4096];
                while nix::unistd::read(self.as_fd(), &mut taken).is_ok_and(|length| length > 0) {}
                ready.clear_ready();
            }
            Err(_) => std::future::pending().await,
        }
    }
}

impl AsFd for Readable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
