//! The end-to-end set: jobs on a real Nomad agent with the plugin, seen through Nomad's command line and API. Each case
//! ends with nothing left of it. One agent serves all cases, one after the other.

mod collected;
mod consul;
mod containerd;
mod csi;
mod docker;
mod docker_change;
mod ends;
mod environment;
mod exec;
mod logs;
mod networks;
pub mod options;
mod refusals;
mod resources;
mod restarts;
mod stop;
pub mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};
use harness::context::agent::AgentContext;
use harness::fixture::{Choice, Programs};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::case::{Skips, is_selected, skip, unmatched_filter};
use crate::cases;

type Case = fn(&mut AgentContext) -> Result<()>;

/// Makes cases of a file's functions, each named by its function.
macro_rules! named_cases {
    ($($function:ident),* $(,)?) => { &[$((stringify!($function), $function)),*] };
}
use named_cases;

type NamedCase = (String, Box<dyn Fn(&mut AgentContext) -> Result<()> + Send>);

/// Group of the cases that need Consul.
const CONSUL: &str = "consul";
/// Group of the cases that need a dockerd.
const DOCKER_CHANGE: &str = "docker_change";

/// Returns every case with its name, which the filters of `conformance e2e FILTER...` are looked for in.
fn cases(args: &Args) -> Result<Vec<NamedCase>> {
    let groups: [(&str, &[(&str, Case)]); 14] = [
        ("ends", ends::CASES),
        ("logs", logs::CASES),
        ("collected", collected::CASES),
        ("stop", stop::CASES),
        ("exec", exec::CASES),
        ("environment", environment::CASES),
        ("resources", resources::CASES),
        ("refusals", refusals::CASES),
        ("restarts", restarts::CASES),
        ("containerd", containerd::CASES),
        ("networks", networks::CASES),
        ("docker", docker::CASES),
        ("csi", csi::CASES),
        (CONSUL, consul::CASES),
    ];
    let mut all: Vec<NamedCase> = Vec::new();
    for (group, cases) in groups {
        all.extend(cases.iter().map(|(name, case)| {
            let case: NamedCase = (format!("{group}::{name}"), Box::new(case));
            case
        }));
    }
    let binaries = docker_change::Binaries {
        nomad: std::path::absolute(&args.nomad)?,
        plugin: std::path::absolute(&args.plugin)?,
        dockerd: args.dockerd.as_deref().map(std::path::absolute).transpose()?.unwrap_or_default(),
    };
    for (name, case) in docker_change::CASES {
        let binaries = binaries.clone();
        all.push((format!("{DOCKER_CHANGE}::{name}"), Box::new(move |context| case(context, &binaries))));
    }
    for (name, file) in options::jobs()? {
        all.push((format!("options::{name}"), Box::new(move |context| options::play(context, &name, &file))));
    }
    Ok(all)
}

#[derive(clap::Args)]
pub struct Args {
    /// The driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// The agent's binary.
    #[arg(long)]
    nomad: PathBuf,
    /// Consul's binary; without one, the cases that register with it are skipped.
    #[arg(long)]
    consul: Option<PathBuf>,
    /// Path of dockerd's binary, with docker-proxy beside it. Without, the cases of a change from it are skipped.
    #[arg(long)]
    dockerd: Option<PathBuf>,
    #[command(flatten)]
    pub choice: Choice,
    /// Runs only the cases whose names contain one of these. Underscores and spaces match each other.
    filter: Vec<String>,
}

/// Runs the cases whose names contain one of the filters, or all without a filter, and prints how many ended how.
///
/// # Errors
/// Fails if the test environment or the agent does not come up.
pub fn run(args: &Args) -> Result<ExitCode> {
    let begun = Instant::now();
    let skips = Arc::new(Skips::default());
    let all = cases(args)?;
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(idle) = unmatched_filter(&names, &args.filter) {
        bail!("no case has {idle:?} in its name");
    }
    let mut cases: Vec<_> = all.into_iter().filter(|(name, _)| is_selected(name, &args.filter)).collect();
    let is_in = |name: &str, group: &str| name.starts_with(&format!("{group}::"));
    for (group, option, program) in
        [(CONSUL, "--consul", &args.consul), (DOCKER_CHANGE, "--dockerd", &args.dockerd)]
    {
        let barred = cases.extract_if(.., |(name, _)| program.is_none() && is_in(name, group));
        barred.for_each(|(name, _)| skips.note(&name, &format!("there is no {option}")));
    }
    let registers = cases.iter().any(|(name, _)| is_in(name, CONSUL));
    let consul = args.consul.as_deref().filter(|_| registers);
    let programs = Programs::find(&args.choice)?;
    println!("{}", programs.versions().join(", "));
    let context = Arc::new(Mutex::new(AgentContext::set(programs, &args.nomad, &args.plugin, consul)?));
    println!(
        "a containerd, a registry and a Nomad agent are up after {:.1} s",
        begun.elapsed().as_secs_f32()
    );
    let is_gvisor = args.choice.is_gvisor();
    let trials = cases.into_iter().map(|(name, case)| {
        let (context, skips) = (Arc::clone(&context), Arc::clone(&skips));
        Trial::ignorable_test(name.clone(), move || {
            let mut context = context.lock().unwrap_or_else(PoisonError::into_inner);
            let barred = cases::not_in_a_sandbox(&name).filter(|_| is_gvisor);
            let case = |context: &mut AgentContext| match barred {
                Some(why) => skip(format!("gVisor: {why}")),
                None => case(context),
            };
            play(&mut context, &name, case, &skips).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let arguments = Arguments { test_threads: Some(1), ..Arguments::default() };
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    skips.summarize("e2e", &conclusion);
    Ok(conclusion.exit_code())
}

fn play(
    context: &mut AgentContext,
    name: &str,
    case: impl Fn(&mut AgentContext) -> Result<()>,
    skips: &Skips,
) -> Result<Completion> {
    let played = skips.sort(name, case(context));
    let log = if played.is_err() { context.agent_log() } else { String::new() };
    let cleared = context.clear();
    let completion = played.map_err(|error| {
        let left = cleared.as_ref().err().map(|error| format!("\nand then: {error:#}")).unwrap_or_default();
        // The error comes last: it is there even for a reader who keeps only the end of the output.
        anyhow::anyhow!("the agent's log has:\n{log}\n{error:#}{left}")
    })?;
    cleared.map(|()| completion)
}
