//! The timelines of starts and teardowns: how long each step took, in a form that programs read.

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::LIMIT;
use harness::timeline::LoggedTimeline;
use serde_json::json;

use crate::cases::support::timelines::logged_timelines;
use crate::cases::support::{cases, ensure_eq, refused, until};

cases!["timeline":
    a_start_and_a_teardown_say_how_long_their_steps_took,
    a_start_that_failed_says_so_as_well,
    a_start_from_an_image_that_is_known_makes_few_calls_to_containerd,
];

/// Maximum difference of a sum of rounded parts, in milliseconds.
const ROUNDED: f64 = 0.11;

/// Waits for the next timeline of this kind, when there are `before` of them, and returns it.
async fn next(plugin: &Plugin, call: &str, before: usize) -> Result<LoggedTimeline> {
    let there = || logged_timelines(plugin, call).is_ok_and(|logged| logged.len() > before);
    until(LIMIT, "the timeline", there).await?;
    logged_timelines(plugin, call)?.into_iter().nth(before).context("no timeline")
}

fn has(timeline: &LoggedTimeline, steps: &[&str]) -> Result<()> {
    for name in steps {
        let (begin, length) =
            timeline.steps.get(*name).with_context(|| format!("no step {name}: {timeline:?}"))?;
        ensure!(begin + length <= timeline.total_ms + ROUNDED, "{name} ends after the call: {timeline:?}");
        if let Some((whole, _)) = name.split_once('/') {
            let (whole_begin, whole_length) =
                timeline.steps.get(whole).with_context(|| format!("no step {whole}: {timeline:?}"))?;
            let ends_within = begin + length <= whole_begin + whole_length + 2.0 * ROUNDED;
            ensure!(begin >= whole_begin && ends_within, "{name} is outside of {whole}: {timeline:?}");
        }
    }
    Ok(())
}

async fn a_start_and_a_teardown_say_how_long_their_steps_took(case: &CaseContext) -> Result<()> {
    let mut options = case.with_own_shims().options();
    options["spare_shims"] = json!(0);
    let plugin = &case.plugin_as(&case.launch(), &options).await?;
    let task = case.run(plugin, &case.shell("true")).await?;
    let start = next(plugin, "start", 0).await?;
    ensure_eq!(start.outcome, "done");
    has(
        &start,
        &[
            "wanted",
            "wanted/rights",
            "image",
            "bundle",
            "shim",
            "shim/exec",
            "shim/ask",
            "container",
            "container/lease",
            "container/snapshot",
            "container/user",
            "network",
            "network/names",
            "create",
            "record",
            "start",
        ],
    )?;
    // Create is the first step of a start that needs the shim.
    let (created, _) = start.steps["create"];
    ensure!(["shim", "container", "network"].iter().all(|step| start.steps[*step].0 < created), "{start:?}");
    task.wait(plugin).await?;
    task.destroy(plugin).await?;
    let teardown = next(plugin, "teardown", 0).await?;
    ensure_eq!((&*teardown.outcome, &teardown.container), ("done", &start.container));
    has(
        &teardown,
        &["processes", "processes/delete", "processes/shim", "record", "snapshot", "lease", "bundle"],
    )?;
    Ok(())
}

async fn a_start_that_failed_says_so_as_well(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let wrong = config! { image = case.image("busybox:latest"), command = "/no/such/program" };
    let task = case.prepare(plugin, &wrong).await?;
    refused(plugin.start_task(task.config.clone()).await, &["/no/such/program"])?;
    let start = next(plugin, "start", 0).await?;
    ensure_eq!(start.outcome, "failed");
    has(&start, &["wanted", "shim", "create"])?;
    ensure!(!start.steps.contains_key("start"), "{start:?}");
    let impossible = config! { image = case.image("busybox:latest"), devices = ["/dev/none"] };
    let task = case.prepare(plugin, &impossible).await?;
    refused(plugin.start_task(task.config.clone()).await, &["/dev/none"])?;
    let start = next(plugin, "start", 1).await?;
    ensure_eq!((&*start.outcome, start.containerd_calls, start.steps.len()), ("failed", 0, 8));
    Ok(())
}

async fn a_start_from_an_image_that_is_known_makes_few_calls_to_containerd(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for number in 0..3 {
        case.still_works(plugin).await?;
        let start = next(plugin, "start", number).await?;
        if number > 0 {
            // One call each for the image's record, its unpacked state, the lease, the snapshot and the container's
            // record.
            ensure!(start.containerd_calls <= 5, "{start:?}");
        }
    }
    Ok(())
}
