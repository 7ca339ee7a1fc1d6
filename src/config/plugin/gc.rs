//! The plugin block's `gc { .. }`: what is removed by itself. The names are those of Nomad's docker driver.

use std::time::Duration;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block, default, object};
use crate::config::{ConfigError, duration};

const DEFAULT_PERIOD: &str = "5m";
const DEFAULT_CREATION_GRACE: &str = "5m";

/// What happens to containers that Nomad doesn't know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DanglingContainers {
    pub enabled: bool,
    /// Only say which they are.
    pub dry_run: bool,
    pub period: Duration,
    pub creation_grace: Duration,
}

#[derive(Default, Deserialize)]
pub(super) struct RawGc {
    dangling_containers: Option<RawDanglingContainers>,
}

#[derive(Default, Deserialize)]
struct RawDanglingContainers {
    enabled: Option<bool>,
    dry_run: Option<bool>,
    period: Option<String>,
    creation_grace: Option<String>,
}

pub(super) fn schema() -> Spec {
    let quoted = |text: &str| format!("\"{text}\"");
    let dangling_containers = object([
        ("enabled", default("enabled", "bool", "true")),
        ("dry_run", default("dry_run", "bool", "false")),
        ("period", default("period", "string", &quoted(DEFAULT_PERIOD))),
        ("creation_grace", default("creation_grace", "string", &quoted(DEFAULT_CREATION_GRACE))),
    ]);
    block("gc", object([("dangling_containers", block("dangling_containers", dangling_containers))]))
}

/// # Errors
/// Names the option that can't have its value.
pub(super) fn dangling_containers(raw: Option<RawGc>) -> Result<DanglingContainers, ConfigError> {
    let RawGc { dangling_containers } = raw.unwrap_or_default();
    let RawDanglingContainers { enabled, dry_run, period, creation_grace } =
        dangling_containers.unwrap_or_default();
    let period = period.unwrap_or_else(|| DEFAULT_PERIOD.to_owned());
    let creation_grace = creation_grace.unwrap_or_else(|| DEFAULT_CREATION_GRACE.to_owned());
    Ok(DanglingContainers {
        enabled: enabled.unwrap_or(true),
        dry_run: dry_run.unwrap_or(false),
        period: duration("gc.dangling_containers.period", period)?,
        creation_grace: duration("gc.dangling_containers.creation_grace", creation_grace)?,
    })
}
