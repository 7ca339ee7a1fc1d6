//! The command `conformance census`: lists all that a driver can leave on a machine, or compares that with an earlier
//! list. Works for any driver: it is told where to look.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use harness::leaks::census::{Census, daemon, machine};

#[derive(clap::Args)]
pub struct Args {
    /// The socket of a containerd whose records are counted, in all namespaces.
    #[arg(long)]
    containerd: Option<PathBuf>,
    /// A driver's state directory: its files, pipes and sockets, and the processes that have to do with it; may be
    /// repeated.
    #[arg(long)]
    state_dir: Vec<PathBuf>,
    /// A process whose open descriptors are counted; may be repeated.
    #[arg(long)]
    pid: Vec<i32>,
    /// Leave out what has this in its name; may be repeated.
    #[arg(long)]
    ignore: Vec<String>,
    /// File with an earlier census of the same arguments: print what has come and gone since, and exit with code 1 if
    /// anything has.
    #[arg(long)]
    against: Option<PathBuf>,
}

/// # Errors
/// Names what can't be inspected or read.
pub fn run(args: &Args) -> Result<ExitCode> {
    let now = take(args)?;
    let Some(file) = &args.against else {
        println!("{}", serde_json::to_string_pretty(&now)?);
        return Ok(ExitCode::SUCCESS);
    };
    let read = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let before: Census =
        serde_json::from_slice(&read).with_context(|| format!("{} is no census", file.display()))?;
    let before = before.without(&args.ignore);
    let (new, gone) = (now.since(&before), before.since(&now));
    new.lines().iter().for_each(|line| println!("+ {line}"));
    gone.lines().iter().for_each(|line| println!("- {line}"));
    if new.is_empty() && gone.is_empty() {
        println!("nothing has come or gone");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

fn take(args: &Args) -> Result<Census> {
    let mut census = machine::take(&args.state_dir, &args.pid)?;
    if let Some(socket) = &args.containerd {
        census.merge(daemon::take(socket, None)?, "");
    }
    Ok(census.without(&args.ignore))
}
