//! The reading half of the distribution API: manifests and blobs of a repository, from the first of its registry's
//! hosts that has them. Knows nothing of containerd.
//!
//! Each host is asked once before any is asked again. A host that failed by itself, rather than for lack of the
//! content, is asked after the others for the rest of the pull, so that a mirror that is down costs its timeout once.
//!
//! Source of the facts: OCI distribution-spec v1.1; containerd `docs/hosts.md`, `core/remotes/docker` @ v2.3.

mod authorization;
mod challenge;
mod credential_helper;
mod credential_store;
mod credentials;
mod endpoint;
mod hosts;
mod http;
mod response;
mod tls;
mod transport;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use oci_spec::image::Descriptor;
use tokio::sync::OnceCell;

use crate::image::{ImageError, Reference, checked_digest};
pub(crate) use credential_store::{CredentialStore, PullCredentials, is_server};
pub(crate) use credentials::Credentials;
use endpoint::Endpoint;
use hosts::{HostCapabilities, Hosts};
use http::Http;
use response::HostFailure;
pub(crate) use response::{Body, Fetched};

/// Backoff between retries of transient errors: a broken connection, or a status 5xx, 408 or 429.
pub(crate) const BACKOFF: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(1500)];
/// Maximum number of waits for hosts that send `Retry-After`, such as with a 429 (a rate limit).
const MAX_WAITS: usize = 3;
/// Maximum `Retry-After` that is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Capabilities needed to fetch content by digest.
const PULL: HostCapabilities = HostCapabilities { pull: true, resolve: false };
/// Capabilities needed to resolve a tag.
const RESOLVE: HostCapabilities = HostCapabilities { pull: true, resolve: true };

/// The HTTP clients and the operator's configuration of hosts, which all pulls share.
pub(crate) struct RegistryClient {
    http: Arc<Http>,
    hosts: Hosts,
    /// Maximum time without a byte in the middle of an answer, and, where another host can be asked, before it.
    idle: Duration,
}

impl RegistryClient {
    /// Makes the client. Reads the files of a directory of `hosts.toml`, if there is one, with each pull.
    pub(crate) fn new(hosts: Option<PathBuf>, idle: Duration) -> Self {
        Self { http: Arc::default(), hosts: Hosts::in_directory(hosts), idle }
    }
}

/// Waits for a host, by its name, for as long as it asks in `Retry-After`.
pub(crate) type WaitForHost =
    Box<dyn Fn(String, Duration) -> BoxFuture<'static, Result<(), ImageError>> + Send + Sync>;

/// A repository of a registry, for the duration of one pull.
pub(crate) struct Registry<'a> {
    client: &'a RegistryClient,
    reference: Reference,
    pull_credentials: PullCredentials,
    wait: WaitForHost,
    /// The registry's hosts, looked up with the first request.
    endpoints: OnceCell<Vec<Endpoint>>,
}

impl<'a> Registry<'a> {
    /// Makes a repository's client. The caller bounds each wait for a host.
    pub(crate) fn new(
        client: &'a RegistryClient,
        reference: &Reference,
        pull_credentials: PullCredentials,
        wait: WaitForHost,
    ) -> Self {
        Self { client, reference: reference.clone(), pull_credentials, wait, endpoints: OnceCell::new() }
    }

    /// Resolves a tag or digest to a descriptor. Avoids fetching the content, where the registry can, since registries
    /// count that against a limit.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub(crate) async fn resolve(&self, version: &str) -> Result<Descriptor, ImageError> {
        let needed = if is_digest(version) { PULL } else { RESOLVE };
        with_retries(|| self.ask(needed, |endpoint, limit| endpoint.resolve(version, limit))).await
    }

    /// Fetches the manifest or index of a tag or digest.
    ///
    /// # Errors
    /// Classified by what they mean for the image. The caller checks what a tag stands for.
    pub(crate) async fn manifest(&self, version: &str) -> Result<Fetched, ImageError> {
        if is_digest(version) {
            return with_retries(|| self.ask(PULL, |endpoint, limit| endpoint.manifest(version, limit)))
                .await;
        }
        if self.endpoints().await?.first().is_some_and(|first| !first.capabilities().resolve) {
            // The first host may serve content, but not say which digest a tag stands for.
            let resolved =
                with_retries(|| self.ask(RESOLVE, |endpoint, limit| endpoint.resolve(version, limit)))
                    .await?;
            let digest = resolved.digest().as_ref();
            return with_retries(|| self.ask(PULL, |endpoint, limit| endpoint.manifest(digest, limit))).await;
        }
        with_retries(|| self.ask(RESOLVE, |endpoint, limit| endpoint.manifest(version, limit))).await
    }

    /// Fetches a blob that fits into memory, and checks its digest.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub(crate) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        with_retries(|| self.ask(PULL, |endpoint, limit| endpoint.small_blob(blob, limit))).await
    }

    /// Fetches a blob from an offset on; the caller checks the bytes. After a body that broke off, another call resumes
    /// at another host, if there is one.
    ///
    /// # Errors
    /// A body whose length is known to be wrong counts as damaged before it is read.
    pub(crate) async fn blob(&self, blob: &Descriptor, offset_bytes: u64) -> Result<Body, ImageError> {
        self.ask(PULL, |endpoint, limit| endpoint.blob(blob, offset_bytes, limit)).await
    }

    /// Asks the hosts that have the needed capabilities, those that fail last, and returns the first answer. An attempt
    /// gets a limit for how long the host may take to begin its answer, where there is another one to ask; for the last
    /// one only the pull's stall detection counts.
    async fn ask<'s, T, F>(
        &'s self,
        needed: HostCapabilities,
        attempt: impl Fn(&'s Endpoint, Option<Duration>) -> F,
    ) -> Result<T, ImageError>
    where
        F: Future<Output = Result<T, HostFailure>>,
    {
        let endpoints = self.endpoints().await?;
        let fit = |endpoint: &&Endpoint| {
            let HostCapabilities { pull, resolve } = endpoint.capabilities();
            pull >= needed.pull && resolve >= needed.resolve
        };
        let mut waits = 0;
        loop {
            let (failing, well): (Vec<_>, Vec<_>) =
                endpoints.iter().filter(fit).partition(|endpoint| endpoint.is_failing());
            let in_order = [well, failing].concat();
            let mut failures = Vec::new();
            let mut wait: Option<(Duration, String)> = None;
            for (place, endpoint) in in_order.iter().enumerate() {
                let has_others = place + 1 < in_order.len();
                match attempt(endpoint, has_others.then_some(self.client.idle)).await {
                    Ok(answer) => return Ok(answer),
                    Err(HostFailure { error, retry_after }) => {
                        endpoint.mark_failed(&error, endpoints.len() > 1);
                        let retry_after = retry_after.map(|retry_after| (retry_after, endpoint.name()));
                        wait = wait.into_iter().chain(retry_after).min();
                        failures.push((endpoint.name(), error));
                    }
                }
            }
            match wait.filter(|(wait, _)| *wait <= MAX_RETRY_AFTER && waits < MAX_WAITS) {
                Some((wanted, host)) => (self.wait)(host, wanted).await?,
                None => return Err(self.none_of(failures)),
            }
            waits += 1;
        }
    }

    /// Marks hosts that sent bad content as failing. Returns whether others are left to ask for content.
    pub(crate) fn mark_bad_content(&self, names: &BTreeSet<String>) -> bool {
        let endpoints = self.endpoints.get().map(Vec::as_slice).unwrap_or_default();
        endpoints
            .iter()
            .filter(|endpoint| names.contains(&endpoint.name()))
            .for_each(Endpoint::mark_bad_content);
        endpoints.iter().any(|endpoint| endpoint.capabilities().pull && !endpoint.is_failing())
    }

    fn none_of(&self, mut failures: Vec<(String, ImageError)>) -> ImageError {
        match failures.len() {
            0 => ImageError::permanent(format!(
                "by the hosts.toml of {} no host has the capabilities to pull and resolve",
                self.reference.host()
            )),
            1 => failures.remove(0).1,
            _ => ImageError::Hosts { failures },
        }
    }

    async fn endpoints(&self) -> Result<&[Endpoint], ImageError> {
        let found = self.endpoints.get_or_try_init(|| async {
            let mut endpoints = Vec::new();
            let RegistryClient { http, hosts, idle } = self.client;
            for host in hosts.of(self.reference.host()).await? {
                let (http, idle) = (Arc::clone(http), *idle);
                endpoints
                    .push(Endpoint::new(http, idle, host, &self.reference, &self.pull_credentials).await?);
            }
            Ok(endpoints)
        });
        found.await.map(Vec::as_slice)
    }
}

fn is_digest(version: &str) -> bool {
    checked_digest(version).is_ok()
}

/// Retries `attempt` while its error is transient, with a backoff.
async fn with_retries<T, F>(attempt: impl Fn() -> F) -> Result<T, ImageError>
where
    F: Future<Output = Result<T, ImageError>>,
{
    for pause in BACKOFF {
        match attempt().await {
            Err(error) if error.is_retryable() => tokio::time::sleep(pause).await,
            outcome => return outcome,
        }
    }
    attempt().await
}

#[cfg(test)]
mod tests;
