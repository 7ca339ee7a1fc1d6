//! A target of the benchmark: one path on one setup. It has the containers that a run uses there at a time,
//! and makes a step on all of them at once. Knows nothing of other targets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use futures::StreamExt as _;
use futures::future::join_all;

use super::call::{Call, ContainerState, Step};
use super::path::{Container, Path, Times};

/// Maximum number of tasks that are started or removed concurrently outside of measurements.
const AT_ONCE: usize = 4;

/// A container, or the error for which it was removed.
type Place = Result<Box<dyn Container>, String>;

pub(crate) struct Target {
    pub(crate) setup: String,
    pub(crate) path: Arc<dyn Path>,
    concurrency: usize,
    running: Vec<Place>,
    fresh: Vec<Place>,
    held: Vec<Box<dyn Container>>,
}

/// The outcomes of a step, one for each container that it was made on.
pub(crate) type Outcomes = Vec<Result<Times>>;

impl Target {
    pub(crate) fn new(setup: &str, path: Arc<dyn Path>) -> Self {
        let setup = setup.to_owned();
        Self { setup, path, concurrency: 1, running: Vec::new(), fresh: Vec::new(), held: Vec::new() }
    }

    pub(crate) fn name(&self) -> String {
        format!("{} by {}", self.setup, self.path.name())
    }

    /// Returns the calls of a step that this target's path supports.
    pub(crate) fn has(&self, step: Step) -> Vec<Call> {
        step.gives().into_iter().filter(|call| self.path.unsupported(*call).is_none()).collect()
    }

    /// Returns the steps that this target supports, plus `End` if it starts fresh containers.
    pub(crate) fn steps(&self, steps: &[Step]) -> Vec<Step> {
        let lives =
            steps.iter().any(|step| step.on() == ContainerState::Fresh && !self.has(*step).is_empty());
        let makes = |step: &&Step| !self.has(**step).is_empty() || (lives && **step == Step::End);
        steps.iter().filter(makes).copied().collect()
    }

    /// Starts the running containers that the steps need, and the `held` ones that run besides.
    ///
    /// # Errors
    /// Carries the path's error.
    pub(crate) async fn begin(&mut self, steps: &[Step], concurrency: usize, held: usize) -> Result<()> {
        self.concurrency = concurrency;
        let needs_one = self.steps(steps).iter().any(|step| step.on() == ContainerState::Running);
        // Only a resize needs a terminal.
        let terminal = self.steps(steps).contains(&Step::Resize);
        let count = if needs_one { concurrency } else { 0 };
        let name = self.name();
        let begun = async {
            for container in self.started(count, terminal).await {
                self.running.push(Ok(container?));
            }
            for container in self.started(held, false).await {
                self.held.push(container?);
            }
            anyhow::Ok(())
        };
        begun.await.with_context(|| format!("start tasks on {name}"))
    }

    async fn started(&self, count: usize, terminal: bool) -> Vec<Result<Box<dyn Container>>> {
        let starts = (0..count).map(|_| async { Ok(self.path.start(terminal).await?.0) });
        futures::stream::iter(starts).buffered(AT_ONCE).collect().await
    }

    /// Prepares the fresh containers that the steps of an iteration need.
    pub(crate) async fn begin_turn(&mut self, steps: &[Step]) {
        if self.steps(steps).iter().any(|step| step.on() == ContainerState::Fresh) {
            let prepared = join_all((0..self.concurrency).map(|_| self.path.prepare())).await;
            self.fresh =
                prepared.into_iter().map(|made| made.map_err(|error| format!("{error:#}"))).collect();
        }
    }

    /// Makes a step on each container of its kind, on all at once.
    pub(crate) async fn make(&mut self, step: Step) -> Outcomes {
        match step.on() {
            ContainerState::Running => {
                join_all(self.running.iter_mut().map(|place| make_at(place, step, false))).await
            }
            ContainerState::Fresh => {
                join_all(self.fresh.iter_mut().map(|place| make_at(place, step, true))).await
            }
            ContainerState::Nothing => Vec::new(),
        }
    }

    /// Starts as many tasks as the concurrency says. The caller removes them.
    pub(crate) async fn start_tasks(&self) -> Vec<Result<(Box<dyn Container>, Duration)>> {
        join_all((0..self.concurrency).map(|_| self.path.start(false))).await
    }

    /// Removes the fresh containers of an iteration.
    ///
    /// # Errors
    /// Names the containers that stay.
    pub(crate) async fn end_turn(&mut self) -> Result<()> {
        let fresh = std::mem::take(&mut self.fresh);
        self.remove(fresh.into_iter().flatten().collect()).await
    }

    /// Removes all containers of the target.
    ///
    /// # Errors
    /// Names the containers that stay.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let (fresh, running) = (std::mem::take(&mut self.fresh), std::mem::take(&mut self.running));
        let all = fresh.into_iter().chain(running).flatten().chain(std::mem::take(&mut self.held));
        self.remove(all.collect()).await
    }

    async fn remove(&self, containers: Vec<Box<dyn Container>>) -> Result<()> {
        let removals = containers.into_iter().map(|mut container| async move { container.remove().await });
        let removed: Vec<_> = futures::stream::iter(removals).buffered(AT_ONCE).collect().await;
        let stays: Vec<String> = removed
            .into_iter()
            .filter_map(|removed| removed.err().map(|error| format!("{error:#}")))
            .collect();
        anyhow::ensure!(stays.is_empty(), "remove tasks on {}: {}", self.name(), stays.join("; "));
        Ok(())
    }

    /// Returns the pids of the shims of the running containers.
    pub(crate) fn shims(&self) -> Vec<i32> {
        self.running.iter().flatten().filter_map(|container| container.shim()).collect()
    }
}

/// Makes a step on a container. A container whose life cycle failed at a step (`is_life`) is removed, and fails at all
/// further steps.
async fn make_at(place: &mut Place, step: Step, is_life: bool) -> Result<Times> {
    let container = match place {
        Ok(container) => container,
        Err(why) => return Err(anyhow!("not made, since an earlier step has failed: {why}")),
    };
    let outcome = container.step(step).await;
    if let (Err(error), true) = (&outcome, is_life) {
        let why = format!("{error:#}");
        // No later step would remove the container.
        let removed = container.remove().await;
        let stays = removed.err().map(|error| format!("; and it can't be removed: {error:#}"));
        *place = Err(why + &stays.unwrap_or_default());
    }
    outcome
}

/// Removes a task, and returns how long that took.
///
/// # Errors
/// Carries the path's error.
pub(crate) async fn remove_timed(mut container: Box<dyn Container>) -> Result<Duration> {
    let begun = Instant::now();
    container.remove().await?;
    Ok(begun.elapsed())
}
