//! Serves the address to which shims send their events. The events are dropped: what counts is the answers to calls. A
//! shim in Go drops its events if it has no address for them; shims in Rust don't start without an address that
//! accepts.
//!
//! All shims of a state directory share one socket, which is served from the first shim on that needs it, by whichever
//! plugin is there. The socket stays when the plugin goes: an address where nobody listens fails at once, and one that
//! does not exist holds some shims up.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::{Bundle, Error};
use crate::gvisor;
use crate::sys::blocking;

const SOCKET: &str = "events.sock";
/// Names of the shims that need no address: containerd's own of the runc family.
const SHIMS_WITHOUT_EVENTS: [&str; 2] = ["containerd-shim-runc-v1", "containerd-shim-runc-v2"];
/// The kernel's limit for a socket's path, in bytes.
const SOCKET_PATH_LIMIT_BYTES: usize = 107;

/// The address for events of one state directory's shims. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct EventSocket {
    socket: PathBuf,
    served: Arc<OnceCell<()>>,
}

impl EventSocket {
    /// Returns the address in a state directory, where no socket is made yet.
    pub(crate) fn of(state_dir: &Path) -> Self {
        Self { socket: state_dir.join(SOCKET), served: Arc::default() }
    }

    /// Returns the socket to which a shim sends its events, which is served from now on. `None` for a shim that needs
    /// none.
    ///
    /// # Errors
    /// Names the socket that can't be made.
    pub(crate) async fn address_for(&self, shim: &Path) -> Result<Option<&Path>, Error> {
        if shim.file_name().is_some_and(|name| SHIMS_WITHOUT_EVENTS.iter().any(|one| name == *one)) {
            return Ok(None);
        }
        let socket = self.clone();
        self.served.get_or_try_init(|| blocking::run(move || socket.serve())).await?;
        Ok(Some(&self.socket))
    }

    fn state_dir_length(&self) -> usize {
        self.socket.parent().map_or(0, |state_dir| state_dir.as_os_str().len())
    }

    fn serve(&self) -> Result<(), Error> {
        // The new socket replaces an earlier plugin's, without a moment in which there is none.
        let new = self.socket.with_extension("new");
        let longest = self.socket.as_os_str().len();
        if longest > SOCKET_PATH_LIMIT_BYTES {
            return Err(Error::EventsPath {
                socket: self.socket.clone(),
                most: SOCKET_PATH_LIMIT_BYTES + self.state_dir_length() - longest,
            });
        }
        let _ = std::fs::remove_file(&new);
        let listener = UnixListener::bind(&new).map_err(Error::file("listen at", &self.socket))?;
        std::fs::rename(&new, &self.socket).map_err(Error::file("listen at", &self.socket))?;
        tokio::spawn(acknowledge(listener));
        Ok(())
    }
}

/// Takes the events of one shim at a socket in its bundle, until it is dropped; connections that exist by then are
/// served on. For a shim whose events another process takes later.
pub(crate) struct BundleEventSocket(JoinHandle<()>);

impl BundleEventSocket {
    /// Serves the socket of a bundle. The path of the bundle may be too long for a socket's path, so the socket is
    /// bound through the descriptor of the directory.
    ///
    /// # Errors
    /// Names the socket that can't be made.
    pub(crate) fn in_bundle(bundle: &Bundle) -> Result<Self, Error> {
        let socket = bundle.directory().join(gvisor::EVENTS);
        let failed = || Error::file("listen at", &socket);
        let directory = bundle.open().map_err(failed())?;
        let short = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), gvisor::EVENTS);
        let listener = UnixListener::bind(short).map_err(failed())?;
        Ok(Self(tokio::spawn(acknowledge(listener))))
    }
}

impl Drop for BundleEventSocket {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn acknowledge(listener: UnixListener) {
    let failed = |error| tracing::warn!(%error, "can't accept a shim's events");
    shim_protos::events::acknowledge_all(listener, failed).await;
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn the_event_socket_is_made_on_demand_and_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join(SOCKET);
        let events = EventSocket::of(directory.path());
        for shim in ["/usr/bin/containerd-shim-runc-v2", "/usr/bin/containerd-shim-runc-v1"] {
            assert_eq!(events.address_for(Path::new(shim)).await.unwrap(), None);
        }
        assert!(!socket.exists());
        let shim = Path::new("/usr/bin/containerd-shim-runc-v2-rs");
        for _ in 0..2 {
            assert_eq!(events.address_for(shim).await.unwrap(), Some(&*socket));
        }
        UnixStream::connect(&socket).await.unwrap();
        let next = EventSocket::of(directory.path());
        assert_eq!(next.address_for(shim).await.unwrap(), Some(&*socket));
        UnixStream::connect(&socket).await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_path_that_is_too_long_names_the_state_directory() {
        let at = |length: usize| PathBuf::from(format!("/no/{}", "x".repeat(length - 4)));
        let error = async |length| {
            let events = EventSocket::of(&at(length));
            events.address_for(Path::new("/opt/shim")).await.unwrap_err().to_string()
        };
        for word in ["state_dir", "95 bytes", "xxx/events.sock"] {
            assert!(error(96).await.contains(word), "{word}");
        }
        assert!(!error(95).await.contains("bytes"));
    }

    #[tokio::test]
    async fn a_failed_bind_names_the_socket() {
        let events = EventSocket::of(Path::new("/no/such/directory"));
        let error = events.address_for(Path::new("/opt/shim")).await.unwrap_err().to_string();
        assert!(error.contains("/no/such/directory/events.sock"), "{error}");
    }
}
