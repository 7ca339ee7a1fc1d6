//! Commands in gVisor's sandboxes, and what they leave behind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;

use crate::cases::support::commands::SCRIPTS_WITH_CHILDREN;
use crate::cases::support::gvisor::{SOON, sleeping};
use crate::cases::support::{cases, ensure_eq, refused};

cases!["gvisor":
    what_a_script_has_started_is_killed_with_it_at_its_timeout,
    a_command_that_leaves_something_in_the_background_ends,
];

async fn what_a_script_has_started_is_killed_with_it_at_its_timeout(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600 & while :; do sleep 0.1 & wait $!; done")).await?;
    // A daemon of another command, which has ended well.
    ensure_eq!(task.exec(plugin, "setsid sleep 551 >/dev/null 2>&1 </dev/null &").await?.0, 0);
    for script in SCRIPTS_WITH_CHILDREN {
        let begun = Instant::now();
        let late = plugin.exec_task(task.id(), &["sh", "-c", script], Duration::from_secs(1)).await;
        refused(late, &["within 1s"])?;
        ensure!(begun.elapsed() < SOON, "{script}: it took {:?}", begun.elapsed());
        ensure_eq!((script, sleeping(plugin, &task, "77").await?), (script, 0));
    }
    // The task's own process and the daemon go on.
    ensure_eq!((sleeping(plugin, &task, "600").await?, sleeping(plugin, &task, "551").await?), (1, 1));
    task.end(plugin).await
}

async fn a_command_that_leaves_something_in_the_background_ends(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    for (script, code) in [
        ("sleep 777 & echo done; exit 3", 3),
        ("echo done; sleep 778 & while sleep 1; do echo on >&2; done & exit 4", 4),
    ] {
        let begun = Instant::now();
        let answer = plugin.exec_task(task.id(), &["sh", "-c", script], LIMIT).await?;
        ensure_eq!((answer.result.context("no result")?.exit_code, &*answer.stdout), (code, &b"done\n"[..]));
        ensure!(begun.elapsed() < SOON, "{script}: it took {:?}", begun.elapsed());
    }
    ensure_eq!(sleeping(plugin, &task, "77").await?, 2);
    task.end(plugin).await?;
    case.nothing_left()
}
