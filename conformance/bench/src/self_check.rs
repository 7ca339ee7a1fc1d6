//! Checks that the harness measures correctly: a stub shim that answers after known times is measured like any other,
//! by the same run, path and client. The difference to the known times is the cost of the transport; it has to be
//! small and never negative. A call that is slowed down by a fifth has to be found by the comparison, one slowed down
//! by a hundredth not; and each failed call has to be counted.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use harness::environment;

use super::call::Call;
use super::compare::{THRESHOLD, Verdict, judge};
use super::format;
use super::report_data::{Report, Series};
use super::run::{Args as RunArgs, measure};
use super::statistics::{Distribution, ratio_within_run};
use super::stub::{self, Answers, DELAYS};

const KNOWN: &str = "as-known";
const FIFTH: &str = "a-fifth-slower";
const HUNDREDTH: &str = "a-hundredth-slower";
/// The call that is slowed down.
const SLOWED: Call = Call::Stats;
/// The call of which one in `FAILS_EACH` fails.
const FAILING: Call = Call::Pids;
const FAILS_EACH: u32 = 5;
const WARM_UP: u32 = 2;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of measured iterations.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(10..))]
    iterations: u32,
    /// Maximum by which a median may exceed the known time.
    #[arg(long, default_value = "1ms", value_parser = humantime::parse_duration)]
    bound: Duration,
    /// Path or name of containerd's binary, which provides the snapshots for the run.
    #[arg(long, default_value = "containerd")]
    containerd: String,
}

/// The arguments of `bench run`.
#[derive(Parser)]
struct Words {
    #[command(flatten)]
    run: RunArgs,
}

/// # Errors
/// Fails if the run can't be made.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let directory = environment::own_directory()?;
    let shim = |name: &str, slowdown: &str, fail: &str| -> Result<String> {
        let file = stub::write(&directory.path().join(name), &Answers::of("", slowdown, fail)?)?;
        Ok(format!("--setup=name={name},shim={}", file.display()))
    };
    let words = [
        "bench".to_owned(),
        "--path=direct".to_owned(),
        "--no-cost".to_owned(),
        format!("--containerd={}", args.containerd),
        format!("--iterations={}", args.iterations),
        format!("--warm-up={WARM_UP}"),
        shim(KNOWN, "", "")?,
        shim(FIFTH, &format!("{SLOWED}=1.2"), "")?,
        shim(HUNDREDTH, &format!("{SLOWED}=1.01"), &format!("{FAILING}={FAILS_EACH}"))?,
    ];
    let report = measure(&Words::try_parse_from(words)?.run)?;
    let found = look(&report, args)?;
    for line in &found {
        println!("{line}");
    }
    let wrong = found.iter().filter(|line| line.starts_with(WRONG)).count();
    if wrong > 0 {
        println!(
            "FAILED: {wrong} of {} are wrong: this harness, or this machine now, is no measure",
            found.len()
        );
        return Ok(ExitCode::FAILURE);
    }
    println!("the harness measures right here");
    Ok(ExitCode::SUCCESS)
}

const WRONG: &str = "WRONG";

/// Returns a line for each check, which says whether it passed.
fn look(report: &Report, args: &Args) -> Result<Vec<String>> {
    let series = |setup: &str, call: Call| {
        let is_it = |series: &&Series| series.key.setup == setup && series.key.call == call.name();
        report.series.iter().find(is_it).with_context(|| format!("{call} on {setup} was not measured"))
    };
    let mut lines = Vec::new();
    // Shutdown is left out: a shim may exit before its last answer has arrived.
    for (call, _) in DELAYS.iter().filter(|(call, _)| *call != Call::Shutdown) {
        lines.push(offset(series(KNOWN, *call)?, Answers::default().delay(*call), args.bound));
    }
    for (setup, call, expected) in [
        (FIFTH, SLOWED, Verdict::Worse),
        (FIFTH, Call::ExecStart, Verdict::Same),
        (HUNDREDTH, SLOWED, Verdict::Same),
        (HUNDREDTH, Call::ExecStart, Verdict::Same),
    ] {
        let ratio = ratio_within_run(series(KNOWN, call)?, series(setup, call)?);
        let verdict = judge(ratio, THRESHOLD);
        let shown = ratio.map_or("-".to_owned(), |ratio| {
            format!("{:.3}, {:.3} to {:.3}", ratio.value, ratio.low, ratio.high)
        });
        lines.push(line(verdict == expected, &format!("{call} on {setup} is {verdict:?} ({shown})")));
    }
    let failing = series(HUNDREDTH, FAILING)?;
    let expected = (WARM_UP + args.iterations) / FAILS_EACH - WARM_UP / FAILS_EACH;
    let (failed, took) = (failing.failures.len(), failing.samples_ns.len());
    let is_right = failed == expected as usize && failed + took == args.iterations as usize;
    lines.push(line(
        is_right,
        &format!("{FAILING} on {HUNDREDTH}: {failed} failed where {expected} were to, {took} did not"),
    ));
    Ok(lines)
}

/// Checks by how much the measured median exceeds the known time.
fn offset(series: &Series, known: Duration, bound: Duration) -> String {
    let all = Distribution::of(&series.samples_ns);
    let known_ns = known.as_nanos() as f64;
    let Some(median) = all.percentile(0.5) else {
        return line(false, &format!("{}: no call went well", series.key.call));
    };
    let off = median as f64 - known_ns;
    let spread = (all.percentile(0.75).unwrap_or(median) - all.percentile(0.25).unwrap_or(median)) as f64;
    let is_right = off >= 0.0 && off <= bound.as_nanos() as f64;
    let known = format::milliseconds(known_ns);
    let (off, spread) = (format::milliseconds(off), format::milliseconds(spread));
    line(
        is_right,
        &format!("{:<12} known {known:>8}, more by {off:>8}, half of all within {spread}", series.key.call),
    )
}

fn line(is_right: bool, text: &str) -> String {
    format!("{:<6} {text}", if is_right { "right" } else { WRONG })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report_data::Key;

    fn series(samples_ns: Vec<u64>) -> Series {
        let key = Key {
            setup: KNOWN.to_owned(),
            path: "direct".to_owned(),
            call: "stats".to_owned(),
            concurrency: 1,
            payload_bytes: 0,
            held: 0,
        };
        Series { key, samples_ns, failures: Vec::new(), cost: None }
    }

    #[test]
    fn a_time_is_wrong_where_it_is_less_than_known_or_much_more() {
        let ms = Duration::from_millis(1);
        let judged = |samples_ns| offset(&series(samples_ns), 10 * ms, ms);
        assert!(judged(vec![10_200_000; 9]).starts_with("right"));
        assert!(judged(vec![9_999_999; 9]).starts_with(WRONG), "no answer can be measured before it is made");
        assert!(judged(vec![11_200_000; 9]).starts_with(WRONG));
        assert!(judged(Vec::new()).starts_with(WRONG));
    }
}
