//! State that could be written only in part, or not at all: a full state directory, a half-written file. A start is
//! refused and leaves nothing, and running tasks are ended all the same.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::processes;
use harness::task::{LIMIT, Task};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;

use crate::cases::support::stoppable_task::start_stoppable;
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["full state":
    a_start_is_refused_and_leaves_nothing_whatever_page_is_the_first_that_is_missing,
    a_start_is_refused_and_leaves_nothing_whatever_file_is_the_first_that_is_missing,
    a_task_is_stopped_and_destroyed_in_a_full_directory,
    a_task_that_ends_in_a_full_directory_keeps_its_code,
    a_task_whose_shim_is_gone_is_destroyed_in_a_full_directory,
    a_task_that_nobody_recovered_is_destroyed_in_a_full_directory,
    a_task_whose_files_are_half_written_is_stopped_and_destroyed,
    a_task_whose_shim_and_files_are_gone_is_destroyed,
];

/// More pages, and more files, than a start needs.
const ENOUGH: u64 = 120;
const PAGE_BYTES: u64 = 4096;
/// Number of inodes of a file system that is to be filled with files.
const MOST_FILES: u64 = 1024;

/// The resource that a disk has none of: pages or files.
#[derive(Debug, Clone, Copy)]
enum Room {
    Pages,
    Files,
}

impl Room {
    const BOTH: [Self; 2] = [Self::Pages, Self::Files];
}

/// A state directory on a small tmpfs. On drop it is unmounted, with everything mounted below it.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn under(case: &CaseContext) -> Result<Self> {
        let at = case.state_dir();
        fs::create_dir_all(&at)?;
        let options = format!("size=4m,nr_inodes={MOST_FILES},mode=0700");
        mount(Some("small"), &at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .context("mount a small state directory")?;
        // The mount is shared, as a machine's /run is: runtimes need that.
        mount(None::<&str>, &at, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
        Ok(Self { at })
    }

    /// Fills the disk until only `count` pages or files are free.
    fn leave(&self, room: Room, count: u64) -> Result<()> {
        match room {
            Room::Pages => self.leave_pages(count),
            Room::Files => self.leave_files(count),
        }
    }

    fn leave_pages(&self, pages: u64) -> Result<()> {
        self.empty()?;
        let mut file = OpenOptions::new().create(true).append(true).open(self.at.join("fill"))?;
        let page = vec![0; usize::try_from(PAGE_BYTES)?];
        while statvfs(&self.at)?.blocks_available() > pages {
            file.write_all(&page)?;
        }
        Ok(())
    }

    fn leave_files(&self, files: u64) -> Result<()> {
        self.empty()?;
        let directory = self.at.join("fill.d");
        fs::create_dir_all(&directory)?;
        let mut number = 0;
        while statvfs(&self.at)?.files_available() > files {
            fs::write(directory.join(number.to_string()), "")?;
            number += 1;
        }
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        let _ = fs::remove_file(self.at.join("fill"));
        match fs::remove_dir_all(self.at.join("fill.d")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// Asserts that the text is an error for want of disk space and names the state directory.
fn names_the_full_disk(case: &CaseContext, text: &str) -> Result<()> {
    let directory = case.state_dir().display().to_string();
    let lower = text.to_lowercase();
    ensure!(lower.contains("no space left on device"), "no word on the room: {text}");
    ensure!(text.contains(&directory), "{directory} is not in: {text}");
    Ok(())
}

async fn starts_with_less_and_less_missing(case: &CaseContext, room: Room) -> Result<()> {
    let disk = SmallDisk::under(case)?;
    let mut plugin = case.plugin().await?;
    case.still_works(&plugin).await?;
    let mut refusals = 0;
    let mut left = 0;
    let task = loop {
        ensure!(left < ENOUGH, "with room for {left} it still does not start");
        disk.leave(room, left).with_context(|| format!("leave {left}"))?;
        let mut task = case.prepare(&plugin, &case.shell("sleep 600")).await?;
        match plugin.start_task(task.config.clone()).await {
            Err(status) => {
                let status = refused(Err::<(), _>(status), &[task.id()])?;
                names_the_full_disk(case, status.message())
                    .with_context(|| format!("with room for {left}"))?;
                ensure!(is_recoverable(&status)?, "with room for {left} Nomad gives up: {status}");
                case.nothing_left().with_context(|| format!("with room for {left}: {status}"))?;
                refusals += 1;
            }
            Ok(answer) => {
                task.handle = answer.handle;
                break task;
            }
        }
        left += if left < 16 { 1 } else { 3 };
    };
    ensure!(refusals > 5, "only {refusals} starts were refused");
    task.end(&plugin).await?;
    case.nothing_left()?;
    disk.empty()?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn a_start_is_refused_and_leaves_nothing_whatever_page_is_the_first_that_is_missing(
    case: &CaseContext,
) -> Result<()> {
    starts_with_less_and_less_missing(case, Room::Pages).await
}

async fn a_start_is_refused_and_leaves_nothing_whatever_file_is_the_first_that_is_missing(
    case: &CaseContext,
) -> Result<()> {
    starts_with_less_and_less_missing(case, Room::Files).await
}

/// Starts a task whose state directory is a small disk.
async fn on_small_disk(case: &CaseContext) -> Result<(SmallDisk, Plugin, Task)> {
    let disk = SmallDisk::under(case)?;
    let plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    Ok((disk, plugin, task))
}

async fn a_task_is_stopped_and_destroyed_in_a_full_directory(case: &CaseContext) -> Result<()> {
    for room in Room::BOTH {
        let (disk, mut plugin, task) = on_small_disk(case).await?;
        disk.leave(room, 0)?;
        task.stop(&plugin, Duration::from_millis(200)).await.with_context(|| format!("{room:?}"))?;
        task.wait(&plugin).await?;
        task.destroy(&plugin).await.with_context(|| format!("{room:?}"))?;
        plugin.shut_down().await?;
        case.nothing_left()?;
    }
    Ok(())
}

async fn a_task_that_ends_in_a_full_directory_keeps_its_code(case: &CaseContext) -> Result<()> {
    for room in Room::BOTH {
        let disk = SmallDisk::under(case)?;
        let mut plugin = case.plugin().await?;
        let script = "until [ -e /alloc/go ]; do sleep 0.1; done; exit 9";
        let task = case.run(&plugin, &case.shell(script)).await?;
        disk.leave(room, 0)?;
        fs::write(task.alloc.directory.join("alloc/go"), "")?;
        let begun = Instant::now();
        ensure_eq!(task.wait(&plugin).await.with_context(|| format!("{room:?}"))?.exit_code, 9);
        // The shim reports the code, for which the plugin waits: not every kernel has it.
        ensure!(begun.elapsed() < Duration::from_secs(4), "{room:?}: reported after {:?}", begun.elapsed());
        task.destroy(&plugin).await.with_context(|| format!("{room:?}"))?;
        plugin.shut_down().await?;
        case.nothing_left()?;
    }
    Ok(())
}

async fn a_task_whose_shim_is_gone_is_destroyed_in_a_full_directory(case: &CaseContext) -> Result<()> {
    for room in Room::BOTH {
        let (disk, mut plugin, task) = on_small_disk(case).await?;
        disk.leave(room, 0)?;
        let shim = processes::shim_of(task.pid()?).context("no shim")?;
        kill(Pid::from_raw(shim), Signal::SIGKILL)?;
        task.wait_answer(&plugin).await?;
        until(LIMIT, "the end of its processes", || task.alloc.cgroup.pids().is_empty()).await?;
        // Removing the rest may need room; the destroy, or the garbage collection, tries it again.
        let destroyed = task.destroy(&plugin).await;
        disk.empty()?;
        if destroyed.is_err() {
            case.nothing_left_within(LIMIT).with_context(|| format!("{room:?}"))?;
        }
        plugin.shut_down().await?;
        case.nothing_left()?;
    }
    Ok(())
}

async fn a_task_that_nobody_recovered_is_destroyed_in_a_full_directory(case: &CaseContext) -> Result<()> {
    for room in Room::BOTH {
        let (disk, mut plugin, task) = on_small_disk(case).await?;
        plugin.kill().await?;
        disk.leave(room, 0)?;
        let mut next = case.plugin().await?;
        task.end(&next).await.with_context(|| format!("{room:?}"))?;
        ensure_eq!(task.alloc.cgroup.pids(), Vec::<i32>::new());
        next.shut_down().await?;
        case.nothing_left()?;
    }
    Ok(())
}

/// Truncates a file, as a loss of power does, or a write by an earlier build that was cut off.
fn cut(file: &Path, length: u64) -> Result<()> {
    let opened = OpenOptions::new().write(true).open(file);
    opened.and_then(|file| file.set_len(length)).with_context(|| format!("cut {}", file.display()))
}

async fn a_task_whose_files_are_half_written_is_stopped_and_destroyed(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for length in [0, 100] {
        let task = start_stoppable(case, plugin).await?;
        for file in ["config.json", "shim.json", "shim-binary"] {
            cut(&case.bundle()?.join(file), length.min(20))?;
        }
        task.stop(plugin, Duration::from_millis(200)).await?;
        task.wait(plugin).await?;
        task.destroy(plugin).await?;
        case.nothing_left()?;
    }
    case.still_works(plugin).await
}

async fn a_task_whose_shim_and_files_are_gone_is_destroyed(case: &CaseContext) -> Result<()> {
    for length in [0, 100] {
        let mut plugin = case.plugin().await?;
        let task = start_stoppable(case, &plugin).await?;
        let shim = processes::shim_of(task.pid()?).context("no shim")?;
        plugin.kill().await?;
        kill(Pid::from_raw(shim), Signal::SIGKILL)?;
        cut(&case.bundle()?.join("config.json"), length)?;
        let mut next = case.plugin().await?;
        ensure!(task.recover(&next).await.is_err(), "it was recovered without a shim");
        task.end(&next).await?;
        case.nothing_left()?;
        next.shut_down().await?;
    }
    Ok(())
}
