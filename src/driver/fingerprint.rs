//! The driver's fingerprint: health and attributes that tell the node whether tasks can be started, and why not.
//! Follows containerd's health, down and back, for as long as the agent listens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nomad_proto::driver::FingerprintResponse;
use nomad_proto::driver::fingerprint_response::HealthState;
use nomad_proto::structs::{Attribute, attribute::Value};
use tokio::sync::watch;
use tokio_stream::Stream;

use crate::cgroup;
use crate::shorten::shorten;
use crate::sys::error_chain::Chained;
use crate::sys::open_files::OpenFiles;
use crate::task::{Settings, Tasks};

/// Interval of health checks.
const PROBE: Duration = Duration::from_secs(2);
/// Maximum wait for the lock on a state directory that no other plugin has.
const LOCK: Duration = Duration::from_secs(2);
/// Interval at which an unchanged fingerprint is repeated.
const REPEAT: Duration = Duration::from_secs(30);

type Configured = watch::Receiver<Option<Arc<Settings>>>;

/// Returns the stream of fingerprints: the first at once, then on each change and at intervals. It never ends by
/// itself, since the agent would open it again at once.
pub(super) fn stream(settings: Configured, tasks: Arc<Tasks>) -> impl Stream<Item = FingerprintResponse> {
    let nothing_sent: Option<(FingerprintResponse, Instant)> = None;
    let state = (settings, tasks, nothing_sent);
    futures::stream::unfold(state, |(mut settings, tasks, mut sent)| async move {
        loop {
            let current = settings.borrow_and_update().clone();
            if sent.is_some() {
                tokio::select! {
                    () = tokio::time::sleep(PROBE) => {}
                    Ok(()) = settings.changed() => {}
                    () = claim_changes(current.as_deref(), &tasks) => {}
                }
            }
            let current = settings.borrow_and_update().clone();
            let found = look(current.as_deref(), &tasks).await;
            let old = sent.as_ref().is_some_and(|(last, at)| *last == found && at.elapsed() < REPEAT);
            if old {
                continue;
            }
            if sent.as_ref().is_none_or(|(last, _)| last.health != found.health) {
                tracing::info!(health = ?found.health(), "{}", found.health_description);
            }
            sent = Some((found.clone(), Instant::now()));
            return Some((found, (settings, tasks, sent)));
        }
    })
}

/// Waits for a change of the claim to the state directory; forever if the driver makes none.
async fn claim_changes(settings: Option<&Settings>, tasks: &Tasks) {
    match settings.filter(|settings| settings.config.enabled) {
        Some(settings) => tasks.claim(settings).changes().await,
        None => std::future::pending().await,
    }
}

async fn look(settings: Option<&Settings>, tasks: &Tasks) -> FingerprintResponse {
    let Some(settings) = settings else {
        return answer(HealthState::Undetected, "not configured yet", Facts::default());
    };
    if !settings.config.enabled {
        return answer(
            HealthState::Undetected,
            "disabled by the plugin option enabled = false",
            Facts::default(),
        );
    }
    let mut facts = Facts {
        runtime: settings.config.containerd_runtime.clone(),
        bridge_network: settings.cni.is_ready().await,
        ..Facts::default()
    };
    if let Err(error) = tasks.claim(settings).held_within(LOCK).await {
        return answer(HealthState::Unhealthy, &error.chain().to_string(), facts);
    }
    match settings.shim().await {
        Ok(path) => facts.shim = path.display().to_string(),
        Err(error) => return answer(HealthState::Unhealthy, &error.chain().to_string(), facts),
    }
    match settings.containerd.version().await {
        Ok(version) => facts.containerd = version,
        Err(error) => return answer(HealthState::Unhealthy, &error.chain().to_string(), facts),
    }
    if let Err(error) = settings.containerd.check_snapshotter().await {
        return answer(HealthState::Unhealthy, &error.chain().to_string(), facts);
    }
    answer(HealthState::Healthy, "Healthy", facts)
}

/// Values of the attributes; an empty string clears an attribute that was set before.
#[derive(Default)]
struct Facts {
    runtime: String,
    shim: String,
    containerd: String,
    bridge_network: bool,
}

fn answer(health: HealthState, description: &str, facts: Facts) -> FingerprintResponse {
    let text = |value: String| Attribute { value: Some(Value::StringVal(value)), unit: String::new() };
    let detected = Attribute { value: Some(Value::BoolVal(true)), unit: String::new() };
    let mut attributes = HashMap::from([
        ("driver.containerd-driver.version".to_owned(), text(env!("CARGO_PKG_VERSION").to_owned())),
        ("driver.containerd-driver.containerd_version".to_owned(), text(facts.containerd)),
        ("driver.containerd-driver.containerd_runtime".to_owned(), text(facts.runtime)),
        ("driver.containerd-driver.shim".to_owned(), text(facts.shim)),
        ("driver.containerd-driver.cgroup_version".to_owned(), text(cgroup_version())),
        ("driver.containerd-driver.open_files".to_owned(), text(OpenFiles::now().soft.to_string())),
    ]);
    let bridge_network = if facts.bridge_network { detected.clone() } else { text(String::new()) };
    attributes.insert("driver.containerd-driver.bridge_network".to_owned(), bridge_network);
    let present = if health == HealthState::Undetected { text(String::new()) } else { detected };
    attributes.insert("driver.containerd-driver".to_owned(), present);
    FingerprintResponse {
        attributes,
        health: health.into(),
        health_description: shorten(description.to_owned()),
        err: String::new(),
    }
}

fn cgroup_version() -> String {
    match cgroup::mode() {
        cgroup::Mode::V1 => "v1".to_owned(),
        cgroup::Mode::V2 => "v2".to_owned(),
    }
}
