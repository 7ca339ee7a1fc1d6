//! The use of the machine and the limits of a task in gVisor's sandbox.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::cgroup::is_v2;
use harness::host::stats::Stats;
use harness::task::LIMIT;
use serde_json::json;

use crate::cases::support::gvisor::command_line;
use crate::cases::support::web_server::with;
use crate::cases::support::{cases, ensure_eq, refused};

cases!["gvisor":
    its_use_of_the_machine_is_what_the_kernel_counts,
    its_processes_have_the_tasks_own_oom_score,
    a_task_has_the_limits_that_the_kernel_has_and_is_not_started_without,
];

async fn its_use_of_the_machine_is_what_the_kernel_counts(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("while :; do :; done")).await?;
    let mut stats = Stats::open(plugin, task.id(), Duration::from_secs(1)).await?;
    stats.next(LIMIT).await?;
    let sample = stats.next(LIMIT).await?;
    ensure!(sample.cpu.percent > 0.0 && sample.cpu.user_mode > 0.0, "{:?}", sample.cpu);
    let memory = &sample.memory;
    ensure!(memory.usage > 5 << 20, "{memory:?}");
    task.end(plugin).await
}

async fn its_processes_have_the_tasks_own_oom_score(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut config = case.shell("sleep 600");
    config["oom_score_adj"] = json!(300);
    let task = case.run(plugin, &config).await?;
    let score = |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
    for pid in task.alloc.cgroup.pids() {
        ensure!(score(pid) == "300\n", "{}: {}", score(pid), command_line(pid));
    }
    task.end(plugin).await
}

async fn a_task_has_the_limits_that_the_kernel_has_and_is_not_started_without(
    case: &CaseContext,
) -> Result<()> {
    let runsc = case.directory().join("changing-runsc");
    fs::create_dir_all(case.directory())?;
    let real = case.programs().runtime().display();
    let change = |expression: &str| {
        let script = format!(
            "#!/bin/sh\nfor word; do [ \"$last\" = --bundle ] && sed -i '{expression}' \"$word/config.json\"; last=$word; done\n\
             exec {real} \"$@\"\n"
        );
        fs::write(&runsc, script)?;
        fs::set_permissions(&runsc, fs::Permissions::from_mode(0o755))
    };
    let mut options = case.options();
    options["oci_runtime"] = json!(runsc);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let job = with(case, "sleep 600", &[("pids_limit", json!(100)), ("cpu_hard_limit", json!(true))]);
    for (expression, word) in [
        ("s/134217728/268435456/g", "memory limit, 134217728"),
        ("s/\"limit\":100\\b/\"limit\":200/", "pids_limit"),
        ("s/\"quota\":[0-9]*/\"quota\":-1/", "cpu_hard_limit"),
        ("s/\"shares\":[0-9]*/\"shares\":400/", "CPU weight"),
    ] {
        if is_v2() && word == "CPU weight" {
            continue;
        }
        change(expression)?;
        let task = case.prepare(&plugin, &job).await?;
        refused(plugin.start_task(task.config.clone()).await, &["gVisor has not set", word])?;
        case.nothing_left()?;
    }
    change("")?;
    let task = case.run(&plugin, &job).await?;
    ensure_eq!(task.alloc.cgroup.read("pids", "pids.max", "pids.max")?, "100");
    let quota = task.alloc.cgroup.read("cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota.starts_with(|first: char| first.is_ascii_digit()), "it may take all: {quota}");
    task.end(&plugin).await?;
    plugin.shut_down().await
}
