//! Many tasks of one job on a side: their starts and stops, and what they cost while they are at rest.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use harness::agent::Allocation;
use harness::interrupt::check;

use super::PATH;
use super::parts::Look;
use super::side::{Side, Work, task_names};
use crate::report_data::{Failure, PointKind, ScalePoint};
use crate::samples::nanoseconds;

/// The script of a task. It says that it runs by a file, and exits at once on SIGTERM.
pub(crate) const SCRIPT: &str =
    "trap 'exit 0' TERM; : >/alloc/data/begun-$NOMAD_TASK_NAME; sleep 100000 & wait";
/// The task of an allocation that has one alone.
pub(crate) const MAIN: &str = "main";
/// Time after a start of many tasks, and after their end, in which the daemons come to rest.
pub(crate) const REST: Duration = Duration::from_secs(2);
/// Timeout of each step of a job's life, and what it is more for each task.
pub(crate) const STEP: Duration = Duration::from_secs(120);
const STEP_OF_A_TASK: Duration = Duration::from_secs(1);

/// A job of many tasks that run.
pub(crate) struct Many<'a, 'b> {
    side: &'a Side<'b>,
    name: String,
    /// Ids of the allocations, and the number of tasks of each.
    pub(crate) ids: Vec<String>,
    group: u32,
    pub(crate) point: ScalePoint,
}

impl<'a, 'b> Many<'a, 'b> {
    /// Starts all tasks at once. Those that don't run are counted.
    ///
    /// # Errors
    /// Fails if the job isn't placed. It may be there then.
    pub(crate) fn start(side: &'a Side<'b>, name: String, count: u32, kind: PointKind) -> Result<Self> {
        let submitted = SystemTime::now();
        // The last allocation may have more tasks than there are to be.
        let group = side.variation.group.min(count);
        let allocations = count.div_ceil(group);
        side.submit(&name, &Work { script: SCRIPT, count: allocations, group, writes_much: false })?;
        let ids = side.client().placed(&name, usize::try_from(allocations)?)?;
        let mut point = ScalePoint { tasks: allocations * group, ..point(side.name(), count, kind) };
        let limit = STEP + STEP_OF_A_TASK * count;
        let tasks = ids.iter().flat_map(|id| task_names(group).map(move |task| (id, task)));
        for (turn, (id, task)) in (0..).zip(tasks) {
            check()?;
            let left = limit.saturating_sub(submitted.elapsed()?);
            let took = side.first_write(id, &task, left).and_then(|at| {
                at.duration_since(submitted).context("its first write is before its job's submission")
            });
            match took {
                Ok(took) => point.start_ns.push(nanoseconds(took)),
                Err(error) => point.failures.push(Failure { turn, error: format!("start: {error:#}") }),
            }
        }
        point.start_storm_ns = storm(&point, &point.start_ns);
        Ok(Self { side, name, ids, group, point })
    }

    /// Counts the tasks that don't run any more.
    pub(crate) fn look(&mut self) -> Result<()> {
        let states = self.side.client().states_of(&self.name)?;
        self.point.failures.extend(not_running(&self.ids, self.group, &states));
        Ok(())
    }

    /// Ends the job, and waits until the daemons are at rest.
    ///
    /// # Errors
    /// Fails if a task doesn't end in time. The job is there still.
    pub(crate) fn end(&mut self) -> Result<()> {
        let requested = SystemTime::now();
        self.side.stop(&self.name)?;
        let limit = limit(self.point.tasks);
        for (place, id) in (0..).zip(&self.ids) {
            let left = limit.saturating_sub(requested.elapsed()?);
            let ended = self.side.client().allocation_until(
                id,
                "stopped allocation",
                left,
                Allocation::is_terminal,
            )?;
            for (turn, task) in (place * self.group..).zip(task_names(self.group)) {
                let took = ended.task(&task).event("Killed").and_then(|event| {
                    event.at().duration_since(requested).context("it has ended before its stop")
                });
                match took {
                    Ok(took) => self.point.stop_ns.push(nanoseconds(took)),
                    Err(error) => {
                        self.point.failures.push(Failure { turn, error: format!("stop: {error:#}") });
                    }
                }
            }
        }
        self.point.stop_storm_ns = storm(&self.point, &self.point.stop_ns);
        settle(self.side, &self.name)?;
        wait(REST)
    }

    /// Returns the id of the first allocation.
    pub(crate) fn only(&self) -> Result<&str> {
        self.ids.first().map(String::as_str).context("no allocation")
    }
}

/// Returns the time until all tasks of a point are there, or gone. One that isn't whole has none, which is 0.
fn storm(point: &ScalePoint, times: &[u64]) -> u64 {
    if point.is_whole() { times.iter().copied().max().unwrap_or_default() } else { 0 }
}

/// Returns a failure for each task that doesn't run, by its number in the job.
fn not_running(ids: &[String], group: u32, states: &[Allocation]) -> Vec<Failure> {
    let mut failures = Vec::new();
    for (place, id) in (0..).zip(ids) {
        let state = states.iter().find(|state| state.id == *id);
        for (turn, task) in (place * group..).zip(task_names(group)) {
            let (of_all, of_task) = match state {
                Some(state) => (&*state.client_status, state.task(&task).state),
                None => ("gone", String::new()),
            };
            if of_all != "running" || of_task != "running" {
                let error = format!("rest: task {task} is {of_task:?}, allocation {id} is {of_all}");
                failures.push(Failure { turn, error });
            }
        }
    }
    failures
}

/// Returns a point without anything measured.
pub(crate) fn point(setup: &str, tasks: u32, kind: PointKind) -> ScalePoint {
    ScalePoint::empty(kind, setup, PATH, tasks)
}

/// Starts many tasks, those of one side after those of the other, measures the usage of all sides while they are at
/// rest, and ends them. Nothing is left of a job, also of one that failed.
///
/// # Errors
/// Fails after an interrupt. A side that failed has an error of its own.
pub(crate) fn rest<'a, 'b>(
    sides: &[&'a Side<'b>],
    name: &str,
    tasks: u32,
    window: Duration,
) -> Result<Vec<Result<ScalePoint>>> {
    let start = |side: &&'a Side<'b>| Many::start(side, side.job(name), tasks, PointKind::Rest);
    let mut jobs: Vec<Result<Many<'_, '_>>> = sides.iter().map(start).collect();
    wait(REST)?;
    let look = |side: &&Side<'_>| Ok::<_, anyhow::Error>(Look::at(&side.processes()?));
    let before: Vec<Result<Look>> = sides.iter().map(look).collect();
    wait(window)?;
    let after: Vec<Result<Look>> = sides.iter().map(look).collect();
    // The memory of all sides before any of them ends its tasks.
    for ((job, before), after) in jobs.iter_mut().zip(before).zip(after) {
        let Ok(job) = job else { continue };
        if let Err(error) = use_of(job, before, after) {
            job.point.failures.push(Failure { turn: 0, error: format!("rest: {error:#}") });
        }
    }
    let mut points = Vec::new();
    for (job, side) in jobs.into_iter().zip(sides) {
        let ended = job.and_then(|mut job| {
            job.end()?;
            Ok(job.point)
        });
        check()?;
        if ended.is_err() {
            give_up(side, &side.job(name), tasks);
        }
        points.push(ended);
    }
    Ok(points)
}

/// Takes CPU time and memory of a job's tasks, and counts those that don't run.
fn use_of(job: &mut Many<'_, '_>, before: Result<Look>, after: Result<Look>) -> Result<()> {
    let (before, after) = (before?, after?);
    let (memory, anonymous) = (after.memory(), after.anonymous_memory());
    let cpu = after.cpu_since(&before)?.into_iter();
    job.look()?;
    let tasks = f64::from(job.point.tasks);
    job.point.steady_cpu_ns_per_task_second = cpu.map(|(who, ns)| (who, (ns / tasks) as u64)).collect();
    job.point.memory_bytes = memory;
    job.point.anonymous_bytes = anonymous;
    Ok(())
}

/// Starts many tasks at once and ends them. Nothing is left of the job, also of one that failed.
pub(crate) fn flood(side: &Side<'_>, name: &str, tasks: u32) -> Result<ScalePoint> {
    let name = side.job(name);
    let made = Many::start(side, name.clone(), tasks, PointKind::Flood).and_then(|mut job| {
        job.end()?;
        Ok(job.point)
    });
    if made.is_err() {
        give_up(side, &name, tasks);
    }
    made
}

/// Ends what is left of a job after a failure, as well as may be.
pub(crate) fn give_up(side: &Side<'_>, name: &str, tasks: u32) {
    if let Err(error) = side.clear(name, limit(tasks)) {
        eprintln!("{}: {name} can't be ended: {error:#}", side.name());
    }
    rustix::fs::sync();
    sleep(REST);
}

fn limit(tasks: u32) -> Duration {
    STEP + STEP_OF_A_TASK * tasks
}

/// Ends a job, waits until nothing of it runs and its data is on the disk, and gives the daemons time to come to rest: the
/// next turn is another side's.
///
/// # Errors
/// Fails if it can't be ended.
pub(crate) fn settle(side: &Side<'_>, name: &str) -> Result<()> {
    let cleared = side.clear(name, STEP).with_context(|| format!("{name} can't be ended"));
    rustix::fs::sync();
    sleep(REST / 4);
    cleared
}

/// Waits for so long, or fails after an interrupt.
pub(crate) fn wait(time: Duration) -> Result<()> {
    let begun = Instant::now();
    while let Some(left) = time.checked_sub(begun.elapsed()) {
        check()?;
        sleep(left.min(REST / 4));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_task_of_an_allocation_that_does_not_run_is_counted() {
        let allocation = |id: &str, status: &str, tasks: [&str; 2]| {
            let state = |state: &str| json!({"State": state, "Failed": false, "Restarts": 0, "Events": null});
            let states = json!({"main": state(tasks[0]), "main-1": state(tasks[1])});
            serde_json::from_value::<Allocation>(
                json!({"ID": id, "ClientStatus": status, "TaskStates": states}),
            )
        };
        let states = [
            allocation("a", "running", ["running", "running"]).unwrap(),
            allocation("b", "failed", ["dead", "dead"]).unwrap(),
            allocation("c", "running", ["running", "dead"]).unwrap(),
        ];
        let ids = ["a", "b", "c", "d"].map(str::to_owned);
        let failures = not_running(&ids, 2, &states);
        let turns: Vec<_> = failures.iter().map(|failure| failure.turn).collect();
        assert_eq!(turns, [2, 3, 5, 6, 7]);
    }

    #[test]
    fn a_point_with_a_failure_has_no_storm() {
        let mut made = point("a", 2, PointKind::Flood);
        assert_eq!(storm(&made, &[3, 7]), 7);
        made.failures.push(Failure { turn: 0, error: "refused".to_owned() });
        assert_eq!(storm(&made, &[3, 7]), 0);
    }
}
