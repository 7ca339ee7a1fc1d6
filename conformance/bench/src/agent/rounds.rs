//! The rounds of a run: in each, every side does the same, in an order of its own.
//!
//! Single tasks come first, while all sides have the same history. What is measured of tasks at rest follows, before long
//! outputs leave their memory with the daemons.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use harness::interrupt::check;
use harness::timeline::LoggedTimeline;

use super::PATH;
use super::calls::{LOGS, OUTPUT, Turn, record};
use super::floor::{self, Floor, Floors, Profile};
use super::kind::Kind;
use super::many::{Many, flood, give_up, point, rest, wait};
use super::order::order;
use super::output::{OUTPUT_BYTES, Pieces, pattern, print_all, start_printing, write};
use super::side::Side;
use super::single::{Single, calls, single};
use crate::cli;
use crate::progress::Progress;
use crate::report_data::{Failure, Key, NotMeasured, PointKind, Report, ScalePoint};
use crate::samples::{Conditions, Samples};
use crate::timelines;

/// Number of tasks that run once on each side before anything is counted.
pub(crate) const WARM: u32 = 20;
/// Time to rest after a failed start of many tasks.
const RECOVERY: Duration = Duration::from_secs(30);

/// The rounds of a run, and what they have brought so far.
pub(crate) struct Rounds<'a, 'b> {
    sides: &'a [Side<'b>],
    /// Time over which CPU time is measured.
    window: Duration,
    /// What the orders of rounds are made from.
    seed: u64,
    progress: Progress,
    samples: Samples,
    scale: Vec<ScalePoint>,
    /// The timelines of each side.
    logged: Vec<Vec<LoggedTimeline>>,
    not_measured: Vec<NotMeasured>,
}

impl<'a, 'b> Rounds<'a, 'b> {
    pub(crate) fn new(sides: &'a [Side<'b>], window: Duration, seed: u64) -> Self {
        Self {
            sides,
            window,
            seed,
            progress: Progress::new(),
            samples: Samples::default(),
            scale: Vec::new(),
            logged: sides.iter().map(|_| Vec::new()).collect(),
            not_measured: Vec::new(),
        }
    }

    /// Puts all that there is so far into a report.
    pub(crate) fn fill(&mut self, report: &mut Report) {
        let of_side = |(side, logged): (&Side<'_>, &Vec<_>)| timelines::of(&conditions(side), logged);
        report.timelines = self.sides.iter().zip(&self.logged).flat_map(of_side).collect();
        report.series = self.samples.series().to_vec();
        report.scale.clone_from(&self.scale);
        report.not_measured.append(&mut self.not_measured);
    }

    /// Returns the sides that a kind is measured on, each with its number, in the order of a round.
    fn turns(&self, kind: Kind, round: u32) -> Vec<(usize, &'a Side<'b>)> {
        let has = |(_, side): &(usize, &Side<'_>)| side.variation.has(kind);
        let sides: Vec<_> = self.sides.iter().enumerate().filter(has).collect();
        order(self.seed, kind, round, sides.len()).into_iter().map(|turn| sides[turn]).collect()
    }

    /// Makes rounds with a single task on each side, and a container on each floor. Each floor has a turn before that,
    /// which isn't counted. The machine is idle but for whose turn it is.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed call is part of the figures.
    pub(crate) fn single(&mut self, rounds: u32, floors: Option<&Floors>) -> Result<()> {
        let on_floors = floors.map_or(&[][..], |floors| &floors.all);
        if let Some(floors) = floors {
            on_floors.iter().for_each(|floor| drop(floors.turn(floor)));
        }
        let has = |side: &&Side<'_>| side.variation.has(Kind::Single);
        let sides = self.sides.iter().filter(has).count();
        for round in 0..rounds {
            let on_sides = self.turns(Kind::Single, 0);
            for turn in order(self.seed, Kind::Single, round, sides + on_floors.len()) {
                check()?;
                match (on_sides.get(turn), floors) {
                    (Some((place, side)), _) => {
                        self.progress.say(|| format!("round {}: a task on {}", round + 1, side.name()));
                        let taken = single(side, &side.job(&format!("single-{round}")), false);
                        self.record_single(*place, round, taken);
                    }
                    (None, Some(floors)) => {
                        let floor = &on_floors[turn - sides];
                        self.progress.say(|| format!("round {}: {}", round + 1, floor.name));
                        self.record_floor(floor, round, &floors.turn(floor));
                    }
                    (None, None) => {}
                }
            }
        }
        Ok(())
    }

    fn record_single(&mut self, place: usize, round: u32, Single { turn, logged }: Single) {
        let side = &self.sides[place];
        record(&mut self.samples, |call| key(side, call, 0), &calls(side.has_timelines()), round, &turn);
        self.logged[place].extend(logged);
    }

    fn record_floor(&mut self, floor: &Floor, round: u32, turn: &Turn) {
        let conditions = Conditions { setup: floor.name.clone(), path: cli::NAME, concurrency: 1, held: 0 };
        record(&mut self.samples, |call| conditions.key_of(call, 0), &floor::CALLS, round, turn);
    }

    /// Measures the usage of so many tasks at rest on each side, out of the numbers of tasks that are measured. Two sides are
    /// measured at the same time, with their own tasks each, and more of them one after the other.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed task is part of the figures.
    pub(crate) fn at_rest(&mut self, rounds: u32, tasks: u32, counts: &[u32]) -> Result<()> {
        let rounds_of = |side: &Side<'_>| side.variation.rounds_at_rest(rounds, tasks, counts);
        let most = self.sides.iter().map(rounds_of).max().unwrap_or_default();
        if most == 0 {
            let what = format!("{tasks} tasks at rest");
            let why = "no variation has so many by its words".to_owned();
            self.not_measured.push(NotMeasured { what, why });
        }
        for round in 0..most {
            let turns = self.turns(Kind::Rest, round).into_iter().map(|(_, side)| side);
            let sides: Vec<&Side<'_>> = turns.filter(|side| rounds_of(side) > round).collect();
            for together in sides.chunks(if self.sides.len() <= 2 { 2 } else { 1 }) {
                check()?;
                let names: Vec<_> = together.iter().map(|side| side.name()).collect();
                self.progress.say(|| format!("round {}: {tasks} tasks on {}", round + 1, names.join(", ")));
                let name = format!("rest-{tasks}-{round}");
                let points = rest(together, &name, tasks, self.window)?;
                for (side, made) in together.iter().zip(points) {
                    self.add_point(side, tasks, PointKind::Rest, made)?;
                }
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
            for (_, side) in self.turns(Kind::Flood, round) {
                check()?;
                if side.variation.most < tasks {
                    continue;
                }
                self.progress
                    .say(|| format!("round {}: {tasks} tasks at once on {}", round + 1, side.name()));
                let made = flood(side, &format!("flood-{tasks}-{round}"), tasks);
                self.add_point(side, tasks, PointKind::Flood, made)?;
            }
        }
        Ok(())
    }

    /// Adds the point of a side, or one that says why there is none.
    fn add_point(
        &mut self,
        side: &Side<'_>,
        tasks: u32,
        kind: PointKind,
        made: Result<ScalePoint>,
    ) -> Result<()> {
        match made {
            Ok(point) => self.scale.push(point),
            Err(error) => {
                check()?;
                let failures = vec![Failure { turn: 0, error: format!("{error:#}") }];
                self.scale.push(ScalePoint { failures, ..point(side.name(), tasks, kind) });
                wait(RECOVERY)?;
            }
        }
        Ok(())
    }

    /// Has a task of each side print much by an exec, again and again. The first time isn't counted.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed task or exec is part of the figures.
    pub(crate) fn output(&mut self, rounds: u32) -> Result<()> {
        const NAME: &str = "print";
        let (pattern, sides) = (pattern(), self.sides);
        let start = |side: &'a Side<'b>| {
            side.variation.has(Kind::Output).then(|| start_printing(side, &side.job(NAME), &pattern))
        };
        let jobs: Vec<Option<Result<Many<'_, '_>>>> = sides.iter().map(start).collect();
        for round in 0..rounds {
            for (place, side) in self.turns(Kind::Output, round) {
                check()?;
                self.progress.say(|| format!("round {}: output on {}", round + 1, side.name()));
                let taken = match &jobs[place] {
                    Some(Ok(job)) => job.only().and_then(|id| print_all(side, id, &pattern)),
                    Some(Err(error)) => Err(anyhow!("{error:#}")),
                    None => continue,
                };
                self.samples.record(key(side, OUTPUT, OUTPUT_BYTES), round, taken);
            }
        }
        for (job, side) in jobs.into_iter().zip(sides) {
            // What is measured is measured: a task that doesn't end is told, and the others are ended.
            let Some(Err(error)) = job.map(|job| job.and_then(|mut job| job.end())) else { continue };
            check()?;
            give_up(side, &side.job(NAME), 1);
            let what = format!("the end of the task that prints on {}", side.name());
            self.not_measured.push(NotMeasured { what, why: format!("{error:#}") });
        }
        Ok(())
    }

    /// Has a task of each side write much, and takes the time until all of it is in its log files.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed task, or one whose files aren't what it wrote, is part of the figures.
    pub(crate) fn logs(&mut self, rounds: u32, pieces: usize) -> Result<()> {
        let pieces = Pieces::new(pieces);
        for round in 0..rounds {
            for (_, side) in self.turns(Kind::Logs, round) {
                check()?;
                self.progress.say(|| format!("round {}: logs on {}", round + 1, side.name()));
                let taken = write(side, &side.job(&format!("logs-{round}")), &pieces);
                self.samples.record(key(side, LOGS, pieces.bytes()), round, taken);
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

/// Has a side pull the image and run many tasks, which isn't counted. Returns the job, which runs still, and the seccomp
/// profile of its tasks if that is this driver's default.
///
/// # Errors
/// Fails if the side can't run its tasks, or if its driver doesn't sleep as long as is said. The job may run then.
pub(crate) fn warm_up<'a, 'b>(side: &'a Side<'b>) -> Result<(Many<'a, 'b>, Option<Profile>)> {
    let first = single(side, &side.job("warm-single"), true);
    if let Some(error) = first.turn.error {
        return Err(error.context("a first task"));
    }
    let job = Many::start(side, side.job(WARM_JOB), WARM, PointKind::Flood)?;
    let failures = &job.point.failures;
    ensure!(failures.is_empty(), "{} of {WARM} first tasks failed: {:?}", failures.len(), failures[0].error);
    let profile = side.variation.has_default_profile().then(|| side.profile_of_a_task());
    let profile = profile.map(|profile| {
        let seccomp = profile.context("a task of it has no seccomp profile in its bundle")?;
        Ok::<_, anyhow::Error>(Profile { variation: side.name().to_owned(), seccomp })
    });
    Ok((job, profile.transpose()?))
}

/// The job of the warm-up.
pub(crate) const WARM_JOB: &str = "warm-many";
