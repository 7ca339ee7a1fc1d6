//! The plugin as a process of hashicorp/go-plugin: the cookie, the socket, the handshake line, and the services by
//! which the host watches and stops a plugin. Knows nothing of drivers or tasks.
//!
//! Source of the facts: hashicorp/go-plugin `client.go`, `server.go`, `docs/guide-plugin-write-non-go.md`.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use nomad_proto::go_plugin::grpc_broker_server::{GrpcBroker, GrpcBrokerServer};
use nomad_proto::go_plugin::grpc_controller_server::{GrpcController, GrpcControllerServer};
use nomad_proto::go_plugin::grpc_stdio_server::{GrpcStdio, GrpcStdioServer};
use nomad_proto::go_plugin::{ConnInfo, Empty, StdioData};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_server::{Health, HealthServer};

const COOKIE_KEY: &str = "NOMAD_PLUGIN_MAGIC_COOKIE";
const COOKIE: &str = "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255";
/// Versions of the core protocol and of the application protocol.
const PROTOCOLS: &str = "1|2";
/// Maximum length of the path in a unix socket's address, in bytes.
const SOCKET_PATH_LIMIT_BYTES: usize = 107;
/// Service name in the host's health requests.
const HEALTH_NAME: &str = "plugin";

/// The reason that the plugin can't serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error(
        "this is a Nomad task driver plugin and is started by a Nomad agent, not by hand: put it into the agent's \
         plugin_dir"
    )]
    NotAHost,
    #[error("can't listen on a socket under {directory}")]
    Listen { directory: PathBuf, source: std::io::Error },
    #[error("can't print the handshake")]
    Print(#[source] std::io::Error),
}

/// Checks that the process was started by a Nomad agent.
///
/// # Errors
/// [`HandshakeError::NotAHost`] without the agent's cookie.
pub(crate) fn check_cookie() -> Result<(), HandshakeError> {
    if std::env::var_os(COOKIE_KEY).is_some_and(|cookie| cookie == COOKIE) {
        Ok(())
    } else {
        Err(HandshakeError::NotAHost)
    }
}

/// The socket that the host connects to, in a directory of its own that only root may enter. Both are removed on drop.
pub(crate) struct Socket {
    path: PathBuf,
    _directory: TempDir,
}

impl Socket {
    /// Binds the socket and listens, before the host is told its path.
    ///
    /// # Errors
    /// [`HandshakeError::Listen`], which names the directory.
    pub(crate) fn bind() -> Result<(Self, UnixListener), HandshakeError> {
        let mut parent = std::env::temp_dir();
        if parent.as_os_str().len() + "/containerd-driver-XXXXXX/plugin.sock".len() > SOCKET_PATH_LIMIT_BYTES
        {
            parent = PathBuf::from("/tmp");
        }
        let listen = |source| HandshakeError::Listen { directory: parent.clone(), source };
        let directory =
            tempfile::Builder::new().prefix("containerd-driver-").tempdir_in(&parent).map_err(listen)?;
        let path = directory.path().join("plugin.sock");
        let listener = UnixListener::bind(&path).map_err(listen)?;
        Ok((Self { path, _directory: directory }, listener))
    }

    /// Prints the handshake line, which tells the host where to connect. Nothing else is ever written to stdout.
    ///
    /// # Errors
    /// [`HandshakeError::Print`] if the host has gone already.
    pub(crate) fn announce(&self) -> Result<(), HandshakeError> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&handshake(&self.path)).and_then(|()| stdout.flush()).map_err(HandshakeError::Print)
    }
}

fn handshake(socket: &Path) -> Vec<u8> {
    [PROTOCOLS.as_bytes(), b"|unix|", socket.as_os_str().as_bytes(), b"|grpc|\n"].concat()
}

/// The services of go-plugin itself.
pub(crate) struct Services {
    stop: Arc<Notify>,
}

impl Services {
    pub(crate) fn new(stop: Arc<Notify>) -> Self {
        Self { stop }
    }

    pub(crate) fn broker(&self) -> GrpcBrokerServer<Broker> {
        GrpcBrokerServer::new(Broker)
    }

    pub(crate) fn stdio(&self) -> GrpcStdioServer<Stdio> {
        GrpcStdioServer::new(Stdio)
    }

    pub(crate) fn controller(&self) -> GrpcControllerServer<Controller> {
        GrpcControllerServer::new(Controller { stop: Arc::clone(&self.stop) })
    }

    pub(crate) async fn health(&self) -> HealthServer<impl Health> {
        let (reporter, server) = tonic_health::server::health_reporter();
        reporter.set_service_status(HEALTH_NAME, tonic_health::ServingStatus::Serving).await;
        server
    }
}

type HeldOpen<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service for connections beside the main one, which Nomad's driver protocol doesn't use. Its stream is held open
/// for as long as the host does.
pub(crate) struct Broker;

#[tonic::async_trait]
impl GrpcBroker for Broker {
    type StartStreamStream = HeldOpen<ConnInfo>;

    async fn start_stream(
        &self,
        request: Request<Streaming<ConnInfo>>,
    ) -> Result<Response<Self::StartStreamStream>, Status> {
        // The host's half is kept with ours: dropping it would reset the stream.
        let until_the_host_ends = futures::StreamExt::filter_map(request.into_inner(), |_| async { None });
        Ok(Response::new(Box::pin(until_the_host_ends)))
    }
}

/// The service for the plugin's stdout and stderr, which the host discards; it sends nothing.
pub(crate) struct Stdio;

#[tonic::async_trait]
impl GrpcStdio for Stdio {
    type StreamStdioStream = HeldOpen<StdioData>;

    async fn stream_stdio(&self, _: Request<()>) -> Result<Response<Self::StreamStdioStream>, Status> {
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }
}

/// The service by which the host shuts the plugin down; it kills the plugin two seconds later.
pub(crate) struct Controller {
    stop: Arc<Notify>,
}

#[tonic::async_trait]
impl GrpcController for Controller {
    async fn shutdown(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.stop.notify_one();
        Ok(Response::new(Empty {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_has_its_empty_sixth_field() {
        assert_eq!(handshake(Path::new("/tmp/x/plugin.sock")), b"1|2|unix|/tmp/x/plugin.sock|grpc|\n");
    }

    #[tokio::test]
    async fn the_socket_goes_with_its_owner() {
        let (socket, _listener) = Socket::bind().unwrap();
        let path = socket.path.clone();
        assert!(path.exists() && path.as_os_str().len() <= SOCKET_PATH_LIMIT_BYTES);
        drop(socket);
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }
}
