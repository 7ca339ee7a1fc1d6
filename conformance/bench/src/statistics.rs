//! Statistics of samples: percentiles and ratios, each with its confidence interval. Knows samples in nanoseconds and
//! their iterations, and not what was measured.
//!
//! An interval contains the true value 19 times out of 20 (95 %), and is computed without an assumption on the shape
//! of the distribution, since calls have long tails. All functions are deterministic.
//!
//! - One series: order statistics. The number of samples out of n that lie below a percentile follows the binomial
//!   distribution, so the samples at two ranks enclose it.
//! - Two series measured in alternation: the median of the ratios of each iteration's two samples. What slows the
//!   machine down for a while slows both samples of an iteration.
//! - Two series from different runs: the ratio of their medians. Its interval is by bootstrap, which draws blocks of
//!   neighbouring samples, since a noisy minute is one event and not hundreds.

use hdrhistogram::Histogram;

use super::report_data::Series;

/// The share of cases that an interval leaves out on either side.
const TAIL: f64 = 0.025;
/// Minimum number of samples for an interval of 95 %. Six samples all lie on one side of the median once in 32 times,
/// fewer more often than once in 20 times.
pub(crate) const LEAST_SAMPLES: usize = 6;
const RESAMPLES: usize = 1000;
const SEED: u64 = 2026;
/// Resolution of histograms in significant digits; three are usual for latencies.
const HISTOGRAM_DIGITS: u8 = 3;

/// A value and its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Sorted samples.
#[derive(Debug, Clone)]
pub(crate) struct Distribution {
    sorted: Vec<u64>,
}

impl Distribution {
    pub(crate) fn of(samples: &[u64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        Self { sorted }
    }

    pub(crate) fn count(&self) -> usize {
        self.sorted.len()
    }

    /// Returns the smallest sample that at least `part` of all samples don't exceed.
    pub(crate) fn percentile(&self, part: f64) -> Option<u64> {
        nearest_rank(&self.sorted, part)
    }

    /// Returns a percentile with its interval, if there are enough samples for one.
    pub(crate) fn estimate(&self, part: f64) -> Option<Estimate> {
        let (low, high) = ranks(self.sorted.len(), part)?;
        let at = |rank: usize| self.sorted[rank - 1] as f64;
        Some(Estimate { value: self.percentile(part)? as f64, low: at(low), high: at(high) })
    }

    pub(crate) fn median(&self) -> Option<Estimate> {
        self.estimate(0.5)
    }

    pub(crate) fn mean(&self) -> Option<f64> {
        let sum: f64 = self.sorted.iter().map(|sample| *sample as f64).sum();
        (!self.sorted.is_empty()).then(|| sum / self.sorted.len() as f64)
    }

    pub(crate) fn least(&self) -> Option<u64> {
        self.sorted.first().copied()
    }

    pub(crate) fn most(&self) -> Option<u64> {
        self.sorted.last().copied()
    }

    /// Returns the samples as a histogram with three significant digits, from which curves are drawn and which other
    /// tools read.
    ///
    /// # Errors
    /// Never fails for times that a clock can give.
    pub(crate) fn histogram(&self) -> anyhow::Result<Histogram<u64>> {
        let mut histogram = Histogram::new(HISTOGRAM_DIGITS)?;
        for sample in &self.sorted {
            histogram.record(*sample)?;
        }
        Ok(histogram)
    }
}

fn nearest_rank<T: Copy>(sorted: &[T], part: f64) -> Option<T> {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Returns the ranks, counted from 1, between which a percentile of `n` samples lies. `None` if too few samples lie
/// beyond.
fn ranks(n: usize, part: f64) -> Option<(usize, usize)> {
    // The logarithm of the probability that exactly `below` samples lie below the percentile, starting with none.
    // Logarithms, since (1/2)^n underflows.
    let mut ln_likely = n as f64 * (1.0 - part).ln();
    let odds = part.ln() - (1.0 - part).ln();
    let (mut so_far, mut low) = (0.0, 0);
    for below in 0..n {
        so_far += ln_likely.exp();
        if so_far <= TAIL {
            low = below + 1;
        }
        if so_far >= 1.0 - TAIL {
            return (low > 0).then_some((low, below + 1));
        }
        ln_likely += ((n - below) as f64).ln() - ((below + 1) as f64).ln() + odds;
    }
    None
}

/// Returns the ratio of the times of `other` to those of `base`, both measured in one run: paired by iteration if each
/// iteration has one sample of both, else as if they were from two runs.
pub(crate) fn ratio_within_run(base: &Series, other: &Series) -> Option<Estimate> {
    match turns(base, other) {
        Some(turns) => ratio_by_turns(&turns),
        None => ratio(&base.samples_ns, &other.samples_ns),
    }
}

/// Returns the samples of both series in iterations in which neither failed. `None` if the iterations don't pair up.
fn turns(base: &Series, other: &Series) -> Option<Vec<(u64, u64)>> {
    let (base, other) = (by_turn(base)?, by_turn(other)?);
    let pairs = base.iter().zip(&other).filter_map(|(base, other)| Some(((*base)?, (*other)?)));
    (base.len() == other.len()).then(|| pairs.collect())
}

/// Returns the sample of each iteration, `None` for a failed call. The result is `None` if calls are concurrent, since
/// an iteration then has several samples.
pub(crate) fn by_turn(series: &Series) -> Option<Vec<Option<u64>>> {
    let count = series.samples_ns.len() + series.failures.len();
    let mut turns = vec![true; count];
    for failure in &series.failures {
        let turn = turns.get_mut(failure.turn as usize)?;
        *turn = false;
    }
    let mut samples = series.samples_ns.iter().copied();
    let turns: Vec<_> =
        turns.into_iter().map(|went_well| went_well.then(|| samples.next()).flatten()).collect();
    (series.key.concurrency <= 1 && samples.next().is_none()).then_some(turns)
}

fn ratio_by_turns(turns: &[(u64, u64)]) -> Option<Estimate> {
    let mut ratios: Vec<f64> = turns.iter().map(|(base, other)| quotient(*other, *base)).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let (low, high) = ranks(ratios.len(), 0.5)?;
    Some(Estimate { value: nearest_rank(&ratios, 0.5)?, low: ratios[low - 1], high: ratios[high - 1] })
}

/// Returns the ratio of the times of `other` to those of `base`, measured in different runs.
pub(crate) fn ratio(base: &[u64], other: &[u64]) -> Option<Estimate> {
    if base.len().min(other.len()) < LEAST_SAMPLES {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let (mut scratch, mut drawn) = (Vec::new(), Vec::with_capacity(RESAMPLES));
    for _ in 0..RESAMPLES {
        let base = redrawn_median(base, &mut random, &mut scratch);
        let other = redrawn_median(other, &mut random, &mut scratch);
        drawn.push(quotient(other, base));
    }
    drawn.sort_unstable_by(f64::total_cmp);
    let value = quotient(Distribution::of(other).percentile(0.5)?, Distribution::of(base).percentile(0.5)?);
    // With few samples, all draws may lie slightly to one side of the value.
    let low = nearest_rank(&drawn, TAIL)?.min(value);
    let high = nearest_rank(&drawn, 1.0 - TAIL)?.max(value);
    Some(Estimate { value, low, high })
}

/// Returns the median of a bootstrap sample of the same size, drawn in blocks of neighbours that wrap around at the
/// end.
fn redrawn_median(samples: &[u64], random: &mut fastrand::Rng, scratch: &mut Vec<u64>) -> u64 {
    let n = samples.len();
    let block = (n as f64).cbrt().ceil() as usize;
    scratch.clear();
    while scratch.len() < n {
        let begin = random.usize(..n);
        scratch.extend((begin..begin + block.min(n - scratch.len())).map(|at| samples[at % n]));
    }
    *scratch.select_nth_unstable((n - 1) / 2).1
}

/// Divides two times. A time of zero, which a coarse clock may give, counts as one nanosecond.
fn quotient(other: u64, base: u64) -> f64 {
    other.max(1) as f64 / base.max(1) as f64
}

#[cfg(test)]
mod tests;
