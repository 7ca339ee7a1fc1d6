//! Throughput and cost of log collection: by the driver, and by Nomad's logmon, in turn under the same agent. Every
//! byte is compared with what the task wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::context::agent::{AgentContext, jobs};
use harness::interrupt;
use harness::processes::{cpu_ns, resident_kb};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Findings, Session};

/// Maximum number of rounds. Each takes seconds.
const ROUNDS: u32 = 5;
const LIMIT: Duration = Duration::from_secs(180);
pub(crate) const LOOK: Duration = Duration::from_millis(2);
/// Size of the piece of text that a task writes repeatedly.
pub(crate) const PIECE_BYTES: usize = 5_000_000;
/// (number of concurrent tasks, number of pieces that each writes): 500 MB in total.
const SIZES: [(usize, usize); 2] = [(1, 100), (20, 5)];
const COLLECTORS: [&str; 2] = ["nomad", "driver"];

/// The result of one measurement.
struct Run {
    collector: &'static str,
    tasks: usize,
    seconds: f64,
    /// CPU time of the plugin and of Nomad's log collectors while the output was written.
    cpu_ms: f64,
    /// Resident set size of the plugin and of Nomad's log collectors before anything was written.
    idle_kb: u64,
}

#[derive(Default)]
pub(crate) struct Logs {
    runs: Vec<Run>,
    failures: Vec<String>,
}

pub(super) fn measure(session: &Session<'_>, findings: &mut Findings) -> Result<()> {
    let Some(nomad) = session.nomad else {
        findings.not_measured.push("throughput of logs under an agent: no --nomad".to_owned());
        return Ok(());
    };
    let mut context = AgentContext::on(session.environment, nomad, session.plugin)?;
    let mut logs = Logs::default();
    for round in 0..session.rounds.min(ROUNDS) {
        for (tasks, pieces) in SIZES {
            for collector in COLLECTORS {
                interrupt::check()?;
                let name = format!("logs-{collector}-{tasks}-{round}");
                match write(&mut context, &name, collector, tasks, pieces) {
                    Ok(run) => logs.runs.push(run),
                    Err(error) => logs.failures.push(format!("{name}: {error:#}")),
                }
                context.clear()?;
            }
        }
    }
    findings.logs = Some(logs);
    Ok(())
}

/// Returns a piece of text, in lines as programs write them.
pub(crate) fn piece() -> Vec<u8> {
    let line = |number: usize| {
        format!("{number:012} 192.0.2.7 GET /index.html 200 4711 0.012 some agent of some browser\n")
    };
    let mut piece: Vec<u8> = (0..PIECE_BYTES / 60).flat_map(|number| line(number).into_bytes()).collect();
    piece.truncate(PIECE_BYTES - 1);
    piece.push(b'\n');
    piece
}

/// Returns the job. Each collector has its own option for the sizes of log files.
fn job(collector: &str) -> String {
    let (config, task) = match collector {
        "driver" => ("logging {\n max_files = 60\n max_file_size = \"10m\"\n }", ""),
        _ => ("", "logs {\n max_files = 60\n max_file_size = 10\n }"),
    };
    jobs::shell_configured(config)
        .replace("      resources {", &format!("{task}\n      resources {{"))
        .replace("    restart {", "    ephemeral_disk {\n size = 700\n }\n    restart {")
}

fn write(
    context: &mut AgentContext,
    name: &str,
    collector: &'static str,
    tasks: usize,
    pieces: usize,
) -> Result<Run> {
    context.agent.collect_logs_by(collector)?;
    let script = script(pieces);
    let (image, count, piece) = (context.busybox(), tasks.to_string(), piece());
    let variables = [("image", image.as_str()), ("script", &script), ("count", &count)];
    context.submit(name, &job(collector), &variables)?;
    let ids = context.allocations(name, tasks)?;
    for id in &ids {
        context.running(id, "main")?;
        fs::write(context.data(id, "piece"), &piece)?;
    }
    sleep(Duration::from_secs(1));
    let processes = [vec![context.agent.plugin()?], context.agent.collectors()].concat();
    let used = || processes.iter().filter_map(|pid| cpu_ns(*pid)).sum::<u64>() as f64 / 1e6;
    let idle_kb = processes.iter().map(|pid| resident_kb(*pid)).sum::<Result<u64>>()?;
    let (before, begun) = (used(), Instant::now());
    for id in &ids {
        fs::write(context.data(id, "go"), b"")?;
    }
    let wanted = (PIECE_BYTES * pieces) as u64;
    for id in &ids {
        while size(&files(&directory(context, id))?) < wanted {
            ensure!(begun.elapsed() < LIMIT, "the output is not there after {LIMIT:?}");
            interrupt::check()?;
            sleep(LOOK);
        }
    }
    let (seconds, cpu_ms) = (begun.elapsed().as_secs_f64(), used() - before);
    let expected = sum_of(&piece, pieces);
    for id in &ids {
        let is_whole = is_whole(&directory(context, id), &expected)?;
        ensure!(is_whole, "what is in the files is not what task {id} wrote");
    }
    Ok(Run { collector, tasks, seconds, cpu_ms, idle_kb })
}

fn directory(context: &AgentContext, id: &str) -> PathBuf {
    context.agent.allocation_directory(id).join("alloc/logs")
}

/// Returns the script of a task that waits for the file `/alloc/data/go`, and then writes the file `/alloc/data/piece`
/// so many times.
fn script(pieces: usize) -> String {
    format!(
        "trap 'exit 0' TERM; until [ -e /alloc/data/go ]; do sleep 0.05; done; i=0; while [ $i -lt {pieces} ]; do cat /alloc/data/piece; \
         i=$((i+1)); done; sleep 1000 & wait"
    )
}

/// Returns the hash of so many pieces, one after the other.
pub(crate) fn sum_of(piece: &[u8], pieces: usize) -> Vec<u8> {
    (0..pieces).fold(Sha256::new(), |sum, _| sum.chain_update(piece)).finalize().to_vec()
}

/// Returns whether the log files of the task `main` have what has this hash.
///
/// # Errors
/// Fails if a file can't be read.
pub(crate) fn is_whole(logs: &Path, expected: &[u8]) -> Result<bool> {
    let mut sum = Sha256::new();
    for (_, path) in files(logs)? {
        sum.update(fs::read(path)?);
    }
    Ok(sum.finalize().as_slice() == expected)
}

/// Returns the log files of the task `main` with their numbers, in the order in which they were written.
///
/// # Errors
/// Fails if there is no such directory.
pub(crate) fn files(logs: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(logs).with_context(|| format!("read {}", logs.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a name that is no text")?;
        if let Some(number) = name.strip_prefix("main.stdout.") {
            files.push((number.parse()?, path));
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn size(files: &[(u64, PathBuf)]) -> u64 {
    files.iter().filter_map(|(_, path)| path.metadata().ok()).map(|file| file.len()).sum()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Logs {
    fn median(&self, collector: &str, tasks: usize, value: impl Fn(&Run) -> f64) -> f64 {
        let runs = self.runs.iter().filter(|run| run.collector == collector && run.tasks == tasks);
        median(runs.map(value).collect())
    }

    pub(crate) fn print(&self) {
        for (tasks, pieces) in SIZES {
            let megabytes = (tasks * pieces * PIECE_BYTES) as f64 / 1e6;
            let speed = |collector| megabytes / self.median(collector, tasks, |run| run.seconds);
            for collector in COLLECTORS {
                println!(
                    "logs, {tasks} tasks, {megabytes} MB in all, collected by {collector}: {:.0} MB/s ({:.2} x), {:.0} CPU ms \
                     of collectors and plugin, {:.0} kB of them before",
                    speed(collector),
                    speed(collector) / speed(COLLECTORS[0]),
                    self.median(collector, tasks, |run| run.cpu_ms),
                    self.median(collector, tasks, |run| run.idle_kb as f64),
                );
            }
        }
        for failure in &self.failures {
            println!("logs, failed: {failure}");
        }
    }

    pub(crate) fn json(&self) -> Value {
        let run = |run: &Run| {
            let Run { collector, tasks, seconds, cpu_ms, idle_kb } = run;
            json!({"collector": collector, "tasks": tasks, "seconds": seconds, "cpu_ms": cpu_ms, "idle_kb": idle_kb})
        };
        json!({
            "bytes": PIECE_BYTES * SIZES[0].0 * SIZES[0].1,
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
            "failures": self.failures,
        })
    }
}
