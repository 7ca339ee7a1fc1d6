//! A task's block `logging { .. }`: a log receiver, and limits of its log files where the driver writes them.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::logging::LogType;
use crate::config::logging::{self, Logging};
use crate::config::plugin::{LogCollection, LogReceivers};
use crate::config::{ConfigError, Warnings, forbidden, value};

#[derive(Deserialize)]
pub(super) struct Raw {
    logging: Option<logging::Raw>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![("logging", logging::task_schema())]
}

impl Raw {
    pub(super) fn decode(self, warnings: &mut Warnings) -> Result<Logging, ConfigError> {
        let Self { logging } = self;
        logging.unwrap_or_default().decode(warnings)
    }
}

/// Checks that the job may name its log type and what the receiver is sent, and that the driver writes the log files, so
/// that sizes in its own words have an effect. Nomad's logs alone are always permitted.
///
/// # Errors
/// Names the option that is forbidden, or would have no effect.
pub(super) fn permitted_by(
    logging: &Logging,
    collection: LogCollection,
    allowed: &LogReceivers,
) -> Result<(), ConfigError> {
    if let (Some(log_type), Some(types)) = (logging.log_type(), &allowed.types)
        && *log_type != LogType::Files
        && !types.iter().any(|name| name == log_type.name())
    {
        let name = log_type.name();
        return Err(forbidden(
            "logging.type",
            name,
            "logging.allowed_types",
            &format!("{name:?} in its list"),
        ));
    }
    if let Some(LogType::Receiver(receiver)) = logging.log_type() {
        receiver.check_facility()?;
    }
    match collection {
        LogCollection::Nomad | LogCollection::Nobody if logging.has_limits() => {
            let why = "it needs the plugin option log_collection = \"driver\"; where Nomad collects the logs, set their \
                       sizes in the task's logs block";
            Err(value("logging", "set", why))
        }
        _ => Ok(()),
    }
}

/// Warns of the sizes of log files where the driver writes none. `default` is the plugin's log type.
pub(super) fn warn_of_limits(
    logging: &Logging,
    collection: LogCollection,
    default: &LogType,
    warnings: &mut Warnings,
) {
    if logging.has_limits() && !logging.log_type().unwrap_or(default).has_files() {
        let why = "max_files and max_file_size have no effect: the task's output is in no log files";
        warnings.add("logging", why);
    }
    if logging.has_dockers_limits() && !matches!(collection, LogCollection::Driver(_)) {
        let why = "max-file and max-size have no effect: the task's logs block has the sizes of Nomad's logs";
        warnings.add("logging.config", why);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::PluginConfig;
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

    #[test]
    fn a_log_type_is_one_that_the_operator_allows() {
        let some = plugin(json!({"logging": {"allowed_types": ["syslog"]}}));
        let permitted = |log_type: &str, plugin: &PluginConfig| {
            decode(&json!({"image": "redis", "logging": {"type": log_type}})).unwrap().permitted_by(plugin)
        };
        for log_type in ["syslog", "json-file", "local"] {
            permitted(log_type, &some).unwrap();
        }
        for log_type in ["journald", "none"] {
            permitted(log_type, &plugin(json!({}))).unwrap();
            let error = permitted(log_type, &some).unwrap_err().to_string();
            assert!(error.contains("logging.type") && error.contains("logging.allowed_types"), "{error}");
        }
        decode(&json!({"image": "redis"})).unwrap().permitted_by(&some).unwrap();
    }

    #[test]
    fn docker_s_log_types_need_no_driver_collection() {
        let dockers = json!({"type": "json-file", "config": [{"max-file": "2", "max-size": "2m"}]});
        let options = decode(&json!({"image": "redis", "logging": dockers})).unwrap();
        options.permitted_by(&plugin(json!({}))).unwrap();
        assert_eq!(options.warnings_under(&plugin(json!({}))).options(), ["logging.config"]);
        assert!(options.warnings_under(&plugin(json!({"log_collection": "driver"}))).is_empty());
    }

    #[test]
    fn sizes_of_files_that_are_not_written_are_warned_of() {
        let driver = plugin(json!({"log_collection": "driver"}));
        let nowhere = plugin(json!({"log_collection": "driver", "logging": {"type": "none"}}));
        let warned = |logging: serde_json::Value, plugin: &PluginConfig| {
            decode(&json!({"image": "redis", "logging": logging})).unwrap().warnings_under(plugin).options()
        };
        assert_eq!(warned(json!({"type": "none", "max_files": 2}), &driver), ["logging"]);
        let uncached = json!({"type": "journald", "max_files": 2, "config": [{"cache-disabled": "true"}]});
        assert_eq!(warned(uncached, &driver), ["logging"]);
        assert_eq!(warned(json!({"max_files": 2}), &nowhere), ["logging"]);
        assert!(warned(json!({"max_files": 2}), &driver).is_empty());
        assert!(warned(json!({"type": "journald", "max_files": 2}), &driver).is_empty());
    }

    #[test]
    fn a_trusted_facility_is_the_operator_s_alone() {
        let logging = json!({"type": "syslog", "config": [{"syslog-facility": "authpriv"}]});
        let job = decode(&json!({"image": "redis", "logging": logging})).unwrap();
        let error = job.permitted_by(&plugin(json!({}))).unwrap_err().to_string();
        assert!(error.contains("authpriv") && error.contains("plugin's logging block"), "{error}");
        plugin(json!({"logging": {"type": "syslog", "config": {"syslog-facility": "authpriv"}}}));
    }
}
