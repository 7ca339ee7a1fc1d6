//! The figures of a task's statistics compared with the kernel's own, for both sources of a plugin's figures.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::cgroup::is_v2;
use harness::host::plugin::CORE_MHZ;
use harness::host::stats::{Sample, Stats};
use harness::task::{LIMIT, Task};
use nomad_proto::driver::MemoryUsage;
use nomad_proto::driver::memory_usage::Fields;

use crate::cases::support::cases;
use crate::cases::support::sampling::{FAST, Source, core_seconds, fast_plugin, on_cue};

cases!["stats":
    memory_is_what_the_kernel_counts,
    memory_that_the_shim_tells_is_what_the_kernel_counts,
    cpu_time_is_what_the_kernel_counts,
    cpu_time_that_the_shim_tells_is_what_the_kernel_counts,
];

/// Returns a key's value in a file of `key value` lines, or, without a key, the file's only value.
fn value(text: &str, key: &str) -> Result<u64> {
    let found = match key {
        "" => Some(text),
        key => text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')),
    };
    Ok(found.with_context(|| format!("no {key:?} in {text:?}"))?.trim().parse()?)
}

/// Amounts in bytes by kind, None for those that are not measured.
type Amounts = [(&'static str, Option<u64>); 7];

/// Returns the kernel's figures of a task's memory, in the order of [`reported`].
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
    Ok([
        ("RSS", Some(read("memory.stat", "rss", "memory.stat", "anon")?)),
        ("CACHE", Some(read("memory.stat", "cache", "memory.stat", "file")?)),
        ("USAGE", Some(usage)),
        ("SWAP", swap),
        ("MAX_USAGE", read("memory.max_usage_in_bytes", "", "memory.peak", "").ok()),
        ("KERNEL_USAGE", read("memory.kmem.usage_in_bytes", "", "memory.stat", "kernel").ok()),
        (
            "KERNEL_MAX_USAGE",
            if is_v2() { None } else { read("memory.kmem.max_usage_in_bytes", "", "", "").ok() },
        ),
    ])
}

/// Returns the plugin's figures of a task's memory, if it reports them as measured.
fn reported(memory: &MemoryUsage) -> Amounts {
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

/// Tolerance in bytes: the kernel counts in batches per processor.
const BATCHES_BYTES: u64 = 1 << 20;

fn differ(reported: Option<u64>, counted: Option<u64>, source: Source) -> bool {
    match (reported, counted) {
        (Some(reported), Some(counted)) => reported.abs_diff(counted) > BATCHES_BYTES,
        // Figures that the shims of v2 don't pass on aren't reported.
        (None, Some(_)) => !(is_v2() && source == Source::Shim),
        (None, None) => false,
        (Some(_), None) => true,
    }
}

async fn memory_is_what_the_kernel_counts(case: &CaseContext) -> Result<()> {
    memory_is_counted(case, Source::Files).await
}

async fn memory_that_the_shim_tells_is_what_the_kernel_counts(case: &CaseContext) -> Result<()> {
    memory_is_counted(case, Source::Shim).await
}

async fn memory_is_counted(case: &CaseContext, source: Source) -> Result<()> {
    let mut plugin = fast_plugin(case, source).await?;
    // This much in the shell's own memory, and this much in files. A peak that is past, then quiet.
    let script = "held=$(head -c 16000000 /dev/zero | tr '\\0' x); head -c 8000000 /dev/zero > /tmp/file; \
                  echo held ${#held}; read line < /local/cue";
    let (task, _cue) = on_cue(case, &plugin, script).await?;
    task.alloc.stdout.to_contain("held 16000000\n", LIMIT).await?;
    let mut stats = Stats::open(&plugin, task.id(), FAST).await?;
    // The figure for files settles when they have been written back.
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        let before = counted(&task)?;
        stats.next(LIMIT).await?;
        let reported = reported(&stats.next(LIMIT).await?.memory);
        let after = counted(&task)?;
        if before == after || std::time::Instant::now() > deadline {
            let wrong =
                reported.iter().zip(&after).find(|(reported, counted)| differ(reported.1, counted.1, source));
            ensure!(wrong.is_none(), "reported and counted: {wrong:?}");
            ensure!(
                reported[0].1 > Some(16_000_000) && reported[1].1 > Some(7_000_000),
                "too little: {reported:?}"
            );
            break;
        }
    }
    task.end(&plugin).await?;
    plugin.shut_down().await
}

/// Returns all the CPU time that the kernel has counted for a task.
fn cpu_time(task: &Task) -> Result<Duration> {
    if is_v2() {
        let text = task.alloc.cgroup.read("", "", "cpu.stat")?;
        return Ok(Duration::from_micros(value(&text, "usage_usec")?));
    }
    Ok(Duration::from_nanos(value(&task.alloc.cgroup.read("cpuacct", "cpuacct.usage", "")?, "")?))
}

async fn cpu_time_is_what_the_kernel_counts(case: &CaseContext) -> Result<()> {
    cpu_time_is_counted(case, Source::Files).await
}

async fn cpu_time_that_the_shim_tells_is_what_the_kernel_counts(case: &CaseContext) -> Result<()> {
    cpu_time_is_counted(case, Source::Shim).await
}

async fn cpu_time_is_counted(case: &CaseContext, source: Source) -> Result<()> {
    let mut plugin = fast_plugin(case, source).await?;
    // The task stands still before and after the work, so it doesn't matter how late a sample is or how busy the
    // machine is.
    let script = "read line < /local/cue; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; \
                  dd if=/dev/zero of=/dev/null bs=4k count=300000 2>/dev/null; \
                  echo done; read line < /local/cue";
    let (task, mut cue) = on_cue(case, &plugin, script).await?;
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
        // One sample may be on its way already.
        more -= u32::from(has_ended);
        has_ended = task.alloc.stdout.text().contains("done");
    }
    let counted = (cpu_time(&task)? - before).as_secs_f64();
    let reported: f64 = samples.windows(2).map(core_seconds).sum();
    ensure!(counted > 0.1, "the task has burnt {counted} s only");
    let slack = counted * 0.03 + 0.01;
    ensure!(
        (reported - counted).abs() < slack,
        "{reported} s of CPU are reported, the kernel counts {counted} s"
    );
    let split = |of: fn(&Sample) -> f64| -> f64 {
        let times = samples
            .windows(2)
            .map(|pair| of(&pair[1]) / 100.0 * pair[1].at.saturating_sub(pair[0].at).as_secs_f64());
        times.sum()
    };
    let (user, system) = (split(|sample| sample.cpu.user_mode), split(|sample| sample.cpu.system_mode));
    // User and system time are counted in ticks of ten milliseconds.
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
