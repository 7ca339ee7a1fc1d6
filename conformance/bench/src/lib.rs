//! The benchmark of shims: measures their calls by several paths in alternation, and prints, compares and renders the
//! results. [`measure`] takes figures of the driver.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test bench prints to a person")]
#![allow(clippy::large_futures, reason = "a test bench runs few futures")]

mod agent;
mod call;
mod cli;
mod compare;
mod container;
mod cost;
mod csv;
mod daemon;
mod direct;
mod end;
mod environment;
mod format;
mod growth;
mod iterations;
mod machine;
pub mod measure;
mod path;
mod pipes;
mod plugin;
mod progress;
#[cfg(test)]
mod random_samples;
mod report;
mod report_data;
mod report_file;
mod run;
mod samples;
mod scale;
mod schedule;
mod self_check;
mod service;
mod setup;
mod setups;
mod spec;
mod statistics;
mod stub;
mod table;
mod target;
mod timelines;

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
    /// Run the benchmark. The default without a subcommand.
    Run(Box<run::Args>),
    /// Measure how the cost of a task grows with the number of tasks.
    Scale(Box<scale::Args>),
    /// Measure drivers under a real Nomad agent, docker's too, in turn with each other and with the runtimes alone.
    Agent(Box<agent::Args>),
    /// Compare two reports, and fail if a series got slower, fails more often or can't be compared.
    Compare(compare::Args),
    /// Render one or more reports as an HTML page.
    Report(report::Args),
    /// Check that this harness measures correctly on this machine.
    SelfCheck(self_check::Args),
    /// Write a stub shim that answers each call after a known time.
    Stub(stub::Args),
    /// Run as the stub shim. Called by the script that `stub` writes.
    #[command(hide = true)]
    StubShim(stub::ShimArgs),
}

impl Args {
    /// Returns whether the command may run a container with crun.
    pub fn may_run_crun(&self) -> bool {
        match &self.command {
            None => self.run.may_run_crun(),
            Some(Command::Run(args)) => args.may_run_crun(),
            Some(Command::Scale(args)) => args.may_run_crun(),
            Some(Command::Agent(args)) => args.may_run_crun(),
            Some(_) => false,
        }
    }
}

/// # Errors
/// Fails on what can't be read or measured. A failed call is no error but part of the figures.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        None => run::run(&args.run),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Scale(args)) => scale::run(args),
        Some(Command::Agent(args)) => agent::run(args),
        Some(Command::Compare(args)) => compare::run(args),
        Some(Command::Report(args)) => report::run(args),
        Some(Command::SelfCheck(args)) => self_check::run(args),
        Some(Command::Stub(args)) => stub::run(args),
        Some(Command::StubShim(args)) => stub::run_shim(args),
    }
}
