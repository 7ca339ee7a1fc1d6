//! Numbers as Nomad sends them: an integer where the value is one, else a float or, where a float would not be exact,
//! the digits as a string.
//!
//! Source of the facts: hashicorp/nomad `helper/pluginutils/hclutils`.

use serde::Deserialize;

use super::{ConfigError, value};

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Number {
    Whole(i64),
    Broken(f64),
    Text(String),
}

impl Number {
    pub(super) fn is_zero(&self) -> bool {
        matches!(self, Self::Whole(0))
    }

    /// # Errors
    /// Names the option unless its value is an integer from `least` to `most`, both included.
    pub(super) fn within(self, option: &'static str, least: i64, most: i64) -> Result<i64, ConfigError> {
        let refused =
            |given: String| value(option, given, format!("it must be a whole number from {least} to {most}"));
        match self {
            Self::Whole(whole) if (least..=most).contains(&whole) => Ok(whole),
            Self::Whole(whole) => Err(refused(whole.to_string())),
            Self::Broken(broken) => Err(refused(broken.to_string())),
            Self::Text(text) => Err(refused(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_whole_and_in_its_range() {
        let within = |number: Number| number.within("n", -1, 10);
        assert_eq!(within(Number::Whole(10)).unwrap(), 10);
        assert_eq!(within(Number::Whole(-1)).unwrap(), -1);
        for number in [Number::Whole(11), Number::Broken(1.5), Number::Text("0.1".to_owned())] {
            let shown = format!("{number:?}");
            let error = within(number).unwrap_err().to_string();
            assert!(error.contains("option n") && error.contains("-1 to 10"), "{shown}: {error}");
        }
    }
}
