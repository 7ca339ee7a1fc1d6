//! The driver's fingerprints.

use std::time::Duration;

use anyhow::{Context, Result};
use nomad_proto::driver::FingerprintResponse;
use nomad_proto::driver::fingerprint_response::HealthState;
use nomad_proto::structs::attribute::Value;
use tonic::Streaming;

/// Maximum time until a fingerprint shows a change of health.
pub const CHANGE: Duration = Duration::from_secs(20);

/// Reads fingerprints until the health is `wanted`.
pub async fn next(
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
pub fn is_detected(fingerprint: &FingerprintResponse) -> bool {
    let attribute = fingerprint.attributes.get("driver.containerd-driver");
    matches!(attribute.and_then(|attribute| attribute.value.clone()), Some(Value::BoolVal(true)))
}
