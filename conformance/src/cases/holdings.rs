//! What a process holds of the machine, before and after.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use crate::agent::processes::resident_kb;

/// What a runtime keeps of threads that it has once needed: Go's never end theirs.
const THREADS_SLACK: usize = 6;
/// Go's collector closes files when it comes to it. One lost by each of a shim's fifty execs would be more.
const DESCRIPTORS_SLACK: usize = 30;
/// What allocators keep, after the warm-up. A shim's grows by some 12 MiB in its first two thousand execs, and then no
/// more.
const RESIDENT_SLACK_KB: u64 = 16 * 1024;

/// Of some processes, each with its name.
pub struct Holdings {
    all: Vec<(String, Pid, Held)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: usize,
    resident_kb: u64,
}

impl Held {
    fn of(pid: Pid) -> Result<Self> {
        let count = |what: &str| -> Result<usize> {
            let path = format!("/proc/{pid}/{what}");
            Ok(fs::read_dir(&path).with_context(|| format!("list {path}"))?.count())
        };
        let resident_kb = resident_kb(pid.as_raw())?;
        Ok(Self { descriptors: count("fd")?, threads: count("task")?, resident_kb })
    }
}

impl Holdings {
    /// # Errors
    /// Names the process that is gone.
    pub fn of(processes: &[(String, Pid)]) -> Result<Self> {
        let hold = |(name, pid): &(String, Pid)| {
            let held = Held::of(*pid).with_context(|| format!("look at {name}"))?;
            Ok((name.clone(), *pid, held))
        };
        Ok(Self { all: processes.iter().map(hold).collect::<Result<_>>()? })
    }

    /// That each holds no more than then.
    ///
    /// # Errors
    /// Says which holds what too much.
    pub fn has_come_back(&self) -> Result<()> {
        for (name, pid, before) in &self.all {
            let now = Held::of(*pid).with_context(|| format!("look at {name}"))?;
            let (were, are) = (before.descriptors, now.descriptors);
            ensure!(are <= were + DESCRIPTORS_SLACK, "{name} has {are} descriptors, and had {were}");
            let (were, are) = (before.threads, now.threads);
            ensure!(are <= were + THREADS_SLACK, "{name} has {are} threads, and had {were}");
            let (were, are) = (before.resident_kb, now.resident_kb);
            ensure!(are <= were + RESIDENT_SLACK_KB, "{name} has {are} kB resident, and had {were}");
        }
        Ok(())
    }
}

/// Waits until a condition holds.
///
/// # Errors
/// Says what still isn't so at the end.
pub async fn come_back(limit: Duration, condition: impl Fn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match condition() {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
            held => return held,
        }
    }
}
