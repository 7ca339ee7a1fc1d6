//! Sizes in docker's format: `"64m"`, `"1.5g"`, `"512 KiB"`, or bytes without a unit. All units are powers of 1024.

use serde::Deserialize;

use super::{ConfigError, value};

const UNITS: [(char, u32); 6] = [('b', 0), ('k', 10), ('m', 20), ('g', 30), ('t', 40), ('p', 50)];

/// A size as Nomad sends it: a number if the schema or the job has one, else a string.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum RawSize {
    Number(u64),
    Text(String),
}

impl RawSize {
    /// Returns the size in bytes.
    ///
    /// # Errors
    /// Names the option if the value is no size, or 0.
    pub(super) fn bytes(self, option: &'static str) -> Result<u64, ConfigError> {
        self.check(option, 1)
    }

    /// Returns the size in bytes; `None` for 0, which stands for the default.
    ///
    /// # Errors
    /// Names the option if the value is no size.
    pub(super) fn bytes_unless_zero(self, option: &'static str) -> Result<Option<u64>, ConfigError> {
        self.check(option, 0).map(|bytes| Some(bytes).filter(|bytes| *bytes > 0))
    }

    fn check(self, option: &'static str, least: u64) -> Result<u64, ConfigError> {
        let text = match self {
            Self::Number(bytes) => bytes.to_string(),
            Self::Text(text) => text,
        };
        match bytes(&text) {
            Some(bytes) if bytes >= least => Ok(bytes),
            _ => Err(value(
                option,
                text,
                "it must be a number of bytes above 0, or one with a unit, such as \"64m\" or \"1g\"",
            )),
        }
    }
}

/// Returns the size in bytes, which may be 0.
///
/// # Errors
/// Names the option if the text is no size.
pub(super) fn size(option: &'static str, text: String) -> Result<u64, ConfigError> {
    bytes(&text)
        .ok_or_else(|| value(option, text, "it must be a size such as \"64m\": a number and b, k, m or g"))
}

/// Parses a size in bytes. `None` if the text is no size, or one that no machine has.
pub(super) fn bytes(text: &str) -> Option<u64> {
    exactly(text.trim()).filter(|bytes| i64::try_from(*bytes).is_ok())
}

fn exactly(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = shift(&unit.trim_start().to_ascii_lowercase())?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift);
    }
    let (whole, fraction) = number.split_once('.')?;
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let (scale, parts) = (10_u128.pow(u32::try_from(fraction.len()).ok()?), format!("{whole}{fraction}"));
    let bytes = parts.parse::<u128>().ok()?.checked_mul(1 << shift)? / scale;
    u64::try_from(bytes).ok()
}

/// Returns the unit's power of two; a letter may be followed by `b` or `ib`.
fn shift(unit: &str) -> Option<u32> {
    let mut rest = unit.chars();
    let Some(letter) = rest.next() else { return Some(0) };
    let (_, shift) = UNITS.into_iter().find(|(known, _)| *known == letter)?;
    let ends = if letter == 'b' { &[""][..] } else { &["", "b", "ib"] };
    ends.contains(&rest.as_str()).then_some(shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_and_a_unit() {
        for (text, wanted) in [
            ("0", 0),
            ("1024", 1024),
            ("64b", 64),
            ("64k", 64 << 10),
            ("64M", 64 << 20),
            ("64mb", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2t", 2 << 40),
        ] {
            assert_eq!(size("o", text.to_owned()).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn an_invalid_size_is_refused_by_name() {
        for text in
            ["", "m", "-1", "1x", "1bb", "1mm", "1.m", ".", "1e3", "9999999999g", "0x10", "1..2k", "1 m b"]
        {
            let error = size("shm_size", text.to_owned()).unwrap_err().to_string();
            assert!(error.contains("shm_size") && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn a_size_may_be_a_number_but_not_zero() {
        assert_eq!(RawSize::Number(7).bytes("o").unwrap(), 7);
        assert_eq!(RawSize::Text("1k".to_owned()).bytes("o").unwrap(), 1024);
        let unless_zero = |size: RawSize| size.bytes_unless_zero("o");
        assert_eq!(unless_zero(RawSize::Number(0)).unwrap(), None);
        assert_eq!(unless_zero(RawSize::Text("1k".to_owned())).unwrap(), Some(1024));
        assert!(unless_zero(RawSize::Text("-1".to_owned())).is_err());
        for none in [RawSize::Number(0), RawSize::Number(u64::MAX), RawSize::Text("0m".to_owned())] {
            assert!(none.bytes("shm_size").unwrap_err().to_string().contains("shm_size"));
        }
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn sizes() {
        crate::fuzz::text("sizes", |text| {
            let Some(size) = bytes(text) else { return };
            assert!(i64::try_from(size).is_ok(), "{size}");
            assert_eq!(bytes(&size.to_string()), Some(size));
        });
    }
}
