//! Tests docs/plugin-options.md and docs/task-options.md against the schemas and the code: each option of a schema, and
//! each option within a block, has a heading with its type, its default and an example; no heading is about anything
//! else. Examples must decode; a default that is given as a value must be the one that the code takes. Also tests
//! README's job against the one in examples/.

mod hcl;
mod page;
pub(super) mod schema;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use nomad_proto::hclspec::Spec;
use serde_json::{Map, Value, json};

use super::{ConfigError, DriverName, PluginConfig, TaskOptions};
use page::{Section, sections, sets};
use schema::{declared, listed};

const PLUGIN: &str = include_str!("../../docs/plugin-options.md");
const TASK: &str = include_str!("../../docs/task-options.md");
const README: &str = include_str!("../../README.md");
const JOB: &str = include_str!("../../examples/job.nomad.hcl");

/// Options that are declared only for a better error, and that no example can set.
const REFUSED: [&str; 1] = ["volumes.selinuxlabel"];

/// A page of options with the schema and the decoder that it is tested against.
struct DocumentedOptions<'a, T> {
    page: &'a str,
    schema: Spec,
    /// The options that each example needs in order to decode.
    required: Value,
    decode: fn(&[u8]) -> Result<T, ConfigError>,
}

impl<T: PartialEq + Debug> DocumentedOptions<'_, T> {
    /// Asserts that page, schema and decoder agree. `evidence` checks the section of an option for anything else that
    /// it must have.
    fn assert_in_step(&self, evidence: impl Fn(&Section)) {
        let (declared, sections) = (declared(&self.schema), sections(self.page));
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
            let name = section.name;
            section.assert_shows(&declared[name]);
            let whole = name.split('.').next().unwrap_or_default();
            let whole = sections.iter().find(|other| other.name == whole).unwrap();
            assert!(whole.sets(name) || REFUSED.contains(&name), "no HCL sets {name}");
            self.assert_default(section, whole);
            if whole.name == name {
                assert_eq!(section.depth, 3, "{name}: the level of its heading");
                section.examples().for_each(|example| drop(self.decode(name, &hcl::body(example))));
                evidence(section);
            } else {
                assert_eq!(section.depth, 4, "{name}: the level of its heading");
            }
        }
    }

    /// Asserts that the example of the whole block decodes to the same without the option and with its documented
    /// default.
    fn assert_default(&self, section: &Section, whole: &Section) {
        let name = section.name;
        let Some(default) = section.default() else { return };
        let example = hcl::body(whole.examples().next().unwrap());
        let Some(without) = replaced(&example, name, None) else { return };
        let with = replaced(&example, name, Some(default)).unwrap();
        assert_eq!(self.decode(name, &without), self.decode(name, &with), "{name}: its default");
    }

    fn decode(&self, name: &str, options: &Map<String, Value>) -> T {
        let mut all = self.required.as_object().cloned().unwrap_or_default();
        all.extend(options.clone());
        listed(&self.schema, &mut all);
        let sent = rmp_serde::to_vec_named(&all).unwrap();
        (self.decode)(&sent).unwrap_or_else(|error| panic!("the example of {name}: {error}"))
    }
}

/// Returns the options with an existing one replaced, or removed. `None` if the option is in a list, or absent.
fn replaced(options: &Map<String, Value>, name: &str, value: Option<Value>) -> Option<Map<String, Value>> {
    let mut all = options.clone();
    let (mut at, mut way) = (&mut all, name);
    while let Some((block, rest)) = way.split_once('.') {
        (at, way) = (at.get_mut(block)?.as_object_mut()?, rest);
    }
    at.remove(way)?;
    at.extend(value.map(|value| (way.to_owned(), value)));
    Some(all)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A page says the defaults under one name; this is for all that a schema declares under each.
#[test]
fn an_absent_option_has_the_default_that_the_schema_declares() {
    for driver in [DriverName::ContainerdDriver, DriverName::Docker] {
        let needed = match driver {
            DriverName::ContainerdDriver => json!({ "containerd_runtime": "io.containerd.runc.v2" }),
            DriverName::Docker => json!({}),
        };
        let with = |name: &str, value: Value| {
            let mut all = needed.clone();
            let option = name.rsplit('.').fold(value, |value, part| json!({ part: value }));
            all.as_object_mut().unwrap().extend(option.as_object().unwrap().clone());
            let decoded = PluginConfig::decode(driver, &rmp_serde::to_vec_named(&all).unwrap());
            decoded.unwrap_or_else(|error| panic!("{driver}: {name}: {error}"))
        };
        let mut count = 0;
        for (name, option) in declared(&PluginConfig::schema(driver)) {
            let schema::Default::Value(text) = option.default else { continue };
            let default = hcl::body(&format!("it = {text}")).remove("it").unwrap();
            assert_eq!(with(&name, default), with(&name, Value::Null), "{driver}: {name}");
            count += 1;
        }
        assert!(count > 20, "{count}");
    }
}

#[test]
fn the_page_of_plugin_options_matches_the_schema() {
    let held = DocumentedOptions {
        page: PLUGIN,
        schema: PluginConfig::schema(DriverName::ContainerdDriver),
        required: json!({ "containerd_runtime": "io.containerd.runc.v2" }),
        decode: |options| PluginConfig::decode(DriverName::ContainerdDriver, options),
    };
    held.assert_in_step(|section| {
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
fn the_page_of_task_options_matches_the_schema() {
    let held = DocumentedOptions {
        page: TASK,
        schema: TaskOptions::schema(),
        required: json!({ "image": "redis" }),
        decode: |options| TaskOptions::decode(DriverName::ContainerdDriver, options),
    };
    held.assert_in_step(|section| {
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
