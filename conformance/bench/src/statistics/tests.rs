//! Tests of statistics, against textbook values and random samples with a known distribution.

use super::*;
use crate::random_samples::Noise;
use crate::report_data::{Failure, Key};

fn series(samples_ns: &[u64], failed: &[u32]) -> Series {
    let key = Key {
        setup: "one".to_owned(),
        path: "direct".to_owned(),
        call: "stats".to_owned(),
        concurrency: 1,
        payload_bytes: 0,
        held: 0,
    };
    let failure = |turn: &u32| Failure { turn: *turn, error: "refused".to_owned() };
    let failures = failed.iter().map(failure).collect();
    Series { key, samples_ns: samples_ns.to_vec(), failures, cost: None }
}

#[test]
fn a_percentile_is_a_sample_that_so_many_do_not_exceed() {
    let hundred: Vec<u64> = (1..=100).rev().collect();
    let hundred = Distribution::of(&hundred);
    assert_eq!([0.5, 0.9, 0.99, 1.0].map(|part| hundred.percentile(part)), [50, 90, 99, 100].map(Some));
    assert_eq!((hundred.least(), hundred.most(), hundred.mean()), (Some(1), Some(100), Some(50.5)));
    let one = Distribution::of(&[7]);
    assert_eq!([0.0, 0.5, 0.99].map(|part| one.percentile(part)), [7, 7, 7].map(Some));
    let none = Distribution::of(&[]);
    assert_eq!((none.percentile(0.5), none.median(), none.mean()), (None, None, None));
}

#[test]
fn the_ranks_around_a_median_are_those_of_the_tables() {
    // Ranks by the binomial distribution with p = 1/2.
    let known = [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (30, (10, 21)), (100, (40, 61))];
    for (n, expected) in known {
        assert_eq!(ranks(n, 0.5), Some(expected), "of {n} samples");
    }
    assert_eq!(ranks(5, 0.5), None, "five samples lie all on one side once in 16 times");
    assert_eq!(ranks(0, 0.5), None);
    assert_eq!(ranks(100, 0.99), None, "nothing is known to lie above");
    assert_eq!(ranks(1000, 0.99), Some((983, 997)));
    let (low, high) = ranks(100_000, 0.5).unwrap();
    assert!((low, high) == (49_690, 50_311), "{low} and {high}, 1.96 standard deviations of 158 away");
}

#[test]
fn a_histogram_keeps_three_digits() {
    let samples: Vec<u64> = (1..=10_000).map(|sample| sample * 1_000).collect();
    let histogram = Distribution::of(&samples).histogram().unwrap();
    assert_eq!(histogram.len(), 10_000);
    let off = histogram.value_at_quantile(0.9) as f64 / 9_000_000.0 - 1.0;
    assert!(off.abs() < 0.001, "{off}");
}

#[test]
fn turns_pair_up_around_those_that_failed() {
    let (a, b) = (series(&[10, 30, 40], &[1]), series(&[11, 22, 44], &[2]));
    assert_eq!(turns(&a, &b), Some(vec![(10, 11), (40, 44)]));
    assert_eq!(turns(&a, &series(&[1, 2, 3], &[])), None, "one has a turn less");
    assert_eq!(turns(&a, &series(&[1, 2, 3], &[9])), None, "there is no such turn");
    let mut at_a_time = series(&[11, 22, 44], &[2]);
    at_a_time.key.concurrency = 4;
    assert_eq!(turns(&a, &at_a_time), None);
}

#[test]
fn a_slowdown_is_seen_by_turns_through_a_drift_that_is_larger() {
    // The machine gets ten times slower during the run; one of the two series is 5 % slower all along.
    let base: Vec<u64> = (0..50).map(|turn| 1_000_000 + turn * 200_000).collect();
    let slower: Vec<u64> = base.iter().map(|sample| sample + sample / 20).collect();
    let by_turns = ratio_within_run(&series(&base, &[]), &series(&slower, &[])).unwrap();
    assert!((by_turns.low - 1.05).abs() < 1e-6 && (by_turns.high - 1.05).abs() < 1e-6, "{by_turns:?}");
    let apart = ratio(&base, &slower).unwrap();
    assert!(apart.low < 1.0 && apart.high > 1.1, "what was measured apart is not sure: {apart:?}");
}

#[test]
fn few_samples_have_no_interval() {
    assert_eq!(ratio(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5, 6]), None);
    assert_eq!(ratio_by_turns(&[(1, 1); 5]), None);
    assert!(ratio(&[1; 6], &[2; 6]).is_some_and(|ratio| ratio.value == 2.0 && ratio.low == 2.0));
    assert!(ratio(&[0; 6], &[0; 6]).is_some_and(|ratio| ratio.value == 1.0));
}

#[test]
fn the_same_samples_say_the_same_each_time() {
    let mut noise = Noise::seeded(3);
    let (a, b) = (noise.samples(5_000_000.0, 200), noise.samples(5_000_000.0, 200));
    assert_eq!(ratio(&a, &b), ratio(&a, &b));
}

#[test]
fn intervals_hold_the_truth_about_as_often_as_they_say() {
    let mut noise = Noise::seeded(1);
    let (mut of_one, mut apart, mut by_turns) = (0, 0, 0);
    let cases = 100;
    for _ in 0..cases {
        let (a, b) = (noise.samples(1e6, 60), noise.samples(1.2e6, 60));
        let holds = |estimate: Option<Estimate>, truth: f64| {
            u32::from(estimate.is_some_and(|estimate| estimate.low <= truth && truth <= estimate.high))
        };
        of_one += holds(Distribution::of(&a).median(), 1e6);
        apart += holds(ratio(&a, &b), 1.2);
        by_turns += holds(ratio_within_run(&series(&a, &[]), &series(&b, &[])), 1.2);
    }
    for (what, held) in [("of one", of_one), ("apart", apart), ("by turns", by_turns)] {
        assert!((90..=100).contains(&held), "{what}: {held} of {cases}");
    }
}
