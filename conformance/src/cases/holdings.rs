//! What a process holds of the machine, before and after: descriptors, threads, memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use crate::host::Plugin;
use crate::processes::resident_kb;
use crate::task::Task;

/// What a shim's runtime keeps after a warm-up: Go closes files and gives memory back when its collector comes to it. Over
/// four thousand execs one was seen to gain 12 MiB in the first two thousand and nothing in the others, and between 20 and
/// 50 files all the way. A thread it makes for each call that blocks while others wait, and never ends it; how many do so
/// at a time is chance, and 42 more were seen with a hundred execs at once. One that each exec left would be more than these.
pub const OF_A_SHIM: Held = Held { descriptors: 80, threads: 80, resident_kb: 16 * 1024 };
/// What the plugin does: its allocator's share.
pub const OF_THE_PLUGIN: Held = Held { descriptors: 8, threads: 8, resident_kb: 8 * 1024 };

#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub descriptors: usize,
    pub threads: usize,
    pub resident_kb: u64,
}

/// Of some processes, each with its name, and how much more each may have later.
pub struct Holdings {
    all: Vec<(String, Pid, Held)>,
    more: Held,
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
    pub fn of(processes: &[(String, Pid)], more: Held) -> Result<Self> {
        let hold = |(name, pid): &(String, Pid)| {
            let held = Held::of(*pid).with_context(|| format!("look at {name}"))?;
            Ok((name.clone(), *pid, held))
        };
        Ok(Self { all: processes.iter().map(hold).collect::<Result<_>>()?, more })
    }

    /// That each holds no more than then.
    ///
    /// # Errors
    /// Says which holds what too much.
    pub fn has_come_back(&self) -> Result<()> {
        for (name, pid, before) in &self.all {
            let now = Held::of(*pid).with_context(|| format!("look at {name}"))?;
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

/// The process that serves a task, by the plugin's word.
///
/// # Errors
/// When the plugin doesn't say.
pub async fn shim_of(plugin: &Plugin, task: &Task) -> Result<Pid> {
    let shown = plugin.inspect_task(task.id()).await?.driver.context("nothing of the driver's own")?;
    Ok(Pid::from_raw(shown.attributes.get("shim_pid").context("no shim_pid")?.parse()?))
}

/// The plugin's own process.
///
/// # Errors
/// When its pid is none.
pub fn pid(plugin: &Plugin) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(plugin.pid())?))
}
