//! Percentile curves: the time of a call against the share of calls that take no longer, with rare ones as wide as the
//! usual ones. Made from HDR histograms, as such curves usually are.

use anyhow::Result;

use super::class;
use super::svg::{Anchor, Scale, Svg};
use crate::format;
use crate::report_data::Series;
use crate::statistics::Distribution;

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 30.0;
/// Number of points between one halving of the remaining calls and the next.
const TICKS_PER_HALVING: u32 = 5;
const MARKS: [(f64, &str); 5] = [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];

/// Draws the curves of one call on one setup. `of_call` has all series that share the scale of times.
///
/// # Errors
/// Fails if samples can't be counted.
pub(crate) fn percentiles(
    call: &str,
    setup: &str,
    of_setup: &[&Series],
    of_call: &[&Series],
) -> Result<String> {
    let title = format!("{call}, {setup}: time by percentile");
    let mut svg = Svg::new(&title, WIDTH, HEIGHT);
    let all = of_call.iter().flat_map(|series| &series.samples_ns).map(|sample| *sample as f64);
    let times = Scale::logarithmic(all, HEIGHT - BOTTOM, TOP);
    svg.text((LEFT, 14.0), Anchor::Start, "head", setup);
    for tick in times.ticks() {
        let y = times.at(tick);
        svg.line((LEFT, y), (WIDTH - RIGHT, y), "axis");
        svg.text((LEFT - 6.0, y + 4.0), Anchor::End, "quiet", &format::milliseconds(tick));
    }
    let most = of_call.iter().map(|series| series.samples_ns.len()).max().unwrap_or_default();
    let widest = rarity(1.0 - 1.0 / (most.max(10) as f64));
    let x = |part: f64| LEFT + (rarity(part) / widest).min(1.0) * (WIDTH - RIGHT - LEFT);
    for (part, name) in MARKS.into_iter().filter(|(part, _)| rarity(*part) <= widest + 0.01) {
        svg.line((x(part), TOP), (x(part), HEIGHT - BOTTOM + 4.0), "axis");
        svg.text((x(part), HEIGHT - BOTTOM + 18.0), Anchor::Middle, "quiet", name);
    }
    for series in of_setup.iter().filter(|series| !series.samples_ns.is_empty()) {
        let points: Vec<_> =
            points(&series.samples_ns)?.into_iter().map(|(part, ns)| (x(part), times.at(ns))).collect();
        svg.curve(&points, class(&series.key.path), &format!("{}, {setup}", series.key.path));
    }
    Ok(svg.finish())
}

/// Returns the rarity of samples beyond a percentile, in powers of ten.
fn rarity(part: f64) -> f64 {
    -(1.0 - part.min(0.999_999)).log10()
}

/// Returns the points of a curve. The last is at 1 - 1/n: a percentile has a meaning only as far as there are samples
/// beyond.
fn points(samples: &[u64]) -> Result<Vec<(f64, f64)>> {
    let histogram = Distribution::of(samples).histogram()?;
    let last = 1.0 - 1.0 / samples.len() as f64;
    let mut points = vec![(0.0, histogram.min() as f64)];
    for step in histogram.iter_quantiles(TICKS_PER_HALVING) {
        let part = step.quantile_iterated_to();
        if part > last {
            break;
        }
        points.push((part, step.value_iterated_to() as f64));
    }
    points.push((last, histogram.max() as f64));
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_from_the_least_to_the_most_and_never_down() {
        let samples: Vec<u64> = (1..=1000).map(|sample| sample * 1000).collect();
        let points = points(&samples).unwrap();
        assert_eq!(points.first(), Some(&(0.0, 1000.0)));
        assert!((points.last().unwrap().1 / 1e6 - 1.0).abs() < 0.001);
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1));
        assert!(super::points(&[7]).unwrap().iter().all(|point| *point == (0.0, 7.0)));
    }

    #[test]
    fn ninety_nine_is_as_far_from_ninety_as_that_from_nothing() {
        assert!((rarity(0.99) - 2.0 * rarity(0.9)).abs() < 1e-9);
    }
}
