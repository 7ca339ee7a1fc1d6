//! The client's calls on a hostile task. Each has to be answered in time, and not in a form that makes an agent take
//! the plugin for dead. What a command says of itself is checked where no act of the task excuses it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::host::{Exec, Plugin};
use harness::task::Task;
use nomad_proto::driver as pb;
use tonic::Status;

use super::acts::{Effect, STOPPED, TOLD};
use super::excuses::{Excuse, has_ended, may_end_early, unless_ended};
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

async fn signal(plugin: &Plugin, task: &Task, name: &str) -> Result<()> {
    let answer = answered("SignalTask", plugin.signal_task(task.id(), name)).await?;
    unless_ended("SignalTask", answer, plugin, task).await.map(drop)
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
            let answer = answer.map(|answer| Said {
                code: answer.result.map(|exit| exit.exit_code),
                stdout: answer.stdout,
                stderr: answer.stderr,
            });
            check(answer, b"exec\n", Excuse::of(trial, task))
        }
        Move::Stream => stream(plugin, task, trial).await,
        Move::Abandoned => {
            let opened = Exec::open(plugin, task.id(), &["/bin/sh", "-c", "sleep 1000"], true);
            let opened = tokio::time::timeout(ANSWER_LIMIT, opened).await.context("no stream")?;
            // What is wrong with the command is told in the stream.
            let opened = opened.context("ExecTaskStreaming")?;
            tokio::time::sleep(SHORT_TIMEOUT).await;
            drop(opened);
            Ok(())
        }
        Move::Flooding => {
            let command = ["/bin/sh", "-c", "cat /dev/zero & exec cat /dev/zero >&2"];
            let limit = Duration::from_secs(1);
            let answer = answered("ExecTask", plugin.exec_task(task.id(), &command, limit)).await?;
            match answer {
                Ok(answer) => ensure!(answer.result.is_some(), "ExecTask without a result"),
                Err(status) => {
                    let text = status.message();
                    let is_fair =
                        text.contains("did not exit within") || Excuse::of(trial, task).covers(text);
                    ensure!(is_fair, "a command failed: {text}");
                }
            }
            Ok(())
        }
        Move::Stats => stats(plugin, task).await,
        Move::Inspect => {
            let answer = answered("InspectTask", plugin.inspect_task(task.id())).await?;
            let Some(answer) = unless_ended("InspectTask", answer, plugin, task).await? else {
                return Ok(());
            };
            ensure!(answer.task.is_some(), "InspectTask without a task crashes the agent");
            Ok(())
        }
        Move::Signal => signal(plugin, task, "SIGWINCH").await,
        Move::Halt => {
            signal(plugin, task, "SIGSTOP").await?;
            tokio::time::sleep(SHORT_TIMEOUT).await;
            signal(plugin, task, "SIGCONT").await
        }
        Move::Pause | Move::Restart => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(())
        }
    }
}

/// What a command said, and its exit code.
struct Said {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn check(answer: std::result::Result<Said, Status>, wanted: &[u8], excuse: Excuse) -> Result<()> {
    match answer {
        Ok(Said { code, stdout, stderr }) => {
            let code = code.context("a command without a result crashes the agent")?;
            if code == 0 && stdout == wanted {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&[&stdout[..], &stderr[..]].concat()).into_owned();
            ensure!(excuse.covers(&text), "a command ended with {code}: {text:?}");
            ensure!(stdout == wanted || stdout.is_empty(), "a command said {text:?}");
        }
        Err(status) => ensure!(excuse.covers(status.message()), "a command failed: {}", status.message()),
    }
    Ok(())
}

async fn stream(plugin: &Plugin, task: &Task, trial: &Trial) -> Result<()> {
    let is_hampered = Excuse::of(trial, task) == Excuse::Anything;
    let patience = if is_hampered { PATIENCE } else { ANSWER_LIMIT };
    let talk = async {
        let exec = Exec::open(plugin, task.id(), &["cat"], false).await?;
        exec.stdin(b"a line\n").await?;
        exec.close_stdin().await?;
        exec.finish(patience).await
    };
    match tokio::time::timeout(ANSWER_LIMIT, talk).await.context("a command's stream is stuck")? {
        Ok(output) => {
            let code = output.result.map(|exit| exit.exit_code);
            check(
                Ok(Said { code, stdout: output.stdout, stderr: output.stderr }),
                b"a line\n",
                Excuse::of(trial, task),
            )
        }
        Err(error) if is_hampered => {
            ensure!(!format!("{error:#}").contains("crashes the agent"), "{error:#}");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn stats(plugin: &Plugin, task: &Task) -> Result<()> {
    let opened = answered("TaskStats", plugin.stats(task.id(), Duration::from_millis(100))).await?;
    let Some(mut stream) = unless_ended("TaskStats", opened, plugin, task).await? else { return Ok(()) };
    for _ in 0..3 {
        let message = answered("a sample of TaskStats", stream.message()).await?;
        let Some(message) = unless_ended("a sample of TaskStats", message, plugin, task).await? else {
            return Ok(());
        };
        let Some(message) = message else {
            return has_ended(plugin, task).await.context("the stream of TaskStats ended");
        };
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
            Ending::Told if may_end_early(trial) => signal(plugin, task, "SIGUSR1").await?,
            Ending::Told => {
                answered("SignalTask", plugin.signal_task(task.id(), "SIGUSR1"))
                    .await?
                    .context("SignalTask")?;
            }
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
