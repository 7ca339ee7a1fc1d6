//! Constructors for the nodes of a schema. Within an object a child's name is its key; within a default it is not, so
//! each node here carries its own name.
//!
//! Source of the facts: hashicorp/nomad `plugins/shared/hclspec`, `helper/pluginutils/hclspecutils`.

use nomad_proto::hclspec::spec::Block;
use nomad_proto::hclspec::{
    Attr, Block as NestedBlock, BlockAttrs, BlockList, Default, Literal, Object, Spec,
};

fn spec(block: Block) -> Spec {
    Spec { block: Some(block) }
}

/// Declares the options of a plugin or a task, each under its name.
pub(super) fn object<'a>(options: impl IntoIterator<Item = (&'a str, Spec)>) -> Spec {
    let attributes = options.into_iter().map(|(name, option)| (name.to_owned(), option)).collect();
    spec(Block::Object(Object { attributes }))
}

/// Declares an option of an HCL type (`string`, `bool`, `list(string)`, ..); absent, it arrives as nil.
pub(super) fn optional(name: &str, r#type: &str) -> Spec {
    attr(name, r#type, false)
}

/// Declares an option that Nomad itself requires.
pub(super) fn required(name: &str, r#type: &str) -> Spec {
    attr(name, r#type, true)
}

/// Declares an option with a default, given as HCL text: a string needs quotes inside.
pub(super) fn default(name: &str, r#type: &str, hcl: &str) -> Spec {
    spec(Block::Default(Box::new(Default {
        primary: Some(Box::new(optional(name, r#type))),
        default: Some(Box::new(spec(Block::Literal(Literal { value: hcl.to_owned() })))),
    })))
}

/// Declares a nested block of options; absent, it arrives as nil.
pub(super) fn block(name: &str, nested: Spec) -> Spec {
    spec(Block::BlockValue(Box::new(NestedBlock {
        name: name.to_owned(),
        required: false,
        nested: Some(Box::new(nested)),
    })))
}

/// Declares a map with keys of the job's choice, written as a block or assigned; absent, it arrives as nil.
pub(super) fn block_attrs(name: &str, r#type: &str) -> Spec {
    spec(Block::BlockAttrs(BlockAttrs { name: name.to_owned(), r#type: r#type.to_owned(), required: false }))
}

/// Declares a block that may be repeated, or a list of objects; absent, it arrives as an empty list.
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
