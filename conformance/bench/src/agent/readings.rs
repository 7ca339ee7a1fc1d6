//! How often the statistics of a task are read, by the times of the readings that the agent has.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use harness::interrupt::check;

use super::side::Side;

/// Time in which readings are counted.
const COUNTED: Duration = Duration::from_secs(12);
/// Time between two looks, in which no two readings of a task come.
const PACE: Duration = Duration::from_millis(200);

/// Returns how many readings of the statistics of a task come in a second, for each of some sides with the id of an
/// allocation of its.
///
/// # Errors
/// Fails after an interrupt. A side fails by itself if there are fewer than two readings in all the time.
pub(crate) fn rates_of(tasks: &[(&Side<'_>, &str)]) -> Result<Vec<Result<f64>>> {
    let (mut times, begun) = (vec![BTreeSet::new(); tasks.len()], Instant::now());
    while begun.elapsed() < COUNTED {
        check()?;
        for ((side, allocation), times) in tasks.iter().zip(&mut times) {
            // One that doesn't answer has no reading.
            let usage = side.own_api().get(&format!("/v1/client/allocation/{allocation}/stats"));
            times.extend(usage.unwrap_or_default()["Tasks"]["main"]["Timestamp"].as_u64());
        }
        sleep(PACE);
    }
    Ok(times.iter().map(rate).collect())
}

/// Returns the number of readings in a second by their times, in nanoseconds.
fn rate(times: &BTreeSet<u64>) -> Result<f64> {
    let span = times.last().zip(times.first()).map_or(0, |(last, first)| last - first);
    let rate = (times.len() as f64 - 1.0) / Duration::from_nanos(span).as_secs_f64();
    Some(rate).filter(|_| span > 0).context("fewer than two readings came")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_between_the_first_and_the_last_reading() {
        let at =
            |seconds: &[u64]| seconds.iter().map(|second| second * 1_000_000_000).collect::<BTreeSet<_>>();
        assert!((rate(&at(&[5, 7, 9, 13])).unwrap() - 0.375).abs() < 1e-9);
        assert!(rate(&at(&[5])).is_err() && rate(&at(&[])).is_err());
    }
}
