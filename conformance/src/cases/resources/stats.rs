//! Statistics of a task, as streams that the agent keeps open: their samples, pace (`stats_interval`), and sources.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::stats::{Sample, Stats};
use harness::task::LIMIT;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cases::support::cases;
use crate::cases::support::processes::shim_pid;
use crate::cases::support::sampling::{FAST, Source, core_seconds, fast_plugin, on_cue, shim_counts};

cases!["stats":
    a_shim_that_stands_still_keeps_no_sample_back,
    the_shim_is_asked_where_the_cgroup_is_not_to_be_read,
    a_shim_that_answers_late_leaves_samples_out_and_no_stream_ends,
    usage_comes_with_all_its_parts_and_never_faster_than_the_operator_wants,
    all_who_listen_get_the_same_samples_each_at_its_own_pace,
    a_listener_that_goes_away_costs_nothing_any_more,
    a_usage_stream_ends_in_order_and_at_once_with_its_task,
];

/// Longer than the timeout of a shim call that only asks for something.
const STOPPED: Duration = Duration::from_secs(11);

async fn a_shim_that_stands_still_keeps_no_sample_back(case: &CaseContext) -> Result<()> {
    let mut plugin = fast_plugin(case, Source::Files).await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let mut stats = Stats::open(&plugin, task.id(), FAST).await?;
    stats.next(LIMIT).await?;
    let shim = shim_pid(case)?;
    kill(shim, Signal::SIGSTOP)?;
    for _ in 0..3 {
        stats.next(LIMIT).await?;
    }
    kill(shim, Signal::SIGCONT)?;
    task.end(&plugin).await?;
    stats.end(LIMIT).await?;
    plugin.shut_down().await
}

/// The plugin does not find the cgroup, since the handle has another path for it.
async fn the_shim_is_asked_where_the_cgroup_is_not_to_be_read(case: &CaseContext) -> Result<()> {
    shim_counts(case)?;
    let mut plugin = fast_plugin(case, Source::Files).await?;
    let mut task = case.run(&plugin, &case.shell("sleep 600")).await?;
    plugin.shut_down().await?;
    let handle = task.handle.as_mut().context("no handle")?;
    let mut state: serde_json::Value = serde_json::from_slice(&handle.driver_state)?;
    ensure!(state["cgroup"]["path"].is_string(), "no cgroup in {state}");
    state["cgroup"]["path"] = "/nomad/elsewhere".into();
    handle.driver_state = serde_json::to_vec(&state)?;
    let mut next = fast_plugin(case, Source::Files).await?;
    task.recover(&next).await?;
    let (shim, mut stats) = (shim_pid(case)?, Stats::open(&next, task.id(), FAST).await?);
    let before = reads(shim)?;
    for _ in 0..3 {
        stats.next(LIMIT).await?;
    }
    ensure!(reads(shim)? > before, "the figures are not the shim's");
    task.end(&next).await?;
    next.shut_down().await
}

async fn a_shim_that_answers_late_leaves_samples_out_and_no_stream_ends(case: &CaseContext) -> Result<()> {
    let mut plugin = fast_plugin(case, Source::Shim).await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let mut stats = Stats::open(&plugin, task.id(), FAST).await?;
    stats.next(LIMIT).await?;
    let shim = shim_pid(case)?;
    kill(shim, Signal::SIGSTOP)?;
    tokio::time::sleep(STOPPED).await;
    kill(shim, Signal::SIGCONT)?;
    for _ in 0..3 {
        stats.next(LIMIT).await?;
    }
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn usage_comes_with_all_its_parts_and_never_faster_than_the_operator_wants(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let mut stats = Stats::open(plugin, task.id(), Duration::from_millis(10)).await?;
    let first = stats.next(LIMIT).await?;
    ensure!(!first.has_load(), "the load of a first sample can't be measured: {:?}", first.cpu);
    let mut last = first.clone();
    for _ in 0..4 {
        last = stats.next(LIMIT).await?;
        ensure!(last.has_load(), "no load: {:?}", last.cpu);
    }
    // The option's default is a second; each of the two samples may be late.
    let took = last.at.saturating_sub(first.at);
    ensure!(took > Duration::from_secs(2), "five samples came in {took:?}");
    task.end(plugin).await
}

async fn all_who_listen_get_the_same_samples_each_at_its_own_pace(case: &CaseContext) -> Result<()> {
    let mut plugin = fast_plugin(case, Source::Files).await?;
    let task = case.run(&plugin, &case.shell("while :; do :; done")).await?;
    let pace = FAST * 2;
    let mut fast = Stats::open(&plugin, task.id(), pace).await?;
    let (mut all, mut others) = (vec![fast.next(LIMIT).await?], Vec::new());
    let mut as_fast = Stats::open(&plugin, task.id(), pace).await?;
    let mut slow = Stats::open(&plugin, task.id(), pace * 3).await?;
    // Each listener gets its first sample without waiting for the next interval.
    others.push(as_fast.next(LIMIT).await?);
    let mut slowly = vec![slow.next(LIMIT).await?];
    for _ in 0..12 {
        all.push(fast.next(LIMIT).await?);
        others.push(as_fast.next(LIMIT).await?);
    }
    while slowly.last().is_some_and(|last| last.at < all[9].at) {
        slowly.push(slow.next(LIMIT).await?);
    }
    let known =
        |sample: &Sample| all.iter().position(|one| one.at == sample.at && one.memory == sample.memory);
    for other in &others[..others.len() - 1] {
        known(other).with_context(|| format!("a sample of one listener alone: {other:?}"))?;
    }
    for pair in slowly.windows(2) {
        let (Some(from), Some(to)) = (known(&pair[0]), known(&pair[1])) else {
            anyhow::bail!("a sample of the slow listener alone: {pair:?}");
        };
        let used: f64 = all[from..=to].windows(2).map(core_seconds).sum();
        let reported = core_seconds(pair);
        ensure!(
            (used - reported).abs() < used * 0.02,
            "a load of {reported} s where the others make {used} s"
        );
    }
    let (fewer, more) = (slowly.len(), known(&slowly[slowly.len() - 1]).unwrap_or(0) + 1);
    ensure!(fewer * 2 <= more, "who asks a third as often gets {fewer} of {more} samples");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

/// Returns how many times a process has called read.
fn reads(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let count = text.lines().find_map(|line| line.strip_prefix("syscr: "));
    Ok(count.with_context(|| format!("no count of reads in {path}"))?.parse()?)
}

async fn a_listener_that_goes_away_costs_nothing_any_more(case: &CaseContext) -> Result<()> {
    let mut plugin = fast_plugin(case, Source::Shim).await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let shim = shim_pid(case)?;
    let mut listeners = Vec::new();
    for _ in 0..5 {
        listeners.push(Stats::open(&plugin, task.id(), FAST).await?);
    }
    let before = reads(shim)?;
    for _ in 0..3 {
        for listener in &mut listeners {
            listener.next(LIMIT).await?;
        }
    }
    let during = reads(shim)?.saturating_sub(before);
    ensure!(during > 0, "the shim reads nothing while it is asked for statistics");
    drop(listeners);
    // The plugin notices the closed streams a moment later; from then on it doesn't ask the shim.
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        let before = reads(shim)?;
        tokio::time::sleep(FAST * 5).await;
        let after = reads(shim)?;
        if after == before {
            break;
        }
        ensure!(std::time::Instant::now() < deadline, "{} reads by the shim for nobody", after - before);
    }
    // A later listener is served again, at once.
    Stats::open(&plugin, task.id(), LIMIT * 10).await?.next(LIMIT).await?;
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_usage_stream_ends_in_order_and_at_once_with_its_task(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    // Longer than any wait in this case.
    let interval = LIMIT * 10;
    for by_force in [false, true] {
        let (task, mut cue) = on_cue(case, plugin, "read line < /local/cue").await?;
        let mut stats = Stats::open(plugin, task.id(), interval).await?;
        stats.next(LIMIT).await?;
        if by_force {
            task.end(plugin).await?;
        } else {
            cue.write_all(b"now\n")?;
            task.wait(plugin).await?;
        }
        stats.end(LIMIT).await.with_context(|| format!("by force: {by_force}"))?;
        if !by_force {
            // The stream of a task that has ended has no sample, and ends in order, too.
            Stats::open(plugin, task.id(), interval).await?.end(LIMIT).await?;
            task.destroy(plugin).await?;
        }
    }
    Ok(())
}
