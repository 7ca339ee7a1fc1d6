//! Holds the pages of options (docs/plugin-options.md, docs/task-options.md) against the schemas: each option of a schema, and
//! each option within a block, has a heading with its type, its default and an example; no heading is about anything else.
//! Holds README's job against the one in examples/, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nomad_proto::hclspec::Spec;
use nomad_proto::hclspec::spec::Block;

use super::{PluginConfig, TaskOptions};

const PLUGIN: &str = include_str!("../../docs/plugin-options.md");
const TASK: &str = include_str!("../../docs/task-options.md");
const README: &str = include_str!("../../README.md");
const JOB: &str = include_str!("../../examples/job.nomad.hcl");

/// Blocks whose options are those of another block, where the page has them.
const SAME_OPTIONS: [(&str, &str); 1] = [("mounts", "mount")];
/// Options that are declared for a better error alone, and that no example can set.
const REFUSED: [&str; 1] = ["volumes.selinuxlabel"];

/// An option as its schema declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Declared {
    /// As a page writes it; None for one that takes values of several types.
    kind: Option<String>,
    default: Default,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Default {
    Required,
    /// None in the schema, so that it is told in words.
    Words,
    Value(String),
}

/// The options of a schema, those within blocks by a dotted name.
fn declared(schema: &Spec) -> BTreeMap<String, Declared> {
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

/// The part of a page that is about one option.
struct Section<'a> {
    name: &'a str,
    /// How many `#` its heading has.
    depth: usize,
    text: &'a str,
}

/// The sections of a page with an option's name as their heading, in their order.
fn sections(page: &str) -> Vec<Section<'_>> {
    let mut sections = Vec::new();
    for part in page.split("\n#").skip(1) {
        let (heading, text) = part.split_once('\n').unwrap_or((part, ""));
        let title = heading.trim_start_matches('#');
        if let Some(name) = title.trim().strip_prefix('`').and_then(|name| name.strip_suffix('`')) {
            sections.push(Section { name, depth: 1 + heading.len() - title.len(), text });
        }
    }
    sections
}

impl Section<'_> {
    /// Its first paragraph in one line: ``type, default: `value`. What it is ..``
    fn first_paragraph(&self) -> String {
        let lines = self.text.lines().skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join(" ")
    }

    fn assert_shows(&self, declared: &Declared) {
        let (name, text) = (self.name, self.first_paragraph());
        let (kind, rest) = text.split_once("`, ").unwrap_or_else(|| panic!("{name} has no type: {text}"));
        match &declared.kind {
            Some(declared) => assert_eq!(kind, format!("`{declared}"), "{name}: the type"),
            None => assert!(kind.contains("` or `"), "{name} takes several types, and the page has {kind}"),
        }
        let said = match &declared.default {
            Default::Required => rest.strip_prefix("required. "),
            Default::Value(value) => rest.strip_prefix(&format!("default: `{value}`. ")),
            Default::Words => {
                let words = rest.strip_prefix("default: ");
                words.and_then(|words| words.split_once(". ")).map(|(_, said)| said)
            }
        };
        let said = said.unwrap_or_else(|| panic!("{name}: {:?}, and the page has {rest}", declared.default));
        assert!(!said.is_empty(), "{name}: the page doesn't say what it is");
    }

    fn depth(&self) -> usize {
        if self.name.contains('.') { 4 } else { 3 }
    }

    /// Whether a block of HCL sets an option, by the last part of its name.
    fn sets(&self, option: &str) -> bool {
        let option = option.rsplit('.').next().unwrap_or(option);
        let blocks = self.text.split("```hcl\n").skip(1).filter_map(|block| block.split("```").next());
        blocks.flat_map(str::lines).any(|line| sets(line, option))
    }

    /// What follows a word at the beginning of a line.
    fn line(&self, word: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(word))
    }
}

fn sets(line: &str, option: &str) -> bool {
    line.trim_start().strip_prefix(option).is_some_and(|rest| rest.starts_with([' ', '=']))
}

fn assert_in_step(page: &str, schema: &Spec, evidence: impl Fn(&Section)) {
    let (declared, sections) = (declared(schema), sections(page));
    let named: BTreeSet<&str> = sections.iter().map(|section| section.name).collect();
    assert_eq!(named.len(), sections.len(), "an option has two headings");
    let options: BTreeSet<&str> = declared.keys().map(String::as_str).collect();
    let missing: Vec<_> = options.difference(&named).collect();
    let unknown: Vec<_> = named.difference(&options).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "no headings: {missing:?}; not in the schema: {unknown:?}"
    );
    for section in &sections {
        assert_eq!(section.depth, section.depth(), "{}: the level of its heading", section.name);
        section.assert_shows(&declared[section.name]);
        let whole = section.name.split('.').next().unwrap_or_default();
        let whole = sections.iter().find(|other| other.name == whole).unwrap();
        assert!(whole.sets(section.name) || REFUSED.contains(&section.name), "no HCL sets {}", section.name);
        if section.depth == 3 {
            evidence(section);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_page_of_plugin_options_is_in_step_with_the_schema() {
    assert_in_step(PLUGIN, &PluginConfig::schema(), |section| {
        let name = section.name;
        let path = section.line("Tested by: `").and_then(|line| line.strip_suffix('`'));
        let path = path.unwrap_or_else(|| panic!("{name} doesn't say which cases test it"));
        assert!(
            path.starts_with("conformance/src/cases/") && read(&root().join(path)).contains(name),
            "{name}: {path}"
        );
    });
}

#[test]
fn the_page_of_task_options_is_in_step_with_the_schema() {
    assert_in_step(TASK, &TaskOptions::schema(), |section| {
        let name = section.name;
        let link = section.line("Example: [").and_then(|line| line.strip_suffix(')'));
        let (path, target) = link
            .and_then(|link| link.split_once("](../"))
            .unwrap_or_else(|| panic!("{name} has no link to an example"));
        assert_eq!(path, target, "{name}");
        assert!(path.starts_with("examples/task-options/"), "{name}: {path}");
        assert!(read(&root().join(path)).lines().any(|line| sets(line, name)), "{path} doesn't set {name}");
    });
}

#[test]
fn every_example_is_linked_from_a_page() {
    let files = |directory: &str| -> Vec<PathBuf> {
        let directory = root().join(directory);
        let entries =
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
    };
    let pages = files("docs").into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "md"));
    let pages: String = pages.map(|path| read(&path)).collect();
    for directory in ["examples/task-options", "examples/networks"] {
        for file in files(directory) {
            let path = format!("{directory}/{}", file.file_name().unwrap().to_string_lossy());
            assert!(pages.contains(&format!("](../{path})")), "no page links to {path}");
        }
    }
}

#[test]
fn the_readme_shows_the_job_of_the_examples() {
    let (_, image) = JOB.split_once("default = ").unwrap();
    let image = image.lines().next().unwrap();
    let (_, job) = JOB.split_once("\n}\n\n").unwrap();
    let job = job.replace("var.image", image);
    assert!(README.contains(&format!("```hcl\n{job}```")), "README has no such job:\n{job}");
}
