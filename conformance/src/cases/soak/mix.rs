//! The execs of the soak test: short ones, some that pass on up to 100 KiB, some on a terminal.

use anyhow::{Context, Result};
use harness::host::{Exec, Plugin};
use harness::task::{LIMIT, Task};
use sha2::{Digest, Sha256};

/// The failure of an exec.
#[derive(Debug)]
pub enum Failure {
    /// No answer, as when the plugin dies.
    Cut(anyhow::Error),
    /// A wrong answer, which nothing excuses.
    Wrong(anyhow::Error),
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        let (Failure::Cut(error) | Failure::Wrong(error)) = failure;
        error
    }
}

/// Runs the exec of this number, and compares its exit code and all its output with the expected ones.
///
/// # Errors
/// See [`Failure`].
pub async fn exec(plugin: &Plugin, task: &Task, number: usize) -> Result<(), Failure> {
    let code = i32::try_from(number % 100 + 1).unwrap_or(1);
    let wanted = match number % 10 {
        0..=3 => (0, Vec::new()),
        4 | 5 => (code, format!("{number}\n").into_bytes()),
        6..=8 => (0, payload(number)),
        _ => (code, b"a terminal\r\n".to_vec()),
    };
    let result = match number % 10 {
        0..=3 => short(plugin, task, &["true"]).await,
        4 | 5 => short(plugin, task, &["/bin/sh", "-c", &format!("echo {number}; exit {code}")]).await,
        6..=8 => through_cat(plugin, task, &wanted.1).await,
        _ => on_a_terminal(plugin, task, code).await,
    };
    let (code, output) = result.map_err(Failure::Cut)?;
    if code != wanted.0 {
        return Err(Failure::Wrong(anyhow::anyhow!("the code is {code}, not {}", wanted.0)));
    }
    if Sha256::digest(&output) != Sha256::digest(&wanted.1) {
        let (got, wanted) = (output.len(), wanted.1.len());
        return Err(Failure::Wrong(anyhow::anyhow!("{got} bytes came of {wanted}, or others")));
    }
    Ok(())
}

async fn short(plugin: &Plugin, task: &Task, command: &[&str]) -> Result<(i32, Vec<u8>)> {
    let answer = plugin.exec_task(task.id(), command, LIMIT).await.context("ExecTask")?;
    let code = answer.result.context("ExecTask without a result crashes the agent")?.exit_code;
    Ok((code, [answer.stdout, answer.stderr].concat()))
}

async fn through_cat(plugin: &Plugin, task: &Task, payload: &[u8]) -> Result<(i32, Vec<u8>)> {
    let exec = Exec::open(plugin, task.id(), &["cat"], false).await?;
    for part in payload.chunks(16 * 1024) {
        exec.stdin(part).await?;
    }
    exec.close_stdin().await?;
    let result = exec.finish(LIMIT).await?;
    Ok((result.code()?, [&*result.stdout, &*result.stderr].concat()))
}

async fn on_a_terminal(plugin: &Plugin, task: &Task, code: i32) -> Result<(i32, Vec<u8>)> {
    let script = format!("[ -t 0 ] && [ -t 1 ] && echo a terminal; exit {code}");
    let exec = Exec::open(plugin, task.id(), &["/bin/sh", "-c", &script], true).await?;
    let result = exec.finish(LIMIT).await?;
    Ok((result.code()?, result.stdout))
}

/// Returns up to 100 KiB that differ from those of any other number.
fn payload(number: usize) -> Vec<u8> {
    let length = (number + 1) * 7919 * 13 % (100 * 1024);
    let blocks = (0..=length / 32).flat_map(|block| Sha256::digest(format!("{number} {block}")));
    blocks.take(length).collect()
}
