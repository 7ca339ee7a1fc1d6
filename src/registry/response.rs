//! Answers of a registry host: a manifest, a blob in transfer, or an error and when to retry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::credential_store::Login;
use super::http;
use crate::image::{ImageError, Retry, manifest};

/// Maximum size of an error response that is read.
const ERROR_LIMIT_BYTES: u64 = 16 * 1024;
/// Timeout where only the pull's own deadline and stall detection limit the wait.
const NO_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Maximum length, in characters, of a registry's error message that is passed on.
const WORDS_LIMIT: usize = 500;

/// A failed request to one host.
#[derive(Debug)]
pub(super) struct HostFailure {
    pub error: ImageError,
    /// Minimum wait before the next request, from the host's `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl From<ImageError> for HostFailure {
    fn from(error: ImageError) -> Self {
        Self { error, retry_after: None }
    }
}

/// A manifest or index, byte for byte as its digest was computed.
pub(crate) struct Fetched {
    pub media_type: String,
    pub bytes: Vec<u8>,
    /// The host that served it, with its port.
    pub origin: String,
}

/// A blob in transfer.
pub(crate) struct Body {
    pub(super) response: Response,
    /// Bytes still to be dropped at the beginning: they are here already, and a registry that can't resume a download
    /// sends them again.
    pub(super) skip_bytes: u64,
    pub(super) origin: String,
    pub(super) is_failing: Arc<AtomicBool>,
    /// Maximum time without a byte, once the first has come.
    pub(super) idle: Duration,
    pub(super) has_begun: bool,
    /// Bytes received, including those that are skipped.
    pub(super) came_bytes: u64,
}

impl Body {
    /// Returns the host that serves the blob, with its port.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns the number of bytes received, including those that are here already and are sent again.
    pub(crate) fn came_bytes(&self) -> u64 {
        self.came_bytes
    }

    /// Appends the next bytes to the buffer; false at the end of the blob.
    ///
    /// # Errors
    /// The connection broke, or nothing came for too long.
    pub(crate) async fn append_to(&mut self, buffer: &mut Vec<u8>) -> Result<bool, ImageError> {
        // A caching mirror that has to fetch the blob first may take its time before the first byte, for as long as the
        // pull may stall.
        let idle = if self.has_begun { self.idle } else { NO_LIMIT };
        let part = http::next_part(&mut self.response, idle).await;
        let part = part.inspect_err(|_| self.is_failing.store(true, Ordering::Relaxed))?;
        self.has_begun = true;
        let Some(part) = part else { return Ok(false) };
        let skipped = usize::try_from(self.skip_bytes).map_or(part.len(), |skip| skip.min(part.len()));
        self.skip_bytes -= skipped as u64;
        self.came_bytes += part.len() as u64;
        buffer.extend_from_slice(&part[skipped..]);
        Ok(true)
    }
}

/// The body of an error response, in the forms of the distribution specification, of token servers and of OAuth.
#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
    details: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    code: String,
    #[serde(default)]
    message: String,
}

/// Returns whether a request that failed with this status may succeed later, and is retried: 5xx, 408, and 429 (rate
/// limits).
pub(super) fn is_retryable(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// Maps an error response to a `HostFailure`: the status, the registry's message, the host and the user. A password
/// that the registry echoes is redacted.
pub(super) async fn refusal(
    response: Response,
    host: &str,
    login: Option<&Login>,
    idle: Duration,
) -> HostFailure {
    let status = response.status();
    let retry_after = retry_after(&response, SystemTime::now()).filter(|_| is_retryable(status));
    let reason = explanation(response, idle).await;
    let credentials = login.map(|login| &login.credentials);
    let reason = credentials.map_or(reason.clone(), |known| known.password.redact(&reason));
    let is_denial = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let error = match (is_denial, credentials) {
        (false, _) => {
            let retry = if is_retryable(status) { Retry::Soon } else { Retry::Later };
            ImageError::Registry { reason: waiting(reason, retry_after), retry }
        }
        (true, None) => {
            ImageError::Denied { reason: format!("{reason} (from {host}, without credentials)"), own: false }
        }
        (true, Some(credentials)) => {
            let whom = match credentials.identity_token() {
                Some(_) => "with the identity token given".to_owned(),
                None => format!("to user {:?} with the password given", credentials.username),
            };
            let own = login.is_some_and(|login| login.is_from_job);
            ImageError::Denied { reason: format!("{reason} (from {host}, {whom})"), own }
        }
    };
    HostFailure { error, retry_after }
}

fn waiting(reason: String, retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(retry_after) => format!("{reason}; retry in {}", humantime::format_duration(retry_after)),
        None => reason,
    }
}

/// Parses `Retry-After`, which is a number of seconds or a date.
fn retry_after(response: &Response, now: SystemTime) -> Option<Duration> {
    let header = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(header).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Returns the status, with the registry's own message if its form is known.
pub(super) async fn explanation(response: Response, idle: Duration) -> String {
    let status = response.status();
    let bytes = read(response, "the refusal", ERROR_LIMIT_BYTES, idle).await.unwrap_or_default();
    message(&bytes).map_or_else(|| status.to_string(), |message| format!("{status}: {message}"))
}

/// Returns the message in the body of an error response. `None` if the body has none, or another form.
fn message(body: &[u8]) -> Option<String> {
    let ErrorBody { errors, details, error, error_description } = serde_json::from_slice(body).ok()?;
    let complaints = errors.iter().map(|complaint| format!("{}: {}", complaint.code, complaint.message));
    let words: Vec<_> = complaints.chain(details).chain(error).chain(error_description).collect();
    let message = words.join("; ").replace(char::is_control, " ");
    (!words.is_empty()).then(|| message.chars().take(WORDS_LIMIT).collect())
}

/// Reads a whole body of at most `limit_bytes`, with at most `idle` between its parts.
pub(super) async fn read(
    mut response: Response,
    what: &str,
    limit_bytes: u64,
    idle: Duration,
) -> Result<Vec<u8>, ImageError> {
    manifest::check_size(what, response.content_length().unwrap_or(0), limit_bytes)?;
    let mut bytes = Vec::new();
    while let Some(part) = http::next_part(&mut response, idle).await? {
        manifest::check_size(what, (bytes.len() + part.len()) as u64, limit_bytes)?;
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// Returns the media type that a response declares, without parameters.
pub(super) fn media_type(response: &Response) -> String {
    let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    header.and_then(|value| value.split(';').next()).unwrap_or_default().trim().to_owned()
}

/// Returns the host of a URL, with its port unless that is the scheme's default.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn header(text: &str) -> Result<HeaderValue, ImageError> {
    HeaderValue::from_str(text).map_err(|_| ImageError::unusable("it asks for a header that can't be sent"))
}

/// Returns the target of a redirect, if the response is one. A redirect from https to plain http is an error.
pub(super) fn redirected(response: &Response) -> Result<Option<Url>, ImageError> {
    let sends = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(place) = response.headers().get(LOCATION).filter(|_| sends) else { return Ok(None) };
    let next = place.to_str().ok().and_then(|place| response.url().join(place).ok());
    let next = next.ok_or_else(|| ImageError::unusable("it redirects to an invalid address"))?;
    let is_safe = next.scheme() == "https" || next.scheme() == "http" && response.url().scheme() == "http";
    if !is_safe {
        let host = authority(&next);
        return Err(ImageError::unusable(format!("it redirects from https to {}://{host}", next.scheme())));
    }
    Ok(Some(next))
}

/// The kind of answer to a request for a blob from an offset on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The bytes from the offset on.
    Rest,
    /// The whole blob, or an error.
    Whole,
    /// Another range, or none: the blob has to be requested as a whole.
    Refused,
}

impl Part {
    /// Classifies an answer. A partial one has to name its range (RFC 9110, section 15.3.7); one that doesn't is not
    /// believed.
    pub(super) fn of(
        status: StatusCode,
        content_range: Option<&str>,
        offset_bytes: u64,
        size_bytes: u64,
    ) -> Self {
        let is_rest = || {
            let (range, total) = content_range?.trim().strip_prefix("bytes ")?.split_once('/')?;
            let (first, _) = range.trim().split_once('-')?;
            let total = total.trim();
            Some(first.parse() == Ok(offset_bytes) && (total == "*" || total.parse() == Ok(size_bytes)))
        };
        match status {
            StatusCode::PARTIAL_CONTENT if is_rest() == Some(true) => Self::Rest,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Self::Refused,
            _ => Self::Whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_answer_has_to_name_its_range() {
        let part = |status: u16, header| Part::of(StatusCode::from_u16(status).unwrap(), header, 4, 10);
        assert_eq!(part(206, Some("bytes 4-9/10")), Part::Rest);
        assert_eq!(part(206, Some("bytes 4-9/*")), Part::Rest);
        for header in
            [None, Some("bytes 0-9/10"), Some("bytes 4-9/12"), Some("bytes */10"), Some("4-9/10"), Some("")]
        {
            assert_eq!(part(206, header), Part::Refused, "{header:?}");
        }
        assert_eq!(part(416, Some("bytes */10")), Part::Refused);
        assert_eq!((part(200, None), part(503, None)), (Part::Whole, Part::Whole));
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    /// The header `Content-Range` and the body of a refusal.
    #[test]
    fn responses() {
        crate::fuzz::pairs("registry-response", |range, body| {
            let shown = message(body).unwrap_or_default();
            assert!(shown.chars().count() <= WORDS_LIMIT && !shown.contains(char::is_control), "{shown}");
            let range = String::from_utf8_lossy(range);
            if Part::of(StatusCode::PARTIAL_CONTENT, Some(&range), 4, 10) == Part::Rest {
                assert!(range.contains('4') && (range.contains("10") || range.contains('*')), "{range}");
                assert_eq!(
                    Part::of(StatusCode::PARTIAL_CONTENT, Some(&range), 5, 10),
                    Part::Refused,
                    "{range}"
                );
            }
        });
    }
}
