//! Measures operations of the driver and, for comparison, the same without the driver, in turn on the same machine,
//! containerd and image. Gives figures, not judgements: a figure only means something beside the others of its run.
//! The calls of a shim are measured by `conformance bench`.
//!
//! A group measures some calls, each by several paths, and can be run on its own.

mod bare;
mod ctr;
mod driven;
pub(crate) mod logs;
mod machine;
mod network;
mod output;
mod pull;
mod recovery;
mod table;
mod tasks;

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use harness::environment::TestEnvironment;
use harness::fixture::{Choice, Programs};
use serde_json::json;
use tokio::runtime::Runtime;

use table::Table;

#[derive(clap::Args)]
pub struct Args {
    /// Path of the driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Path of Nomad's binary. Without it, groups that need an agent are left out.
    #[arg(long)]
    nomad: Option<PathBuf>,
    /// Number of times that each call is made by each path.
    #[arg(long, default_value_t = 30)]
    rounds: u32,
    #[command(flatten)]
    pub choice: Choice,
    /// Run only this group. May be repeated.
    #[arg(long)]
    only: Vec<Group>,
    /// Write the report with all samples to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Output of 50 MiB from an exec.
    Output,
    /// Time that a network of its own adds to a task's start and removal.
    Network,
    /// Collection of tasks' output into log files, by the driver and by Nomad's logmon.
    Logs,
    /// Start, stop and exec of a task under an agent.
    Tasks,
    /// Pulls of images that aren't present.
    Pull,
    /// Recovery of many tasks by a plugin that replaces another.
    Recovery,
}

impl Args {
    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }
}

/// The environment of all groups.
struct Session<'a> {
    environment: &'a Arc<TestEnvironment>,
    runtime: &'a Runtime,
    plugin: &'a FilePath,
    nomad: Option<&'a FilePath>,
    rounds: u32,
}

type Measure = fn(&Session<'_>, &mut Findings) -> Result<()>;

/// The results of all groups.
#[derive(Default)]
struct Findings {
    table: Table,
    pulled: Option<pull::Pulled>,
    logs: Option<logs::Logs>,
    /// Descriptions of what could not be measured, with the reason.
    not_measured: Vec<String>,
}

/// Runs the chosen groups and prints the results.
///
/// # Errors
/// Fails if the environment doesn't come up or can't be cleaned up. A failed call is no error but part of the figures.
pub fn run(args: &Args) -> Result<()> {
    let runtime = Runtime::new()?;
    let plugin = std::path::absolute(&args.plugin)?;
    let programs = Programs::find(&args.choice)?;
    let machine = machine::facts(&plugin, args.nomad.as_deref(), &programs)?;
    machine::print(&machine);
    let environment = TestEnvironment::start_of(programs)?;
    let mut findings = Findings::default();
    let session = Session {
        environment: &environment,
        runtime: &runtime,
        plugin: &plugin,
        nomad: args.nomad.as_deref(),
        rounds: args.rounds.max(1),
    };
    let groups: [(Group, Measure); 6] = [
        (Group::Output, output::measure),
        (Group::Network, network::measure),
        (Group::Logs, logs::measure),
        (Group::Tasks, tasks::measure),
        (Group::Pull, pull::measure),
        (Group::Recovery, recovery::measure),
    ];
    for (group, measure) in groups {
        if args.wants(group) {
            measure(&session, &mut findings).with_context(|| format!("group {group:?}"))?;
        }
    }
    findings.print();
    let Some(path) = &args.json else { return Ok(()) };
    let all = json!({
        "machine": machine,
        "rounds": session.rounds,
        "calls": findings.table.json(),
        "pulled": findings.pulled.as_ref().map(pull::Pulled::json),
        "logs": findings.logs.as_ref().map(logs::Logs::json),
        "not_measured": findings.not_measured,
    });
    std::fs::write(path, serde_json::to_vec_pretty(&all)?)
        .with_context(|| format!("write {}", path.display()))
}

impl Findings {
    fn print(&self) {
        println!();
        self.table.print();
        output::print(&self.table);
        if let Some(pulled) = &self.pulled {
            pulled.print();
        }
        if let Some(logs) = &self.logs {
            logs.print();
        }
        for what in &self.not_measured {
            println!("not measured: {what}");
        }
    }
}
