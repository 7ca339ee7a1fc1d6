//! Compares two reports: for each series of the first, the ratio of its times in the second report to those in the
//! first, and a verdict. This file has the pure part; `compare/table.rs` prints.
//!
//! A verdict needs the whole confidence interval on one side of the threshold: a difference that may be noise is
//! "unclear", and fails nothing. A series that can't be compared fails the comparison unless an option allows that: a
//! gate must not pass what it couldn't check.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use super::growth;
use super::report_data::{Key, Machine, PointKind, Report, ScalePoint, Series};
use super::report_file;
use super::statistics::{Distribution, Estimate, ratio, ratio_within_run};

mod table;

/// Default of `--threshold`.
pub(crate) const THRESHOLD: f64 = 0.1;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The report to compare with.
    base: PathBuf,
    /// The report to judge. May be the same file, with --map: setups that took turns in one run are the most reliable
    /// to compare.
    other: PathBuf,
    /// The slowdown that is tolerated, in per cent.
    #[arg(long, default_value = "10%", value_parser = threshold)]
    threshold: f64,
    /// Compare this setup of the first report with that one of the second, and no setups but those named so. May be
    /// repeated.
    #[arg(long, value_name = "SETUP=SETUP", value_parser = mapping)]
    map: Vec<(String, String)>,
    /// Compare even if the machines differ.
    #[arg(long)]
    across_machines: bool,
    /// Don't fail for series that the second report lacks.
    #[arg(long)]
    allow_missing: bool,
}

fn threshold(text: &str) -> Result<f64> {
    let percent: f64 = text.trim_end_matches('%').parse().context("a threshold is a number of per cent")?;
    ensure!(percent.is_finite() && percent > 0.0, "a threshold is more than 0 %");
    Ok(percent / 100.0)
}

fn mapping(text: &str) -> Result<(String, String)> {
    let (base, other) = text.split_once('=').context("a mapping is SETUP=SETUP")?;
    Ok((base.to_owned(), other.to_owned()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Better,
    Worse,
    Same,
    /// The confidence interval crosses the threshold. More samples would decide.
    Unclear,
    /// Too few samples for a confidence interval.
    TooFew,
    /// The reports are of different machines.
    NotComparable,
}

/// The comparison of a series that both reports have.
#[derive(Debug)]
struct Line {
    key: Key,
    /// Name of the setup in the second report, if it differs.
    other_setup: Option<String>,
    base: Option<u64>,
    other: Option<u64>,
    ratio: Option<Estimate>,
    verdict: Verdict,
    /// (failed calls, all calls) in the first and in the second report.
    failed: [(usize, usize); 2],
}

impl Line {
    /// Returns whether the share of failed calls is greater in the second report.
    fn fails_more(&self) -> bool {
        let [(base, of_base), (other, of_other)] = self.failed;
        other * of_base.max(1) > base * of_other.max(1)
    }
}

#[derive(Debug, Default)]
struct Comparison {
    /// The facts in which the machines differ.
    machines: Vec<String>,
    lines: Vec<Line>,
    /// Series of the first report that the second lacks.
    missing: Vec<Key>,
    /// Series that only the second report has.
    new: Vec<Key>,
}

/// Prints the comparison. The exit code says whether the second report is as good as the first.
///
/// # Errors
/// Fails if a file can't be read, or if the reports have nothing to compare.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (base, other) = (report_file::read(&args.base)?, report_file::read(&args.other)?);
    for (report, setup) in args.map.iter().flat_map(|(a, b)| [(&base, a), (&other, b)]) {
        let names: Vec<_> = report.setups.iter().map(|known| &*known.name).collect();
        ensure!(
            names.contains(&&**setup),
            "--map: no setup {setup:?} in the report, only {}",
            names.join(", ")
        );
    }
    let comparison = compare(&base, &other, args);
    if comparison.lines.is_empty() {
        bail!(
            "nothing to compare: the first report has the setups {}, the second {}; name those that belong together by --map",
            setups(&base),
            setups(&other)
        );
    }
    table::print(&base, &other, &comparison, args);
    let reasons = comparison.reasons(args);
    for reason in &reasons {
        println!("{reason}");
    }
    Ok(if reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn setups(report: &Report) -> String {
    report.setups.iter().map(|setup| &*setup.name).collect::<Vec<_>>().join(", ")
}

fn compare(base: &Report, other: &Report, args: &Args) -> Comparison {
    let machines = differences(&base.machine, &other.machine);
    let comparable = machines.is_empty() || args.across_machines;
    let (base_series, other_series) = (all_series(base), all_series(other));
    let mut comparison = Comparison { machines, ..Comparison::default() };
    let mut met = Vec::new();
    for series in &base_series {
        for wanted in counterparts(&series.key, &args.map) {
            let Some(counterpart) = other_series.iter().find(|other| other.key == wanted) else {
                comparison.missing.push(series.key.clone());
                continue;
            };
            let ratio = if base == other {
                ratio_within_run(series, counterpart)
            } else {
                ratio(&series.samples_ns, &counterpart.samples_ns)
            };
            let verdict = if comparable { judge(ratio, args.threshold) } else { Verdict::NotComparable };
            comparison.lines.push(line(series, counterpart, ratio, verdict));
            met.push(wanted);
        }
    }
    let is_new = |key: &Key| !met.contains(key) && is_looked_at(&key.setup, &args.map);
    comparison.new = other_series.into_iter().map(|series| series.key).filter(is_new).collect();
    comparison
}

fn line(base: &Series, other: &Series, ratio: Option<Estimate>, verdict: Verdict) -> Line {
    let median = |series: &Series| Distribution::of(&series.samples_ns).percentile(0.5);
    let failed = |series: &Series| {
        let failures = series.failures.len();
        (failures, failures + series.samples_ns.len())
    };
    let is_renamed = base.key.setup != other.key.setup;
    Line {
        key: base.key.clone(),
        other_setup: is_renamed.then(|| other.key.setup.clone()),
        base: median(base),
        other: median(other),
        ratio,
        verdict,
        failed: [failed(base), failed(other)],
    }
}

/// Returns the keys under which the second report has the counterparts of a series of the first: those of the setups
/// that it is mapped to, or its own.
fn counterparts(key: &Key, map: &[(String, String)]) -> Vec<Key> {
    let renamed = |setup: &String| Key { setup: setup.clone(), ..key.clone() };
    match map {
        [] => vec![key.clone()],
        map => map.iter().filter(|(base, _)| *base == key.setup).map(|(_, other)| renamed(other)).collect(),
    }
}

fn is_looked_at(other_setup: &str, map: &[(String, String)]) -> bool {
    map.is_empty() || map.iter().any(|(_, other)| other == other_setup)
}

/// Returns all series of a report: those of single calls, and those of runs with many tasks (`storm-start`,
/// `storm-exec`, `storm-stop`, and the same with `flood`).
pub(crate) fn all_series(report: &Report) -> Vec<Series> {
    let of_scale = growth::merged(&report.scale).into_iter().flat_map(|point| scale_series(&point));
    report.series.iter().cloned().chain(of_scale).collect()
}

fn scale_series(point: &ScalePoint) -> Vec<Series> {
    let kind = match point.kind {
        PointKind::Rest => "storm",
        PointKind::Flood => "flood",
    };
    let series = |call: &str, samples_ns: &[u64]| Series {
        key: Key {
            setup: point.setup.clone(),
            path: point.path.clone(),
            call: format!("{kind}-{call}"),
            concurrency: point.tasks,
            payload_bytes: 0,
            held: 0,
        },
        samples_ns: samples_ns.to_vec(),
        failures: Vec::new(),
        cost: None,
    };
    let mut all = vec![
        series("start", &point.start_ns),
        series("exec", &point.exec_ns),
        series("stop", &point.stop_ns),
    ];
    // All failures are put down to the starts: only a failure's text says whether it was a start, an exec or a stop.
    all[0].failures.clone_from(&point.failures);
    all
}

/// Returns the differences between two machines that times depend on. The load before the run and the exact size of
/// memory don't make it a different machine.
fn differences(base: &Machine, other: &Machine) -> Vec<String> {
    let Machine { cpu, cores, memory_bytes: _, kernel, cgroups, distribution, load_before: _ } = base;
    let facts = [
        ("processor", cpu, &other.cpu),
        ("cores", &cores.to_string(), &other.cores.to_string()),
        ("kernel", kernel, &other.kernel),
        ("control groups", cgroups, &other.cgroups),
        ("distribution", distribution, &other.distribution),
    ];
    let differ = facts.into_iter().filter(|(_, base, other)| base != other);
    differ.map(|(what, base, other)| format!("{what}: {base} and {other}")).collect()
}

/// Judges a ratio. A threshold of 10 % is a factor of 1.1 in either direction.
pub(crate) fn judge(ratio: Option<Estimate>, threshold: f64) -> Verdict {
    let Some(Estimate { low, high, .. }) = ratio else { return Verdict::TooFew };
    let (least, most) = (1.0 / (1.0 + threshold), 1.0 + threshold);
    if low > most {
        Verdict::Worse
    } else if high < least {
        Verdict::Better
    } else if low >= least && high <= most {
        Verdict::Same
    } else {
        Verdict::Unclear
    }
}

impl Comparison {
    fn count(&self, verdict: Verdict) -> usize {
        self.lines.iter().filter(|line| line.verdict == verdict).count()
    }

    /// Returns the reasons why the second report is not as good as the first. Empty if it is.
    fn reasons(&self, args: &Args) -> Vec<String> {
        let failing = self.lines.iter().filter(|line| line.fails_more()).count();
        let missing = if args.allow_missing { 0 } else { self.missing.len() };
        let percent = args.threshold * 100.0;
        let counts = [
            (self.count(Verdict::Worse), format!("slower by more than {percent} %")),
            (failing, "failing more often".to_owned()),
            (missing, "not measured any more (--allow-missing lets that pass)".to_owned()),
            (
                self.count(Verdict::NotComparable),
                "not comparable, as the machines differ (--across-machines compares all the same)".to_owned(),
            ),
        ];
        let failures = counts.into_iter().filter(|(count, _)| *count > 0);
        failures.map(|(count, what)| format!("FAILED: {count} series {what}")).collect()
    }
}

#[cfg(test)]
mod tests;
