//! A task's block `logging { .. }`: limits of its log files, where the driver writes them.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::logging::{self, Logging};
use crate::config::plugin::LogCollection;
use crate::config::{ConfigError, value};

#[derive(Deserialize)]
pub(super) struct Raw {
    logging: Option<logging::Raw>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![("logging", logging::schema())]
}

impl Raw {
    pub(super) fn decode(self) -> Result<Logging, ConfigError> {
        let Self { logging } = self;
        logging.unwrap_or_default().decode()
    }
}

/// Checks that the driver writes the log files, so that the block has an effect.
///
/// # Errors
/// Names the option if it would have none.
pub(super) fn permitted_by(logging: &Logging, collection: LogCollection) -> Result<(), ConfigError> {
    match collection {
        LogCollection::Nomad | LogCollection::Nobody if !logging.is_unset() => {
            let why = "it needs the plugin option log_collection = \"driver\"; where Nomad collects the logs, set their sizes \
             in the task's logs block";
            Err(value("logging", "set", why))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::plugin::tests::plugin;
    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn log_limits_without_driver_collection_are_refused() {
        refusal("logging", json!({"max_files": 0}));
        let options = decode(&json!({"image": "redis", "logging": {"max_files": 2}})).unwrap();
        options.permitted_by(&plugin(json!({"log_collection": "driver"}))).unwrap();
        for collection in ["nomad", "none"] {
            let error = options.permitted_by(&plugin(json!({"log_collection": collection}))).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("option logging") && error.contains("log_collection"), "{error}");
        }
    }
}
