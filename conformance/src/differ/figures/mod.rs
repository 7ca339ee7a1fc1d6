//! What docker's driver and this one take for the same jobs: time, CPU and memory. Both sides run them in turn on one
//! machine; which side is the first of a round is by seed. Gives figures, not judgements.
//!
//! What is measured of tasks at rest comes first, before floods and long outputs leave their memory with the daemons. It
//! is measured on both sides at the same time, with their own tasks each.

mod cost;
mod exec;
mod readings;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use cost::Look;
use harness::agent::{Allocation, poll};
use harness::apparmor;
use harness::fixture::process::output;
use harness::host::cgroup::is_v2;
use harness::interrupt::check;
use rustix::time::{ClockId, clock_getres};
use serde_json::json;
use table::{Figure, Figures, quantile};

use super::job::Job;
use super::run::Bench;
use super::side::{Sides, USUAL_LOG_LEVEL};
use super::{Args, FRAME, images, on_both_sides};
use crate::page;
use crate::random::Random;

/// The script of each task. It says that it runs by a file, and exits at once on SIGTERM.
const SCRIPT: &str = "trap 'exit 0' TERM; : >/alloc/data/begun; sleep 100000 & wait";
/// Number of tasks with which CPU time and memory are measured.
const TASKS: usize = 20;
/// Number of tasks that a job starts at once, beside [`TASKS`].
const FLOOD: usize = 50;
/// Number of execs in each single task, of which the median is the round's.
const EXECS: usize = 3;
/// The command that prints much, and how much it prints. It stays a while: Nomad's docker driver drops what it hasn't
/// read yet when a command ends.
const PRINT: [&str; 3] = ["sh", "-c", "cat /alloc/data/pattern; sleep 1"];
const OUTPUT_MIB: usize = 64;
/// Of so many rounds with a single task there is one of each other kind.
const MANY_EVERY: usize = 3;
/// Time after a start of many tasks, and after the end of a task, in which the daemons come to rest.
const REST: Duration = Duration::from_secs(2);
/// Time over which CPU time is measured: some ten readings of a task's statistics by docker's driver.
const WINDOW: Duration = Duration::from_secs(30);
/// Timeout of each step of a job's life.
const STEP: Duration = Duration::from_secs(120);

/// # Errors
/// Fails if one of the sides can't be set up, with the first call that fails, or with what is left.
pub fn run(args: &Args) -> Result<ExitCode> {
    on_both_sides(args, |sides, versions| {
        let (rounds, benches) = (Rounds::of(args.rounds), [sides.bench(0)?, sides.bench(1)?]);
        let rates = warm_up(&benches)?;
        let heading = heading(sides, args, versions, rates)?;
        let figures = measure(sides, &benches, rounds, args.seed)?;
        let text = format!("{heading}\n{}", figures.text(TASKS));
        print!("{text}");
        args.page.as_ref().map_or(Ok(()), |path| page::write_into(path, FRAME, &text))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The numbers of rounds, which are even: each side is the first one in half of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rounds {
    single: usize,
    /// Of each kind with many tasks, and of those with much output.
    others: usize,
}

impl Rounds {
    fn of(single: usize) -> Self {
        let single = single.max(1);
        Self { single: single.next_multiple_of(2), others: single.div_ceil(MANY_EVERY).next_multiple_of(2) }
    }
}

/// Returns on what the figures are taken, and when. `rates` are those of statistics, docker's first.
///
/// # Errors
/// Fails if the file system of tasks isn't an overlay on both sides.
fn heading(sides: &Sides<'_>, args: &Args, versions: &[String], rates: [f64; 2]) -> Result<String> {
    let [dockerd, storage] = sides.dockerd()?;
    let snapshotter = sides.snapshotter()?;
    ensure!(
        [&*storage, snapshotter].iter().all(|name| name.starts_with("overlay")),
        "dockerd has {storage} and this driver {snapshotter}: both need an overlay"
    );
    let nomad = output(Command::new(&args.nomad).arg("version"))?;
    let nomad = nomad.lines().next().unwrap_or_default().to_owned();
    let date = output(Command::new("date").args(["-u", "+%F"]))?;
    let Rounds { single, others } = Rounds::of(args.rounds);
    Ok(format!(
        "Seen on {}: {nomad}, dockerd {dockerd} with {storage},\n{};\nthis driver with {snapshotter}, a {} build. \
         Agents log at {USUAL_LOG_LEVEL}. {}.\nStatistics of a task were read {:.2} times a second by docker's driver, \
         {:.2} times here.\n{single} rounds with a single task, {others} of each other kind, seed {}.\n",
        date.trim(),
        versions.join(", "),
        build_of(&args.plugin),
        machine(sides.directory())?,
        rates[0],
        rates[1],
        args.seed
    ))
}

/// Returns what the figures depend on of the machine. Files are in a directory.
fn machine(directory: &Path) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut find = Command::new("findmnt");
    let system = output(find.args(["--noheadings", "--output", "FSTYPE", "--target"]).arg(directory))?;
    // The kernel notes the time of a write by this clock.
    let tick = clock_getres(ClockId::RealtimeCoarse).tv_nsec / 1_000_000;
    Ok(format!(
        "Linux {}, {} CPUs, ticks of {tick} ms, cgroup {}, files on {}, AppArmor {}",
        kernel.trim(),
        available_parallelism()?,
        if is_v2() { "v2" } else { "v1" },
        system.trim(),
        if apparmor::is_enabled() { "on (each side has its default profile)" } else { "off" }
    ))
}

/// Returns the kind of a build by cargo's directory of it: `debug` or `release`.
fn build_of(binary: &Path) -> String {
    let directory = binary.parent().and_then(Path::file_name).unwrap_or_default();
    let kind = directory.to_string_lossy();
    if matches!(&*kind, "debug" | "release") { kind.into_owned() } else { "unknown".to_owned() }
}

/// Has both sides pull the image and run many tasks, which isn't counted. Returns how many readings of the statistics
/// of one of their tasks come in a second.
fn warm_up(benches: &[Bench<'_>; 2]) -> Result<[f64; 2]> {
    for (side, bench) in benches.iter().enumerate() {
        single(bench, &format!("first-{side}"))?;
    }
    let jobs = start_on_both(benches, "warm", TASKS)?;
    let rates = readings::rates(&jobs.each_ref().map(|job| (job.bench.client, &*job.ids[0])))?;
    end(&jobs)?;
    Ok(rates)
}

/// Measures all figures on both sides.
fn measure(sides: &Sides<'_>, benches: &[Bench<'_>; 2], rounds: Rounds, seed: u64) -> Result<Figures> {
    let (mut figures, begun) = (Figures::default(), Instant::now());
    let is_done = |what: &str| println!("{what}: done after {} s", begun.elapsed().as_secs());
    // Each kind of round has an order of its own.
    let [mut at_rest, mut alone, mut printing, mut flooded] =
        [0, 1, 2, 3].map(|kind| Order::by(seed.wrapping_add(kind)));
    for round in 0..rounds.others {
        at_rest_round(sides, benches, round, at_rest.next_round(), &mut figures)?;
    }
    is_done("many tasks at rest");
    for round in 0..rounds.single {
        for side in alone.next_round() {
            let taken = single(&benches[side], &format!("single-{round}-{side}"))?;
            taken.into_iter().for_each(|(figure, took)| figures.add(figure, side, took));
        }
    }
    is_done("single tasks");
    print_rounds(benches, rounds.others, &mut printing, &mut figures)?;
    is_done("much output");
    for round in 0..rounds.others {
        for side in flooded.next_round() {
            let job = Many::start(&benches[side], format!("flood-{round}-{side}"), FLOOD)?;
            figures.add(Figure::Many(FLOOD), side, job.took);
            end(&[job])?;
        }
    }
    is_done("floods of tasks");
    Ok(figures)
}

/// The order of the sides in each round: by seed in one, and the other way round in the next.
struct Order {
    random: Random,
    last: Option<[usize; 2]>,
}

impl Order {
    fn by(seed: u64) -> Self {
        Self { random: Random::of(seed), last: None }
    }

    fn next_round(&mut self) -> [usize; 2] {
        if let Some([first, second]) = self.last.take() {
            return [second, first];
        }
        let order = if self.random.chance(50) { [0, 1] } else { [1, 0] };
        self.last = Some(order);
        order
    }
}

/// Returns a job of so many tasks, each in a group's allocation of its own.
fn job(count: usize) -> Job {
    let mut job = Job::of("figures", images::PLAIN);
    let options = json!({
        "command": "/bin/sh",
        "args": ["-c", SCRIPT],
        "resources": {"CPU": 20, "MemoryMB": 32},
        "group": {"Count": count},
    });
    job.apply("command", &options);
    job
}

fn submit(bench: &Bench<'_>, name: &str, count: usize) -> Result<()> {
    match bench.submit(name, &job(count))? {
        Some(reason) => bail!("{name} is refused: {reason}"),
        None => Ok(()),
    }
}

/// Runs a single task from its start to its end.
fn single(bench: &Bench<'_>, name: &str) -> Result<Vec<(Figure, f64)>> {
    let client = bench.client;
    submit(bench, name, 1)?;
    let ids = client.placed(name, 1)?;
    let id = ids.first().context("no allocation")?;
    client.running(id, "main")?;
    let begun = first_write(bench, id)?;
    let exec = |_| Ok::<_, anyhow::Error>(milliseconds(exec::run(client.own_http(), id, &["true"])?.took));
    let execs = (0..EXECS).map(exec).collect::<Result<Vec<_>>>()?;
    bench.api.stop(name, false)?;
    let task = client.dead(id, "main")?;
    bench.api.stop(name, true)?;
    let at = |kind| Ok::<_, anyhow::Error>(task.event(kind)?.at());
    let killing = at("Killing")?;
    sleep(REST / 4);
    Ok(vec![
        (Figure::FirstWrite, milliseconds(begun.duration_since(at("Task Setup")?)?)),
        (Figure::Exec, quantile(&execs, 0.5).context("no exec")?),
        (Figure::Exit, milliseconds(at("Terminated")?.duration_since(killing)?)),
        (Figure::Removal, milliseconds(at("Killed")?.duration_since(killing)?)),
    ])
}

/// A job of many tasks that run.
struct Many<'a> {
    bench: &'a Bench<'a>,
    name: String,
    /// Ids of the allocations, one for each task.
    ids: Vec<String>,
    /// Time from the job's submission to the last task's first write, in milliseconds.
    took: f64,
}

impl<'a> Many<'a> {
    /// Starts all tasks at once.
    fn start(bench: &'a Bench<'a>, name: String, count: usize) -> Result<Self> {
        let submitted = SystemTime::now();
        submit(bench, &name, count)?;
        let ids = bench.client.placed(&name, count)?;
        let mut last = submitted;
        for id in &ids {
            last = last.max(first_write(bench, id)?);
        }
        Ok(Self { bench, name, ids, took: milliseconds(last.duration_since(submitted)?) })
    }
}

/// Starts a job on each side, the tasks of one after those of the other.
fn start_on_both<'a>(benches: &'a [Bench<'a>; 2], name: &str, count: usize) -> Result<[Many<'a>; 2]> {
    let start = |side: usize| Many::start(&benches[side], format!("{name}-{side}"), count);
    Ok([start(0)?, start(1)?])
}

/// Ends jobs, and waits until the daemons are at rest.
fn end(jobs: &[Many<'_>]) -> Result<()> {
    for job in jobs {
        job.bench.api.stop(&job.name, false)?;
    }
    for job in jobs {
        for id in &job.ids {
            job.bench.client.allocation_until(id, "stopped allocation", STEP, Allocation::is_terminal)?;
        }
        job.bench.api.stop(&job.name, true)?;
    }
    sleep(REST);
    Ok(())
}

/// Starts many tasks, those of one side after those of the other, and measures the usage of both while they are at rest.
fn at_rest_round(
    sides: &Sides<'_>,
    benches: &[Bench<'_>; 2],
    round: usize,
    order: [usize; 2],
    figures: &mut Figures,
) -> Result<()> {
    let mut jobs = Vec::new();
    for side in order {
        let job = Many::start(&benches[side], format!("rest-{round}-{side}"), TASKS)?;
        figures.add(Figure::Many(TASKS), side, job.took);
        jobs.push(job);
    }
    sleep(REST);
    let look = |side| Ok::<_, anyhow::Error>(Look::at(&sides.processes(side)?));
    let before = [look(0)?, look(1)?];
    wait(WINDOW)?;
    let after = [look(0)?, look(1)?];
    for (side, (before, after)) in before.iter().zip(&after).enumerate() {
        for (part, nanoseconds) in after.cpu_since(before) {
            figures.add(Figure::Cpu(part), side, nanoseconds / 1e6 / TASKS as f64);
        }
        for (part, kb) in after.memory() {
            figures.add(Figure::Memory(part), side, kb as f64 / 1024.0);
        }
        for (part, kb) in after.anonymous_memory() {
            figures.add(Figure::Anonymous(part), side, kb as f64 / 1024.0);
        }
    }
    end(&jobs)
}

/// Waits for so long, or fails after an interrupt.
fn wait(time: Duration) -> Result<()> {
    let begun = Instant::now();
    while let Some(left) = time.checked_sub(begun.elapsed()) {
        check()?;
        sleep(left.min(REST / 4));
    }
    Ok(())
}

/// Has a task of each side print much, again and again. The first time isn't counted.
fn print_rounds(
    benches: &[Bench<'_>; 2],
    rounds: usize,
    order: &mut Order,
    figures: &mut Figures,
) -> Result<()> {
    let (jobs, pattern) = (start_on_both(benches, "print", 1)?, pattern());
    for job in &jobs {
        fs::write(data(job.bench, &job.ids[0]).join("pattern"), &pattern)?;
        job.bench.client.running(&job.ids[0], "main")?;
        print_all(job, &pattern)?;
    }
    for _ in 0..rounds {
        for side in order.next_round() {
            figures.add(Figure::Output(OUTPUT_MIB), side, print_all(&jobs[side], &pattern)?);
        }
    }
    end(&jobs)
}

/// Prints the pattern by an exec, and returns the time until all of it has come, in milliseconds.
fn print_all(job: &Many<'_>, pattern: &[u8]) -> Result<f64> {
    let done = exec::run(job.bench.client.own_http(), &job.ids[0], &PRINT)?;
    ensure!(done.stdout == pattern, "{} bytes came, and not those of the file", done.stdout.len());
    Ok(milliseconds(done.printed))
}

/// Returns the time of a task's first write.
fn first_write(bench: &Bench<'_>, id: &str) -> Result<SystemTime> {
    let file = data(bench, id).join("begun");
    let written = poll("first write", STEP, || Ok(file.exists()));
    written.with_context(|| {
        let allocation = bench.client.allocation(id);
        allocation.map_or_else(|error| error.to_string(), |allocation| allocation.summary())
    })?;
    Ok(fs::metadata(&file)?.modified()?)
}

/// Returns the directory on the host of `/alloc/data`.
fn data(bench: &Bench<'_>, id: &str) -> PathBuf {
    bench.allocations.join(id).join("alloc/data")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Returns bytes in which a lost, doubled or displaced part is noticed: each group of eight is different.
fn pattern() -> Vec<u8> {
    let groups = (OUTPUT_MIB << 20) as u64 / 8;
    (0..groups).flat_map(|count| count.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_is_first_in_one_of_two_rounds() {
        for seed in 0..20 {
            let mut order = Order::by(seed);
            for _ in 0..5 {
                let ([first, second], next) = (order.next_round(), order.next_round());
                assert_eq!((next, first + second), ([second, first], 1));
            }
        }
        let firsts = |seed| Order::by(seed).next_round()[0];
        assert!((0..20).map(firsts).any(|first| first != firsts(0)));
    }

    #[test]
    fn each_kind_of_round_is_made_an_even_number_of_times() {
        for (wanted, single, others) in [(12, 12, 4), (0, 2, 2), (1, 2, 2), (7, 8, 4), (20, 20, 8)] {
            assert_eq!(Rounds::of(wanted), Rounds { single, others }, "{wanted}");
        }
    }

    #[test]
    fn a_build_is_known_by_cargos_directory() {
        let builds = ["/t/release/x", "/t/debug/x", "/usr/bin/x", "x"].map(|path| build_of(Path::new(path)));
        assert_eq!(builds, ["release", "debug", "unknown", "unknown"]);
    }

    #[test]
    fn a_job_of_many_tasks_is_one_group() {
        let text = job(50).text("j", "node", "registry/plain", &str::to_owned);
        let group = &text["Job"]["TaskGroups"][0];
        assert_eq!(group["Count"], 50);
        assert_eq!(group["Tasks"][0]["Config"]["command"], "/bin/sh");
        assert_eq!(group["Tasks"][0]["Resources"], json!({"CPU": 20, "MemoryMB": 32}));
    }
}
