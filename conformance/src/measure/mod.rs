//! Figures of what is about the driver alone, not judgements: what it takes, and what the same takes without it, made in
//! turn on the same machine, containerd and image. A figure is worth something beside the others of its run only. The
//! calls of a shim are `conformance bench`'s.
//!
//! A group measures some calls, each by several paths, and can be run alone.

mod bare;
mod ctr;
mod driven;
mod hugetlb;
mod logs;
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
use serde_json::json;
use tokio::runtime::Runtime;

use crate::fixture::{Choice, Programs, World};
pub use hugetlb::Hugetlb;
use table::Table;

#[derive(clap::Args)]
pub struct Args {
    /// The driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// The agent's binary; without one, what needs an agent is left out.
    #[arg(long)]
    nomad: Option<PathBuf>,
    /// How often each call is made by each path.
    #[arg(long, default_value_t = 30)]
    rounds: u32,
    #[command(flatten)]
    pub choice: Choice,
    /// Only this group; may be repeated.
    #[arg(long)]
    only: Vec<Group>,
    /// Where to write everything, samples included.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// 50 MiB of an exec's output.
    Output,
    /// What a network of a task's own adds to its start and its removal.
    Network,
    /// Tasks' output into their log files, by the driver and by Nomad's logmon.
    Logs,
    /// Start, stop and exec under an agent.
    Tasks,
    /// Images that are not here.
    Pull,
    /// Many tasks, by a plugin that comes after another.
    Recovery,
}

impl Args {
    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }
}

/// What the groups work with.
struct Ground<'a> {
    world: &'a Arc<World>,
    runtime: &'a Runtime,
    plugin: &'a FilePath,
    nomad: Option<&'a FilePath>,
    rounds: u32,
}

type Measure = fn(&Ground<'_>, &mut Findings) -> Result<()>;

/// What they find out.
#[derive(Default)]
struct Findings {
    table: Table,
    pulled: Option<pull::Pulled>,
    logs: Option<logs::Logs>,
    /// What was to be measured and couldn't, with the reason.
    not_measured: Vec<String>,
}

/// Measures and prints.
///
/// # Errors
/// When what the figures are taken on doesn't come up, or ends badly. A call that fails is a figure.
pub fn run(args: &Args) -> Result<()> {
    let runtime = Runtime::new()?;
    let plugin = std::path::absolute(&args.plugin)?;
    let programs = Programs::find(&args.choice)?;
    let machine = machine::facts(&plugin, args.nomad.as_deref(), &programs)?;
    machine::print(&machine);
    let world = World::start_of(programs)?;
    let mut findings = Findings::default();
    let ground = Ground {
        world: &world,
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
            measure(&ground, &mut findings).with_context(|| format!("group {group:?}"))?;
        }
    }
    findings.print();
    let Some(path) = &args.json else { return Ok(()) };
    let all = json!({
        "machine": machine,
        "rounds": ground.rounds,
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
