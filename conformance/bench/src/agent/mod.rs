//! The path `agent`: a real Nomad agent with any driver, docker's too. Each variation is a driver with options of its
//! own, on a node of its own; all of them take turns in one run, with the OCI runtimes alone as the floor.

mod aims;
mod calls;
mod exec;
mod floor;
mod pair;
mod parts;
mod readings;
mod rounds;
mod side;
mod table;
mod variation;

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::ValueEnum;
use harness::apparmor;
use harness::context::DockerCluster;
use harness::environment::TestEnvironment;
use harness::fixture::process::output;
use harness::fixture::{Choice, Programs};
use harness::leaks::inspect::find_processes;
use harness::page;
use rustix::time::{ClockId, clock_getres};
use serde_json::Value;

use super::csv;
use super::machine;
use super::measure::logs::PIECE_BYTES;
use super::report_data::{FORMAT, Report, Settings};
use floor::Floors;
use rounds::{Rounds, warm_up};
use side::{Common, Side};
use variation::{Binaries, Variation};

/// Words that frame the table of two variations in a page.
const FRAME: &str = "hack/differ";
/// The log level of agents: Nomad's default.
const USUAL_LOG_LEVEL: &str = "INFO";
/// Of so many rounds with a single task there is one of each other kind.
const MANY_EVERY: u32 = 3;
/// The variations that others are held against, if one of them is measured.
const REFERENCES: [&str; 2] = ["go-driver", "docker"];

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
    /// An OCI runtime that is measured alone. May be repeated; `none` for none. Without, those of the variations.
    #[arg(long, value_name = "RUNTIME")]
    floor: Vec<String>,
    /// The variation that others are held against. The default is the driver in Go, else docker's, else the first.
    #[arg(long)]
    reference: Option<String>,
    /// Measure only this. May be repeated.
    #[arg(long)]
    only: Vec<Kind>,
    /// Number of rounds with a single task on each side. All else is measured in a third of that.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
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
    /// Have all agents log at DEBUG, by which this driver's timelines are measured as well.
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

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// CPU time and memory with many tasks at rest.
    Rest,
    /// Start, exec and stop of a single task, and the floor.
    Single,
    /// An exec with much output.
    Output,
    /// Starts and stops of many tasks at once.
    Flood,
    /// Logs of a task that writes much.
    Logs,
}

impl Args {
    pub(crate) fn may_run_crun(&self) -> bool {
        self.choice.is_crun()
            || variation::may_run_crun(&self.variation)
            || self.floor.iter().any(|runtime| runtime.contains("crun"))
    }

    fn wants(&self, kind: Kind) -> bool {
        self.only.is_empty() || self.only.contains(&kind)
    }

    fn others(&self) -> u32 {
        // Each of two sides is the first one in half of the rounds.
        self.rounds.div_ceil(MANY_EVERY).next_multiple_of(if self.variation.len() == 2 { 2 } else { 1 })
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
/// Fails if a node doesn't come up or can't be cleaned up, or with what is left. A failed call is no error but part of
/// the figures.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let binaries = args.binaries()?;
    let (variations, lacking) = variation::choose(&args.variation, &binaries)?;
    ensure!(!variations.is_empty(), "no variation is left");
    ensure!(args.page.is_none() || variations.len() == 2, "--page has a table of two variations");
    let mut report = Report {
        format: FORMAT,
        made_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        machine: machine::look()?,
        setups: Vec::new(),
        settings: Settings { iterations: args.rounds, warm_up: 1, duration_ms: None },
        series: Vec::new(),
        scale: Vec::new(),
        timelines: Vec::new(),
        not_measured: lacking,
    };
    let environment = TestEnvironment::start_of(Programs::find(&args.choice)?)?;
    let begun = Instant::now();
    let heading = heading(args, environment.directory())?;
    measure(args, &environment, &binaries, variations, &mut report)?;
    let directory = environment.directory().to_owned();
    drop(environment);
    super::cost::remove_groups();
    ensure!(!directory.exists(), "{} is still there", directory.display());
    let left = find_processes(&directory);
    ensure!(left.is_empty(), "these are still there: {left:?}");
    println!("all of it done in {:.0} s", begun.elapsed().as_secs_f32());
    write(args, &heading, &report)?;
    Ok(ExitCode::SUCCESS)
}

/// Starts all nodes, makes the rounds, and takes all of it down.
fn measure(
    args: &Args,
    environment: &TestEnvironment,
    binaries: &Binaries,
    variations: Vec<Variation>,
    report: &mut Report,
) -> Result<()> {
    let (nomad, plugin) = (std::path::absolute(&args.nomad)?, std::path::absolute(&args.plugin)?);
    let cluster = DockerCluster::start(environment, &nomad)?;
    let common = Common {
        directory: environment.directory(),
        plugin: &plugin,
        dockerd: binaries.dockerd.as_deref(),
        go_driver: binaries.go_driver.as_deref(),
        go_drivers_sleep: args.go_driver_sleep,
        log_level: if args.timelines { harness::agent::config::DEBUG } else { USUAL_LOG_LEVEL },
    };
    let begun = Instant::now();
    let (mut sides, mut profile, mut runtimes) = (Vec::new(), None, Vec::new());
    for (number, variation) in (1..).zip(variations) {
        harness::interrupt::check()?;
        let programs = variation.programs(&args.choice, binaries)?;
        if !runtimes.contains(&programs.runtime_name()) {
            runtimes.push(programs.runtime_name());
        }
        let name = variation.name.clone();
        let side = Side::start(&cluster, number, variation, &programs, &common);
        sides.push(side.with_context(|| format!("variation {name:?}"))?);
    }
    println!("{} nodes are up after {:.0} s", sides.len(), begun.elapsed().as_secs_f32());
    let made = rounds(args, environment.directory(), &mut sides, &mut profile, runtimes, report);
    let made = made.map_err(|error| {
        let words: Vec<_> = sides.iter().map(Side::last_words).collect();
        anyhow!("{error:#}\n{}", words.join("\n"))
    });
    let ended = sides.iter_mut().map(Side::end).fold(Ok(()), Result::and);
    made.and(ended)
}

fn rounds(
    args: &Args,
    directory: &Path,
    sides: &mut [Side<'_>],
    profile: &mut Option<Value>,
    runtimes: Vec<String>,
    report: &mut Report,
) -> Result<()> {
    let begun = Instant::now();
    let is_done = |what: &str| println!("{what}: done after {} s", begun.elapsed().as_secs());
    for side in &mut *sides {
        harness::interrupt::check()?;
        let (rate, found) = warm_up(side, args.wants(Kind::Rest))?;
        if let Some(rate) = rate {
            side.note("statistics", format!("read {rate:.2} times a second"));
        }
        *profile = profile.take().or(found);
    }
    is_done("warm-up");
    report.setups = sides.iter().map(Side::record).collect();
    let runtimes = if args.floor.is_empty() { runtimes } else { args.floor.clone() };
    let has_floors = args.wants(Kind::Single) && !runtimes.iter().any(|name| name == "none");
    let floors = has_floors.then(|| Floors::start(directory, &args.choice, &runtimes, profile.as_ref()));
    let floors = floors.transpose()?;
    report.setups.extend(floors.iter().flat_map(Floors::records));
    let mut rounds = Rounds::new(sides, args.steady);
    let made = make(args, &mut rounds, floors.as_ref(), is_done);
    let ended = floors.map_or(Ok(()), Floors::end);
    let (samples, scale, timelines) = rounds.into_results();
    report.series = samples.into_series();
    report.scale = scale;
    report.timelines = timelines;
    made.and(ended)
}

/// Makes all kinds of rounds: those of tasks at rest first, see [`rounds`].
fn make(
    args: &Args,
    rounds: &mut Rounds<'_, '_>,
    floors: Option<&Floors>,
    is_done: impl Fn(&str),
) -> Result<()> {
    let others = args.others();
    if args.wants(Kind::Rest) {
        let mut counts = args.tasks.clone();
        counts.sort_unstable();
        counts.dedup();
        for tasks in counts {
            rounds.at_rest(others, tasks)?;
            is_done(&format!("{tasks} tasks at rest"));
        }
    }
    if args.wants(Kind::Single) {
        rounds.single(args.rounds, floors)?;
        is_done("single tasks");
    }
    if args.wants(Kind::Output) {
        rounds.output(others)?;
        is_done("much output");
    }
    if args.wants(Kind::Logs) {
        rounds.logs(others, args.log_megabytes as usize * 1_000_000 / PIECE_BYTES)?;
        is_done("logs");
    }
    if args.wants(Kind::Flood) {
        rounds.flood(others, args.flood)?;
        is_done("floods of tasks");
    }
    Ok(())
}

/// Returns on what the figures are taken, and when. Files are in a directory.
fn heading(args: &Args, directory: &Path) -> Result<String> {
    let nomad = output(Command::new(&args.nomad).arg("version"))?;
    let nomad = nomad.lines().next().unwrap_or_default().to_owned();
    let date = output(Command::new("date").args(["-u", "+%F"]))?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut find = Command::new("findmnt");
    let system = output(find.args(["--noheadings", "--output", "FSTYPE", "--target"]).arg(directory))?;
    // The kernel notes the time of a write by this clock.
    let tick = clock_getres(ClockId::RealtimeCoarse).tv_nsec / 1_000_000;
    let machine = machine::look()?;
    Ok(format!(
        "Seen on {}: {nomad}, Linux {}, {} CPUs, ticks of {tick} ms, cgroup {},\nfiles on {}, AppArmor {}. Agents log at {}. {} \
         rounds with a single task, {} of each other kind.\n",
        date.trim(),
        kernel.trim(),
        machine.cores,
        machine.cgroups,
        system.trim(),
        if apparmor::is_enabled() { "on (each driver has its default profile)" } else { "off" },
        if args.timelines { "DEBUG" } else { USUAL_LOG_LEVEL },
        args.rounds,
        args.others(),
    ))
}

/// Prints the tables, and writes the files that are asked for.
fn write(args: &Args, heading: &str, report: &Report) -> Result<()> {
    let setups: String = report.setups.iter().map(described).collect();
    let is_pair = report.setups.iter().filter(|setup| setup.parts.contains_key("variation")).count() == 2;
    let names = || report.setups.iter().map(|setup| &*setup.name);
    let usual = || REFERENCES.into_iter().find(|reference| names().any(|name| name == *reference));
    let reference = args.reference.as_deref().or_else(usual).or_else(|| names().next()).unwrap_or_default();
    let tables = table::text(report, reference);
    let pair = if is_pair { format!("\n{}", pair::text(report)) } else { String::new() };
    let text = format!("{heading}\n{setups}\n## Aims\n\n{}\n## Figures\n{pair}{tables}", aims::text(report));
    print!("{text}");
    if let Some(path) = &args.markdown {
        fs::write(path, &text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(report)?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.csv {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        csv::write(report, &mut BufWriter::new(file))?;
    }
    let page = format!("{heading}\n{setups}{pair}");
    args.page.as_ref().map_or(Ok(()), |path| page::write_into(path, FRAME, &page))
}

/// Returns a setup with its parts as an item of a list.
fn described(setup: &super::report_data::Setup) -> String {
    let parts: Vec<_> = setup.parts.iter().map(|(what, words)| format!("{what}: {words}")).collect();
    format!("- {}: {}\n", setup.name, parts.join("; "))
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
                path: rounds::PATH.to_owned(),
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
            settings: Settings { iterations: 3, warm_up: 1, duration_ms: None },
            series: series.collect(),
            scale: Vec::new(),
            timelines: Vec::new(),
            not_measured: Vec::new(),
        }
    }

    fn args(words: &[&str]) -> Args {
        let usual = ["agent", "--plugin", "/p", "--nomad", "/n"];
        let command = Args::augment_args(clap::Command::new("agent"));
        let given = command.get_matches_from(usual.iter().chain(words));
        Args::from_arg_matches(&given).unwrap()
    }

    #[test]
    fn of_two_sides_each_is_first_in_half_of_the_rounds() {
        let pair = ["--variation", "docker", "--variation", "as-docker"];
        assert_eq!(args(&pair).others(), 4);
        assert_eq!(args(&[&pair[..], &["--rounds", "3"]].concat()).others(), 2);
        assert_eq!(args(&["--rounds", "3"]).others(), 1);
    }

    #[test]
    fn a_setup_is_an_item_of_a_list() {
        let parts = [("plugin", "0.1.0, a release build"), ("variation", "name=a,runtime=crun")];
        let parts = parts.map(|(what, words)| (what.to_owned(), words.to_owned())).into();
        assert_eq!(
            described(&Setup { name: "a".to_owned(), parts }),
            "- a: plugin: 0.1.0, a release build; variation: name=a,runtime=crun\n"
        );
    }
}
