//! Versions of the CNI specification: which are known, and what differs between them in what passes through here.
//!
//! Source of the facts: the specification's tags 0.3.0 to 1.1.0.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Version(u32, u32, u32);

impl Version {
    /// Oldest version that is known here: from it on, networks are lists of plugins.
    pub(super) const OLDEST: Self = Self(0, 3, 0);
    /// First version in which DEL is told the result of ADD, and with CHECK.
    pub(super) const WITH_CHECK: Self = Self(0, 4, 0);
    /// First version in which an address is reported without its family.
    pub(super) const WITHOUT_FAMILY: Self = Self(1, 0, 0);
    /// First version with GC and STATUS.
    pub(super) const WITH_STATUS: Self = Self(1, 1, 0);
    pub(super) const NEWEST: Self = Self(1, 1, 0);

    pub(super) fn is_known(self) -> bool {
        (Self::OLDEST..=Self::NEWEST).contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<Option<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
        match parts[..] {
            [Some(major), Some(minor), Some(patch)] => Ok(Self(major, minor, patch)),
            _ => Err(format!("{text:?} is not a version such as \"1.0.0\"")),
        }
    }
}

/// Converts a plugin's result to the version that the other plugins are told. Versions differ in whether an address
/// says its family.
pub(super) fn convert(mut result: Value, to: Version) -> Value {
    result["cniVersion"] = json!(to);
    for address in result.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(address) = address.as_object_mut() else { continue };
        if to >= Version::WITHOUT_FAMILY {
            address.remove("version");
        } else if !address.contains_key("version") {
            let is_v6 = address.get("address").and_then(Value::as_str).is_some_and(|text| text.contains(':'));
            address.insert("version".to_owned(), json!(if is_v6 { "6" } else { "4" }));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_numerically() {
        let version = |text: &str| text.parse::<Version>();
        assert!(version("0.10.0").unwrap() > version("0.4.0").unwrap());
        assert!(version("1.1.0").unwrap().is_known() && version("0.3.1").unwrap().is_known());
        assert!(!version("0.2.0").unwrap().is_known() && !version("1.2.0").unwrap().is_known());
        for wrong in ["", "1", "1.0", "1.0.0.0", "1.0.x", "v1.0.0", "-1.0.0"] {
            assert!(version(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn results_are_converted_to_the_networks_version() {
        let old = json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.2/24"}]});
        let new = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]});
        assert_eq!(convert(old.clone(), Version(1, 0, 0)), new);
        assert_eq!(convert(new, Version(0, 3, 1)), old);
        let v6 = convert(json!({"ips": [{"address": "fd00::2/64"}]}), Version(0, 4, 0));
        assert_eq!(v6["ips"][0]["version"], "6");
    }
}
