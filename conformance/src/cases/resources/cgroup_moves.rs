//! Moves of processes between cgroups, for which the kernel waits for all CPUs unless it has just done so. Beside cgroup v1
//! the plugin sees to that during a start and an exec, moves nothing by it, and does nothing when it is idle. On v2 it takes
//! part in no move.
//! Shims are not moved, but started in a cgroup of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::cgroup::is_v2;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::case::skip;
use crate::cases::support::resource_usage::shim_of;
use crate::cases::support::{cases, ensure_eq, spares};

cases!["cgroup moves":
    a_start_and_an_exec_open_the_window_and_an_idle_plugin_does_not,
    on_version_2_no_thread_of_the_plugin_waits_for_a_move,
    shims_and_spares_are_in_the_cgroup_of_the_shims,
];

/// The thread of the plugin that keeps the window open.
const THREAD: &str = "move-window";
/// A time in which an open window is written for many times.
const A_WHILE: Duration = Duration::from_millis(300);

/// Returns the bytes that the window's thread has written, and the number of times that it has slept; zeros if there is
/// no such thread yet.
fn work(plugin: &Plugin) -> Result<(u64, u64)> {
    for thread in fs::read_dir(format!("/proc/{}/task", plugin.pid()))? {
        let thread = thread?.path();
        // Another thread may have ended by now.
        if fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == THREAD) {
            let value = |file: &str, key: &str| -> Result<u64> {
                let text = fs::read_to_string(thread.join(file))?;
                let value = text.lines().find_map(|line| line.strip_prefix(key));
                Ok(value.with_context(|| format!("no {key} in {file}"))?.trim().parse()?)
            };
            return Ok((value("io", "wchar:")?, value("status", "voluntary_ctxt_switches:")?));
        }
    }
    Ok((0, 0))
}

/// Returns the cgroups of the window's thread, and of the plugin.
fn places(plugin: &Plugin) -> Result<[String; 2]> {
    let process = format!("/proc/{}", plugin.pid());
    let threads = fs::read_dir(format!("{process}/task"))?.flatten().map(|thread| thread.path());
    let is_it =
        |thread: &PathBuf| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == THREAD);
    let thread = threads.into_iter().find(is_it).context("no such thread")?;
    Ok([fs::read_to_string(thread.join("cgroup"))?, fs::read_to_string(format!("{process}/cgroup"))?])
}

/// Returns whether version 2 is beside version 1, and moves of the latter wait.
fn has_window() -> Result<bool> {
    let unified = "/sys/fs/cgroup/unified";
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(4) == Some(unified));
    Ok(!is_v2() && mount.is_some_and(|line| line.contains(" rw,") && !line.contains("favordynmods")))
}

/// Waits until the window is closed, and asserts that nothing is done for it from then on. Returns what was done.
async fn idle(plugin: &Plugin) -> Result<(u64, u64)> {
    let mut before = work(plugin)?;
    for _ in 0..50 {
        tokio::time::sleep(A_WHILE).await;
        let now = work(plugin)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    bail!("the plugin is idle, and its thread goes on: {before:?}")
}

async fn a_start_and_an_exec_open_the_window_and_an_idle_plugin_does_not(case: &CaseContext) -> Result<()> {
    if !has_window()? {
        return skip("there are not both versions of cgroups here, or no move waits");
    }
    let plugin = &mut case.plugin().await?;
    let before = fs::read_to_string(format!("/proc/{}/cgroup", plugin.pid()))?;
    let at_first = idle(plugin).await?;
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let after_start = idle(plugin).await?;
    ensure!(after_start.0 > at_first.0, "nothing was written during a start");
    ensure_eq!(task.exec(plugin, "true").await?.0, 0);
    let after_exec = idle(plugin).await?;
    ensure!(after_exec.0 > after_start.0, "nothing was written during an exec");
    task.end(plugin).await?;
    ensure_eq!(places(plugin)?, [before.clone(), before]);
    plugin.shut_down().await
}

const TRACING: &str = "/sys/kernel/tracing";

/// A trace of who takes the kernel's lock for moves. Removed on drop.
struct LockTrace {
    instance: PathBuf,
    probe: String,
    was_mounted: bool,
}

impl LockTrace {
    /// Begins a trace; `None` where the kernel has no probes, or does not tell where the lock is.
    fn begin() -> Result<Option<Self>> {
        let tracing = Path::new(TRACING);
        let was_mounted = tracing.join("trace").exists();
        if !was_mounted {
            let none: Option<&str> = None;
            mount(Some("tracefs"), tracing, Some("tracefs"), MsFlags::empty(), none)
                .context("mount the kernel's traces")?;
        }
        let probe = format!("cgroup_moves_{}", std::process::id());
        let trace = Self { instance: tracing.join("instances").join(&probe), probe, was_mounted };
        let symbols = fs::read_to_string("/proc/kallsyms")?;
        let lock = symbols.lines().find(|line| line.ends_with(" cgroup_threadgroup_rwsem"));
        let lock = lock.and_then(|line| line.split(' ').next());
        let Some(lock) = lock.filter(|lock| lock.bytes().any(|digit| digit != b'0')) else { return Ok(None) };
        if !tracing.join("kprobe_events").exists() {
            return Ok(None);
        }
        let probe = &trace.probe;
        trace.change(&format!("p:{probe}/enter rcu_sync_enter lock=$arg1:x64"))?;
        fs::write(tracing.join(format!("events/{probe}/enter/filter")), format!("lock == 0x{lock}"))?;
        fs::create_dir(&trace.instance)?;
        trace.enable("1")?;
        Ok(Some(trace))
    }

    /// Adds or removes a probe. Those of others stay, for which the file must not be truncated.
    fn change(&self, line: &str) -> Result<()> {
        use std::io::Write as _;
        let mut probes =
            fs::OpenOptions::new().append(true).open(Path::new(TRACING).join("kprobe_events"))?;
        probes.write_all(line.as_bytes()).context("change the kernel's probes")
    }

    fn enable(&self, value: &str) -> Result<()> {
        let Self { instance, probe, .. } = self;
        Ok(fs::write(instance.join(format!("events/{probe}/enter/enable")), value)?)
    }

    /// Returns the ids of the threads that have taken the lock, each as often as it has.
    fn takers(&self) -> Result<Vec<u32>> {
        let trace = fs::read_to_string(self.instance.join("trace"))?;
        let taken = trace.lines().filter(|line| line.contains(" enter: ("));
        taken.map(|line| taker(line).with_context(|| format!("{line:?} is no such event"))).collect()
    }
}

/// Parses a line such as `      runc:[2:INIT]-71   [001] .....    35.4: enter: (rcu_sync_enter+0x0/0xa0) lock=0x1`.
fn taker(line: &str) -> Option<u32> {
    line.split_once(" enter: (")?.0.rsplit_once(" [")?.0.trim().rsplit_once('-')?.1.parse().ok()
}

impl Drop for LockTrace {
    fn drop(&mut self) {
        let _ = self.enable("0");
        let _ = fs::remove_dir(&self.instance);
        let _ = self.change(&format!("-:{}/enter", self.probe));
        if !self.was_mounted {
            let _ = umount2(TRACING, MntFlags::MNT_DETACH);
        }
    }
}

async fn on_version_2_no_thread_of_the_plugin_waits_for_a_move(case: &CaseContext) -> Result<()> {
    if !is_v2() {
        return skip("cgroup v1 is here");
    }
    let Some(trace) = LockTrace::begin()? else { return skip("the kernel has no such probes") };
    let plugin = &mut case.plugin().await?;
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    for _ in 0..3 {
        ensure_eq!(task.exec(plugin, "true").await?.0, 0);
    }
    let threads = fs::read_dir(format!("/proc/{}/task", plugin.pid()))?;
    let threads: Vec<u32> =
        threads.flatten().filter_map(|thread| thread.file_name().to_str()?.parse().ok()).collect();
    // A move of our own, so that a trace of none is no proof.
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.trim().rsplit(':').next().unwrap_or_default().trim_start_matches('/').to_owned();
    let procs = Path::new("/sys/fs/cgroup").join(own).join("cgroup.procs");
    fs::write(procs, std::process::id().to_string()).context("move this process to where it is")?;
    let takers = trace.takers()?;
    ensure!(!takers.is_empty(), "the trace has nothing");
    task.end(plugin).await?;
    let waiting: Vec<_> = takers.iter().filter(|taker| threads.contains(taker)).collect();
    println!("  a start and three execs: {} moves, of the plugin's {}", takers.len(), waiting.len());
    ensure!(waiting.is_empty(), "threads of the plugin have moved something: {waiting:?}");
    plugin.shut_down().await
}

/// Asserts that a process is in the shims' cgroup of each hierarchy in which they have one.
fn is_among_shims(pid: i32) -> Result<()> {
    let listed = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let mut seen = 0;
    for (name, path) in listed.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')) {
        let own = match name {
            "" if is_v2() => "/nomad.slice/shims.slice",
            "" if Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists() => "/nomad/shims.slice",
            "name=systemd" | "memory" | "pids" => "/nomad/shims.slice",
            _ => continue,
        };
        ensure!(path == own, "process {pid} is in {path} of {name:?}, not in {own}");
        seen += 1;
    }
    ensure!(seen > 0, "process {pid} is in none of {listed}");
    Ok(())
}

async fn shims_and_spares_are_in_the_cgroup_of_the_shims(case: &CaseContext) -> Result<()> {
    for kept in [0, spares::KEPT] {
        let mut options = case.options();
        options["spare_shims"] = json!(kept);
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        if kept > 0 {
            for spare in spares::all_there(case).await? {
                is_among_shims(spare)?;
            }
        }
        let task = case.run(&plugin, &case.shell("sleep 600")).await?;
        is_among_shims(shim_of(&plugin, &task).await?.as_raw())?;
        let listed = fs::read_to_string(format!("/proc/{}/cgroup", plugin.pid()))?;
        ensure!(!listed.contains("shims.slice"), "the plugin is among the shims: {listed}");
        task.end(&plugin).await?;
        plugin.shut_down().await?;
    }
    Ok(())
}
