//! The plugin's options about shims that are launched ahead of their tasks.

use std::time::Duration;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::default;
use crate::config::number::Number;
use crate::config::{ConfigError, duration};

/// Maximum of `spare_shims`: each takes some 15 MB of memory.
const MAX_SPARES: i64 = 100;
const DEFAULT_SPARES: &str = "2";
const DEFAULT_IDLE: &str = "10m";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spares {
    /// Number of shims that are kept ready.
    pub count: usize,
    /// Time without a start after which none is kept.
    pub idle: Duration,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    spare_shims: Option<Number>,
    spare_idle: Option<String>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("spare_shims", default("spare_shims", "number", DEFAULT_SPARES)),
        ("spare_idle", default("spare_idle", "string", &format!("\"{DEFAULT_IDLE}\""))),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<Spares, ConfigError> {
        let Self { spare_shims, spare_idle } = self;
        let count = match spare_shims {
            Some(number) => number.within("spare_shims", 0, MAX_SPARES)?,
            None => DEFAULT_SPARES.parse().unwrap_or_default(),
        };
        let idle = spare_idle.filter(|text| !text.is_empty()).unwrap_or_else(|| DEFAULT_IDLE.to_owned());
        Ok(Spares { count: usize::try_from(count).unwrap_or_default(), idle: duration("spare_idle", idle)? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::plugin::tests::{decode, plugin};

    #[test]
    fn two_spares_are_kept_for_ten_minutes_unless_told_otherwise() {
        for (options, count, minutes) in [
            (json!({}), 2, 10),
            (json!({"spare_shims": 0}), 0, 10),
            (json!({"spare_shims": 7, "spare_idle": "1h"}), 7, 60),
        ] {
            let spares = plugin(options).spares;
            assert_eq!((spares.count, spares.idle), (count, Duration::from_secs(60 * minutes)));
        }
        for (option, wrong) in
            [("spare_shims", json!(-1)), ("spare_shims", json!(101)), ("spare_idle", json!("soon"))]
        {
            let options = json!({"containerd_runtime": "io.containerd.runc.v2", option: wrong});
            let error = decode(&options).unwrap_err().to_string();
            assert!(error.contains(option), "{error}");
        }
    }
}
