//! JSON as Go's `encoding/json` reads it, since docker, containerd and podman read an image's documents by it: the
//! names of fields match regardless of case, and duplicates of a field are read over each other in order. An image that
//! says `user` in lower case would run as root here, and as its user there.
//!
//! Documents are rewritten with the names that the specifications have, as far as this driver reads those fields; a
//! field that it comes to read has to be named here. Knows the names only, not what they mean.
//! Source of the facts: Go 1.22 `encoding/json` (`Unmarshal`, `decode.go`, `fold.go`); OCI image-spec v1.1
//! `descriptor.md`, `manifest.md`, `image-index.md`, `config.md`; docker `image/spec`.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

/// The structure that a value is read by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// Any value, or a map whose keys are data.
    Any,
    List(&'static Shape),
    Fields(&'static [(&'static str, Shape)]),
}

use Shape::{Any, Fields, List};

const DESCRIPTOR: Shape = Fields(&[
    ("mediaType", Any),
    ("digest", Any),
    ("size", Any),
    ("annotations", Any),
    ("platform", Fields(&[("architecture", Any), ("os", Any), ("variant", Any)])),
]);

/// An index or a manifest; their fields tell which.
pub(crate) const MANIFEST: Shape = Fields(&[
    ("schemaVersion", Any),
    ("mediaType", Any),
    ("config", DESCRIPTOR),
    ("layers", List(&DESCRIPTOR)),
    ("manifests", List(&DESCRIPTOR)),
]);

/// The configuration of an image.
pub(crate) const CONFIG: Shape = Fields(&[
    ("architecture", Any),
    ("os", Any),
    (
        "config",
        Fields(&[
            ("User", Any),
            ("Env", Any),
            ("Entrypoint", Any),
            ("Cmd", Any),
            ("WorkingDir", Any),
            ("StopSignal", Any),
            ("Volumes", Any),
        ]),
    ),
    ("rootfs", Fields(&[("type", Any), ("diff_ids", Any)])),
]);

/// The `manifest.json` of docker's archives.
pub(crate) const ARCHIVE: Shape = List(&Fields(&[("Config", Any), ("RepoTags", Any), ("Layers", Any)]));

/// Maximum number of values in a document. A value of two letters takes a hundred times as much memory once it is read.
const VALUES_LIMIT: usize = 100_000;

/// Returns an upper bound of the number of values in a text, from the characters that stand before each.
fn values(bytes: &[u8]) -> usize {
    let (mut count, mut is_text, mut is_escaped) = (0, false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b',' | b'[' | b'{' if !is_text => count += 1,
            _ => {}
        }
    }
    count
}

/// Reads a document by its structure.
///
/// # Errors
/// The fault in the document, and its position.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8], shape: Shape) -> Result<T, serde_json::Error> {
    if values(bytes) > VALUES_LIMIT {
        return Err(Error::custom(format!("it has more than {VALUES_LIMIT} values")));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed(shape).deserialize(&mut deserializer)?;
    deserializer.end()?;
    T::deserialize(value)
}

/// Reads a value by its structure, as a visitor of `serde`.
struct Seed(Shape);

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.0 {
            Any => Value::deserialize(deserializer),
            List(_) | Fields(_) => deserializer.deserialize_any(self),
        }
    }
}

/// A value of another kind than its structure says is kept as it is: whoever reads the document says what is wrong with
/// it.
impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a value of JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let (name, shape) = match self.0 {
                Fields(fields) => field(fields, name),
                Any | List(_) => (name, Any),
            };
            let value = map.next_value_seed(Seed(shape))?;
            match object.get_mut(&name) {
                Some(before) => read_over(before, value, shape),
                None => drop(object.insert(name, value)),
            }
        }
        Ok(Value::Object(object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let of_elements = match self.0 {
            List(shape) => *shape,
            Any | Fields(_) => Any,
        };
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(Seed(of_elements))? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
}

/// Finds the field that a name means, by an exact match or else by one that ignores case; other names are kept.
fn field(fields: &[(&'static str, Shape)], name: String) -> (String, Shape) {
    let exact = fields.iter().find(|(field, _)| *field == name);
    match exact.or_else(|| fields.iter().find(|(field, _)| folded(field).eq(folded(&name)))) {
        Some((field, shape)) => ((*field).to_owned(), *shape),
        None => (name, Any),
    }
}

/// Folds the case of a name as Go does: two letters beyond ASCII fold to ASCII's.
fn folded(name: &str) -> impl Iterator<Item = char> {
    name.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    })
}

/// Reads a later value of a field over an earlier one: objects are merged, and a null leaves a plain value as it was.
fn read_over(before: &mut Value, value: Value, shape: Shape) {
    match (before, value) {
        (Value::Object(before), Value::Object(value)) => {
            for (name, value) in value {
                let shape = match shape {
                    Fields(fields) => {
                        fields.iter().find(|(field, _)| *field == name).map_or(Any, |(_, shape)| *shape)
                    }
                    Any | List(_) => Any,
                };
                match before.get_mut(&name) {
                    Some(before) => read_over(before, value, shape),
                    None => drop(before.insert(name, value)),
                }
            }
        }
        (Value::String(_) | Value::Number(_) | Value::Bool(_), Value::Null) => {}
        (Value::Object(_), Value::Null) if matches!(shape, Fields(_)) => {}
        (before, value) => *before = value,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(text: &str) -> Value {
        read(text.as_bytes(), CONFIG).unwrap()
    }

    #[test]
    fn fields_match_in_any_case() {
        let text = r#"{"OS": "linux", "CONFIG": {"user": "app", "cMd": ["x"], "ENV": ["A=1"], "worKingdir": "/w",
                       "u\u017fer": "longs", "Other": {"User": 1}}, "RootFS": {"DIFF_IDS": ["a"]}}"#;
        let wanted = json!({
            "os": "linux",
            "config": {"User": "longs", "Cmd": ["x"], "Env": ["A=1"], "WorkingDir": "/w", "Other": {"User": 1}},
            "rootfs": {"diff_ids": ["a"]},
        });
        assert_eq!(config(text), wanted);
    }

    #[test]
    fn keys_of_maps_keep_their_case() {
        let text = r#"{"config": {"Labels": {"user": "a", "User": "b"}, "ExposedPorts": {"80/TCP": {}}}}"#;
        assert_eq!(config(text), serde_json::from_str::<Value>(text).unwrap());
        let text = r#"{"annotations": {"Size": "1", "size": "2"}, "Layers": [{"Size": 3, "PLATFORM": {"OS": "x"}}]}"#;
        let wanted = json!({
            "annotations": {"Size": "1", "size": "2"}, "layers": [{"size": 3, "platform": {"os": "x"}}],
        });
        assert_eq!(read::<Value>(text.as_bytes(), MANIFEST).unwrap(), wanted);
    }

    /// The expected values are those that a Go program prints that reads such a text into a struct.
    #[test]
    fn the_last_duplicate_field_wins_and_objects_merge() {
        for (text, wanted) in [
            (r#"{"User": "a", "user": "b"}"#, json!({"User": "b"})),
            (r#"{"user": "b", "User": "a"}"#, json!({"User": "a"})),
            (r#"{"User": "a", "user": null}"#, json!({"User": "a"})),
            (r#"{"Cmd": ["a"], "cmd": null}"#, json!({"Cmd": null})),
            (r#"{"Cmd": ["a", "b"], "CMD": ["c"]}"#, json!({"Cmd": ["c"]})),
            (r#"{"Labels": {"a": "1"}, "Labels": {"b": "2"}}"#, json!({"Labels": {"a": "1", "b": "2"}})),
        ] {
            assert_eq!(config(&format!(r#"{{"config": {text}}}"#))["config"], wanted, "{text}");
        }
        let twice = r#"{"config": {"User": "a", "Cmd": ["x"]}, "Config": {"user": "b"}}"#;
        assert_eq!(config(twice)["config"], json!({"User": "b", "Cmd": ["x"]}));
        assert_eq!(config(r#"{"config": {"User": "a"}, "Config": null}"#)["config"], json!({"User": "a"}));
    }

    #[test]
    fn a_document_of_very_many_values_is_refused() {
        let history = |count: usize| format!(r#"{{"history": [{}]}}"#, vec!["{}"; count].join(","));
        config(&history(VALUES_LIMIT / 2 - 2));
        let error = read::<Value>(history(VALUES_LIMIT).as_bytes(), CONFIG).unwrap_err().to_string();
        assert!(error.contains("values"), "{error}");
        // Commas and brackets within a text don't count.
        let text = format!(r#"{{"author": "\\\"{}"}}"#, ",{[".repeat(VALUES_LIMIT));
        assert_eq!(values(text.as_bytes()), 1);
        config(&text);
    }

    #[test]
    fn a_value_of_another_kind_is_kept() {
        for value in [json!(null), json!(true), json!(-1), json!(1), json!(1.5), json!("a"), json!([1])] {
            let document = json!({"config": value});
            assert_eq!(config(&document.to_string()), document);
        }
    }

    #[test]
    fn invalid_json_is_refused() {
        for text in ["", "{", "{} x", "{\"a\": }"] {
            assert!(read::<Value>(text.as_bytes(), CONFIG).is_err(), "{text}");
        }
        assert_eq!(
            read::<Value>(b"[1, -1, 1.5, true, \"a\"]", CONFIG).unwrap(),
            json!([1, -1, 1.5, true, "a"])
        );
        let archive: Value = read(br#"[{"config": "c", "layers": ["Layers"]}]"#, ARCHIVE).unwrap();
        assert_eq!(archive, json!([{"Config": "c", "Layers": ["Layers"]}]));
    }
}
