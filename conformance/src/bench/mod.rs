//! The benchmark of shims: their calls by several paths in turn, and what is said of the figures.

mod compare;
mod record;
#[cfg(test)]
mod samples;
mod saved;
mod shown;
mod statistics;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};

#[derive(ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Hold a report against another, and fail where something got slower or fails more often.
    Compare(compare::Args),
}

/// # Errors
/// Says what can't be read or measured.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        Command::Compare(args) => compare::run(args),
    }
}
