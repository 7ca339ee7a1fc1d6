//! Nodes of the tree in which a schema is declared. Within an object a child's name is its key; within a default it is
//! not, so each node here carries its own name.
//!
//! Source of the facts: hashicorp/nomad `plugins/shared/hclspec`, `helper/pluginutils/hclspecutils`.

use nomad_proto::hclspec::spec::Block;
use nomad_proto::hclspec::{
    Attr, Block as NestedBlock, BlockAttrs, BlockList, Default, Literal, Object, Spec,
};

fn spec(block: Block) -> Spec {
    Spec { block: Some(block) }
}

/// The options of a plugin or a task, each under its name.
pub(super) fn object<'a>(options: impl IntoIterator<Item = (&'a str, Spec)>) -> Spec {
    let attributes = options.into_iter().map(|(name, option)| (name.to_owned(), option)).collect();
    spec(Block::Object(Object { attributes }))
}

/// An option of an HCL type (`string`, `bool`, `list(string)`, ..); absent, it arrives as nil.
pub(super) fn optional(name: &str, r#type: &str) -> Spec {
    attr(name, r#type, false)
}

/// An option that Nomad itself refuses to leave out.
pub(super) fn required(name: &str, r#type: &str) -> Spec {
    attr(name, r#type, true)
}

/// An option with a value for its absence, given as HCL text: a string needs quotes inside.
pub(super) fn default(name: &str, r#type: &str, hcl: &str) -> Spec {
    spec(Block::Default(Box::new(Default {
        primary: Some(Box::new(optional(name, r#type))),
        default: Some(Box::new(spec(Block::Literal(Literal { value: hcl.to_owned() })))),
    })))
}

/// A block of options within one; absent, it arrives as nil.
pub(super) fn block(name: &str, nested: Spec) -> Spec {
    spec(Block::BlockValue(Box::new(NestedBlock {
        name: name.to_owned(),
        required: false,
        nested: Some(Box::new(nested)),
    })))
}

/// A map with keys of the job's own choice, which may be written as a block or be assigned; absent, it arrives as nil.
pub(super) fn block_attrs(name: &str, r#type: &str) -> Spec {
    spec(Block::BlockAttrs(BlockAttrs { name: name.to_owned(), r#type: r#type.to_owned(), required: false }))
}

/// A block that may be there several times, or a list of objects; absent, it arrives as an empty list.
pub(super) fn block_list(name: &str, nested: Spec) -> Spec {
    spec(Block::BlockList(Box::new(BlockList {
        name: name.to_owned(),
        nested: Some(Box::new(nested)),
        ..BlockList::default()
    })))
}

fn attr(name: &str, r#type: &str, required: bool) -> Spec {
    spec(Block::Attr(Attr { name: name.to_owned(), r#type: r#type.to_owned(), required }))
}
