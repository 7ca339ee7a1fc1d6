//! Log directories that the driver can't write to as it should: the output waits, an event says so, and no other task
//! is affected.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::process::output as output_of;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use nomad_proto::driver as pb;
use serde_json::json;
use tonic::Streaming;

use crate::cases::support::descriptors::recover_without_descriptors;
use crate::cases::support::driver_logs::{collecting, files, output, with};
use crate::cases::support::output::{MEGABYTE, is_whole, numbered};
use crate::cases::support::{cases, ensure_eq, until};

cases!["collected":
    files_planted_at_a_logs_name_are_never_written,
    a_directory_that_is_a_link_is_never_followed,
    a_removed_log_directory_stops_no_task_and_is_used_once_it_is_back,
    a_full_disk_blocks_its_own_task_and_no_other,
    a_disk_that_does_not_answer_stops_no_other_task_and_holds_no_end,
    output_that_somebody_else_holds_open_holds_no_end,
    a_recovery_that_can_open_nothing_collects_the_output_later,
];

/// Waits for a task event whose message contains all these words.
async fn event_with(events: &mut Streaming<pb::DriverTaskEvent>, words: &[&str]) -> Result<()> {
    let mut seen = Vec::new();
    let listen = async {
        while let Some(event) = events.message().await? {
            if words.iter().all(|word| event.message.contains(word)) {
                return Ok(());
            }
            seen.push(event.message);
        }
        anyhow::bail!("the stream ended")
    };
    let found = tokio::time::timeout(LIMIT, listen).await;
    found.with_context(|| format!("no event with {words:?} came, but {seen:?}"))?
}

/// Asserts that a second task, beside the one whose log is in trouble, runs, is logged whole, and ends.
async fn another_task_is_logged(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut other = case.prepare_named(plugin, "other", &case.shell("cat /local/big")).await?;
    fs::write(other.alloc.task_path("local/big"), numbered())?;
    other.start(plugin).await?;
    ensure_eq!(other.wait(plugin).await?.exit_code, 0);
    is_whole("the other's stdout", &output(&other, "stdout")?, &numbered())?;
    other.destroy(plugin).await
}

async fn prepare(case: &CaseContext, plugin: &Plugin, script: &str) -> Result<Task> {
    let task = case.prepare_unread(plugin, &case.shell(script)).await?;
    fs::write(task.alloc.task_path("local/big"), numbered())?;
    Ok(task)
}

async fn files_planted_at_a_logs_name_are_never_written(case: &CaseContext) -> Result<()> {
    let mut plugin = with(case, json!({"max_files": 100, "max_file_size": "200k"})).await?;
    let mut events = plugin.events().await?;
    let mut task = prepare(case, &plugin, "cat /local/big").await?;
    let precious = case.directory().join("precious");
    fs::write(&precious, "data")?;
    let logs = task.alloc.logs();
    let at = |number: u64| logs.join(format!("web.stdout.{number}"));
    symlink(&precious, at(0))?;
    fs::hard_link(&precious, at(2))?;
    mkfifo(&at(3), Mode::S_IRWXU)?;
    symlink(case.directory().join("none"), at(4))?;
    fs::create_dir(at(6))?;
    task.start(&plugin).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    for (number, what) in
        [(6, "directory"), (4, "symbolic"), (3, "pipe"), (2, "hard link"), (0, "symbolic link")]
    {
        event_with(&mut events, &[&at(number).display().to_string(), what]).await?;
    }
    ensure_eq!(fs::read_to_string(&precious)?, "data");
    ensure!(!case.directory().join("none").exists(), "a link was followed");
    fs::remove_file(at(2))?;
    is_whole("stdout", &output(&task, "stdout")?, &numbered())?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn a_directory_that_is_a_link_is_never_followed(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let mut events = plugin.events().await?;
    let mut task = prepare(case, &plugin, "cat /local/big").await?;
    let elsewhere = task.alloc.directory.join("alloc/data/elsewhere");
    fs::create_dir(&elsewhere)?;
    let logs = task.alloc.logs();
    let away = logs.with_file_name("away");
    fs::rename(&logs, &away)?;
    symlink(&elsewhere, &logs)?;
    // A container's own read-only mount of the logs would follow the link, which is not what this is about.
    let mounted = task.start(&plugin).await;
    if mounted.is_ok() {
        event_with(&mut events, &[&logs.display().to_string(), "symbolic link"]).await?;
        another_task_is_logged(case, &plugin).await?;
        fs::remove_file(&logs)?;
        fs::rename(&away, &logs)?;
        ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
        is_whole("stdout", &output(&task, "stdout")?, &numbered())?;
        task.destroy(&plugin).await?;
    }
    ensure_eq!(fs::read_dir(&elsewhere)?.count(), 0);
    plugin.shut_down().await
}

async fn a_removed_log_directory_stops_no_task_and_is_used_once_it_is_back(case: &CaseContext) -> Result<()> {
    let mut plugin = with(case, json!({"max_files": 100, "max_file_size": "300k"})).await?;
    let mut events = plugin.events().await?;
    let script = "echo first; until [ -e /local/now ]; do sleep 0.01; done; cat /local/big";
    let mut task = prepare(case, &plugin, script).await?;
    task.start(&plugin).await?;
    until(LIMIT, "the first line", || output(&task, "stdout").is_ok_and(|content| content == b"first\n"))
        .await?;
    let logs = task.alloc.logs();
    // The driver may be making the other stream's file.
    until(LIMIT, "its removal", || fs::remove_dir_all(&logs).is_ok()).await?;
    fs::write(task.alloc.task_path("local/now"), "")?;
    event_with(&mut events, &["stdout waits", &logs.display().to_string()]).await?;
    another_task_is_logged(case, &plugin).await?;
    fs::create_dir(&logs)?;
    event_with(&mut events, &["stdout is written to its log again"]).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    is_whole("stdout", &output(&task, "stdout")?, &numbered())?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

/// A mount that is undone on drop.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

async fn a_full_disk_blocks_its_own_task_and_no_other(case: &CaseContext) -> Result<()> {
    let mut plugin = with(case, json!({"max_file_size": "1g"})).await?;
    let mut events = plugin.events().await?;
    let mut task = prepare(case, &plugin, "cat /local/big /local/big /local/big; echo over >&2").await?;
    let logs = task.alloc.logs();
    mount(Some("small"), &logs, Some("tmpfs"), MsFlags::empty(), Some("size=4m")).context("mount a tmpfs")?;
    let mounted = Mounted(logs.clone());
    let filler = logs.join("filler");
    fs::write(&filler, vec![0; 3 * MEGABYTE + MEGABYTE / 2])?;
    task.start(&plugin).await?;
    event_with(&mut events, &["stdout waits", "No space left"]).await?;
    another_task_is_logged(case, &plugin).await?;
    let running = plugin.inspect_task(task.id()).await?.task.unwrap_or_default();
    ensure_eq!(running.state(), pb::TaskState::Running);
    fs::remove_file(&filler)?;
    event_with(&mut events, &["stdout is written to its log again"]).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    is_whole("stdout", &output(&task, "stdout")?, &numbered().repeat(3))?;
    ensure_eq!(output(&task, "stderr")?.as_slice(), b"over\n");
    task.destroy(&plugin).await?;
    drop(mounted);
    plugin.shut_down().await
}

/// A file system on a loop device, which can be frozen.
struct Frozen(PathBuf);

impl Frozen {
    fn mount(image: &Path, at: &Path) -> Result<Self> {
        let run = |program: &str, arguments: &[&str]| output_of(Command::new(program).args(arguments));
        fs::File::create(image)?.set_len(32 << 20)?;
        let (image, shown) = (image.display().to_string(), at.display().to_string());
        run("mkfs.ext4", &["-q", "-F", &image])?;
        run("mount", &["-o", "loop", &image, &shown])?;
        Ok(Self(at.to_owned()))
    }

    fn tell(&self, flag: &str) -> Result<()> {
        output_of(Command::new("fsfreeze").arg(flag).arg(&self.0)).map(drop)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.tell("--unfreeze");
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

async fn a_disk_that_does_not_answer_stops_no_other_task_and_holds_no_end(case: &CaseContext) -> Result<()> {
    let mut plugin = with(case, json!({"max_file_size": "1g"})).await?;
    let mut events = plugin.events().await?;
    let script =
        "echo first; until [ -e /local/now ]; do sleep 0.01; done; head -c 200000 /local/big; sleep 600";
    let mut tasks = Vec::new();
    for number in 0..8 {
        let mut task = prepare(case, &plugin, script).await?;
        let disk = Frozen::mount(&case.directory().join(format!("disk{number}")), &task.alloc.logs())?;
        task.start(&plugin).await?;
        until(LIMIT, "the first line", || output(&task, "stdout").is_ok_and(|content| content == b"first\n"))
            .await?;
        disk.tell("--freeze")?;
        fs::write(task.alloc.task_path("local/now"), "")?;
        tasks.push((task, disk));
    }
    event_with(&mut events, &["stdout waits", "the disk"]).await?;
    another_task_is_logged(case, &plugin).await?;
    case.still_works(&plugin).await?;
    // One task ends while its disk is still frozen; the others' disks are thawed first.
    let (stuck, disk) = tasks.pop().context("the last one")?;
    stuck.stop(&plugin, Duration::from_secs(1)).await?;
    ensure_eq!(stuck.wait(&plugin).await?.signal, 9);
    stuck.destroy(&plugin).await?;
    drop(disk);
    for (task, disk) in tasks {
        disk.tell("--unfreeze")?;
        let wanted = [b"first\n", &numbered()[..200_000]].concat();
        until(LIMIT, "its output", || {
            output(&task, "stdout").is_ok_and(|content| content.len() >= wanted.len())
        })
        .await?;
        is_whole("stdout", &output(&task, "stdout")?, &wanted)?;
        ensure_eq!(files(&task, "stdout")?.len(), 1);
        task.end(&plugin).await?;
        drop(disk);
    }
    plugin.shut_down().await
}

/// A process that has left the task's cgroup may keep the task's output open for as long as it lives.
async fn output_that_somebody_else_holds_open_holds_no_end(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let script = "cat /local/big; echo last; until [ -e /local/now ]; do sleep 0.01; done";
    let mut task = prepare(case, &plugin, script).await?;
    task.start(&plugin).await?;
    let held = fs::OpenOptions::new().write(true).open(format!("/proc/{}/fd/1", task.pid()?))?;
    fs::write(task.alloc.task_path("local/now"), "")?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    let wanted = [numbered(), b"last\n".to_vec()].concat();
    is_whole("stdout", &output(&task, "stdout")?, &wanted)?;
    another_task_is_logged(case, &plugin).await?;
    task.destroy(&plugin).await?;
    case.nothing_left()?;
    drop(held);
    plugin.shut_down().await
}

async fn a_recovery_that_can_open_nothing_collects_the_output_later(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let script = "while [ ! -e /local/go ]; do sleep 0.05; done; cat /local/big; exit 4";
    let mut task = case.prepare_unread(&plugin, &case.shell(script)).await?;
    fs::write(task.alloc.task_path("local/big"), numbered())?;
    task.start(&plugin).await?;
    plugin.kill().await?;
    let mut next = collecting(case).await?;
    recover_without_descriptors(&task, &next).await?;
    // The output is more than the pipe holds.
    fs::write(task.alloc.task_path("local/go"), "")?;
    ensure_eq!(task.wait(&next).await?.exit_code, 4);
    is_whole("stdout", &output(&task, "stdout")?, &numbered())?;
    task.destroy(&next).await?;
    // Spare shims that couldn't be ended are tried again for as long.
    case.nothing_left_within(Duration::from_secs(15))?;
    next.shut_down().await
}
