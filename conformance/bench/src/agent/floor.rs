//! The floor under all drivers: an OCI runtime's command line alone, which creates, starts, enters and deletes a
//! container in each turn.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use harness::fixture::{Choice, Programs};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use super::calls::{CREATE, CREATE_AND_START, DELETE, EXEC, EXECS, START, Times, Turn};
use crate::call::{Call, Step};
use crate::cli::Cli;
use crate::environment::Environment;
use crate::path::{Container, Path as _};
use crate::report_data;
use crate::setup::Setup;

/// What a floor's description has, by which it is found: the path of its runtime, and whether it has a profile.
pub(crate) const RUNTIME: &str = "runtime";
pub(crate) const PROFILE: &str = "profile";
pub(crate) const NO_PROFILE: &str = "none";

/// The calls of a turn.
pub(crate) const CALLS: [&str; 4 + EXECS] = [CREATE, START, CREATE_AND_START, EXEC, EXEC, EXEC, DELETE];

/// A runtime, with or without a seccomp profile.
pub(crate) struct Floor {
    pub(crate) name: String,
    parts: BTreeMap<String, String>,
    path: Cli,
}

/// The seccomp profile of a variation's task.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) variation: String,
    /// The profile as the OCI runtime gets it.
    pub(crate) seccomp: Value,
}

/// The floors of a run, and what they share. Ended in order by [`Floors::end`].
pub(crate) struct Floors {
    runtime: Runtime,
    environments: Vec<Arc<Environment>>,
    pub(crate) all: Vec<Floor>,
}

impl Floors {
    /// Starts a containerd for each of some runtimes, whose snapshots containers run on. One that has a profile is there a
    /// second time, with it.
    ///
    /// # Errors
    /// Names the runtime that isn't there, or the part that didn't start.
    pub(crate) fn start(
        directory: &Path,
        choice: &Choice,
        runtimes: &[(PathBuf, Option<Profile>)],
    ) -> Result<Self> {
        let mut floors = Self { runtime: Runtime::new()?, environments: Vec::new(), all: Vec::new() };
        let mut found = Vec::new();
        for (runtime, profile) in runtimes {
            let choice = Choice { runtime: runtime.display().to_string(), ..choice.clone() };
            found.push((Programs::find(&choice)?, profile));
        }
        let names = names(&found.iter().map(|(programs, _)| described(programs)).collect::<Vec<_>>());
        for ((programs, profile), name) in found.into_iter().zip(names) {
            floors.add(directory, programs, &name, profile.as_ref())?;
        }
        Ok(floors)
    }

    fn add(
        &mut self,
        directory: &Path,
        programs: Programs,
        name: &str,
        profile: Option<&Profile>,
    ) -> Result<()> {
        let mut parts = BTreeMap::from([
            ("programs".to_owned(), programs.versions().join(", ")),
            (RUNTIME.to_owned(), programs.runtime().display().to_string()),
            (PROFILE.to_owned(), NO_PROFILE.to_owned()),
        ]);
        let setup = Setup {
            name: name.to_owned(),
            socket: None,
            programs,
            plugin: None,
            plugin_config: None,
            task_config: None,
        };
        let place = directory.join(format!("floor-{}", self.environments.len()));
        let environment = Environment::start(&self.runtime, place, setup);
        let environment = Arc::new(environment.with_context(|| format!("floor {name:?}"))?);
        let path = || Cli::of(&environment).with_context(|| format!("{name}: the shim is its own runtime"));
        self.all.push(Floor { name: name.to_owned(), parts: parts.clone(), path: path()? });
        if let Some(profile) = profile {
            parts.insert(PROFILE.to_owned(), source(profile));
            let path = path()?.with_profile(profile.seccomp.clone());
            self.all.push(Floor { name: format!("{name}, profile"), parts, path });
        }
        self.environments.push(environment);
        Ok(())
    }

    /// Takes one container through its life, and returns the times of its calls. Nothing is left of the container, unless
    /// the error says so.
    pub(crate) fn turn(&self, floor: &Floor) -> Turn {
        let mut times = Times::new();
        let lived = self.runtime.block_on(async {
            let mut container = floor.path.prepare().await?;
            let lived = live(&mut *container, &mut times).await;
            let removed = container.remove().await;
            if removed.is_err() {
                times.retain(|(call, _)| *call != DELETE);
            }
            lived.and(removed)
        });
        Turn { times, error: lived.err() }
    }

    /// Returns the descriptions of the floors for the report.
    pub(crate) fn records(&self) -> impl Iterator<Item = report_data::Setup> {
        self.all
            .iter()
            .map(|floor| report_data::Setup { name: floor.name.clone(), parts: floor.parts.clone() })
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

/// Returns the name and the version of a runtime.
fn described(programs: &Programs) -> [String; 2] {
    let name = programs.runtime_name();
    let all = programs.versions();
    let version = all.iter().find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '));
    [name.clone(), version.unwrap_or_default().to_owned()]
}

/// Returns the names of the floors of some runtimes: with their versions, and their numbers if need be, where two are of
/// one name.
fn names(runtimes: &[[String; 2]]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for [name, version] in runtimes {
        let is_only = runtimes.iter().filter(|[other, _]| other == name).count() == 1;
        let made = if is_only { format!("{name} alone") } else { format!("{name} {version} alone") };
        let twice = names.iter().filter(|other| other.starts_with(&made)).count();
        names.push(if twice > 0 { format!("{made}, {}", twice + 1) } else { made });
    }
    names
}

/// Returns whose profile it is, with its hash.
fn source(Profile { variation, seccomp }: &Profile) -> String {
    let hash = Sha256::digest(seccomp.to_string());
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("that of a task of {variation}, sha256 {hash}..")
}

/// Returns the path of a runtime that the caller names.
///
/// # Errors
/// Fails if it isn't there.
pub(crate) fn path_of(runtime: &str, choice: &Choice) -> Result<PathBuf> {
    let choice = Choice { runtime: runtime.to_owned(), ..choice.clone() };
    let programs = Programs::find(&choice).with_context(|| format!("--floor {runtime}"))?;
    Ok(fs::canonicalize(programs.runtime())?)
}

async fn live(container: &mut dyn Container, times: &mut Times) -> Result<()> {
    let create = made(container, Step::Create, Call::Create).await?;
    times.push((CREATE, create));
    let start = made(container, Step::Start, Call::Start).await?;
    times.extend([(START, start), (CREATE_AND_START, create + start)]);
    for _ in 0..EXECS {
        times.push((EXEC, made(container, Step::Exec(0), Call::Exec).await?));
    }
    // Nobody answers the end of a process that is the runtime's own: it has no time.
    container.step(Step::End).await?;
    times.push((DELETE, made(container, Step::Delete, Call::Delete).await?));
    Ok(())
}

async fn made(container: &mut dyn Container, step: Step, call: Call) -> Result<Duration> {
    let times = container.step(step).await?;
    let time = times.into_iter().find(|(made, _)| *made == call).map(|(_, took)| took);
    time.with_context(|| format!("{step:?} was made, and not measured"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn two_runtimes_of_one_name_have_their_versions_in_it() {
        let of =
            |all: &[[&str; 2]]| names(&all.iter().map(|words| words.map(str::to_owned)).collect::<Vec<_>>());
        assert_eq!(of(&[["runc", "1.1"], ["crun", "1.8"]]), ["runc alone", "crun alone"]);
        assert_eq!(
            of(&[["runc", "1.1"], ["crun", "1.8"], ["crun", "1.20"], ["crun", "1.8"]]),
            ["runc alone", "crun 1.8 alone", "crun 1.20 alone", "crun 1.8 alone, 2"]
        );
    }

    #[test]
    fn a_profile_is_known_by_its_variation_and_its_hash() {
        let of = |variation: &str, seccomp| source(&Profile { variation: variation.to_owned(), seccomp });
        let one = of("runc", json!({"defaultAction": "a"}));
        assert!(one.starts_with("that of a task of runc, sha256 "), "{one}");
        assert_ne!(one, of("runc", json!({"defaultAction": "b"})));
        assert_ne!(one, of("crun", json!({"defaultAction": "a"})));
    }
}
