//! Collects the samples of a run by series. Knows nothing of how they are measured.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;

use super::call::Call;
use super::cost::{Memory, Sum};
use super::report_data::{Failure, Key, Series};
use super::target::Target;

#[derive(Debug, Default)]
pub(crate) struct Samples {
    series: Vec<Series>,
    costs: HashMap<Key, Sum>,
    places: HashMap<Key, usize>,
}

/// The conditions that series of one target have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conditions {
    pub(crate) setup: String,
    pub(crate) path: &'static str,
    pub(crate) concurrency: u32,
    pub(crate) held: u32,
}

impl Conditions {
    pub(crate) fn of(target: &Target, concurrency: u32, held: u32) -> Self {
        Self { setup: target.setup.clone(), path: target.path.name(), concurrency, held }
    }

    pub(crate) fn key(&self, call: Call, payload: usize) -> Key {
        self.key_of(&call.name(), payload)
    }

    pub(crate) fn key_of(&self, call: &str, payload: usize) -> Key {
        Key {
            setup: self.setup.clone(),
            path: self.path.to_owned(),
            call: call.to_owned(),
            concurrency: self.concurrency,
            payload_bytes: payload as u64,
            held: self.held,
        }
    }
}

impl Samples {
    /// Returns the series of this key, which is created if there is none yet.
    pub(crate) fn expect(&mut self, key: Key) -> &mut Series {
        let place = *self.places.entry(key.clone()).or_insert_with(|| {
            self.series.push(Series { key, samples_ns: Vec::new(), failures: Vec::new(), cost: None });
            self.series.len() - 1
        });
        &mut self.series[place]
    }

    pub(crate) fn record(&mut self, key: Key, turn: u32, outcome: Result<Duration>) {
        let series = self.expect(key);
        match outcome {
            Ok(took) => series.samples_ns.push(nanoseconds(took)),
            Err(error) => series.failures.push(Failure { turn, error: format!("{error:#}") }),
        }
    }

    /// Returns the sums of the costs of a series.
    pub(crate) fn cost(&mut self, key: Key) -> &mut Sum {
        self.costs.entry(key).or_default()
    }

    /// Sets the cost of the series that `is_theirs` selects, from the sums and the current memory usage.
    pub(crate) fn settle(&mut self, is_theirs: impl Fn(&Key) -> bool, memory: &Memory) {
        for series in self.series.iter_mut().filter(|series| is_theirs(&series.key)) {
            series.cost = self.costs.get(&series.key).map(|sum| sum.cost(memory));
        }
    }

    /// Returns the series up to now, in the order in which they were created.
    pub(crate) fn series(&self) -> &[Series] {
        &self.series
    }

    /// Returns all series, in the order in which they were created.
    pub(crate) fn into_series(self) -> Vec<Series> {
        self.series
    }
}

/// Returns a time as samples have it.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn series_are_kept_apart_by_all_that_they_were_taken_on_and_failures_are_kept() {
        let here = Conditions { setup: "a".to_owned(), path: "direct", concurrency: 1, held: 0 };
        let there = Conditions { held: 10, ..here.clone() };
        let mut samples = Samples::default();
        samples.record(here.key(Call::Exec, 0), 0, Ok(Duration::from_nanos(7)));
        samples.record(there.key(Call::Exec, 0), 0, Ok(Duration::from_nanos(8)));
        samples.record(here.key(Call::Exec, 4096), 0, Ok(Duration::from_nanos(9)));
        samples.record(here.key(Call::Exec, 0), 3, Err(anyhow!("no")));
        let series = samples.into_series();
        assert_eq!(series.len(), 3);
        assert_eq!(series[0].samples_ns, [7]);
        assert_eq!(series[0].failures, [Failure { turn: 3, error: "no".to_owned() }]);
        assert_eq!((&*series[2].key.call, series[2].key.payload_bytes), ("exec", 4096));
    }
}
