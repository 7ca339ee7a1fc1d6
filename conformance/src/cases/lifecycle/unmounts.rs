//! The driver never holds a task's secrets busy when the agent unmounts them right after a destroy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use harness::context::CaseContext;
use harness::host::Plugin;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::cases::support::{cases, ensure_eq};

cases!["unmounts":
    a_tasks_secrets_are_unmounted_at_once_after_its_destroy_while_others_start,
];

/// Number of tasks that come and go at once. A variable sets another one, for a longer look, and another duration than
/// [`ROUNDS`].
const AT_ONCE: usize = 6;
const ROUNDS: Duration = Duration::from_secs(12);
const NOTHING: Option<&str> = None;

/// The directory of allocations, bind-mounted on itself, so that it has a propagation of its own.
struct Mounted(PathBuf);

impl Mounted {
    fn as_said(directory: PathBuf, propagation: MsFlags) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        mount(Some(&directory), &directory, NOTHING, MsFlags::MS_BIND, NOTHING)?;
        let mounted = Self(directory);
        mount(NOTHING, &mounted.0, NOTHING, propagation, NOTHING)?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A directory of secrets on a tmpfs, as Nomad makes it.
struct Secrets(PathBuf);

impl Secrets {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at)?;
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::MS_NOEXEC, Some("size=1m"))?;
        fs::write(at.join("token"), "x")?;
        Ok(Self(at))
    }

    /// Unmounts the directory with one try, as Nomad does. Returns who held it, if it was busy.
    fn unmount(self) -> Result<Option<String>> {
        let begun = Instant::now();
        let first = umount2(&self.0, MntFlags::empty());
        if first == Err(Errno::EBUSY) {
            let holders = holders(&self.0);
            while umount2(&self.0, MntFlags::empty()) == Err(Errno::EBUSY) && begun.elapsed() < ROUNDS {
                std::thread::sleep(Duration::from_millis(1));
            }
            let took = begun.elapsed();
            return Ok(Some(format!("{} is busy for {took:?}: {holders:?}", self.0.display())));
        }
        first.with_context(|| format!("unmount {}", self.0.display()))?;
        Ok(None)
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Returns the processes that have a path mounted or open.
fn holders(path: &Path) -> Vec<String> {
    let shown = path.display().to_string();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()) {
        let tasks = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
        for task in tasks.map(|entry| entry.path()) {
            let link = |name: &str| fs::read_link(task.join(name)).unwrap_or_default();
            let who = || {
                format!("{} {} {}", task.display(), read(task.join("comm")).trim(), link("ns/mnt").display())
            };
            let mounts = read(task.join("mountinfo"));
            if let Some(line) = mounts.lines().find(|line| line.contains(&shown)) {
                found.push(format!("{} has it mounted: {line}", who()));
            }
            let fds = fs::read_dir(task.join("fd")).into_iter().flatten().flatten();
            let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).chain([link("cwd"), link("root")]);
            found.extend(
                links.filter(|link| link.starts_with(path)).map(|link| format!("{} has {link:?}", who())),
            );
        }
    }
    found
}

async fn a_tasks_secrets_are_unmounted_at_once_after_its_destroy_while_others_start(
    case: &CaseContext,
) -> Result<()> {
    let rounds = std::env::var("UNMOUNTS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let rounds = rounds.map_or(ROUNDS, Duration::from_secs);
    let at_once =
        std::env::var("UNMOUNTS_TASKS").ok().and_then(|count| count.parse().ok()).unwrap_or(AT_ONCE);
    for propagation in [MsFlags::MS_SHARED, MsFlags::MS_PRIVATE] {
        let mut plugin = case.plugin().await?;
        let mounted = Mounted::as_said(case.directory().join("alloc"), propagation)?;
        let end = Instant::now() + rounds;
        let (plugin_ref, all) = (&plugin, 0..at_once);
        let counts = try_join_all(all.map(|_| run_tasks_until(case, plugin_ref, end))).await?;
        let (count, busy) = counts
            .into_iter()
            .fold((0, Vec::new()), |(count, busy), (more, new)| (count + more, [busy, new].concat()));
        ensure!(busy.is_empty(), "{} of {count}: {}", busy.len(), busy.join("\n"));
        ensure!(count >= at_once, "only {count} tasks came and went");
        drop(mounted);
        case.nothing_left()?;
        plugin.shut_down().await?;
    }
    Ok(())
}

/// Runs tasks one after the other until `end`. Returns their number, and descriptions of failed unmounts.
async fn run_tasks_until(case: &CaseContext, plugin: &Plugin, end: Instant) -> Result<(usize, Vec<String>)> {
    let (mut count, mut busy) = (0, Vec::new());
    while Instant::now() < end {
        let mut config = case.shell("cat /secrets/token");
        if count % 2 == 1 {
            config["volumes"] = json!(["local:/here"]);
        }
        let mut task = case.prepare(plugin, &config).await?;
        let secrets = Secrets::mount(task.alloc.task_path("secrets"))?;
        let private = Secrets::mount(task.alloc.task_path("private"))?;
        task.start(plugin).await?;
        ensure_eq!(task.wait(plugin).await?.exit_code, 0);
        task.destroy(plugin).await?;
        busy.extend(secrets.unmount()?);
        busy.extend(private.unmount()?);
        count += 1;
    }
    Ok((count, busy))
}
