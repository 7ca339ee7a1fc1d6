//! The line to one host: by which client and which scheme it is spoken to, and with the operator's own headers, which go to
//! it alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder, Url};

use super::super::super::Problem;
use super::super::hosts::{Host, Trust};
use super::super::http::{self, Http};
use super::answer;

pub(super) struct Line {
    http: Arc<Http>,
    /// Its own, where something is said of its TLS or its timeout.
    client: Option<Client>,
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
            let name = answer::authority(&host.base);
            let making = tokio::task::spawn_blocking(move || http::client_for(&name, &settings));
            Some(making.await.map_err(|_| Problem::broken("its certificates can't be read"))??)
        } else {
            None
        };
        let tls_first = host.settings.tls.is_set() && host.base.port().is_some();
        let is_plain = AtomicBool::new(host.base.scheme() == "http" && !tls_first);
        Ok(Self { http, client, host, is_plain })
    }

    /// As it stands in messages.
    pub(super) fn name(&self) -> String {
        answer::authority(&self.host.base)
    }

    pub(super) fn trust(&self) -> Trust {
        self.host.settings.trust
    }

    /// A request that carries the operator's headers if it goes to this host.
    pub(super) fn request_to(&self, method: Method, url: Url) -> Result<RequestBuilder, Problem> {
        let client = match &self.client {
            Some(client) => client,
            None => self.http.for_host(url.host_str().unwrap_or_default())?,
        };
        let headers = if self.is_here(&url) { self.host.settings.headers.clone() } else { HeaderMap::new() };
        Ok(client.request(method, url).headers(headers))
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
