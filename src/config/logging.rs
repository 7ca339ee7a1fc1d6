//! Size and number of a task's log files where the driver writes them: the block `logging { .. }` of the plugin, and of
//! a task that overrides it.
//!
//! Source of the facts: hashicorp/nomad `nomad/structs` (`LogConfig`, its defaults).

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::hclspec::{block, object, optional};
use super::number::Number;
use super::size::RawSize;
use super::{ConfigError, value};

/// Defaults of Nomad's own `logs` block.
const DEFAULT: LogLimits = LogLimits { max_files: 10, max_file_bytes: 10 << 20 };
/// Minimum size of a log file: two of the longest lines that are kept whole at the end of a file.
const MIN_FILE_BYTES: u64 = 64 << 10;
const MAX_FILES: i64 = 10_000;

/// Limits of the log files of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogLimits {
    pub max_files: usize,
    pub max_file_bytes: u64,
}

/// The options of a `logging` block. An unset one falls back to the operator's value, or to the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Logging {
    max_files: Option<usize>,
    max_file_bytes: Option<u64>,
}

#[derive(Default, Deserialize)]
pub(super) struct Raw {
    max_files: Option<Number>,
    max_file_size: Option<RawSize>,
}

pub(super) fn schema() -> Spec {
    let options = [
        ("max_files", optional("max_files", "number")),
        ("max_file_size", optional("max_file_size", "string")),
    ];
    block("logging", object(options))
}

impl Raw {
    /// # Errors
    /// Names the option with an invalid value.
    pub(super) fn decode(self) -> Result<Logging, ConfigError> {
        let Self { max_files, max_file_size } = self;
        let max_files = max_files.map(|files| files.within("logging.max_files", 1, MAX_FILES)).transpose()?;
        let bytes = max_file_size.map(|size| size.bytes("logging.max_file_size")).transpose()?;
        if let Some(few @ ..MIN_FILE_BYTES) = bytes {
            let why = format!(
                "it must be at least \"{}k\"; a number without a unit is of bytes, other than in Nomad's own block: write \
                 megabytes as \"10m\"",
                MIN_FILE_BYTES >> 10
            );
            return Err(value("logging.max_file_size", few.to_string(), why));
        }
        Ok(Logging {
            max_files: max_files.and_then(|files| usize::try_from(files).ok()),
            max_file_bytes: bytes,
        })
    }
}

impl Logging {
    pub(super) fn is_unset(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the operator's limits, with Nomad's defaults for unset options.
    pub(super) fn or_default(&self) -> LogLimits {
        self.or_from(DEFAULT)
    }

    /// Returns a job's limits, with the operator's for unset options.
    pub(crate) fn or_from(&self, operators: LogLimits) -> LogLimits {
        let Self { max_files, max_file_bytes } = *self;
        LogLimits {
            max_files: max_files.unwrap_or(operators.max_files),
            max_file_bytes: max_file_bytes.unwrap_or(operators.max_file_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn decode(options: Value) -> Result<Logging, String> {
        let raw: Raw = serde_json::from_value(options).unwrap();
        raw.decode().map_err(|error| error.to_string())
    }

    #[test]
    fn a_jobs_log_limits_override_the_operators() {
        let operators = decode(json!({"max_file_size": "1m"})).unwrap().or_default();
        assert_eq!(operators, LogLimits { max_files: 10, max_file_bytes: 1 << 20 });
        let of_job = decode(json!({"max_files": 3, "max_file_size": null})).unwrap().or_from(operators);
        assert_eq!(of_job, LogLimits { max_files: 3, max_file_bytes: 1 << 20 });
        assert!(decode(json!({"max_files": null})).unwrap().is_unset());
    }

    #[test]
    fn a_log_size_without_unit_is_refused() {
        let error = decode(json!({"max_file_size": "10"})).unwrap_err();
        assert!(error.contains("logging.max_file_size") && error.contains("\"10m\""), "{error}");
        assert!(decode(json!({"max_files": 0})).unwrap_err().contains("logging.max_files"));
        assert!(decode(json!({"max_file_size": "large"})).unwrap_err().contains("logging.max_file_size"));
    }
}
