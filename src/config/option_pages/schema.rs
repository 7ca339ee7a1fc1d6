//! The options of a schema, in the form that the pages document.

use std::collections::BTreeMap;

use nomad_proto::hclspec::Spec;
use nomad_proto::hclspec::spec::Block;
use serde_json::{Map, Value};

/// Blocks that take the options of another block, where the page documents them.
const SAME_OPTIONS: [(&str, &str); 1] = [("mounts", "mount")];
/// An option as its schema declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct Declared {
    /// The type in the page's notation; `None` for an option that takes values of several types.
    pub kind: Option<String>,
    pub default: Default,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) enum Default {
    Required,
    /// No default in the schema, so that the page describes it in words.
    Words,
    Value(String),
}

/// Returns the options of a schema; those within blocks have a dotted name.
pub(in crate::config) fn declared(schema: &Spec) -> BTreeMap<String, Declared> {
    let mut all = BTreeMap::new();
    add(&mut all, "", schema);
    for (block, other) in SAME_OPTIONS {
        let within =
            |name: &str| name.strip_prefix(block).filter(|rest| rest.starts_with('.')).map(str::to_owned);
        let names: Vec<String> = all.keys().filter_map(|name| within(name)).collect();
        for rest in names {
            let option = all.remove(&format!("{block}{rest}"));
            assert_eq!(
                option.as_ref(),
                all.get(&format!("{other}{rest}")),
                "{block}{rest} is not that of {other}"
            );
        }
    }
    all
}

fn add(all: &mut BTreeMap<String, Declared>, prefix: &str, schema: &Spec) {
    let Some(Block::Object(object)) = &schema.block else { panic!("{prefix:?} is no object") };
    for (name, option) in &object.attributes {
        let name = format!("{prefix}{name}");
        let (kind, default, nested) = one(&name, option);
        all.insert(name.clone(), Declared { kind, default });
        if let Some(nested) = nested {
            add(all, &format!("{name}."), nested);
        }
    }
}

fn one<'a>(name: &str, option: &'a Spec) -> (Option<String>, Default, Option<&'a Spec>) {
    let block = |nested| (Some("block".to_owned()), Default::Words, nested);
    match option.block.as_ref().unwrap_or_else(|| panic!("{name} is nothing")) {
        Block::Attr(attr) => {
            let default = if attr.required { Default::Required } else { Default::Words };
            ((attr.r#type != "any").then(|| attr.r#type.clone()), default, None)
        }
        Block::Default(default) => {
            let primary = default.primary.as_ref().unwrap_or_else(|| panic!("{name} has no type"));
            match default.default.as_ref().and_then(|spec| spec.block.as_ref()) {
                Some(Block::Literal(literal)) => {
                    (one(name, primary).0, Default::Value(literal.value.clone()), None)
                }
                other => panic!("{name}: a default is a literal, not {other:?}"),
            }
        }
        Block::BlockValue(nested) => block(nested.nested.as_deref()),
        Block::BlockList(list) => block(list.nested.as_deref()),
        Block::BlockAttrs(attrs) => (Some(format!("map({})", attrs.r#type)), Default::Words, None),
        other => panic!("{name}: the pages have no form for {other:?}"),
    }
}

/// Wraps a block that may be repeated, or that is declared as a list of maps, in a list, as Nomad does even if it occurs
/// once.
pub(super) fn listed(schema: &Spec, options: &mut Map<String, Value>) {
    let Some(Block::Object(object)) = &schema.block else { return };
    for (name, value) in options {
        let option = object.attributes.get(name).and_then(|option| option.block.as_ref());
        let is_list = match option {
            Some(Block::BlockList(_)) => true,
            Some(Block::Attr(attr)) => attr.r#type.starts_with("list(map("),
            _ => false,
        };
        if is_list && value.is_object() {
            *value = Value::Array(vec![value.take()]);
        }
    }
}
