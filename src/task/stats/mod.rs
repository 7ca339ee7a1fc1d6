//! A task's statistics: sampled once for all listeners, at the pace of the one with the shortest interval, and only
//! while somebody listens.
//!
//! Samples are taken at regular ticks. A listener with a longer interval gets the samples that come when it is due, and
//! its load is counted from the last one that it got. How a reading looks to Nomad is not known here.
//!
//! Where the shim would only read the task's cgroup, the cgroup is read here: asking the shim would take ten times as
//! long.

mod reader;
mod schedule;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::{Phase, Task};
use crate::cgroup::{Usage, UsageFiles};
use crate::shim::Connection;
use crate::sys::error_chain::Chained;
use schedule::SampleSchedule;

/// Maximum interval, beyond which no clock can be asked.
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Origin of all tasks' ticks, so that many are at the same moment.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A sample, as a listener gets it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub at: SystemTime,
    pub usage: Usage,
    /// Load since the listener's reading before; `None` in the first one.
    pub load: Option<Load>,
}

/// The number of cores in use, on average since the reading before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    pub total: f64,
    /// `None` where the shim doesn't tell user and system time apart.
    pub user: Option<f64>,
    pub system: Option<f64>,
}

#[derive(Clone, Copy)]
struct Sample {
    usage: Usage,
    at: SystemTime,
    /// Moment of the sample by the monotonic clock.
    taken: Instant,
}

/// The sampler of one task: the only reader of its statistics.
pub(super) struct Sampler {
    least_interval: Duration,
    schedule: Mutex<SampleSchedule>,
    /// Notified when a listener has come or gone.
    changed: Notify,
    /// Cancelled when the task is being destroyed.
    over: CancellationToken,
}

impl Task {
    /// Returns the task's readings at the interval that is asked for, but not more often than the operator wants. The
    /// first comes at once; one that fails is left out; the stream ends with the task.
    pub(crate) fn stats(&self, requested: Option<Duration>) -> Readings {
        let sampler = &self.stats;
        let interval = requested.unwrap_or_default().min(LONGEST_INTERVAL).max(sampler.least_interval);
        let (readings, is_first) = sampler.schedule().join(interval, Instant::now());
        if is_first {
            let ended = ended(self.phase.clone(), sampler.over.clone());
            let source = Source {
                files: self
                    .driver_state
                    .family()
                    .counts_in_cgroup()
                    .then(|| Arc::new(Mutex::new(UsageFiles::of(self.driver_state.cgroup.clone())))),
                connection: self.connection.clone(),
            };
            tokio::spawn(Arc::clone(sampler).run(source, self.id().to_owned(), ended));
        } else {
            sampler.changed.notify_one();
        }
        Readings { readings, sampler: Arc::clone(sampler) }
    }

    /// Ends the streams of all listeners: the task is about to go.
    pub(super) fn end_stats(&self) {
        self.stats.over.cancel();
    }
}

async fn ended(mut phase: tokio::sync::watch::Receiver<Phase>, over: CancellationToken) {
    tokio::select! {
        _ = phase.wait_for(|phase| matches!(phase, Phase::Exited(_))) => {}
        () = over.cancelled() => {}
    }
}

impl Sampler {
    pub(super) fn new(least_interval: Duration) -> Self {
        Self {
            least_interval,
            schedule: Mutex::new(SampleSchedule::new(*EPOCH)),
            changed: Notify::new(),
            over: CancellationToken::new(),
        }
    }

    fn schedule(&self) -> MutexGuard<'_, SampleSchedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Samples until nobody listens any more, or the task has ended.
    async fn run(self: Arc<Self>, source: Source, task_id: String, ended: impl Future<Output = ()>) {
        let mut ended = std::pin::pin!(ended);
        loop {
            let next = self.schedule().next(Instant::now());
            let Some(tick) = next else { return };
            tokio::select! {
                biased;
                () = &mut ended => break,
                () = self.changed.notified() => continue,
                () = tokio::time::sleep_until(tick.into()) => {}
            }
            let sample = tokio::select! {
                biased;
                () = &mut ended => break,
                sample = source.sample() => sample,
            };
            if let Err(error) = &sample {
                tracing::debug!(task = task_id, error, "a sample of the task's usage is skipped");
            }
            self.schedule().deliver(tick, sample.ok());
        }
        self.schedule().close();
    }
}

/// The source of a task's samples: the files of its cgroup, or its shim.
struct Source {
    /// `None` where the kernel does not count in the task's cgroup what the task uses.
    files: Option<Arc<Mutex<UsageFiles>>>,
    connection: Connection,
}

impl Source {
    async fn sample(&self) -> Result<Sample, String> {
        let read = match &self.files {
            Some(files) => {
                let files = Arc::clone(files);
                let read = move || files.lock().unwrap_or_else(PoisonError::into_inner).read();
                reader::read(move || read().map(Sample::now)).await
            }
            None => return self.ask().await,
        };
        match read {
            Ok(sample) => Ok(sample),
            // A kernel may have its controllers where only the shim finds them.
            Err(unread) => self.ask().await.map_err(|unasked| format!("{unread}; and {unasked}")),
        }
    }

    async fn ask(&self) -> Result<Sample, String> {
        let metrics = self.connection.metrics().await.map_err(|error| error.chain().to_string())?;
        let usage = Usage::parse(&metrics).map_err(|error| format!("unreadable metrics: {error}"))?;
        // Every task that runs has used some CPU time. The shim in Rust does not look it up on cgroup v1.
        if usage.cpu_total.is_zero() {
            return Err("the shim counts no CPU time".to_owned());
        }
        Ok(Sample::now(usage))
    }
}

impl Sample {
    fn now(usage: Usage) -> Self {
        Self { usage, at: SystemTime::now(), taken: Instant::now() }
    }
}

/// A listener's stream of readings. Dropping it ends the sampling for this listener.
pub(crate) struct Readings {
    readings: mpsc::Receiver<Reading>,
    sampler: Arc<Sampler>,
}

impl Stream for Readings {
    type Item = Reading;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Reading>> {
        self.readings.poll_recv(context)
    }
}

impl Drop for Readings {
    fn drop(&mut self) {
        self.readings.close();
        self.sampler.changed.notify_one();
    }
}

impl Load {
    fn between(before: &Sample, now: &Sample) -> Self {
        let wall = now.taken.duration_since(before.taken).as_secs_f64();
        let cores = |of: fn(&Usage) -> Option<Duration>| {
            let used = of(&now.usage)?.saturating_sub(of(&before.usage)?).as_secs_f64();
            Some(if wall > 0.0 { used / wall } else { 0.0 })
        };
        Self {
            total: cores(|usage| Some(usage.cpu_total)).unwrap_or_default(),
            user: cores(|usage| usage.cpu_user),
            system: cores(|usage| usage.cpu_system),
        }
    }
}
