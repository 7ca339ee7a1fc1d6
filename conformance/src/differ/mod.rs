//! The same jobs under Nomad's own docker driver with a dockerd, and under this driver, which answers as `docker`: each
//! fact that differs has a reason in the table, or fails the run.

mod compare;
mod explained;
mod facts;
mod grammar;
mod images;
mod job;
mod options;
mod run;
mod side;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use harness::environment::TestEnvironment;
use harness::fixture::{Choice, Programs};
use harness::interrupt::check;
use harness::leaks::inspect::find_processes;
use job::Job;
use run::Outcome;
use side::Sides;
use table::Table;

use harness::page;

/// Words that frame the table in a page.
const FRAME: &str = "hack/differ";
/// Of a short run, each job of the options whose place is a multiple of this.
const SHORT: usize = 6;

#[derive(clap::Args)]
pub struct Args {
    /// Path of the driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Path of Nomad's binary.
    #[arg(long)]
    nomad: PathBuf,
    /// Path of dockerd's binary, with docker-proxy beside it.
    #[arg(long)]
    dockerd: PathBuf,
    /// Number that makes the first job at random. Each further job has the next number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of jobs that are made at random, beside those of the options and images.
    #[arg(long)]
    jobs: Option<u64>,
    /// Run the jobs of this option alone, or with `image` those of the images, or with `random` those made at random.
    #[arg(long)]
    only: Option<String>,
    /// Run a choice of the jobs that takes some minutes.
    #[arg(long)]
    short: bool,
    /// Number of jobs that run concurrently on each side.
    #[arg(long, default_value_t = 2)]
    lanes: usize,
    /// Print all facts of all jobs.
    #[arg(long)]
    facts: bool,
    /// Print the jobs instead of running them.
    #[arg(long)]
    list: bool,
    /// Page whose table of explained differences is replaced by this run's.
    #[arg(long)]
    page: Option<PathBuf>,
    #[command(flatten)]
    pub choice: Choice,
}

impl Args {
    fn wanted(&self) -> Result<Vec<Job>> {
        let only = self.only.as_deref();
        let mut jobs = match only {
            Some("random") => Vec::new(),
            _ => grammar::of_options(only)?,
        };
        if only.is_none_or(|word| word == "image") {
            jobs.extend(grammar::of_images());
        }
        if self.short {
            jobs = jobs.into_iter().step_by(SHORT).collect();
        }
        let usual = if self.short { 10 } else { 200 };
        if only.is_none_or(|word| word == "random") {
            let seeds = self.seed..self.seed.saturating_add(self.jobs.unwrap_or(usual));
            jobs.extend(seeds.map(grammar::at_random).collect::<Result<Vec<_>>>()?);
        }
        ensure!(!jobs.is_empty(), "no option has the name {:?}", only.unwrap_or_default());
        Ok(jobs)
    }
}

/// # Errors
/// Fails if one of the sides can't be set up, or with what is left. A difference without a reason is in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let jobs = args.wanted()?;
    if args.list {
        jobs.iter().for_each(|job| println!("{}", job.text("differ", "node", "{image}", &str::to_owned)));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} jobs", jobs.len());
    let table = on_both_sides(args, |sides| {
        let table = compare_all(args, sides, &jobs)?;
        print!("{}\n{}", table.open_ends(), table.text());
        if let Some(path) = &args.page {
            println!("explanations that were of no use: {:?}", table.unused());
            page::write_into(path, FRAME, &table.text())?;
        }
        Ok(table)
    })?;
    Ok(if table.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sets up both sides, does something on them, and asserts that nothing of them is left.
fn on_both_sides<T>(args: &Args, act: impl FnOnce(&Sides<'_>) -> Result<T>) -> Result<T> {
    let programs = Programs::find(&args.choice)?;
    println!("{}", programs.versions().join(", "));
    let environment = TestEnvironment::start_of(programs)?;
    let begun = Instant::now();
    let binaries = [&args.nomad, &args.plugin, &args.dockerd].map(std::path::absolute);
    let [nomad, plugin, dockerd] = binaries;
    let mut sides = Sides::start(&environment, [&nomad?, &plugin?, &dockerd?])?;
    println!("both sides are up after {:.1} s", begun.elapsed().as_secs_f32());
    let made = act(&sides).map_err(|error| anyhow!("{error:#}\n{}", sides.last_words()))?;
    sides.stop()?;
    drop(sides);
    let directory = environment.directory().to_owned();
    drop(environment);
    ensure!(!directory.exists(), "{} is still there", directory.display());
    let left = find_processes(&directory);
    ensure!(left.is_empty(), "these are still there: {left:?}");
    println!("all of it done in {:.0} s", begun.elapsed().as_secs_f32());
    Ok(made)
}

/// Runs all jobs on both sides, and compares each as soon as both have run it.
fn compare_all(args: &Args, sides: &Sides<'_>, jobs: &[Job]) -> Result<Table> {
    type Run = Result<Outcome>;
    let table = Mutex::new(Table::default());
    let waiting: Mutex<Vec<Option<Run>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    let benches = [sides.bench(0)?, sides.bench(1)?];
    let places = [AtomicUsize::new(0), AtomicUsize::new(0)];
    thread::scope(|scope| {
        let work = |side: usize| {
            let (waiting, table, places, bench) = (&waiting, &table, &places, &benches[side]);
            scope.spawn(move || -> Result<()> {
                loop {
                    let place = places[side].fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(place) else { return Ok(()) };
                    check()?;
                    let ran = bench.run(&format!("differ-{place}-{side}"), job);
                    let other = {
                        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                        match waiting[place].take() {
                            Some(other) => other,
                            None => {
                                waiting[place] = Some(ran);
                                continue;
                            }
                        }
                    };
                    let [docker, here] = if side == 0 { [ran, other] } else { [other, ran] };
                    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
                    judge(args, &mut table, job, docker, here);
                }
            })
        };
        let working: Vec<_> = (0..args.lanes.max(1)).flat_map(|_| [0, 1]).map(work).collect();
        working.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a panic")).flatten())
    })?;
    Ok(table.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn judge(args: &Args, table: &mut Table, job: &Job, docker: Result<Outcome>, here: Result<Outcome>) {
    let both = docker.context("docker").and_then(|docker| Ok((docker, here.context("here")?)));
    let both = both.and_then(|(docker, here)| {
        ensure!(docker.is_placed() || here.is_placed(), "it is placed on neither side");
        Ok((docker, here))
    });
    match both {
        Ok((docker, here)) => {
            if args.facts {
                println!("# {}\ndocker: {}\n{:#?}", job.about, docker.error, docker.facts);
                println!("here: {}\n{:#?}", here.error, here.facts);
            }
            let compared = compare::compare(&docker, &here);
            if args.facts {
                compared.differences.iter().for_each(|difference| println!("{difference:?}"));
            }
            table.add(job, compared);
        }
        Err(error) => {
            println!("FAILED {}: {error:#}", job.about);
            table.add_failed(format!("{}: {error:#}", job.about));
        }
    }
    if table.done().is_multiple_of(25) {
        println!("{} jobs", table.done());
    }
}
