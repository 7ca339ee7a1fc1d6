//! The HTTP clients of all pulls, and the classification of their errors. Proxies are taken from the agent's
//! environment, except for hosts on the loopback. No client follows a redirect by itself: the caller knows what may
//! follow it.

use std::error::Error as _;
use std::io::ErrorKind;
use std::ops::Deref;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, Url};
use tokio::sync::OnceCell;

use super::hosts::{Settings, TlsFiles, is_loopback};
use super::tls;
use crate::image::ImageError;
use crate::sys::{blocking, os_error};

const CONNECT: Duration = Duration::from_secs(10);

/// The clients for hosts without settings, made when first needed: a machine without root certificates can still pull
/// from its loopback.
#[derive(Default)]
pub(super) struct Http {
    remote: OnceCell<Client>,
    loopback: OnceCell<Client>,
    /// The client for registries on the loopback that may speak TLS, with any certificate.
    unverified: OnceCell<Client>,
}

impl Http {
    /// Returns the client for a registry on the loopback that has no settings: it takes any certificate, as docker does
    /// there.
    ///
    /// # Errors
    /// The client can't be set up.
    pub(super) async fn for_loopback_registry(&self) -> Result<&Client, ImageError> {
        let tls = TlsFiles { skip_verify: Some(true), ..TlsFiles::default() };
        let settings = Settings { tls, ..Settings::default() };
        let make = move || client_for("localhost", &settings);
        self.unverified.get_or_try_init(|| blocking::run(make)).await
    }

    /// Returns the client for a host, with or without its port, that has no settings of its own.
    ///
    /// # Errors
    /// This machine has no usable root certificates; once it has, the same call succeeds.
    pub(super) async fn for_host(&self, host: &str) -> Result<&Client, ImageError> {
        let is_loopback = is_loopback(host);
        let cell = if is_loopback { &self.loopback } else { &self.remote };
        // Reads certificates.
        let make = move || if is_loopback { loopback_client() } else { basis().build() };
        let made = cell.get_or_try_init(|| blocking::run(make)).await;
        made.map_err(|error| unusable(&error))
    }
}

/// Builds a client for a host with settings of its own. Blocks, since it reads certificates.
///
/// # Errors
/// Names the unusable file.
pub(super) fn client_for(host: &str, settings: &Settings) -> Result<Client, ImageError> {
    let mut builder = basis();
    if is_loopback(host) {
        builder = builder.no_proxy();
    }
    if let Some(timeout) = settings.connect_timeout {
        builder = builder.connect_timeout(timeout);
    }
    if settings.tls.is_set() {
        builder =
            builder.tls_backend_preconfigured(tls::config(&settings.tls).map_err(ImageError::permanent)?);
    }
    builder.build().map_err(|error| unusable(&error))
}

fn unusable(error: &reqwest::Error) -> ImageError {
    ImageError::permanent(format!("the HTTP client can't be set up: {}", innermost(error)))
}

/// Builds the client for the loopback. Root certificates are of use here too, for a registry that redirects to remote
/// storage, but not needed.
fn loopback_client() -> reqwest::Result<Client> {
    let with = |builder: ClientBuilder| builder.no_proxy().build();
    with(basis()).or_else(|_| with(basis().tls_certs_only([])))
}

/// Returns the base of all clients. It has no read timeout: the pull limits how long a registry may send nothing. The
/// kernel notices a peer that is gone, by the keepalive and the limit for unacknowledged data that the client sets by
/// itself.
fn basis() -> ClientBuilder {
    // Fails if there is a provider already, which then is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("containerd-driver/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .redirect(Policy::none())
}

/// Awaits the next part of a response's body; `None` at its end.
///
/// # Errors
/// The connection broke, or nothing came for `idle`.
pub(super) async fn next_part(
    response: &mut Response,
    idle: Duration,
) -> Result<Option<impl Deref<Target = [u8]>>, ImageError> {
    match tokio::time::timeout(idle, response.chunk()).await {
        Ok(part) => part.map_err(|error| failed(&error)),
        Err(_) => Err(silent(idle)),
    }
}

/// Returns the error of a host that has sent nothing for too long.
pub(super) fn silent(after: Duration) -> ImageError {
    ImageError::transient(format!("it has sent nothing for {}", humantime::format_duration(after)))
}

/// Maps the error of a request that got no answer, or half of one.
pub(super) fn failed(error: &reqwest::Error) -> ImageError {
    if let Some(tls) = tls_error(error) {
        return ImageError::unusable(match tls {
            rustls::Error::InvalidMessage(_) => {
                "it does not speak TLS; plain http is used for the loopback and for hosts that hosts.toml names with \
                 http:// only"
                    .to_owned()
            }
            tls => tls.to_string(),
        });
    }
    let what = if error.is_timeout() { "it does not answer" } else { "it can't be reached" };
    if error.is_connect() || error.is_timeout() {
        return ImageError::transient(format!("{what}: {}", innermost(error)));
    }
    if error.is_redirect() || error.is_builder() {
        return ImageError::unusable(innermost(error));
    }
    ImageError::transient(format!("the connection broke: {}", innermost(error)))
}

/// Returns the innermost cause, without the URL, which may have a signature in it.
fn innermost(error: &reqwest::Error) -> String {
    error.source().map_or_else(|| "the address is invalid".to_owned(), os_error::innermost)
}

/// Returns whether the error means that the peer speaks, but no TLS.
pub(super) fn is_plain(error: &reqwest::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidMessage(_)))
}

/// Returns whether the error may mean that the peer speaks no TLS: it hung up at the handshake, or waits for the rest of a
/// request; or, where no port is named, which http and TLS don't share, nobody listens.
pub(super) fn may_be_plain(error: &reqwest::Error, url: &Url) -> bool {
    let hung_up = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    is_plain(error)
        || error.is_connect()
            && (url.port().is_none()
                || error.is_timeout()
                || io_kind(error).is_some_and(|kind| hung_up.contains(&kind)))
}

fn io_kind(error: &reqwest::Error) -> Option<ErrorKind> {
    causes(error).filter_map(|error| error.downcast_ref::<std::io::Error>()).last().map(std::io::Error::kind)
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|error| error.downcast_ref())
}

/// Returns the causes of an error, from the outermost on.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error| cause_of(*error))
}

fn cause_of<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e (dyn std::error::Error + 'static)> {
    // The source of an I/O error is that of the error it wraps, not that error itself.
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_own_client_needs_its_files() {
        let tls = TlsFiles { ca: vec!["/absent/ca.pem".into()], ..TlsFiles::default() };
        let error = client_for("registry.test", &Settings { tls, ..Settings::default() }).unwrap_err();
        assert!(error.to_string().contains("/absent/ca.pem"), "{error}");
    }

    #[tokio::test]
    async fn a_registry_without_tls_is_distinguished_from_an_absent_one() {
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        });
        let remote = basis().build().unwrap();
        let get = || remote.get(format!("https://{address}/v2/")).send();
        let plain = failed(&get().await.unwrap_err());
        assert!(plain.to_string().contains("does not speak TLS") && !plain.is_retryable(), "{plain}");
        server.await.unwrap();
        let error = get().await.unwrap_err();
        assert!(!may_be_plain(&error, &format!("https://{address}/").parse().unwrap()));
        assert!(
            may_be_plain(&error, &"https://localhost/".parse().unwrap()),
            "it may listen at another port"
        );
        let absent = failed(&error);
        assert!(absent.is_retryable(), "{absent}");
    }

    #[tokio::test]
    async fn a_peer_that_hangs_up_at_the_handshake_may_speak_plain_http() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("https://{}/v2/", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move { drop(listener.accept().await) });
        let error = basis().build().unwrap().get(url.clone()).send().await.unwrap_err();
        assert!(may_be_plain(&error, &url) && !is_plain(&error), "{error:?}");
        server.await.unwrap();
    }
}
