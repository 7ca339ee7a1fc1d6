//! The collector of tasks' output: Nomad, with a process for each task; the driver, which writes the same files; or
//! none.

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use crate::config::hclspec::optional;
use crate::config::logging::{self, LogLimits, LogType};
use crate::config::{ConfigError, DriverName, Warnings, reject_nulls, value};
use crate::sys::ip_network::IpNetwork;

/// The log types that a job can name beside those of Nomad's logs.
const TYPES: [&str; 5] = ["none", "journald", "syslog", "fluentd", "gelf"];

/// The reader of a task's log pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogCollection {
    Nomad,
    /// The driver, within limits that a job may override.
    Driver(LogLimits),
    Nobody,
}

/// The plugin's options of logs.
pub(super) struct Logs {
    pub(super) collection: LogCollection,
    /// The log type of a task that names none.
    pub(super) default_type: LogType,
    pub(super) receivers: LogReceivers,
}

/// The log receivers that jobs may name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogReceivers {
    /// Docker's names of the types; `None` allows all.
    pub types: Option<Vec<String>>,
    /// Networks in which a receiver's address may be one of the host's own; `None` allows all.
    pub host_addresses: Option<Vec<IpNetwork>>,
}

type List = Option<Vec<Option<String>>>;

#[derive(Default, Deserialize)]
struct RawLogging {
    allowed_types: List,
    allowed_host_addresses: List,
    #[serde(flatten)]
    own: logging::Raw,
}

#[derive(Deserialize)]
pub(super) struct Raw {
    log_collection: Option<String>,
    disable_log_collection: Option<bool>,
    logging: Option<RawLogging>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![
        ("log_collection", optional("log_collection", "string")),
        ("disable_log_collection", optional("disable_log_collection", "bool")),
        ("logging", logging::plugin_schema()),
    ]
}

impl Raw {
    pub(super) fn decode(self, driver: DriverName, warnings: &mut Warnings) -> Result<Logs, ConfigError> {
        let Self { log_collection, disable_log_collection, logging } = self;
        let name = log_collection.filter(|name| !name.is_empty());
        let RawLogging { allowed_types, allowed_host_addresses, own } = logging.unwrap_or_default();
        let limits = own.decode(warnings)?;
        let receivers = receivers(driver, allowed_types, allowed_host_addresses)?;
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
        if limits.has_limits() && !matches!(collection, LogCollection::Driver(_)) {
            let why = "it needs log_collection = \"driver\": Nomad's collector uses each job's logs block";
            return Err(value("logging", "set", why));
        }
        if limits.has_dockers_limits() && !matches!(collection, LogCollection::Driver(_)) {
            let why = "max-file and max-size have no effect without log_collection = \"driver\": each job's logs block has \
                       the sizes of Nomad's logs";
            warnings.add("logging.config", why);
        }
        Ok(Logs { collection, default_type: limits.log_type().cloned().unwrap_or_default(), receivers })
    }
}

fn receivers(driver: DriverName, types: List, host_addresses: List) -> Result<LogReceivers, ConfigError> {
    let listed = |option, list: List| match list {
        None => Ok(None),
        list => reject_nulls(option, list).map(Some),
    };
    let types = listed("logging.allowed_types", types)?;
    let of_files = ["json-file", "local"];
    if let Some(other) = types.iter().flatten().find(|name| {
        let known = |of: &[&str]| of.contains(&name.as_str());
        !known(&TYPES[..]) && !known(&of_files[..])
    }) {
        let why = format!("a log type is one of {}", TYPES.join(", "));
        return Err(value("logging.allowed_types", other.clone(), why));
    }
    let network = |text: String| {
        let why = "it must be an address such as \"127.0.0.1\", or a network such as \"10.0.0.0/8\"";
        IpNetwork::parse(&text).ok_or_else(|| value("logging.allowed_host_addresses", text, why))
    };
    let given = listed("logging.allowed_host_addresses", host_addresses)?;
    let host_addresses = match given {
        Some(texts) => Some(texts.into_iter().map(network).collect::<Result<_, _>>()?),
        None => driver.either(Some(Vec::new()), None),
    };
    Ok(LogReceivers { types, host_addresses })
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
    use crate::config::PluginConfig;
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
    fn docker_s_default_of_the_plugin_is_taken() {
        let dockers =
            json!({"logging": {"type": "json-file", "config": {"max-file": "2", "max-size": "2m"}}});
        let nomad = plugin(dockers.clone());
        assert_eq!((nomad.log_type, nomad.warnings.options()), (LogType::Files, vec!["logging.config"]));
        let mut driver = dockers;
        driver["log_collection"] = json!("driver");
        assert!(plugin(driver).warnings.is_empty());
        assert_eq!(plugin(json!({})).log_type, LogType::Files);
        let journald = plugin(json!({"logging": {"type": "journald"}}));
        assert!(matches!(journald.log_type, LogType::Receiver(_)));
    }

    #[test]
    fn receivers_on_the_host_are_docker_s_default_alone() {
        let default = plugin(json!({})).log_receivers;
        assert_eq!(default, LogReceivers { types: None, host_addresses: Some(Vec::new()) });
        let docker = rmp_serde::to_vec_named(&json!({})).unwrap();
        let docker = PluginConfig::decode(DriverName::Docker, &docker).unwrap().unwrap();
        assert_eq!(docker.log_receivers, LogReceivers::default());
        let listed =
            json!({"allowed_types": ["gelf"], "allowed_host_addresses": ["127.0.0.1", "10.0.0.0/8"]});
        let listed = plugin(json!({"logging": listed})).log_receivers;
        assert_eq!(listed.types.unwrap(), ["gelf"]);
        assert_eq!(listed.host_addresses.unwrap().len(), 2);
    }

    #[test]
    fn conflicting_log_options_are_refused_by_name() {
        for (options, named) in [
            (json!({"log_collection": "logmon"}), "log_collection"),
            (json!({"log_collection": "driver", "disable_log_collection": true}), "disable_log_collection"),
            (json!({"log_collection": "nomad", "disable_log_collection": true}), "disable_log_collection"),
            (json!({"log_collection": "none", "disable_log_collection": false}), "disable_log_collection"),
            (json!({"logging": {"max_files": 2}}), "log_collection"),
            (json!({"logging": {"allowed_types": ["splunk"]}}), "logging.allowed_types"),
            (json!({"logging": {"allowed_types": [null]}}), "logging.allowed_types"),
            (json!({"logging": {"allowed_host_addresses": ["localhost"]}}), "logging.allowed_host_addresses"),
            (json!({"disable_log_collection": true, "logging": {"max_file_size": "1m"}}), "logging"),
        ] {
            let mut options = options;
            options["containerd_runtime"] = json!("io.containerd.runc.v2");
            let error = decode(&options).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
