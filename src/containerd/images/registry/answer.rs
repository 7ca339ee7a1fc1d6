//! What a host of a registry answers: a manifest, a blob on its way, or why not, and when it wants to be asked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::super::super::Problem;
use super::super::credentials::Credentials;
use super::super::http;
use super::super::manifest;

const ERROR_LIMIT_BYTES: u64 = 16 * 1024;
/// How many letters of a stranger's words are passed on.
const WORDS_LIMIT: usize = 500;

/// Why one host does not do.
#[derive(Debug)]
pub(super) struct Failure {
    pub problem: Problem,
    /// How long it wants to be left alone.
    pub wants: Option<Duration>,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, wants: None }
    }
}

/// A manifest or index as it came: its bytes are what its digest stands for.
pub(in super::super) struct Fetched {
    pub media_type: String,
    pub bytes: Vec<u8>,
    /// The host that it came from, with its port.
    pub origin: String,
}

/// A blob on its way.
pub(in super::super) struct Body {
    pub(super) response: Response,
    /// What a registry that can't begin in the middle sends again.
    pub(super) skip_bytes: u64,
    pub(super) origin: String,
    pub(super) is_failing: Arc<AtomicBool>,
}

impl Body {
    /// The host that it comes from, with its port.
    pub(in super::super) fn origin(&self) -> &str {
        &self.origin
    }

    /// Appends what comes next; false at the end.
    ///
    /// # Errors
    /// The connection broke, or nothing came for long.
    pub(in super::super) async fn append_to(&mut self, buffer: &mut Vec<u8>) -> Result<bool, Problem> {
        let part = self.response.chunk().await.map_err(|error| {
            self.is_failing.store(true, Ordering::Relaxed);
            http::failed(&error)
        })?;
        let Some(part) = part else { return Ok(false) };
        let skipped = usize::try_from(self.skip_bytes).map_or(part.len(), |skip| skip.min(part.len()));
        self.skip_bytes -= skipped as u64;
        buffer.extend_from_slice(&part[skipped..]);
        Ok(true)
    }
}

/// In the forms of the distribution specification, of token servers and of OAuth.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<Complaint>,
    details: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct Complaint {
    code: String,
    #[serde(default)]
    message: String,
}

pub(super) fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// What it means that a host answers with an error. Says to whom, too; one that repeats the password does not get it into a
/// log.
pub(super) async fn refusal(response: Response, host: &str, credentials: Option<&Credentials>) -> Failure {
    let status = response.status();
    let wants = retry_after(&response, Utc::now()).filter(|_| may_pass(status));
    let reason = explanation(response).await;
    let reason = credentials.map_or(reason.clone(), |known| known.password.blot_out(&reason));
    let is_denial = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let problem = match (is_denial, credentials) {
        (false, _) => Problem::Registry { reason: waiting(reason, wants), transient: may_pass(status) },
        (true, None) => Problem::Denied { reason: format!("{reason} (from {host}, without credentials)") },
        (true, Some(known)) => {
            let whom = match known.identity_token() {
                Some(_) => "with the identity token given".to_owned(),
                None => format!("to user {:?} with the password given", known.username),
            };
            Problem::Denied { reason: format!("{reason} (from {host}, {whom})") }
        }
    };
    Failure { problem, wants }
}

fn waiting(reason: String, wants: Option<Duration>) -> String {
    match wants {
        Some(wants) => format!("{reason}, to be asked again in {}", humantime::format_duration(wants)),
        None => reason,
    }
}

/// In seconds or as a date.
fn retry_after(response: &Response, now: DateTime<Utc>) -> Option<Duration> {
    let said = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = said.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(said).ok()?;
    Some(Duration::from_secs((date.to_utc() - now).num_seconds().max(0).unsigned_abs()))
}

/// The status, with the registry's own words if they are in a form that is known.
pub(super) async fn explanation(response: Response) -> String {
    let status = response.status();
    let bytes = read(response, "the refusal", ERROR_LIMIT_BYTES).await.unwrap_or_default();
    let Ok(Refusal { errors, details, error, error_description }) = serde_json::from_slice(&bytes) else {
        return status.to_string();
    };
    let complaints = errors.iter().map(|complaint| format!("{}: {}", complaint.code, complaint.message));
    let words: Vec<_> = complaints.chain(details).chain(error).chain(error_description).collect();
    if words.is_empty() {
        return status.to_string();
    }
    let words = words.join("; ").replace(char::is_control, " ");
    format!("{status}: {}", words.chars().take(WORDS_LIMIT).collect::<String>())
}

pub(super) async fn read(mut response: Response, what: &str, limit_bytes: u64) -> Result<Vec<u8>, Problem> {
    manifest::check_size(what, response.content_length().unwrap_or(0), limit_bytes)?;
    let mut bytes = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| http::failed(&error))? {
        manifest::check_size(what, (bytes.len() + part.len()) as u64, limit_bytes)?;
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// What an answer says it is, without its parameters.
pub(super) fn media_type(response: &Response) -> String {
    let said = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    said.and_then(|value| value.split(';').next()).unwrap_or_default().trim().to_owned()
}

/// A host with its port, if it has one of its own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn header(text: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(text).map_err(|_| Problem::useless("it wants a header that can't be sent"))
}
