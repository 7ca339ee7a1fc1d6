//! The hosts that serve a registry's images, in which order and with which settings: from the files that containerd
//! reads for that, `<directory>/<registry>/hosts.toml`, or from certificates in docker's layout in the same place. The
//! files are read for each pull, so that a change takes effect at once. Knows no HTTP.
//!
//! Source of the facts: containerd `docs/hosts.md`, `core/remotes/docker/config` @ v2.3; moby v28 `registry/config.go`,
//! `registry/service_v2.go` (the loopback is insecure: TLS without verification, then http).

#![expect(
    clippy::disallowed_methods,
    reason = "opens the operator's files, which no job, image or task can shape"
)]

mod file;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use crate::image::ImageError;
use file::File;

const FILE: &str = "hosts.toml";
/// Directory for the registries that have none of their own.
const DEFAULT: &str = "_default";

/// A host, and the settings for requests to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Host {
    /// URL that repository names are appended to, without a trailing slash.
    pub base: Url,
    pub settings: Settings,
}

impl Host {
    /// Returns whether this host is the registry itself, not a mirror of it.
    pub(super) fn is(&self, registry: &str) -> bool {
        let own = Url::parse(&format!("{}://{}", self.base.scheme(), located(registry)));
        own.is_ok_and(|own| own.origin() == self.base.origin())
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Settings {
    pub capabilities: HostCapabilities,
    pub tls: TlsFiles,
    pub connect_timeout: Option<Duration>,
    /// Whether nothing says how the registry on this loopback is to be spoken to: by TLS, with any certificate, and if
    /// it doesn't speak that, by plain http. The base is http then.
    pub tries_tls: bool,
    /// Headers for requests to this host, never sent to another.
    pub headers: HeaderMap,
}

/// The `capabilities` of a host in `hosts.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostCapabilities {
    /// May serve content by digest, which proves itself.
    pub pull: bool,
    /// May say which digest a tag stands for.
    pub resolve: bool,
}

impl Default for HostCapabilities {
    fn default() -> Self {
        Self { pull: true, resolve: true }
    }
}

/// Paths of certificates, and whether they are verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TlsFiles {
    pub ca: Vec<PathBuf>,
    /// Paths of client certificates and keys; without a key, one file has both.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: Option<bool>,
}

impl TlsFiles {
    pub(super) fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

/// The operator's configuration of registry hosts.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    directory: Option<PathBuf>,
    /// Warnings already logged, so that each is logged once and not with each pull.
    warnings: Mutex<HashSet<String>>,
}

impl Hosts {
    pub(super) fn in_directory(directory: Option<PathBuf>) -> Self {
        Self { directory, warnings: Mutex::default() }
    }

    /// Returns the hosts for a registry in the order in which they are asked; the registry itself, if it is among them,
    /// is the last.
    ///
    /// # Errors
    /// An unusable file, by its path and line, if it has one. It is never skipped. Or a registry whose name is no
    /// host's.
    pub(super) async fn of(&self, registry: &str) -> Result<Vec<Host>, ImageError> {
        let Some(directory) = self.directory.clone() else { return of_file(File::default(), registry) };
        let name = registry.to_owned();
        let reading = tokio::task::spawn_blocking(move || read(&directory, &name));
        let (file, warnings) =
            reading.await.map_err(|_| ImageError::transient("its hosts.toml can't be read"))??;
        for warning in warnings {
            if self.warnings.lock().unwrap_or_else(PoisonError::into_inner).insert(warning.clone()) {
                tracing::warn!(registry, "{warning}");
            }
        }
        of_file(file, registry)
    }
}

/// Reads the configuration of a registry, with a warning for each key in it that is not understood.
fn read(directory: &Path, registry: &str) -> Result<(File, Vec<String>), ImageError> {
    let unusable = |path: &Path, why: String| ImageError::permanent(format!("{}: {why}", path.display()));
    let is_missing =
        |error: &std::io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    for name in directories(registry) {
        let place = directory.join(name);
        let path = place.join(FILE);
        match std::fs::read_to_string(&path) {
            // As containerd does: an empty file counts as missing.
            Ok(text) if !text.is_empty() => {
                let (file, unknown) = file::parse(&text, &place).map_err(|fault| unusable(&path, fault))?;
                let warnings = unknown.into_iter().map(|what| format!("{}: {what}", path.display()));
                return Ok((file, warnings.collect()));
            }
            Ok(_) => {}
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(unusable(&path, format!("it can't be read: {error}"))),
        }
        match certificates(&place) {
            Ok(tls) => {
                let own = Settings { tls, ..Settings::default() };
                return Ok((File { own, ..File::default() }, Vec::new()));
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(unusable(&place, format!("it can't be read: {error}"))),
        }
    }
    Ok((File::default(), Vec::new()))
}

/// Returns the names of directories for a registry; the first one that exists is used.
fn directories(registry: &str) -> Vec<String> {
    let with_port = registry.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    let spelled = with_port.map(|(name, port)| format!("{name}_{port}_"));
    spelled.into_iter().chain([registry.to_owned(), DEFAULT.to_owned()]).collect()
}

/// Finds certificates in docker's layout: `*.crt` are authorities, `*.cert` and `*.key` are client certificates and
/// keys.
fn certificates(directory: &Path) -> std::io::Result<TlsFiles> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    let with_end = |end: &'static str| {
        found.iter().filter(move |path| path.extension().is_some_and(|is| is == end)).cloned()
    };
    let key_of =
        |certificate: &Path| Some(certificate.with_extension("key")).filter(|key| found.contains(key));
    let client = with_end("cert").map(|certificate| (certificate.clone(), key_of(&certificate)));
    Ok(TlsFiles { ca: with_end("crt").collect(), client: client.collect(), skip_verify: None })
}

/// Returns the hosts that a file names, followed by its `server`, or by the registry itself where it names none.
///
/// # Errors
/// The registry's name is no host's.
fn of_file(file: File, registry: &str) -> Result<Vec<Host>, ImageError> {
    let File { mut hosts, server, own } = file;
    hosts.push(match server {
        Some(base) => Host { base, settings: own },
        None => {
            let base = base_of(registry, own.tls.is_set())?;
            let (capabilities, tries_tls) = (HostCapabilities::default(), base.scheme() == "http");
            Host { base, settings: Settings { capabilities, tries_tls, ..own } }
        }
    });
    Ok(hosts)
}

/// Returns the base URL of a registry: http on the loopback, unless TLS is configured for it, else https.
///
/// # Errors
/// The registry's name is no host's, though image names may have it: it ends in a number and is no address, such as
/// `1.2.3.4.5`, or has a part of the form `xn--..` that is no name.
fn base_of(registry: &str, has_tls: bool) -> Result<Url, ImageError> {
    let scheme = if is_loopback(registry) && !has_tls { "http" } else { "https" };
    let url = format!("{scheme}://{}/v2", located(registry));
    Url::parse(&url).map_err(|error| {
        ImageError::permanent(format!("{registry:?} can't be the name of a registry: {error}"))
    })
}

/// Returns whether a host, with or without its port, is the loopback.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns the host that serves a registry: docker.io's is the only one with another name.
fn located(host: &str) -> &str {
    if host == "docker.io" { "registry-1.docker.io" } else { host }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::image::Reference;

    /// The registry's name in the name of an image.
    #[test]
    fn registries() {
        crate::fuzz::text("registry-name", |registry| {
            let Ok(reference) = format!("{registry}/a/b").parse::<Reference>() else { return };
            for has_tls in [false, true] {
                let Ok(base) = base_of(reference.host(), has_tls) else { continue };
                assert!(base.scheme() == "https" || is_loopback(reference.host()) && !has_tls, "{base}");
                assert!(
                    base.path() == "/v2" && base.query().is_none() && base.username().is_empty(),
                    "{base}"
                );
                let host = Host { base, settings: Settings::default() };
                assert!(host.is(reference.host()) || reference.host() == "docker.io", "{host:?}");
            }
        });
    }
}
