//! Text that must not be shown, be it in a log, an error, a label or a record. It can be read only where it is used.

use std::fmt;

use serde::Deserialize;

#[derive(Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// Returns the text itself, for its intended recipient.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Redacts this secret in a text of others.
    pub(crate) fn redact(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "***") }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(secret.redact("no hunter2 here"), "no *** here");
        assert_eq!(Secret::default().redact("a"), "a");
    }
}
