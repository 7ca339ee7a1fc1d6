//! Facts of the machine and the programs that figures were taken on. Figures say little without them.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use harness::fixture::Programs;
use harness::fixture::process::output;
use serde_json::{Map, Value};

use crate::machine;

/// # Errors
/// Names the fact that can't be read. The version of a program that isn't installed is null.
pub(crate) fn facts(plugin: &Path, nomad: Option<&Path>, programs: &Programs) -> Result<Value> {
    let version = |program: &Path, argument: &str| {
        let printed = output(Command::new(program).arg(argument)).ok()?;
        Some(printed.lines().find(|line| line.split('.').count() > 1)?.trim().to_owned())
    };
    let mut facts = serde_json::to_value(machine::look()?)?;
    facts["plugin"] = version(plugin, "--version").into();
    facts["containerd"] = version(programs.containerd(), "--version").into();
    facts["shim"] = version(programs.shim(), "-v").into();
    facts["runtime"] = version(programs.runtime(), "--version").into();
    facts["nomad"] = nomad.and_then(|nomad| version(nomad, "version")).into();
    Ok(facts)
}

pub(crate) fn print(facts: &Value) {
    for (name, fact) in facts.as_object().unwrap_or(&Map::new()) {
        println!("{name:<12} {}", fact.as_str().map_or_else(|| fact.to_string(), str::to_owned));
    }
}
