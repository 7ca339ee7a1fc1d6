//! The client's calls on a hostile task. Each has to be answered in time, and not in a form that makes an agent take
//! the plugin for dead. What a command says of itself is checked where no act of the task excuses it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::host::{Exec, Plugin};
use harness::task::Task;
use nomad_proto::driver as pb;
use tonic::Status;

use super::acts::{Effect, STOPPED, TOLD};
use super::trial::{Ending, Move, Trial};

/// Timeout of a call, beyond the timeouts in it. Generous: the machine is busy with the task's acts, and a runtime that
/// the task holds up at the start of a command is given a minute.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(100);
/// Timeout of a script check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which the client of a command that the task holds up goes away.
const PATIENCE: Duration = Duration::from_secs(3);
/// Timeout of a stop that the program heeds.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const SHORT_TIMEOUT: Duration = Duration::from_millis(200);

/// Waits for the answer to a call, and checks an error's form.
///
/// # Errors
/// Fails if no answer comes, or one that would make the agent restart the plugin.
pub async fn answered<T>(
    what: &str,
    call: impl Future<Output = std::result::Result<T, Status>>,
) -> Result<std::result::Result<T, Status>> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, call).await;
    let answer = answer.with_context(|| format!("{what} gave no answer in {ANSWER_LIMIT:?}"))?;
    if let Err(status) = &answer {
        let deadly = matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled);
        ensure!(!deadly, "{what}: {:?} means the plugin's death: {}", status.code(), status.message());
        let words = status.message().split_whitespace().count();
        ensure!(words > 3, "{what}: the error doesn't say what failed: {:?}", status.message());
    }
    Ok(answer)
}

/// Returns whether a command in the task may fail without a fault of the driver's.
fn may_fail(trial: &Trial) -> bool {
    let pids = trial.job.options.get("pids_limit").and_then(serde_json::Value::as_i64);
    trial.has(Effect::Hampers)
        || trial.has(Effect::OutOfMemory)
        || trial.job.is_unsure
        || pids.is_some_and(|pids| pids < 1000)
}

/// Makes a call.
///
/// # Errors
/// Says what is wrong with the answer.
pub async fn make(call: Move, plugin: &Plugin, task: &Task, trial: &Trial) -> Result<()> {
    match call {
        Move::Exec => {
            let command = ["/bin/sh", "-c", "echo exec"];
            let answer = answered("ExecTask", plugin.exec_task(task.id(), &command, CHECK_TIMEOUT)).await?;
            check(
                answer.map(|answer| (answer.result.map(|exit| exit.exit_code), answer.stdout)),
                b"exec\n",
                trial,
            )
        }
        Move::Stream => stream(plugin, task, trial).await,
        Move::Abandoned => {
            let opened = Exec::open(plugin, task.id(), &["/bin/sh", "-c", "sleep 1000"], true);
            let opened = tokio::time::timeout(ANSWER_LIMIT, opened).await.context("no stream")?;
            tokio::time::sleep(SHORT_TIMEOUT).await;
            drop(opened);
            Ok(())
        }
        Move::Flooding => {
            let command = ["/bin/sh", "-c", "cat /dev/zero & exec cat /dev/zero >&2"];
            let limit = Duration::from_secs(1);
            let answer = answered("ExecTask", plugin.exec_task(task.id(), &command, limit)).await?;
            ensure!(!answer.is_ok_and(|answer| answer.result.is_none()), "ExecTask without a result");
            Ok(())
        }
        Move::Stats => stats(plugin, task).await,
        Move::Inspect => answered("InspectTask", plugin.inspect_task(task.id())).await.map(drop),
        Move::Signal => answered("SignalTask", plugin.signal_task(task.id(), "SIGWINCH")).await.map(drop),
        Move::Halt => {
            answered("SignalTask", plugin.signal_task(task.id(), "SIGSTOP")).await?.ok();
            tokio::time::sleep(SHORT_TIMEOUT).await;
            answered("SignalTask", plugin.signal_task(task.id(), "SIGCONT")).await.map(drop)
        }
        Move::Pause | Move::Restart => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(())
        }
    }
}

fn check(
    answer: std::result::Result<(Option<i32>, Vec<u8>), Status>,
    wanted: &[u8],
    trial: &Trial,
) -> Result<()> {
    match answer {
        Ok((code, output)) => {
            let code = code.context("a command without a result crashes the agent")?;
            ensure!(code == 0 || may_fail(trial), "a command ended with {code}: {output:?}");
            let is_right = output == wanted || (code != 0 || may_fail(trial)) && output.is_empty();
            ensure!(is_right, "a command said {:?}", String::from_utf8_lossy(&output));
        }
        Err(status) => ensure!(may_fail(trial), "a command failed: {}", status.message()),
    }
    Ok(())
}

async fn stream(plugin: &Plugin, task: &Task, trial: &Trial) -> Result<()> {
    let patience = if may_fail(trial) { PATIENCE } else { ANSWER_LIMIT };
    let talk = async {
        let exec = Exec::open(plugin, task.id(), &["cat"], false).await?;
        exec.stdin(b"a line\n").await?;
        exec.close_stdin().await?;
        exec.finish(patience).await
    };
    match tokio::time::timeout(ANSWER_LIMIT, talk).await.context("a command's stream is stuck")? {
        Ok(output) => {
            let code = output.result.map(|exit| exit.exit_code);
            check(Ok((code, output.stdout)), b"a line\n", trial)
        }
        Err(error) if may_fail(trial) => {
            ensure!(!format!("{error:#}").contains("crashes the agent"), "{error:#}");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn stats(plugin: &Plugin, task: &Task) -> Result<()> {
    let opened = answered("TaskStats", plugin.stats(task.id(), Duration::from_millis(100))).await?;
    let Ok(mut stream) = opened else { return Ok(()) };
    for _ in 0..3 {
        let message = answered("a sample of TaskStats", stream.message()).await?;
        let Ok(Some(message)) = message else { return Ok(()) };
        let usage = message.stats.and_then(|stats| stats.agg_resource_usage);
        ensure!(
            usage.is_some_and(|usage| usage.cpu.is_some() && usage.memory.is_some()),
            "a sample lacks its parts"
        );
    }
    Ok(())
}

/// Ends the task in the trial's way, and checks the answer of the WaitTask that the client has open meanwhile.
///
/// # Errors
/// Says what is wrong with the end.
pub async fn end(plugin: &Plugin, task: &Task, trial: &Trial, ending: Ending) -> Result<()> {
    let waiting = plugin.wait_task(task.id());
    let ending_it = async {
        // The wait is open before the call that ends the task.
        tokio::time::sleep(Duration::from_millis(20)).await;
        match ending {
            Ending::Told => match answered("SignalTask", plugin.signal_task(task.id(), "SIGUSR1")).await? {
                Err(status) if may_end_early(trial) => drop(status),
                told => told.context("SignalTask")?,
            },
            Ending::Stop => stop(plugin, task, STOP_TIMEOUT).await?,
            Ending::ShortStop | Ending::InterruptedStop => stop(plugin, task, SHORT_TIMEOUT).await?,
            Ending::Forced => {
                answered("DestroyTask", plugin.destroy_task(task.id(), true))
                    .await?
                    .context("DestroyTask by force")?;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    let waiting = async { answered("WaitTask", waiting).await };
    let (waited, ended) = tokio::join!(waiting, ending_it);
    ended?;
    match waited? {
        Ok(answer) => check_end(&answer, trial, ending)
            .with_context(|| format!("its last words: {:?}", last_words(task))),
        Err(_) if ending == Ending::Forced => Ok(()),
        Err(status) => Err(status).context("WaitTask"),
    }
}

/// Returns the end of what a task has said to stderr.
fn last_words(task: &Task) -> String {
    let text = task.alloc.stderr.text();
    let from = text.char_indices().rev().nth(300).map_or(0, |(at, _)| at);
    text[from..].to_owned()
}

fn may_end_early(trial: &Trial) -> bool {
    trial.has(Effect::Signals) || trial.has(Effect::OutOfMemory) || trial.job.is_unsure
}

async fn stop(plugin: &Plugin, task: &Task, timeout: Duration) -> Result<()> {
    let stopped = answered("StopTask", plugin.stop_task(task.id(), timeout, "")).await?;
    stopped.context("StopTask")
}

fn check_end(answer: &pb::WaitTaskResponse, trial: &Trial, ending: Ending) -> Result<()> {
    let exit = answer.result.as_ref().context("WaitTask without a result crashes the agent")?;
    if ending == Ending::Forced {
        return Ok(());
    }
    ensure!(answer.err.is_empty(), "WaitTask: {}", answer.err);
    let ended = (exit.exit_code, exit.signal);
    let mut wanted = vec![if ending == Ending::Told { (TOLD, 0) } else { (STOPPED, 0) }];
    if trial.has(Effect::Signals) {
        wanted.extend([(TOLD, 0), (STOPPED, 0)]);
    }
    let is_short = matches!(ending, Ending::ShortStop | Ending::InterruptedStop);
    let outlives =
        [Effect::Halts, Effect::Ignores, Effect::OutOfMemory].into_iter().any(|effect| trial.has(effect));
    if is_short || outlives {
        wanted.push((137, 9));
    }
    ensure!(
        wanted.contains(&ended) || trial.job.is_unsure,
        "the task ended with {exit:?}, none of {wanted:?}"
    );
    Ok(())
}
