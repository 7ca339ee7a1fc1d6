//! Snapshotters: the operator's, a job's own, one that doesn't exist; and a snapshot is removed from the snapshotter
//! that made it, whoever removes it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::host::Plugin;
use harness::leaks::sweep;
use harness::task::LIMIT;
use serde_json::{Value, json};

use crate::case::{Case, skip};
use crate::cases::support::stoppable_task::{end_and_destroy, start_stoppable_with};
use crate::cases::support::{cases, ensure_eq, refused};

cases!["snapshotters":
    a_task_gets_the_snapshotter_that_its_job_or_the_operator_names,
    a_snapshotter_that_is_not_there_is_refused_with_those_that_are,
    a_snapshot_is_removed_from_where_it_was_made_by_its_id_alone,
    an_image_stays_unpacked_for_each_snapshotter,
    a_snapshotter_that_copies_all_files_is_waited_for,
];

/// Number of files that take the native snapshotter some seconds for each task, one task after the other.
const FILES: usize = 50_000;
const TASKS: usize = 5;
/// Time limit of the case that copies files, for a busy machine.
const COPIES_LIMIT: Duration = Duration::from_secs(300);
/// The driver's former timeout for any snapshot.
const OLD_LIMIT: Duration = Duration::from_secs(10);

pub fn long_cases() -> Vec<Case> {
    let limit = |case: &Case| if case.name.contains("copies") { COPIES_LIMIT } else { case.limit };
    cases().into_iter().map(|case| Case { limit: limit(&case), ..case }).collect()
}

/// Returns the number of active snapshots that a snapshotter has.
fn active(case: &CaseContext, snapshotter: &str) -> Result<usize> {
    let listing =
        case.environment().containerd().ctr(&["snapshots", "--snapshotter", snapshotter, "list"])?;
    Ok(listing.lines().filter(|line| line.trim_end().ends_with("Active")).count())
}

fn native(config: &mut Value) {
    config["snapshotter"] = json!("native");
}

async fn a_task_gets_the_snapshotter_that_its_job_or_the_operator_names(case: &CaseContext) -> Result<()> {
    // The root of a container by the native snapshotter is a plain directory, bind-mounted.
    let script = "echo written > /app/new && cat /app/new /app/greeting && awk '$5 == \"/\" { exit $4 == \"/\" }' /proc/self/mountinfo";
    for (operators, jobs, is_native) in [
        (json!(null), json!("native"), true),
        (json!("native"), json!(null), true),
        (json!("native"), json!("overlayfs"), false),
    ] {
        let mut options = case.options();
        options["snapshotter"] = operators;
        let mut plugin = case.plugin_as(&case.launch(), &options).await?;
        let mut config = case.shell(&format!("{script}; echo $?; sleep 600"));
        config["snapshotter"] = jobs;
        let task = case.run(&plugin, &config).await?;
        let end = if is_native { "\n0\n" } else { "\n1\n" };
        task.alloc.stdout.to_contain(&format!("written\nhello from the image{end}"), LIMIT).await?;
        ensure_eq!(
            (active(case, "native")?, active(case, "overlayfs")?),
            if is_native { (1, 0) } else { (0, 1) }
        );
        case.environment().containerd().collect_garbage()?;
        ensure_eq!(task.exec(&plugin, "cat /app/new").await?, (0, "written\n".to_owned()));
        task.end(&plugin).await?;
        ensure_eq!((active(case, "native")?, active(case, "overlayfs")?), (0, 0));
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_snapshotter_that_is_not_there_is_refused_with_those_that_are(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    for name in ["zfs", "nowhere"] {
        let mut config = case.shell("true");
        config["snapshotter"] = json!(name);
        let task = case.prepare(&plugin, &config).await?;
        refused(plugin.start_task(task.config.clone()).await, &[name, "native", "overlayfs", "snapshotter"])?;
        case.nothing_left()?;
    }
    case.still_works(&plugin).await?;
    plugin.shut_down().await?;
    let mut options = case.options();
    options["snapshotter"] = json!("nowhere");
    let mut plugin = case.bare_plugin(&case.launch()).await?;
    plugin.configure(&options).await?;
    let task = case.prepare(&plugin, &case.shell("true")).await?;
    refused(plugin.start_task(task.config.clone()).await, &["nowhere", "overlayfs"])?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_snapshot_is_removed_from_where_it_was_made_by_its_id_alone(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable_with(case, &plugin, native).await?;
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    end_and_destroy(&task, &next).await?;
    ensure_eq!(active(case, "native")?, 0);
    // The task isn't recovered: the plugin knows its id, and no more.
    let task = start_stoppable_with(case, &next, native).await?;
    let mut third = case.next_plugin(&mut next).await?;
    ensure_eq!(active(case, "native")?, 1);
    task.end(&third).await?;
    ensure_eq!(active(case, "native")?, 0);
    // As after a reboot, not even the bundle is there.
    let task = start_stoppable_with(case, &third, native).await?;
    third.kill().await?;
    sweep::by_a_reboot(&case.state_dir(), task.alloc.cgroup.name())?;
    let mut last = case.plugin().await?;
    case.nothing_left_within(LIMIT)?;
    ensure_eq!(active(case, "native")?, 0);
    last.shut_down().await
}

async fn an_image_stays_unpacked_for_each_snapshotter(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let committed = |snapshotter: &str| {
        let listing =
            case.environment().containerd().ctr(&["snapshots", "--snapshotter", snapshotter, "list"])?;
        anyhow::Ok(listing.lines().filter(|line| line.trim_end().ends_with("Committed")).count())
    };
    for _ in 0..2 {
        for snapshotter in ["overlayfs", "native"] {
            let mut config = case.shell("true");
            config["snapshotter"] = json!(snapshotter);
            let task = case.run(plugin, &config).await?;
            ensure_eq!(task.wait(plugin).await?.exit_code, 0);
            task.destroy(plugin).await?;
            case.environment().containerd().collect_garbage()?;
        }
        ensure!(committed("overlayfs")? > 0 && committed("native")? > 0, "an image was collected");
    }
    Ok(())
}

async fn a_snapshotter_that_copies_all_files_is_waited_for(case: &CaseContext) -> Result<()> {
    let image = case.environment().catalog().with(|tree| {
        (0..FILES).try_for_each(|number| tree.file(&format!("many/{}/{number}", number / 1000), 0o644, b""))
    })?;
    image.push(case.environment().registry(), "many-files", "v1", Form::Oci)?;
    let mut options = case.options();
    options["snapshotter"] = json!("native");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let config = config! { image = case.image("many-files:v1"), command = "sleep", args = ["600"] };
    // The image is unpacked first, so that all tasks have the same work.
    let first = case.run(&plugin, &config).await?;
    first.end(&plugin).await?;
    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        tasks.push(case.prepare(&plugin, &config).await?);
    }
    let begun = Instant::now();
    futures::future::try_join_all(tasks.iter_mut().map(|task| task.start(&plugin))).await?;
    let took = begun.elapsed();
    for task in &tasks {
        task.end(&plugin).await?;
    }
    // A start that is cancelled while its files are copied is not waited for, and leaves nothing.
    let copied = case.prepare(&plugin, &config).await?;
    let held: Vec<_> = futures::future::try_join_all((0..2).map(|_| case.prepare(&plugin, &config))).await?;
    let others = futures::future::join_all(held.iter().map(|task| plugin.start_task(task.config.clone())));
    let called_off = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = Instant::now();
        let cut =
            tokio::time::timeout(Duration::from_millis(500), plugin.start_task(copied.config.clone())).await;
        ensure!(cut.is_err(), "it has started beside two copies in {:?}", begun.elapsed());
        anyhow::Ok(())
    };
    let (others, called_off) = tokio::join!(others, called_off);
    called_off?;
    for (answer, task) in others.into_iter().zip(&held) {
        answer?;
        task.end(&plugin).await?;
    }
    case.nothing_left_of_cut_off(&copied, &plugin).await?;
    plugin.shut_down().await?;
    if took <= OLD_LIMIT {
        return skip(format!("the copies took {took:?}: too little to prove that they are waited for"));
    }
    Ok(())
}
