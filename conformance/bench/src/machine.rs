//! Facts of the machine that figures were taken on. Figures say little without them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::report_data::Machine;

/// # Errors
/// Names the fact that can't be read.
pub(crate) fn look() -> Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let (cpu, memory) = (read("/proc/cpuinfo")?, read("/proc/meminfo")?);
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let kilobytes = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let distribution = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    Ok(Machine {
        cpu: model.trim_start_matches([' ', '\t', ':']).to_owned(),
        cores: std::thread::available_parallelism()?.get(),
        memory_bytes: kilobytes.context("MemTotal")?.parse::<u64>()? * 1024,
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        cgroups: cgroups().to_owned(),
        distribution: distribution.trim_matches('"').to_owned(),
        load_before: read("/proc/loadavg")?.trim().to_owned(),
    })
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
