//! The collector of tasks' output: Nomad, with a process for each task; the driver, which writes the same files; or
//! none.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::optional;
use crate::config::logging::{self, LogLimits};
use crate::config::{ConfigError, value};

/// The reader of a task's log pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogCollection {
    Nomad,
    /// The driver, within limits that a job may override.
    Driver(LogLimits),
    Nobody,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    log_collection: Option<String>,
    disable_log_collection: Option<bool>,
    logging: Option<logging::Raw>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("log_collection", optional("log_collection", "string")),
        ("disable_log_collection", optional("disable_log_collection", "bool")),
        ("logging", logging::schema()),
    ]
}

impl Raw {
    pub(super) fn decode(self) -> Result<LogCollection, ConfigError> {
        let Self { log_collection, disable_log_collection, logging } = self;
        let name = log_collection.filter(|name| !name.is_empty());
        let limits = logging.unwrap_or_default().decode()?;
        let collection = match (name.as_deref(), disable_log_collection) {
            (None, Some(true)) | (Some("none"), None | Some(true)) => LogCollection::Nobody,
            (None | Some("nomad"), None | Some(false)) => LogCollection::Nomad,
            (Some("driver"), None | Some(false)) => LogCollection::Driver(limits.or_default()),
            (Some("nomad" | "driver" | "none"), Some(disabled)) => {
                let why = format!(
                    "disable_log_collection = {disabled} contradicts it; leave that option out (\"none\" is the same \
                     as true)"
                );
                return Err(value("log_collection", name.unwrap_or_default(), why));
            }
            (Some(_), _) => {
                let why = "it must be \"nomad\", \"driver\" or \"none\"";
                return Err(value("log_collection", name.unwrap_or_default(), why));
            }
        };
        if !limits.is_unset() && !matches!(collection, LogCollection::Driver(_)) {
            let why = "it needs log_collection = \"driver\": Nomad's collector uses each job's logs block";
            return Err(value("logging", "set", why));
        }
        Ok(collection)
    }
}

impl LogCollection {
    /// Returns true if Nomad runs no log collector and makes no pipes.
    pub(crate) fn excludes_nomad(self) -> bool {
        self != Self::Nomad
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::plugin::tests::{decode, plugin};

    #[test]
    fn disable_log_collection_means_nobody() {
        let of = |options: serde_json::Value| plugin(options).log_collection;
        assert_eq!(of(json!({})), LogCollection::Nomad);
        assert_eq!(of(json!({"disable_log_collection": false})), LogCollection::Nomad);
        assert_eq!(of(json!({"log_collection": "none"})), LogCollection::Nobody);
        assert_eq!(of(json!({"disable_log_collection": true})), LogCollection::Nobody);
        assert_eq!(
            of(json!({"log_collection": "none", "disable_log_collection": true})),
            LogCollection::Nobody
        );
        let limits = LogLimits { max_files: 2, max_file_bytes: 10 << 20 };
        let driver = json!({"log_collection": "driver", "logging": {"max_files": 2}});
        assert_eq!(of(driver), LogCollection::Driver(limits));
    }

    #[test]
    fn conflicting_log_options_are_refused_by_name() {
        for (options, named) in [
            (json!({"log_collection": "logmon"}), "log_collection"),
            (json!({"log_collection": "driver", "disable_log_collection": true}), "disable_log_collection"),
            (json!({"log_collection": "nomad", "disable_log_collection": true}), "disable_log_collection"),
            (json!({"log_collection": "none", "disable_log_collection": false}), "disable_log_collection"),
            (json!({"logging": {"max_files": 2}}), "log_collection"),
            (json!({"disable_log_collection": true, "logging": {"max_file_size": "1m"}}), "logging"),
        ] {
            let mut options = options;
            options["containerd_runtime"] = json!("io.containerd.runc.v2");
            let error = decode(&options).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
