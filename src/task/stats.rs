//! What a task uses of the machine, again and again for whoever listens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nomad_proto::driver as pb;
use tokio_stream::Stream;

use super::Task;
use crate::cgroup::Usage;

/// How often, and against what CPU ticks are counted.
pub(super) struct Sampler {
    least_interval: Duration,
    total_mhz: u64,
}

impl Sampler {
    pub(super) fn new(least_interval: Duration, total_mhz: u64) -> Self {
        Self { least_interval, total_mhz }
    }
}

#[derive(Clone, Copy)]
struct Sample {
    usage: Usage,
    at: Instant,
}

impl Task {
    /// Samples at the interval that is asked for, but not more often than the operator wants. The first comes at once;
    /// one that fails is left out; the stream ends with the task.
    pub(crate) fn stats(
        self: Arc<Self>,
        asked: Option<Duration>,
    ) -> impl Stream<Item = pb::TaskResourceUsage> {
        let interval = asked.unwrap_or_default().max(self.stats.least_interval);
        let nothing_yet: Option<Sample> = None;
        futures::stream::unfold((self, nothing_yet), move |(task, mut last)| async move {
            let mut ended = task.phase.clone();
            loop {
                if last.is_some() {
                    tokio::select! {
                        () = tokio::time::sleep(interval) => {}
                        _ = ended.wait_for(|phase| matches!(phase, super::Phase::Exited(_))) => return None,
                    }
                }
                if task.has_exited() {
                    return None;
                }
                let Some(sample) = task.sample().await else {
                    tokio::time::sleep(interval).await;
                    continue;
                };
                let usage = resource_usage(&sample, last.as_ref(), task.stats.total_mhz);
                last = Some(sample);
                return Some((usage, (task, last)));
            }
        })
    }

    async fn sample(&self) -> Option<Sample> {
        let metrics = self.connection.metrics().await;
        let parsed = metrics.map_err(|error| error.to_string()).and_then(|metrics| {
            Usage::parse(&metrics).map_err(|error| format!("unreadable metrics: {error}"))
        });
        match parsed {
            Ok(usage) => Some(Sample { usage, at: Instant::now() }),
            Err(error) => {
                tracing::debug!(task = self.id(), error, "a sample of the task's use is left out");
                None
            }
        }
    }
}

/// The first sample has nothing to be measured against, and shows no CPU in use.
fn resource_usage(now: &Sample, before: Option<&Sample>, total_mhz: u64) -> pb::TaskResourceUsage {
    let percent = |of: fn(&Usage) -> Duration| {
        before.map_or(0.0, |before| {
            let wall = now.at.duration_since(before.at).as_secs_f64();
            let used = of(&now.usage).saturating_sub(of(&before.usage)).as_secs_f64();
            if wall > 0.0 { used / wall * 100.0 } else { 0.0 }
        })
    };
    let total = percent(|usage| usage.cpu_total);
    let usage = &now.usage;
    pb::TaskResourceUsage {
        cpu: Some(pb::CpuUsage {
            system_mode: percent(|usage| usage.cpu_system),
            user_mode: percent(|usage| usage.cpu_user),
            total_ticks: total / 100.0 * mhz_per_core(total_mhz),
            throttled_periods: usage.throttled_periods,
            throttled_time: u64::try_from(usage.throttled.as_nanos()).unwrap_or(u64::MAX),
            percent: total,
            measured_fields: cpu_fields(),
        }),
        memory: Some(pb::MemoryUsage {
            rss: usage.rss_bytes,
            cache: usage.cache_bytes,
            max_usage: usage.memory_max_bytes,
            kernel_usage: usage.kernel_bytes.unwrap_or(0),
            kernel_max_usage: usage.kernel_max_bytes.unwrap_or(0),
            measured_fields: memory_fields(usage),
            usage: usage.memory_bytes,
            swap: usage.swap_bytes,
        }),
    }
}

fn mhz_per_core(total_mhz: u64) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    total_mhz as f64 / cores as f64
}

fn cpu_fields() -> Vec<i32> {
    use pb::cpu_usage::Fields::{Percent, SystemMode, ThrottledPeriods, ThrottledTime, TotalTicks, UserMode};
    [SystemMode, UserMode, TotalTicks, ThrottledPeriods, ThrottledTime, Percent].map(Into::into).to_vec()
}

fn memory_fields(usage: &Usage) -> Vec<i32> {
    use pb::memory_usage::Fields::{Cache, KernelMaxUsage, KernelUsage, MaxUsage, Rss, Swap, Usage};
    let mut fields = vec![Rss, Cache, MaxUsage, Usage, Swap];
    if usage.kernel_bytes.is_some() {
        fields.extend([KernelUsage, KernelMaxUsage]);
    }
    fields.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_in_use_all_the_time_is_a_hundred_percent() {
        let start = Instant::now();
        let sample = |cpu_ms, after_ms| Sample {
            usage: Usage { cpu_total: Duration::from_millis(cpu_ms), ..Usage::default() },
            at: start + Duration::from_millis(after_ms),
        };
        let first = resource_usage(&sample(700, 0), None, 4000).cpu.unwrap();
        assert_eq!(first.percent, 0.0);
        let next = resource_usage(&sample(1700, 1000), Some(&sample(700, 0)), 4000).cpu.unwrap();
        assert!((next.percent - 100.0).abs() < 1e-9);
        assert!((next.total_ticks - mhz_per_core(4000)).abs() < 1e-6);
    }
}
