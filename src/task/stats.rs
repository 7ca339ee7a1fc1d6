//! What a task uses of the machine: sampled once for all who listen, at the pace of the most eager of them, and only
//! while somebody listens.
//!
//! Samples are taken at regular ticks. Whoever wants fewer gets those that come when it is due, and its load is counted
//! since the one that it got last. How a reading looks to Nomad is not known here.
//!
//! Where the shim would only read the task's cgroup, that is done here: asking it would take ten times as long.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::{Phase, Task};
use crate::cgroup::{Cgroup, Usage};
use crate::shim::{self, Connection};

/// One sample as a listener gets it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub at: SystemTime,
    pub usage: Usage,
    /// None in the first, which has nothing to be measured against.
    pub load: Option<Load>,
}

/// How many cores were in use, on average since the reading before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    pub total: f64,
    pub user: f64,
    pub system: f64,
}

#[derive(Clone, Copy)]
struct Sample {
    usage: Usage,
    at: SystemTime,
    /// The same moment by the clock that nobody sets.
    taken: Instant,
}

/// A task's only reader of its statistics.
pub(super) struct Sampler {
    least_interval: Duration,
    rota: Mutex<Rota>,
    /// Somebody has come or gone.
    changed: Notify,
    /// The task is being destroyed.
    over: CancellationToken,
}

impl Task {
    /// Readings at the interval that is asked for, but not more often than the operator wants. The first comes at once;
    /// one that fails is left out; the stream ends with the task.
    pub(crate) fn stats(&self, asked: Option<Duration>) -> Readings {
        let sampler = &self.stats;
        let interval = asked.unwrap_or_default().max(sampler.least_interval);
        let (readings, is_first) = sampler.rota().join(interval, Instant::now());
        if is_first {
            let ended = ended(self.phase.clone(), sampler.over.clone());
            let source = Source {
                cgroup: shim::counts_in_cgroup(&self.saved.shim_binary).then(|| self.saved.cgroup.clone()),
                connection: self.connection.clone(),
            };
            tokio::spawn(Arc::clone(sampler).run(source, self.id().to_owned(), ended));
        } else {
            sampler.changed.notify_one();
        }
        Readings { readings, sampler: Arc::clone(sampler) }
    }

    /// Ends the streams of all who listen: the task is about to go.
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
            rota: Mutex::default(),
            changed: Notify::new(),
            over: CancellationToken::new(),
        }
    }

    fn rota(&self) -> MutexGuard<'_, Rota> {
        self.rota.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Samples until nobody listens any more, or the task has ended.
    async fn run(self: Arc<Self>, source: Source, task_id: String, ended: impl Future<Output = ()>) {
        let mut ended = std::pin::pin!(ended);
        loop {
            let next = self.rota().next(Instant::now());
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
                tracing::debug!(task = task_id, error, "a sample of the task's use is left out");
            }
            self.rota().deliver(tick, sample.ok());
        }
        self.rota().close();
    }
}

/// Where a task's samples are from.
struct Source {
    /// None where what the task uses is counted elsewhere.
    cgroup: Option<Cgroup>,
    connection: Connection,
}

impl Source {
    async fn sample(&self) -> Result<Sample, String> {
        let read = match &self.cgroup {
            Some(cgroup) => read(cgroup.clone()).await,
            None => return self.ask().await,
        };
        match read {
            Ok(sample) => Ok(sample),
            // A kernel may have its controllers where only the shim finds them.
            Err(unread) => self.ask().await.map_err(|unasked| format!("{unread}; and {unasked}")),
        }
    }

    async fn ask(&self) -> Result<Sample, String> {
        let metrics = self.connection.metrics().await.map_err(|error| error.to_string())?;
        let usage = Usage::parse(&metrics).map_err(|error| format!("unreadable metrics: {error}"))?;
        // Whatever runs has used some. The shim in Rust does not look it up on cgroup v1.
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

/// Tasks are read one after the other: a read is short, and all at once would have a thread each.
static READER: Semaphore = Semaphore::const_new(1);

async fn read(cgroup: Cgroup) -> Result<Sample, String> {
    let turn = READER.acquire().await.map_err(|error| error.to_string())?;
    let read = tokio::task::spawn_blocking(move || {
        let sample = cgroup.usage().map(Sample::now);
        drop(turn);
        sample
    });
    read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// A listener's stream. Dropped, it costs nothing any more.
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

/// Who listens, who gets which sample, and when the next is to be taken. Has no clock of its own.
#[derive(Default)]
struct Rota {
    listeners: Vec<Listener>,
    /// When the last sample was due, whether or not it could be taken.
    tick: Option<Instant>,
    latest: Option<Sample>,
    is_running: bool,
}

struct Listener {
    interval: Duration,
    due: Instant,
    last: Option<Sample>,
    /// Holds one: who does not read it misses the next.
    readings: mpsc::Sender<Reading>,
}

impl Rota {
    /// Adds a listener, and says whether it is on it to set the sampler going. What was sampled within everybody's
    /// interval is current, and its first reading.
    fn join(&mut self, interval: Duration, now: Instant) -> (mpsc::Receiver<Reading>, bool) {
        let (sender, readings) = mpsc::channel(1);
        self.listeners.push(Listener { interval, due: now, last: None, readings: sender });
        let shortest = self.shortest().unwrap_or(interval);
        let current = self.latest.filter(|sample| now.duration_since(sample.taken) < shortest);
        if let (Some(listener), Some(sample)) = (self.listeners.last_mut(), current) {
            listener.give(self.tick.unwrap_or(now), sample);
        }
        (readings, !std::mem::replace(&mut self.is_running, true))
    }

    /// When to take the next sample. None where nobody listens: then the sampler has to end.
    fn next(&mut self, now: Instant) -> Option<Instant> {
        self.listeners.retain(|listener| !listener.readings.is_closed());
        let Some(shortest) = self.shortest() else {
            self.is_running = false;
            return None;
        };
        let next = self.tick.map_or(now, |tick| tick + shortest);
        // What was missed is not made up for.
        Some(if next + slack(shortest) < now { now } else { next })
    }

    /// Hands out the sample of a tick; None is one that could not be taken.
    fn deliver(&mut self, tick: Instant, sample: Option<Sample>) {
        self.tick = Some(tick);
        let Some(sample) = sample else { return };
        self.latest = Some(sample);
        let latest_due = tick + self.shortest().map_or(Duration::ZERO, slack);
        for listener in self.listeners.iter_mut().filter(|listener| listener.due <= latest_due) {
            listener.give(tick, sample);
        }
    }

    fn close(&mut self) {
        self.listeners.clear();
        self.is_running = false;
    }

    fn shortest(&self) -> Option<Duration> {
        self.listeners.iter().map(|listener| listener.interval).min()
    }
}

/// By how much a tick may miss what it was meant for.
fn slack(interval: Duration) -> Duration {
    interval / 4
}

impl Listener {
    fn give(&mut self, tick: Instant, sample: Sample) {
        let load = self.last.map(|last| Load::between(&last, &sample));
        if self.readings.try_send(Reading { at: sample.at, usage: sample.usage, load }).is_ok() {
            self.last = Some(sample);
            self.due = tick + self.interval;
        }
    }
}

impl Load {
    fn between(before: &Sample, now: &Sample) -> Self {
        let wall = now.taken.duration_since(before.taken).as_secs_f64();
        let cores = |of: fn(&Usage) -> Duration| {
            let used = of(&now.usage).saturating_sub(of(&before.usage)).as_secs_f64();
            if wall > 0.0 { used / wall } else { 0.0 }
        };
        Self {
            total: cores(|usage| usage.cpu_total),
            user: cores(|usage| usage.cpu_user),
            system: cores(|usage| usage.cpu_system),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A task that keeps two cores busy, one of them in the kernel, by a clock of the test's.
    struct Play {
        rota: Rota,
        start: Instant,
        now: Duration,
        samples: Vec<Duration>,
    }

    impl Play {
        fn new() -> Self {
            Self { rota: Rota::default(), start: Instant::now(), now: Duration::ZERO, samples: Vec::new() }
        }

        fn join(&mut self, interval: Duration) -> mpsc::Receiver<Reading> {
            self.rota.join(interval, self.start + self.now).0
        }

        fn sample(&self) -> Sample {
            let usage = Usage {
                cpu_total: self.now * 2,
                cpu_user: self.now,
                cpu_system: self.now,
                ..Usage::default()
            };
            Sample { usage, at: SystemTime::UNIX_EPOCH + self.now, taken: self.start + self.now }
        }

        /// Lets time pass; every sample is late by a little.
        fn run(&mut self, until: Duration, mut heard: impl FnMut(Duration)) {
            while let Some(tick) = self.rota.next(self.start + self.now) {
                if tick > self.start + until {
                    break;
                }
                self.now = self.now.max(tick.duration_since(self.start)) + ms(3);
                self.samples.push(tick.duration_since(self.start));
                self.rota.deliver(tick, Some(self.sample()));
                heard(tick.duration_since(self.start));
            }
            self.now = until;
        }
    }

    /// The ticks at which each listener gets something.
    fn heard(play: &mut Play, until: Duration, listeners: &mut [mpsc::Receiver<Reading>]) -> Vec<Vec<u128>> {
        let mut all = vec![Vec::new(); listeners.len()];
        play.run(until, |tick| {
            for (listener, heard) in listeners.iter_mut().zip(&mut all) {
                while listener.try_recv().is_ok() {
                    heard.push(tick.as_millis());
                }
            }
        });
        all
    }

    #[test]
    fn two_of_a_pace_share_each_sample() {
        let mut play = Play::new();
        let mut both = [play.join(ms(1000)), play.join(ms(1000))];
        let heard = heard(&mut play, ms(3000), &mut both);
        assert_eq!(heard, [[0, 1000, 2000, 3000], [0, 1000, 2000, 3000]]);
        assert_eq!(play.samples.len(), 4);
    }

    #[test]
    fn the_slower_one_gets_every_so_many_th() {
        let mut play = Play::new();
        let mut all = [play.join(ms(300)), play.join(ms(600)), play.join(ms(1000))];
        let heard = heard(&mut play, ms(2400), &mut all);
        assert_eq!(heard[0], [0, 300, 600, 900, 1200, 1500, 1800, 2100, 2400]);
        assert_eq!(heard[1], [0, 600, 1200, 1800, 2400]);
        assert_eq!(heard[2], [0, 1200, 2400]);
        assert_eq!(play.samples.len(), 9);
    }

    #[test]
    fn one_who_comes_late_gets_what_is_current_and_then_joins_the_others() {
        let mut play = Play::new();
        let mut all = vec![play.join(ms(1000))];
        assert_eq!(heard(&mut play, ms(1500), &mut all), [[0, 1000]]);
        let mut late = play.join(ms(1000));
        let current = late.try_recv().unwrap();
        assert_eq!((current.at, current.load), (SystemTime::UNIX_EPOCH + ms(1003), None));
        all.push(late);
        assert_eq!(heard(&mut play, ms(2500), &mut all), [[2000], [2000]]);
        assert_eq!(play.samples.len(), 3);
    }

    #[test]
    fn one_in_more_of_a_hurry_does_not_wait_for_the_slow() {
        let mut play = Play::new();
        let mut slow = play.join(ms(60_000));
        play.run(ms(30_000), |_| {});
        let mut fast = play.join(ms(1000));
        assert!(fast.try_recv().is_err(), "half a minute old");
        play.run(ms(31_500), |_| while fast.try_recv().is_ok() {});
        assert_eq!(play.samples, [ms(0), ms(30_000), ms(31_000)]);
        drop(fast);
        // The slow one has its first; its next is due a minute after it.
        assert!(slow.try_recv().is_ok() && slow.try_recv().is_err());
        play.run(ms(95_000), |_| {});
        assert_eq!(play.samples.last(), Some(&ms(91_000)));
    }

    #[test]
    fn load_is_counted_over_the_listeners_own_interval_and_over_what_it_missed() {
        let mut play = Play::new();
        let (mut fast, mut slow) = (play.join(ms(100)), play.join(ms(1000)));
        let mut loads = Vec::new();
        play.run(ms(1000), |_| while fast.try_recv().is_ok() {});
        loads.extend(slow.try_recv().unwrap().load);
        play.run(ms(2000), |_| loads.extend(slow.try_recv().ok().and_then(|reading| reading.load)));
        assert_eq!(loads, [Load { total: 2.0, user: 1.0, system: 1.0 }]);
        // The fast one was not there for ten of its own.
        assert!(fast.try_recv().unwrap().load.is_some() && fast.try_recv().is_err());
        play.run(ms(2100), |_| {});
        assert_eq!(fast.try_recv().unwrap().load.map(|load| load.total), Some(2.0));
    }

    #[test]
    fn a_sample_that_fails_is_left_out_and_the_next_one_comes_in_its_turn() {
        let mut play = Play::new();
        let mut listener = play.join(ms(1000));
        let tick = play.rota.next(play.start).unwrap();
        play.rota.deliver(tick, None);
        assert_eq!(listener.try_recv().err(), Some(mpsc::error::TryRecvError::Empty));
        assert_eq!(play.rota.next(play.start), Some(tick + ms(1000)));
    }

    #[test]
    fn without_listeners_nothing_is_sampled_and_what_was_missed_is_not_made_up_for() {
        let mut play = Play::new();
        assert!(play.rota.next(play.start).is_none());
        let (listener, is_first) = play.rota.join(ms(1000), play.start);
        assert!(is_first);
        play.run(ms(2500), |_| {});
        drop(listener);
        assert!(play.rota.next(play.start + play.now).is_none());
        play.now = ms(60_000);
        let (_again, is_first) = play.rota.join(ms(1000), play.start + play.now);
        assert!(is_first);
        assert_eq!(play.rota.next(play.start + play.now), Some(play.start + play.now));
    }
}
