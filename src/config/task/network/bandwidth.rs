//! The option `bandwidth`: limits of a task's network traffic.
//!
//! Source of the facts: the CNI specification's `CONVENTIONS.md` (the terms of the capability).

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{block, object, optional};
use crate::config::size::size;
use crate::config::{ConfigError, value};

/// Maximum burst that the CNI plugin `bandwidth` accepts, in bytes: it counts bits in 32 bits.
const MOST_BURST_BYTES: u64 = u32::MAX as u64 / 8;

/// Limits of traffic per direction, as the task sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    /// Traffic to the task.
    pub ingress: Option<Rate>,
    /// Traffic from the task.
    pub egress: Option<Rate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub bytes_per_second: u64,
    pub burst_bytes: u64,
}

#[derive(Default, Deserialize)]
pub(super) struct Raw {
    ingress_rate: Option<String>,
    ingress_burst: Option<String>,
    egress_rate: Option<String>,
    egress_burst: Option<String>,
}

pub(super) fn schema() -> Spec {
    let terms = ["ingress_rate", "ingress_burst", "egress_rate", "egress_burst"];
    block("bandwidth", object(terms.map(|term| (term, optional(term, "string")))))
}

impl Raw {
    pub(super) fn decode(self) -> Result<Bandwidth, ConfigError> {
        let Self { ingress_rate, ingress_burst, egress_rate, egress_burst } = self;
        Ok(Bandwidth {
            ingress: rate("bandwidth.ingress_rate", ingress_rate, "bandwidth.ingress_burst", ingress_burst)?,
            egress: rate("bandwidth.egress_rate", egress_rate, "bandwidth.egress_burst", egress_burst)?,
        })
    }
}

/// Decodes a rate and its burst. The burst defaults to one second at that rate.
fn rate(
    option: &'static str,
    rate: Option<String>,
    burst_option: &'static str,
    burst: Option<String>,
) -> Result<Option<Rate>, ConfigError> {
    let given = |option: &'static str, text: Option<String>, most: u64| {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
        match size(option, text.clone())? {
            bytes if bytes > 0 && bytes <= most => Ok(Some(bytes)),
            _ => Err(value(option, text, format!("it must be greater than 0, and at most {most} bytes"))),
        }
    };
    match (given(option, rate, u64::MAX / 8)?, given(burst_option, burst.clone(), MOST_BURST_BYTES)?) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(value(burst_option, burst.unwrap_or_default(), format!("it has no effect without {option}")))
        }
        (Some(bytes_per_second), burst) => {
            let burst_bytes = burst.unwrap_or_else(|| bytes_per_second.min(MOST_BURST_BYTES));
            Ok(Some(Rate { bytes_per_second, burst_bytes }))
        }
    }
}
