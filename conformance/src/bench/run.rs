//! One run: setups are brought up, every lane takes each step in turn, and what was found is told. A call that fails is a
//! figure; what the figures are taken on has to come up and end well.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::call::{Call, Step, steps};
use super::cost::{Group, Memory, Reading};
use super::direct::Direct;
use super::ground::Ground;
use super::lane::{Lane, Outcomes, remove_timed};
use super::path::Path;
use super::plugin::{ByPlugin, Driver};
use super::progress::Progress;
use super::record::{FORMAT, NotMeasured, Report, Settings};
use super::schedule::{Until, order};
use super::tally::{Conditions, Tally};
use super::{cli, cost, csv, daemon, machine, setup, table};
use crate::fixture::leftovers;
use crate::{fixture, interrupt};

/// What goes on after an answer belongs to the call as well.
const SETTLES: Duration = Duration::from_millis(5);

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

    fn until(&self) -> Until {
        self.duration.map_or(Until::Turns(self.iterations), Until::Elapsed)
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
    let drivers = runtime.block_on(drivers(args, &grounds))?;
    let mut bench = Bench { args, group, lanes: lanes(args, &grounds, &drivers)?, tally: Tally::default() };
    report.not_measured.extend(bench.lacks());
    let measured = runtime.block_on(bench.all());
    report.series = bench.tally.into_series();
    drop(bench.lanes);
    for driver in drivers.into_iter().flatten().filter_map(Arc::into_inner) {
        runtime.block_on(driver.end());
    }
    cgroups.restore();
    let ended = grounds.into_iter().try_for_each(|ground| end(&runtime, ground));
    drop((runtime, bench.group));
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

struct Bench<'a> {
    args: &'a Args,
    group: Option<Group>,
    lanes: Vec<Lane>,
    tally: Tally,
}

/// What is measured of a lane at a time.
struct Now<'a> {
    conditions: Conditions,
    wanted: &'a [Call],
    /// None while warming up.
    turn: Option<u32>,
}

impl Bench<'_> {
    fn wanted(&self) -> Vec<Call> {
        let all = Call::value_variants().iter().copied();
        all.filter(|call| self.args.calls.is_empty() || self.args.calls.contains(call)).collect()
    }

    fn lacks(&self) -> Vec<NotMeasured> {
        let wanted = self.wanted();
        let of_lane = |lane: &Lane| {
            let lack = |call: &Call| {
                let what = format!("{call} on {}", lane.name());
                Some(NotMeasured { what, why: lane.path.lacks(*call)? })
            };
            wanted.iter().filter_map(lack).collect::<Vec<_>>()
        };
        self.lanes.iter().flat_map(of_lane).collect()
    }

    async fn all(&mut self) -> Result<()> {
        let measured = tokio::select! {
            measured = self.conditions() => measured,
            () = interrupt::interrupted() => Err(anyhow!("interrupted")),
        };
        let ended = self.end().await;
        measured.and(ended)
    }

    async fn conditions(&mut self) -> Result<()> {
        let mut progress = Progress::new();
        for held in self.args.held.clone() {
            for concurrency in self.args.concurrency.clone() {
                self.under(concurrency, held, &mut progress).await?;
                self.end().await?;
            }
        }
        Ok(())
    }

    /// All turns under the same conditions.
    async fn under(&mut self, concurrency: u32, held: u32, progress: &mut Progress) -> Result<()> {
        let wanted = self.wanted();
        let steps = steps(&wanted, &self.args.payload);
        for lane in &mut self.lanes {
            lane.begin(&steps, concurrency as usize, held as usize).await?;
        }
        self.expect(&steps, &wanted, concurrency, held);
        let (until, warm_up) = (self.args.until(), self.args.warm_up);
        let mut begun = Instant::now();
        for number in 0.. {
            let turn = u32::checked_sub(number, warm_up);
            if turn == Some(0) {
                begun = Instant::now();
            }
            if turn.is_some_and(|turn| until.is_over(turn, begun.elapsed())) {
                break;
            }
            for lane in &mut self.lanes {
                lane.begin_turn(&steps).await;
            }
            for (place, step) in steps.iter().enumerate() {
                for lane in order(self.lanes.len(), number, place) {
                    progress.say(|| {
                        let turn =
                            turn.map_or_else(|| "warming up".to_owned(), |turn| format!("turn {}", turn + 1));
                        format!("{turn}: {step:?} on {}", self.lanes[lane].name())
                    });
                    let now = Now {
                        conditions: Conditions::of(&self.lanes[lane], concurrency, held),
                        wanted: &wanted,
                        turn,
                    };
                    self.take(lane, *step, &now).await?;
                }
            }
            for lane in &mut self.lanes {
                lane.end_turn().await?;
            }
        }
        self.settle(concurrency, held);
        Ok(())
    }

    /// Gives every series its place, whatever comes of it.
    fn expect(&mut self, steps: &[Step], wanted: &[Call], concurrency: u32, held: u32) {
        for step in steps {
            for call in step.gives().iter().filter(|call| wanted.contains(call)) {
                for lane in self.lanes.iter().filter(|lane| lane.has(*step).contains(call)) {
                    let conditions = Conditions::of(lane, concurrency, held);
                    self.tally.expect(conditions.key(*call, step.payload()));
                }
            }
        }
    }

    /// Has a lane take a step, and writes down what came of it.
    async fn take(&mut self, lane: usize, step: Step, now: &Now<'_>) -> Result<()> {
        if !self.lanes[lane].steps(&[step, Step::End]).contains(&step) && step != Step::End {
            return Ok(());
        }
        let before = self.reading()?;
        if step != Step::Task {
            let outcomes = self.lanes[lane].make(step).await;
            self.charge(lane, step, step.whole(), before, now).await?;
            self.record(lane, step, outcomes, now);
            return Ok(());
        }
        let started = self.lanes[lane].start_tasks().await;
        self.charge(lane, step, Some(Call::TaskStart), before, now).await?;
        let before = self.reading()?;
        let mut tasks = Vec::new();
        let mut starts = Outcomes::new();
        for start in started {
            match start {
                Ok((container, took)) => {
                    tasks.push(container);
                    starts.push(Ok(vec![(Call::TaskStart, took)]));
                }
                Err(error) => starts.push(Err(error)),
            }
        }
        let removals = futures::future::join_all(tasks.into_iter().map(remove_timed)).await;
        self.charge(lane, step, Some(Call::TaskRemoval), before, now).await?;
        let removals = removals.into_iter().map(|took| Ok(vec![(Call::TaskRemoval, took?)])).collect();
        self.record_calls(&[Call::TaskStart], 0, starts, now);
        self.record_calls(&[Call::TaskRemoval], 0, removals, now);
        Ok(())
    }

    fn reading(&self) -> Result<Option<Reading>> {
        self.group.as_ref().map(Group::read).transpose()
    }

    /// Puts what was taken since down to a call.
    async fn charge(
        &mut self,
        lane: usize,
        step: Step,
        call: Option<Call>,
        before: Option<Reading>,
        now: &Now<'_>,
    ) -> Result<()> {
        let (Some(group), Some(before), Some(call), Some(_)) = (&self.group, before, call, now.turn) else {
            return Ok(());
        };
        sleep(SETTLES).await;
        let own = i32::try_from(std::process::id())?;
        let taken = group.read()?.since(&before, &self.lanes[lane].path.servers(), own);
        let key = now.conditions.key(call, step.payload());
        self.tally.cost(key).add(u64::from(now.conditions.concurrency), &taken);
        Ok(())
    }

    fn record(&mut self, lane: usize, step: Step, outcomes: Outcomes, now: &Now<'_>) {
        let calls = self.lanes[lane].has(step);
        self.record_calls(&calls, step.payload(), outcomes, now);
    }

    /// A step that fails has failed in each of the calls that were to come of it.
    fn record_calls(&mut self, calls: &[Call], payload: usize, outcomes: Outcomes, now: &Now<'_>) {
        let Some(turn) = now.turn else { return };
        for outcome in outcomes {
            for call in calls.iter().filter(|call| now.wanted.contains(call)) {
                let took = match &outcome {
                    Ok(times) => times
                        .iter()
                        .find(|(made, _)| made == call)
                        .map(|(_, took)| *took)
                        .context("it was made, and not measured"),
                    Err(error) => Err(anyhow!("{error:#}")),
                };
                self.tally.record(now.conditions.key(*call, payload), turn, took);
            }
        }
    }

    /// What was taken and is resident, once the last turn is over and before anything is removed.
    fn settle(&mut self, concurrency: u32, held: u32) {
        if self.group.is_none() {
            return;
        }
        for lane in &self.lanes {
            let memory = Memory::of(&lane.path.servers(), &lane.shims());
            let (setup, path) = (&lane.setup, lane.path.name());
            let is_theirs = |key: &super::record::Key| {
                key.setup == *setup && key.path == path && key.concurrency == concurrency && key.held == held
            };
            self.tally.settle(is_theirs, &memory);
        }
    }

    async fn end(&mut self) -> Result<()> {
        let mut stays = Vec::new();
        for lane in &mut self.lanes {
            if let Err(error) = lane.end().await {
                stays.push(format!("{error:#}"));
            }
        }
        if stays.is_empty() { Ok(()) } else { bail!("{}", stays.join("; ")) }
    }
}
