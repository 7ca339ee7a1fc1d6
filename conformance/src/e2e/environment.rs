//! The environment of a task.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use harness::context::agent::{AgentContext, eventually, jobs};

use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    templates_variables_and_directories_are_there,
    two_tasks_of_a_group_share_alloc_only,
    a_volume_mount_is_as_writable_as_it_says,
    the_memory_limit_is_the_jobs,
    usage_of_a_task_is_reported,
];

fn templates_variables_and_directories_are_there(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let id = context.start("environment", jobs::TEMPLATE, &[("image", &image)])?;
    let task = context.dead(&id, "main")?;
    ensure!(!task.failed, "{}", context.agent.allocation(&id)?.summary());
    let log = String::from_utf8_lossy(&context.log(&id, "main", false)?).into_owned();
    ensure!(
        log == "memory=48\ntoken=abc\ncolor=green job=environment greeting=hello\n",
        "the log is {log:?}"
    );
    ensure!(fs::read(context.data(&id, "kept"))? == b"kept\n");
    Ok(())
}

fn a_volume_mount_is_as_writable_as_it_says(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let id = context.start("volume-mount", jobs::VOLUME_MOUNT, &[("image", &image)])?;
    let task = context.dead(&id, "main")?;
    ensure!(!task.failed, "{}", context.agent.allocation(&id)?.summary());
    let log = String::from_utf8_lossy(&context.log(&id, "main", false)?).into_owned();
    ensure!(log == "made\ndone\n", "the log is {log:?}");
    ensure!(fs::read(context.agent.host_volume().join("made"))? == b"made\n");
    Ok(())
}

fn two_tasks_of_a_group_share_alloc_only(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let id = context.start("pair", jobs::PAIR, &[("image", &image)])?;
    context.running(&id, "writer")?;
    context.running(&id, "reader")?;
    context.logged(&id, "reader", "done\n")?;
    let log = String::from_utf8_lossy(&context.log(&id, "reader", false)?).into_owned();
    ensure!(log == "shared\ndone\n", "the log is {log:?}");
    Ok(())
}

fn the_memory_limit_is_the_jobs(context: &mut AgentContext) -> Result<()> {
    let script = "trap 'exit 0' TERM; touch /alloc/data/ready; sleep 1000 & wait";
    let id = context.shell_with("memory", script, &[("memory", "40")])?;
    context.made(&id, "ready")?;
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", context.pid(&id)?))?;
    let limit = limit(&groups).with_context(|| format!("no memory limit for a process in {groups}"))?;
    ensure!(limit.trim() == (40u64 * 1024 * 1024).to_string(), "the limit is {limit}");
    Ok(())
}

fn usage_of_a_task_is_reported(context: &mut AgentContext) -> Result<()> {
    // The script uses some twenty megabytes, and a core for as long as it runs.
    let script = "trap 'exit 0' TERM; head -c 20000000 /dev/zero >/dev/shm/x; touch /alloc/data/ready; while :; do :; done";
    let id = context.shell_with("usage", script, &[("memory", "64")])?;
    context.made(&id, "ready")?;
    let mut seen = serde_json::Value::Null;
    eventually("use of memory and processor", || {
        seen = context.agent.usage(&id)?;
        let number = |path: &str| seen.pointer(path).and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        let memory_bytes = number("/MemoryStats/Usage");
        Ok(memory_bytes > 20e6 && memory_bytes < 64e6 && number("/CpuStats/Percent") > 10.0)
    })
    .with_context(|| format!("the agent has {seen}"))
}

/// Returns the memory limit of a process in bytes, by its `/proc/<pid>/cgroup`.
fn limit(groups: &str) -> Result<String> {
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if controllers == "memory" {
            return Ok(fs::read_to_string(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"))?);
        }
    }
    let path = groups.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup v2 entry")?;
    Ok(fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max"))?)
}
