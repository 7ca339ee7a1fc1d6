//! Connections to log receivers: TCP, TLS, UDP and unix sockets. Knows no protocol above these.
//!
//! Source of the facts: unix(7), udp(7), syslog(3) on the paths of the host's own syslog.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls_platform_verifier::Verifier;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UdpSocket, UnixDatagram, UnixStream};
use tokio_rustls::TlsConnector;

use super::reach::Reach;
use super::resolver;
use crate::sys::host_files;
use crate::sys::host_path::Area;

/// Maximum time to look a receiver up, connect to it, and agree on TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Paths at which the host's own syslog may listen.
const LOCAL_SYSLOG: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];
/// Maximum size of a file of certificates.
const MAX_PEM_BYTES: u64 = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Endpoint {
    /// `<host>:<port>`, as that of the others.
    Udp(String),
    Tcp(String),
    Tls {
        address: String,
        files: TlsFiles,
    },
    Unix(HostPath),
    UnixDatagram(HostPath),
    /// The host's own syslog.
    LocalSyslog,
}

/// A path of the host, beneath a root that neither a link nor a `..` leads out of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostPath {
    pub root: PathBuf,
    /// Path relative to the root, in which no symbolic link is followed.
    pub plain: PathBuf,
    pub path: PathBuf,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TlsFiles {
    /// Authorities to trust beside those of the host.
    pub ca: Option<HostPath>,
    pub certificate: Option<HostPath>,
    pub key: Option<HostPath>,
    pub skips_verification: bool,
}

/// A stream of bytes in both directions.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> ByteStream for T {}

pub(super) enum Connection {
    Stream(Box<dyn ByteStream>),
    Udp(UdpSocket),
    UnixDatagram(UnixDatagram),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Tls { address, .. } => write!(f, "tls://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.shown().display()),
            Self::UnixDatagram(path) => write!(f, "unixgram://{}", path.shown().display()),
            Self::LocalSyslog => f.write_str("the host's syslog"),
        }
    }
}

impl HostPath {
    /// Returns a path of the operator's or of the host's own.
    pub(crate) fn of_host(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let rest = path.strip_prefix("/").unwrap_or(path);
        Self { root: "/".into(), plain: PathBuf::new(), path: rest.into() }
    }

    /// Returns the whole path, for errors.
    fn shown(&self) -> PathBuf {
        self.root.join(&self.plain).join(&self.path).components().collect()
    }

    fn area(&self) -> Area<'_> {
        Area { root: &self.root, plain: &self.plain }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let file = self.area().open_file(&self.path).map_err(io::Error::other)?;
        let mut text = Vec::new();
        file.take(MAX_PEM_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }
}

impl Endpoint {
    /// Returns whether it is a unix socket of this host.
    pub(super) fn is_of_host(&self) -> bool {
        matches!(self, Self::Unix(_) | Self::UnixDatagram(_) | Self::LocalSyslog)
    }

    /// Connects to the receiver. A UDP receiver is only looked up.
    ///
    /// # Errors
    /// When it can't be found or reached in [`CONNECT_TIMEOUT`], or may not be.
    pub(super) async fn connect(&self, reach: &Reach) -> io::Result<Connection> {
        let late = || io::Error::new(ErrorKind::TimedOut, format!("no answer in {CONNECT_TIMEOUT:?}"));
        let connect = Box::pin(self.connect_untimed(reach));
        tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| late())?
    }

    async fn connect_untimed(&self, reach: &Reach) -> io::Result<Connection> {
        match self {
            Self::Udp(address) => udp(address, reach).await.map(Connection::Udp),
            Self::Tcp(address) => Ok(Connection::Stream(Box::new(tcp(address, reach).await?))),
            Self::Tls { address, files } => tls(address, files.clone(), reach).await,
            // syslog's sockets are of either kind, and the address often names the wrong one.
            Self::Unix(path) => match unix(path, true).await {
                Err(error) if error.raw_os_error() == Some(nix::libc::EPROTOTYPE) => unix(path, false).await,
                reached => reached,
            },
            Self::UnixDatagram(path) => unix(path, false).await,
            Self::LocalSyslog => {
                let mut failed = io::Error::from(ErrorKind::NotFound);
                for path in LOCAL_SYSLOG.map(HostPath::of_host) {
                    for is_stream in [false, true] {
                        match unix(&path, is_stream).await {
                            Ok(connection) => return Ok(connection),
                            Err(error) => failed = error,
                        }
                    }
                }
                Err(failed)
            }
        }
    }
}

/// Connects to the first of a receiver's permitted addresses that `connect` reaches. By a name, tokio would look it up on a
/// thread that other work needs.
async fn first_reached<T, F: Future<Output = io::Result<T>>>(
    address: &str,
    reach: &Reach,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut failed = io::Error::from(ErrorKind::NotFound);
    for to in reach.permitted(resolver::look_up(address, reach.is_operators()).await?).await? {
        match connect(to).await {
            Ok(connected) => return Ok(connected),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn udp(address: &str, reach: &Reach) -> io::Result<UdpSocket> {
    let connect = |to: SocketAddr| async move {
        let any =
            if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.connect(to).await?;
        reach.check_connected(socket.local_addr()?, to)?;
        Ok(socket)
    };
    first_reached(address, reach, connect).await
}

async fn tcp(address: &str, reach: &Reach) -> io::Result<TcpStream> {
    let connect = |to: SocketAddr| async move { Ok((TcpStream::connect(to).await?, to)) };
    let (stream, to) = first_reached(address, reach, connect).await?;
    reach.check_connected(stream.local_addr()?, to)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn tls(address: &str, files: TlsFiles, reach: &Reach) -> io::Result<Connection> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let place = files.ca.as_ref().map_or_else(|| PathBuf::from("/"), HostPath::shown);
    let config = host_files::look(&place, CONNECT_TIMEOUT, move || tls_config(&files)).await??;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp(address, reach).await?).await?;
    Ok(Connection::Stream(Box::new(stream)))
}

fn tls_config(files: &TlsFiles) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable =
        |path: &HostPath, what: &str| io::Error::other(format!("{} has no {what}", path.shown().display()));
    let certificates = |path: &HostPath| {
        let text = path.read()?;
        let found: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&text).collect();
        found
            .ok()
            .filter(|found| !found.is_empty())
            .ok_or_else(|| unusable(path, "certificate in PEM form in it"))
    };
    let own = files.ca.as_ref().map(certificates).transpose()?.unwrap_or_default();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous();
    let builder = if files.skips_verification {
        builder.with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        let verifier = Verifier::new_with_extra_roots(own, provider).map_err(io::Error::other)?;
        builder.with_custom_certificate_verifier(Arc::new(verifier))
    };
    match (&files.certificate, &files.key) {
        (Some(certificate), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_slice(&key.read()?)
                .map_err(|_| unusable(key, "private key without a passphrase"))?;
            builder.with_client_auth_cert(certificates(certificate)?, secret).map_err(io::Error::other)
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

/// Connects to a unix socket by the descriptor that was checked.
async fn unix(path: &HostPath, is_stream: bool) -> io::Result<Connection> {
    let (shown, path) = (path.shown(), path.clone());
    let open = move || path.area().open(&path.path).map_err(io::Error::other);
    let place = host_files::look(&shown, CONNECT_TIMEOUT, open).await??;
    let by_descriptor = format!("/proc/self/fd/{}", place.as_raw_fd());
    if is_stream {
        return Ok(Connection::Stream(Box::new(UnixStream::connect(by_descriptor).await?)));
    }
    let socket = UnixDatagram::unbound()?;
    socket.connect(by_descriptor)?;
    Ok(Connection::UnixDatagram(socket))
}

/// The verification of a receiver whose certificate is not verified.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
