//! Lists of capabilities, as jobs and operators write them.
//!
//! Source of the facts: capabilities(7); moby/moby `oci/caps/utils.go` for how names may be written.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use oci_spec::runtime::Capability;

use super::{ConfigError, reject_nulls, value};

const ALL: &str = "all";
const PREFIX: &str = "CAP_";

/// Capabilities named one by one, sorted by name, or `all`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CapabilityList {
    pub all: bool,
    named: BTreeMap<String, Capability>,
}

impl CapabilityList {
    pub(super) fn decode(
        option: &'static str,
        list: Option<Vec<Option<String>>>,
    ) -> Result<Self, ConfigError> {
        let mut decoded = Self::default();
        for name in reject_nulls(option, list)? {
            let upper = name.trim().to_ascii_uppercase();
            if upper.eq_ignore_ascii_case(ALL) {
                decoded.all = true;
                continue;
            }
            let short = upper.strip_prefix(PREFIX).unwrap_or(&upper);
            let why = "Linux has no such capability; write one of capabilities(7), such as \"NET_ADMIN\" or \
                       \"CAP_NET_ADMIN\", or \"all\"";
            let capability = Capability::from_str(short).map_err(|_| value(option, &name, why))?;
            decoded.named.insert(name_of(capability), capability);
        }
        Ok(decoded)
    }

    /// Returns the list of `all`.
    pub(crate) fn every() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Returns the capabilities that are named one by one, without what `all` stands for.
    pub(crate) fn named(&self) -> impl Iterator<Item = Capability> {
        self.named.values().copied()
    }

    pub(crate) fn contains(&self, capability: Capability) -> bool {
        self.all || self.named.contains_key(&name_of(capability))
    }

    /// Returns the part of this list that `other` does not contain.
    pub(super) fn beyond(&self, other: &Self) -> Self {
        let named = self.named.iter().filter(|(_, capability)| !other.contains(**capability));
        Self {
            all: self.all && !other.all,
            named: named.map(|(name, capability)| (name.clone(), *capability)).collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.all && self.named.is_empty()
    }
}

/// Returns the capability's name as in the kernel's header and the runtime specification, such as `CAP_CHOWN`.
pub(crate) fn name_of(capability: Capability) -> String {
    format!("{PREFIX}{capability}")
}

impl fmt::Display for CapabilityList {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all.then_some(ALL);
        let names: Vec<&str> = all.into_iter().chain(self.named.keys().map(String::as_str)).collect();
        to.write_str(&names.join(", "))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn list(names: &[&str]) -> CapabilityList {
        let names = names.iter().map(|name| Some((*name).to_owned())).collect();
        CapabilityList::decode("cap_add", Some(names)).unwrap()
    }

    #[test]
    fn capability_names_ignore_case_and_prefix() {
        let same = list(&["CAP_NET_ADMIN", "chown"]);
        assert_eq!(list(&["net_admin", "cap_chown", "Net_Admin"]), same);
        assert_eq!(same.to_string(), "CAP_CHOWN, CAP_NET_ADMIN");
        assert!(list(&["All"]).all && list(&[]).is_empty());
        assert!(list(&["all"]).contains(Capability::Bpf) && !same.contains(Capability::Bpf));
    }

    #[test]
    fn an_unknown_capability_is_refused() {
        for name in ["NET_ADMN", "", "CAP_CAP_CHOWN", "CAP_ALL"] {
            let names = vec![Some(name.to_owned())];
            let error = CapabilityList::decode("cap_drop", Some(names)).unwrap_err().to_string();
            assert!(error.contains("cap_drop") && error.contains(&format!("{name:?}")), "{error}");
            assert!(error.contains("NET_ADMIN"), "{error}");
        }
    }

    #[test]
    fn capabilities_beyond_a_list_are_named() {
        let allowed = list(&["chown", "kill"]);
        assert_eq!(list(&["kill", "bpf"]).beyond(&allowed), list(&["bpf"]));
        assert_eq!(list(&["all"]).beyond(&allowed).to_string(), "all");
        assert!(list(&["all", "bpf"]).beyond(&list(&["all"])).is_empty());
    }
}
