//! Answers a registry's authentication challenge: with a password, or with a token fetched from a token server.
//!
//! Source of the facts: distribution `docs/content/spec/auth/{token,oauth}.md`.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::credential_store::Login;
use super::credentials::Credentials;
use super::hosts::is_loopback;
use super::http;
use super::response::{self, HostFailure, read};
use super::transport::{HostTransport, REDIRECTS};
use crate::image::ImageError;
use crate::secret::Secret;

const TOKEN_LIMIT_BYTES: u64 = 256 * 1024;
const CLIENT: &str = "containerd-driver";
const FORM: &str = "application/x-www-form-urlencoded";

/// The authentication of one request to one host.
pub(super) struct Authenticator<'e> {
    pub transport: &'e HostTransport,
    pub repository: &'e str,
    pub login: Option<&'e Login>,
    /// Maximum time without a byte in the middle of an answer.
    pub idle: Duration,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Authenticator<'_> {
    /// Returns the authorization header that answers the challenge; `None` where the scheme is unknown or there are no
    /// credentials for it.
    ///
    /// # Errors
    /// The token server's, or a denial where only an identity token is given and a password is wanted.
    pub(super) async fn answer_challenge(
        &self,
        response: &Response,
    ) -> Result<Option<HeaderValue>, ImageError> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = challenges.iter().filter_map(|value| value.to_str().ok()).collect();
        if let Some(challenge) = challenges.iter().find_map(|value| challenge::bearer(value)) {
            return self.token(&challenge).await.map(Some);
        }
        match self.credentials() {
            Some(known) if challenges.iter().any(|value| challenge::is_basic(value)) => {
                if known.identity_token().is_some() {
                    let why = "it needs a password, and there is an identity token only";
                    let reason = format!("{why} (from {})", self.transport.name());
                    return Err(ImageError::Denied { reason, own: self.is_from_job() });
                }
                basic(known).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn credentials(&self) -> Option<&Credentials> {
        self.login.map(|login| &login.credentials)
    }

    fn is_from_job(&self) -> bool {
        self.login.is_some_and(|login| login.is_from_job)
    }

    async fn token(&self, challenge: &Challenge) -> Result<HeaderValue, ImageError> {
        let realm = self.realm(challenge)?;
        let server = response::authority(&realm);
        let response = match self.credentials().and_then(Credentials::identity_token) {
            Some(identity) => self.exchange(realm, challenge, identity).await?,
            None => self.ask(realm, challenge).await?,
        };
        if !response.status().is_success() {
            return Err(self.refused(response, &server).await);
        }
        let bytes = read(response, "the token", TOKEN_LIMIT_BYTES, self.idle).await?;
        let no_token =
            || ImageError::unusable(format!("{server} answered a request for a token without one"));
        let Answer { token, access_token } = serde_json::from_slice(&bytes).map_err(|_| no_token())?;
        let token = token.or(access_token).filter(|token| !token.is_empty()).ok_or_else(no_token)?;
        secret_header(&format!("Bearer {token}"))
    }

    /// Requests a token with the password, or anonymously. A password follows a redirect to no other host.
    async fn ask(&self, mut realm: Url, challenge: &Challenge) -> Result<Response, ImageError> {
        for scope in self.scope(challenge).split_whitespace() {
            realm.query_pairs_mut().append_pair("scope", scope);
        }
        if let Some(service) = &challenge.service {
            realm.query_pairs_mut().append_pair("service", service);
        }
        let mut url = realm.clone();
        for _ in 0..=REDIRECTS {
            let mut request = self.transport.request_to(Method::GET, url.clone()).await?;
            if let Some(Credentials { username, password }) = self.credentials()
                && url.origin() == realm.origin()
            {
                request = request.basic_auth(username, Some(password.reveal()));
            }
            let response = sent(request, &url).await?;
            let here = response::authority(&url);
            match response::redirected(&response).map_err(|error| about(&here, error))? {
                Some(next) if self.is_fit(&next) => url = next,
                Some(next) => {
                    let there = format!("{}://{}", next.scheme(), response::authority(&next));
                    return Err(about(&here, ImageError::unusable(format!("it redirects to {there}"))));
                }
                None => return Ok(response),
            }
        }
        Err(about(&response::authority(&realm), ImageError::unusable("it redirects too often")))
    }

    /// Exchanges an identity token for an access token. It follows no redirect.
    async fn exchange(
        &self,
        realm: Url,
        challenge: &Challenge,
        identity: &Secret,
    ) -> Result<Response, ImageError> {
        let scope = self.scope(challenge);
        let pairs = [
            ("grant_type", "refresh_token"),
            ("service", challenge.service.as_deref().unwrap_or_default()),
            ("client_id", CLIENT),
            ("scope", &scope),
            ("refresh_token", identity.reveal()),
        ];
        // The query of a URL is encoded like a form.
        let form = Url::parse_with_params("form:", pairs)
            .ok()
            .and_then(|form| form.query().map(str::to_owned))
            .ok_or_else(|| ImageError::unusable("a request for a token can't be encoded"))?;
        let request = self.transport.request_to(Method::POST, realm.clone()).await?;
        sent(request.header(CONTENT_TYPE, FORM).body(form), &realm).await
    }

    fn scope(&self, challenge: &Challenge) -> String {
        let own = || format!("repository:{}:pull", self.repository);
        challenge.scope.clone().unwrap_or_else(own)
    }

    fn realm(&self, challenge: &Challenge) -> Result<Url, ImageError> {
        let unfit = || ImageError::unusable(format!("its token server {:?} can't be used", challenge.realm));
        Url::parse(&challenge.realm).ok().filter(|realm| self.is_fit(realm)).ok_or_else(unfit)
    }

    /// Returns whether a token may be fetched from this URL, named by the registry's challenge or by a redirect. A
    /// challenge must not bring a password where it could be read on the way, nor from another host to a service of
    /// this one's loopback. Nor may it have a token fetched by plain http from any host but the registry itself, and
    /// shown to it: that could be the token of a service that only this host can reach.
    fn is_fit(&self, url: &Url) -> bool {
        let base = self.transport.base();
        let (Some(there), Some(here)) = (url.host_str(), base.host_str()) else { return false };
        let is_as_plain =
            base.scheme() == "http" && (there == here || is_loopback(there) && is_loopback(here));
        let is_nobodys = self.login.is_none() && there == here;
        match url.scheme() {
            "https" => true,
            "http" => is_as_plain || is_nobodys,
            _ => false,
        }
    }

    async fn refused(&self, response: Response, server: &str) -> ImageError {
        let is_grant_refused = response.status() == StatusCode::BAD_REQUEST
            && self.credentials().is_some_and(|known| known.identity_token().is_some());
        let HostFailure { error, .. } = response::refusal(response, server, self.login, self.idle).await;
        match error {
            // OAuth's form of saying that a token is not accepted.
            ImageError::Registry { reason, .. } if is_grant_refused => {
                let reason = format!("{reason} (from {server}, with the identity token given)");
                ImageError::Denied { reason, own: self.is_from_job() }
            }
            error => about(server, error),
        }
    }
}

async fn sent(request: RequestBuilder, url: &Url) -> Result<Response, ImageError> {
    request.send().await.map_err(|error| about(&response::authority(url), http::failed(&error)))
}

fn about(server: &str, error: ImageError) -> ImageError {
    match error {
        ImageError::Registry { reason, retry } => {
            ImageError::Registry { reason: format!("token server {server}: {reason}"), retry }
        }
        error => error,
    }
}

fn basic(Credentials { username, password }: &Credentials) -> Result<HeaderValue, ImageError> {
    let pair = BASE64_STANDARD.encode(format!("{username}:{}", password.reveal()));
    secret_header(&format!("Basic {pair}"))
}

fn secret_header(text: &str) -> Result<HeaderValue, ImageError> {
    let mut value = response::header(text)?;
    value.set_sensitive(true);
    Ok(value)
}
