//! What can be configured: for each of plugin and task, the schema that Nomad is told and the struct that its answer is
//! decoded into, side by side. Values are checked here, so that what comes out is usable; nothing is looked up.

mod gc;
mod hclspec;
mod plugin;
mod task;

use std::time::Duration;

pub(crate) use plugin::PluginConfig;
pub(crate) use task::{PidMode, TaskOptions};

/// What is wrong with a configuration. The text names the option.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The bytes are not what the schema lets Nomad send.
    #[error("the {of} can't be decoded: {source}")]
    Malformed { of: &'static str, source: rmp_serde::decode::Error },
    #[error("the {of} needs the option {option}: {hint}")]
    Missing { of: &'static str, option: &'static str, hint: &'static str },
    #[error("the option {option} can't be {value:?}: {why}")]
    Value { option: &'static str, value: String, why: String },
}

fn duration(option: &'static str, value: String) -> Result<Duration, ConfigError> {
    match humantime::parse_duration(&value) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err(ConfigError::Value { option, value, why: "it must be longer than nothing".to_owned() }),
        Err(error) => Err(ConfigError::Value { option, value, why: format!("{error}; write it as \"5s\"") }),
    }
}
