//! The block `logging { .. }` of the plugin, and of a task that overrides it: where a task's output goes beside Nomad's
//! logs, in docker's words, and size and number of its log files where the driver writes them.
//!
//! Source of the facts: hashicorp/nomad `nomad/structs` (`LogConfig`, its defaults), `drivers/docker/config.go`
//! (1.11.3).

mod options;
mod receiver;
mod tag;

use std::collections::BTreeMap;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;

use super::hclspec::{block, block_attrs, object, optional};
use super::number::Number;
use super::size::RawSize;
use super::{ConfigError, Warnings, value};
use options::Options;
pub(crate) use receiver::{
    Attributes, Compression, LogEndpoint, LogReceiver, Protocol, SyslogFormat, TlsPaths, compile,
};
pub(crate) use tag::{TagField, TagPart};

/// Defaults of Nomad's own `logs` block.
const DEFAULT: LogLimits = LogLimits { max_files: 10, max_file_bytes: 10 << 20 };
/// Minimum size of a log file: two of the longest lines that are kept whole at the end of a file.
const MIN_FILE_BYTES: u64 = 64 << 10;
const MAX_FILES: i64 = 10_000;
/// Maximum number of a receiver's options, and of the bytes of all of them: they are kept in the task's handle.
const MAX_OPTIONS: usize = 64;
const MAX_OPTION_BYTES: usize = 16 << 10;

/// Limits of the log files of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogLimits {
    pub max_files: usize,
    pub max_file_bytes: u64,
}

/// The destination of a task's output, by docker's name of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum LogType {
    /// Nomad's logs alone. docker writes files of its own as well, whose limits are those of the driver's files here.
    #[default]
    Files,
    /// Nowhere.
    Nothing,
    /// A log receiver, beside Nomad's logs.
    Receiver(Box<LogReceiver>),
}

/// The options of a `logging` block. An unset one falls back to the operator's value, or to the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Logging {
    max_files: Option<usize>,
    max_file_bytes: Option<u64>,
    /// The limits that docker's own options have.
    dockers: FileLimits,
    log_type: Option<LogType>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct FileLimits {
    max_files: Option<usize>,
    max_file_bytes: Option<u64>,
}

#[derive(Default, Deserialize)]
pub(super) struct Raw {
    max_files: Option<Number>,
    max_file_size: Option<RawSize>,
    r#type: Option<String>,
    driver: Option<String>,
    config: Option<RawConfig>,
}

/// The options of a type: a list of maps in a job, as docker's driver has it, a map in the plugin's configuration.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawConfig {
    List(Vec<Option<BTreeMap<String, Option<String>>>>),
    Map(BTreeMap<String, Option<String>>),
}

/// Declares the block of a task.
pub(super) fn task_schema() -> Spec {
    let dockers =
        [("driver", optional("driver", "string")), ("config", optional("config", "list(map(string))"))];
    schema(dockers)
}

/// Declares the block of the plugin's configuration.
pub(super) fn plugin_schema() -> Spec {
    schema([
        ("config", block_attrs("config", "string")),
        ("allowed_types", optional("allowed_types", "list(string)")),
        ("allowed_host_addresses", optional("allowed_host_addresses", "list(string)")),
    ])
}

fn schema<const N: usize>(others: [(&'static str, Spec); N]) -> Spec {
    let options = [
        ("max_files", optional("max_files", "number")),
        ("max_file_size", optional("max_file_size", "string")),
        ("type", optional("type", "string")),
    ];
    block("logging", object(options.into_iter().chain(others)))
}

impl Raw {
    /// # Errors
    /// Names the option with an invalid value.
    pub(super) fn decode(self, warnings: &mut Warnings) -> Result<Logging, ConfigError> {
        let Self { max_files, max_file_size, r#type, driver, config } = self;
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
        let given = |name: Option<String>| name.filter(|name| !name.is_empty());
        let (name, driver) = (given(r#type), given(driver));
        if let (Some(name), Some(driver)) = (&name, &driver)
            && name != driver
        {
            return Err(ConfigError::Conflict { option: "logging.type", other: "logging.driver" });
        }
        let options = config.map(RawConfig::options).transpose()?.unwrap_or_default();
        let name = name.or(driver);
        let (log_type, dockers) = match (name, options.is_empty()) {
            (None, true) => (None, FileLimits::default()),
            (name, _) => {
                let (log_type, limits) = log_type(name.as_deref().unwrap_or("json-file"), options, warnings)?;
                (Some(log_type), limits)
            }
        };
        Ok(Logging {
            max_files: max_files.and_then(|files| usize::try_from(files).ok()),
            max_file_bytes: bytes,
            dockers,
            log_type,
        })
    }
}

impl RawConfig {
    /// Returns the options; a later map of the list wins, as in docker's driver.
    fn options(self) -> Result<BTreeMap<String, String>, ConfigError> {
        let maps = match self {
            Self::List(maps) => maps,
            Self::Map(map) => vec![Some(map)],
        };
        let pairs = maps.into_iter().flatten().flatten();
        let all: BTreeMap<_, _> = pairs.map(|(key, text)| (key, text.unwrap_or_default())).collect();
        let bytes: usize = all.iter().map(|(key, text)| key.len() + text.len()).sum();
        if all.len() > MAX_OPTIONS || bytes > MAX_OPTION_BYTES {
            let why = format!("it has at most {MAX_OPTIONS} options, of {MAX_OPTION_BYTES} bytes together");
            return Err(value("logging.config", format!("{} options", all.len()), why));
        }
        Ok(all)
    }
}

/// Decodes a log type of docker's with its options.
fn log_type(
    name: &str,
    options: BTreeMap<String, String>,
    warnings: &mut Warnings,
) -> Result<(LogType, FileLimits), ConfigError> {
    let receiver = |options: Options<'_>| {
        LogReceiver::decode(options)
            .map(|receiver| (LogType::Receiver(Box::new(receiver)), FileLimits::default()))
    };
    let refused = |why: &str| Err(value("logging.type", name, why));
    match name {
        // podman's driver calls Nomad's own logs so.
        "nomad" => files(Options::new("json-file", options, warnings)),
        "json-file" => files(Options::new("json-file", options, warnings)),
        "local" => files(Options::new("local", options, warnings)),
        "none" => {
            for key in options.keys() {
                warnings.add("logging.config", format!("{key} has no effect: the type none has no options"));
            }
            Ok((LogType::Nothing, FileLimits::default()))
        }
        "journald" => receiver(Options::new("journald", options, warnings)),
        "syslog" => receiver(Options::new("syslog", options, warnings)),
        "fluentd" => receiver(Options::new("fluentd", options, warnings)),
        "gelf" => receiver(Options::new("gelf", options, warnings)),
        "awslogs" | "gcplogs" | "splunk" | "etwlogs" | "logentries" => refused(
            "this driver does not speak that service's protocol; use \"fluentd\", \"gelf\", \"syslog\" or \"journald\" \
             with a log shipper that does, or leave the block out and ship Nomad's log files",
        ),
        _ => refused(
            "it must be \"json-file\", \"local\", \"none\", \"journald\", \"syslog\", \"fluentd\" or \"gelf\"; docker's \
             logging plugins can't be used here: ship Nomad's log files instead",
        ),
    }
}

/// Decodes the options of docker's log files. Nomad's logs have no room for what `labels`, `env` and `tag` add to each
/// line of those files, and nothing shows it under docker's driver either.
fn files(mut options: Options<'_>) -> Result<(LogType, FileLimits), ConfigError> {
    let why = "has no effect: Nomad's logs have no place for it";
    options.warn_of(&["tag"], why);
    options.warn_of(&receiver::ATTRIBUTES, why);
    options.warn_of(&["compress"], "has no effect: Nomad's log files are not compressed");
    options.warn_of(&["mode", "max-buffer-size"], "has no effect without a log receiver");
    options.warn_of(&["cache-disabled"], "has no effect: Nomad's logs are the only ones");
    let max_files = options.number("max-file", 1, MAX_FILES)?;
    let max_file_bytes = match options.take("max-size") {
        // No limit, in docker's words.
        Some(size) if size == "-1" => None,
        Some(size) => Some(options.size("max-size", &size)?.max(MIN_FILE_BYTES)),
        None => None,
    };
    options.flag("compress")?;
    let (_, _) = (options.take("tag"), receiver::attributes(&mut options)?);
    receiver::delivery(&mut options, None)?;
    receiver::cache(&mut options)?;
    options.finish()?;
    let limits =
        FileLimits { max_files: max_files.and_then(|files| usize::try_from(files).ok()), max_file_bytes };
    Ok((LogType::Files, limits))
}

impl LogType {
    /// Returns whether the output is in files that the driver writes, where it collects logs.
    pub(super) fn has_files(&self) -> bool {
        match self {
            Self::Files => true,
            Self::Nothing => false,
            Self::Receiver(receiver) => receiver.feeds_nomad,
        }
    }

    /// Returns docker's name of the type.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Files => "json-file",
            Self::Nothing => "none",
            Self::Receiver(receiver) => receiver.protocol.name(),
        }
    }
}

impl Logging {
    /// Returns whether the block has sizes of log files in this driver's own words.
    pub(super) fn has_limits(&self) -> bool {
        self.max_files.is_some() || self.max_file_bytes.is_some()
    }

    /// Returns whether the block has sizes of docker's log files.
    pub(super) fn has_dockers_limits(&self) -> bool {
        self.dockers != FileLimits::default()
    }

    /// Returns the operator's limits, with Nomad's defaults for unset options.
    pub(super) fn or_default(&self) -> LogLimits {
        self.or_from(DEFAULT)
    }

    /// Returns a job's limits, with the operator's for unset options.
    pub(crate) fn or_from(&self, operators: LogLimits) -> LogLimits {
        let Self { max_files, max_file_bytes, dockers, log_type: _ } = *self;
        LogLimits {
            max_files: max_files.or(dockers.max_files).unwrap_or(operators.max_files),
            max_file_bytes: max_file_bytes.or(dockers.max_file_bytes).unwrap_or(operators.max_file_bytes),
        }
    }

    /// Returns the log type, if the block names one.
    pub(crate) fn log_type(&self) -> Option<&LogType> {
        self.log_type.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(super) fn decode(options: Value) -> Result<Logging, String> {
        warned(options).map(|(logging, _)| logging)
    }

    /// Returns the block, and the warnings of its options.
    pub(super) fn warned(options: Value) -> Result<(Logging, Vec<String>), String> {
        let raw: Raw = serde_json::from_value(options).unwrap();
        let mut warnings = Warnings::default();
        let logging = raw.decode(&mut warnings).map_err(|error| error.to_string())?;
        Ok((logging, warnings.texts().collect()))
    }

    #[test]
    fn an_option_without_an_effect_is_warned_of() {
        for (log_type, config, named) in [
            ("json-file", json!({"compress": "true"}), "compress"),
            ("json-file", json!({"labels": "team"}), "labels"),
            ("local", json!({"mode": "non-blocking"}), "mode"),
            ("none", json!({"max-file": "2"}), "max-file"),
            ("journald", json!({"cache-max-size": "1m"}), "cache-max-size"),
            (
                "fluentd",
                json!({"fluentd-async-reconnect-interval": "1s"}),
                "fluentd-async-reconnect-interval",
            ),
            ("fluentd", json!({"fluentd-buffer-limit": "1m"}), "fluentd-buffer-limit"),
            ("fluentd", json!({"fluentd-retry-wait": "0"}), "100ms"),
            ("fluentd", json!({"fluentd-async": "true", "fluentd-write-timeout": "1ns"}), "1s"),
            ("gelf", json!({"gelf-address": "tcp://a:1", "gelf-tcp-reconnect-delay": "0"}), "100ms"),
            ("syslog", json!({"labels": "team"}), "labels"),
            ("syslog", json!({"env-regex": "^A"}), "env-regex"),
            (
                "gelf",
                json!({
                    "gelf-address": "udp://a:1", "gelf-compression-type": "none", "gelf-compression-level": "9"
                }),
                "gelf-compression-level",
            ),
        ] {
            let (_, warnings) = warned(json!({"type": log_type, "config": [config]})).unwrap();
            assert!(warnings.len() == 1 && warnings[0].contains(named), "{named}: {warnings:?}");
        }
        let usual =
            json!({"type": "json-file", "config": [{"max-file": "2", "max-size": "10m", "compress": ""}]});
        assert_eq!(warned(usual).unwrap().1, [""; 0]);
    }

    #[test]
    fn a_jobs_log_limits_override_the_operators() {
        let operators = decode(json!({"max_file_size": "1m"})).unwrap().or_default();
        assert_eq!(operators, LogLimits { max_files: 10, max_file_bytes: 1 << 20 });
        let of_job = decode(json!({"max_files": 3, "max_file_size": null})).unwrap().or_from(operators);
        assert_eq!(of_job, LogLimits { max_files: 3, max_file_bytes: 1 << 20 });
        assert!(!decode(json!({"max_files": null})).unwrap().has_limits());
    }

    #[test]
    fn a_log_size_without_unit_is_refused() {
        let error = decode(json!({"max_file_size": "10"})).unwrap_err();
        assert!(error.contains("logging.max_file_size") && error.contains("\"10m\""), "{error}");
        assert!(decode(json!({"max_files": 0})).unwrap_err().contains("logging.max_files"));
        assert!(decode(json!({"max_file_size": "large"})).unwrap_err().contains("logging.max_file_size"));
    }

    #[test]
    fn dockers_file_limits_are_those_of_the_drivers_files() {
        let job = json!({"type": "json-file", "config": [{"max-file": "3"}, {"max-size": "20m", "compress": "true"}]});
        let job = decode(job).unwrap();
        assert_eq!(job.log_type(), Some(&LogType::Files));
        assert!(!job.has_limits(), "Nomad's own logs block rules where it collects");
        assert_eq!(job.or_from(DEFAULT), LogLimits { max_files: 3, max_file_bytes: 20 << 20 });
        let without_type = decode(json!({"config": {"max-file": "4", "max-size": "-1"}})).unwrap();
        assert_eq!(without_type.or_from(DEFAULT), LogLimits { max_files: 4, ..DEFAULT });
        let small = decode(json!({"driver": "local", "config": [{"max-size": "1k"}]})).unwrap();
        assert_eq!(small.or_from(DEFAULT).max_file_bytes, MIN_FILE_BYTES);
    }

    #[test]
    fn a_log_type_is_docker_s_or_refused_with_the_way_out() {
        let of = |name: &str| decode(json!({"type": name})).map(|logging| logging.log_type().cloned());
        assert_eq!(of(""), Ok(None));
        assert_eq!(of("none"), Ok(Some(LogType::Nothing)));
        assert_eq!(of("local"), Ok(Some(LogType::Files)));
        assert_eq!(decode(json!({"driver": "nomad"})).unwrap().log_type(), Some(&LogType::Files));
        assert!(matches!(of("journald"), Ok(Some(LogType::Receiver(_)))));
        for (name, way_out) in [
            ("awslogs", "fluentd"),
            ("splunk", "log shipper"),
            ("loki", "plugins"),
            ("grafana/loki-docker-driver", "plugins"),
        ] {
            let error = of(name).unwrap_err();
            assert!(
                error.contains("logging.type") && error.contains(name) && error.contains(way_out),
                "{error}"
            );
        }
        let both = decode(json!({"type": "syslog", "driver": "gelf"})).unwrap_err();
        assert!(both.contains("logging.type") && both.contains("logging.driver"), "{both}");
    }

    #[test]
    fn an_option_that_the_type_does_not_have_is_refused_by_name() {
        for (config, named) in [
            (json!({"type": "json-file", "config": [{"syslog-address": "udp://a"}]}), "syslog-address"),
            (json!({"type": "json-file", "config": [{"max-file": "0"}]}), "max-file"),
            (json!({"type": "json-file", "config": [{"max-size": "much"}]}), "max-size"),
            (json!({"type": "json-file", "config": [{"labels-regex": "("}]}), "labels-regex"),
            (json!({"type": "local", "config": [{"mode": "fast"}]}), "mode"),
            (json!({"type": "journald", "config": [{"max-file": "2"}]}), "max-file"),
        ] {
            let error = decode(config).unwrap_err();
            assert!(error.contains("logging.config") && error.contains(named), "{error}");
        }
        let many: BTreeMap<_, _> = (0..100).map(|n| (format!("o{n}"), "x")).collect();
        assert!(decode(json!({"type": "syslog", "config": [many]})).unwrap_err().contains("at most 64"));
    }
}
