//! Maps of strings with keys of the job's choice, in each form in which a job may write one: a block, blocks that are
//! repeated, an assigned map, or an assigned list of maps.
//!
//! Source of the facts: hashicorp/nomad `helper/pluginutils/hclutils` (`MapStrStr`, whose maps are merged).

use std::collections::BTreeMap;

use nomad_proto::hclspec::Spec;
use serde_json::Value;

use super::hclspec::optional;
use super::{ConfigError, value};

/// Keys with their values; `None` is a value from an unset variable.
pub(super) type StringMap = BTreeMap<String, Option<String>>;

/// Declares a map. No type of HCL takes all of its forms, so that Nomad can't check it.
pub(super) fn schema(name: &str) -> Spec {
    optional(name, "any")
}

/// Decodes a map. Of a key that is in several blocks, the last one counts.
///
/// # Errors
/// Names the option if it is no map, or has a value that is no string, number or bool.
pub(super) fn decode(option: &'static str, given: Option<Value>) -> Result<StringMap, ConfigError> {
    let maps = match given {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(maps)) => maps,
        Some(one) => vec![one],
    };
    let mut merged = StringMap::new();
    for map in maps {
        let Value::Object(map) = map else {
            return Err(value(option, map.to_string(), "it must be a block, or a map of strings"));
        };
        for (key, given) in map {
            merged.insert(
                key.clone(),
                text(given).map_err(|given| {
                    value(
                        option,
                        format!("{key} = {given}"),
                        "the value must be a string, a number or a bool",
                    )
                })?,
            );
        }
    }
    Ok(merged)
}

/// Returns the text of a value that HCL takes where a string is needed.
///
/// # Errors
/// Gives the value back if it is a list or a map.
pub(super) fn text(given: Value) -> Result<Option<String>, Value> {
    match given {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Bool(truth) => Ok(Some(truth.to_string())),
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_map_is_a_block_or_a_list_of_maps() {
        let pairs = |given: Value| {
            let map = decode("labels", Some(given)).unwrap();
            map.into_iter()
                .map(|(key, text)| format!("{key}={}", text.unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        assert_eq!(pairs(json!({"a": "x", "b": "y"})), ["a=x", "b=y"]);
        assert_eq!(pairs(json!([{"a": "x"}])), ["a=x"]);
        assert_eq!(pairs(json!([{"a": "x", "b": "y"}, {"b": "z"}])), ["a=x", "b=z"]);
        assert_eq!(
            pairs(json!({"a": 80, "b": true, "c": 1.5, "d": null})),
            ["a=80", "b=true", "c=1.5", "d="]
        );
        for none in [json!(null), json!([]), json!({})] {
            assert!(decode("labels", Some(none)).unwrap().is_empty());
        }
        for wrong in [json!("a=b"), json!([["a"]]), json!({"a": ["b"]}), json!([{"a": {"b": "c"}}])] {
            let error = decode("labels", Some(wrong)).unwrap_err().to_string();
            assert!(error.contains("labels"), "{error}");
        }
    }
}
