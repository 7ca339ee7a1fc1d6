//! The iterations (turns) of a run: every target takes each step before any target takes the next, and the results are
//! recorded. Knows neither how setups are brought up nor how results are reported.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use harness::interrupt;
use tokio::time::sleep;

use super::call::{Call, Step, steps};
use super::cost::{Group, Memory, Reading};
use super::progress::Progress;
use super::report_data::{Key, NotMeasured, Timeline};
use super::samples::{Conditions, Samples};
use super::schedule::{Until, order};
use super::target::{Outcomes, Target, remove_timed};
use super::timelines;

/// Pause after a call before its CPU time is read: work that goes on after the answer belongs to the call as well.
const SETTLES: Duration = Duration::from_millis(5);

/// The calls to measure, and the conditions to measure them under.
pub(crate) struct Wanted {
    pub(crate) calls: Vec<Call>,
    pub(crate) payloads: Vec<usize>,
    pub(crate) concurrency: Vec<u32>,
    pub(crate) held: Vec<u32>,
    pub(crate) warm_up: u32,
    pub(crate) until: Until,
}

pub(crate) struct Bench<'a> {
    pub(crate) wanted: &'a Wanted,
    /// The control group that counts CPU time. `None` if costs aren't measured.
    pub(crate) group: Option<&'a Group>,
    pub(crate) targets: Vec<Target>,
    pub(crate) samples: Samples,
    pub(crate) timelines: Vec<Timeline>,
}

/// The context of a single step on a target.
struct Iteration<'a> {
    conditions: Conditions,
    wanted: &'a [Call],
    /// Number of the iteration. `None` while warming up.
    turn: Option<u32>,
}

impl Bench<'_> {
    /// Returns the requested calls that can't be measured, merged over all setups that lack them for the same reason.
    pub(crate) fn unsupported(&self) -> Vec<NotMeasured> {
        let mut lacks: Vec<(Call, &str, String, Vec<&str>)> = Vec::new();
        for (target, call) in
            self.targets.iter().flat_map(|target| self.wanted.calls.iter().map(move |call| (target, *call)))
        {
            let (path, Some(why)) = (target.path.name(), target.path.unsupported(call)) else { continue };
            match lacks.iter_mut().find(|lack| (lack.0, lack.1, &lack.2) == (call, path, &why)) {
                Some((.., setups)) => setups.push(&target.setup),
                None => lacks.push((call, path, why, vec![&target.setup])),
            }
        }
        let entry = |(call, path, why, setups): (Call, &str, String, Vec<&str>)| NotMeasured {
            what: format!("{call} by {path} on {}", setups.join(", ")),
            why,
        };
        lacks.into_iter().map(entry).collect()
    }

    /// Makes all iterations under all conditions, and removes all containers at the end.
    ///
    /// # Errors
    /// Fails if a path can't start the tasks that the calls are made on, or if some of them can't be removed.
    pub(crate) async fn all(&mut self) -> Result<()> {
        let measured = tokio::select! {
            measured = self.conditions() => measured,
            () = interrupt::interrupted() => Err(anyhow!("interrupted")),
        };
        let ended = self.end().await;
        measured.and(ended)
    }

    async fn conditions(&mut self) -> Result<()> {
        let mut progress = Progress::new();
        for held in &self.wanted.held {
            for concurrency in &self.wanted.concurrency {
                self.under(*concurrency, *held, &mut progress).await?;
                self.end().await?;
            }
        }
        Ok(())
    }

    /// Makes all iterations under the same conditions.
    async fn under(&mut self, concurrency: u32, held: u32, progress: &mut Progress) -> Result<()> {
        let wanted = &self.wanted.calls;
        let steps = steps(wanted, &self.wanted.payloads);
        for target in &mut self.targets {
            target.begin(&steps, concurrency as usize, held as usize).await?;
        }
        self.expect(&steps, wanted, concurrency, held);
        let (until, warm_up) = (self.wanted.until, self.wanted.warm_up);
        let (mut begun, mut since) = (Instant::now(), SystemTime::now());
        for number in 0.. {
            let turn = u32::checked_sub(number, warm_up);
            if turn == Some(0) {
                (begun, since) = (Instant::now(), SystemTime::now());
            }
            if turn.is_some_and(|turn| until.is_over(turn, begun.elapsed())) {
                break;
            }
            for target in &mut self.targets {
                target.begin_turn(&steps).await;
            }
            for (place, step) in steps.iter().enumerate() {
                for target in order(self.targets.len(), number, place) {
                    progress.say(|| {
                        let turn =
                            turn.map_or_else(|| "warming up".to_owned(), |turn| format!("turn {}", turn + 1));
                        format!("{turn}: {step:?} on {}", self.targets[target].name())
                    });
                    let now = Iteration {
                        conditions: Conditions::of(&self.targets[target], concurrency, held),
                        wanted,
                        turn,
                    };
                    self.take(target, *step, &now).await?;
                }
            }
            for target in &mut self.targets {
                target.end_turn().await?;
            }
        }
        self.settle(concurrency, held);
        self.collect_timelines(concurrency, held, since).await;
        Ok(())
    }

    /// Creates every series, whether its calls will succeed or not.
    fn expect(&mut self, steps: &[Step], wanted: &[Call], concurrency: u32, held: u32) {
        for step in steps {
            for call in step.gives().iter().filter(|call| wanted.contains(call)) {
                for target in self.targets.iter().filter(|target| target.has(*step).contains(call)) {
                    let conditions = Conditions::of(target, concurrency, held);
                    self.samples.expect(conditions.key(*call, step.payload()));
                }
            }
        }
    }

    /// Makes a step on a target, and records the outcomes.
    async fn take(&mut self, target: usize, step: Step, now: &Iteration<'_>) -> Result<()> {
        if !self.targets[target].steps(&[step, Step::End]).contains(&step) && step != Step::End {
            return Ok(());
        }
        let before = self.reading()?;
        if step != Step::Task {
            let outcomes = self.targets[target].make(step).await;
            self.charge(target, step, step.whole(), before, now).await?;
            self.record(target, step, outcomes, now);
            return Ok(());
        }
        let started = self.targets[target].start_tasks().await;
        self.charge(target, step, Some(Call::TaskStart), before, now).await?;
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
        self.charge(target, step, Some(Call::TaskRemoval), before, now).await?;
        let removals = removals.into_iter().map(|took| Ok(vec![(Call::TaskRemoval, took?)])).collect();
        self.record_calls(&[Call::TaskStart], 0, starts, now);
        self.record_calls(&[Call::TaskRemoval], 0, removals, now);
        Ok(())
    }

    fn reading(&self) -> Result<Option<Reading>> {
        self.group.map(Group::read).transpose()
    }

    /// Adds the CPU time used since `before` to the cost of a call.
    async fn charge(
        &mut self,
        target: usize,
        step: Step,
        call: Option<Call>,
        before: Option<Reading>,
        now: &Iteration<'_>,
    ) -> Result<()> {
        let (Some(group), Some(before), Some(call), Some(_)) = (self.group, before, call, now.turn) else {
            return Ok(());
        };
        sleep(SETTLES).await;
        let own = i32::try_from(std::process::id())?;
        let taken = group.read()?.since(&before, &self.targets[target].path.servers(), own);
        let key = now.conditions.key(call, step.payload());
        self.samples.cost(key).add(u64::from(now.conditions.concurrency), &taken);
        Ok(())
    }

    fn record(&mut self, target: usize, step: Step, outcomes: Outcomes, now: &Iteration<'_>) {
        let calls = self.targets[target].has(step);
        self.record_calls(&calls, step.payload(), outcomes, now);
    }

    /// Records the outcomes of a step. A step that failed counts as a failure of each of its calls.
    fn record_calls(&mut self, calls: &[Call], payload: usize, outcomes: Outcomes, now: &Iteration<'_>) {
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
                self.samples.record(now.conditions.key(*call, payload), turn, took);
            }
        }
    }

    /// Sets the cost and memory usage of all series, after the last iteration and before anything is removed.
    fn settle(&mut self, concurrency: u32, held: u32) {
        if self.group.is_none() {
            return;
        }
        for target in &self.targets {
            let memory = Memory::of(&target.path.servers(), &target.shims());
            let (setup, path) = (&target.setup, target.path.name());
            let is_theirs = |key: &Key| {
                key.setup == *setup && key.path == path && key.concurrency == concurrency && key.held == held
            };
            self.samples.settle(is_theirs, &memory);
        }
    }

    /// Collects the timelines that drivers have logged since `since`, when the measured iterations began.
    async fn collect_timelines(&mut self, concurrency: u32, held: u32, since: SystemTime) {
        sleep(SETTLES).await;
        for target in &self.targets {
            let mut logged = target.path.logged_timelines();
            logged.retain(|timeline| timeline.at >= since);
            self.timelines.extend(timelines::of(&Conditions::of(target, concurrency, held), &logged));
        }
    }

    async fn end(&mut self) -> Result<()> {
        let mut stays = Vec::new();
        for target in &mut self.targets {
            if let Err(error) = target.end().await {
                stays.push(format!("{error:#}"));
            }
        }
        if stays.is_empty() { Ok(()) } else { bail!("{}", stays.join("; ")) }
    }
}
