//! Other users of the same machine and the same containerd: another plugin, other clients, and the remains after a
//! reboot.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::leaks::sweep;
use harness::task::LIMIT;
use serde_json::json;

use crate::cases::support::{cases, ensure_eq};

cases!["coexistence":
    records_of_before_a_reboot_are_removed_from_containerd,
    a_plugin_with_another_state_directory_leaves_our_tasks_alone,
    records_of_other_clients_in_containerd_are_left_alone,
    a_client_that_starts_our_record_harms_nothing,
];

/// Longer than the pause between two rounds of a plugin's garbage collection.
const LOOKED: Duration = Duration::from_secs(30);

async fn records_of_before_a_reboot_are_removed_from_containerd(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    plugin.kill().await?;
    sweep::by_a_reboot(&case.state_dir(), task.alloc.cgroup.name())?;
    ensure!(case.census().iter().any(|line| line.starts_with("lease")), "there is nothing to clear away");
    let mut next = case.plugin().await?;
    // The agent would try to recover the task, fail, and destroy it. The plugin finds it even without that.
    ensure!(task.recover(&next).await.is_err(), "a task of before the reboot is recovered");
    case.nothing_left_within(LOOKED)?;
    next.shut_down().await
}

async fn a_plugin_with_another_state_directory_leaves_our_tasks_alone(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let mut options = case.options();
    options["state_dir"] = json!(case.directory().join("other").display().to_string());
    let mut other = case.plugin_as(&case.launch(), &options).await?;
    case.still_works(&other).await?;
    // Long enough for the other plugin's garbage collection to have run more than once.
    tokio::time::sleep(Duration::from_secs(12)).await;
    case.environment().containerd().collect_garbage()?;
    ensure_eq!(task.exec(plugin, "cat /app/unread && echo x > /x; exit 6").await?.0, 6);
    other.shut_down().await?;
    task.end(plugin).await
}

async fn records_of_other_clients_in_containerd_are_left_alone(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let containerd = case.environment().containerd();
    case.still_works(plugin).await?;
    let image = case.image("busybox:latest");
    containerd.ctr(&["containers", "create", &image, "theirs", "true"])?;
    containerd.ctr(&["leases", "create", "--id", "their-lease"])?;
    case.still_works(plugin).await?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let left = case.census();
    for theirs in ["container record theirs", "lease their-lease", "active snapshot theirs"] {
        ensure!(left.iter().any(|line| line == theirs), "{theirs} is gone: {left:?}");
    }
    containerd.ctr(&["containers", "delete", "theirs"])?;
    containerd.ctr(&["leases", "delete", "their-lease"])?;
    Ok(())
}

async fn a_client_that_starts_our_record_harms_nothing(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let containerd = case.environment().containerd();
    let task =
        case.run(plugin, &case.shell("trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done")).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    let records = containerd.ctr(&["containers", "list", "--quiet"])?;
    let record = records.split_whitespace().next().context("the task has no record to see")?;
    // Either result will do: the driver doesn't have to make this work.
    let _ = containerd.ctr(&["tasks", "start", "--detach", record]);
    let _ = containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", record]);
    let _ = containerd.ctr(&["tasks", "delete", "--force", record]);
    ensure_eq!(
        task.exec(plugin, "cat /app/greeting; exit 6").await?,
        (6, "hello from the image\n".to_owned())
    );
    task.stop(plugin, LIMIT).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 7);
    task.destroy(plugin).await
}
