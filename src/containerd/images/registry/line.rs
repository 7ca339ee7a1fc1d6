//! The line to one host: by which client and which scheme it is spoken to, and with the operator's own headers, which go to
//! it alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder, Url};
use tokio::sync::OnceCell;

use super::super::super::Problem;
use super::super::hosts::{Host, Settings, TlsFiles, Trust, is_loopback};
use super::super::http::{self, Http};
use super::answer;

pub(super) struct Line {
    http: Arc<Http>,
    /// Its own, where something is said of its TLS or its timeout.
    client: Option<Client>,
    /// For the hosts that it sends elsewhere to, where an authority of its own is said: on the loopback, and others.
    elsewhere: [OnceCell<Client>; 2],
    host: Host,
    /// It was said to be spoken to by plain http, but something was said of its TLS, too, which is tried first.
    is_plain: AtomicBool,
}

impl Line {
    /// # Errors
    /// Names the certificate's file that is of no use.
    pub(super) async fn new(http: Arc<Http>, host: Host) -> Result<Self, Problem> {
        let settings = host.settings.clone();
        let client = if settings.tls.is_set() || settings.connect_timeout.is_some() {
            Some(made(answer::authority(&host.base), settings).await?)
        } else {
            None
        };
        let tls_first = host.settings.tls.is_set() && host.base.port().is_some();
        let is_plain = AtomicBool::new(host.base.scheme() == "http" && !tls_first);
        Ok(Self { http, client, elsewhere: Default::default(), host, is_plain })
    }

    /// As it stands in messages.
    pub(super) fn name(&self) -> String {
        answer::authority(&self.host.base)
    }

    pub(super) fn trust(&self) -> Trust {
        self.host.settings.trust
    }

    /// A request that carries the operator's headers if it goes to this host.
    ///
    /// # Errors
    /// Names the certificate's file that is of no use.
    pub(super) async fn request_to(&self, method: Method, url: Url) -> Result<RequestBuilder, Problem> {
        let client = self.client_to(&url).await?;
        let headers = if self.is_here(&url) { self.host.settings.headers.clone() } else { HeaderMap::new() };
        Ok(client.request(method, url).headers(headers))
    }

    /// What the operator says of a host's TLS is for that host, whatever port it is sent to. Another one, to which it redirects
    /// or sends for a token, is always checked, and no certificate of ours is shown to it; the authorities that vouch for the
    /// host may vouch for that one too, since both often belong to one house.
    async fn client_to(&self, url: &Url) -> Result<&Client, Problem> {
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
            _ => self.http.for_host(name),
        }
    }

    /// Where it is, by the scheme that it is spoken to by.
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

    /// Whether it is spoken to by plain http from now on.
    pub(super) fn takes_plain(&self, url: &Url) -> bool {
        let is_it = self.is_here(url) && self.host.base.scheme() == "http";
        is_it && !self.is_plain.swap(true, Ordering::Relaxed)
    }
}

async fn made(name: String, settings: Settings) -> Result<Client, Problem> {
    let making = tokio::task::spawn_blocking(move || http::client_for(&name, &settings));
    making.await.map_err(|_| Problem::broken("its certificates can't be read"))?
}
