//! The end-to-end set: jobs on a real Nomad agent with the plugin, seen through Nomad's command line and API. Each case
//! ends with nothing left of it. One agent serves them all, one after the other.

mod consul;
mod containerd;
mod ends;
mod environment;
mod exec;
mod logs;
mod networks;
pub mod options;
mod refusals;
mod resources;
mod restarts;
pub mod stage;
mod stop;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use stage::Stage;

type Case = fn(&mut Stage) -> Result<()>;

type NamedCase = (String, Box<dyn Fn(&mut Stage) -> Result<()> + Send>);

/// The group of those that need Consul.
const CONSUL: &str = "consul";

/// Every case by its name, which `conformance e2e FILTER...` looks for its filters in.
fn cases() -> Result<Vec<NamedCase>> {
    let groups: [(&str, &[(&str, Case)]); 11] = [
        ("ends", ends::CASES),
        ("logs", logs::CASES),
        ("stop", stop::CASES),
        ("exec", exec::CASES),
        ("environment", environment::CASES),
        ("resources", resources::CASES),
        ("refusals", refusals::CASES),
        ("restarts", restarts::CASES),
        ("containerd", containerd::CASES),
        ("networks", networks::CASES),
        (CONSUL, consul::CASES),
    ];
    let mut all: Vec<NamedCase> = Vec::new();
    for (group, cases) in groups {
        all.extend(cases.iter().map(|(name, case)| {
            let case: NamedCase = (format!("{group}::{name}"), Box::new(case));
            case
        }));
    }
    for (name, file) in options::jobs()? {
        all.push((format!("options::{name}"), Box::new(move |stage| options::play(stage, &name, &file))));
    }
    Ok(all)
}

/// Runs the cases whose names contain one of `filters`, all without any, and prints the usual closing line.
///
/// # Errors
/// When the world or the agent does not come up.
pub fn run(nomad: &Path, plugin: &Path, consul: Option<&Path>, filters: &[String]) -> Result<ExitCode> {
    let begun = Instant::now();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let (registering, mut cases): (Vec<_>, Vec<_>) = cases()?
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .partition(|(name, _)| name.starts_with(&format!("{CONSUL}::")));
    let consul = consul.filter(|_| !registering.is_empty());
    if consul.is_some() {
        cases.extend(registering);
    } else {
        registering.iter().for_each(|(name, _)| println!("left out, as there is no --consul: {name}"));
    }
    let stage = Arc::new(Mutex::new(Stage::set(nomad, plugin, consul)?));
    println!(
        "a containerd, a registry and a Nomad agent are up after {:.1} s",
        begun.elapsed().as_secs_f32()
    );
    let trials = cases.into_iter().map(|(name, case)| {
        let stage = Arc::clone(&stage);
        Trial::test(name, move || {
            let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
            play(&mut stage, &case).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let arguments = Arguments { test_threads: Some(1), ..Arguments::default() };
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    Ok(conclusion.exit_code())
}

fn play(stage: &mut Stage, case: impl Fn(&mut Stage) -> Result<()>) -> Result<()> {
    let played = case(stage);
    let log = if played.is_err() { stage.agent_log() } else { String::new() };
    let cleared = stage.clear();
    played.map_err(|error| {
        let left = cleared.as_ref().err().map(|error| format!("\nand then: {error:#}")).unwrap_or_default();
        anyhow::anyhow!("{error:#}{left}\nthe agent's log has:\n{log}")
    })?;
    cleared
}
