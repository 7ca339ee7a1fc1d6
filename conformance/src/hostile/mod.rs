//! Hostile jobs, made at random from a grammar: a task that does what a bad tenant would, from inside and by its
//! configuration, beside a bystander, with a judge that knows only what an agent would, and the host.

mod acts;
mod breach;
mod canaries;
mod client;
mod configuration;
mod excuses;
mod judge;
mod table;
mod test_bed;
mod texts;
mod trial;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use acts::{ACTS, Act};
use anyhow::{Context, Result, anyhow, ensure};
use harness::environment::TestEnvironment;
use harness::fixture::{Choice, Programs};
use harness::interrupt::{UnderWay, check};
use table::Table;
use test_bed::TestBed;
use tokio::runtime::Runtime;
use trial::Trial;

use harness::page;

/// Words that frame the table in a page.
const FRAME: &str = "hack/hostile";

#[derive(clap::Args)]
pub struct Args {
    /// Path of the driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Number that makes the first trial. Each further trial has the next number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of trials.
    #[arg(long, default_value_t = 300)]
    trials: u64,
    /// Run trials with this act alone, and a configuration without oddities.
    #[arg(long, value_parser = act)]
    only: Option<&'static Act>,
    /// Print the trials instead of running them.
    #[arg(long)]
    list: bool,
    /// Page whose table of results is replaced by this run's.
    #[arg(long)]
    page: Option<PathBuf>,
    /// Number of trials that run concurrently, each in a test environment of its own.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    #[command(flatten)]
    pub choice: Choice,
}

fn act(name: &str) -> Result<&'static Act> {
    let names = || ACTS.iter().map(|act| act.name).collect::<Vec<_>>().join(", ");
    ACTS.iter().find(|act| act.name == name).with_context(|| format!("the acts are {}", names()))
}

/// # Errors
/// Fails if the fixture can't be built. A failed trial is in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let seeds = args.seed..args.seed.saturating_add(args.trials);
    if args.list {
        seeds.for_each(|seed| println!("{}", Trial::of(seed, args.only)));
        return Ok(ExitCode::SUCCESS);
    }
    let plugin = std::path::absolute(&args.plugin)?;
    let programs = Programs::find(&args.choice)?;
    println!("{}", programs.versions().join(", "));
    let (queue, table) = (Mutex::new(seeds), Mutex::new(Table::default()));
    std::thread::scope(|scope| {
        let work = |number: usize| {
            let (programs, plugin, queue, table) = (programs.clone(), &plugin, &queue, &table);
            scope.spawn(move || {
                let mut worker = Worker::start(programs, plugin, number)?;
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                worker.work_off(next, args.only, table)
            })
        };
        let working: Vec<_> = (0..args.jobs.max(1)).map(work).collect();
        working.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a panic")).flatten())
    })?;
    let table = table.into_inner().unwrap_or_else(PoisonError::into_inner);
    let text = table.text();
    print!("{text}");
    println!(
        "{} s of trials; a command in the bystander took {:?} at most",
        table.took.as_secs(),
        table.slowest
    );
    if let Some(path) = &args.page {
        page::write_into(path, FRAME, &text)?;
    }
    ensure!(table.has_tried(), "each job was refused, so nothing was tried");
    Ok(if table.has_failures() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A test environment with a thread of its own.
struct Worker<'a> {
    environment: Arc<TestEnvironment>,
    plugin: &'a Path,
    number: usize,
    test_beds: usize,
    runtime: Runtime,
}

impl<'a> Worker<'a> {
    fn start(programs: Programs, plugin: &'a Path, number: usize) -> Result<Self> {
        let _under_way = UnderWay::begin();
        let environment = TestEnvironment::start_of(programs)?;
        test_bed::push_image(&environment).context("push the image of hostile tasks")?;
        Ok(Self { environment, plugin, number, test_beds: 0, runtime: Runtime::new()? })
    }

    fn test_bed(&mut self) -> Result<TestBed> {
        self.test_beds += 1;
        let name = format!("h{}x{}", self.number, self.test_beds);
        let set_up = TestBed::set_up(&self.environment, self.plugin, name);
        self.runtime.block_on(set_up).context("set up a test bed")
    }

    /// Runs trials until there is none left.
    fn work_off(
        &mut self,
        next: impl Fn() -> Option<u64>,
        only: Option<&'static Act>,
        table: &Mutex<Table>,
    ) -> Result<()> {
        let mut bed = None;
        while let Some(seed) = next() {
            check()?;
            let _under_way = UnderWay::begin();
            let mut here = match bed.take() {
                Some(bed) => bed,
                None => self.test_bed()?,
            };
            let (trial, began) = (Trial::of(seed, only), Instant::now());
            let tried = self.runtime.block_on(here.run(&trial));
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            table.slowest = table.slowest.max(here.slowest);
            let outcome = match tried {
                Ok(outcome) => {
                    bed = Some(here);
                    Some(outcome)
                }
                Err(error) => {
                    // After a failure, nothing that is there can be relied on.
                    let shown = format!("{error:#}\n{}", here.give_up());
                    println!("FAILED {trial}\n  {}", shown.trim_end().replace('\n', "\n  "));
                    None
                }
            };
            table.add(&trial, outcome, began.elapsed());
            if table.done().is_multiple_of(25) {
                println!("{} trials", table.done());
            }
        }
        let _under_way = UnderWay::begin();
        bed.map_or(Ok(()), |bed| self.runtime.block_on(bed.take_down()))
    }
}
