//! The HTTP transport to one host: its client, its scheme, and the operator's own headers, which go to this host alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder, Url};
use tokio::sync::OnceCell;

use super::hosts::{Host, HostCapabilities, Settings, TlsFiles, is_loopback};
use super::http::{self, Http};
use super::response;
use crate::image::ImageError;

/// Maximum number of redirects that a request follows.
pub(super) const REDIRECTS: usize = 10;

pub(super) struct HostTransport {
    http: Arc<Http>,
    /// A client of the host's own, where its TLS or its timeout is configured.
    client: Option<Client>,
    /// Clients for the hosts that this one redirects to, where it has authorities of its own: for others, and for the
    /// loopback.
    elsewhere: [OnceCell<Client>; 2],
    host: Host,
    /// Set while requests use plain http. A host with an address of http and a port, and TLS settings, is tried by TLS
    /// first, and so is a registry on the loopback of which nothing is known.
    is_plain: AtomicBool,
}

impl HostTransport {
    /// Prepares the transport to a host.
    ///
    /// # Errors
    /// An unusable file of a certificate, by its name.
    pub(super) async fn new(http: Arc<Http>, host: Host) -> Result<Self, ImageError> {
        let Settings { tls, tries_tls, .. } = &host.settings;
        let client = match clients_own(&host.settings) {
            Some(settings) => Some(made(response::authority(&host.base), settings).await?),
            None if *tries_tls => Some(http.for_loopback_registry().await?.clone()),
            None => None,
        };
        let tls_first = *tries_tls || tls.is_set() && host.base.port().is_some();
        let is_plain = AtomicBool::new(host.base.scheme() == "http" && !tls_first);
        Ok(Self { http, client, elsewhere: Default::default(), host, is_plain })
    }

    /// Returns the host's name for messages.
    pub(super) fn name(&self) -> String {
        response::authority(&self.host.base)
    }

    pub(super) fn capabilities(&self) -> HostCapabilities {
        self.host.settings.capabilities
    }

    /// Builds a request, with the operator's headers if it goes to this host.
    ///
    /// # Errors
    /// An unusable file of a certificate, by its name.
    pub(super) async fn request_to(&self, method: Method, url: Url) -> Result<RequestBuilder, ImageError> {
        let client = self.client_to(&url).await?;
        let headers = if self.is_here(&url) { self.host.settings.headers.clone() } else { HeaderMap::new() };
        Ok(client.request(method, url).headers(headers))
    }

    /// Returns the client for a URL. The operator's TLS settings of a host hold for that host, on any port. Another
    /// one, to which it redirects or sends for a token, is always verified, and gets no client certificate; the
    /// authorities configured for the host may vouch for that one too, since both often belong to one house.
    async fn client_to(&self, url: &Url) -> Result<&Client, ImageError> {
        let name = url.host_str().unwrap_or_default();
        let is_its = self.host.base.host_str().is_some_and(|own| own.eq_ignore_ascii_case(name));
        let ca = &self.host.settings.tls.ca;
        match &self.client {
            Some(client) if is_its => Ok(client),
            Some(_) if !ca.is_empty() => {
                let cell = &self.elsewhere[usize::from(is_loopback(name))];
                let tls = TlsFiles { ca: ca.clone(), ..TlsFiles::default() };
                let settings = Settings { tls, ..Settings::default() };
                cell.get_or_try_init(|| made(name.to_owned(), settings)).await
            }
            _ => self.http.for_host(name).await,
        }
    }

    /// Returns the host's base URL, with the scheme in use.
    pub(super) fn base(&self) -> Url {
        let mut url = self.host.base.clone();
        if url.scheme() == "http" && !self.is_plain.load(Ordering::Relaxed) {
            let _ = url.set_scheme("https");
        }
        url
    }

    pub(super) fn is_here(&self, url: &Url) -> bool {
        url.origin() == self.base().origin()
    }

    /// Returns whether a request to `url` that failed is to be made again by plain http, to which this host then
    /// switches: it has an address of http, and TLS was tried.
    pub(super) fn takes_plain(&self, url: &Url, error: &reqwest::Error) -> bool {
        let means_plain =
            if self.host.settings.tries_tls { http::may_be_plain(error, url) } else { http::is_plain(error) };
        means_plain && self.switches_to_plain(url)
    }

    /// Switches to plain http. Another request may have done so while this one was made.
    fn switches_to_plain(&self, url: &Url) -> bool {
        let mut by_tls = self.host.base.clone();
        if self.host.base.scheme() != "http" || by_tls.set_scheme("https").is_err() {
            return false;
        }
        let was_tried = url.origin() == by_tls.origin();
        if was_tried {
            self.is_plain.store(true, Ordering::Relaxed);
        }
        was_tried
    }
}

/// Returns the settings of a client of the host's own, if it needs one. Where nothing is configured of the TLS of a
/// registry on the loopback, any certificate does, whatever else is configured.
fn clients_own(settings: &Settings) -> Option<Settings> {
    let Settings { tls, connect_timeout, tries_tls, .. } = settings;
    if !tls.is_set() && connect_timeout.is_none() {
        return None;
    }
    let mut own = settings.clone();
    if *tries_tls {
        own.tls.skip_verify = Some(true);
    }
    Some(own)
}

async fn made(name: String, settings: Settings) -> Result<Client, ImageError> {
    let making = tokio::task::spawn_blocking(move || http::client_for(&name, &settings));
    making.await.map_err(|_| ImageError::transient("its certificates can't be read"))?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn plain_http_is_taken_once_where_tls_was_tried_first() {
        let tls = TlsFiles { skip_verify: Some(true), ..TlsFiles::default() };
        let at = |base: &str, tls: &TlsFiles| {
            let settings = Settings { tls: tls.clone(), ..Settings::default() };
            HostTransport::new(Arc::default(), Host { base: Url::parse(base).unwrap(), settings })
        };
        let url = |text: &str| Url::parse(text).unwrap();
        let host = at("http://registry.test:5000", &tls).await.unwrap();
        assert!(!host.switches_to_plain(&url("https://other.test:5000")));
        assert_eq!(host.base().scheme(), "https");
        assert!(host.switches_to_plain(&url("https://registry.test:5000")));
        assert_eq!(host.base().scheme(), "http");
        assert!(host.switches_to_plain(&url("https://registry.test:5000")), "a request that was under way");
        assert!(!host.switches_to_plain(&url("http://registry.test:5000")), "it was plain already");
        let plain = at("http://registry.test:5000", &TlsFiles::default()).await.unwrap();
        assert!(!plain.switches_to_plain(&url("http://registry.test:5000")));
        let secure = at("https://registry.test:5000", &tls).await.unwrap();
        assert!(!secure.switches_to_plain(&url("https://registry.test:5000")));
    }

    #[tokio::test]
    async fn a_registry_on_the_loopback_is_tried_by_tls_first() {
        let settings = Settings { tries_tls: true, ..Settings::default() };
        let host = Host { base: Url::parse("http://localhost").unwrap(), settings };
        let host = HostTransport::new(Arc::default(), host).await.unwrap();
        assert!(host.client.is_some());
        assert_eq!(host.base().as_str(), "https://localhost/");
        assert!(host.switches_to_plain(&host.base()));
        assert_eq!(host.base().as_str(), "http://localhost/");
    }

    #[test]
    fn a_timeout_has_no_certificate_verified_that_none_would_be_without_it() {
        let timed = Settings { connect_timeout: Some(Duration::from_secs(1)), ..Settings::default() };
        let own = |settings: &Settings| clients_own(settings).map(|own| own.tls.skip_verify);
        assert_eq!(own(&Settings { tries_tls: true, ..timed.clone() }), Some(Some(true)));
        assert_eq!(own(&timed), Some(None));
        assert_eq!(own(&Settings { tries_tls: true, ..Settings::default() }), None);
        let tls = TlsFiles { skip_verify: Some(false), ..TlsFiles::default() };
        assert_eq!(own(&Settings { tls, ..timed }), Some(Some(false)));
    }
}
