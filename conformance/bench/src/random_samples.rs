//! Random samples with a known distribution, for tests: around a median, with the long tail that calls have.

pub(crate) struct Noise {
    random: fastrand::Rng,
}

impl Noise {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed) }
    }

    /// Returns log-normal samples with a standard deviation of some 10 %. One in fifty is an outlier of up to ten
    /// times as long.
    pub(crate) fn samples(&mut self, median_ns: f64, count: usize) -> Vec<u64> {
        (0..count)
            .map(|_| {
                let normal = (0..12).map(|_| self.random.f64()).sum::<f64>() - 6.0;
                let tail = if self.random.u32(..50) == 0 { 1.0 + 9.0 * self.random.f64() } else { 1.0 };
                (median_ns * (0.1 * normal).exp() * tail) as u64
            })
            .collect()
    }
}
