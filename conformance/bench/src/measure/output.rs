//! Measures an exec with much output: through an agent, through the plugin alone, and without either.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::context::agent::AgentContext;
use harness::host::Exec;
use harness::task::LIMIT;

use super::bare::Bare;
use super::ctr::Pulled;
use super::driven::Driven;
use super::table::{self, Call, GO_DRIVERS_MB_PER_S, OUTPUT_BYTES as BYTES, Probe, Table};
use super::{Findings, Session};

/// The command of the exec, which prints a file.
const COMMAND: [&str; 2] = ["cat", "/alloc/data/pattern"];
/// Maximum number of rounds. Each takes a second or so.
const MOST_ROUNDS: u32 = 30;

pub(crate) fn measure(session: &Session<'_>, findings: &mut Findings) -> Result<()> {
    let runtime = session.runtime;
    let _pulled = Pulled::pull(session.environment)?;
    let pattern = pattern();
    let driven = runtime.block_on(Driven::start(session, "output"))?;
    fs::write(driven.task.alloc.directory.join("alloc/data/pattern"), &pattern)?;
    let runc = Bare::like(&driven.bundle()?, "runc", session.environment)?;
    runc.write(Path::new(COMMAND[1]), &pattern)?;
    let mut under_agent = match session.nomad {
        Some(nomad) => Some(AgentContext::on(session.environment, nomad, session.plugin)?),
        None => {
            findings.not_measured.push("output through an agent: no --nomad".to_owned());
            None
        }
    };
    let mut probes = vec![
        counted(table::Path::Runc, &pattern, || runc.exec(&COMMAND)),
        counted(table::Path::PluginStreaming, &pattern, || {
            runtime.block_on(async {
                let exec = Exec::open(&driven.plugin, driven.task.id(), &COMMAND, false).await?;
                Ok(exec.finish(LIMIT).await?.stdout)
            })
        }),
    ];
    if let Some(context) = &mut under_agent {
        let id = context.shell("measure-output", super::driven::IDLE)?;
        context.running(&id, "main")?;
        fs::write(context.data(&id, "pattern"), &pattern)?;
        let context = &*context;
        probes.push(counted(table::Path::Agent, &pattern, move || {
            let output = context.exec(&id, b"", &COMMAND)?;
            ensure!(output.code == Some(0), "exec ends with {:?}: {}", output.code, output.stderr());
            Ok(output.stdout)
        }));
    }
    findings.table.interleave(&mut probes, session.rounds.min(MOST_ROUNDS))?;
    drop(probes);
    drop(runc);
    let context = runtime.block_on(driven.end())?;
    if let Some(mut context) = under_agent {
        context.clear()?;
    }
    context.close()
}

/// Returns a probe of a call whose output must be the pattern. The comparison isn't part of the measured time.
fn counted<'a>(path: table::Path, pattern: &'a [u8], run: impl Fn() -> Result<Vec<u8>> + 'a) -> Probe<'a> {
    Probe::new(Call::Output, path, move || -> Result<Duration> {
        let begun = Instant::now();
        let output = run()?;
        let took = begun.elapsed();
        ensure!(output == pattern, "{} bytes came, and not those that were written", output.len());
        Ok(took)
    })
}

/// Returns bytes in which a lost, doubled or displaced part is noticed: each group of eight has its own value, from a
/// counter.
fn pattern() -> Vec<u8> {
    (0..BYTES as u64 / 8).flat_map(|count| count.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

/// Prints the times of outputs as throughputs.
pub(crate) fn print(table: &Table) {
    let paths = [
        (table::Path::Runc, "runc"),
        (table::Path::PluginStreaming, "plugin"),
        (table::Path::Agent, "nomad agent"),
    ];
    for (path, name) in paths {
        if let Some(ms) = table.median_ms(Call::Output, path) {
            let speed = BYTES as f64 / ms / 1000.0;
            let times = speed / GO_DRIVERS_MB_PER_S;
            println!(
                "output by {name}: {speed:.1} MB/s, {times:.1} times the {GO_DRIVERS_MB_PER_S} MB/s of drivers in Go"
            );
        }
    }
}
