//! What docker's driver and this one take for the same jobs: time, CPU and memory. Both sides run them in turn, one at
//! a time, on one machine; which side is the first of a round is by seed. Gives figures, not judgements.

mod cost;
mod exec;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use cost::Clocks;
use harness::agent::{Allocation, poll};
use harness::fixture::process::output;
use serde_json::json;
use table::{Figure, Figures};

use super::job::Job;
use super::run::Bench;
use super::side::Sides;
use super::{Args, FRAME, images, on_both_sides};
use crate::page;
use crate::random::Random;

/// The script of each task. It says that it runs by a file, and exits at once on SIGTERM.
const SCRIPT: &str = "trap 'exit 0' TERM; : >/alloc/data/begun; sleep 100000 & wait";
/// Number of tasks with which CPU time and memory are measured.
const TASKS: usize = 20;
/// Numbers of tasks that a job starts at once.
const MANY: [usize; 2] = [TASKS, 50];
/// Number of execs in each single task.
const EXECS: usize = 3;
/// The command that prints much, and how much it prints. It stays a while: Nomad's docker driver drops what it hasn't
/// read yet when a command ends.
const PRINT: [&str; 3] = ["sh", "-c", "cat /alloc/data/pattern; sleep 1"];
const OUTPUT_MIB: usize = 64;
/// Of the rounds with a single task, those whose number is a multiple of this have much output.
const OUTPUT_EVERY: usize = 4;
/// Of so many rounds with a single task there is one with many.
const MANY_EVERY: usize = 7;
/// Time after a start of many tasks, and after the end of a task, in which the daemons come to rest.
const REST: Duration = Duration::from_secs(2);
/// Time over which CPU time is measured.
const WINDOW: Duration = Duration::from_secs(6);
/// Timeout of each step of a job's life.
const STEP: Duration = Duration::from_secs(120);

/// # Errors
/// Fails if one of the sides can't be set up, with the first call that fails, or with what is left.
pub fn run(args: &Args) -> Result<ExitCode> {
    let text = on_both_sides(args, |sides, versions| {
        let text = measure(sides, args.rounds.max(1), args.seed)?;
        Ok(format!("{}\n{text}", heading(sides, args, versions)?))
    })?;
    print!("{text}");
    if let Some(path) = &args.page {
        page::write_into(path, FRAME, &text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns on what the figures were taken, and when.
fn heading(sides: &Sides<'_>, args: &Args, versions: &[String]) -> Result<String> {
    let [dockerd, storage] = sides.dockerd()?;
    let nomad = output(Command::new(&args.nomad).arg("version"))?;
    let nomad = nomad.lines().next().unwrap_or_default().to_owned();
    let date = output(Command::new("date").args(["-u", "+%F"]))?;
    let (single, many) = (args.rounds.max(1), rounds_with_many(args.rounds.max(1)));
    Ok(format!(
        "Seen on {}: {nomad}, dockerd {dockerd} with {storage},\n{}; {single} rounds with a \
         single task, of which\n{} had much output, and {many} with many tasks.\n",
        date.trim(),
        versions.join(", "),
        single.div_ceil(OUTPUT_EVERY)
    ))
}

fn rounds_with_many(rounds: usize) -> usize {
    rounds.div_ceil(MANY_EVERY)
}

/// Measures all figures on both sides, and returns their tables.
fn measure(sides: &Sides<'_>, rounds: usize, seed: u64) -> Result<String> {
    let benches = [sides.bench(0)?, sides.bench(1)?];
    let (mut order, mut figures) = (Order::by(seed), Figures::default());
    let (pattern, begun) = (pattern(), Instant::now());
    // The first task pulls the image, and isn't counted.
    for (side, bench) in benches.iter().enumerate() {
        single(bench, &format!("first-{side}"), Some(&pattern))?;
    }
    for round in 0..rounds {
        for side in order.next_round() {
            let pattern = round.is_multiple_of(OUTPUT_EVERY).then_some(&*pattern);
            let taken = single(&benches[side], &format!("single-{round}-{side}"), pattern)?;
            taken.into_iter().for_each(|(figure, took)| figures.add(figure, side, took));
        }
    }
    let seconds = || begun.elapsed().as_secs();
    println!("{rounds} rounds with a single task are done after {} s", seconds());
    for round in 0..rounds_with_many(rounds) {
        for count in MANY {
            for side in order.next_round() {
                let name = format!("many-{count}-{round}-{side}");
                let processes = || sides.processes(side);
                let taken = many(&benches[side], &name, count, &processes)?;
                taken.into_iter().for_each(|(figure, value)| figures.add(figure, side, value));
            }
        }
        println!("round {} with many tasks is done after {} s", round + 1, seconds());
    }
    Ok(figures.text(TASKS))
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
fn single(bench: &Bench<'_>, name: &str, pattern: Option<&[u8]>) -> Result<Vec<(Figure, f64)>> {
    let client = bench.client;
    submit(bench, name, 1)?;
    let ids = client.placed(name, 1)?;
    let id = ids.first().context("no allocation")?;
    client.running(id, "main")?;
    let begun = first_write(bench, id)?;
    let mut taken = Vec::new();
    for _ in 0..EXECS {
        let done = exec::run(client.own_http(), id, &["true"])?;
        taken.push((Figure::Exec, milliseconds(done.took)));
    }
    if let Some(pattern) = pattern {
        fs::write(data(bench, id).join("pattern"), pattern)?;
        let done = exec::run(client.own_http(), id, &PRINT)?;
        ensure!(done.stdout == pattern, "{} bytes came, and not those of the file", done.stdout.len());
        taken.push((Figure::Output(OUTPUT_MIB), milliseconds(done.printed)));
    }
    bench.api.stop(name, false)?;
    let task = client.dead(id, "main")?;
    bench.api.stop(name, true)?;
    let at = |kind| Ok::<_, anyhow::Error>(task.event(kind)?.at());
    let killing = at("Killing")?;
    taken.push((Figure::FirstWrite, milliseconds(begun.duration_since(at("Task Setup")?)?)));
    taken.push((Figure::Exit, milliseconds(at("Terminated")?.duration_since(killing)?)));
    taken.push((Figure::Removal, milliseconds(at("Killed")?.duration_since(killing)?)));
    sleep(REST / 4);
    Ok(taken)
}

/// Runs a job of many tasks, which are started at once. With [`TASKS`] of them, the usage of `processes` is measured.
fn many(
    bench: &Bench<'_>,
    name: &str,
    count: usize,
    processes: &dyn Fn() -> Result<Vec<i32>>,
) -> Result<Vec<(Figure, f64)>> {
    let submitted = SystemTime::now();
    submit(bench, name, count)?;
    let ids = bench.client.placed(name, count)?;
    let mut last = submitted;
    for id in &ids {
        last = last.max(first_write(bench, id)?);
    }
    let mut taken = vec![(Figure::Many(count), milliseconds(last.duration_since(submitted)?))];
    if count == TASKS {
        sleep(REST);
        let (before, begun) = (Clocks::read(&processes()?), Instant::now());
        sleep(WINDOW);
        let (all, seconds) = (processes()?, begun.elapsed().as_secs_f64());
        let used = Clocks::read(&all).since(&before);
        let of_a_task = |nanoseconds: u64| nanoseconds as f64 / 1e6 / seconds / TASKS as f64;
        taken.extend(used.into_iter().map(|(part, used)| (Figure::Cpu(part), of_a_task(used))));
        let memory = cost::memory(&all).into_iter();
        taken.extend(memory.map(|(part, kb)| (Figure::Memory(part), kb as f64 / 1024.0)));
    }
    bench.api.stop(name, false)?;
    for id in &ids {
        bench.client.allocation_until(id, "stopped allocation", STEP, Allocation::is_terminal)?;
    }
    bench.api.stop(name, true)?;
    sleep(REST);
    Ok(taken)
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
    fn a_job_of_many_tasks_is_one_group() {
        let text = job(50).text("j", "node", "registry/plain", &str::to_owned);
        let group = &text["Job"]["TaskGroups"][0];
        assert_eq!(group["Count"], 50);
        assert_eq!(group["Tasks"][0]["Config"]["command"], "/bin/sh");
        assert_eq!(group["Tasks"][0]["Resources"], json!({"CPU": 20, "MemoryMB": 32}));
    }
}
