//! Credentials for registries, and where the operator's come from: the plugin's own words, a file in the form of docker's
//! `config.json`, programs that docker calls credential helpers. They are looked for when an image is pulled, so that a
//! file or a token may change meanwhile.
//!
//! Source of the facts: docker `cli/config/configfile`, docker-credential-helpers' README.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::super::Problem;
use super::credentials::Credentials;
use super::helper;
use crate::secret::Secret;

/// Where the credentials of one pull come from.
#[derive(Debug, Clone, Default)]
pub(super) struct Purse {
    /// The job's, with the registry that they are for. They count before the operator's.
    pub own: Option<(String, Credentials)>,
    pub keyring: Option<Arc<Keyring>>,
}

impl Purse {
    /// Those for a host, and for no other: a mirror's are not the registry's.
    ///
    /// # Errors
    /// As [`Keyring::credentials`].
    pub(super) async fn credentials(&self, host: &str) -> Result<Option<Credentials>, Problem> {
        let host = common_name(host);
        match (&self.own, &self.keyring) {
            (Some((registry, credentials)), _) if registry == host => Ok(Some(credentials.clone())),
            (_, Some(keyring)) => keyring.credentials(host).await,
            (_, None) => Ok(None),
        }
    }
}

/// Where credentials are looked for, in this order.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    /// With the registry that they are for.
    pub inline: Option<(String, Credentials)>,
    pub config: Option<PathBuf>,
    pub helper: Option<String>,
}

impl Keyring {
    /// # Errors
    /// A source that can't be asked is never passed over. The text names it, and no secret.
    pub(super) async fn credentials(&self, host: &str) -> Result<Option<Credentials>, Problem> {
        let Self { inline, config, helper } = self;
        if let Some((_, credentials)) = inline.as_ref().filter(|(server, _)| is_server(server, host)) {
            return Ok(Some(credentials.clone()));
        }
        if let Some(path) = config
            && let Some(credentials) = from_file(path, host).await?
        {
            return Ok(Some(credentials));
        }
        match helper {
            Some(name) => helper::ask(name, host).await,
            None => Ok(None),
        }
    }
}

/// Whether an address, as people and docker write it, is that of a registry: with or without a scheme and a path, and the
/// hub by any of its names.
pub(crate) fn is_server(address: &str, host: &str) -> bool {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let name = address.split('/').next().unwrap_or_default();
    common_name(name).eq_ignore_ascii_case(host)
}

/// The hub goes by several names.
fn common_name(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        host => host,
    }
}

/// The part of docker's file that is about credentials.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    /// `username:password` in base64.
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

/// What a file says of a registry.
#[derive(Debug, PartialEq)]
enum Said {
    Nothing,
    Credentials(Credentials),
    AskHelper(String),
}

async fn from_file(path: &Path, host: &str) -> Result<Option<Credentials>, Problem> {
    let unusable = |reason: String| Problem::Credentials {
        reason: format!("the file {} (auth.config) {reason}", path.display()),
        transient: false,
    };
    let bytes = tokio::fs::read(path).await.map_err(|error| unusable(format!("can't be read: {error}")))?;
    match said_of(&bytes, host).map_err(|reason| unusable(reason.to_owned()))? {
        Said::Nothing => Ok(None),
        Said::Credentials(credentials) => Ok(Some(credentials)),
        Said::AskHelper(name) => {
            // The hub's name to whatever docker itself has stored.
            let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
            helper::ask(&name, server).await
        }
    }
}

/// A registry's own helper, else what the file has itself, else the store for all.
fn said_of(file: &[u8], host: &str) -> Result<Said, &'static str> {
    // The parser's own words may quote what it could not read.
    let File { auths, cred_helpers, creds_store } =
        serde_json::from_slice(file).map_err(|_| "is not in the form of docker's config.json")?;
    let helper = cred_helpers.into_iter().find(|(server, _)| is_server(server, host));
    if let Some((_, name)) = helper {
        return Ok(Said::AskHelper(name));
    }
    let entries = auths.into_iter().filter(|(server, _)| is_server(server, host));
    for (_, entry) in entries {
        if let Some(credentials) = entry.credentials()? {
            return Ok(Said::Credentials(credentials));
        }
    }
    Ok(creds_store.filter(|name| !name.is_empty()).map_or(Said::Nothing, Said::AskHelper))
}

impl Entry {
    fn credentials(self) -> Result<Option<Credentials>, &'static str> {
        let Self { auth, username, password, identitytoken } = self;
        let given = |secret: &Secret| !secret.reveal().is_empty();
        if let Some(token) = identitytoken.filter(given) {
            return Ok(Some(Credentials::of_token(token)));
        }
        if let Some(auth) = auth.filter(given) {
            let decoded =
                BASE64_STANDARD.decode(auth.reveal()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let text = decoded.ok_or("has an auth that is not base64")?;
            let (username, password) =
                text.split_once(':').ok_or("has an auth that is not of a user and a password")?;
            let password = Secret::new(password.trim_end_matches('\0').to_owned());
            return Ok(Some(Credentials { username: username.to_owned(), password }));
        }
        let pair = username.filter(|name| !name.is_empty()).zip(password.filter(given));
        Ok(pair.map(|(username, password)| Credentials { username, password }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(file: &serde_json::Value, host: &str) -> Result<Said, &'static str> {
        said_of(file.to_string().as_bytes(), host)
    }

    fn credentials(username: &str, password: &str) -> Credentials {
        Credentials { username: username.to_owned(), password: Secret::new(password.to_owned()) }
    }

    #[test]
    fn a_server_is_written_in_many_ways() {
        for (address, host) in [
            ("ghcr.io", "ghcr.io"),
            ("https://ghcr.io/", "ghcr.io"),
            ("http://127.0.0.1:5000/v2/", "127.0.0.1:5000"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
        ] {
            assert!(is_server(address, host), "{address}");
        }
        for (address, host) in [
            ("ghcr.io.evil.example", "ghcr.io"),
            ("ghcr.io", "ghcr.io:443"),
            ("", "ghcr.io"),
            ("evil.example/ghcr.io", "ghcr.io"),
        ] {
            assert!(!is_server(address, host), "{address}");
        }
    }

    #[test]
    fn a_file_says_what_docker_would_do() {
        let file = json!({
            "auths": {
                "https://index.docker.io/v1/": {"auth": BASE64_STANDARD.encode("me:hunter:2")},
                "ghcr.io": {"username": "you", "password": "hunter3"},
                "acr.example": {"auth": BASE64_STANDARD.encode("0:"), "identitytoken": "hunter4"},
                "store.example": {},
            },
            "credHelpers": {"ecr.example": "ecr-login"},
            "credsStore": "secretservice",
            "HttpHeaders": {"X": "y"},
        });
        assert_eq!(said(&file, "docker.io"), Ok(Said::Credentials(credentials("me", "hunter:2"))));
        assert_eq!(said(&file, "ghcr.io"), Ok(Said::Credentials(credentials("you", "hunter3"))));
        assert_eq!(said(&file, "acr.example"), Ok(Said::Credentials(credentials("<token>", "hunter4"))));
        assert_eq!(said(&file, "ecr.example"), Ok(Said::AskHelper("ecr-login".to_owned())));
        assert_eq!(said(&file, "store.example"), Ok(Said::AskHelper("secretservice".to_owned())));
        assert_eq!(said(&json!({"auths": {"ghcr.io": {}}}), "ghcr.io"), Ok(Said::Nothing));
    }

    #[tokio::test]
    async fn a_file_that_is_of_no_use_is_an_error_without_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        for content in [
            "hunter2".to_owned(),
            json!({"auths": "hunter2"}).to_string(),
            json!({"auths": {"ghcr.io": {"auth": "hunter2!"}}}).to_string(),
        ] {
            std::fs::write(&path, content).unwrap();
            let keyring = Keyring { config: Some(path.clone()), ..Keyring::default() };
            let error = keyring.credentials("ghcr.io").await.unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && !error.contains("hunter2"), "{error}");
        }
        let keyring = Keyring { config: Some("/no/such/file".into()), ..Keyring::default() };
        assert!(keyring.credentials("ghcr.io").await.unwrap_err().to_string().contains("/no/such/file"));
    }

    #[tokio::test]
    async fn the_operators_own_credentials_go_to_their_registry_only() {
        let inline = Some(("https://ghcr.io".to_owned(), credentials("me", "hunter2")));
        let keyring = Keyring { inline, ..Keyring::default() };
        assert_eq!(keyring.credentials("ghcr.io").await, Ok(Some(credentials("me", "hunter2"))));
        assert_eq!(keyring.credentials("evil.example").await, Ok(None));
    }

    #[tokio::test]
    async fn a_jobs_own_count_first_and_are_its_registrys_only() {
        let inline = Some(("mirror.example".to_owned(), credentials("you", "hunter3")));
        let keyring = Keyring { inline, ..Keyring::default() };
        let own = Some(("docker.io".to_owned(), credentials("me", "hunter2")));
        let purse = Purse { own, keyring: Some(Arc::new(keyring)) };
        for (host, user) in [
            ("docker.io", Some("me")),
            ("registry-1.docker.io", Some("me")),
            ("mirror.example", Some("you")),
            ("mirror.example:5000", None),
        ] {
            let found = purse.credentials(host).await.unwrap();
            assert_eq!(found.as_ref().map(|found| found.username.as_str()), user, "{host}");
        }
        assert_eq!(Purse::default().credentials("docker.io").await, Ok(None));
    }
}
