//! Hosts that an image is pulled from, by containerd's hosts.toml (`registry_config_dir`): mirrors and their
//! capabilities, paths, headers, plain http; and the errors when no host has the image or when such a file is wrong.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::fault_proxy::{Fault, FaultProxy};
use harness::fixture::{HttpStub, RecordedRequest, Reply};
use harness::task::LIMIT;

use crate::cases::support::registry_hosts::{HostsConfig, REGISTRY};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused};

cases!["registries":
    a_mirror_is_queried_first_and_the_registry_after_it,
    a_mirror_that_breaks_a_layer_off_is_left_for_another,
    a_mirror_without_resolve_is_queried_by_digest_only,
    content_that_a_mirror_has_tampered_with_is_fetched_elsewhere,
    a_layer_that_a_mirror_has_changed_is_fetched_elsewhere,
    a_layer_corrupted_in_transit_once_is_fetched_again,
    a_host_may_have_its_api_below_a_path_of_its_own,
    the_operators_headers_go_to_their_host_and_no_further,
    a_registry_may_be_named_with_its_port_or_not_at_all,
    a_wrong_file_is_named_with_its_line_and_counts_as_soon_as_it_is_right,
    a_registry_that_has_had_enough_is_waited_for,
];

/// Returns the paths of requests by this method, without their queries.
fn paths(stub: &HttpStub, method: &str) -> Vec<String> {
    let seen = stub.seen().into_iter().filter(|seen| seen.method == method);
    seen.map(|seen| seen.target.split('?').next().unwrap_or_default().to_owned()).collect()
}

async fn a_mirror_is_queried_first_and_the_registry_after_it(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let (mirror, server) =
        (configured.host(|_| Reply::Forward).await?, configured.host(|_| Reply::Forward).await?);
    let (mirror_address, server_address) = (mirror.address(), server.address());
    let hosts = format!("server = \"http://{server_address}\"\n[host.\"http://{mirror_address}\"]\n");
    configured.write(REGISTRY, &hosts)?;
    let mut plugin = configured.plugin().await?;
    configured.pulls(&plugin, REGISTRY).await?;
    ensure!(server.seen().is_empty(), "the registry was asked beside its mirror: {:?}", server.seen());
    let all_say_who = mirror.seen().iter().all(|seen| seen.target.ends_with("?ns=registry.test"));
    ensure!(all_say_who, "it does not say which registry it means: {:?}", mirror.seen());

    drop(mirror);
    configured.pulls(&plugin, REGISTRY).await?;
    ensure!(!server.seen().is_empty(), "nobody was asked");
    let log = plugin.log().all().join("\n");
    ensure!(
        log.contains("a registry host failed") && log.contains(&mirror_address),
        "not a word of it: {log}"
    );

    drop(server);
    let words = ["no host provides it", mirror_address.as_str(), server_address.as_str(), "can't be reached"];
    let status = configured.fails(&plugin, &configured.job(REGISTRY), &words).await?;
    ensure!(is_recoverable(&status)?, "it may be there tomorrow: {status:?}");
    plugin.shut_down().await
}

async fn a_mirror_that_breaks_a_layer_off_is_left_for_another(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::with(case, &case.environment().catalog().large(2)?)?;
    let mirror = FaultProxy::before(case.environment().registry().address())?;
    mirror.inject("/blobs/", Fault::CutAfter(600_000));
    let server = configured.host(|_| Reply::Forward).await?;
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", server.address(), mirror.address());
    configured.write(REGISTRY, &hosts)?;
    let mut plugin = configured.plugin().await?;
    let mut events = plugin.events().await?;
    configured.pulls(&plugin, REGISTRY).await?;
    ensure!(mirror.sent_bytes("/blobs/") >= 600_000, "the mirror was not asked for the layer");
    let seen = server.seen();
    let goes_on = seen.iter().any(|seen| seen.header("range").is_some_and(|range| range != "bytes=0-"));
    ensure!(goes_on, "nobody went on where it stopped: {seen:?}");
    let both = format!("from {}, {}", mirror.address(), server.address());
    loop {
        let event = tokio::time::timeout(LIMIT, events.message()).await.context("no event came")??;
        let message = event.context("the stream ended")?.message;
        if message.starts_with("Pulled") {
            ensure!(message.contains(&both), "it does not say who served it: {message}");
            break;
        }
    }
    plugin.shut_down().await
}

async fn a_mirror_without_resolve_is_queried_by_digest_only(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let (mirror, server) =
        (configured.host(|_| Reply::Forward).await?, configured.host(|_| Reply::Forward).await?);
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        server.address(),
        mirror.address()
    );
    configured.write(REGISTRY, &hosts)?;
    let mut plugin = configured.plugin().await?;
    configured.pulls(&plugin, REGISTRY).await?;
    let by_tag = |path: &String| !path.contains("sha256:");
    ensure!(!paths(&mirror, "GET").iter().any(by_tag), "it was asked by tag: {:?}", mirror.seen());
    ensure!(paths(&mirror, "GET").len() > 2, "it was not asked for all else: {:?}", mirror.seen());
    ensure_eq!(paths(&server, "HEAD").iter().filter(|path| by_tag(path)).count(), 1);
    ensure_eq!(paths(&server, "GET"), Vec::<String>::new());
    plugin.shut_down().await
}

async fn content_that_a_mirror_has_tampered_with_is_fetched_elsewhere(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let tampers = |seen: &RecordedRequest| match seen.target.contains("/manifests/sha256:") {
        true => Reply::Respond(200, Vec::new(), "{}".to_owned()),
        false => Reply::Forward,
    };
    let (mirror, server) = (configured.host(tampers).await?, configured.host(|_| Reply::Forward).await?);
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", server.address(), mirror.address());
    configured.write(REGISTRY, &hosts)?;
    let mut plugin = configured.plugin().await?;
    configured.pulls(&plugin, REGISTRY).await?;
    ensure_eq!(paths(&server, "GET").len(), 1);
    plugin.shut_down().await
}

/// The layer's length is right, so that only the digest of the whole shows that it is another.
async fn a_layer_that_a_mirror_has_changed_is_fetched_elsewhere(case: &CaseContext) -> Result<()> {
    let image = case.environment().catalog().with(|tree| tree.file("own", 0o644, b"changed on the way"))?;
    let configured = HostsConfig::with(case, &image)?;
    let layer = image.layers.last().context("the image has no layer")?;
    let (path, content) = (format!("/blobs/{}", layer.digest), "x".repeat(layer.blob.len()));
    let changes = move |seen: &RecordedRequest| match seen.target.contains(&path) {
        true => Reply::Respond(200, Vec::new(), content.clone()),
        false => Reply::Forward,
    };
    let (mirror, server) = (configured.host(changes).await?, configured.host(|_| Reply::Forward).await?);
    let only_the_mirror = format!("server = \"http://{}\"\n", mirror.address());
    configured.write(REGISTRY, &only_the_mirror)?;
    let mut plugin = configured.plugin().await?;
    let words = ["layer", &layer.digest, "damaged on the way", "does not match"];
    // The image's other content is kept for the next try.
    let task = case.prepare(&plugin, &configured.job(REGISTRY)).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &words)?;
    ensure!(is_recoverable(&status)?, "the next try may do better: {status:?}");
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", server.address(), mirror.address());
    configured.write(REGISTRY, &hosts)?;
    configured.pulls(&plugin, REGISTRY).await?;
    ensure!(paths(&server, "GET").iter().any(|path| path.contains(&layer.digest)), "{:?}", server.seen());
    plugin.shut_down().await
}

async fn a_layer_corrupted_in_transit_once_is_fetched_again(case: &CaseContext) -> Result<()> {
    let image = case.environment().catalog().with(|tree| tree.file("own", 0o644, b"changed once"))?;
    let configured = HostsConfig::with(case, &image)?;
    let layer = image.layers.last().context("the image has no layer")?;
    let (path, content) = (format!("/blobs/{}", layer.digest), "x".repeat(layer.blob.len()));
    let times = AtomicUsize::new(0);
    let changes = move |seen: &RecordedRequest| match seen.target.contains(&path) {
        true if times.fetch_add(1, Ordering::Relaxed) == 0 => {
            Reply::Respond(200, Vec::new(), content.clone())
        }
        _ => Reply::Forward,
    };
    let server = configured.host(changes).await?;
    configured.write(REGISTRY, &format!("server = \"http://{}\"\n", server.address()))?;
    let mut plugin = configured.plugin().await?;
    configured.pulls(&plugin, REGISTRY).await?;
    ensure_eq!(paths(&server, "GET").iter().filter(|path| path.contains(&layer.digest)).count(), 2);
    plugin.shut_down().await
}

async fn a_host_may_have_its_api_below_a_path_of_its_own(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let below = |prefix: &'static str| {
        move |seen: &RecordedRequest| match seen.target.strip_prefix(prefix) {
            Some(rest) => Reply::ForwardAs(format!("/v2{rest}")),
            None => Reply::Respond(404, Vec::new(), String::new()),
        }
    };
    let mut plugin = configured.plugin().await?;
    for (path, prefix, overrides) in [
        ("/proxy", "/proxy/v2", false),
        ("/v2/upstream", "/v2/upstream", true),
        ("/api/v2/", "/api/v2", false),
    ] {
        let host = configured.host(below(prefix)).await?;
        let hosts = format!("[host.\"http://{}{path}\"]\noverride_path = {overrides}\n", host.address());
        configured.write(REGISTRY, &hosts)?;
        configured.pulls(&plugin, REGISTRY).await?;
    }
    plugin.shut_down().await
}

async fn the_operators_headers_go_to_their_host_and_no_further(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let storage = configured.host(|_| Reply::Forward).await?;
    let elsewhere = storage.address();
    let sends = move |seen: &RecordedRequest| match seen.target.split_once("/blobs/") {
        Some(_) => {
            let place = format!("http://{elsewhere}{}", seen.target);
            Reply::Respond(307, vec![("Location", place)], String::new())
        }
        None => Reply::Forward,
    };
    let host = configured.host(sends).await?;
    let hosts = format!(
        "[host.\"http://{0}\"]\n[host.\"http://{0}\".header]\nx-team = [\"blue\", \"green\"]\nAuthorization = \"Bearer s3cret\"\n",
        host.address()
    );
    configured.write(REGISTRY, &hosts)?;
    let mut plugin = configured.plugin().await?;
    configured.pulls(&plugin, REGISTRY).await?;
    for seen in host.seen() {
        ensure_eq!(seen.headers.get_all("x-team").iter().count(), 2);
        ensure_eq!(seen.header("authorization"), Some("Bearer s3cret"));
    }
    ensure!(!storage.seen().is_empty(), "nobody followed");
    for seen in storage.seen() {
        let credentials = seen.header("x-team").or(seen.header("authorization"));
        ensure!(credentials.is_none(), "the storage was sent {seen:?}");
    }
    let log = plugin.log().all().join("\n");
    ensure!(!log.contains("s3cret"), "a header is in the log: {log}");
    plugin.shut_down().await
}

async fn a_registry_may_be_named_with_its_port_or_not_at_all(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let hosts: [HttpStub; 3] = [
        configured.host(|_| Reply::Forward).await?,
        configured.host(|_| Reply::Forward).await?,
        configured.host(|_| Reply::Forward).await?,
    ];
    for (directory, host) in ["registry.test_5000_", "registry.test:6000", "_default"].iter().zip(&hosts) {
        configured.write(directory, &format!("server = \"http://{}\"\n", host.address()))?;
    }
    let mut plugin = configured.plugin().await?;
    for (registry, host) in ["registry.test:5000", "registry.test:6000", "any.test"].iter().zip(&hosts) {
        configured.pulls(&plugin, registry).await?;
        let means = format!("?ns={}", registry.replace(':', "%3A"));
        let requests = host.seen();
        let all_are_for_it = requests.iter().all(|seen| seen.target.ends_with(&means));
        ensure!(!requests.is_empty() && all_are_for_it, "{registry}: {requests:?}");
    }
    plugin.shut_down().await
}

async fn a_wrong_file_is_named_with_its_line_and_counts_as_soon_as_it_is_right(
    case: &CaseContext,
) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let host = configured.host(|_| Reply::Forward).await?;
    let path = configured.write(REGISTRY, "server = \"http://127.0.0.1:1\"\ncapabilities = [\"pul\"]\n")?;
    let path = path.display().to_string();
    let mut plugin = configured.plugin().await?;
    let job = configured.job(REGISTRY);
    configured.fails(&plugin, &job, &[&path, "line 2", "capability"]).await?;
    configured.write(REGISTRY, "server = \"http://127.0.0.1:1\"\nca = \"none.crt\"\n")?;
    configured.fails(&plugin, &job, &["none.crt", "can't be read"]).await?;
    let hosts = format!("server = \"http://{}\"\nskip_verfy = true\n", host.address());
    configured.write(REGISTRY, &hosts)?;
    configured.pulls(&plugin, REGISTRY).await?;
    configured.pulls(&plugin, REGISTRY).await?;
    let log = plugin.log().all();
    let warnings: Vec<_> = log.iter().filter(|line| line.contains("skip_verfy")).collect();
    ensure!(
        warnings.len() == 1 && warnings[0].contains(&path) && warnings[0].contains("line 2"),
        "{warnings:?}"
    );
    plugin.shut_down().await
}

async fn a_registry_that_has_had_enough_is_waited_for(case: &CaseContext) -> Result<()> {
    let configured = HostsConfig::new(case)?;
    let refusals = AtomicUsize::new(0);
    let busy = move |_: &RecordedRequest| match refusals.fetch_add(1, Ordering::Relaxed) {
        0 | 3 => Reply::Respond(429, vec![("Retry-After", "1".to_owned())], String::new()),
        _ => Reply::Forward,
    };
    let host = configured.host(busy).await?;
    configured.write(REGISTRY, &format!("server = \"http://{}\"\n", host.address()))?;
    let mut plugin = configured.plugin().await?;
    configured.pulls(&plugin, REGISTRY).await?;
    let weary = configured
        .host(|_| Reply::Respond(429, vec![("Retry-After", "7200".to_owned())], String::new()))
        .await?;
    configured.write(REGISTRY, &format!("server = \"http://{}\"\n", weary.address()))?;
    let status = configured.fails(&plugin, &configured.job(REGISTRY), &["429", "retry in 2h"]).await?;
    ensure!(is_recoverable(&status)?, "it may be tried later: {status:?}");
    plugin.shut_down().await
}
