//! Options that are taken and have no effect here, as those of another driver whose jobs and agents are to run unedited.

use std::fmt;

/// Options without an effect, each with the reason, in the order in which they were decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Warnings(Vec<Warning>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Warning {
    option: &'static str,
    why: String,
}

impl Warnings {
    /// Adds an option with the reason why it has no effect, and with what does what it is for.
    pub(super) fn add(&mut self, option: &'static str, why: impl Into<String>) {
        self.0.push(Warning { option, why: why.into() });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names of the options, each once.
    pub(crate) fn options(&self) -> Vec<&'static str> {
        let mut options: Vec<_> = self.0.iter().map(|warning| warning.option).collect();
        options.dedup();
        options
    }

    /// Returns a text for each option: its name, and the reason.
    pub(super) fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|Warning { option, why }| format!("{option}: {why}"))
    }
}

/// Writes all texts in one line.
impl fmt::Display for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_named_once_and_each_reason_told() {
        let mut warnings = Warnings::default();
        assert!(warnings.is_empty());
        for (option, why) in [("labels", "a"), ("labels", "b"), ("socket", "c")] {
            warnings.add(option, why);
        }
        assert_eq!(warnings.options(), ["labels", "socket"]);
        assert_eq!(warnings.texts().collect::<Vec<_>>(), ["labels: a", "labels: b", "socket: c"]);
        assert_eq!(warnings.to_string(), "labels: a; labels: b; socket: c");
    }
}
