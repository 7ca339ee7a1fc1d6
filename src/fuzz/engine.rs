//! Targets under libFuzzer, as `hack/fuzz` runs them: each in a process of its own, with a directory of inputs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{corpus, file, lines};

/// Variable with the directory that libFuzzer reads inputs from and adds new ones to.
const INPUTS: &str = "FUZZ_INPUTS";
/// Variable that is set to have the directory's inputs added to the target's corpus, in the place of the fuzzing.
const KEEP: &str = "FUZZ_KEEP";

/// Runs the target `name` until libFuzzer ends. Its corpus is in files that begin with the name.
pub(crate) fn bytes(name: &str, check: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    let directory = PathBuf::from(std::env::var_os(INPUTS).expect(INPUTS));
    if std::env::var_os(KEEP).is_some() {
        return keep(name, &directory);
    }
    for (number, input) in corpus(name).iter().enumerate() {
        std::fs::write(directory.join(format!("{name}.{number}")), input).unwrap();
    }
    bolero::check!(name = name).for_each(|input: &[u8]| check(input));
}

/// Adds the inputs in a directory to the corpus of a target, behind those that are there.
fn keep(name: &str, directory: &Path) {
    let path = file(name);
    let mut text = std::fs::read_to_string(&path).unwrap();
    let known: BTreeSet<String> = lines::of(&text).map(str::to_owned).collect();
    let entries = std::fs::read_dir(directory).unwrap();
    let inputs = entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let found: BTreeSet<String> = inputs.map(|input| lines::escaped(&input)).collect();
    for line in found.difference(&known) {
        text.push_str(line);
        text.push('\n');
    }
    std::fs::write(path, text).unwrap();
}
