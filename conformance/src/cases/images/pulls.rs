//! Pulls over a network that is slow and breaks: content that several pulls need is fetched once, content that has come
//! is kept, and a pull that is stuck ends with an error that says why.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use harness::config;
use harness::context::CaseContext;
use harness::fixture::fault_proxy::Fault;
use harness::fixture::image::Image;
use harness::fixture::images::noise;
use harness::fixture::{Form, HttpStub, RecordedRequest, Reply};
use harness::host::Plugin;
use harness::task::LIMIT;
use serde_json::json;

use crate::cases::support::slow_network::{MIB, Network, plugin_with, runs};
use crate::cases::support::{cases, ensure_eq, is_recoverable, orphans, refused, until};

cases!["pull":
    fifty_tasks_of_an_image_that_is_not_here_make_one_pull,
    names_of_one_image_are_pulled_once,
    a_layer_of_two_images_is_fetched_once_while_both_are_pulled,
    a_layer_resumes_where_its_connection_broke,
    a_registry_that_comes_back_is_gone_on_with,
    a_failed_pull_is_resumed_by_the_next,
    a_pull_of_a_killed_plugin_is_resumed_by_the_next,
    leftovers_of_a_killed_plugins_pull_are_removed_if_nobody_resumes_it,
    a_corrupt_partial_layer_is_fetched_anew,
    a_stalled_pull_is_given_up,
    a_pull_that_waits_for_anothers_layers_does_not_stall,
    a_rate_limited_registry_holds_no_other_pull_up,
    a_trickling_registry_holds_no_other_pull_up_and_is_given_up,
    a_slow_registry_is_waited_for,
    a_layer_whose_rest_is_refused_is_fetched_anew,
    a_pull_outlasts_a_disk_that_stalls,
    no_more_is_pulled_at_once_than_the_operator_says,
    permanent_errors_are_not_retried,
    a_long_pull_is_reported,
];

async fn fifty_tasks_of_an_image_that_is_not_here_make_one_pull(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let network = Network::before(case)?;
    let large = case.environment().catalog().large(4)?;
    let image = network.push(case, &large, "fifty")?;
    network.proxy.inject("/blobs/", Fault::Throttle(4 * MIB));
    try_join_all((0..50).map(|_| runs(case, plugin, &image))).await?;
    ensure_eq!(network.proxy.count("GET", "/manifests/"), 1);
    for request in network.proxy.requests() {
        ensure_eq!((&*request.path, network.proxy.count("GET", &request.path)), (&*request.path, 1));
    }
    network.sent_once(&large.layers[1])?;
    Ok(())
}

async fn names_of_one_image_are_pulled_once(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let large = case.environment().catalog().large(4)?;
    let [one, other, third] = [
        network.push(case, &large, "one")?,
        network.push(case, &large, "other")?,
        network.push(case, &large, "third")?,
    ];
    network.proxy.inject("/blobs/", Fault::Throttle(4 * MIB));
    tokio::try_join!(runs(case, plugin, &one), runs(case, plugin, &other))?;
    network.sent_once(&large.layers[1])?;
    ensure_eq!(network.proxy.count("GET", "/manifests/"), 2);
    // Only the manifest of the third image is requested, since its blobs are here.
    network.proxy.clear_requests();
    runs(case, plugin, &third).await?;
    ensure_eq!((network.proxy.count("GET", "/manifests/"), network.proxy.count("GET", "/blobs/")), (1, 0));
    Ok(())
}

async fn a_layer_of_two_images_is_fetched_once_while_both_are_pulled(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let network = Network::before(case)?;
    let common = case.environment().catalog().large(4)?;
    let push = |name: &str| {
        let own = case.environment().catalog().with(|tree| tree.file(name, 0o644, b"own\n"))?;
        let layers = [&common.layers[..], &own.layers[1..]].concat();
        network.push(case, &Image { layers, ..own }, name)
    };
    let (left, right) = (push("left")?, push("right")?);
    network.proxy.inject("/blobs/", Fault::Throttle(4 * MIB));
    tokio::try_join!(runs(case, plugin, &left), runs(case, plugin, &right))?;
    ensure_eq!(network.proxy.count("GET", &common.layers[1].digest), 1);
    Ok(())
}

async fn a_layer_resumes_where_its_connection_broke(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let large = case.environment().catalog().large(6)?;
    let image = network.push(case, &large, "breaks")?;
    network.proxy.inject_times(&large.layers[1].digest, Fault::CutAfter(2 * MIB), 2);
    runs(case, plugin, &image).await?;
    network.sent_once(&large.layers[1])?;
    ensure_eq!(network.proxy.count("GET", &large.layers[1].digest), 3);
    Ok(())
}

async fn a_registry_that_comes_back_is_gone_on_with(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let (network, registry) = (Network::before(case)?, case.environment().registry());
    let large = case.environment().catalog().large(6)?;
    let image = network.push(case, &large, "comes-back")?;
    network.proxy.inject("/blobs/", Fault::Throttle(4 * MIB));
    let outage = async {
        network.has_sent(&large.layers[1], 2 * MIB).await?;
        registry.stop();
        tokio::time::sleep(Duration::from_secs(3)).await;
        registry.start()
    };
    tokio::try_join!(runs(case, plugin, &image), outage)?;
    network.sent_once(&large.layers[1])?;
    Ok(())
}

/// An image whose pull stalls in the middle of a layer.
struct Stalled {
    network: Network,
    image: String,
    large: Image,
}

impl Stalled {
    const SENT: u64 = 3 * MIB;

    fn new(case: &CaseContext, name: &str) -> Result<Self> {
        let network = Network::before(case)?;
        let large = case.environment().catalog().large(6)?;
        let image = network.push(case, &large, name)?;
        network.proxy.inject(&large.layers[1].digest, Fault::StallAfter(Self::SENT));
        Ok(Self { network, image, large })
    }

    /// Kills a plugin in the middle of this pull.
    async fn killed(&self, case: &CaseContext) -> Result<()> {
        let mut plugin = case.plugin().await?;
        let mut task = case.prepare(&plugin, &config! { image = self.image, command = "true" }).await?;
        let stalled = async {
            self.network.has_sent(&self.large.layers[1], Self::SENT).await?;
            // Content that has come is being written.
            until(LIMIT, "it is stored", || half_stored(case) >= 2 * MIB).await
        };
        tokio::select! {
            started = task.start(&plugin) => started.context("it is not to start")?,
            stalled = stalled => stalled?,
        }
        plugin.kill().await
    }

    /// Asserts that the next pull resumes, and fetches only the rest.
    async fn resumes(&self, case: &CaseContext, plugin: &Plugin) -> Result<()> {
        self.network.proxy.heal();
        runs(case, plugin, &self.image).await?;
        self.network.sent_once(&self.large.layers[1])?;
        let from = self.network.proxy.requests().into_iter().filter_map(|request| request.from).max();
        ensure!(from.is_some_and(|from| from >= MIB), "it went on from {from:?}");
        case.nothing_left()
    }
}

/// Returns the size of containerd's unfinished content in bytes.
fn half_stored(case: &CaseContext) -> u64 {
    let root = case.environment().containerd().root().join("io.containerd.content.v1.content/ingest");
    let ingests = std::fs::read_dir(root).into_iter().flatten().flatten();
    ingests.filter_map(|ingest| Some(ingest.path().join("data").metadata().ok()?.len())).sum()
}

async fn a_failed_pull_is_resumed_by_the_next(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let stalled = Stalled::new(case, "failed")?;
    let job = config! { image = stalled.image, command = "true", image_pull_timeout = "5s" };
    let task = case.prepare(plugin, &job).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &["image_pull_timeout"])?;
    ensure!(is_recoverable(&status)?, "it is not to be tried again: {status:?}");
    stalled.resumes(case, plugin).await?;
    Ok(())
}

async fn a_pull_of_a_killed_plugin_is_resumed_by_the_next(case: &CaseContext) -> Result<()> {
    let stalled = Stalled::new(case, "killed")?;
    stalled.killed(case).await?;
    let mut next = case.plugin().await?;
    stalled.resumes(case, &next).await?;
    next.shut_down().await
}

async fn leftovers_of_a_killed_plugins_pull_are_removed_if_nobody_resumes_it(
    case: &CaseContext,
) -> Result<()> {
    let stalled = Stalled::new(case, "forgotten")?;
    stalled.killed(case).await?;
    let left = case.census().join(" ");
    ensure!(
        left.contains("lease") && left.contains("unfinished content"),
        "there is nothing to remove: {left}"
    );
    let options = orphans::options(case, &json!({"creation_grace": "1s"}));
    let mut next = case.plugin_as(&case.launch(), &options).await?;
    case.nothing_left_within(LIMIT)?;
    next.shut_down().await
}

async fn a_corrupt_partial_layer_is_fetched_anew(case: &CaseContext) -> Result<()> {
    let stalled = Stalled::new(case, "spoilt")?;
    stalled.killed(case).await?;
    let root = case.environment().containerd().root().join("io.containerd.content.v1.content/ingest");
    for ingest in std::fs::read_dir(root)? {
        let data = ingest?.path().join("data");
        let length = data.metadata()?.len();
        std::fs::write(&data, noise(usize::try_from(length)?)?)?;
    }
    stalled.network.proxy.heal();
    let mut next = case.plugin().await?;
    runs(case, &next, &stalled.image).await?;
    case.nothing_left()?;
    next.shut_down().await
}

async fn a_stalled_pull_is_given_up(case: &CaseContext) -> Result<()> {
    let mut plugin = plugin_with(case, &json!({"pull_activity_timeout": "2s"})).await?;
    let stalled = Stalled::new(case, "still")?;
    let task = case.prepare(&plugin, &config! { image = stalled.image, command = "true" }).await?;
    let words = [&*stalled.image, "pull_activity_timeout", "2s"];
    let status = refused(plugin.start_task(task.config.clone()).await, &words)?;
    ensure!(is_recoverable(&status)?, "it is not to be tried again: {status:?}");
    stalled.resumes(case, &plugin).await?;
    plugin.shut_down().await
}

async fn a_pull_that_waits_for_anothers_layers_does_not_stall(case: &CaseContext) -> Result<()> {
    let options = json!({"max_parallel_layers": 1, "pull_activity_timeout": "2s"});
    let mut plugin = plugin_with(case, &options).await?;
    let network = Network::before(case)?;
    let catalog = case.environment().catalog();
    let left = network.push(case, &catalog.large(8)?, "holds")?;
    let right = network.push(case, &catalog.large(8)?, "waits")?;
    network.proxy.inject("/blobs/", Fault::Throttle(MIB));
    let mut events = plugin.events().await?;
    tokio::try_join!(runs(case, &plugin, &left), runs(case, &plugin, &right))?;
    // A waiting pull's event says what it waits for.
    let waits = async {
        while let Some(event) = events.message().await? {
            if event.message.contains("max_parallel_layers = 1") {
                return Ok(());
            }
        }
        anyhow::bail!("the events ended")
    };
    tokio::time::timeout(LIMIT, waits).await.context("no event says what it waited for")??;
    plugin.shut_down().await
}

/// Asserts that an image is pulled and run while another pull is slow.
async fn is_not_held_up(case: &CaseContext, plugin: &Plugin, name: &str) -> Result<()> {
    let image = case.image(name);
    let running = runs(case, plugin, &image);
    tokio::time::timeout(Duration::from_secs(20), running).await.context("it is held up")?
}

async fn a_rate_limited_registry_holds_no_other_pull_up(case: &CaseContext) -> Result<()> {
    let mut plugin = plugin_with(case, &json!({"max_parallel_layers": 1, "max_parallel_pulls": 2})).await?;
    let registry = case.environment().registry();
    let (busy, open) = (case.environment().catalog().large(1)?, case.environment().catalog().large(1)?);
    busy.push(registry, "busy", "v1", Form::Oci)?;
    open.push(registry, "unhurried", "v1", Form::Oci)?;
    let layers: Vec<_> = busy.layers.iter().map(|layer| layer.digest.clone()).collect();
    let refuses = move |seen: &RecordedRequest| match layers.iter().any(|digest| seen.target.contains(digest))
    {
        true => Reply::Respond(429, vec![("Retry-After", "50".to_owned())], String::new()),
        false => Reply::Forward,
    };
    let stub = HttpStub::before(registry.address(), refuses).await?;
    let image = format!("{}/busy:v1", stub.address());
    let job = config! { image = image, command = "true", image_pull_timeout = "30s" };
    let waiting = case.prepare(&plugin, &job).await?;
    let other = async {
        let requested = || stub.seen().iter().any(|seen| seen.target.contains("/blobs/"));
        until(LIMIT, "the layers are asked for", requested).await?;
        is_not_held_up(case, &plugin, "unhurried:v1").await
    };
    let (status, other) = tokio::join!(plugin.start_task(waiting.config.clone()), other);
    other?;
    let status = refused(status, &["image_pull_timeout", "waiting for", "Retry-After"])?;
    ensure!(is_recoverable(&status)?, "it is not to be tried again: {status:?}");
    case.nothing_left()?;
    plugin.shut_down().await
}

/// The registry is not asked twice for a layer, since it may be a cache that has to fetch the layer itself first.
async fn a_trickling_registry_holds_no_other_pull_up_and_is_given_up(case: &CaseContext) -> Result<()> {
    let options = json!({"max_parallel_layers": 1, "pull_activity_timeout": "20s"});
    let mut plugin = plugin_with(case, &options).await?;
    let network = Network::before(case)?;
    let (slow, open) = (case.environment().catalog().large(1)?, case.environment().catalog().large(1)?);
    let image = network.push(case, &slow, "trickles")?;
    open.push(case.environment().registry(), "flows", "v1", Form::Oci)?;
    network.proxy.inject(&slow.layers[1].digest, Fault::Throttle(8));
    let waiting = case.prepare(&plugin, &config! { image = image, command = "true" }).await?;
    let other = async {
        let requested = || network.proxy.count("GET", &slow.layers[1].digest) > 0;
        until(LIMIT, "the layer is asked for", requested).await?;
        is_not_held_up(case, &plugin, "flows:v1").await
    };
    let status = tokio::time::timeout(3 * LIMIT, plugin.start_task(waiting.config.clone()));
    let (status, other) = tokio::join!(status, other);
    other?;
    let status = refused(status.context("it is waited for")?, &["pull_activity_timeout", "20s"])?;
    ensure!(is_recoverable(&status)?, "it is not to be tried again: {status:?}");
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_slow_registry_is_waited_for(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let large = case.environment().catalog().large(1)?;
    let image = network.push(case, &large, "late")?;
    network.proxy.inject_times(&large.layers[1].digest, Fault::Late(Duration::from_secs(33)), 1);
    runs(case, plugin, &image).await?;
    ensure_eq!(network.proxy.count("GET", &large.layers[1].digest), 1);
    Ok(())
}

async fn a_layer_whose_rest_is_refused_is_fetched_anew(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    for (name, fault) in [("no-range", Fault::NoRange), ("wrong-range", Fault::WrongRange)] {
        let large = case.environment().catalog().large(4)?;
        let image = network.push(case, &large, name)?;
        network.proxy.inject_times(&large.layers[1].digest, Fault::CutAfter(2 * MIB), 1);
        network.proxy.inject_times(&large.layers[1].digest, fault, 1);
        runs(case, plugin, &image).await.with_context(|| format!("with {fault:?}"))?;
        ensure_eq!(network.proxy.count("GET", &large.layers[1].digest), 3);
    }
    Ok(())
}

async fn a_pull_outlasts_a_disk_that_stalls(case: &CaseContext) -> Result<()> {
    let mut plugin = plugin_with(case, &json!({"pull_activity_timeout": "5s"})).await?;
    let network = Network::before(case)?;
    let large = case.environment().catalog().large(8)?;
    let image = network.push(case, &large, "stalls")?;
    network.proxy.inject(&large.layers[1].digest, Fault::Throttle(MIB));
    let stall = async {
        // The layer below is long unpacked by then.
        network.has_sent(&large.layers[1], 4 * MIB).await?;
        case.environment().containerd().pause()?;
        tokio::time::sleep(Duration::from_secs(13)).await;
        case.environment().containerd().resume()
    };
    tokio::try_join!(runs(case, &plugin, &image), stall)?;
    network.sent_once(&large.layers[1])?;
    plugin.shut_down().await
}

async fn no_more_is_pulled_at_once_than_the_operator_says(case: &CaseContext) -> Result<()> {
    let mut plugin = plugin_with(case, &json!({"max_parallel_pulls": 1, "max_parallel_layers": 2})).await?;
    let network = Network::before(case)?;
    let mut images = Vec::new();
    for name in ["first", "second", "third"] {
        let mut image = case.environment().catalog().large(1)?;
        for number in 0..3 {
            let content = noise(MIB as usize / 2)?;
            let more =
                case.environment().catalog().with(|tree| tree.file(&format!("{number}"), 0o644, &content))?;
            image.layers.extend(more.layers.into_iter().skip(1));
        }
        images.push(network.push(case, &image, name)?);
    }
    let mut events = plugin.events().await?;
    network.proxy.inject("/blobs/", Fault::Throttle(2 * MIB));
    try_join_all(images.iter().map(|image| runs(case, &plugin, image))).await?;
    ensure_eq!(network.proxy.most_blobs_at_once(), 2);
    // Images are pulled one after the other.
    let requests = network.proxy.requests();
    let mut order: Vec<_> = requests.iter().filter_map(|request| request.path.split('/').nth(2)).collect();
    order.dedup();
    ensure_eq!(order.len(), 3);
    let mut messages = Vec::new();
    while let Ok(Ok(Some(event))) = tokio::time::timeout(Duration::from_secs(1), events.message()).await {
        messages.push(event.message);
    }
    ensure!(
        messages.iter().any(|event| event.contains("waiting for a pull slot")),
        "no event says so: {messages:?}"
    );
    plugin.shut_down().await
}

async fn permanent_errors_are_not_retried(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let large = case.environment().catalog().large(1)?;
    let image = network.push(case, &large, "gone")?;
    network.proxy.inject(&large.layers[1].digest, Fault::Status(404));
    let task = case.prepare(plugin, &config! { image = image, command = "true" }).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&image, &large.layers[1].digest])?;
    ensure!(!is_recoverable(&status)?, "it is to be tried again: {status:?}");
    ensure_eq!(network.proxy.count("GET", &large.layers[1].digest), 1);
    case.nothing_left()?;
    // Transient errors are retried, at once.
    network.proxy.heal();
    network.proxy.inject_times(&large.layers[1].digest, Fault::Status(503), 2);
    network.proxy.clear_requests();
    runs(case, plugin, &image).await?;
    ensure_eq!(network.proxy.count("GET", &large.layers[1].digest), 3);
    Ok(())
}

async fn a_long_pull_is_reported(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let network = Network::before(case)?;
    let large = case.environment().catalog().large(8)?;
    let image = network.push(case, &large, "long")?;
    let mut events = plugin.events().await?;
    network.proxy.inject(&large.layers[1].digest, Fault::Throttle(MIB));
    runs(case, plugin, &image).await?;
    let mut reported = Vec::new();
    while reported
        .last()
        .is_none_or(|event: &nomad_proto::driver::DriverTaskEvent| !event.message.starts_with("Pulled"))
    {
        let event = tokio::time::timeout(LIMIT, events.message()).await.context("no event came")??;
        reported.push(event.context("the stream ended")?);
    }
    ensure_eq!(reported.len(), 3);
    ensure!(reported[1].message.contains("of 2 layers"), "{:?}", reported[1].message);
    ensure!(reported[2].message.contains(network.proxy.address()), "{:?}", reported[2].message);
    let size: usize = large.layers.iter().map(|layer| layer.blob.len()).sum();
    for event in &reported[1..] {
        ensure_eq!(event.annotations["size_bytes"], size.to_string());
    }
    let log = plugin.log().all().join("\n");
    ensure!(log.contains("percent") && log.contains(&image), "there is no percentage in the log: {log}");
    Ok(())
}
