//! The injector: a process that traces the threads of a plugin, tells each point that they reach, and injects one fault.
//! It runs beside the plugin, since what is to be waited for by the parent of a process can't be traced by it as well.

mod memory;
mod names;
mod tracer;

use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};

use anyhow::{Context, Result};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::point::{Action, Point};

/// A request to the injector, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Begins to count points.
    Arm {
        /// Texts of this run only, such as ids, and the word that stands for each in a point.
        names: Vec<(String, String)>,
        target: Option<(Point, Action)>,
    },
    /// Lets go of the plugin after [`Report::Reached`].
    Release,
}

/// A report of the injector, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// All threads are traced.
    Attached,
    Armed,
    /// The plugin reached a point. Only told if there is no target.
    Point(Point),
    /// A thread of the plugin that answers calls made a call that may wait for a disk.
    MayWait(String),
    /// The plugin reached the target.
    Reached,
}

#[derive(clap::Args)]
pub struct Args {
    /// The plugin's process.
    #[arg(long)]
    pid: i32,
}

/// Traces the plugin until it ends. Its own end leaves the plugin running, untraced.
///
/// # Errors
/// Fails if the process can't be traced.
pub fn run(args: &Args) -> Result<ExitCode> {
    let requests = requests()?;
    tracer::Tracer::attach(Pid::from_raw(args.pid), requests)?.run()?;
    Ok(ExitCode::SUCCESS)
}

/// Starts a thread that reads the requests, while another one waits for the plugin.
fn requests() -> Result<Receiver<Request>> {
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(request) = serde_json::from_str(&line) else { break };
            if sender.send(request).is_err() {
                break;
            }
        }
        // Whoever asked is gone, and with it the reason to trace.
        std::process::exit(0);
    };
    std::thread::Builder::new().name("requests".to_owned()).spawn(read).context("start a thread")?;
    Ok(receiver)
}

fn report(report: &Report) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, report)?;
    out.write_all(b"\n")?;
    out.flush().context("tell the harness")
}
