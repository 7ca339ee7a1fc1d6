//! A repository on one of the hosts of its registry: what is asked for, what the host wants to be told with it, and where it
//! sends for an answer. A password or a token goes to that host alone and along no redirect to another.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::image::{Descriptor, MediaType};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::OnceCell;

use super::super::super::Problem;
use super::super::credentials::Credentials;
use super::super::digest::{check_digest, digest_of};
use super::super::hosts::{Host, Trust};
use super::super::http::{self, Http};
use super::super::keyring::Purse;
use super::super::manifest::{self, MANIFEST_LIMIT_BYTES};
use super::super::reference::{Reference, checked_digest};
use super::answer::{self, Body, Failure, Fetched, explanation, may_pass, read};
use super::authorization::Authorizing;
use super::line::Line;

/// In which a registry says a manifest's digest.
const DIGEST: &str = "docker-content-digest";
const REDIRECTS: usize = 10;

pub(super) struct Endpoint {
    line: Line,
    repository: String,
    /// The registry that is meant, where this is another host.
    namespace: Option<String>,
    purse: Purse,
    /// To those who have credentials for it.
    known_as: String,
    credentials: OnceCell<Option<Credentials>>,
    /// What it has asked to be told with each request.
    authorization: Mutex<Option<HeaderValue>>,
    is_failing: Arc<AtomicBool>,
}

impl Endpoint {
    /// # Errors
    /// Names the certificate's file that is of no use.
    pub(super) async fn new(
        http: Arc<Http>,
        host: Host,
        reference: &Reference,
        purse: &Purse,
    ) -> Result<Self, Problem> {
        let registry = reference.host().to_owned();
        let is_itself = host.is(&registry);
        let line = Line::new(http, host).await?;
        Ok(Self {
            repository: reference.repository().to_owned(),
            known_as: if is_itself { registry.clone() } else { line.name() },
            namespace: (!is_itself).then_some(registry),
            purse: purse.clone(),
            credentials: OnceCell::new(),
            authorization: Mutex::default(),
            is_failing: Arc::default(),
            line,
        })
    }

    /// As it stands in messages.
    pub(super) fn name(&self) -> String {
        self.line.name()
    }

    pub(super) fn trust(&self) -> Trust {
        self.line.trust()
    }

    pub(super) fn distrust(&self) {
        self.is_failing.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// What it hasn't got another host may have; said once where that hides a failure.
    pub(super) fn has_failed(&self, problem: &Problem, there_are_others: bool) {
        let is_its_own =
            problem.is_transient() || matches!(problem, Problem::Denied { .. } | Problem::Credentials { .. });
        let was_failing = is_its_own && self.is_failing.swap(true, Ordering::Relaxed);
        if is_its_own && !was_failing && there_are_others {
            tracing::warn!(host = self.name(), repository = self.repository, %problem, "a registry's host fails");
        } else {
            tracing::debug!(host = self.name(), repository = self.repository, %problem, "a registry's host does not give it");
        }
    }

    /// # Errors
    /// Those of [`Self::manifest`], which is asked where the host can't say without the content, or why it refuses.
    pub(super) async fn resolve(&self, version: &str) -> Result<Descriptor, Failure> {
        let response = self.request(Method::HEAD, &manifests(version), accepting()?).await?;
        let status = response.status();
        if may_pass(status) && status != StatusCode::NOT_IMPLEMENTED {
            return Err(self.refusal(response).await);
        }
        let word = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let said = word(CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok()).zip(word(DIGEST));
        let said = said.filter(|_| status.is_success());
        let media_type = answer::media_type(&response);
        if let Some(said) = said.and_then(|(size_bytes, digest)| descriptor(&media_type, size_bytes, digest))
        {
            return Ok(said);
        }
        let Fetched { media_type, bytes, .. } = self.manifest(version).await?;
        let said = descriptor(&media_type, bytes.len() as u64, &digest_of(&bytes));
        Ok(said.ok_or_else(|| Problem::corrupt("an impossible digest"))?)
    }

    /// # Errors
    /// That it is not there, or not what its digest says, if it was asked for by that.
    pub(super) async fn manifest(&self, version: &str) -> Result<Fetched, Failure> {
        let response = self.request(Method::GET, &manifests(version), accepting()?).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(Problem::NotInRegistry { reason: explanation(response).await }.into());
        }
        let response = self.refused_unless_success(response).await?;
        let media_type = answer::media_type(&response);
        let bytes = read(response, "the manifest", MANIFEST_LIMIT_BYTES).await?;
        if checked_digest(version).is_ok() {
            check_digest(version, &digest_of(&bytes))?;
        }
        Ok(Fetched { media_type, bytes, origin: self.name() })
    }

    /// # Errors
    /// That it is not what its digest says, too.
    pub(super) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, Failure> {
        let body = self.blob(blob, 0).await?;
        let bytes = read(body.response, "the blob", blob.size()).await?;
        check_digest(blob.digest().as_ref(), &digest_of(&bytes))?;
        Ok(bytes)
    }

    /// # Errors
    /// That its length is wrong, too.
    pub(super) async fn blob(&self, blob: &Descriptor, offset_bytes: u64) -> Result<Body, Failure> {
        let mut headers = HeaderMap::new();
        if offset_bytes > 0 {
            headers.insert(RANGE, answer::header(&format!("bytes={offset_bytes}-"))?);
        }
        let response = self.request(Method::GET, &format!("blobs/{}", blob.digest()), headers).await?;
        let response = self.refused_unless_success(response).await?;
        let is_partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let expected_bytes = if is_partial { blob.size().saturating_sub(offset_bytes) } else { blob.size() };
        if let Some(length_bytes) = response.content_length()
            && length_bytes != expected_bytes
        {
            let size_bytes = blob.size();
            let reason =
                format!("the registry has {length_bytes} bytes where the manifest promises {size_bytes}");
            return Err(Problem::corrupt(reason).into());
        }
        let skip_bytes = if is_partial { 0 } else { offset_bytes };
        Ok(Body { response, skip_bytes, origin: self.name(), is_failing: Arc::clone(&self.is_failing) })
    }

    /// Any answer; a request for a password or a token is met on the way, once.
    async fn request(&self, method: Method, path: &str, headers: HeaderMap) -> Result<Response, Problem> {
        let credentials = self.credentials().await?;
        let told = self.known_authorization();
        let response = self.send(&method, path, &headers, told.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !self.line.is_here(response.url()) {
            return Ok(response);
        }
        // Another request may have met it meanwhile.
        let newer = self.known_authorization().filter(|known| Some(known) != told.as_ref());
        let authorization = match newer {
            Some(newer) => newer,
            None => {
                let authorizing = Authorizing { line: &self.line, repository: &self.repository, credentials };
                let Some(authorization) = authorizing.meet(&response).await? else { return Ok(response) };
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
    ) -> Result<Response, Problem> {
        let mut url = self.url(path)?;
        for _ in 0..=REDIRECTS {
            let mut request = self.line.request_to(method.clone(), url.clone())?.headers(headers.clone());
            if let Some(authorization) = authorization.filter(|_| self.line.is_here(&url)) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = match request.send().await {
                Err(error) if http::is_plain(&error) && self.line.takes_plain(&url) => {
                    url = self.url(path)?;
                    continue;
                }
                outcome => outcome.map_err(|error| http::failed(&error))?,
            };
            let Some(next) = redirected(&response)? else { return Ok(response) };
            url = next;
        }
        Err(Problem::useless("it redirects without an end"))
    }

    fn url(&self, path: &str) -> Result<Url, Problem> {
        let mut url = self.line.base();
        url.set_path(&format!("{}/{}/{path}", url.path().trim_end_matches('/'), self.repository));
        if let Some(registry) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }

    async fn credentials(&self) -> Result<Option<&Credentials>, Problem> {
        self.credentials.get_or_try_init(|| self.purse.credentials(&self.known_as)).await.map(Option::as_ref)
    }

    fn known_authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn refused_unless_success(&self, response: Response) -> Result<Response, Failure> {
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    async fn refusal(&self, response: Response) -> Failure {
        let credentials = self.credentials.get().and_then(Option::as_ref);
        answer::refusal(response, &self.name(), credentials).await
    }
}

fn manifests(version: &str) -> String {
    format!("manifests/{version}")
}

fn accepting() -> Result<HeaderMap, Problem> {
    Ok(HeaderMap::from_iter([(ACCEPT, answer::header(&manifest::accepted_types())?)]))
}

/// None for a digest of another kind.
fn descriptor(media_type: &str, size_bytes: u64, digest: &str) -> Option<Descriptor> {
    let digest: oci_spec::image::Digest = checked_digest(digest).ok()?.parse().ok()?;
    Some(Descriptor::new(MediaType::from(media_type), size_bytes, digest))
}

/// Where an answer sends for what was asked for. What is asked for by https is never taken from plain http.
fn redirected(response: &Response) -> Result<Option<Url>, Problem> {
    let sends = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(place) = response.headers().get(LOCATION).filter(|_| sends) else { return Ok(None) };
    let next = place.to_str().ok().and_then(|place| response.url().join(place).ok());
    let next = next.ok_or_else(|| Problem::useless("it redirects to what is no address"))?;
    let is_safe = next.scheme() == "https" || next.scheme() == "http" && response.url().scheme() == "http";
    if !is_safe {
        let host = answer::authority(&next);
        return Err(Problem::useless(format!("it redirects from https to {}://{host}", next.scheme())));
    }
    Ok(Some(next))
}
