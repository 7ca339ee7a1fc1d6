//! Credentials for registries, and the sources of the operator's: the plugin's configuration, a file in the form of
//! docker's `config.json`, docker's credential helpers. They are looked up for each pull, so that a file or a token may
//! change meanwhile.
//!
//! Source of the facts: docker `cli/config/configfile`, docker-credential-helpers' README.

#![expect(
    clippy::disallowed_methods,
    reason = "opens the operator's files, which no job, image or task can shape"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::credential_helper;
use super::credentials::Credentials;
use crate::image::{ImageError, Retry};
use crate::secret::Secret;

/// The credentials of one pull: the job's `auth`, else the operator's credential store.
#[derive(Debug, Clone, Default)]
pub(crate) struct PullCredentials {
    /// The job's credentials, with the registry that they are for. They take precedence over the operator's.
    pub own: Option<(String, Credentials)>,
    pub credential_store: Option<Arc<CredentialStore>>,
}

/// Credentials, and whether they are the job's or the operator's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Login {
    pub credentials: Credentials,
    /// The job's own `auth`. A denial is permanent for it, while the operator's credentials may be others at the next
    /// try.
    pub is_from_job: bool,
}

impl PullCredentials {
    /// Returns the credentials for a repository of a host, and for no other host: a mirror's are not the registry's.
    ///
    /// # Errors
    /// As [`CredentialStore::credentials`].
    pub(super) async fn login(&self, host: &str, repository: &str) -> Result<Option<Login>, ImageError> {
        let host = common_name(host);
        match (&self.own, &self.credential_store) {
            (Some((registry, credentials)), _) if registry == host => {
                Ok(Some(Login { credentials: credentials.clone(), is_from_job: true }))
            }
            (_, Some(credential_store)) => {
                let found = credential_store.credentials(host, repository).await?;
                Ok(found.map(|credentials| Login { credentials, is_from_job: false }))
            }
            (_, None) => Ok(None),
        }
    }
}

/// The operator's credential store: its sources, in the order in which they are asked.
#[derive(Debug, Default)]
pub(crate) struct CredentialStore {
    /// Credentials in the plugin's configuration, with the registry that they are for.
    pub inline: Option<(String, Credentials)>,
    pub config: Option<PathBuf>,
    pub helper: Option<String>,
    /// Variables of the agent's environment that helpers get, besides PATH and HOME.
    pub helper_env: Vec<String>,
}

impl CredentialStore {
    /// Looks up the credentials for a repository.
    ///
    /// # Errors
    /// A source that can't be asked, which is never skipped. The text names it, and no secret.
    pub(super) async fn credentials(
        &self,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credentials>, ImageError> {
        let Self { inline, config, helper, helper_env } = self;
        if let Some((_, credentials)) = inline.as_ref().filter(|(server, _)| is_server(server, host)) {
            return Ok(Some(credentials.clone()));
        }
        if let Some(path) = config {
            match from_file(path, host, repository).await? {
                FileEntry::Nothing => {}
                FileEntry::Credentials(credentials) => return Ok(Some(credentials)),
                FileEntry::AskHelper { name, server } => {
                    if let Some(credentials) = credential_helper::ask(&name, &server, helper_env).await? {
                        return Ok(Some(credentials));
                    }
                }
            }
        }
        match helper {
            Some(name) => credential_helper::ask(name, host, helper_env).await,
            None => Ok(None),
        }
    }
}

/// Returns whether an address, as people and docker write it, is that of a registry: with or without a scheme and a
/// path, and Docker Hub by any of its names.
pub(crate) fn is_server(address: &str, host: &str) -> bool {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let name = address.split('/').next().unwrap_or_default();
    common_name(name).eq_ignore_ascii_case(host)
}

/// Maps the several names of Docker Hub to one.
fn common_name(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => HUB,
        host => host,
    }
}

/// The part of docker's `config.json` that is about credentials.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
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

/// The entry of a credentials file for a repository.
#[derive(Debug, PartialEq)]
enum FileEntry {
    Nothing,
    Credentials(Credentials),
    /// The helper program to ask, and the server name to ask it for.
    AskHelper {
        name: String,
        server: String,
    },
}

async fn from_file(path: &Path, host: &str, repository: &str) -> Result<FileEntry, ImageError> {
    let unusable = |reason: String| ImageError::Credentials {
        reason: format!("the file {} (auth.config) {reason}", path.display()),
        retry: Retry::Later,
    };
    let bytes = tokio::fs::read(path).await.map_err(|error| unusable(format!("can't be read: {error}")))?;
    entry_of(&bytes, host, repository).map_err(|reason| unusable(reason.to_owned()))
}

/// Selects the most specific entry for a repository: a helper's before one with credentials of its own, and last the
/// store for all registries.
fn entry_of(file: &[u8], host: &str, repository: &str) -> Result<FileEntry, &'static str> {
    // The parser's own message may quote a secret that it could not read.
    let File { auths, cred_helpers, creds_store } =
        serde_json::from_slice(file).map_err(|_| "is not in the form of docker's config.json")?;
    let fit = |key: &str| Specificity::of(key, host, repository);
    let helper = cred_helpers.into_iter().filter_map(|(key, name)| Some((fit(&key)?, key, name))).max();
    let mut entries: Vec<_> =
        auths.into_iter().filter_map(|(key, entry)| Some((fit(&key)?, entry))).collect();
    entries.sort_by_key(|(fit, _)| *fit);
    // Docker Hub's name in everything that docker itself has stored.
    let server = || (if host == HUB { HUB_KEY } else { host }).to_owned();
    for (fit, entry) in entries.into_iter().rev() {
        if helper.as_ref().is_some_and(|(helpers, ..)| helpers.path >= fit.path) {
            break;
        }
        if let Some(credentials) = entry.credentials()? {
            return Ok(FileEntry::Credentials(credentials));
        }
    }
    if let Some((fit, key, name)) = helper {
        return Ok(FileEntry::AskHelper { name, server: if fit.path > 0 { key } else { server() } });
    }
    let store = creds_store.filter(|name| !name.is_empty());
    Ok(store.map_or(FileEntry::Nothing, |name| FileEntry::AskHelper { name, server: server() }))
}

const HUB: &str = "docker.io";
/// Docker Hub's key in docker's own files. A browser login writes other keys with this one as a prefix, whose entries
/// are for docker alone.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The specificity of an entry's key for a repository; the entry with the largest is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Specificity {
    /// Number of components of the repository's path that the key names.
    path: usize,
    /// Set if the key is spelled as docker writes it.
    is_exact: bool,
}

impl Specificity {
    /// Returns `None` where the key is for other repositories. Docker's keys are hosts, or addresses of an API;
    /// podman's may have a part of the repository's path behind the host.
    fn of(key: &str, host: &str, repository: &str) -> Option<Self> {
        let is_exact = key == if host == HUB { HUB_KEY } else { host };
        if !is_server(key, host) {
            return None;
        }
        let is_address = key.contains("://");
        let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
        let path = rest.split_once('/').map_or("", |(_, path)| path).trim_end_matches('/');
        if path.is_empty() || is_address && matches!(path, "v1" | "v2") {
            return Some(Self { path: 0, is_exact });
        }
        let is_prefix =
            repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (is_prefix && !is_address).then(|| Self { path: path.split('/').count(), is_exact })
    }
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
                text.split_once(':').ok_or("has an auth that is not a user and a password")?;
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

    fn entry(file: &serde_json::Value, host: &str) -> Result<FileEntry, &'static str> {
        entry_of(file.to_string().as_bytes(), host, "team/app")
    }

    fn ask(name: &str, server: &str) -> FileEntry {
        FileEntry::AskHelper { name: name.to_owned(), server: server.to_owned() }
    }

    fn credentials(username: &str, password: &str) -> Credentials {
        Credentials { username: username.to_owned(), password: Secret::new(password.to_owned()) }
    }

    #[test]
    fn server_addresses_match_in_all_spellings() {
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
    fn a_docker_config_is_read_as_docker_does() {
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
        assert_eq!(entry(&file, "docker.io"), Ok(FileEntry::Credentials(credentials("me", "hunter:2"))));
        assert_eq!(entry(&file, "ghcr.io"), Ok(FileEntry::Credentials(credentials("you", "hunter3"))));
        assert_eq!(
            entry(&file, "acr.example"),
            Ok(FileEntry::Credentials(credentials("<token>", "hunter4")))
        );
        assert_eq!(entry(&file, "ecr.example"), Ok(ask("ecr-login", "ecr.example")));
        assert_eq!(entry(&file, "store.example"), Ok(ask("secretservice", "store.example")));
        assert_eq!(entry(&json!({"auths": {"ghcr.io": {}}}), "ghcr.io"), Ok(FileEntry::Nothing));
    }

    #[test]
    fn the_most_specific_auth_entry_wins() {
        let auth = |user: &str| json!({"auth": BASE64_STANDARD.encode(format!("{user}:hunter2"))});
        let by = |user: &str| Ok(FileEntry::Credentials(credentials(user, "hunter2")));
        let of = |file: &serde_json::Value, host: &str, repository: &str| {
            entry_of(file.to_string().as_bytes(), host, repository)
        };
        let podmans = json!({
            "auths": {
                "quay.io": auth("all"),
                "quay.io/team-a": auth("a"),
                "quay.io/team-b": auth("b"),
                "quay.io/team-b/deep": auth("deep"),
                "quay.io/empty": {},
            },
            "credHelpers": {"quay.io/helped": "helps", "ghcr.io": "ghs"},
            "credsStore": "store",
        });
        for (repository, user) in [
            ("team-a/app", "a"),
            ("team-a", "a"),
            ("team-b/app", "b"),
            ("team-b/deep/app", "deep"),
            ("team-ab/app", "all"),
            ("empty/app", "all"),
        ] {
            assert_eq!(of(&podmans, "quay.io", repository), by(user), "{repository}");
        }
        assert_eq!(of(&podmans, "quay.io", "helped/app"), Ok(ask("helps", "quay.io/helped")));
        assert_eq!(of(&podmans, "ghcr.io", "team-a/app"), Ok(ask("ghs", "ghcr.io")));
        let only_a = json!({"auths": {"quay.io/team-a": auth("a")}});
        assert_eq!(of(&only_a, "quay.io", "team-b/app"), Ok(FileEntry::Nothing));

        // The entries that docker's browser login leaves.
        let dockers = json!({"auths": {
            "https://index.docker.io/v1/": auth("me"),
            "https://index.docker.io/v1/access-token": auth("no1"),
            "https://index.docker.io/v1/refresh-token": auth("no2"),
        }});
        for repository in ["library/redis", "v1/access-token"] {
            assert_eq!(of(&dockers, "docker.io", repository), by("me"));
        }
        let both = json!({"auths": {"docker.io": auth("podman"), HUB_KEY: auth("docker"), "index.docker.io": auth("x")}});
        assert_eq!(of(&both, "docker.io", "library/redis"), by("docker"));
        let others = json!({"auths": {"https://index.docker.io/v1/access-token": auth("no")}});
        assert_eq!(of(&others, "docker.io", "library/redis"), Ok(FileEntry::Nothing));
    }

    #[tokio::test]
    async fn an_unusable_docker_config_is_an_error_without_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        for content in [
            "hunter2".to_owned(),
            json!({"auths": "hunter2"}).to_string(),
            json!({"auths": {"ghcr.io": {"auth": "hunter2!"}}}).to_string(),
        ] {
            std::fs::write(&path, content).unwrap();
            let credential_store =
                CredentialStore { config: Some(path.clone()), ..CredentialStore::default() };
            let error = credential_store.credentials("ghcr.io", "a").await.unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && !error.contains("hunter2"), "{error}");
        }
        let credential_store =
            CredentialStore { config: Some("/no/such/file".into()), ..CredentialStore::default() };
        assert!(
            credential_store
                .credentials("ghcr.io", "a")
                .await
                .unwrap_err()
                .to_string()
                .contains("/no/such/file")
        );
    }

    #[tokio::test]
    async fn operator_credentials_go_to_their_registry_only() {
        let inline = Some(("https://ghcr.io".to_owned(), credentials("me", "hunter2")));
        let credential_store = CredentialStore { inline, ..CredentialStore::default() };
        assert_eq!(
            credential_store.credentials("ghcr.io", "a").await,
            Ok(Some(credentials("me", "hunter2")))
        );
        assert_eq!(credential_store.credentials("evil.example", "a").await, Ok(None));
    }

    #[tokio::test]
    async fn job_credentials_take_precedence_for_their_registry_only() {
        let inline = Some(("mirror.example".to_owned(), credentials("you", "hunter3")));
        let credential_store = CredentialStore { inline, ..CredentialStore::default() };
        let own = Some(("docker.io".to_owned(), credentials("me", "hunter2")));
        let pull_credentials = PullCredentials { own, credential_store: Some(Arc::new(credential_store)) };
        for (host, user) in [
            ("docker.io", Some("me")),
            ("registry-1.docker.io", Some("me")),
            ("mirror.example", Some("you")),
            ("mirror.example:5000", None),
        ] {
            let found = pull_credentials.login(host, "a").await.unwrap();
            assert_eq!(found.as_ref().map(|found| found.credentials.username.as_str()), user, "{host}");
            assert_eq!(found.is_some_and(|found| found.is_from_job), user == Some("me"));
        }
        assert_eq!(PullCredentials::default().login("docker.io", "a").await, Ok(None));
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    const HOSTS: [&str; 3] = ["docker.io", "ghcr.io", "registry.example:5000"];

    #[test]
    fn files() {
        crate::fuzz::bytes("docker-config", |file| {
            for host in HOSTS {
                match entry_of(file, host, "team/app") {
                    Ok(FileEntry::Credentials(Credentials { username, password })) => {
                        assert!(username.len() + password.reveal().len() <= file.len());
                    }
                    Ok(FileEntry::AskHelper { name, server }) => {
                        assert!(name.len() <= file.len() && is_server(&server, host), "{server}");
                    }
                    Ok(FileEntry::Nothing) | Err(_) => {}
                }
            }
        });
    }
}
