//! The sections of a page of options.

use serde_json::Value;

use super::hcl;
use super::schema::{Declared, Default};

/// The part of a page that is about one option.
pub(super) struct Section<'a> {
    pub name: &'a str,
    /// Number of `#` of the heading.
    pub depth: usize,
    text: &'a str,
}

/// Returns the sections of a page whose heading is an option's name, in order.
pub(super) fn sections(page: &str) -> Vec<Section<'_>> {
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
    /// Returns the section's first paragraph in one line: ``type, default: `value`. What it is ..``
    fn first_paragraph(&self) -> String {
        let lines = self.text.lines().skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join(" ")
    }

    /// Asserts that the section's first paragraph has the type, the default and a description.
    pub(super) fn assert_shows(&self, declared: &Declared) {
        let (name, text) = (self.name, self.first_paragraph());
        let (kind, rest) = text.split_once("`, ").unwrap_or_else(|| panic!("{name} has no type: {text}"));
        match &declared.kind {
            Some(declared) => assert_eq!(kind, format!("`{declared}"), "{name}: the type"),
            None => assert!(kind.contains("` or `"), "{name} takes several types, and the page has {kind}"),
        }
        let description = match &declared.default {
            Default::Required => rest.strip_prefix("required. "),
            Default::Value(value) => rest.strip_prefix(&format!("default: `{value}`. ")),
            Default::Words => {
                let words = rest.strip_prefix("default: ");
                words.and_then(|words| words.split_once(". ")).map(|(_, description)| description)
            }
        };
        let description =
            description.unwrap_or_else(|| panic!("{name}: {:?}, and the page has {rest}", declared.default));
        assert!(!description.is_empty(), "{name}: the page doesn't say what it is");
    }

    /// Returns the option's default, where the page gives it as a value.
    pub(super) fn default(&self) -> Option<Value> {
        let text = self.first_paragraph();
        let (value, _) = text.split_once("`, default: `")?.1.split_once('`')?;
        hcl::body(&format!("it = {value}")).remove("it")
    }

    /// Returns the section's HCL examples.
    pub(super) fn examples(&self) -> impl Iterator<Item = &str> {
        self.text.split("```hcl\n").skip(1).filter_map(|block| block.split("```").next())
    }

    /// Returns true if an example of the section sets the option, by the last part of its name.
    pub(super) fn sets(&self, option: &str) -> bool {
        let option = option.rsplit('.').next().unwrap_or(option);
        self.examples().flat_map(str::lines).any(|line| sets(line, option))
    }

    /// Returns the rest of the first line that begins with `word`.
    pub(super) fn line(&self, word: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(word))
    }
}

/// Returns true if the line of HCL sets the option.
pub(super) fn sets(line: &str, option: &str) -> bool {
    line.trim_start().strip_prefix(option).is_some_and(|rest| rest.starts_with([' ', '=']))
}
