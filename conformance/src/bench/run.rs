//! One run: setups are brought up, their lanes take turns, and what was found is told. A call that fails is a
//! figure; what the figures are taken on has to come up and end well.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::ValueEnum;
use tokio::runtime::Runtime;

use super::call::Call;
use super::cost::Group;
use super::direct::Direct;
use super::ground::Ground;
use super::lane::Lane;
use super::path::Path;
use super::plugin::{ByPlugin, Driver};
use super::record::{FORMAT, NotMeasured, Report, Settings};
use super::schedule::Until;
use super::tally::Tally;
use super::turns::{Bench, Wanted};
use super::{cli, cost, csv, daemon, machine, setup, table};
use crate::fixture::leftovers;
use crate::{fixture, interrupt};

#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    #[command(flatten)]
    choice: setup::Choice,
    /// Only this path; may be repeated.
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<PathName>,
    /// Only this call; may be repeated.
    #[arg(long = "call", value_name = "CALL")]
    calls: Vec<Call>,
    /// How many turns are counted. Each makes every call once by each path on each setup.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    iterations: u32,
    /// Turns before those, which aren't counted.
    #[arg(long, default_value_t = 2)]
    warm_up: u32,
    /// Ends the counted turns by time rather than by number: 30s, 5m. Each of several conditions gets as much.
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// How many of each call are under way at a time: 1, or 1,4,16.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: Vec<u32>,
    /// How many bytes an exec is given and gives back; with 0 it says one word: 0,4096,1048576.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    payload: Vec<usize>,
    /// How many other tasks each path has running on each setup meanwhile: 0,10,50.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    held: Vec<u32>,
    /// Leave CPU time and memory out.
    #[arg(long)]
    no_cost: bool,
    /// Where to write everything, samples included.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to write a row for each call.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// End badly if any call failed.
    #[arg(long)]
    strict: bool,
}

/// The way that calls take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PathName {
    /// ttrpc to a shim that is started here.
    Direct,
    /// containerd's services.
    Daemon,
    /// The OCI runtime's command line.
    Cli,
    /// A task driver, as Nomad calls it.
    Plugin,
}

impl Args {
    pub fn may_run_crun(&self) -> bool {
        self.choice.may_run_crun()
    }

    fn wants(&self, path: PathName) -> bool {
        self.paths.is_empty() || self.paths.contains(&path)
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
/// When what the figures are taken on doesn't come up, or ends badly.
pub fn run(args: &Args) -> Result<ExitCode> {
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
/// As [`run`].
pub fn measure(args: &Args) -> Result<Report> {
    let setups = args.choice.setups()?;
    let mut report = Report {
        format: FORMAT,
        made_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        machine: machine::look()?,
        setups: setups.iter().map(setup::Setup::record).collect(),
        settings: Settings {
            iterations: args.iterations,
            warm_up: args.warm_up,
            duration_ms: args.duration.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        },
        series: Vec::new(),
        scale: Vec::new(),
        not_measured: Vec::new(),
    };
    let group = if args.no_cost {
        None
    } else {
        let entered = Group::enter();
        let missing = |error: &anyhow::Error| {
            report.not_measured.push(NotMeasured { what: "CPU time".to_owned(), why: format!("{error:#}") });
        };
        entered.inspect_err(missing).ok()
    };
    let runtime = Runtime::new()?;
    let directory = fixture::own_directory()?;
    let mut grounds = Vec::new();
    for (number, setup) in setups.into_iter().enumerate() {
        interrupt::check()?;
        let name = setup.name.clone();
        let ground = Ground::start(&runtime, directory.path().join(format!("s{number}")), setup);
        grounds.push(Arc::new(ground.with_context(|| format!("setup {name:?}"))?));
    }
    let cgroups = leftovers::CgroupRoots::note();
    let drivers = runtime.block_on(async {
        tokio::select! {
            drivers = drivers(args, &grounds) => drivers,
            () = interrupt::interrupted() => Err(anyhow!("interrupted")),
        }
    })?;
    let wanted = args.wanted();
    let lanes = lanes(args, &grounds, &drivers)?;
    let mut bench = Bench { wanted: &wanted, group: group.as_ref(), lanes, tally: Tally::default() };
    report.not_measured.extend(bench.lacks());
    let measured = runtime.block_on(bench.all());
    report.series = bench.tally.into_series();
    drop(bench.lanes);
    for driver in drivers.into_iter().flatten().filter_map(Arc::into_inner) {
        runtime.block_on(driver.end());
    }
    cgroups.restore();
    let ended = grounds.into_iter().try_for_each(|ground| end(&runtime, ground));
    drop((runtime, group));
    cost::remove_groups();
    measured.and(ended).map(|()| report)
}

fn end(runtime: &Runtime, ground: Arc<Ground>) -> Result<()> {
    let ground =
        Arc::try_unwrap(ground).map_err(|ground| anyhow!("setup {:?} is still in use", ground.setup.name))?;
    ground.end(runtime)
}

/// The plugins of those setups that have one.
async fn drivers(args: &Args, grounds: &[Arc<Ground>]) -> Result<Vec<Option<Arc<Driver>>>> {
    let mut drivers = Vec::new();
    for ground in grounds {
        let name = &ground.setup.name;
        let driver = if args.wants(PathName::Plugin) {
            Driver::start(ground).await.with_context(|| format!("the plugin of setup {name:?}"))?
        } else {
            None
        };
        let is_missing = driver.is_none() && args.paths.contains(&PathName::Plugin);
        ensure!(!is_missing, "setup {name:?} has no plugin: name one by --plugin, or by plugin= in --setup");
        drivers.push(driver);
    }
    Ok(drivers)
}

fn lanes(args: &Args, grounds: &[Arc<Ground>], drivers: &[Option<Arc<Driver>>]) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    for (ground, driver) in grounds.iter().zip(drivers) {
        let mut add = |path: Arc<dyn Path>| lanes.push(Lane::new(&ground.setup.name, path));
        if args.wants(PathName::Cli)
            && let Some(path) = cli::Cli::of(ground)
        {
            add(Arc::new(path));
        }
        if args.wants(PathName::Direct) {
            add(Arc::new(Direct(Arc::clone(ground))));
        }
        if let Some(driver) = driver {
            add(Arc::new(ByPlugin(Arc::clone(driver))));
        }
        if args.wants(PathName::Daemon) {
            add(Arc::new(daemon::Daemon(Arc::clone(ground))));
        }
    }
    ensure!(!lanes.is_empty(), "no setup has any of those paths");
    Ok(lanes)
}
