//! Runs the fuzz targets, which are tests in the modules `fuzz` of the other rooms, beside the parsers.
//!
//! `cargo test` runs each target with the inputs in `corpus/<target>`, one on a line. In a build by `hack/fuzz` a target
//! runs under libFuzzer, which starts from the same inputs and looks for more.

#[cfg(fuzzing)]
mod engine;
mod lines;

use std::path::{Path, PathBuf};

/// Runs the target `name`: calls `check` with each input. An input that fails is one with which it panics.
#[cfg(not(fuzzing))]
pub(crate) fn bytes(name: &str, check: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    for input in corpus(name) {
        let outcome = std::panic::catch_unwind(|| check(&input));
        assert!(outcome.is_ok(), "target {name}, input {}", lines::escaped(&input));
    }
}

#[cfg(fuzzing)]
pub(crate) use engine::bytes;

/// Like [`bytes`], with inputs that are text. Others are read with replacement characters.
pub(crate) fn text(name: &str, check: impl Fn(&str) + std::panic::RefUnwindSafe) {
    bytes(name, |input| check(&String::from_utf8_lossy(input)));
}

/// Like [`bytes`], with inputs of two parts, which the first byte 0xff divides.
pub(crate) fn pairs(name: &str, check: impl Fn(&[u8], &[u8]) + std::panic::RefUnwindSafe) {
    bytes(name, |input| {
        let at = input.iter().position(|byte| *byte == 0xff);
        let (first, second) = at.map_or((input, &[][..]), |at| (&input[..at], &input[at + 1..]));
        check(first, second);
    });
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fuzz/corpus").join(name)
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let path = file(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let inputs: Vec<_> = lines::of(&text).map(|line| lines::unescaped(line).expect(line)).collect();
    assert!(!inputs.is_empty(), "{} has no input", path.display());
    inputs
}
