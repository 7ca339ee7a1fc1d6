//! A run of the benchmark: sets up the environments, has their targets take turns, and prints and writes the report. A
//! failed call is part of the figures; the environment has to come up and to be cleaned up.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

use super::call::Call;
use super::iterations::{Bench, Wanted};
use super::report_data::{Report, Settings};
use super::samples::Samples;
use super::schedule::Until;
use super::setups::{SetupArgs, Setups};
use super::{csv, table};

#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Args {
    #[command(flatten)]
    on: SetupArgs,
    /// Measure only this call. May be repeated.
    #[arg(long = "call", value_name = "CALL")]
    calls: Vec<Call>,
    /// Number of measured iterations. Each makes every call once by each path on each setup.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    iterations: u32,
    /// Number of iterations before those, which aren't counted.
    #[arg(long, default_value_t = 2)]
    warm_up: u32,
    /// End the measured iterations by time rather than by number: 30s, 5m. Applies to each combination of
    /// --concurrency and --held.
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Number of concurrent calls: 1, or 1,4,16 to measure one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: Vec<u32>,
    /// Number of bytes that an exec reads and writes back: 0,4096,1048576. With 0, the exec prints one word.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    payload: Vec<usize>,
    /// Number of other tasks that each path runs on each setup meanwhile: 0,10,50 to measure one after the other.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    held: Vec<u32>,
    /// Write the report with all samples to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a row for each call to this file, as CSV.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Exit with code 1 if any call failed.
    #[arg(long)]
    strict: bool,
}

impl Args {
    pub(crate) fn may_run_crun(&self) -> bool {
        self.on.may_run_crun()
    }

    fn wanted(&self) -> Wanted {
        let all = Call::value_variants().iter().copied();
        Wanted {
            calls: all.filter(|call| self.calls.is_empty() || self.calls.contains(call)).collect(),
            payloads: self.payload.clone(),
            concurrency: self.concurrency.clone(),
            held: self.held.clone(),
            warm_up: self.warm_up,
            until: self.duration.map_or(Until::Turns(self.iterations), Until::Elapsed),
        }
    }
}

/// # Errors
/// Fails if the environment doesn't come up, or can't be cleaned up.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let report = measure(args)?;
    print!("{}", table::render(&report));
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(&report)?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.csv {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        csv::write(&report, &mut BufWriter::new(file))?;
    }
    let failed: usize = report.series.iter().map(|series| series.failures.len()).sum();
    Ok(if args.strict && failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// # Errors
/// Fails as [`run`] does.
pub(crate) fn measure(args: &Args) -> Result<Report> {
    let settings = Settings {
        iterations: args.iterations,
        warm_up: args.warm_up,
        duration_ms: args.duration.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        details: Default::default(),
    };
    let (mut setups, mut report) = Setups::start(&args.on, settings)?;
    let wanted = args.wanted();
    let targets = std::mem::take(&mut setups.targets);
    let group = setups.group.as_ref();
    let mut bench =
        Bench { wanted: &wanted, group, targets, samples: Samples::default(), timelines: Vec::new() };
    report.not_measured.extend(bench.unsupported());
    let measured = setups.runtime.block_on(bench.all());
    report.series = bench.samples.into_series();
    report.timelines = bench.timelines;
    drop(bench.targets);
    let ended = setups.end();
    measured.and(ended).map(|()| report)
}
