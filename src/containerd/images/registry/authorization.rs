//! What a registry that asks who is there is told: a password, or a token that has to be had elsewhere first.
//!
//! Source of the facts: distribution `docs/content/spec/auth/{token,oauth}.md`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::super::super::Problem;
use super::super::challenge::{self, Challenge};
use super::super::credentials::Credentials;
use super::super::hosts::is_loopback;
use super::super::http;
use super::answer::{self, Failure, read};
use super::line::Line;
use crate::secret::Secret;

const TOKEN_LIMIT_BYTES: u64 = 256 * 1024;
const CLIENT: &str = "containerd-driver";
const FORM: &str = "application/x-www-form-urlencoded";

/// One request for it, of one host.
pub(super) struct Authorizing<'e> {
    pub line: &'e Line,
    pub repository: &'e str,
    pub credentials: Option<&'e Credentials>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Authorizing<'_> {
    /// What the header that asks for it is met with. None is to be had where it asks for what is not known or not given.
    ///
    /// # Errors
    /// The token server's.
    pub(super) async fn meet(&self, response: &Response) -> Result<Option<HeaderValue>, Problem> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = challenges.iter().filter_map(|value| value.to_str().ok()).collect();
        if let Some(challenge) = challenges.iter().find_map(|value| challenge::bearer(value)) {
            return self.token(&challenge).await.map(Some);
        }
        match self.credentials {
            Some(known) if challenges.iter().any(|value| challenge::is_basic(value)) => {
                if known.identity_token().is_some() {
                    let why = "it wants a password, and an identity token is all there is";
                    return Err(Problem::Denied { reason: format!("{why} (from {})", self.line.name()) });
                }
                basic(known).map(Some)
            }
            _ => Ok(None),
        }
    }

    async fn token(&self, challenge: &Challenge) -> Result<HeaderValue, Problem> {
        let realm = self.realm(challenge)?;
        let server = answer::authority(&realm);
        let request = match self.credentials.and_then(Credentials::identity_token) {
            Some(identity) => self.exchange(realm, challenge, identity)?,
            None => self.ask(realm, challenge)?,
        };
        let response = request.send().await.map_err(|error| about(&server, http::failed(&error)))?;
        if !response.status().is_success() {
            return Err(self.refused(response, &server).await);
        }
        let bytes = read(response, "the token", TOKEN_LIMIT_BYTES).await?;
        let no_token =
            || Problem::useless(format!("the answer of {server} to a request for a token has none"));
        let Answer { token, access_token } = serde_json::from_slice(&bytes).map_err(|_| no_token())?;
        let token = token.or(access_token).filter(|token| !token.is_empty()).ok_or_else(no_token)?;
        secret_header(&format!("Bearer {token}"))
    }

    /// By a password, or as nobody.
    fn ask(&self, mut realm: Url, challenge: &Challenge) -> Result<RequestBuilder, Problem> {
        for scope in self.scope(challenge).split_whitespace() {
            realm.query_pairs_mut().append_pair("scope", scope);
        }
        if let Some(service) = &challenge.service {
            realm.query_pairs_mut().append_pair("service", service);
        }
        let request = self.line.request_to(Method::GET, realm)?;
        Ok(match self.credentials {
            Some(Credentials { username, password }) => request.basic_auth(username, Some(password.reveal())),
            None => request,
        })
    }

    fn exchange(
        &self,
        realm: Url,
        challenge: &Challenge,
        identity: &Secret,
    ) -> Result<RequestBuilder, Problem> {
        let scope = self.scope(challenge);
        let pairs = [
            ("grant_type", "refresh_token"),
            ("service", challenge.service.as_deref().unwrap_or_default()),
            ("client_id", CLIENT),
            ("scope", &scope),
            ("refresh_token", identity.reveal()),
        ];
        // The query of an address has the form of a form.
        let form = Url::parse_with_params("form:", pairs)
            .ok()
            .and_then(|form| form.query().map(str::to_owned))
            .ok_or_else(|| Problem::useless("a request for a token can't be put into words"))?;
        Ok(self.line.request_to(Method::POST, realm)?.header(CONTENT_TYPE, FORM).body(form))
    }

    fn scope(&self, challenge: &Challenge) -> String {
        let own = || format!("repository:{}:pull", self.repository);
        challenge.scope.clone().unwrap_or_else(own)
    }

    /// A registry's word brings no password where it could be read on the way, nor from elsewhere to a service of this
    /// host's.
    fn realm(&self, challenge: &Challenge) -> Result<Url, Problem> {
        let useless = || Problem::useless(format!("it sends for a token to {:?}", challenge.realm));
        let realm = Url::parse(&challenge.realm).map_err(|_| useless())?;
        let base = self.line.base();
        let (there, here) = (realm.host_str().ok_or_else(useless)?, base.host_str().unwrap_or_default());
        let is_as_plain =
            base.scheme() == "http" && (there == here || is_loopback(there) && is_loopback(here));
        match realm.scheme() {
            "https" => Ok(realm),
            "http" if is_as_plain => Ok(realm),
            _ => Err(useless()),
        }
    }

    async fn refused(&self, response: Response, server: &str) -> Problem {
        let is_grant_refused = response.status() == StatusCode::BAD_REQUEST
            && self.credentials.is_some_and(|known| known.identity_token().is_some());
        let Failure { problem, .. } = answer::refusal(response, server, self.credentials).await;
        match problem {
            // As OAuth says that a token is not taken.
            Problem::Registry { reason, .. } if is_grant_refused => {
                Problem::Denied { reason: format!("{reason} (from {server}, with the identity token given)") }
            }
            Problem::Denied { reason } => Problem::Denied { reason },
            problem => about(server, problem),
        }
    }
}

fn about(server: &str, problem: Problem) -> Problem {
    match problem {
        Problem::Registry { reason, transient } => {
            Problem::Registry { reason: format!("{server}, asked for a token: {reason}"), transient }
        }
        problem => problem,
    }
}

fn basic(Credentials { username, password }: &Credentials) -> Result<HeaderValue, Problem> {
    let pair = BASE64_STANDARD.encode(format!("{username}:{}", password.reveal()));
    secret_header(&format!("Basic {pair}"))
}

fn secret_header(text: &str) -> Result<HeaderValue, Problem> {
    let mut value = answer::header(text)?;
    value.set_sensitive(true);
    Ok(value)
}
