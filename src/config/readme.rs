//! Holds the README's tables of options against the schemas: every option is in them, with its default and with what
//! shows it, and nothing else is.

use std::collections::BTreeMap;
use std::path::Path;

use nomad_proto::hclspec::Spec;
use nomad_proto::hclspec::spec::Block;

use super::{PluginConfig, TaskOptions};

const README: &str = include_str!("../../README.md");

/// An option's default as the schema has it.
#[derive(Debug, PartialEq)]
enum Declared {
    Required,
    Optional,
    Default(String),
}

fn declared(spec: &Spec) -> BTreeMap<String, Declared> {
    let Some(Block::Object(object)) = &spec.block else { panic!("a schema is an object") };
    let default = |option: &Spec| match option.block.as_ref().expect("an option is something") {
        Block::Attr(attr) if attr.required => Declared::Required,
        Block::Default(default) => match default.default.as_ref().and_then(|spec| spec.block.as_ref()) {
            Some(Block::Literal(literal)) => Declared::Default(literal.value.clone()),
            other => panic!("a default is a literal, not {other:?}"),
        },
        _ => Declared::Optional,
    };
    object.attributes.iter().map(|(name, option)| (name.clone(), default(option))).collect()
}

/// The cells of the table below a heading, by the option's name.
fn table(heading: &str) -> BTreeMap<String, Vec<String>> {
    let section = README.split_once(heading).unwrap_or_else(|| panic!("the README has no {heading:?}")).1;
    let lines =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| {
        let line = line.trim_matches('|').replace("\\|", "\0");
        line.split('|').map(|cell| cell.trim().replace('\0', "|")).collect::<Vec<_>>()
    };
    lines.skip(2).map(cells).map(|cells| (cells[0].trim_matches('`').to_owned(), cells)).collect()
}

fn assert_in_step(heading: &str, schema: &Spec, shows: impl Fn(&str, &str) -> bool) {
    let (declared, table) = (declared(schema), table(heading));
    let (options, rows): (Vec<_>, Vec<_>) = (declared.keys().collect(), table.keys().collect());
    assert_eq!(options, rows, "{heading}: the schema's options, and the table's");
    for (name, default) in &declared {
        let cells = &table[name];
        let [_, shown_default, _, shown_by] = &cells[..] else {
            panic!("{name}: a row has four cells: {cells:?}")
        };
        match default {
            Declared::Required => assert_eq!(shown_default, "required", "{name}"),
            Declared::Optional => assert_ne!(shown_default, "required", "{name}"),
            Declared::Default(value) => assert_eq!(shown_default, &format!("`{value}`"), "{name}"),
        }
        assert!(shows(name, shown_by), "{name} is not shown by {shown_by}");
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_task_option_is_in_the_readme_and_has_a_job_that_shows_it() {
    assert_in_step("### Task options", &TaskOptions::schema(), |name, shown_by| {
        let Some((_, path)) = shown_by.trim_end_matches(')').split_once("](") else { return false };
        let sets = |line: &str| {
            line.trim_start().strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '=']))
        };
        path.starts_with("examples/task-options/") && read(path).lines().any(sets)
    });
}

#[test]
fn every_plugin_option_is_in_the_readme_and_has_cases_that_show_it() {
    assert_in_step("### Plugin options", &PluginConfig::schema(), |name, shown_by| {
        read(&format!("conformance/src/cases/{}.rs", shown_by.trim_matches('`'))).contains(name)
    });
}
