//! The operator's limit on concurrent task starts.

use std::num::NonZeroUsize;
use std::thread;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::ConfigError;
use crate::config::hclspec::default;
use crate::config::number::Number;

/// Maximum of `max_concurrent_starts`: far more than a machine has use for.
const MAX_CONCURRENT_STARTS: i64 = 1000;
/// Default number of concurrent starts per CPU: a start waits for the disk and for the kernel about as long as it
/// computes.
const DEFAULT_STARTS_PER_CPU: usize = 2;

/// The plugin's options about starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StartLimit {
    /// Maximum number of concurrent starts. `None` derives it from the number of CPUs.
    pub max_concurrent: Option<NonZeroUsize>,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    max_concurrent_starts: Option<Number>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![("max_concurrent_starts", default("max_concurrent_starts", "number", "0"))]
}

impl Raw {
    pub(super) fn decode(self) -> Result<StartLimit, ConfigError> {
        let Self { max_concurrent_starts } = self;
        let requested = max_concurrent_starts
            .map(|number| number.within("max_concurrent_starts", 0, MAX_CONCURRENT_STARTS))
            .transpose()?
            .unwrap_or_default();
        Ok(StartLimit { max_concurrent: usize::try_from(requested).ok().and_then(NonZeroUsize::new) })
    }
}

impl StartLimit {
    /// Returns the maximum number of concurrent starts.
    pub(crate) fn max_concurrent_starts(self) -> usize {
        let suits = || DEFAULT_STARTS_PER_CPU * thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.max_concurrent.map_or_else(suits, NonZeroUsize::get)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::plugin::tests::{decode, plugin};

    #[test]
    fn the_start_limit_defaults_to_the_number_of_cpus() {
        let cores = thread::available_parallelism().unwrap().get();
        for (options, max_concurrent_starts) in [
            (json!({}), DEFAULT_STARTS_PER_CPU * cores),
            (json!({"max_concurrent_starts": 0}), DEFAULT_STARTS_PER_CPU * cores),
            (json!({"max_concurrent_starts": 7}), 7),
        ] {
            assert_eq!(plugin(options).start_limit.max_concurrent_starts(), max_concurrent_starts);
        }
        for wrong in [json!(-1), json!(1001)] {
            let options =
                json!({"containerd_runtime": "io.containerd.runc.v2", "max_concurrent_starts": wrong});
            let error = decode(&options).unwrap_err().to_string();
            assert!(error.contains("max_concurrent_starts"), "{error}");
        }
    }
}
