//! The operator's limits on pulls: concurrency, time in all and without progress, and size of an image.

use std::time::Duration;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::{default, optional};
use crate::config::number::Number;
use crate::config::size::RawSize;
use crate::config::{ConfigError, duration};

const DEFAULT_ACTIVITY_TIMEOUT: &str = "2m";
const DEFAULT_TIMEOUT: &str = "5m";
const DEFAULT_PULLS: i64 = 10;
const DEFAULT_LAYERS: i64 = 6;
/// Maximum of either concurrency option: far more than a machine has use for.
const MAX_CONCURRENT: i64 = 1000;

/// The plugin's options about pulls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pulls {
    pub max_parallel: usize,
    /// Maximum number of concurrent layer downloads, over all pulls.
    pub max_parallel_layers: usize,
    pub activity_timeout: Duration,
    /// Maximum time that a task waits for its image, unless its job says otherwise.
    pub timeout: Duration,
    pub max_image_bytes: Option<u64>,
    pub max_unpacked_bytes: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    max_parallel_pulls: Option<Number>,
    max_parallel_layers: Option<Number>,
    pull_activity_timeout: Option<String>,
    image_pull_timeout: Option<String>,
    max_image_size: Option<RawSize>,
    max_unpacked_size: Option<RawSize>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    let quoted = |text: &str| format!("\"{text}\"");
    vec![
        ("max_parallel_pulls", default("max_parallel_pulls", "number", &DEFAULT_PULLS.to_string())),
        ("max_parallel_layers", default("max_parallel_layers", "number", &DEFAULT_LAYERS.to_string())),
        (
            "pull_activity_timeout",
            default("pull_activity_timeout", "string", &quoted(DEFAULT_ACTIVITY_TIMEOUT)),
        ),
        ("image_pull_timeout", default("image_pull_timeout", "string", &quoted(DEFAULT_TIMEOUT))),
        ("max_image_size", optional("max_image_size", "string")),
        ("max_unpacked_size", optional("max_unpacked_size", "string")),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<Pulls, ConfigError> {
        let Self {
            max_parallel_pulls,
            max_parallel_layers,
            pull_activity_timeout,
            image_pull_timeout,
            max_image_size,
            max_unpacked_size,
        } = self;
        let permits = |option, number: Option<Number>, default_value| {
            let permits = number
                .map(|number| number.within(option, 1, MAX_CONCURRENT))
                .transpose()?
                .unwrap_or(default_value);
            Ok(usize::try_from(permits).unwrap_or(1))
        };
        let size = |option, size: Option<RawSize>| size.map(|size| size.bytes(option)).transpose();
        let timeout = |option, given: Option<String>, default_value: &str| {
            duration(option, given.unwrap_or_else(|| default_value.to_owned()))
        };
        Ok(Pulls {
            max_parallel: permits("max_parallel_pulls", max_parallel_pulls, DEFAULT_PULLS)?,
            max_parallel_layers: permits("max_parallel_layers", max_parallel_layers, DEFAULT_LAYERS)?,
            activity_timeout: timeout(
                "pull_activity_timeout",
                pull_activity_timeout,
                DEFAULT_ACTIVITY_TIMEOUT,
            )?,
            timeout: timeout("image_pull_timeout", image_pull_timeout, DEFAULT_TIMEOUT)?,
            max_image_bytes: size("max_image_size", max_image_size)?,
            max_unpacked_bytes: size("max_unpacked_size", max_unpacked_size)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::plugin::tests::{decode, plugin};

    #[test]
    fn pull_limits_are_validated() {
        let config = plugin(json!({})).pulls;
        assert_eq!((config.max_parallel, config.max_parallel_layers, config.max_image_bytes), (10, 6, None));
        let config = plugin(json!({"max_image_size": "20g", "pull_activity_timeout": "30s"})).pulls;
        assert_eq!(
            (config.max_image_bytes, config.activity_timeout),
            (Some(20 << 30), Duration::from_secs(30))
        );
        assert_eq!(config.timeout, Duration::from_secs(300));
        let config = plugin(json!({"image_pull_timeout": "1h"})).pulls;
        assert_eq!(config.timeout, Duration::from_secs(3600));
        for (option, value) in [
            ("image_pull_timeout", json!("0s")),
            ("max_parallel_pulls", json!(0)),
            ("max_parallel_layers", json!(-1)),
            ("pull_activity_timeout", json!("0s")),
            ("max_image_size", json!("large")),
            ("max_unpacked_size", json!("0")),
        ] {
            let options = json!({"containerd_runtime": "io.containerd.runc.v2", option: value});
            let error = decode(&options).unwrap_err().to_string();
            assert!(error.contains(option), "{error}");
        }
    }
}
