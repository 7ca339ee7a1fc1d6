//! The driver's fingerprint on the node, and how its health follows containerd.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::Scene;
use nomad_proto::driver::FingerprintResponse;
use nomad_proto::driver::fingerprint_response::HealthState;
use nomad_proto::structs::attribute::Value;
use serde_json::json;
use tonic::Streaming;

use super::{cases, same};

cases!["fingerprint":
    a_healthy_driver_tells_its_versions,
    a_containerd_that_is_killed_makes_it_unhealthy_until_it_is_back,
    a_containerd_that_hangs_makes_it_unhealthy_until_it_answers,
    a_disabled_driver_is_not_detected,
];

const CHANGE: Duration = Duration::from_secs(20);

/// Reads fingerprints until the health is `wanted`.
pub(super) async fn next(
    stream: &mut Streaming<FingerprintResponse>,
    wanted: HealthState,
) -> Result<FingerprintResponse> {
    let read = async {
        loop {
            let fingerprint = stream.message().await?.context("the stream ended")?;
            if fingerprint.health() == wanted {
                return Ok(fingerprint);
            }
        }
    };
    tokio::time::timeout(CHANGE, read).await.with_context(|| format!("no {wanted:?} in {CHANGE:?}"))?
}

/// Returns whether the node is told that the driver is there.
pub(super) fn is_detected(fingerprint: &FingerprintResponse) -> bool {
    let attribute = fingerprint.attributes.get("driver.containerd-driver");
    matches!(attribute.and_then(|attribute| attribute.value.clone()), Some(Value::BoolVal(true)))
}

fn text(fingerprint: &FingerprintResponse, name: &str) -> String {
    let attribute = fingerprint.attributes.get(&format!("driver.containerd-driver{name}"));
    match attribute.and_then(|attribute| attribute.value.clone()) {
        Some(Value::StringVal(text)) => text,
        other => format!("{other:?}"),
    }
}

async fn a_healthy_driver_tells_its_versions(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let first = plugin.fingerprints().await?.message().await?.context("no fingerprint")?;
    ensure!(first.health() == HealthState::Healthy && first.err.is_empty(), "{first:?}");
    same!(text(&first, ".version"), plugin.info().await?.plugin_version);
    ensure!(text(&first, ".containerd_version").starts_with(|c: char| c.is_ascii_digit()), "{first:?}");
    plugin.shut_down().await
}

async fn a_containerd_that_is_killed_makes_it_unhealthy_until_it_is_back(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let mut stream = plugin.fingerprints().await?;
    next(&mut stream, HealthState::Healthy).await?;
    let containerd = scene.world().containerd();
    containerd.kill()?;
    let down = next(&mut stream, HealthState::Unhealthy).await?;
    let socket = containerd.socket().display().to_string();
    ensure!(down.health_description.contains(&socket), "{socket} is not in {:?}", down.health_description);
    containerd.start()?;
    next(&mut stream, HealthState::Healthy).await?;
    plugin.shut_down().await
}

async fn a_containerd_that_hangs_makes_it_unhealthy_until_it_answers(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let mut stream = plugin.fingerprints().await?;
    next(&mut stream, HealthState::Healthy).await?;
    scene.world().containerd().pause()?;
    next(&mut stream, HealthState::Unhealthy).await?;
    // A stream that is opened meanwhile must not hang: the agent waits for its first fingerprint.
    let mut second = plugin.fingerprints().await?;
    next(&mut second, HealthState::Unhealthy).await?;
    scene.world().containerd().resume()?;
    next(&mut stream, HealthState::Healthy).await?;
    plugin.shut_down().await
}

async fn a_disabled_driver_is_not_detected(scene: &Scene) -> Result<()> {
    let mut options = scene.options();
    options["enabled"] = json!(false);
    let mut plugin = scene.plugin_as(&scene.launch(), &options).await?;
    let first = plugin.fingerprints().await?.message().await?.context("no fingerprint")?;
    same!(first.health(), HealthState::Undetected);
    ensure!(first.health_description.contains("enabled"), "{:?}", first.health_description);
    plugin.shut_down().await
}
