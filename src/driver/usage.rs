//! Conversion of a task's resource usage to Nomad's message. `nomad alloc status -stats` shows and the agent publishes
//! only the fields that are listed as measured; others count as 0.
//!
//! Source of the facts: hashicorp/nomad `client/lib/cpustats`, `drivers/shared/executor` (the fields that its own
//! drivers measure), `command/alloc_status.go`.

use nomad_proto::driver as pb;

use crate::cgroup::Usage;
use crate::task::{Load, Reading};

/// Returns Nomad's message. `mhz_per_core` is the speed of a core as the agent counts it.
pub(super) fn resource_usage(reading: &Reading, mhz_per_core: f64) -> pb::TaskResourceUsage {
    pb::TaskResourceUsage {
        cpu: Some(cpu(&reading.usage, reading.load, mhz_per_core)),
        memory: Some(memory(&reading.usage)),
    }
}

fn cpu(usage: &Usage, load: Option<Load>, mhz_per_core: f64) -> pb::CpuUsage {
    use pb::cpu_usage::Fields::{Percent, SystemMode, ThrottledPeriods, ThrottledTime, UserMode};
    let parts = load.is_some_and(|load| load.user.is_some() && load.system.is_some());
    let mut measured_fields = vec![ThrottledPeriods, ThrottledTime];
    if parts {
        measured_fields.extend([SystemMode, UserMode]);
    }
    if load.is_some() {
        // Ticks are never listed: the agent shows them elsewhere, and its table has no column for them.
        measured_fields.push(Percent);
    }
    let load = load.unwrap_or(Load { total: 0.0, user: None, system: None });
    pb::CpuUsage {
        system_mode: load.system.unwrap_or_default() * 100.0,
        user_mode: load.user.unwrap_or_default() * 100.0,
        total_ticks: load.total * mhz_per_core,
        throttled_periods: usage.throttled_periods,
        throttled_time: u64::try_from(usage.throttled.as_nanos()).unwrap_or(u64::MAX),
        percent: load.total * 100.0,
        measured_fields: measured_fields.into_iter().map(Into::into).collect(),
    }
}

fn memory(usage: &Usage) -> pb::MemoryUsage {
    use pb::memory_usage::Fields::{Cache, KernelMaxUsage, KernelUsage, MaxUsage, Rss, Swap, Usage};
    let &crate::cgroup::Usage {
        cpu_total: _,
        cpu_user: _,
        cpu_system: _,
        throttled_periods: _,
        throttled: _,
        rss_bytes,
        cache_bytes: cache,
        memory_bytes,
        memory_max_bytes,
        swap_bytes,
        kernel_bytes,
        kernel_max_bytes,
    } = usage;
    let sometimes = [
        (Rss, rss_bytes),
        (MaxUsage, memory_max_bytes),
        (Swap, swap_bytes),
        (KernelUsage, kernel_bytes),
        (KernelMaxUsage, kernel_max_bytes),
    ];
    let measured = sometimes.into_iter().filter_map(|(field, value)| value.map(|_| field));
    pb::MemoryUsage {
        rss: rss_bytes.unwrap_or(0),
        cache,
        max_usage: memory_max_bytes.unwrap_or(0),
        kernel_usage: kernel_bytes.unwrap_or(0),
        kernel_max_usage: kernel_max_bytes.unwrap_or(0),
        measured_fields: [Cache, Usage].into_iter().chain(measured).map(Into::into).collect(),
        usage: memory_bytes,
        swap: swap_bytes.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn reading(usage: Usage, load: Option<Load>) -> Reading {
        Reading { at: SystemTime::UNIX_EPOCH, usage, load }
    }

    #[test]
    fn a_core_and_a_half_is_150_percent_and_as_many_ticks() {
        let load = Load { total: 1.5, user: Some(1.25), system: Some(0.25) };
        let usage = Usage { throttled: Duration::from_micros(7), throttled_periods: 2, ..Usage::default() };
        let cpu = resource_usage(&reading(usage, Some(load)), 2000.0).cpu.unwrap();
        assert_eq!((cpu.percent, cpu.user_mode, cpu.system_mode), (150.0, 125.0, 25.0));
        assert_eq!((cpu.total_ticks, cpu.throttled_time, cpu.throttled_periods), (3000.0, 7000, 2));
        let fields: Vec<_> = cpu.measured_fields().map(|field| field.as_str_name()).collect();
        assert_eq!(fields, ["THROTTLED_PERIODS", "THROTTLED_TIME", "SYSTEM_MODE", "USER_MODE", "PERCENT"]);
        let whole = Load { total: 1.5, user: None, system: None };
        let cpu = resource_usage(&reading(usage, Some(whole)), 2000.0).cpu.unwrap();
        let fields: Vec<_> = cpu.measured_fields().map(|field| field.as_str_name()).collect();
        assert_eq!((cpu.percent, fields), (150.0, vec!["THROTTLED_PERIODS", "THROTTLED_TIME", "PERCENT"]));
        let first = resource_usage(&reading(usage, None), 2000.0).cpu.unwrap();
        assert_eq!(first.percent, 0.0);
        let fields: Vec<_> = first.measured_fields().map(|field| field.as_str_name()).collect();
        assert_eq!(fields, ["THROTTLED_PERIODS", "THROTTLED_TIME"]);
    }

    #[test]
    fn uncounted_figures_are_not_declared_as_measured() {
        let names = |usage: Usage| {
            let memory = resource_usage(&reading(usage, None), 0.0).memory.unwrap();
            memory.measured_fields().map(|field| field.as_str_name()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(Usage::default()), "CACHE USAGE");
        let all = Usage {
            rss_bytes: Some(1),
            memory_max_bytes: Some(1),
            swap_bytes: Some(0),
            kernel_bytes: Some(1),
            kernel_max_bytes: Some(1),
            ..Usage::default()
        };
        assert_eq!(names(all), "CACHE USAGE RSS MAX_USAGE SWAP KERNEL_USAGE KERNEL_MAX_USAGE");
    }
}
