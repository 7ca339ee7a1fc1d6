//! A repository on one of its registry's hosts: requests, their authorization, and redirects. A password or a token
//! goes to that host alone and along no redirect to another.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oci_spec::image::{Descriptor, MediaType};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::OnceCell;

use super::authorization::Authenticator;
use super::credential_store::{Login, PullCredentials};
use super::hosts::{Host, HostCapabilities};
use super::http::{self, Http};
use super::response::{self, Body, Fetched, HostFailure, Part, explanation, is_retryable, read, redirected};
use super::transport::{HostTransport, REDIRECTS};
use crate::image::digest::{check_digest, digest_of};
use crate::image::manifest::{self, MANIFEST_LIMIT_BYTES};
use crate::image::{ImageError, Reference, checked_digest};

/// Header with a manifest's digest.
const DIGEST: &str = "docker-content-digest";

/// A repository on one host, for one pull.
pub(super) struct Endpoint {
    transport: HostTransport,
    repository: String,
    /// The registry's name, where the host is another one.
    namespace: Option<String>,
    pull_credentials: PullCredentials,
    /// Host name by which credentials are looked up.
    known_as: String,
    login: OnceCell<Option<Login>>,
    /// The authorization header that the host has asked for, sent with each further request.
    authorization: Mutex<Option<HeaderValue>>,
    is_failing: Arc<AtomicBool>,
    /// Maximum time without a byte in the middle of a body.
    idle: Duration,
}

impl Endpoint {
    /// Prepares the connection to a host.
    ///
    /// # Errors
    /// An unusable file of a certificate, by its name.
    pub(super) async fn new(
        http: Arc<Http>,
        idle: Duration,
        host: Host,
        reference: &Reference,
        pull_credentials: &PullCredentials,
    ) -> Result<Self, ImageError> {
        let registry = reference.host().to_owned();
        let is_itself = host.is(&registry);
        let transport = HostTransport::new(http, host).await?;
        Ok(Self {
            repository: reference.repository().to_owned(),
            known_as: if is_itself { registry.clone() } else { transport.name() },
            namespace: (!is_itself).then_some(registry),
            pull_credentials: pull_credentials.clone(),
            login: OnceCell::new(),
            authorization: Mutex::default(),
            is_failing: Arc::default(),
            idle,
            transport,
        })
    }

    /// Returns the host's name for messages.
    pub(super) fn name(&self) -> String {
        self.transport.name()
    }

    pub(super) fn capabilities(&self) -> HostCapabilities {
        self.transport.capabilities()
    }

    pub(super) fn mark_bad_content(&self) {
        self.is_failing.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// Logs a failed request. A host's own failure (a transient one, or a denial) marks it as failing, and is a warning
    /// once where there are other hosts, which hide it. Missing content is neither: another host may have it.
    pub(super) fn mark_failed(&self, error: &ImageError, there_are_others: bool) {
        let is_its_own = error.is_retryable()
            || matches!(error, ImageError::Denied { .. } | ImageError::Credentials { .. });
        let was_failing = is_its_own && self.is_failing.swap(true, Ordering::Relaxed);
        if is_its_own && !was_failing && there_are_others {
            tracing::warn!(host = self.name(), repository = self.repository, %error, "a registry host failed");
        } else {
            tracing::debug!(host = self.name(), repository = self.repository, %error, "a registry host does not provide it");
        }
    }

    /// Resolves a tag or digest to a descriptor, by a HEAD request if the host answers that.
    ///
    /// # Errors
    /// Those of [`Self::manifest`], which is requested where HEAD tells no digest, or not why it is refused.
    pub(super) async fn resolve(
        &self,
        version: &str,
        limit: Option<Duration>,
    ) -> Result<Descriptor, HostFailure> {
        let response = self.request(Method::HEAD, &manifests(version), accepting()?, limit).await?;
        let status = response.status();
        if is_retryable(status) && status != StatusCode::NOT_IMPLEMENTED {
            return Err(self.refusal(response).await);
        }
        let word = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let advertised =
            word(CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok()).zip(word(DIGEST));
        let advertised = advertised.filter(|_| status.is_success());
        let media_type = response::media_type(&response);
        if let Some(advertised) =
            advertised.and_then(|(size_bytes, digest)| descriptor(&media_type, size_bytes, digest))
        {
            return Ok(advertised);
        }
        let Fetched { media_type, bytes, .. } = self.manifest(version, limit).await?;
        let computed = descriptor(&media_type, bytes.len() as u64, &digest_of(&bytes));
        Ok(computed.ok_or_else(|| ImageError::corrupt("an invalid digest"))?)
    }

    /// Fetches the manifest or index of a tag or digest.
    ///
    /// # Errors
    /// It is not there, or doesn't match the digest that it was requested by.
    pub(super) async fn manifest(
        &self,
        version: &str,
        limit: Option<Duration>,
    ) -> Result<Fetched, HostFailure> {
        let response = self.request(Method::GET, &manifests(version), accepting()?, limit).await?;
        let response = self.refused_unless_success(response).await?;
        let media_type = response::media_type(&response);
        let bytes = read(response, "the manifest", MANIFEST_LIMIT_BYTES, self.idle).await?;
        if checked_digest(version).is_ok() {
            check_digest(version, &digest_of(&bytes)).map_err(ImageError::on_the_way)?;
        }
        Ok(Fetched { media_type, bytes, origin: self.name() })
    }

    /// Fetches a blob that fits into memory.
    ///
    /// # Errors
    /// Those of [`Self::blob`]; or the content doesn't match the blob's digest.
    pub(super) async fn small_blob(
        &self,
        blob: &Descriptor,
        limit: Option<Duration>,
    ) -> Result<Vec<u8>, HostFailure> {
        let body = self.blob(blob, 0, limit).await?;
        let bytes = read(body.response, "it", blob.size(), self.idle).await.map_err(|error| match error {
            ImageError::Unsupported { reason } => ImageError::damaged(reason),
            other => other,
        })?;
        check_digest(blob.digest().as_ref(), &digest_of(&bytes)).map_err(ImageError::on_the_way)?;
        Ok(bytes)
    }

    /// Requests a blob from an offset on. A host that answers with another range, or with none, is asked for the whole
    /// blob.
    ///
    /// # Errors
    /// The request's; or the length of the answer is not the blob's.
    pub(super) async fn blob(
        &self,
        blob: &Descriptor,
        offset_bytes: u64,
        limit: Option<Duration>,
    ) -> Result<Body, HostFailure> {
        if offset_bytes > 0 {
            let range = response::header(&format!("bytes={offset_bytes}-"))?;
            let response = self.request_blob(blob, HeaderMap::from_iter([(RANGE, range)]), limit).await?;
            let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let rest_bytes = blob.size().saturating_sub(offset_bytes);
            match Part::of(response.status(), range, offset_bytes, blob.size()) {
                Part::Whole => return self.body(blob, response, offset_bytes).await,
                Part::Rest if response.content_length().is_none_or(|length| length == rest_bytes) => {
                    return Ok(self.body_of(response, 0));
                }
                Part::Rest | Part::Refused => {
                    let (host, status, digest) = (self.name(), response.status(), blob.digest());
                    tracing::debug!(host, %status, range, %digest, offset_bytes, "not the requested range");
                }
            }
        }
        let response = self.request_blob(blob, HeaderMap::new(), limit).await?;
        self.body(blob, response, offset_bytes).await
    }

    async fn request_blob(
        &self,
        blob: &Descriptor,
        headers: HeaderMap,
        limit: Option<Duration>,
    ) -> Result<Response, ImageError> {
        self.request(Method::GET, &format!("blobs/{}", blob.digest()), headers, limit).await
    }

    /// Returns the body of an answer that has the whole blob.
    async fn body(
        &self,
        blob: &Descriptor,
        response: Response,
        skip_bytes: u64,
    ) -> Result<Body, HostFailure> {
        let response = self.refused_unless_success(response).await?;
        if let Some(length_bytes) = response.content_length()
            && length_bytes != blob.size()
        {
            let size_bytes = blob.size();
            let reason = format!("the registry has {length_bytes} bytes, and the manifest says {size_bytes}");
            return Err(ImageError::damaged(reason).into());
        }
        Ok(self.body_of(response, skip_bytes))
    }

    fn body_of(&self, response: Response, skip_bytes: u64) -> Body {
        let (origin, is_failing) = (self.name(), Arc::clone(&self.is_failing));
        Body { response, skip_bytes, origin, is_failing, idle: self.idle, has_begun: false, came_bytes: 0 }
    }

    /// Sends a request and returns any answer. An authentication challenge is answered on the way, once.
    ///
    /// # Errors
    /// The connection's; or no answer begins within the limit.
    async fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        limit: Option<Duration>,
    ) -> Result<Response, ImageError> {
        let answered = self.request_unlimited(method, path, headers);
        match limit {
            Some(limit) => {
                tokio::time::timeout(limit, answered).await.unwrap_or_else(|_| Err(http::silent(limit)))
            }
            None => answered.await,
        }
    }

    async fn request_unlimited(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
    ) -> Result<Response, ImageError> {
        let login = self.login().await?;
        let sent = self.known_authorization();
        let response = self.send(&method, path, &headers, sent.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !self.transport.is_here(response.url()) {
            return Ok(response);
        }
        // Another request may have answered the challenge meanwhile.
        let newer = self.known_authorization().filter(|known| Some(known) != sent.as_ref());
        let authorization = match newer {
            Some(newer) => newer,
            None => {
                let (transport, repository, idle) = (&self.transport, self.repository.as_str(), self.idle);
                let authorizing = Authenticator { transport, repository, login, idle };
                let Some(authorization) = authorizing.answer_challenge(&response).await? else {
                    return Ok(response);
                };
                *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(authorization.clone());
                authorization
            }
        };
        self.send(&method, path, &headers, Some(&authorization)).await
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, ImageError> {
        let mut url = self.url(path)?;
        for _ in 0..=REDIRECTS {
            let mut request =
                self.transport.request_to(method.clone(), url.clone()).await?.headers(headers.clone());
            if let Some(authorization) = authorization.filter(|_| self.transport.is_here(&url)) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = match request.send().await {
                Err(error) if self.transport.takes_plain(&url, &error) => {
                    url = self.url(path)?;
                    continue;
                }
                outcome => outcome.map_err(|error| http::failed(&error))?,
            };
            let Some(next) = redirected(&response)? else { return Ok(response) };
            url = next;
        }
        Err(ImageError::unusable("it redirects too often"))
    }

    fn url(&self, path: &str) -> Result<Url, ImageError> {
        let mut url = self.transport.base();
        url.set_path(&format!("{}/{}/{path}", url.path().trim_end_matches('/'), self.repository));
        if let Some(registry) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }

    async fn login(&self) -> Result<Option<&Login>, ImageError> {
        let found =
            self.login.get_or_try_init(|| self.pull_credentials.login(&self.known_as, &self.repository));
        found.await.map(Option::as_ref)
    }

    fn known_authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn refused_unless_success(&self, response: Response) -> Result<Response, HostFailure> {
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => {
                Err(ImageError::NotInRegistry { reason: explanation(response, self.idle).await }.into())
            }
            _ => Err(self.refusal(response).await),
        }
    }

    async fn refusal(&self, response: Response) -> HostFailure {
        let login = self.login.get().and_then(Option::as_ref);
        response::refusal(response, &self.name(), login, self.idle).await
    }
}

fn manifests(version: &str) -> String {
    format!("manifests/{version}")
}

fn accepting() -> Result<HeaderMap, ImageError> {
    Ok(HeaderMap::from_iter([(ACCEPT, response::header(&manifest::accepted_types())?)]))
}

/// Builds a descriptor; `None` for a digest of another algorithm.
fn descriptor(media_type: &str, size_bytes: u64, digest: &str) -> Option<Descriptor> {
    let digest: oci_spec::image::Digest = checked_digest(digest).ok()?.parse().ok()?;
    Some(Descriptor::new(MediaType::from(media_type), size_bytes, digest))
}
