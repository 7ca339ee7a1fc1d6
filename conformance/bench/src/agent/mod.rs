//! The path `agent`: a real Nomad agent with any driver, docker's too. Each variation is a driver with options of its
//! own, on a node of its own; all of them take turns in one run, with the OCI runtimes alone as the floor.

mod aims;
mod calls;
mod exec;
mod floor;
mod kind;
mod many;
mod measure;
mod order;
mod output;
mod pair;
mod parts;
mod readings;
mod rounds;
mod side;
mod single;
mod table;
mod variation;
mod write;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use harness::environment::TestEnvironment;
use harness::fixture::{Choice, Programs};
use harness::leaks::inspect::find_processes;

use super::machine;
use super::report_data::{FORMAT, Report, Settings};
use kind::Kind;
use measure::Run;
use variation::{Binaries, Variation, Wanted};

/// The path's name in reports.
pub(crate) const PATH: &str = "agent";
/// Of so many rounds with a single task there is one of each other kind.
const MANY_EVERY: u32 = 4;

#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Args {
    /// Path of this driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Path of Nomad's binary.
    #[arg(long)]
    nomad: PathBuf,
    /// Path of dockerd's binary, with docker-proxy beside it.
    #[arg(long)]
    dockerd: Option<PathBuf>,
    /// Path of the binary of nomad-driver-containerd, the driver in Go.
    #[arg(long)]
    go_driver: Option<PathBuf>,
    /// Time that the driver in Go sleeps before it starts a task's process. It is taken out of the times.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    go_driver_sleep: Duration,
    /// Path of the shim in Rust, a file named containerd-shim-runc-v2-rs.
    #[arg(long)]
    rust_shim: Option<PathBuf>,
    /// A variation: the name of a built-in one, or name=N,driver=..,shim=..,runtime=..,most=..,task.OPTION=..,OPTION=..
    /// May be repeated. Without any, all built-in ones whose programs are given.
    #[arg(long, value_name = "NAME|KEY=VALUE,..")]
    variation: Vec<String>,
    /// Names of built-in variations, with commas.
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    sides: Vec<String>,
    /// All built-in variations whose programs are given, beside those of --variation.
    #[arg(long, conflicts_with = "sides")]
    all: bool,
    /// An OCI runtime that is measured alone. May be repeated; `none` for none. Without, those of the variations.
    #[arg(long, value_name = "RUNTIME")]
    floor: Vec<String>,
    /// The variation that others are held against. The default is the driver in Go, else docker's, else the first.
    #[arg(long)]
    reference: Option<String>,
    /// Measure only this. May be repeated.
    #[arg(long)]
    only: Vec<Kind>,
    /// Number of rounds with a single task on each side.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Number of rounds of all else. A quarter of --rounds without, and an even number for two variations.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    many_rounds: Option<u32>,
    /// Number of rounds with tasks at rest; as many as --many-rounds without. Some variations have more with the largest
    /// number of tasks, by their words.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rest_rounds: Option<u32>,
    /// Seed of the order of sides in each round. Any other one by default, which the report has.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of tasks that are measured at rest. Several are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "20", value_parser = clap::value_parser!(u32).range(1..=5000))]
    tasks: Vec<u32>,
    /// Number of tasks that are started at once, and not looked at.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=5000))]
    flood: u32,
    /// Time over which the CPU time of tasks at rest is measured.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    steady: Duration,
    /// Megabytes that a task writes to its logs.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(5..=550))]
    log_megabytes: u32,
    /// Have all agents log at DEBUG, by which this driver's timelines are measured on each side. Some variations do so by
    /// their words.
    #[arg(long)]
    timelines: bool,
    /// Write the report with all samples to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a row for each call to this file, as CSV.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the tables to this file, as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Page whose table of two variations is replaced by this run's.
    #[arg(long, value_name = "PAGE")]
    page: Option<PathBuf>,
    #[command(flatten)]
    choice: Choice,
}

impl Args {
    pub(crate) fn may_run_crun(&self) -> bool {
        self.choice.is_crun()
            || variation::may_run_crun(self.wanted(&self.words()))
            || self.floor.iter().any(|runtime| runtime.contains("crun"))
    }

    /// Returns the names and the lines of wanted variations.
    fn words(&self) -> Vec<String> {
        self.sides.iter().chain(&self.variation).cloned().collect()
    }

    fn wanted<'a>(&self, words: &'a [String]) -> Wanted<'a> {
        Wanted { words, all: self.all }
    }

    fn wants(&self, kind: Kind) -> bool {
        self.only.is_empty() || self.only.contains(&kind)
    }

    /// Returns the number of rounds with many tasks and much output on so many sides.
    fn others(&self, sides: usize) -> u32 {
        // Each of two sides is the first one in half of the rounds.
        let step = if sides == 2 { 2 } else { 1 };
        self.many_rounds.unwrap_or_else(|| self.rounds.div_ceil(MANY_EVERY).next_multiple_of(step))
    }

    fn binaries(&self) -> Result<Binaries> {
        let found = |path: &Option<PathBuf>| {
            let found = path.as_ref().map(fs::canonicalize).transpose();
            found.with_context(|| format!("look at {}", path.as_deref().unwrap_or(Path::new("")).display()))
        };
        Ok(Binaries {
            dockerd: found(&self.dockerd)?,
            go_driver: found(&self.go_driver)?,
            rust_shim: found(&self.rust_shim)?,
        })
    }
}

/// # Errors
/// Fails after an interrupt, if no side comes up, or with what this driver has left; the report is written all the same. A
/// failed call is no error but part of the figures.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let binaries = args.binaries()?;
    let (variations, lacking) = variation::choose(args.wanted(&args.words()), &binaries)?;
    ensure!(!variations.is_empty(), "no variation is left");
    ensure!(args.page.is_none() || variations.len() == 2, "--page has a table of two variations");
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let others = args.others(variations.len());
    let at_rest = args.rest_rounds.unwrap_or(others);
    let environment = TestEnvironment::start_of(Programs::find(&args.choice)?)?;
    let heading = write::heading(args, environment.directory(), [at_rest, others], seed)?;
    let programs = programs(args, &binaries, &variations)?;
    let details = write::details(args, environment.directory(), seed, programs)?;
    let settings = Settings { iterations: args.rounds, warm_up: 1, duration_ms: None, details };
    let mut run = Run {
        args,
        binaries: &binaries,
        heading: &heading,
        seed,
        others,
        at_rest,
        begun: Instant::now(),
        report: Report {
            format: FORMAT,
            made_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            machine: machine::look()?,
            setups: Vec::new(),
            settings,
            series: Vec::new(),
            scale: Vec::new(),
            timelines: Vec::new(),
            not_measured: lacking,
        },
    };
    let measured = run.measure(&environment, variations);
    let report = &run.report;
    print!("{}", write::text(args, &heading, report));
    write::files(args, &heading, report)?;
    measured?;
    write::page(args, &heading, report)?;
    let directory = environment.directory().to_owned();
    drop(environment);
    super::cost::remove_groups();
    ensure!(!directory.exists(), "{} is still there", directory.display());
    let left = find_processes(&directory);
    ensure!(left.is_empty(), "these are still there: {left:?}");
    println!("all of it done in {:.0} s", run.begun.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

/// Returns the paths of all programs of a run, as far as they are there.
fn programs(args: &Args, binaries: &Binaries, variations: &[Variation]) -> Result<BTreeSet<PathBuf>> {
    let given = [&args.plugin, &args.nomad].map(fs::canonicalize).into_iter().collect::<Result<Vec<_>, _>>();
    let mut all: BTreeSet<PathBuf> = given.context("look at --plugin and --nomad")?.into_iter().collect();
    all.insert(std::env::current_exe()?);
    all.extend([&binaries.dockerd, &binaries.go_driver].into_iter().flatten().cloned());
    for found in variations.iter().filter_map(|variation| variation.programs(&args.choice, binaries).ok()) {
        all.extend(found.all().map(Path::to_owned));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;
    use crate::report_data::{Key, Machine, Series, Setup};

    /// Returns a report with series of these names of setup and call, with samples in milliseconds.
    pub(crate) fn report(all: &[(&str, &str, &[u64])]) -> Report {
        let series = all.iter().map(|(setup, call, milliseconds)| Series {
            key: Key {
                setup: (*setup).to_owned(),
                path: PATH.to_owned(),
                call: (*call).to_owned(),
                concurrency: 1,
                payload_bytes: 0,
                held: 0,
            },
            samples_ns: milliseconds.iter().map(|ms| ms * 1_000_000).collect(),
            failures: Vec::new(),
            cost: None,
        });
        let mut setups: Vec<Setup> = Vec::new();
        for (name, ..) in all {
            if setups.iter().all(|known| known.name != *name) {
                setups.push(Setup { name: (*name).to_owned(), parts: Default::default() });
            }
        }
        Report {
            format: FORMAT,
            made_at: "2026-11-30T00:00:00Z".to_owned(),
            machine: Machine {
                cpu: "some".to_owned(),
                cores: 2,
                memory_bytes: 1 << 34,
                kernel: "6.1".to_owned(),
                cgroups: "v2".to_owned(),
                distribution: "Debian 12".to_owned(),
                load_before: "0.1".to_owned(),
            },
            setups,
            settings: Settings { iterations: 3, warm_up: 1, duration_ms: None, details: Default::default() },
            series: series.collect(),
            scale: Vec::new(),
            timelines: Vec::new(),
            not_measured: Vec::new(),
        }
    }

    pub(crate) fn args(words: &[&str]) -> Args {
        let usual = ["agent", "--plugin", "/p", "--nomad", "/n"];
        let command = Args::augment_args(clap::Command::new("agent"));
        let given = command.get_matches_from(usual.iter().chain(words));
        Args::from_arg_matches(&given).unwrap()
    }

    #[test]
    fn other_kinds_have_a_quarter_of_the_rounds_or_as_many_as_is_said() {
        assert_eq!(args(&[]).others(18), 3);
        assert_eq!(args(&[]).others(2), 4, "each of two sides is the first one in half of the rounds");
        assert_eq!(args(&["--rounds", "3"]).others(18), 1);
        assert_eq!(args(&["--many-rounds", "5"]).others(2), 5);
    }

    #[test]
    fn sides_are_names_with_commas_beside_variations() {
        let made = args(&["--sides", "runc,docker", "--variation", "name=a"]);
        assert_eq!(made.words(), ["runc", "docker", "name=a"]);
        assert!(!made.wanted(&[]).all && args(&["--all", "--variation", "name=a"]).wanted(&[]).all);
    }
}
