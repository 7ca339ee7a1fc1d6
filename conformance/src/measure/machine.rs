//! What the figures were taken on, without which they say little.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::fixture::Programs;
use crate::fixture::process::output;

/// # Errors
/// Names the fact that can't be had. A program that isn't there is null.
pub fn facts(plugin: &Path, nomad: Option<&Path>, programs: &Programs) -> Result<Value> {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let cpu = read("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let version = |program: &Path, argument: &str| {
        let said = output(Command::new(program).arg(argument)).ok()?;
        Some(said.lines().find(|line| line.split('.').count() > 1)?.trim().to_owned())
    };
    Ok(json!({
        "kernel": read("/proc/sys/kernel/osrelease")?,
        "cores": std::thread::available_parallelism()?.get(),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cgroups": cgroups(),
        "load_before": read("/proc/loadavg")?,
        "plugin": version(plugin, "--version"),
        "containerd": version(programs.containerd(), "--version"),
        "shim": version(programs.shim(), "-v"),
        "runc": version(Path::new("runc"), "--version"),
        "crun": version(Path::new("crun"), "--version"),
        "nomad": nomad.and_then(|nomad| version(nomad, "version")),
    }))
}

pub fn print(facts: &Value) {
    for (name, fact) in facts.as_object().unwrap_or(&Map::new()) {
        println!("{name:<12} {}", fact.as_str().map_or_else(|| fact.to_string(), str::to_owned));
    }
}

fn cgroups() -> &'static str {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        "v2"
    } else if root.join("unified").exists() {
        "v1, hybrid"
    } else {
        "v1"
    }
}
