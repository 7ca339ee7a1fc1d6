//! The options of a log type, `logging { config { .. } }`: taken out one by one, so that one which is left is unknown.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::size;
use crate::config::{ConfigError, Warnings, go_duration, value};

const OPTION: &str = "logging.config";
/// Longest wait that an option can ask for.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Options<'a> {
    /// Name of the log type.
    pub(super) log_type: &'static str,
    left: BTreeMap<String, String>,
    warnings: &'a mut Warnings,
}

impl<'a> Options<'a> {
    pub(super) fn new(
        log_type: &'static str,
        all: BTreeMap<String, String>,
        warnings: &'a mut Warnings,
    ) -> Self {
        Self { log_type, left: all, warnings }
    }

    /// Warns of those of `keys` that are given and not taken out yet.
    pub(super) fn warn_of(&mut self, keys: &[&str], why: &str) {
        for key in keys {
            if self.left.get(*key).is_some_and(|text| !text.is_empty()) {
                self.warnings.add(OPTION, format!("{key} {why}"));
            }
        }
    }

    /// Warns of options.
    pub(super) fn warn(&mut self, why: &str) {
        self.warnings.add(OPTION, why);
    }

    /// Returns a time, or the least that an option can have, with a warning.
    pub(super) fn at_least(&mut self, key: &str, given: Duration, least: Duration) -> Duration {
        if given < least {
            self.warnings.add(OPTION, format!("{key} is {least:?} here, the least that it can be"));
        }
        given.max(least)
    }

    /// Takes an option out. An empty one counts as unset, as in docker.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        self.left.remove(key).filter(|text| !text.is_empty())
    }

    /// Takes an option out of which docker looks only at whether it is there.
    pub(super) fn is_given(&mut self, key: &str) -> bool {
        self.left.remove(key).is_some()
    }

    /// Takes a flag out, in the words that Go has for one.
    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
            _ => Err(refused(key, &text, "it must be true or false")),
        }
    }

    pub(super) fn number(&mut self, key: &str, least: i64, most: i64) -> Result<Option<i64>, ConfigError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match text.trim().parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(refused(key, &text, &format!("it must be a whole number from {least} to {most}"))),
        }
    }

    /// Takes a time out, which may be 0.
    pub(super) fn time(&mut self, key: &str) -> Result<Option<Duration>, ConfigError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        if text == "0" {
            return Ok(Some(Duration::ZERO));
        }
        match humantime::parse_duration(&text).or_else(|error| go_duration(&text).ok_or(error)) {
            Ok(time) => Ok(Some(time.min(MAX_WAIT))),
            Err(error) => Err(refused(key, &text, &format!("{error}; write it as \"5s\""))),
        }
    }

    /// Returns the size in bytes that an option has.
    pub(super) fn size(&self, key: &str, text: &str) -> Result<u64, ConfigError> {
        size::bytes(text)
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| refused(key, text, "it must be a size above 0, such as \"10m\""))
    }

    /// Checks that every option was taken.
    ///
    /// # Errors
    /// Names one that the log type doesn't have.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        match self.left.into_iter().next() {
            None => Ok(()),
            Some((key, text)) => {
                let why = format!("the log type {} has no option {key}; leave it out", self.log_type);
                Err(refused(&key, &text, &why))
            }
        }
    }
}

/// Builds the error of an option's value.
pub(super) fn refused(key: &str, text: &str, why: &str) -> ConfigError {
    value(OPTION, format!("{key} = {text}"), why)
}
