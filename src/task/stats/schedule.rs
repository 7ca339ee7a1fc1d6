//! The schedule of a task's samples: its listeners, which of them gets which sample, and when the next one is due. Has
//! no clock of its own.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Load, Reading, Sample};

/// Minimum number of moments in an interval at which samples can be taken. A task waits longer once to get to such a
/// moment.
const LEAST_STEPS: u64 = 4;
const LONGEST_STEP: Duration = Duration::from_millis(250);

pub(super) struct SampleSchedule {
    epoch: Instant,
    listeners: Vec<Listener>,
    /// Time when the last sample was due, whether or not it could be taken.
    tick: Option<Instant>,
    latest: Option<Sample>,
    is_running: bool,
}

struct Listener {
    interval: Duration,
    due: Instant,
    last: Option<Sample>,
    /// Channel for one reading: a listener that does not read it misses the next.
    readings: mpsc::Sender<Reading>,
}

impl SampleSchedule {
    pub(super) fn new(epoch: Instant) -> Self {
        Self { epoch, listeners: Vec::new(), tick: None, latest: None, is_running: false }
    }

    /// Adds a listener, and returns whether the caller has to start the sampler. A sample that is younger than the
    /// shortest interval is current, and the listener's first reading.
    pub(super) fn join(&mut self, interval: Duration, now: Instant) -> (mpsc::Receiver<Reading>, bool) {
        let (sender, readings) = mpsc::channel(1);
        self.listeners.push(Listener { interval, due: now, last: None, readings: sender });
        let shortest = self.shortest().unwrap_or(interval);
        let current = self.latest.filter(|sample| now.duration_since(sample.taken) < shortest);
        if let (Some(listener), Some(sample)) = (self.listeners.last_mut(), current) {
            listener.give(self.tick.unwrap_or(now), sample);
        }
        (readings, !std::mem::replace(&mut self.is_running, true))
    }

    /// Returns when to take the next sample; `None` if nobody listens, at which the sampler has to end.
    pub(super) fn next(&mut self, now: Instant) -> Option<Instant> {
        self.listeners.retain(|listener| !listener.readings.is_closed());
        let Some(shortest) = self.shortest() else {
            self.is_running = false;
            return None;
        };
        let next = self.tick.map_or(now, |tick| self.in_step(tick + shortest, shortest));
        // Samples that were missed are not made up for.
        Some(if next + slack(shortest) < now { now } else { next })
    }

    /// Hands out the sample of a tick; `None` if it could not be taken.
    pub(super) fn deliver(&mut self, tick: Instant, sample: Option<Sample>) {
        self.tick = Some(tick);
        let Some(sample) = sample else { return };
        self.latest = Some(sample);
        let latest_due = tick + self.shortest().map_or(Duration::ZERO, slack);
        for listener in self.listeners.iter_mut().filter(|listener| listener.due <= latest_due) {
            listener.give(tick, sample);
        }
    }

    pub(super) fn close(&mut self) {
        self.listeners.clear();
        self.is_running = false;
    }

    /// Returns the first moment, from `moment` on, at which other tasks with the same interval are sampled, too:
    /// together the samples cost half of what they cost one by one, each of which wakes threads.
    fn in_step(&self, moment: Instant, interval: Duration) -> Instant {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // A whole number of steps, or each tick would have to wait for one.
        let steps = nanos(interval).div_ceil(nanos(LONGEST_STEP)).max(LEAST_STEPS);
        let step = nanos(interval) / steps;
        if step == 0 {
            return moment;
        }
        // An interval that can't be divided has some nanoseconds over.
        let since = nanos(moment.duration_since(self.epoch)).saturating_sub(steps);
        self.epoch + Duration::from_nanos(since.div_ceil(step).saturating_mul(step))
    }

    fn shortest(&self) -> Option<Duration> {
        self.listeners.iter().map(|listener| listener.interval).min()
    }
}

/// Returns the tolerance between a tick and the moment that it was meant for.
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::cgroup::Usage;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A task that keeps two cores busy, one of them in the kernel, by a clock of the test's.
    struct Play {
        schedule: SampleSchedule,
        start: Instant,
        now: Duration,
        samples: Vec<Duration>,
    }

    impl Play {
        fn new() -> Self {
            let start = Instant::now();
            Self { schedule: SampleSchedule::new(start), start, now: Duration::ZERO, samples: Vec::new() }
        }

        fn join(&mut self, interval: Duration) -> mpsc::Receiver<Reading> {
            self.schedule.join(interval, self.start + self.now).0
        }

        fn sample(&self) -> Sample {
            let usage = Usage {
                cpu_total: self.now * 2,
                cpu_user: Some(self.now),
                cpu_system: Some(self.now),
                ..Usage::default()
            };
            Sample { usage, at: SystemTime::UNIX_EPOCH + self.now, taken: self.start + self.now }
        }

        /// Lets time pass; every sample is late by a little.
        fn run(&mut self, until: Duration, mut heard: impl FnMut(Duration)) {
            while let Some(tick) = self.schedule.next(self.start + self.now) {
                if tick > self.start + until {
                    break;
                }
                self.now = self.now.max(tick.duration_since(self.start)) + ms(3);
                self.samples.push(tick.duration_since(self.start));
                self.schedule.deliver(tick, Some(self.sample()));
                heard(tick.duration_since(self.start));
            }
            self.now = until;
        }
    }

    /// Returns the ticks at which each listener gets a reading.
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
    fn listeners_of_one_interval_share_samples() {
        let mut play = Play::new();
        let mut both = [play.join(ms(1000)), play.join(ms(1000))];
        let heard = heard(&mut play, ms(3000), &mut both);
        assert_eq!(heard, [[0, 1000, 2000, 3000], [0, 1000, 2000, 3000]]);
        assert_eq!(play.samples.len(), 4);
    }

    /// Returns the moments at which a task is sampled that is first listened to at `from`.
    fn sampled(from: Duration, interval: Duration, until: Duration) -> Vec<Duration> {
        let mut play = Play::new();
        play.now = from;
        let mut listener = play.join(interval);
        play.run(until, |_| while listener.try_recv().is_ok() {});
        play.samples
    }

    #[test]
    fn samples_of_tasks_are_aligned_and_never_early() {
        assert_eq!(sampled(ms(130), ms(1000), ms(3300)), [130, 1250, 2250, 3250].map(ms));
        assert_eq!(sampled(ms(240), ms(1000), ms(3300)), [240, 1250, 2250, 3250].map(ms));
        assert_eq!(sampled(ms(260), ms(1000), ms(3300)), [260, 1500, 2500].map(ms));
        // The step of a long interval is no longer than that of a short one.
        assert_eq!(sampled(ms(10), ms(60_000), ms(130_000)), [10, 60_250, 120_250].map(ms));
    }

    #[test]
    fn an_interval_that_can_not_be_divided_keeps_its_pace() {
        for (interval, count) in [(ms(1000) / 3, 301), (ms(1100), 91), (ms(10_000) / 7, 71)] {
            let samples = sampled(ms(0), interval, ms(100_000));
            let keeps_pace =
                |pair: &[Duration]| (pair[1] - pair[0]).abs_diff(interval) < Duration::from_nanos(10);
            assert!(samples.windows(2).all(keeps_pace), "{interval:?}: {samples:?}");
            assert_eq!(samples.len(), count);
        }
    }

    #[test]
    fn a_slower_listener_gets_every_nth_sample() {
        let mut play = Play::new();
        let mut all = [play.join(ms(300)), play.join(ms(600)), play.join(ms(1000))];
        let heard = heard(&mut play, ms(2400), &mut all);
        assert_eq!(heard[0], [0, 300, 600, 900, 1200, 1500, 1800, 2100, 2400]);
        assert_eq!(heard[1], [0, 600, 1200, 1800, 2400]);
        assert_eq!(heard[2], [0, 1200, 2400]);
        assert_eq!(play.samples.len(), 9);
    }

    #[test]
    fn a_late_listener_gets_the_current_sample_and_joins() {
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
    fn a_faster_listener_does_not_wait_for_slower_ones() {
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
        assert_eq!(loads, [Load { total: 2.0, user: Some(1.0), system: Some(1.0) }]);
        // The fast one was not there for ten of its own.
        assert!(fast.try_recv().unwrap().load.is_some() && fast.try_recv().is_err());
        play.run(ms(2100), |_| {});
        assert_eq!(fast.try_recv().unwrap().load.map(|load| load.total), Some(2.0));
    }

    #[test]
    fn a_failed_sample_is_skipped() {
        let mut play = Play::new();
        let mut listener = play.join(ms(1000));
        let tick = play.schedule.next(play.start).unwrap();
        play.schedule.deliver(tick, None);
        assert_eq!(listener.try_recv().err(), Some(mpsc::error::TryRecvError::Empty));
        assert_eq!(play.schedule.next(play.start), Some(tick + ms(1000)));
    }

    #[test]
    fn nothing_is_sampled_without_listeners() {
        let mut play = Play::new();
        assert!(play.schedule.next(play.start).is_none());
        let (listener, is_first) = play.schedule.join(ms(1000), play.start);
        assert!(is_first);
        play.run(ms(2500), |_| {});
        drop(listener);
        assert!(play.schedule.next(play.start + play.now).is_none());
        play.now = ms(60_000);
        let (_again, is_first) = play.schedule.join(ms(1000), play.start + play.now);
        assert!(is_first);
        assert_eq!(play.schedule.next(play.start + play.now), Some(play.start + play.now));
    }
}
