//! Labels that a job sets on its container's record.

use std::collections::BTreeMap;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;
use serde_json::Value;

use crate::config::{ConfigError, Warnings, string_map, value};

/// containerd's maximum of a label's key and value together, in bytes.
const MAX_BYTES: usize = 4096;
/// Maximum number of labels, and of all keys and values together in bytes: they are listed with those of all other
/// containers, in messages of 16 MiB at most.
const MAX_LABELS: usize = 512;
const MAX_TOTAL_BYTES: usize = 64 * 1024;
/// Key prefixes that mean something to containerd or to the driver: with such a label a job could keep another's data
/// from garbage collection, or pass its container off as another's.
const RESERVED: [&str; 4] = ["containerd.io/", "containerd-driver/", "nomad/", "com.hashicorp.nomad."];

/// Labels by their keys, within the length limits of containerd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labels(pub BTreeMap<String, String>);

#[derive(Deserialize)]
pub(super) struct Raw {
    labels: Option<Value>,
}

pub(super) fn schema() -> Vec<(&'static str, Spec)> {
    vec![("labels", string_map::schema("labels"))]
}

impl Raw {
    pub(super) fn decode(self, warnings: &mut Warnings) -> Result<Labels, ConfigError> {
        let mut labels = string_map::decode("labels", self.labels)?;
        let empty = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
        for (key, _) in labels.iter().filter(|(_, text)| empty(text)) {
            warnings
                .add("labels", format!("{key:?} has no value, and containerd keeps no label without one"));
        }
        labels.retain(|_, text| !empty(text));
        let count = labels.len();
        if count > MAX_LABELS {
            return Err(value("labels", count.to_string(), format!("a task can have at most {MAX_LABELS}")));
        }
        let labels: BTreeMap<_, _> = labels.into_iter().map(checked).collect::<Result<_, _>>()?;
        let total: usize = labels.iter().map(|(key, text)| key.len() + text.len()).sum();
        if total > MAX_TOTAL_BYTES {
            let why = format!("all keys and values together must not exceed {MAX_TOTAL_BYTES} bytes");
            return Err(value("labels", format!("{total} bytes"), why));
        }
        Ok(Labels(labels))
    }
}

fn checked((key, text): (String, Option<String>)) -> Result<(String, String), ConfigError> {
    let text = text.unwrap_or_default();
    if key.is_empty() {
        return Err(value("labels", key, "containerd does not keep a label without a key"));
    }
    if let Some(prefix) = RESERVED.iter().find(|prefix| key.starts_with(**prefix)) {
        return Err(value("labels", key, format!("keys that start with {prefix} are reserved")));
    }
    if key.len() + text.len() > MAX_BYTES {
        return Err(value(
            "labels",
            key,
            format!("key and value together must not exceed {MAX_BYTES} bytes"),
        ));
    }
    Ok((key, text))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use crate::config::task::tests::{decode, refusal};

    #[test]
    fn reserved_and_long_labels_are_refused() {
        let labels = decode(&json!({"image": "a", "labels": {"team": "web", "b": "1"}})).unwrap().labels;
        let pairs: Vec<_> = labels.0.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("b", "1"), ("team", "web")]);
        for key in
            ["", "containerd.io/gc.ref.snapshot.overlayfs", "nomad/alloc-id", "com.hashicorp.nomad.job_id"]
        {
            refusal("labels", json!({key: "x"}));
        }
        refusal("labels", json!("team=web"));
        assert!(decode(&json!({"image": "a", "labels": {"k": "x".repeat(4095)}})).is_ok());
        assert!(refusal("labels", json!({"k": "x".repeat(4096)})).contains("4096"));
        let many = |count: usize, length: usize| {
            let labels: BTreeMap<_, _> =
                (0..count).map(|n| (format!("{n:04}"), "x".repeat(length))).collect();
            json!(labels)
        };
        assert!(decode(&json!({"image": "a", "labels": many(512, 124)})).is_ok());
        assert!(refusal("labels", many(513, 1)).contains("512"));
        assert!(refusal("labels", many(17, 4000)).contains("65536"));
    }

    #[test]
    fn a_label_without_a_value_is_left_out_with_a_warning() {
        let options = decode(&json!({"image": "a", "labels": [{"a": "", "b": "1"}, {"c": null}]})).unwrap();
        assert_eq!(options.labels.0.keys().collect::<Vec<_>>(), ["b"]);
        let texts: Vec<_> = options.warnings.texts().collect();
        assert!(texts.len() == 2 && texts[0].contains("labels") && texts[0].contains("\"a\""), "{texts:?}");
    }
}
