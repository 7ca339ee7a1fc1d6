//! The driver's fingerprint on the node, and how its health follows containerd.

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use nomad_proto::driver::FingerprintResponse;
use nomad_proto::driver::fingerprint_response::HealthState;
use nomad_proto::structs::attribute::Value;
use serde_json::json;

use crate::cases::support::fingerprint::next;
use crate::cases::support::{cases, ensure_eq};

cases!["fingerprint":
    a_healthy_driver_reports_its_versions,
    a_containerd_that_is_killed_makes_it_unhealthy_until_it_is_back,
    a_containerd_that_hangs_makes_it_unhealthy_until_it_answers,
    a_disabled_driver_is_not_detected,
];

fn text(fingerprint: &FingerprintResponse, name: &str) -> String {
    let attribute = fingerprint.attributes.get(&format!("driver.containerd-driver{name}"));
    match attribute.and_then(|attribute| attribute.value.clone()) {
        Some(Value::StringVal(text)) => text,
        other => format!("{other:?}"),
    }
}

async fn a_healthy_driver_reports_its_versions(_: &CaseContext, plugin: &Plugin) -> Result<()> {
    let first = plugin.fingerprints().await?.message().await?.context("no fingerprint")?;
    ensure!(first.health() == HealthState::Healthy && first.err.is_empty(), "{first:?}");
    ensure_eq!(text(&first, ".version"), plugin.info().await?.plugin_version);
    ensure!(text(&first, ".containerd_version").starts_with(|c: char| c.is_ascii_digit()), "{first:?}");
    Ok(())
}

async fn a_containerd_that_is_killed_makes_it_unhealthy_until_it_is_back(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut stream = plugin.fingerprints().await?;
    next(&mut stream, HealthState::Healthy).await?;
    let containerd = case.environment().containerd();
    containerd.kill()?;
    let down = next(&mut stream, HealthState::Unhealthy).await?;
    let socket = containerd.socket().display().to_string();
    ensure!(down.health_description.contains(&socket), "{socket} is not in {:?}", down.health_description);
    containerd.start()?;
    next(&mut stream, HealthState::Healthy).await?;
    Ok(())
}

async fn a_containerd_that_hangs_makes_it_unhealthy_until_it_answers(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut stream = plugin.fingerprints().await?;
    next(&mut stream, HealthState::Healthy).await?;
    case.environment().containerd().pause()?;
    next(&mut stream, HealthState::Unhealthy).await?;
    // A stream that is opened meanwhile must not hang: the agent waits for its first fingerprint.
    let mut second = plugin.fingerprints().await?;
    next(&mut second, HealthState::Unhealthy).await?;
    case.environment().containerd().resume()?;
    next(&mut stream, HealthState::Healthy).await?;
    Ok(())
}

async fn a_disabled_driver_is_not_detected(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["enabled"] = json!(false);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let first = plugin.fingerprints().await?.message().await?.context("no fingerprint")?;
    ensure_eq!(first.health(), HealthState::Undetected);
    ensure!(first.health_description.contains("enabled"), "{:?}", first.health_description);
    plugin.shut_down().await
}
