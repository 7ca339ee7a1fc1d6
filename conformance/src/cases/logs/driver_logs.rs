//! A task's output, collected by the driver itself (`log_collection = "driver"`): in the files that Nomad reads, under
//! the names and by the rules of Nomad's own collector, whatever dies meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use serde_json::{Value, json};

use crate::case::Case;
use crate::cases::support::driver_logs::{collecting, files, output, with};
use crate::cases::support::output::{MEGABYTE, is_whole, numbered};
use crate::cases::support::scripted::{self, Scripted};
use crate::cases::support::{cases, ensure_eq, refused, until};

/// Number of times that the plugin is killed while the task writes.
const KILLS: u32 = 100;
/// Timeout of that case, for a hundred plugins, one after the other.
const KILLS_LIMIT: Duration = Duration::from_secs(400);
/// Longest time that a plugin of it lives once it has written something.
const LIFE_MS: u32 = 40;

cases!["collected":
    output_is_in_the_files_that_nomad_reads_when_the_exit_is_reported,
    files_are_rotated_between_lines_and_none_is_lost,
    no_more_files_are_retained_than_requested,
    a_job_sets_its_own_log_sizes,
    sizes_are_refused_where_nomad_collects,
    a_task_that_writes_nothing_has_empty_files,
    a_task_with_a_terminal_has_one_output,
    logs_that_are_disabled_make_no_files,
    the_next_attempt_goes_on_in_the_newest_file,
    no_line_is_lost_or_doubled_over_a_hundred_kills_of_the_plugin,
    output_written_while_no_plugin_is_there_is_kept,
    a_task_has_none_of_the_pipes,
    a_shim_that_gives_a_task_the_pipes_is_refused,
    a_plugin_keeps_nothing_of_tasks_that_are_gone,
];

pub fn long_cases() -> Vec<Case> {
    let limit = |case: &Case| if case.name.contains("hundred kills") { KILLS_LIMIT } else { case.limit };
    cases().into_iter().map(|case| Case { limit: limit(&case), ..case }).collect()
}

async fn prepare(case: &CaseContext, plugin: &Plugin, config: &Value) -> Result<Task> {
    let task = case.prepare_unread(plugin, config).await?;
    fs::write(task.alloc.task_path("local/big"), numbered())?;
    Ok(task)
}

async fn output_is_in_the_files_that_nomad_reads_when_the_exit_is_reported(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    ensure!(plugin.capabilities().await?.disable_log_collection, "Nomad would collect the logs as well");
    let config = case.shell("cat /local/big & cat /local/big >&2; wait");
    let mut task = prepare(case, &plugin, &config).await?;
    task.start(&plugin).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    for stream in ["stdout", "stderr"] {
        is_whole(stream, &output(&task, stream)?, &numbered())?;
        let file = task.alloc.logs().join(format!("web.{stream}.0")).metadata()?;
        ensure_eq!((file.permissions().mode() & 0o777, file.uid()), (0o644, 0));
    }
    ensure_eq!(fs::read_dir(task.alloc.logs())?.count(), 2);
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

/// Asserts that the files are numbered without a gap, that none is larger than allowed, that each but the last is about
/// full, and that each ends with a line.
fn are_in_order(files: &BTreeMap<u64, Vec<u8>>, most_bytes: usize) -> Result<()> {
    let (first, last) = (files.keys().next().context("no files")?, files.keys().last().context("no files")?);
    ensure_eq!(files.len() as u64, last - first + 1);
    for (number, bytes) in files {
        ensure!(bytes.len() <= most_bytes, "file {number} has {} bytes", bytes.len());
        ensure!(
            number == last || bytes.len() > most_bytes - 64,
            "file {number} has {} bytes only",
            bytes.len()
        );
        ensure!(bytes.ends_with(b"\n"), "file {number} ends within a line");
    }
    Ok(())
}

async fn files_are_rotated_between_lines_and_none_is_lost(case: &CaseContext) -> Result<()> {
    // The size is no multiple of a line's length.
    let mut plugin = with(case, json!({"max_files": 100, "max_file_size": "100001"})).await?;
    let mut task = prepare(case, &plugin, &case.shell("cat /local/big; cat /local/big >&2")).await?;
    task.start(&plugin).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    for stream in ["stdout", "stderr"] {
        let files = files(&task, stream)?;
        are_in_order(&files, 100_001)?;
        ensure_eq!(files.len(), MEGABYTE / 100_000 + 1);
        is_whole(stream, &output(&task, stream)?, &numbered())?;
    }
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn no_more_files_are_retained_than_requested(case: &CaseContext) -> Result<()> {
    for most in [1_usize, 3] {
        let mut plugin = with(case, json!({"max_files": most, "max_file_size": "64k"})).await?;
        let mut task = prepare(case, &plugin, &case.shell("cat /local/big")).await?;
        // A file of another task, whose name begins alike.
        let other = task.alloc.logs().join("web.stdout2.0");
        fs::write(&other, "other")?;
        task.start(&plugin).await?;
        ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
        let files = files(&task, "stdout")?;
        ensure_eq!(files.len(), most);
        are_in_order(&files, 64 << 10)?;
        let kept = output(&task, "stdout")?;
        is_whole("what is kept", &kept, &numbered()[MEGABYTE - kept.len()..])?;
        ensure_eq!(fs::read_to_string(&other)?, "other");
        task.destroy(&plugin).await?;
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_job_sets_its_own_log_sizes(case: &CaseContext) -> Result<()> {
    let mut plugin = with(case, json!({"max_files": 1, "max_file_size": "1g"})).await?;
    let mut config = case.shell("cat /local/big");
    config["logging"] = json!({"max_files": 2, "max_file_size": "128k"});
    let mut task = prepare(case, &plugin, &config).await?;
    task.start(&plugin).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    let files = files(&task, "stdout")?;
    ensure_eq!(files.len(), 2);
    are_in_order(&files, 128 << 10)?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn sizes_are_refused_where_nomad_collects(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut config = case.shell("true");
    config["logging"] = json!({"max_files": 2});
    let task = case.prepare_unread(plugin, &config).await?;
    refused(plugin.start_task(task.config.clone()).await, &["logging", "log_collection"])?;
    Ok(())
}

async fn a_task_that_writes_nothing_has_empty_files(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let mut task = prepare(case, &plugin, &case.shell("sleep 600")).await?;
    task.start(&plugin).await?;
    let made = || files(&task, "stdout").is_ok_and(|files| files.len() == 1);
    until(LIMIT, "a file", made).await?;
    task.stop(&plugin, Duration::from_secs(1)).await?;
    task.wait(&plugin).await?;
    for stream in ["stdout", "stderr"] {
        ensure_eq!(files(&task, stream)?, BTreeMap::from([(0, Vec::new())]));
    }
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn a_task_with_a_terminal_has_one_output(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let mut config = case.shell("echo out; echo err >&2");
    config["tty"] = json!(true);
    let mut task = prepare(case, &plugin, &config).await?;
    task.start(&plugin).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    ensure_eq!(output(&task, "stdout")?.as_slice(), b"out\r\nerr\r\n");
    ensure_eq!(output(&task, "stderr")?.len(), 0);
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn logs_that_are_disabled_make_no_files(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let mut task = prepare(case, &plugin, &case.shell("cat /local/big; cat /local/big >&2; exit 4")).await?;
    task.config.stdout_path = "/dev/null".to_owned();
    task.config.stderr_path = "/dev/null".to_owned();
    task.start(&plugin).await?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 4);
    ensure_eq!(fs::read_dir(task.alloc.logs())?.count(), 0);
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn the_next_attempt_goes_on_in_the_newest_file(case: &CaseContext) -> Result<()> {
    let mut plugin = with(case, json!({"max_file_size": "64k"})).await?;
    let mut task = prepare(case, &plugin, &case.shell("head -c 100000 /local/big; echo; echo over")).await?;
    let mut wanted = Vec::new();
    for _ in 0..2 {
        task.start(&plugin).await?;
        ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
        task.destroy(&plugin).await?;
        wanted.extend([&numbered()[..100_000], b"\nover\n"].concat());
        is_whole("stdout", &output(&task, "stdout")?, &wanted)?;
        task.next_attempt()?;
    }
    let files = files(&task, "stdout")?;
    ensure_eq!(files.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
    plugin.shut_down().await
}

/// Lines with their numbers, 64 KiB of them every ten milliseconds, until there is a file. It then says how many.
const WRITER: &str = "awk 'BEGIN { n = 0; do { for (i = 0; i < 4096; i++) printf \"%015d\\n\", n++; fflush(); \
                      ended = system(\"sleep 0.01; [ -e /local/end ]\") } while (ended != 0); \
                      print n > \"/local/count\" }'";

async fn no_line_is_lost_or_doubled_over_a_hundred_kills_of_the_plugin(case: &CaseContext) -> Result<()> {
    let sizes = json!({"max_files": 10000, "max_file_size": "300k"});
    let mut plugin = with(case, sizes.clone()).await?;
    let mut task = case.prepare_unread(&plugin, &case.shell(WRITER)).await?;
    task.start(&plugin).await?;
    for kill in 0..KILLS {
        let before = collected_bytes(&task)?;
        let writes = || collected_bytes(&task).is_ok_and(|now| now > before);
        until(LIMIT, "more output", writes).await.with_context(|| format!("before kill {kill}"))?;
        // Some at once, others in the middle of what comes after.
        tokio::time::sleep(Duration::from_millis(u64::from(kill * 7 % LIFE_MS))).await;
        plugin.kill().await?;
        plugin = with(case, sizes.clone()).await?;
        task.recover(&plugin).await.with_context(|| format!("after kill {kill}"))?;
    }
    fs::write(task.alloc.task_path("local/end"), "")?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 0);
    let said: u64 = fs::read_to_string(task.alloc.task_path("local/count"))?.trim().parse()?;
    let files = files(&task, "stdout")?;
    ensure_eq!(lines_in_order(&files)?, said);
    are_in_order(&files, 300 << 10)?;
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

/// Returns the size of what is in the files of a task's stdout.
fn collected_bytes(task: &Task) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(task.alloc.logs())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(".stdout.") {
            sum += entry.metadata()?.len();
        }
    }
    Ok(sum)
}

/// Asserts that the files have a writer's lines from 0 on, and returns how many there are.
fn lines_in_order(files: &BTreeMap<u64, Vec<u8>>) -> Result<u64> {
    let mut wanted = 0;
    for (number, bytes) in files {
        for line in bytes.lines() {
            let line = line?;
            ensure!(
                line.len() == 15 && line.parse() == Ok(wanted),
                "in file {number}, {line:?} is in the place of line {wanted}"
            );
            wanted += 1;
        }
    }
    Ok(wanted)
}

async fn output_written_while_no_plugin_is_there_is_kept(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let script = "until [ -e /local/now ]; do sleep 0.01; done; head -c 500000 /local/big; echo done > /local/done; exit 3";
    let mut task = prepare(case, &plugin, &case.shell(script)).await?;
    task.start(&plugin).await?;
    plugin.kill().await?;
    fs::write(task.alloc.task_path("local/now"), "")?;
    let is_done = || task.alloc.task_path("local/done").exists() && task.alloc.cgroup.pids().is_empty();
    until(LIMIT, "the task's end", is_done).await?;
    let mut next = collecting(case).await?;
    task.recover(&next).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 3);
    is_whole("stdout", &output(&task, "stdout")?, &numbered()[..500_000])?;
    task.destroy(&next).await?;
    next.shut_down().await
}

async fn a_task_has_none_of_the_pipes(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let mut task = prepare(case, &plugin, &case.shell("ls /proc/1/fd; sleep 600")).await?;
    task.start(&plugin).await?;
    until(LIMIT, "its list", || output(&task, "stdout").is_ok_and(|listing| listing.ends_with(b"\n")))
        .await?;
    ensure_eq!(String::from_utf8(output(&task, "stdout")?)?, "0\n1\n2\n");
    let (code, listing) = task.exec(&plugin, "ls /proc/self/fd").await?;
    ensure_eq!((code, listing.as_str()), (0, "0\n1\n2\n3\n"));
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_shim_that_gives_a_task_the_pipes_is_refused(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    let give = "bundle=${*##*--bundle }; exec $real \"$@\" >\"${bundle%% *}/stdout\"";
    scripted.runtime_as("giving", &scripted::runc("create", give))?;
    let mut options = case.options();
    options["log_collection"] = json!("driver");
    options["oci_runtime"] = json!(scripted.directory.join("giving"));
    let mut plugin = scripted.plugin_with(case, options).await?;
    let task = case.prepare_unread(&plugin, &case.shell("sleep 600")).await?;
    refused(plugin.start_task(task.config.clone()).await, &["the log pipes", "containerd_runtime"])?;
    case.nothing_left()?;
    scripted.repair()?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn a_plugin_keeps_nothing_of_tasks_that_are_gone(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let mut task = prepare(case, &plugin, &case.shell("echo over")).await?;
    let count =
        |what: &str| -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/{what}", plugin.pid()))?.count()) };
    let mut descriptors = Vec::new();
    for _ in 0..6 {
        task.start(&plugin).await?;
        task.wait(&plugin).await?;
        task.destroy(&plugin).await?;
        task.next_attempt()?;
        descriptors.push(count("fd")?);
    }
    ensure!(descriptors[5] <= descriptors[1], "open descriptors after each task: {descriptors:?}");
    let names = || -> Result<Vec<String>> {
        let threads = fs::read_dir(format!("/proc/{}/task", plugin.pid()))?.flatten();
        Ok(threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok()).collect())
    };
    until(LIMIT, "the end of the log's threads", || {
        names().is_ok_and(|all| !all.contains(&"logs\n".to_owned()))
    })
    .await?;
    plugin.shut_down().await
}
