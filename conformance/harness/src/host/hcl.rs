//! Encodes a configuration as Nomad sends it: the plugin's declared schema decides the keys, and what a job leaves out
//! arrives as nil, an empty list or the declared default. Values are given as JSON instead of HCL.
//!
//! Source of the facts: hashicorp/nomad `plugins/shared/hclspec`, `helper/pluginutils/hclutils`.

use anyhow::{Context, Result, bail, ensure};
use nomad_proto::hclspec::{Spec, spec::Block};
use serde_json::{Map, Value};

/// Builds a job's config block: `config! { image = x, args = ["-c", "true"] }`.
#[macro_export]
macro_rules! config {
    ($($key:ident = $value:expr),* $(,)?) => {{
        let pairs: Vec<(&str, serde_json::Value)> = vec![$((stringify!($key), serde_json::json!($value))),*];
        serde_json::Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }};
}

/// Encodes a configuration as msgpack.
///
/// # Errors
/// Fails if the schema doesn't declare a key, as Nomad refuses the job.
pub fn encode(spec: &Spec, given: &Value) -> Result<Vec<u8>> {
    Ok(rmp_serde::to_vec(&fill(spec, Some(given))?)?)
}

/// Returns the value in the form that the schema requires.
fn fill(spec: &Spec, given: Option<&Value>) -> Result<Value> {
    let given = given.filter(|value| !value.is_null());
    Ok(match spec.block.as_ref().context("a node of the schema says nothing")? {
        Block::Object(object) => {
            let none = Map::new();
            let fields = given.map_or(Some(&none), Value::as_object).context("a block is no list or text")?;
            for key in fields.keys() {
                ensure!(object.attributes.contains_key(key), "unsupported argument {key:?}");
            }
            let filled = object.attributes.iter().map(|(key, spec)| {
                let value = fill(spec, fields.get(key)).with_context(|| format!("argument {key:?}"))?;
                Ok((key.clone(), value))
            });
            // serde_json's map is sorted by bytes, as the keys are that Nomad sends.
            Value::Object(filled.collect::<Result<_>>()?)
        }
        Block::Attr(attr) => {
            ensure!(given.is_some() || !attr.required, "is required");
            given.cloned().unwrap_or_default()
        }
        Block::BlockValue(block) => {
            ensure!(given.is_some() || !block.required, "is required");
            match (given, &block.nested) {
                (Some(value), Some(nested)) => fill(nested, Some(value))?,
                _ => Value::Null,
            }
        }
        Block::BlockAttrs(block) => {
            ensure!(given.is_some() || !block.required, "is required");
            given.cloned().unwrap_or_default()
        }
        Block::BlockList(list) => fill_each(list.nested.as_deref(), given)?,
        Block::BlockSet(set) => fill_each(set.nested.as_deref(), given)?,
        Block::BlockMap(_) => given.cloned().unwrap_or_else(|| Value::Object(Map::new())),
        Block::Default(default) => {
            let primary = default.primary.as_deref().context("a default without a primary")?;
            match given {
                Some(value) => fill(primary, Some(value))?,
                None => fill(default.default.as_deref().context("a default without a value")?, None)?,
            }
        }
        Block::Literal(literal) => serde_json::from_str(&literal.value)
            .with_context(|| format!("the schema's literal {:?} can't be read", literal.value))?,
        Block::Array(_) => bail!("arrays are not played here"),
    })
}

fn fill_each(nested: Option<&Spec>, given: Option<&Value>) -> Result<Value> {
    let nested = nested.context("a list of nothing")?;
    let items = given.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|item| fill(nested, Some(item))).collect::<Result<_>>().map(Value::Array)
}

#[cfg(test)]
mod tests {
    use nomad_proto::hclspec::{Attr, Default, Literal, Object};

    use super::*;

    fn node(block: Block) -> Spec {
        Spec { block: Some(block) }
    }

    fn attr(name: &str, required: bool) -> Spec {
        node(Block::Attr(Attr { name: name.to_owned(), r#type: "string".to_owned(), required }))
    }

    fn schema() -> Spec {
        let literal = node(Block::Literal(Literal { value: "\"1s\"".to_owned() }));
        let interval =
            Default { primary: Some(attr("interval", false).into()), default: Some(literal.into()) };
        let attributes = [
            ("image".to_owned(), attr("image", true)),
            ("command".to_owned(), attr("command", false)),
            ("interval".to_owned(), node(Block::Default(interval.into()))),
        ];
        node(Block::Object(Object { attributes: attributes.into_iter().collect() }))
    }

    #[test]
    fn every_declared_key_is_there() {
        let filled = fill(&schema(), Some(&config! { image = "redis" })).unwrap();
        assert_eq!(filled, serde_json::json!({"command": null, "image": "redis", "interval": "1s"}));
    }

    #[test]
    fn what_is_not_declared_or_missing_is_refused() {
        let unknown = fill(&schema(), Some(&config! { image = "redis", colour = "red" })).unwrap_err();
        assert!(unknown.to_string().contains("colour"), "{unknown}");
        let missing = format!("{:#}", fill(&schema(), Some(&config! { command = "x" })).unwrap_err());
        assert!(missing.contains("image"), "{missing}");
    }
}
