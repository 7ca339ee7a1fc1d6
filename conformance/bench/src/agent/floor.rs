//! The floor under all drivers: an OCI runtime's command line alone, which creates, starts, enters and deletes a
//! container in each turn.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use harness::fixture::{Choice, Programs};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::calls::{CREATE, CREATE_AND_START, EXEC, EXECS, START};
use crate::call::{Call, Step};
use crate::cli::Cli;
use crate::environment::Environment;
use crate::path::{Container, Path as _};
use crate::report_data;
use crate::setup::Setup;

/// A runtime, with or without a seccomp profile.
pub(crate) struct Floor {
    pub(crate) name: String,
    path: Cli,
}

/// The floors of a run, and what they share. Ended in order by [`Floors::end`].
pub(crate) struct Floors {
    runtime: Runtime,
    environments: Vec<Arc<Environment>>,
    pub(crate) all: Vec<Floor>,
}

/// The times of a turn: each call by its name.
pub(crate) type Times = Vec<(&'static str, Duration)>;

impl Floors {
    /// Starts a containerd for each of some runtimes, whose snapshots containers run on. With a profile, there is a
    /// second floor of each runtime.
    ///
    /// # Errors
    /// Names the runtime that isn't there, or the part that didn't start.
    pub(crate) fn start(
        directory: &std::path::Path,
        choice: &Choice,
        runtimes: &[String],
        profile: Option<&Value>,
    ) -> Result<Self> {
        let mut floors = Self { runtime: Runtime::new()?, environments: Vec::new(), all: Vec::new() };
        for runtime in runtimes {
            let programs = Programs::find(&Choice { runtime: runtime.clone(), ..choice.clone() })?;
            let name = format!("{} alone", programs.runtime_name());
            let setup = Setup {
                name: name.clone(),
                socket: None,
                programs,
                plugin: None,
                plugin_config: None,
                task_config: None,
            };
            let place: PathBuf = directory.join(format!("floor-{}", floors.environments.len()));
            let environment = Environment::start(&floors.runtime, place, setup);
            let environment = Arc::new(environment.with_context(|| format!("floor {name:?}"))?);
            let path =
                || Cli::of(&environment).with_context(|| format!("{name}: the shim is its own runtime"));
            floors.all.push(Floor { name: name.clone(), path: path()? });
            if let Some(profile) = profile {
                let path = path()?.with_profile(profile.clone());
                floors.all.push(Floor { name: format!("{name}, profile"), path });
            }
            floors.environments.push(environment);
        }
        Ok(floors)
    }

    /// Takes one container through its life, and returns the times of its calls.
    ///
    /// # Errors
    /// Carries the runtime's output. Nothing is left of the container.
    pub(crate) fn turn(&self, floor: &Floor) -> Result<Times> {
        self.runtime.block_on(async {
            let mut container = floor.path.prepare().await?;
            let lived = live(&mut *container).await;
            let removed = container.remove().await;
            let times = lived?;
            removed.map(|()| times)
        })
    }

    /// Returns the descriptions of the floors for the report.
    pub(crate) fn records(&self) -> Vec<report_data::Setup> {
        let parts_of = |floor: &Floor| {
            let of_runtime =
                |environment: &&Arc<Environment>| floor.name.starts_with(&environment.setup.name);
            let found = self.environments.iter().find(of_runtime);
            let parts =
                found.map(|found| ("programs".to_owned(), found.setup.programs.versions().join(", ")));
            report_data::Setup { name: floor.name.clone(), parts: parts.into_iter().collect() }
        };
        self.all.iter().map(parts_of).collect()
    }

    /// Takes all floors down.
    ///
    /// # Errors
    /// Fails if a container is left.
    pub(crate) fn end(self) -> Result<()> {
        drop(self.all);
        self.environments.into_iter().try_for_each(|environment| {
            let in_use =
                |environment: Arc<Environment>| anyhow!("floor {:?} is still in use", environment.setup.name);
            Arc::try_unwrap(environment).map_err(in_use)?.end(&self.runtime)
        })
    }
}

async fn live(container: &mut dyn Container) -> Result<Times> {
    let create = made(container, Step::Create, Call::Create).await?;
    let start = made(container, Step::Start, Call::Start).await?;
    let mut times = vec![(CREATE, create), (START, start), (CREATE_AND_START, create + start)];
    for _ in 0..EXECS {
        times.push((EXEC, made(container, Step::Exec(0), Call::Exec).await?));
    }
    // Nobody answers the end of a process that is the runtime's own: it has no time.
    container.step(Step::End).await?;
    made(container, Step::Delete, Call::Delete).await?;
    Ok(times)
}

async fn made(container: &mut dyn Container, step: Step, call: Call) -> Result<Duration> {
    let times = container.step(step).await?;
    let time = times.into_iter().find(|(made, _)| *made == call).map(|(_, took)| took);
    time.with_context(|| format!("{step:?} was made, and not measured"))
}
