//! The reading half of the distribution API: manifests, blobs, and what some registries want first, a password or a token.
//! Knows nothing of containerd.
//!
//! Source of the facts: OCI distribution-spec v1.1; distribution `docs/spec/auth/token.md`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use oci_spec::image::{Descriptor, Digest, MediaType};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::super::Problem;
use super::challenge::{self, Challenge};
use super::http::{self, Http};
use super::keyring::Credentials;
use super::manifest::{self, MANIFEST_LIMIT_BYTES};
use super::reference::{Reference, checked_digest};

/// In which a registry says a manifest's digest.
const DIGEST: &str = "docker-content-digest";
const TOKEN_LIMIT_BYTES: u64 = 256 * 1024;
const ERROR_LIMIT_BYTES: u64 = 16 * 1024;
/// Between the tries of what may pass: a broken connection, a registry that is too busy.
pub(super) const RETRIES: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(1500)];

/// One repository of one registry, for as long as one pull.
pub(super) struct Registry<'a> {
    http: &'a Http,
    host: String,
    repository: String,
    credentials: Option<Credentials>,
    /// What it has asked to be told with each request.
    authorization: Mutex<Option<HeaderValue>>,
}

/// A manifest or index as it came: its bytes are what its digest stands for.
pub(super) struct Fetched {
    pub media_type: String,
    pub bytes: Vec<u8>,
}

impl<'a> Registry<'a> {
    pub(super) fn new(http: &'a Http, reference: &Reference, credentials: Option<Credentials>) -> Self {
        // The one name whose registry lives elsewhere.
        let host = match reference.host() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let repository = reference.repository().to_owned();
        Self { http, host: host.to_owned(), repository, credentials, authorization: Mutex::default() }
    }

    /// What a tag or digest stands for now, without its content, which registries count against a limit.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub(super) async fn resolve(&self, version: &str) -> Result<Descriptor, Problem> {
        if let Some(resolved) = persist(|| self.try_resolve(version)).await? {
            return Ok(resolved);
        }
        // It can't say without the content, or not why it refuses.
        let Fetched { media_type, bytes } = self.manifest(version).await?;
        descriptor(&media_type, bytes.len() as u64, &manifest::digest_of(&bytes))
            .ok_or_else(|| Problem::corrupt("an impossible digest"))
    }

    async fn try_resolve(&self, version: &str) -> Result<Option<Descriptor>, Problem> {
        let response = self.request(Method::HEAD, &manifests(version), accepting()?).await?;
        let status = response.status();
        if may_pass(status) && status != StatusCode::NOT_IMPLEMENTED {
            self.refused_unless_success(response).await?;
            return Ok(None);
        }
        let word = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let said = word(CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok()).zip(word(DIGEST));
        let said = said.filter(|_| status.is_success());
        Ok(said.and_then(|(size_bytes, digest)| descriptor(&media_type(&response), size_bytes, digest)))
    }

    /// The manifest or index of a tag or digest.
    ///
    /// # Errors
    /// By what they mean for the image; the digest is the caller's to check.
    pub(super) async fn manifest(&self, version: &str) -> Result<Fetched, Problem> {
        persist(|| self.try_manifest(version)).await
    }

    async fn try_manifest(&self, version: &str) -> Result<Fetched, Problem> {
        let response = self.request(Method::GET, &manifests(version), accepting()?).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(Problem::NotInRegistry { reason: explanation(response).await });
        }
        let response = self.refused_unless_success(response).await?;
        Ok(Fetched {
            media_type: media_type(&response),
            bytes: read(response, "the manifest", MANIFEST_LIMIT_BYTES).await?,
        })
    }

    /// A blob that fits into memory.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub(super) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, Problem> {
        persist(|| self.try_small_blob(blob)).await
    }

    async fn try_small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, Problem> {
        let body = self.blob(blob, 0).await?;
        read(body.response, "the blob", blob.size()).await
    }

    /// The blob from an offset on; the bytes are the caller's to check.
    ///
    /// # Errors
    /// One whose length is known to be wrong is corrupt before it is read.
    pub(super) async fn blob(&self, blob: &Descriptor, offset_bytes: u64) -> Result<Body, Problem> {
        let mut headers = HeaderMap::new();
        if offset_bytes > 0 {
            headers.insert(RANGE, header(&format!("bytes={offset_bytes}-"))?);
        }
        let response = self.request(Method::GET, &format!("blobs/{}", blob.digest()), headers).await?;
        let response = self.refused_unless_success(response).await?;
        let is_partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let expected_bytes = if is_partial { blob.size().saturating_sub(offset_bytes) } else { blob.size() };
        if let Some(length_bytes) = response.content_length()
            && length_bytes != expected_bytes
        {
            let size_bytes = blob.size();
            return Err(Problem::corrupt(format!(
                "the registry has {length_bytes} bytes where the manifest promises {size_bytes}"
            )));
        }
        Ok(Body { response, skip_bytes: if is_partial { 0 } else { offset_bytes } })
    }

    /// Any answer; a request for a password or a token is met on the way.
    async fn request(&self, method: Method, path: &str, headers: HeaderMap) -> Result<Response, Problem> {
        let response = self.send(method.clone(), path, headers.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = challenges.iter().filter_map(|value| value.to_str().ok()).collect();
        let authorization = match challenges.iter().find_map(|value| challenge::bearer(value)) {
            Some(challenge) => self.fetch_token(&challenge).await?,
            None => match &self.credentials {
                Some(credentials) if challenges.iter().any(|value| challenge::is_basic(value)) => {
                    basic(credentials)?
                }
                _ => return Ok(response),
            },
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        self.send(method, path, headers).await
    }

    async fn send(&self, method: Method, path: &str, headers: HeaderMap) -> Result<Response, Problem> {
        let (client, scheme) = self.http.for_host(&self.host)?;
        let url = format!("{scheme}://{}/v2/{}/{path}", self.host, self.repository);
        let mut request = client.request(method, url).headers(headers);
        if let Some(authorization) = self.known_authorization() {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|error| http::failed(&error))
    }

    fn known_authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn fetch_token(&self, challenge: &Challenge) -> Result<HeaderValue, Problem> {
        let useless = || Problem::useless(format!("it sends for a token to {:?}", challenge.realm));
        let mut url = Url::parse(&challenge.realm).map_err(|_| useless())?;
        let (client, scheme) = self.http.for_host(url.host_str().ok_or_else(useless)?)?;
        let is_remote = self.http.for_host(&self.host)?.1 == "https";
        // A remote registry's word brings no password to a service of this host's.
        if url.scheme() != scheme && url.scheme() != "https" || is_remote && url.scheme() != "https" {
            return Err(useless());
        }
        let own_scope = format!("repository:{}:pull", self.repository);
        let scope = challenge.scope.as_deref().unwrap_or(&own_scope);
        url.query_pairs_mut().append_pair("scope", scope);
        if let Some(service) = &challenge.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = client.get(url);
        if let Some(Credentials { username, password }) = &self.credentials {
            request = request.basic_auth(username, Some(password.reveal()));
        }
        let response = request.send().await.map_err(|error| http::failed(&error))?;
        let response = self.refused_unless_success(response).await?;
        let bytes = read(response, "the token", TOKEN_LIMIT_BYTES).await?;
        let no_token = || Problem::useless("the answer to a request for a token has none");
        let Answer { token, access_token } = serde_json::from_slice(&bytes).map_err(|_| no_token())?;
        let token = token.or(access_token).filter(|token| !token.is_empty()).ok_or_else(no_token)?;
        authorization(&format!("Bearer {token}"))
    }

    async fn refused_unless_success(&self, response: Response) -> Result<Response, Problem> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let reason = explanation(response).await;
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Problem::Denied { reason: self.denial(&reason) }
            }
            status => Problem::Registry { reason, transient: may_pass(status) },
        })
    }

    /// Says to whom, too; a registry that repeats the password does not get it into a log.
    fn denial(&self, reason: &str) -> String {
        match &self.credentials {
            Some(Credentials { username, password }) => {
                let reason = password.blot_out(reason);
                format!("{reason} (from {}, to user {username:?} with the password given)", self.host)
            }
            None => format!("{reason} (from {}, without credentials)", self.host),
        }
    }
}

fn basic(Credentials { username, password }: &Credentials) -> Result<HeaderValue, Problem> {
    let pair = BASE64_STANDARD.encode(format!("{username}:{}", password.reveal()));
    authorization(&format!("Basic {pair}"))
}

fn authorization(text: &str) -> Result<HeaderValue, Problem> {
    let mut value = header(text)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A blob on its way.
pub(super) struct Body {
    response: Response,
    /// What a registry that can't begin in the middle sends again.
    skip_bytes: u64,
}

impl Body {
    /// Appends what comes next; false at the end.
    ///
    /// # Errors
    /// The connection broke, or nothing came for long.
    pub(super) async fn append_to(&mut self, buffer: &mut Vec<u8>) -> Result<bool, Problem> {
        let Some(part) = self.response.chunk().await.map_err(|error| http::failed(&error))? else {
            return Ok(false);
        };
        let skipped = usize::try_from(self.skip_bytes).map_or(part.len(), |skip| skip.min(part.len()));
        self.skip_bytes -= skipped as u64;
        buffer.extend_from_slice(&part[skipped..]);
        Ok(true)
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    code: String,
    #[serde(default)]
    message: String,
}

fn manifests(version: &str) -> String {
    format!("manifests/{version}")
}

fn accepting() -> Result<HeaderMap, Problem> {
    Ok(HeaderMap::from_iter([(ACCEPT, header(&manifest::accepted_types())?)]))
}

/// What an answer says it is, without its parameters.
fn media_type(response: &Response) -> String {
    let said = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    said.and_then(|value| value.split(';').next()).unwrap_or_default().trim().to_owned()
}

/// None for a digest of another kind.
fn descriptor(media_type: &str, size_bytes: u64, digest: &str) -> Option<Descriptor> {
    let digest: Digest = checked_digest(digest).ok()?.parse().ok()?;
    Some(Descriptor::new(MediaType::from(media_type), size_bytes, digest))
}

/// Tries again what may pass.
async fn persist<T, F>(attempt: impl Fn() -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    for pause in RETRIES {
        match attempt().await {
            Err(problem) if problem.is_transient() => tokio::time::sleep(pause).await,
            outcome => return outcome,
        }
    }
    attempt().await
}

fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// The status, with the registry's own words if they are in the form that the specification gives.
async fn explanation(response: Response) -> String {
    let status = response.status();
    let bytes = read(response, "the refusal", ERROR_LIMIT_BYTES).await.unwrap_or_default();
    match serde_json::from_slice::<Refusal>(&bytes) {
        Ok(Refusal { errors }) if !errors.is_empty() => {
            let complaints =
                errors.iter().map(|complaint| format!("{}: {}", complaint.code, complaint.message));
            let words = complaints.collect::<Vec<_>>().join("; ");
            format!("{status}: {}", words.replace(char::is_control, " "))
        }
        _ => status.to_string(),
    }
}

async fn read(mut response: Response, what: &str, limit_bytes: u64) -> Result<Vec<u8>, Problem> {
    manifest::check_size(what, response.content_length().unwrap_or(0), limit_bytes)?;
    let mut bytes = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| http::failed(&error))? {
        manifest::check_size(what, (bytes.len() + part.len()) as u64, limit_bytes)?;
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

fn header(text: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(text).map_err(|_| Problem::useless("it wants a header that can't be sent"))
}

#[cfg(test)]
mod tests;
