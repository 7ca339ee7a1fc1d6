//! The benchmark of shims: their calls by several paths in turn, and what is said of the figures.

mod call;
mod cli;
mod compare;
mod cost;
mod csv;
mod daemon;
mod direct;
mod end;
mod ground;
mod growth;
mod lane;
pub mod machine;
mod path;
mod pipes;
mod plugin;
mod progress;
mod record;
mod report;
mod run;
#[cfg(test)]
mod samples;
mod saved;
mod scale;
mod schedule;
mod self_check;
mod served;
mod service;
mod setup;
mod shown;
mod spec;
mod stage;
pub mod statistics;
mod stub;
mod table;
mod tally;
mod timelines;
mod turns;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[group(skip)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::Args,
}

#[derive(Subcommand)]
enum Command {
    /// Measure: what `bench` does without a word.
    Run(Box<run::Args>),
    /// See how what a task takes grows with how many there are.
    Scale(Box<scale::Args>),
    /// Hold a report against another, and fail where something got slower or fails more often.
    Compare(compare::Args),
    /// Make a page of one report or more.
    Report(report::Args),
    /// See whether this harness measures right on this machine.
    SelfCheck(self_check::Args),
    /// Make a shim whose answers take known times.
    Stub(stub::Args),
    /// What that shim is.
    #[command(hide = true)]
    StubShim(stub::ShimArgs),
}

impl Args {
    /// Whether anything of it may run a container with crun.
    pub fn may_run_crun(&self) -> bool {
        match &self.command {
            None => self.run.may_run_crun(),
            Some(Command::Run(args)) => args.may_run_crun(),
            Some(Command::Scale(args)) => args.may_run_crun(),
            Some(_) => false,
        }
    }
}

/// # Errors
/// Says what can't be read or measured. A call that fails is a figure.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        None => run::run(&args.run),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Scale(args)) => scale::run(args),
        Some(Command::Compare(args)) => compare::run(args),
        Some(Command::Report(args)) => report::run(args),
        Some(Command::SelfCheck(args)) => self_check::run(args),
        Some(Command::Stub(args)) => stub::run(args),
        Some(Command::StubShim(args)) => stub::run_shim(args),
    }
}
