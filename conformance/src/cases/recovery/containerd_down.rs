//! Tasks need containerd to start and to be cleared away, and for nothing in between.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::host::Plugin;
use harness::task::LIMIT;

use crate::cases::support::{cases, ensure_eq, is_recoverable, refused};

cases!["containerd down":
    a_task_goes_on_without_containerd_and_is_cleared_away_when_it_is_back,
    a_start_without_containerd_is_worth_another_try,
    a_start_with_a_containerd_that_hangs_ends_with_an_error,
    a_running_task_keeps_its_files_when_containerd_collects_garbage,
    a_task_is_recovered_without_containerd,
];

async fn a_task_goes_on_without_containerd_and_is_cleared_away_when_it_is_back(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let script =
        "trap 'echo ending; exit 14' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done";
    let task = case.run(plugin, &case.shell(script)).await?;
    task.alloc.stdout.to_contain("line 1\n", LIMIT).await?;
    case.environment().containerd().kill()?;
    let count = task.alloc.stdout.len();
    task.alloc.stdout.to_hold(count + 60, LIMIT).await?;
    ensure_eq!(
        task.exec(plugin, "cat /app/unread; exit 3").await?,
        (3, "nobody has read this yet\n".to_owned())
    );
    task.stop(plugin, LIMIT).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 14);
    ensure!(task.alloc.stdout.to_end(LIMIT).await?.ends_with(b"ending\n"), "the last line is lost");
    // The agent ignores DestroyTask's error, so its result must not matter.
    let _ = tokio::time::timeout(LIMIT, plugin.destroy_task(task.id(), false)).await?;
    case.environment().containerd().start()?;
    case.nothing_left_within(Duration::from_secs(60))?;
    case.still_works(plugin).await
}

async fn a_start_without_containerd_is_worth_another_try(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let containerd = case.environment().containerd();
    let socket = containerd.socket().display().to_string();
    containerd.stop()?;
    let task = case.prepare(plugin, &case.shell("true")).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[&socket])?;
    ensure!(is_recoverable(&status)?, "Nomad would not try again: {status:?}");
    containerd.start()?;
    case.nothing_left()?;
    case.still_works(plugin).await
}

async fn a_start_with_a_containerd_that_hangs_ends_with_an_error(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    case.still_works(plugin).await?;
    case.environment().containerd().pause()?;
    let task = case.prepare(plugin, &case.shell("true")).await?;
    let limit = Duration::from_secs(80);
    let answer = tokio::time::timeout(limit, plugin.start_task(task.config.clone())).await?;
    let status = refused(answer, &["containerd"])?;
    ensure!(is_recoverable(&status)?, "Nomad would not try again: {status:?}");
    case.environment().containerd().resume()?;
    case.nothing_left_within(Duration::from_secs(30))?;
    Ok(())
}

async fn a_running_task_keeps_its_files_when_containerd_collects_garbage(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let (registry, containerd) = (case.environment().registry(), case.environment().containerd());
    // The image has layers of its own, so that no other image holds them.
    case.environment().catalog().large(1)?.push(registry, "collected", "v1", Form::OciIndex)?;
    let image = case.image("collected:v1");
    let task = case.run(plugin, &config! { image = image, command = "sleep", args = ["600"] }).await?;
    containerd.stop()?;
    containerd.start()?;
    // containerd's first garbage collection is due a moment after its start.
    tokio::time::sleep(Duration::from_millis(500)).await;
    containerd.ctr(&["images", "delete", "--sync", &image])?;
    containerd.collect_garbage()?;
    let (code, output) = task.exec(plugin, "wc -c /large && echo new > /etc/new && cat /etc/new").await?;
    ensure_eq!((code, output.as_str()), (0, "1048576 /large\nnew\n"));
    // Somebody removes the record by hand.
    for record in containerd.ctr(&["containers", "list", "--quiet"])?.split_whitespace() {
        containerd.ctr(&["containers", "delete", record])?;
    }
    containerd.collect_garbage()?;
    let (code, output) = task.exec(plugin, "id -u && cat /etc/new /etc/replaced 2>&1; ls /").await?;
    ensure!(code == 0 && output.starts_with("0\nnew\n"), "{code} {output}");
    task.end(plugin).await
}

async fn a_task_is_recovered_without_containerd(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task =
        case.run(&plugin, &case.shell("trap 'exit 15' TERM; echo up; while :; do sleep 0.1; done")).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    case.environment().containerd().kill()?;
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    task.stop(&next, LIMIT).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 15);
    let _ = tokio::time::timeout(LIMIT, next.destroy_task(task.id(), false)).await?;
    case.environment().containerd().start()?;
    case.nothing_left_within(Duration::from_secs(60))?;
    next.shut_down().await
}
