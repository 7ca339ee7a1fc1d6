//! Resource usage of processes before and after something: descriptors, threads, memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::host::Plugin;
use harness::processes::resident_kb;
use harness::task::Task;
use nix::unistd::Pid;

/// Growth allowed to a shim after a warm-up. Its Go runtime closes files and returns memory only when its garbage
/// collector runs: over four thousand execs one shim was seen to gain 12 MiB in the first two thousand and nothing in
/// the others, and to have between 20 and 50 files all the way. It makes a thread for each call that blocks while
/// others wait, and never ends it; how many do so at a time is chance, and 42 more were seen with a hundred execs at
/// once. A leak of one per exec would exceed these limits.
pub const OF_A_SHIM: ResourceUsage = ResourceUsage { descriptors: 80, threads: 80, resident_kb: 16 * 1024 };
/// Growth allowed to the plugin: its allocator's share.
pub const OF_THE_PLUGIN: ResourceUsage = ResourceUsage { descriptors: 8, threads: 8, resident_kb: 8 * 1024 };

#[derive(Debug, Clone, Copy)]
pub struct ResourceUsage {
    pub descriptors: usize,
    pub threads: usize,
    pub resident_kb: u64,
}

/// A baseline of the resource usage of named processes, with the growth allowed to each.
pub struct ResourceBaseline {
    all: Vec<(String, Pid, ResourceUsage)>,
    more: ResourceUsage,
}

impl ResourceUsage {
    fn of(pid: Pid) -> Result<Self> {
        let count = |what: &str| -> Result<usize> {
            let path = format!("/proc/{pid}/{what}");
            Ok(fs::read_dir(&path).with_context(|| format!("list {path}"))?.count())
        };
        let resident_kb = resident_kb(pid.as_raw())?;
        Ok(Self { descriptors: count("fd")?, threads: count("task")?, resident_kb })
    }
}

impl ResourceBaseline {
    /// # Errors
    /// Fails if a process is gone, and names it.
    pub fn of(processes: &[(String, Pid)], more: ResourceUsage) -> Result<Self> {
        let hold = |(name, pid): &(String, Pid)| {
            let held = ResourceUsage::of(*pid).with_context(|| format!("look at {name}"))?;
            Ok((name.clone(), *pid, held))
        };
        Ok(Self { all: processes.iter().map(hold).collect::<Result<_>>()?, more })
    }

    /// Asserts that no process has grown beyond the allowed growth.
    ///
    /// # Errors
    /// Names the process, the resource, and its usage then and now.
    pub fn assert_no_growth(&self) -> Result<()> {
        for (name, pid, before) in &self.all {
            let now = ResourceUsage::of(*pid).with_context(|| format!("look at {name}"))?;
            let (were, are) = (before.descriptors, now.descriptors);
            ensure!(are <= were + self.more.descriptors, "{name} has {are} descriptors, and had {were}");
            let (were, are) = (before.threads, now.threads);
            ensure!(are <= were + self.more.threads, "{name} has {are} threads, and had {were}");
            let (were, are) = (before.resident_kb, now.resident_kb);
            ensure!(are <= were + self.more.resident_kb, "{name} has {are} kB resident, and had {were}");
        }
        Ok(())
    }
}

/// Waits until a condition holds, for at most `limit`.
///
/// # Errors
/// Returns the condition's last error.
pub async fn come_back(limit: Duration, condition: impl Fn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match condition() {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
            held => return held,
        }
    }
}

/// Returns the pid of a task's shim, as the plugin reports it.
///
/// # Errors
/// Fails if the plugin doesn't report it.
pub async fn shim_of(plugin: &Plugin, task: &Task) -> Result<Pid> {
    let shown = plugin.inspect_task(task.id()).await?.driver.context("nothing of the driver's own")?;
    Ok(Pid::from_raw(shown.attributes.get("shim_pid").context("no shim_pid")?.parse()?))
}

/// Returns the pid of the plugin's own process.
///
/// # Errors
/// Fails if the pid is out of range.
pub fn pid(plugin: &Plugin) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(plugin.pid())?))
}
