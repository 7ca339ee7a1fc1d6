//! Faults at every step, by enumeration: a scenario is run once to list the points that the plugin reaches, and then
//! again for each point and fault, with a judge that knows only what an agent would.

mod client;
mod disk;
pub mod injector;
mod outside;
mod point;
mod record;
mod scenario;
mod system_calls;
mod test_bed;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum as _;
use disk::Disk;
use harness::environment::TestEnvironment;
use harness::fixture::{Choice, Programs};
use harness::interrupt::{UnderWay, check};
use point::{Fault, Point, Trial, faults_at};
use record::Record;
use scenario::Scenario;
use test_bed::TestBed;
use tokio::runtime::Runtime;

use harness::page;

/// Size of containerd's disk: enough for the images of all cases.
const CONTAINERD_DISK_BYTES: u64 = 512 * 1024 * 1024;

#[derive(clap::Args)]
pub struct Args {
    /// Path of the driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Run this scenario only. May be repeated.
    #[arg(long)]
    scenario: Vec<Scenario>,
    /// Number from which the trials are chosen, and their order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Maximum number of trials of each scenario, chosen by the seed. All without it.
    #[arg(long)]
    trials: Option<usize>,
    /// Run a part of the trials, such as 2/5 for the second fifth of them.
    #[arg(long, value_parser = shard)]
    shard: Option<(usize, usize)>,
    /// Inject this fault only, such as kill or ENOSPC. May be repeated.
    #[arg(long)]
    fault: Vec<String>,
    /// Inject only at points whose text contains this.
    #[arg(long)]
    point: Option<String>,
    /// Run this trial only, as a failure is reported.
    #[arg(long)]
    trial: Option<Trial>,
    /// List the points of the scenarios instead of trying them.
    #[arg(long)]
    list: bool,
    /// File that keeps the results. A run leaves out what is in it already.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Page whose table of results is replaced by this run's.
    #[arg(long)]
    page: Option<PathBuf>,
    /// Number of trials that run concurrently, each in a test environment of its own.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    #[command(flatten)]
    pub choice: Choice,
}

fn shard(text: &str) -> Result<(usize, usize)> {
    let (part, parts) = text.split_once('/').context("it is written as 2/5")?;
    let (part, parts) = (part.parse()?, parts.parse()?);
    ensure!((1..=parts).contains(&part), "there is no part {part} of {parts}");
    Ok((part, parts))
}

/// # Errors
/// Fails if a scenario doesn't work without a fault. A failed trial is in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let plugin = std::path::absolute(&args.plugin)?;
    let programs = Programs::find(&args.choice)?;
    println!("{}", programs.versions().join(", "));
    let scenarios =
        if args.scenario.is_empty() { Scenario::value_variants().to_vec() } else { args.scenario.clone() };
    let mut workers = Worker::start_all(&programs, &plugin, args.jobs.max(1))?;
    let (queue, points) = (Mutex::new(VecDeque::from(scenarios)), Mutex::new(BTreeMap::new()));
    at_once(&mut workers, |worker| {
        while let Some(scenario) = lock(&queue).pop_front() {
            let listed = worker.points(scenario)?;
            lock(&points).insert(scenario, listed);
        }
        Ok(())
    })?;
    let points = points.into_inner().unwrap_or_else(PoisonError::into_inner);
    if args.list {
        for (scenario, points) in &points {
            points.iter().for_each(|point| println!("{scenario}: {point}"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut record = Record::open(args.record.as_deref())?;
    let mut queue = VecDeque::new();
    for (scenario, points) in &points {
        let trials = chosen(args, *scenario, points);
        println!("{scenario}: {} points, {} trials", points.len(), trials.len());
        queue.extend(trials.into_iter().map(|trial| (*scenario, trial)));
    }
    queue.retain(|(scenario, trial)| !record.has(*scenario, trial));
    // A run that is cut short has tried some of each scenario.
    let place = |(scenario, trial): &(Scenario, Trial)| hash(args.seed, &format!("{scenario} {trial}"));
    queue.make_contiguous().sort_by_cached_key(place);
    record.expect(queue.len());
    let (queue, record) = (Mutex::new(queue), Mutex::new(record));
    at_once(&mut workers, |worker| worker.work_off(&queue, &record))?;
    let record = record.into_inner().unwrap_or_else(PoisonError::into_inner);
    let points = points.iter().map(|(scenario, points)| (*scenario, points.len())).collect();
    let table = record.table(&points);
    print!("{table}");
    if let Some(path) = &args.page {
        page::write_into(path, "hack/faults", &table)?;
    }
    ensure!(record.has_tried() || args.trial.is_some(), "no trial reached its point, so nothing was tried");
    Ok(if record.has_failures() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Has all workers do something at the same time, each on a thread of its own.
fn at_once(workers: &mut [Worker], work: impl Fn(&mut Worker) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let working: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(|| work(worker))).collect();
        working.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a panic")).flatten())
    })
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the trials that the arguments select, in the seed's order.
fn chosen(args: &Args, scenario: Scenario, points: &[Point]) -> Vec<Trial> {
    if let Some(trial) = &args.trial {
        return vec![trial.clone()];
    }
    let is_wanted =
        |fault: &Fault| args.fault.is_empty() || args.fault.iter().any(|name| fault.to_string() == *name);
    let at = |point: &&Point| args.point.as_ref().is_none_or(|words| point.to_string().contains(words));
    let mut trials: Vec<Trial> = points
        .iter()
        .filter(at)
        .flat_map(|point| {
            faults_at(scenario, point)
                .into_iter()
                .filter(is_wanted)
                .map(|fault| Trial { point: point.clone(), fault })
        })
        .collect();
    // Each scenario has an order of its own: many points are those of all.
    trials.sort_by_cached_key(|trial| hash(args.seed, &format!("{scenario} {trial}")));
    trials.truncate(args.trials.unwrap_or(usize::MAX));
    let (part, parts) = args.shard.unwrap_or((1, 1));
    trials.into_iter().skip(part - 1).step_by(parts).collect()
}

/// Returns a number that depends on nothing but the seed and the text, so that a run can be repeated: FNV-1a, and the
/// last step of MurmurHash3, without which texts that differ only at their end would be neighbours in each order, and a
/// choice of few trials would be one of few objects.
fn hash(seed: u64, text: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let bytes = seed.to_le_bytes().into_iter().chain(text.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, mix);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// A test environment with a thread of its own.
struct Worker {
    /// The disk of containerd.
    disk: Arc<Disk>,
    environment: Arc<TestEnvironment>,
    plugin: PathBuf,
    name: String,
    test_beds: usize,
    runtime: Runtime,
}

impl Worker {
    /// Starts as many workers, all at the same time.
    fn start_all(programs: &Programs, plugin: &Path, count: usize) -> Result<Vec<Self>> {
        std::thread::scope(|scope| {
            let start = |number| scope.spawn(move || Self::start(programs, plugin, &format!("w{number}x")));
            let starting: Vec<_> = (0..count).map(start).collect();
            let started =
                starting.into_iter().map(|worker| worker.join().map_err(|_| anyhow!("a panic")).flatten());
            started.collect()
        })
    }

    fn start(programs: &Programs, plugin: &Path, name: &str) -> Result<Self> {
        let _under_way = UnderWay::begin();
        let environment = TestEnvironment::start_of(programs.clone())?;
        // It has kept nothing yet.
        environment.containerd().stop()?;
        let disk = Disk::in_memory(&environment.containerd().root(), CONTAINERD_DISK_BYTES)?;
        environment.containerd().start()?;
        let runtime = Runtime::new()?;
        let (plugin, name, disk) = (plugin.to_owned(), name.to_owned(), Arc::new(disk));
        Ok(Self { disk, environment, plugin, name, test_beds: 0, runtime })
    }

    fn test_bed(&mut self) -> Result<TestBed> {
        self.test_beds += 1;
        let name = format!("{}{}", self.name, self.test_beds);
        self.runtime
            .block_on(TestBed::set_up(&self.environment, Arc::clone(&self.disk), &self.plugin, name))
            .context("set up a test bed")
    }

    /// Lists the points that two runs of a scenario reach, in their order.
    fn points(&mut self, scenario: Scenario) -> Result<Vec<Point>> {
        let _under_way = UnderWay::begin();
        let bed = self.test_bed()?;
        let listed: Result<_> = self.runtime.block_on(async {
            let mut points = bed.points(scenario).await?;
            for point in bed.points(scenario).await? {
                if !points.contains(&point) {
                    points.push(point);
                }
            }
            bed.take_down().await?;
            Ok(points)
        });
        listed.with_context(|| format!("{scenario} without a fault"))
    }

    /// Runs trials until there is none left.
    fn work_off(&mut self, queue: &Mutex<VecDeque<(Scenario, Trial)>>, record: &Mutex<Record>) -> Result<()> {
        let next = || lock(queue).pop_front();
        let mut bed = None;
        while let Some((scenario, trial)) = next() {
            check()?;
            let _under_way = UnderWay::begin();
            let here = match bed.take() {
                Some(bed) => bed,
                None => self.test_bed()?,
            };
            let began = std::time::Instant::now();
            let tried = self.runtime.block_on(here.try_until_reached(scenario, &trial));
            let tried = tried.map_err(|error| format!("{error:#}\n{}", here.give_up()));
            // After a failure, nothing that is there can be relied on.
            if tried.is_ok() {
                bed = Some(here);
            }
            lock(record).add(scenario, &trial, &tried, began.elapsed())?;
        }
        let _under_way = UnderWay::begin();
        if let Some(bed) = bed {
            self.runtime.block_on(bed.take_down())?;
        }
        Ok(())
    }
}
