//! Measures how the cost of a task grows with the number of tasks: all are started at once, run for a while and have
//! their statistics read each second, and are stopped at once. While they start, one that runs already gets one exec
//! after the other. At each count, the paths take turns.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use futures::future::join_all;
use harness::interrupt;
use tokio::task::{JoinHandle, JoinSet};

use super::call::{Call, Step};
use super::cost::{Group, Memory};
use super::path::Container;
use super::progress::Progress;
use super::report_data::{Failure, PointKind, ScalePoint, Settings};
use super::samples::nanoseconds;
use super::setups::{SetupArgs, Setups};
use super::target::Target;

mod table;

#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Args {
    #[command(flatten)]
    on: SetupArgs,
    /// Number of concurrent tasks. Several are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,10,50,100,200", value_parser = clap::value_parser!(u32).range(1..=5000))]
    tasks: Vec<u32>,
    /// Time for which all tasks run and have their statistics read.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    steady: Duration,
    /// Write the report with all samples to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exit with code 1 if any call failed.
    #[arg(long)]
    strict: bool,
}

type Tasks = Vec<Box<dyn Container>>;
/// The time of each exec.
type Execs = Vec<Result<Duration>>;

impl Args {
    pub(crate) fn may_run_crun(&self) -> bool {
        self.on.may_run_crun()
    }
}

/// # Errors
/// Fails if the environment doesn't come up, or can't be cleaned up. A failed call is no error but part of the
/// figures.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let settings = Settings { iterations: 1, warm_up: 0, duration_ms: None, details: Default::default() };
    let (setups, mut report) = Setups::start(&args.on, settings)?;
    let measured = setups.runtime.block_on(async {
        tokio::select! {
            measured = measure(args, &setups) => measured,
            () = interrupt::interrupted() => Err(anyhow!("interrupted")),
        }
    });
    let ended = setups.end();
    report.scale = measured?;
    ended?;
    print!("{}", table::render(&report.scale));
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(&report)?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let failed = report.scale.iter().any(|point| !point.failures.is_empty());
    Ok(if args.strict && failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn measure(args: &Args, setups: &Setups) -> Result<Vec<ScalePoint>> {
    let mut counts = args.tasks.clone();
    counts.sort_unstable();
    counts.dedup();
    let mut progress = Progress::new();
    let mut points = Vec::new();
    for tasks in counts {
        for target in &setups.targets {
            interrupt::check()?;
            progress.say(|| format!("{tasks} tasks on {}", target.name()));
            points.push(at(tasks, target, args.steady, setups.group.as_ref()).await?);
        }
    }
    Ok(points)
}

/// Measures one count of tasks on one target.
async fn at(count: u32, target: &Target, steady: Duration, group: Option<&Group>) -> Result<ScalePoint> {
    let mut point = ScalePoint::empty(PointKind::Rest, &target.setup, target.path.name(), count);
    let mut tasks = start_all(target, &mut point).await;
    if !tasks.is_empty() {
        read_all(&mut tasks, target, steady, group, &mut point).await?;
    }
    stop_all(tasks, &mut point).await;
    Ok(point)
}

async fn start_all(target: &Target, point: &mut ScalePoint) -> Tasks {
    let begun = Instant::now();
    let mut starts = JoinSet::new();
    for turn in 0..point.tasks {
        let path = Arc::clone(&target.path);
        starts.spawn(async move { (turn, path.start(false).await, begun.elapsed()) });
    }
    let (mut tasks, mut busy): (Tasks, Option<Busy>) = (Vec::new(), None);
    while let Some(started) = starts.join_next().await {
        match started {
            Ok((_, Ok((task, _)), took)) => {
                point.start_ns.push(nanoseconds(took));
                match busy {
                    None => busy = Some(Busy::keep(task)),
                    Some(_) => tasks.push(task),
                }
            }
            Ok((turn, Err(error), _)) => fail(point, turn, "start", &error),
            Err(error) => fail(point, 0, "start", &error.into()),
        }
    }
    point.start_storm_ns = nanoseconds(begun.elapsed());
    if let Some(busy) = busy {
        match busy.end().await {
            Ok((task, execs)) => {
                tasks.push(task);
                for (turn, exec) in (0..).zip(execs) {
                    match exec {
                        Ok(took) => point.exec_ns.push(nanoseconds(took)),
                        Err(error) => fail(point, turn, "exec", &error),
                    }
                }
            }
            Err(error) => fail(point, 0, "exec", &error),
        }
    }
    tasks
}

/// A task that gets one exec after the other until it is told to stop.
struct Busy {
    over: Arc<AtomicBool>,
    made: JoinHandle<(Box<dyn Container>, Execs)>,
}

impl Busy {
    fn keep(mut task: Box<dyn Container>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let made = tokio::spawn(async move {
            let mut execs = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let exec = task.step(Step::Exec(0)).await.and_then(|times| {
                    let whole = times.iter().find(|(call, _)| *call == Call::Exec);
                    whole.map(|(_, took)| *took).context("it was made, and not measured")
                });
                // An exec that fails would fail again and again.
                let failed = exec.is_err();
                execs.push(exec);
                if failed {
                    break;
                }
            }
            (task, execs)
        });
        Self { over, made }
    }

    async fn end(self) -> Result<(Box<dyn Container>, Execs)> {
        self.over.store(true, Ordering::Relaxed);
        Ok(self.made.await?)
    }
}

async fn read_all(
    tasks: &mut Tasks,
    target: &Target,
    steady: Duration,
    group: Option<&Group>,
    point: &mut ScalePoint,
) -> Result<()> {
    let servers = target.path.servers();
    if target.path.unsupported(Call::Stats).is_none() {
        let before = group.map(Group::read).transpose()?;
        let begun = Instant::now();
        let count = u32::try_from(tasks.len())?;
        let reads = (0..).zip(&mut *tasks).map(|(turn, task)| async move {
            // The reads are spread over a second, as they are on a node.
            tokio::time::sleep(Duration::from_secs(1) * turn / count).await;
            (turn, task.read_each_second(steady).await)
        });
        for (turn, read) in join_all(reads).await {
            if let Err(error) = read {
                fail(point, turn, "stats", &error);
            }
        }
        let task_seconds = begun.elapsed().as_secs_f64() * f64::from(count);
        if let (Some(group), Some(before)) = (group, before) {
            let taken = group.read()?.since(&before, &servers, i32::try_from(std::process::id())?);
            let each = taken.into_iter().map(|(who, ns)| (who, (ns as f64 / task_seconds) as u64));
            point.steady_cpu_ns_per_task_second = each.collect();
        }
    }
    if group.is_some() {
        let shims: Vec<i32> = tasks.iter().filter_map(|task| task.shim()).collect();
        point.memory_bytes = Memory::of(&servers, &shims).proportional;
    }
    Ok(())
}

async fn stop_all(tasks: Tasks, point: &mut ScalePoint) {
    let begun = Instant::now();
    let mut stops = JoinSet::new();
    for (turn, mut task) in (0..).zip(tasks) {
        stops.spawn(async move { (turn, task.remove().await, begun.elapsed()) });
    }
    while let Some(stopped) = stops.join_next().await {
        match stopped {
            Ok((_, Ok(()), took)) => point.stop_ns.push(nanoseconds(took)),
            Ok((turn, Err(error), _)) => fail(point, turn, "stop", &error),
            Err(error) => fail(point, 0, "stop", &error.into()),
        }
    }
    point.stop_storm_ns = nanoseconds(begun.elapsed());
}

fn fail(point: &mut ScalePoint, turn: u32, what: &str, error: &anyhow::Error) {
    point.failures.push(Failure { turn, error: format!("{what}: {error:#}") });
}
