//! Parses the metrics of a shim, which it reads from the cgroup and sends in the format of the cgroup version.
//!
//! Source of the facts: containerd/cgroups `cgroup1/stats/metrics.proto`, `cgroup2/stats/metrics.proto`.

use std::time::Duration;

use shim_protos::protobuf::well_known_types::any::Any;
use shim_protos::protobuf::{Error as DecodeError, Message};
use shim_protos::{cgroups, cgroups_v2};

use super::Usage;

const V1_URL: &str = "io.containerd.cgroups.v1.Metrics";

impl Usage {
    /// Parses a shim's metrics.
    ///
    /// # Errors
    /// If the message does not match its type.
    pub(crate) fn parse(metrics: &Any) -> Result<Self, DecodeError> {
        // Newer shims add a prefix to the type URL.
        if metrics.type_url.ends_with(V1_URL) {
            cgroups::metrics::Metrics::parse_from_bytes(&metrics.value).map(|metrics| of_v1(&metrics))
        } else {
            cgroups_v2::metrics::Metrics::parse_from_bytes(&metrics.value).map(|metrics| of_v2(&metrics))
        }
    }
}

/// Converts metrics of cgroup v1, whose times are in nanoseconds.
fn of_v1(metrics: &cgroups::metrics::Metrics) -> Usage {
    let cpu = metrics.cpu.get_or_default();
    let (times, throttling) = (cpu.usage.get_or_default(), cpu.throttling.get_or_default());
    let memory = metrics.memory.get_or_default();
    let (usage, kernel) = (memory.usage.get_or_default(), memory.kernel.get_or_default());
    let (user, system) = parts(times.user, times.kernel);
    // Swap on v1 means memory and swap together.
    let both = memory.swap.get_or_default().usage;
    Usage {
        cpu_total: Duration::from_nanos(times.total),
        cpu_user: user.map(Duration::from_nanos),
        cpu_system: system.map(Duration::from_nanos),
        throttled_periods: throttling.throttled_periods,
        throttled: Duration::from_nanos(throttling.throttled_time),
        rss_bytes: nonzero(memory.total_rss),
        cache_bytes: memory.total_cache,
        memory_bytes: usage.usage,
        memory_max_bytes: Some(usage.max),
        swap_bytes: (both > 0).then(|| both.saturating_sub(usage.usage)),
        kernel_bytes: Some(kernel.usage),
        kernel_max_bytes: Some(kernel.max),
    }
}

/// Converts metrics of cgroup v2, whose times are in microseconds.
fn of_v2(metrics: &cgroups_v2::metrics::Metrics) -> Usage {
    let (cpu, memory) = (metrics.cpu.get_or_default(), metrics.memory.get_or_default());
    let (user, system) = parts(cpu.user_usec, cpu.system_usec);
    Usage {
        cpu_total: Duration::from_micros(cpu.usage_usec),
        cpu_user: user.map(Duration::from_micros),
        cpu_system: system.map(Duration::from_micros),
        throttled_periods: cpu.nr_throttled,
        throttled: Duration::from_micros(cpu.throttled_usec),
        rss_bytes: nonzero(memory.anon),
        cache_bytes: memory.file,
        memory_bytes: memory.usage,
        memory_max_bytes: nonzero(memory.max_usage),
        swap_bytes: Some(memory.swap_usage),
        kernel_bytes: None,
        kernel_max_bytes: None,
    }
}

/// Returns user and system time. A shim that knows only the total sends 0 for both.
fn parts(user: u64, system: u64) -> (Option<u64>, Option<u64>) {
    if user == 0 && system == 0 { (None, None) } else { (Some(user), Some(system)) }
}

/// Returns the value of a field that is never 0 for a running task: 0 means that the shim doesn't know it.
fn nonzero(bytes: u64) -> Option<u64> {
    Some(bytes).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(url: &str, message: &impl Message) -> Any {
        Any { type_url: url.to_owned(), value: message.write_to_bytes().unwrap(), ..Any::default() }
    }

    #[test]
    fn v1_counts_nanoseconds_and_swap_on_top_of_memory() {
        let mut metrics = cgroups::metrics::Metrics::new();
        metrics.mut_cpu().mut_usage().total = 3_000;
        metrics.mut_memory().mut_usage().usage = 100;
        metrics.mut_memory().mut_swap().usage = 130;
        metrics.mut_memory().total_rss = 60;
        let usage = Usage::parse(&packed("io.containerd.cgroups.v1.Metrics", &metrics)).unwrap();
        assert_eq!(usage.cpu_total, Duration::from_micros(3));
        assert_eq!((usage.memory_bytes, usage.swap_bytes, usage.rss_bytes), (100, Some(30), Some(60)));
        metrics.mut_memory().mut_swap().usage = 0;
        let uncounted = Usage::parse(&packed("io.containerd.cgroups.v1.Metrics", &metrics)).unwrap();
        assert_eq!(uncounted.swap_bytes, None);
        assert_eq!((usage.cpu_user, usage.cpu_system), (None, None));
        metrics.mut_cpu().mut_usage().user = 1_000;
        metrics.mut_memory().total_rss = 0;
        let usage = Usage::parse(&packed("io.containerd.cgroups.v1.Metrics", &metrics)).unwrap();
        assert_eq!(
            (usage.cpu_user, usage.cpu_system),
            (Some(Duration::from_micros(1)), Some(Duration::ZERO))
        );
        assert_eq!(usage.rss_bytes, None);
    }

    #[test]
    fn v2_counts_microseconds() {
        let mut metrics = cgroups_v2::metrics::Metrics::new();
        metrics.mut_cpu().usage_usec = 3_000;
        metrics.mut_memory().anon = 60;
        let usage =
            Usage::parse(&packed("type.googleapis.com/io.containerd.cgroups.v2.Metrics", &metrics)).unwrap();
        assert_eq!(usage.cpu_total, Duration::from_millis(3));
        assert_eq!((usage.rss_bytes, usage.memory_max_bytes), (Some(60), None));
        metrics.mut_memory().max_usage = 90;
        let newer = Usage::parse(&packed("io.containerd.cgroups.v2.Metrics", &metrics)).unwrap();
        assert_eq!(newer.memory_max_bytes, Some(90));
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn messages() {
        crate::fuzz::bytes("shim-metrics", |message| {
            for url in [V1_URL, "types.containerd.io/io.containerd.cgroups.v2.Metrics"] {
                let metrics = Any { type_url: url.to_owned(), value: message.to_vec(), ..Any::default() };
                let Ok(usage) = Usage::parse(&metrics) else { continue };
                assert_eq!(usage.cpu_user.is_some(), usage.cpu_system.is_some());
            }
        });
    }
}
