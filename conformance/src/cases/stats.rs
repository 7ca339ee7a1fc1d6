//! What a task uses of the machine, as streams that the agent keeps open, held against the kernel's own count.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use nomad_proto::driver::MemoryUsage;
use nomad_proto::driver::memory_usage::Fields;

use super::cases;
use crate::fixture::sweep::find_processes;
use crate::host::Plugin;
use crate::host::cgroup::is_v2;
use crate::host::plugin::CORE_MHZ;
use crate::host::stats::{Sample, Stats};
use crate::scene::Scene;
use crate::task::{LIMIT, Task};

cases!["stats":
    a_shim_that_answers_late_leaves_samples_out_and_no_stream_ends,
    usage_comes_with_all_its_parts_and_never_faster_than_the_operator_wants,
    all_who_listen_get_the_same_samples_each_at_its_own_pace,
    a_listener_that_goes_away_costs_nothing_any_more,
    a_usage_stream_ends_in_order_and_at_once_with_its_task,
    memory_is_what_the_kernel_counts,
    cpu_time_is_what_the_kernel_counts,
];

/// Fast enough for a case.
const FAST: Duration = Duration::from_millis(200);

async fn fast_plugin(scene: &Scene) -> Result<Plugin> {
    let mut options = scene.options();
    options["stats_interval"] = serde_json::json!("100ms");
    scene.plugin_as(&scene.launch(), &options).await
}

/// The shim of a case's only task.
fn shim_pid(scene: &Scene) -> Result<Pid> {
    let found = find_processes(&scene.state_dir());
    let shim = found.iter().find(|process| process.command.contains("containerd-shim"));
    Ok(Pid::from_raw(shim.with_context(|| format!("no shim among {found:?}"))?.pid))
}

/// Longer than a call to a shim that only asks it may take.
const STOPPED: Duration = Duration::from_secs(11);

async fn a_shim_that_answers_late_leaves_samples_out_and_no_stream_ends(scene: &Scene) -> Result<()> {
    let mut plugin = fast_plugin(scene).await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    let mut stats = Stats::open(&plugin, task.id(), FAST).await?;
    stats.next(LIMIT).await?;
    let shim = shim_pid(scene)?;
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
    scene: &Scene,
) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    let mut stats = Stats::open(&plugin, task.id(), Duration::from_millis(10)).await?;
    let first = stats.next(LIMIT).await?;
    ensure!(!first.has_load(), "the load of a first sample can't be measured: {:?}", first.cpu);
    let mut last = first.clone();
    for _ in 0..4 {
        last = stats.next(LIMIT).await?;
        ensure!(last.has_load(), "no load: {:?}", last.cpu);
    }
    // The option's default is a second; each of the two may be late.
    let took = last.at.saturating_sub(first.at);
    ensure!(took > Duration::from_secs(2), "five samples came in {took:?}");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn all_who_listen_get_the_same_samples_each_at_its_own_pace(scene: &Scene) -> Result<()> {
    let mut plugin = fast_plugin(scene).await?;
    let task = scene.run(&plugin, &scene.shell("while :; do :; done")).await?;
    let pace = FAST * 2;
    let mut fast = Stats::open(&plugin, task.id(), pace).await?;
    let (mut all, mut others) = (vec![fast.next(LIMIT).await?], Vec::new());
    let mut as_fast = Stats::open(&plugin, task.id(), pace).await?;
    let mut slow = Stats::open(&plugin, task.id(), pace * 3).await?;
    // Each gets its first without waiting for the next.
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
        let told = core_seconds(pair);
        ensure!((used - told).abs() < used * 0.02, "a load of {told} s where the others make {used} s");
    }
    let (fewer, more) = (slowly.len(), known(&slowly[slowly.len() - 1]).unwrap_or(0) + 1);
    ensure!(fewer * 2 <= more, "who asks a third as often gets {fewer} of {more} samples");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

/// The CPU time that the second of two samples in turn tells of.
fn core_seconds(pair: &[Sample]) -> f64 {
    pair[1].cpu.percent / 100.0 * pair[1].at.saturating_sub(pair[0].at).as_secs_f64()
}

/// How often a process has read anything.
fn reads(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let count = text.lines().find_map(|line| line.strip_prefix("syscr: "));
    Ok(count.with_context(|| format!("no count of reads in {path}"))?.parse()?)
}

async fn a_listener_that_goes_away_costs_nothing_any_more(scene: &Scene) -> Result<()> {
    let mut plugin = fast_plugin(scene).await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    let shim = shim_pid(scene)?;
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
    // The plugin learns of it a moment later; from then on the shim has peace.
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
    // And whoever comes then is served again, at once.
    Stats::open(&plugin, task.id(), LIMIT * 10).await?.next(LIMIT).await?;
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_usage_stream_ends_in_order_and_at_once_with_its_task(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    // Longer than anybody waits here.
    let interval = LIMIT * 10;
    for by_force in [false, true] {
        let (task, mut cue) = on_cue(scene, &plugin, "read line < /local/cue").await?;
        let mut stats = Stats::open(&plugin, task.id(), interval).await?;
        stats.next(LIMIT).await?;
        if by_force {
            task.end(&plugin).await?;
        } else {
            cue.write_all(b"now\n")?;
            task.wait(&plugin).await?;
        }
        stats.end(LIMIT).await.with_context(|| format!("by force: {by_force}"))?;
        if !by_force {
            // One that has ended has nothing to tell, in good order too.
            Stats::open(&plugin, task.id(), interval).await?.end(LIMIT).await?;
            task.destroy(&plugin).await?;
        }
    }
    plugin.shut_down().await
}

/// A task whose script waits for a line from the pipe `/local/cue`: it stands still until the case writes one.
async fn on_cue(scene: &Scene, plugin: &Plugin, script: &str) -> Result<(Task, File)> {
    let mut task = scene.prepare(plugin, &scene.shell(script)).await?;
    let path = task.alloc.task_path("local/cue");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).context("make the pipe for the cue")?;
    // With both ends, so that the open waits for nobody.
    let cue = File::options().read(true).write(true).open(&path).context("open the pipe for the cue")?;
    task.start(plugin).await?;
    Ok((task, cue))
}

/// A value of a file of `key value` lines, or, without a key, all that there is.
fn value(text: &str, key: &str) -> Result<u64> {
    let found = match key {
        "" => Some(text),
        key => text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')),
    };
    Ok(found.with_context(|| format!("no {key:?} in {text:?}"))?.trim().parse()?)
}

/// Bytes by what they are, None where they are not counted.
type Amounts = [(&'static str, Option<u64>); 7];

/// What the kernel has counted of a task's memory, in the order of [`told`].
fn counted(task: &Task) -> Result<Amounts> {
    let read = |v1_file: &str, v1_key: &str, v2_file: &str, v2_key: &str| -> Result<u64> {
        let text = task.alloc.cgroup.read("memory", v1_file, v2_file)?;
        value(&text, if is_v2() { v2_key } else { v1_key })
    };
    let usage = read("memory.usage_in_bytes", "", "memory.current", "")?;
    let swap = if is_v2() {
        read("", "", "memory.swap.current", "").ok()
    } else {
        read("memory.memsw.usage_in_bytes", "", "", "").ok().map(|both| both.saturating_sub(usage))
    };
    let on_v1 = |file: &str| if is_v2() { Ok(None) } else { read(file, "", "", "").map(Some) };
    Ok([
        ("RSS", Some(read("memory.stat", "rss", "memory.stat", "anon")?)),
        ("CACHE", Some(read("memory.stat", "cache", "memory.stat", "file")?)),
        ("USAGE", Some(usage)),
        ("SWAP", swap),
        ("MAX_USAGE", read("memory.max_usage_in_bytes", "", "memory.peak", "").ok()),
        ("KERNEL_USAGE", on_v1("memory.kmem.usage_in_bytes")?),
        ("KERNEL_MAX_USAGE", on_v1("memory.kmem.max_usage_in_bytes")?),
    ])
}

/// What the plugin has told of them, where it says that it was measured.
fn told(memory: &MemoryUsage) -> Amounts {
    let measured = |field: Fields, value: u64| {
        (field.as_str_name(), memory.measured_fields().any(|one| one == field).then_some(value))
    };
    [
        measured(Fields::Rss, memory.rss),
        measured(Fields::Cache, memory.cache),
        measured(Fields::Usage, memory.usage),
        measured(Fields::Swap, memory.swap),
        measured(Fields::MaxUsage, memory.max_usage),
        measured(Fields::KernelUsage, memory.kernel_usage),
        measured(Fields::KernelMaxUsage, memory.kernel_max_usage),
    ]
}

/// The kernel counts in batches, a processor at a time.
const BATCHES_BYTES: u64 = 1 << 20;

fn differ(told: Option<u64>, counted: Option<u64>) -> bool {
    match (told, counted) {
        (Some(told), Some(counted)) => told.abs_diff(counted) > BATCHES_BYTES,
        // What the shims of v2 don't pass on isn't told.
        (None, _) => !is_v2(),
        (Some(_), None) => true,
    }
}

async fn memory_is_what_the_kernel_counts(scene: &Scene) -> Result<()> {
    let mut plugin = fast_plugin(scene).await?;
    // So much in the shell's own memory, and so much in files. A peak that is past, then quiet.
    let script = "held=$(head -c 16000000 /dev/zero | tr '\\0' x); head -c 8000000 /dev/zero > /tmp/file; \
                  echo held ${#held}; read line < /local/cue";
    let (task, _cue) = on_cue(scene, &plugin, script).await?;
    task.alloc.stdout.to_contain("held 16000000\n", LIMIT).await?;
    let mut stats = Stats::open(&plugin, task.id(), FAST).await?;
    // The files' own count settles when they have been written back.
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        let before = counted(&task)?;
        stats.next(LIMIT).await?;
        let told = told(&stats.next(LIMIT).await?.memory);
        let after = counted(&task)?;
        if before == after || std::time::Instant::now() > deadline {
            let wrong = told.iter().zip(&after).find(|(told, counted)| differ(told.1, counted.1));
            ensure!(wrong.is_none(), "told and counted: {wrong:?}");
            ensure!(told[0].1 > Some(16_000_000) && told[1].1 > Some(7_000_000), "too little: {told:?}");
            break;
        }
    }
    task.end(&plugin).await?;
    plugin.shut_down().await
}

/// All the CPU time that the kernel has counted of a task.
fn cpu_time(task: &Task) -> Result<Duration> {
    if is_v2() {
        let text = task.alloc.cgroup.read("", "", "cpu.stat")?;
        return Ok(Duration::from_micros(value(&text, "usage_usec")?));
    }
    Ok(Duration::from_nanos(value(&task.alloc.cgroup.read("cpuacct", "cpuacct.usage", "")?, "")?))
}

async fn cpu_time_is_what_the_kernel_counts(scene: &Scene) -> Result<()> {
    let mut plugin = fast_plugin(scene).await?;
    // It stands still before and after, so it doesn't matter how late a sample is or what else the machine does.
    let script = "read line < /local/cue; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; \
                  dd if=/dev/zero of=/dev/null bs=4k count=300000 2>/dev/null; \
                  echo done; read line < /local/cue";
    let (task, mut cue) = on_cue(scene, &plugin, script).await?;
    let mut stats = Stats::open(&plugin, task.id(), FAST).await?;
    let before = loop {
        let before = cpu_time(&task)?;
        stats.next(LIMIT).await?;
        if before == cpu_time(&task)? {
            break before;
        }
    };
    let mut samples = vec![stats.next(LIMIT).await?];
    cue.write_all(b"go\n")?;
    let (mut has_ended, mut more) = (false, 2);
    while more > 0 {
        samples.push(stats.next(LIMIT).await?);
        // One may be on its way already.
        more -= u32::from(has_ended);
        has_ended = task.alloc.stdout.text().contains("done");
    }
    let counted = (cpu_time(&task)? - before).as_secs_f64();
    let told: f64 = samples.windows(2).map(core_seconds).sum();
    ensure!(counted > 0.1, "the task has burnt {counted} s only");
    let slack = counted * 0.03 + 0.01;
    ensure!((told - counted).abs() < slack, "{told} s of CPU are told, the kernel counts {counted} s");
    let split = |of: fn(&Sample) -> f64| -> f64 {
        let times = samples
            .windows(2)
            .map(|pair| of(&pair[1]) / 100.0 * pair[1].at.saturating_sub(pair[0].at).as_secs_f64());
        times.sum()
    };
    let (user, system) = (split(|sample| sample.cpu.user_mode), split(|sample| sample.cpu.system_mode));
    // These two are counted in ticks of ten milliseconds.
    ensure!((user + system - counted).abs() < counted * 0.1 + 0.05, "{user} s and {system} s of {counted} s");
    ensure!(
        user > 0.02 && system > 0.02,
        "{user} s in user mode, {system} s in the kernel, of both there was some"
    );
    for sample in &samples {
        let ticks = sample.cpu.percent / 100.0 * CORE_MHZ as f64;
        ensure!(
            (sample.cpu.total_ticks - ticks).abs() < 0.001,
            "{} ticks of {ticks}",
            sample.cpu.total_ticks
        );
    }
    task.end(&plugin).await?;
    plugin.shut_down().await
}
