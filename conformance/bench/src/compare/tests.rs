//! Tests of comparisons, on random samples of which the truth is known.

use std::collections::BTreeMap;

use super::*;
use crate::random_samples::Noise;
use crate::report_data::{FORMAT, Failure, PointKind, Settings, Setup};

fn args() -> Args {
    Args {
        base: PathBuf::new(),
        other: PathBuf::new(),
        threshold: 0.1,
        map: Vec::new(),
        across_machines: false,
        allow_missing: false,
    }
}

fn series(setup: &str, call: &str, samples_ns: Vec<u64>) -> Series {
    let key = Key {
        setup: setup.to_owned(),
        path: "direct".to_owned(),
        call: call.to_owned(),
        concurrency: 1,
        payload_bytes: 0,
        held: 0,
    };
    Series { key, samples_ns, failures: Vec::new(), cost: None }
}

fn report(made_at: &str, series: Vec<Series>) -> Report {
    let mut names: Vec<_> = series.iter().map(|series| series.key.setup.clone()).collect();
    names.dedup();
    Report {
        format: FORMAT,
        made_at: made_at.to_owned(),
        machine: Machine {
            cpu: "some".to_owned(),
            cores: 2,
            memory_bytes: 1 << 34,
            kernel: "6.1".to_owned(),
            cgroups: "v2".to_owned(),
            distribution: "Debian 12".to_owned(),
            load_before: "0.1".to_owned(),
        },
        setups: names.into_iter().map(|name| Setup { name, parts: BTreeMap::new() }).collect(),
        settings: Settings { iterations: 50, warm_up: 1, duration_ms: None, details: Default::default() },
        series,
        scale: Vec::new(),
        timelines: Vec::new(),
        not_measured: Vec::new(),
    }
}

/// Returns a report of noisy calls, in which the call named `slow` takes `times` as long as it should.
fn run(seed: u64, slow: &str, times: f64) -> Report {
    let mut noise = Noise::seeded(seed);
    let calls = [("state", 0.3e6), ("stats", 5e6), ("create", 60e6)].map(|(call, median_ns)| {
        let times = if call == slow { times } else { 1.0 };
        series("a", call, noise.samples(median_ns * times, 100))
    });
    report(&seed.to_string(), calls.into())
}

fn verdicts(comparison: &Comparison) -> Vec<(&str, Verdict)> {
    comparison.lines.iter().map(|line| (&*line.key.call, line.verdict)).collect()
}

#[test]
fn a_fifth_more_in_one_call_is_found_and_a_hundredth_is_not() {
    use Verdict::{Same, Worse};
    for seed in 0..8 {
        let base = run(seed, "", 1.0);
        let fifth = compare(&base, &run(1000 + seed, "stats", 1.2), &args());
        assert_eq!(verdicts(&fifth), [("state", Same), ("stats", Worse), ("create", Same)], "seed {seed}");
        assert_eq!(fifth.reasons(&args()), ["FAILED: 1 series slower by more than 10 %"]);
        let hundredth = compare(&base, &run(2000 + seed, "stats", 1.01), &args());
        assert_eq!(
            verdicts(&hundredth),
            ["state", "stats", "create"].map(|call| (call, Same)),
            "seed {seed}"
        );
        assert!(hundredth.reasons(&args()).is_empty());
    }
}

#[test]
fn what_got_faster_is_said_and_fails_nothing() {
    let comparison = compare(&run(1, "", 1.0), &run(2, "stats", 0.7), &args());
    assert_eq!(verdicts(&comparison)[1], ("stats", Verdict::Better));
    assert!(comparison.reasons(&args()).is_empty());
}

#[test]
fn a_verdict_takes_the_whole_interval() {
    let estimate = |low, high| Some(Estimate { value: (low + high) / 2.0, low, high });
    let judged = |low, high| judge(estimate(low, high), 0.1);
    assert_eq!(judged(1.11, 1.3), Verdict::Worse);
    assert_eq!(judged(1.09, 1.3), Verdict::Unclear);
    assert_eq!(judged(0.92, 1.09), Verdict::Same);
    assert_eq!(judged(0.5, 1.0), Verdict::Unclear);
    assert_eq!(judged(0.5, 0.9), Verdict::Better);
    assert_eq!(judge(None, 0.1), Verdict::TooFew);
    let few = |seed| report(seed, vec![series("a", "state", vec![1, 2, 3])]);
    assert_eq!(verdicts(&compare(&few("1"), &few("2"), &args())), [("state", Verdict::TooFew)]);
}

#[test]
fn more_failures_fail_it_whatever_the_times() {
    let base = run(1, "", 1.0);
    let mut other = run(2, "", 1.0);
    other.series[0].failures.push(Failure { turn: 3, error: "refused".to_owned() });
    let comparison = compare(&base, &other, &args());
    assert_eq!(comparison.reasons(&args()), ["FAILED: 1 series failing more often"]);
    assert!(compare(&other, &base, &args()).reasons(&args()).is_empty(), "fewer are no reason");
    let mut all = base.clone();
    all.series[1].samples_ns.clear();
    all.series[1].failures = vec![Failure { turn: 0, error: "refused".to_owned() }];
    let comparison = compare(&base, &all, &args());
    assert_eq!(verdicts(&comparison)[1].1, Verdict::TooFew);
    assert_eq!(comparison.reasons(&args()), ["FAILED: 1 series failing more often"]);
}

#[test]
fn reports_of_two_machines_are_compared_only_on_request() {
    let base = run(1, "", 1.0);
    let mut other = run(2, "", 1.0);
    other.machine.cgroups = "v1".to_owned();
    other.machine.load_before = "9.9".to_owned();
    let comparison = compare(&base, &other, &args());
    assert_eq!(comparison.machines, ["control groups: v2 and v1"]);
    assert_eq!(comparison.count(Verdict::NotComparable), 3);
    assert!(comparison.reasons(&args())[0].starts_with("FAILED: 3 series not comparable"));
    let accepting = Args { across_machines: true, ..args() };
    assert_eq!(compare(&base, &other, &accepting).count(Verdict::Same), 3);
}

#[test]
fn what_is_missing_is_said_and_fails_unless_allowed() {
    let base = run(1, "", 1.0);
    let mut other = run(2, "", 1.0);
    other.series[2].key.held = 50;
    let comparison = compare(&base, &other, &args());
    let calls = |keys: &[Key]| keys.iter().map(|key| (key.call.clone(), key.held)).collect::<Vec<_>>();
    assert_eq!(calls(&comparison.missing), [("create".to_owned(), 0)]);
    assert_eq!(calls(&comparison.new), [("create".to_owned(), 50)]);
    assert_eq!(comparison.reasons(&args()).len(), 1);
    assert!(comparison.reasons(&Args { allow_missing: true, ..args() }).is_empty());
}

#[test]
fn setups_of_one_run_are_compared_turn_by_turn() {
    // The drift is so large that each series by itself would say nothing.
    let base: Vec<u64> = (0..40).map(|turn| 1_000_000 + turn * 100_000).collect();
    let slower = base.iter().map(|sample| sample + sample / 5).collect();
    let one = report("now", vec![series("a", "stats", base), series("b", "stats", slower)]);
    let map = vec![mapping("a=b").unwrap()];
    let comparison = compare(&one, &one, &Args { map, ..args() });
    assert_eq!(verdicts(&comparison), [("stats", Verdict::Worse)]);
    assert_eq!(comparison.lines[0].other_setup.as_deref(), Some("b"));
    assert!(comparison.missing.is_empty() && comparison.new.is_empty());
}

#[test]
fn many_tasks_are_compared_as_any_other_series() {
    let point = |times: u64| ScalePoint {
        kind: PointKind::Rest,
        setup: "a".to_owned(),
        path: "plugin".to_owned(),
        tasks: 50,
        start_ns: (0..50).map(|task| (100 + task % 5) * times).collect(),
        stop_ns: vec![50; 50],
        exec_ns: Vec::new(),
        start_storm_ns: 1000,
        stop_storm_ns: 1000,
        failures: Vec::new(),
        steady_cpu_ns_per_task_second: BTreeMap::new(),
        memory_bytes: BTreeMap::new(),
        anonymous_bytes: BTreeMap::new(),
    };
    let with = |made_at: &str, times| Report { scale: vec![point(times)], ..report(made_at, Vec::new()) };
    let comparison = compare(&with("1", 1), &with("2", 2), &args());
    let expected =
        [("storm-start", Verdict::Worse), ("storm-exec", Verdict::TooFew), ("storm-stop", Verdict::Same)];
    assert_eq!(verdicts(&comparison), expected);
    assert_eq!(comparison.lines[0].key.concurrency, 50);
}

#[test]
fn a_threshold_is_said_in_per_cent() {
    assert_eq!((threshold("10%").unwrap(), threshold("2.5").unwrap()), (0.1, 0.025));
    assert!(threshold("0%").is_err() && threshold("-3").is_err() && threshold("a tenth").is_err());
    assert!(mapping("a").is_err());
}
