//! The rounds of a run: in each, every side does the same, and another one is the first each time.
//!
//! What is measured of tasks at rest comes first, before long outputs and starts of many tasks leave their memory with
//! the daemons.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};
use harness::agent::Allocation;
use harness::interrupt::check;
use harness::timeline::LoggedTimeline;

use super::calls::{EXEC, EXECS, EXIT, FIRST_WRITE, LOGS, OUTPUT, REMOVAL, TIMELINE};
use super::floor::{Floor, Floors, Times};
use super::parts::Look;
use super::side::{Side, Work, task_names};
use super::variation::Driver;
use super::{exec, readings};
use crate::cli;
use crate::measure::logs;
use crate::progress::Progress;
use crate::report_data::{Failure, Key, ScalePoint, Timeline};
use crate::samples::{Conditions, Samples, nanoseconds};
use crate::schedule::order;
use crate::timelines;

pub(crate) const PATH: &str = "agent";
/// The script of a task. It says that it runs by a file, and exits at once on SIGTERM.
const SCRIPT: &str = "trap 'exit 0' TERM; : >/alloc/data/begun-$NOMAD_TASK_NAME; sleep 100000 & wait";
/// The task of an allocation that has one alone.
const MAIN: &str = "main";
/// The command that prints much, and how much it prints. It stays a while: Nomad's docker driver drops what it hasn't
/// read yet when a command ends.
const PRINT: [&str; 3] = ["sh", "-c", "cat /alloc/data/pattern; sleep 1"];
pub(crate) const OUTPUT_BYTES: usize = 64 << 20;
/// Number of tasks that run once on each side before anything is counted.
const WARM: u32 = 20;
/// Time after a start of many tasks, and after the end of a task, in which the daemons come to rest.
const REST: Duration = Duration::from_secs(2);
/// Timeout of each step of a job's life, and what it is more for each task.
const STEP: Duration = Duration::from_secs(120);
const STEP_OF_A_TASK: Duration = Duration::from_secs(1);

/// The rounds of a run, and what they have brought so far.
pub(crate) struct Rounds<'a, 'b> {
    sides: &'a [Side<'b>],
    /// Time over which CPU time is measured.
    window: Duration,
    progress: Progress,
    samples: Samples,
    scale: Vec<ScalePoint>,
    /// The timelines of each side.
    logged: Vec<Vec<LoggedTimeline>>,
}

impl<'a, 'b> Rounds<'a, 'b> {
    pub(crate) fn new(sides: &'a [Side<'b>], window: Duration) -> Self {
        Self {
            sides,
            window,
            progress: Progress::new(),
            samples: Samples::default(),
            scale: Vec::new(),
            logged: sides.iter().map(|_| Vec::new()).collect(),
        }
    }

    /// Returns the samples, the points of many tasks and the timelines.
    pub(crate) fn into_results(self) -> (Samples, Vec<ScalePoint>, Vec<Timeline>) {
        let of_side = |(side, logged): (&Side<'_>, &Vec<_>)| timelines::of(&conditions(side), logged);
        let timelines = self.sides.iter().zip(&self.logged).flat_map(of_side).collect();
        (self.samples, self.scale, timelines)
    }

    /// Makes rounds with a single task on each side, and a container on each floor.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed call is part of the figures.
    pub(crate) fn single(&mut self, rounds: u32, floors: Option<&Floors>) -> Result<()> {
        let on_floors = floors.map_or(&[][..], |floors| &floors.all);
        let turns = self.sides.len() + on_floors.len();
        for round in 0..rounds {
            for turn in order(turns, round, 0) {
                check()?;
                match (self.sides.get(turn), floors) {
                    (Some(side), _) => {
                        self.progress.say(|| format!("round {}: a task on {}", round + 1, side.name()));
                        let name = format!("single-{round}-{turn}");
                        self.record_single(turn, round, single(side, &name));
                    }
                    (None, Some(floors)) => {
                        let floor = &on_floors[turn - self.sides.len()];
                        self.progress.say(|| format!("round {}: {}", round + 1, floor.name));
                        self.record_floor(floor, round, floors.turn(floor));
                    }
                    (None, None) => {}
                }
            }
        }
        Ok(())
    }

    fn record_single(&mut self, turn: usize, round: u32, outcome: Result<Single>) {
        let side = &self.sides[turn];
        let calls: Vec<_> = [FIRST_WRITE, EXIT, REMOVAL].into_iter().chain([EXEC; EXECS]).collect();
        let outcome = outcome.map(|single| {
            let start = single.logged.iter().find(|logged| logged.call == "start");
            let start = start.map(|logged| (TIMELINE, Duration::from_secs_f64(logged.total_ms / 1000.0)));
            self.logged[turn].extend(single.logged);
            single.times.into_iter().chain(start).collect()
        });
        record(&mut self.samples, |call| key(side, call, 0), &calls, round, outcome);
    }

    fn record_floor(&mut self, floor: &Floor, round: u32, outcome: Result<Times>) {
        let conditions = Conditions { setup: floor.name.clone(), path: cli::NAME, concurrency: 1, held: 0 };
        let calls: Vec<_> = [EXEC; EXECS].into();
        record(&mut self.samples, |call| conditions.key_of(call, 0), &calls, round, outcome);
    }

    /// Measures the usage of so many tasks at rest on each side. Two sides are measured at the same time, with their own
    /// tasks each, and more of them one after the other.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed task is part of the figures.
    pub(crate) fn at_rest(&mut self, rounds: u32, tasks: u32) -> Result<()> {
        for round in 0..rounds {
            let wanted = order(self.sides.len(), round, 0).map(|turn| &self.sides[turn]);
            let sides: Vec<_> = wanted.filter(|side| side.variation.most >= tasks).collect();
            for together in sides.chunks(if self.sides.len() <= 2 { 2 } else { 1 }) {
                check()?;
                let names: Vec<_> = together.iter().map(|side| side.name()).collect();
                self.progress.say(|| format!("round {}: {tasks} tasks on {}", round + 1, names.join(", ")));
                let name = format!("rest-{tasks}-{round}");
                let points = rest(together, &name, tasks, self.window);
                self.add_points(together, &name, tasks, points)?;
            }
        }
        Ok(())
    }

    /// Starts so many tasks at once on each side, and stops them.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed task is part of the figures.
    pub(crate) fn flood(&mut self, rounds: u32, tasks: u32) -> Result<()> {
        for round in 0..rounds {
            for turn in order(self.sides.len(), round, 0) {
                check()?;
                let side = &self.sides[turn];
                if side.variation.most < tasks {
                    continue;
                }
                self.progress
                    .say(|| format!("round {}: {tasks} tasks at once on {}", round + 1, side.name()));
                let name = format!("flood-{tasks}-{round}");
                let points = Many::start(side, format!("{name}-0"), tasks).and_then(|mut job| {
                    job.end()?;
                    Ok(vec![job.point])
                });
                self.add_points(&[side], &name, tasks, points)?;
            }
        }
        Ok(())
    }

    /// Adds the points of some sides, or for each of them the reason why there is none. Nothing is left of their jobs then.
    fn add_points(
        &mut self,
        sides: &[&Side<'_>],
        name: &str,
        tasks: u32,
        points: Result<Vec<ScalePoint>>,
    ) -> Result<()> {
        let error = match points {
            Ok(points) => {
                self.scale.extend(points);
                return Ok(());
            }
            Err(error) => format!("{error:#}"),
        };
        check()?;
        for (turn, side) in sides.iter().enumerate() {
            forget(side, &format!("{name}-{turn}"));
            let failures = vec![Failure { turn: 0, error: error.clone() }];
            self.scale.push(ScalePoint { failures, ..point(side, tasks) });
        }
        wait(STEP / 4)
    }

    /// Has a task of each side print much by an exec, again and again. The first time isn't counted.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed task or exec is part of the figures.
    pub(crate) fn output(&mut self, rounds: u32) -> Result<()> {
        let (pattern, sides) = (pattern(), self.sides);
        let jobs: Vec<_> =
            (0..).zip(sides).map(|(turn, side)| start_printing(side, turn, &pattern)).collect();
        for round in 0..rounds {
            for turn in order(sides.len(), round, 0) {
                check()?;
                let side = &sides[turn];
                self.progress.say(|| format!("round {}: output on {}", round + 1, side.name()));
                let taken = match &jobs[turn] {
                    Ok(job) => job.only().and_then(|id| print_all(side, id, &pattern)),
                    Err(error) => Err(anyhow!("{error:#}")),
                };
                self.samples.record(key(side, OUTPUT, OUTPUT_BYTES), round, taken);
            }
        }
        jobs.into_iter().flatten().try_for_each(|mut job| job.end())
    }

    /// Has a task of each side write much, and takes the time until all of it is in its log files.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed task, or one whose files aren't what it wrote, is part of the figures.
    pub(crate) fn logs(&mut self, rounds: u32, pieces: usize) -> Result<()> {
        let piece = logs::piece();
        for round in 0..rounds {
            for turn in order(self.sides.len(), round, 0) {
                check()?;
                let side = &self.sides[turn];
                self.progress.say(|| format!("round {}: logs on {}", round + 1, side.name()));
                let name = format!("logs-{round}-{turn}");
                let taken = write(side, &name, &piece, pieces);
                forget(side, &name);
                self.samples.record(key(side, LOGS, logs::PIECE_BYTES * pieces), round, taken);
            }
        }
        Ok(())
    }
}

fn conditions(side: &Side<'_>) -> Conditions {
    Conditions { setup: side.name().to_owned(), path: PATH, concurrency: 1, held: 0 }
}

fn key(side: &Side<'_>, call: &str, payload: usize) -> Key {
    conditions(side).key_of(call, payload)
}

/// Records the times of a round, or its failure for each of some calls. A call may be made several times in a round.
fn record(
    samples: &mut Samples,
    key: impl Fn(&str) -> Key,
    calls: &[&'static str],
    round: u32,
    outcome: Result<Times>,
) {
    let (times, error) = match outcome {
        Ok(times) => (times.into_iter().map(|(call, took)| (call, Some(took))).collect::<Vec<_>>(), None),
        Err(error) => (calls.iter().map(|call| (*call, None)).collect(), Some(error)),
    };
    let mut made: BTreeMap<&str, u32> = BTreeMap::new();
    for (call, took) in &times {
        let place = made.entry(call).or_default();
        let a_round = u32::try_from(times.iter().filter(|(other, _)| other == call).count()).unwrap_or(1);
        let turn = round * a_round + *place;
        *place += 1;
        let why = || error.as_ref().map_or_else(String::new, |error| format!("{error:#}"));
        samples.record(key(call), turn, took.ok_or_else(|| anyhow!(why())));
    }
}

/// Has each side pull the image and run many tasks, which isn't counted. Returns how many readings of the statistics of
/// one of these tasks come in a second, if that is asked for, and the seccomp profile of a task of this driver.
///
/// # Errors
/// Fails if a side can't run its tasks.
pub(crate) fn warm_up(
    side: &Side<'_>,
    counts_readings: bool,
) -> Result<(Option<f64>, Option<serde_json::Value>)> {
    single(side, "warm-single").with_context(|| format!("a first task on {}", side.name()))?;
    let mut job = Many::start(side, "warm-many".to_owned(), WARM)?;
    ensure!(job.point.failures.is_empty(), "{} can't run tasks: {:?}", side.name(), job.point.failures);
    let profile = (side.variation.driver == Driver::Ours).then(|| side.profile_of_a_task()).flatten();
    let rate = counts_readings.then(|| readings::rate_of(side, &job.ids[0])).transpose()?;
    job.end()?;
    Ok((rate, profile))
}

/// The times of a single task, and what its driver has logged of it.
struct Single {
    times: Times,
    logged: Vec<LoggedTimeline>,
}

/// Runs a single task from its start to its end. Nothing is left of its job, however it turns out.
fn single(side: &Side<'_>, name: &str) -> Result<Single> {
    let offset = side.log_length();
    let times = live(side, name);
    forget(side, name);
    Ok(Single { times: times?, logged: side.timelines_from(offset)? })
}

fn live(side: &Side<'_>, name: &str) -> Result<Times> {
    let client = side.client();
    side.submit(name, &Work { script: SCRIPT, count: 1, group: 1, writes_much: false })?;
    let ids = client.placed(name, 1)?;
    let id = ids.first().context("no allocation")?;
    client.running(id, MAIN)?;
    let begun = side.first_write(id, MAIN, STEP)?;
    let mut times = Times::new();
    for _ in 0..EXECS {
        times.push((EXEC, exec::run(client.own_http(), id, &["true"])?.took));
    }
    side.stop(name)?;
    let task = client.dead(id, MAIN)?;
    let at = |kind| Ok::<_, anyhow::Error>(task.event(kind)?.at());
    let killing = at("Killing")?;
    times.push((FIRST_WRITE, begun.duration_since(at("Task Setup")?)?));
    times.push((EXIT, at("Terminated")?.duration_since(killing)?));
    times.push((REMOVAL, at("Killed")?.duration_since(killing)?));
    Ok(times)
}

/// Forgets a job, and gives the daemons time to come to rest. One that was never submitted is nobody's concern.
fn forget(side: &Side<'_>, name: &str) {
    let _ = side.forget(name);
    sleep(REST / 4);
}

/// A job of many tasks that run.
struct Many<'a, 'b> {
    side: &'a Side<'b>,
    name: String,
    /// Ids of the allocations, one for each task.
    ids: Vec<String>,
    point: ScalePoint,
}

impl<'a, 'b> Many<'a, 'b> {
    /// Starts all tasks at once. Those that don't run are counted.
    fn start(side: &'a Side<'b>, name: String, count: u32) -> Result<Self> {
        let submitted = SystemTime::now();
        // The last allocation may have more tasks than there are to be.
        let group = side.variation.group.min(count);
        let allocations = count.div_ceil(group);
        side.submit(&name, &Work { script: SCRIPT, count: allocations, group, writes_much: false })?;
        let ids = side.client().placed(&name, usize::try_from(allocations)?)?;
        let mut point = point(side, allocations * group);
        let limit = STEP + STEP_OF_A_TASK * count;
        let tasks = ids.iter().flat_map(|id| task_names(group).map(move |task| (id, task)));
        for (turn, (id, task)) in (0..).zip(tasks) {
            match side.first_write(id, &task, limit.saturating_sub(submitted.elapsed()?)) {
                Ok(at) => point.start_ns.push(nanoseconds(at.duration_since(submitted).unwrap_or_default())),
                Err(error) => point.failures.push(Failure { turn, error: format!("start: {error:#}") }),
            }
        }
        point.start_storm_ns = point.start_ns.iter().copied().max().unwrap_or_default();
        Ok(Self { side, name, ids, point })
    }

    /// Counts the tasks that don't run any more.
    fn look(&mut self) -> Result<()> {
        let states = self.side.client().states_of(&self.name)?;
        let ended = states.iter().filter(|state| state.client_status != "running");
        let failures = ended.map(|state| {
            let error = format!("rest: allocation {} is {}", state.id, state.client_status);
            Failure { turn: 0, error }
        });
        self.point.failures.extend(failures);
        Ok(())
    }

    /// Ends the job, and waits until the daemons are at rest.
    fn end(&mut self) -> Result<()> {
        let requested = SystemTime::now();
        self.side.stop(&self.name)?;
        let limit = STEP + STEP_OF_A_TASK * self.point.tasks;
        for (turn, id) in (0..).zip(&self.ids) {
            let ended = self.side.client().allocation_until(
                id,
                "stopped allocation",
                limit,
                Allocation::is_terminal,
            )?;
            for task in task_names(self.side.variation.group.min(self.point.tasks)) {
                match ended.task(&task).event("Killed") {
                    Ok(event) => {
                        let took = event.at().duration_since(requested).unwrap_or_default();
                        self.point.stop_ns.push(nanoseconds(took));
                    }
                    Err(error) => {
                        self.point.failures.push(Failure { turn, error: format!("stop: {error:#}") });
                    }
                }
            }
        }
        self.point.stop_storm_ns = self.point.stop_ns.iter().copied().max().unwrap_or_default();
        self.side.forget(&self.name)?;
        sleep(REST);
        Ok(())
    }

    /// Returns the id of the first allocation.
    fn only(&self) -> Result<&str> {
        self.ids.first().map(String::as_str).context("no allocation")
    }
}

fn point(side: &Side<'_>, tasks: u32) -> ScalePoint {
    ScalePoint {
        setup: side.name().to_owned(),
        path: PATH.to_owned(),
        tasks,
        start_ns: Vec::new(),
        stop_ns: Vec::new(),
        exec_ns: Vec::new(),
        start_storm_ns: 0,
        stop_storm_ns: 0,
        failures: Vec::new(),
        steady_cpu_ns_per_task_second: BTreeMap::new(),
        memory_bytes: BTreeMap::new(),
        anonymous_bytes: BTreeMap::new(),
    }
}

/// Starts many tasks, those of one side after those of the other, measures the usage of all sides while they are at
/// rest, and ends them.
fn rest(sides: &[&Side<'_>], name: &str, tasks: u32, window: Duration) -> Result<Vec<ScalePoint>> {
    let mut jobs = Vec::new();
    for (turn, side) in sides.iter().enumerate() {
        jobs.push(Many::start(side, format!("{name}-{turn}"), tasks)?);
    }
    sleep(REST);
    let look = |side: &&Side<'_>| Ok(Look::at(&side.processes()?));
    let before = sides.iter().map(look).collect::<Result<Vec<_>>>()?;
    wait(window)?;
    let after = sides.iter().map(look).collect::<Result<Vec<_>>>()?;
    for ((job, before), after) in jobs.iter_mut().zip(&before).zip(&after) {
        let cpu = after.cpu_since(before).into_iter();
        let tasks = f64::from(job.point.tasks);
        job.point.steady_cpu_ns_per_task_second = cpu.map(|(who, ns)| (who, (ns / tasks) as u64)).collect();
        job.point.memory_bytes = after.memory();
        job.point.anonymous_bytes = after.anonymous_memory();
        job.look()?;
        job.end()?;
    }
    Ok(jobs.into_iter().map(|job| job.point).collect())
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

/// Starts a task that can print the pattern, and has it do so once.
fn start_printing<'a, 'b>(side: &'a Side<'b>, turn: u32, pattern: &[u8]) -> Result<Many<'a, 'b>> {
    let job = Many::start(side, format!("print-{turn}"), 1)?;
    let id = job.only()?;
    fs::write(side.allocation(id).join("alloc/data/pattern"), pattern)?;
    side.client().running(id, MAIN)?;
    // However it ends.
    let _ = print_all(side, id, pattern);
    Ok(job)
}

/// Prints the pattern by an exec, and returns the time until all of it has come.
fn print_all(side: &Side<'_>, id: &str, pattern: &[u8]) -> Result<Duration> {
    let done = exec::run(side.client().own_http(), id, &PRINT)?;
    ensure!(done.stdout == pattern, "{} bytes came, and not those of the file", done.stdout.len());
    Ok(done.printed)
}

/// Has a task write so many pieces, and returns the time until its log files have them.
fn write(side: &Side<'_>, name: &str, piece: &[u8], pieces: usize) -> Result<Duration> {
    let script = logs::script(pieces);
    side.submit(name, &Work { script: &script, count: 1, group: 1, writes_much: true })?;
    let ids = side.client().placed(name, 1)?;
    let id = ids.first().context("no allocation")?;
    side.client().running(id, MAIN)?;
    let (data, files) = (side.allocation(id).join("alloc/data"), side.allocation(id).join("alloc/logs"));
    fs::write(data.join("piece"), piece)?;
    sleep(REST / 2);
    let begun = Instant::now();
    fs::write(data.join("go"), b"")?;
    let wanted = (piece.len() * pieces) as u64;
    while logs::size(&logs::files(&files)?) < wanted {
        check()?;
        ensure!(begun.elapsed() < STEP, "the output is not there after {} s", STEP.as_secs());
        sleep(logs::LOOK);
    }
    let took = begun.elapsed();
    ensure!(logs::is_whole(&files, piece, pieces)?, "what is in the files is not what the task wrote");
    Ok(took)
}

/// Returns bytes in which a lost, doubled or displaced part is noticed: each group of eight is different.
fn pattern() -> Vec<u8> {
    let groups = OUTPUT_BYTES as u64 / 8;
    (0..groups).flat_map(|count| count.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_with_several_calls_of_a_kind_has_a_turn_for_each() {
        let key = |call: &str| Key {
            setup: "a".to_owned(),
            path: PATH.to_owned(),
            call: call.to_owned(),
            concurrency: 1,
            payload_bytes: 0,
            held: 0,
        };
        let mut samples = Samples::default();
        let ms = Duration::from_millis;
        let times = vec![("exec", ms(1)), ("exec", ms(2)), ("stop", ms(3))];
        record(&mut samples, key, &[], 0, Ok(times.clone()));
        record(&mut samples, key, &["exec", "exec", "stop"], 1, Err(anyhow!("no")));
        record(&mut samples, key, &[], 2, Ok(times));
        let series = samples.into_series();
        assert_eq!(series[0].samples_ns, [1_000_000, 2_000_000, 1_000_000, 2_000_000]);
        let turns: Vec<_> = series[0].failures.iter().map(|failure| failure.turn).collect();
        assert_eq!(turns, [2, 3]);
        assert_eq!((series[1].samples_ns.len(), series[1].failures[0].turn), (2, 1));
    }
}
