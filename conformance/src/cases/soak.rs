//! Everything at once and for long: twenty tasks with their statistics, a thousand commands, two hundred signals, the
//! plugin killed in the middle. No code may be wrong and no byte lost, and what plugin and shims hold must be what they
//! held before.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore};

use super::{cases as listed, same};
use crate::fixture::leftovers::special_files;
use crate::host::stats::Stats;
use crate::host::{Exec, Plugin};
use crate::scene::Scene;
use crate::suite::Case;
use crate::task::{LIMIT, Task};

mod holdings;
use holdings::{Holdings, come_back};

listed!["soak":
    a_thousand_execs_and_the_plugins_death_leave_no_trace,
];

const TASKS: usize = 20;
const EXECS_A_TASK: usize = 50;
const SIGNALS_A_TASK: usize = 10;
/// So many are done when the plugin is killed.
const EXECS_BEFORE_THE_KILL: usize = TASKS * EXECS_A_TASK / 2;
/// At most so many of one task's, so that there is enough left for after it.
const MOST_BEFORE_THE_KILL: usize = 30;
/// How many run at a time over all tasks.
const EXECS_AT_A_TIME: usize = 8;
/// Statistics are listened to for so long, each second.
const LISTENING: Duration = Duration::from_secs(60);
const EACH_SECOND: Duration = Duration::from_secs(1);
/// On a machine with other things to do.
const CASE_LIMIT: Duration = Duration::from_secs(400);
const BLOCK_BYTES: usize = 4000;
const LAST_WORDS_BYTES: usize = 100_000;

pub(super) fn long_cases() -> Vec<Case> {
    cases().into_iter().map(|case| Case { limit: CASE_LIMIT, ..case }).collect()
}

/// A task that says so at each USR1, and takes its leave with many words at a TERM.
fn script(number: usize) -> String {
    format!(
        "block=$(head -c {BLOCK_BYTES} /dev/zero | tr '\\0' b); n=0; \
         trap 'n=$((n+1)); echo usr1 $n $block' USR1; \
         trap 'head -c {LAST_WORDS_BYTES} /dev/zero | tr \"\\0\" e; exit {}' TERM; \
         sleep 6000 & held=$!; echo up; while :; do wait $held; done",
        exit_code(number)
    )
}

/// The shell and what it waits for.
const PROCESSES_A_TASK: usize = 2;

fn exit_code(number: usize) -> i32 {
    40 + i32::try_from(number).unwrap_or(0)
}

/// What such a task has written after so many signals.
fn log_after(signals: usize) -> String {
    let block = "b".repeat(BLOCK_BYTES);
    let lines = (1..=signals).map(|n| format!("usr1 {n} {block}\n"));
    std::iter::once("up\n".to_owned()).chain(lines).collect()
}

fn whole_log() -> String {
    log_after(SIGNALS_A_TASK) + &"e".repeat(LAST_WORDS_BYTES)
}

/// How far one task has come.
#[derive(Default)]
struct Progress {
    execs: AtomicUsize,
    signals: AtomicUsize,
}

/// How far all have come with one plugin.
#[derive(Default)]
struct Round {
    /// The plugin is dead, or is about to die.
    is_over: AtomicBool,
    over: Notify,
    step: Notify,
    /// Execs that the plugin's death has cut off.
    cut: AtomicUsize,
    samples: AtomicUsize,
}

impl Round {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.over.notify_waiters();
    }

    async fn until_over(&self) {
        let over = self.over.notified();
        if !self.is_over() {
            over.await;
        }
    }
}

async fn a_thousand_execs_and_the_plugins_death_leave_no_trace(scene: &Scene) -> Result<()> {
    let plugin = scene.plugin().await?;
    let tasks = start_all(scene, &plugin).await?;
    let progress: Vec<Progress> = tasks.iter().map(|_| Progress::default()).collect();
    warm_up(&plugin, &tasks).await?;
    let shims = shims(&plugin, &tasks).await?;
    let pipes = special_files(&scene.state_dir()).len();
    let before = Holdings::of(&shims)?;
    let begun = Instant::now();

    let (first, mut plugin) = (Round::default(), plugin);
    let left = until_killed(&plugin, &tasks, &progress, &first).await?;
    plugin.kill().await?;
    drop(left);
    let mut next = scene.plugin().await?;
    try_join_all(tasks.iter().map(|task| task.recover(&next))).await?;
    let nothing_runs = || -> Result<()> {
        for (number, task) in tasks.iter().enumerate() {
            let count = task.alloc.cgroup.pids().len();
            ensure!(count == PROCESSES_A_TASK, "{count} processes in task {number}, not {PROCESSES_A_TASK}");
        }
        let now = special_files(&scene.state_dir()).len();
        ensure!(now == pipes, "{now} pipes and sockets of execs and shims, not {pipes}");
        Ok(())
    };
    come_back(LIMIT, nothing_runs).await.context("after the plugin's death")?;

    warm_up(&next, &tasks).await?;
    let plugin_before = Holdings::of(&[("the plugin".to_owned(), pid(&next)?)])?;
    let second = Round::default();
    to_the_end(&next, &tasks, &progress, &second, begun).await?;

    let execs: usize = progress.iter().map(|one| one.execs.load(Ordering::SeqCst)).sum();
    let signals: usize = progress.iter().map(|one| one.signals.load(Ordering::SeqCst)).sum();
    same!((execs, signals), (TASKS * EXECS_A_TASK, TASKS * SIGNALS_A_TASK));
    let samples = [&first, &second].map(|round| round.samples.load(Ordering::SeqCst));
    ensure!(samples.iter().all(|count| *count >= TASKS), "{samples:?} samples of {TASKS} tasks");
    let held = || {
        nothing_runs()?;
        before.has_come_back()?;
        plugin_before.has_come_back()
    };
    come_back(LIMIT, held).await.with_context(|| {
        format!(
            "after {execs} execs, {} more cut off by the plugin's death",
            first.cut.load(Ordering::SeqCst)
        )
    })?;
    try_join_all(tasks.iter().enumerate().map(|(number, task)| take_leave(&next, number, task))).await?;
    next.shut_down().await
}

fn pid(plugin: &Plugin) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(plugin.pid())?))
}

async fn start_all(scene: &Scene, plugin: &Plugin) -> Result<Vec<Task>> {
    // The first one brings the image.
    let mut tasks = vec![scene.run(plugin, &scene.shell(&script(0))).await?];
    let rest = (1..TASKS).map(|number| async move { scene.run(plugin, &scene.shell(&script(number))).await });
    tasks.extend(try_join_all(rest).await?);
    try_join_all(tasks.iter().map(|task| task.alloc.stdout.to_hold(log_after(0).len(), LIMIT))).await?;
    Ok(tasks)
}

async fn shims(plugin: &Plugin, tasks: &[Task]) -> Result<Vec<(String, Pid)>> {
    let found = tasks.iter().enumerate().map(|(number, task)| async move {
        let shown = plugin.inspect_task(task.id()).await?.driver.context("nothing of the driver's own")?;
        let pid = shown.attributes.get("shim_pid").context("no shim_pid")?.parse()?;
        Ok((format!("the shim of task {number}"), Pid::from_raw(pid)))
    });
    try_join_all(found).await
}

/// What comes only once, such as buffers and threads, comes now.
async fn warm_up(plugin: &Plugin, tasks: &[Task]) -> Result<()> {
    let each = tasks.iter().map(|task| async move {
        Stats::open(plugin, task.id(), EACH_SECOND).await?.next(LIMIT).await?;
        // The largest of the payloads, a terminal, and some at a time.
        try_join_all([6, 9, 0].map(|number| exec(plugin, task, number))).await?;
        Ok(())
    });
    try_join_all(each).await.map(drop)
}

/// Works until enough is done, and kills the plugin in the middle of it. Returns commands that ran when it died.
async fn until_killed(
    plugin: &Plugin,
    tasks: &[Task],
    progress: &[Progress],
    round: &Round,
) -> Result<Vec<Exec>> {
    let killer = async {
        let enough = || {
            let done = |one: &Progress| one.execs.load(Ordering::SeqCst);
            let signalled = |one: &Progress| one.signals.load(Ordering::SeqCst) >= SIGNALS_A_TASK / 2;
            progress.iter().map(done).sum::<usize>() >= EXECS_BEFORE_THE_KILL
                && progress.iter().all(signalled)
        };
        while !enough() {
            round.step.notified().await;
        }
        // These surely run when it dies; nobody is there who would end them.
        let mut left = Vec::new();
        for (task, tty) in tasks.iter().zip([false, true, false, true]) {
            for command in [&["cat"][..], &["sleep", "5000"]] {
                left.push(Exec::open(plugin, task.id(), command, tty).await?);
            }
        }
        for (exec, task) in left.chunks_mut(2).zip(tasks) {
            exec[0].stdin(b"here\n").await?;
            exec[0].stdout_to_contain("here", LIMIT).await?;
            let runs = || {
                ensure!(task.alloc.cgroup.pids().len() >= PROCESSES_A_TASK + 2, "no two execs run");
                Ok(())
            };
            come_back(LIMIT, runs).await?;
        }
        round.end();
        kill(pid(plugin)?, Signal::SIGKILL)?;
        Ok(left)
    };
    let listening = try_join_all(tasks.iter().map(|task| listen(plugin, task, round)));
    let working = work(plugin, tasks, progress, round, MOST_BEFORE_THE_KILL);
    Ok(tokio::try_join!(killer, listening, working)?.0)
}

/// Does all that is left to do, and listens until the time is over.
async fn to_the_end(
    plugin: &Plugin,
    tasks: &[Task],
    progress: &[Progress],
    round: &Round,
    begun: Instant,
) -> Result<()> {
    let working = async {
        work(plugin, tasks, progress, round, EXECS_A_TASK).await?;
        tokio::time::sleep_until((begun + LISTENING).into()).await;
        round.end();
        Ok(())
    };
    let listening = try_join_all(tasks.iter().map(|task| listen(plugin, task, round)));
    tokio::try_join!(working, listening).map(drop)
}

/// Reads a task's statistics for as long as the round goes on.
async fn listen(plugin: &Plugin, task: &Task, round: &Round) -> Result<()> {
    let mut stats = Stats::open(plugin, task.id(), EACH_SECOND).await?;
    loop {
        let next = tokio::select! {
            next = stats.next(LIMIT) => next,
            () = round.until_over() => return Ok(()),
        };
        match next {
            Ok(_) => drop(round.samples.fetch_add(1, Ordering::SeqCst)),
            Err(_) if round.is_over() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn work(
    plugin: &Plugin,
    tasks: &[Task],
    progress: &[Progress],
    round: &Round,
    execs: usize,
) -> Result<()> {
    let turns = Semaphore::new(EXECS_AT_A_TIME);
    let each = tasks.iter().zip(progress).enumerate().map(|(number, (task, progress))| {
        let turns = &turns;
        async move {
            while progress.execs.load(Ordering::SeqCst) < execs {
                let _turn = turns.acquire().await?;
                if round.is_over() || step(plugin, number, task, progress, round).await?.is_break() {
                    break;
                }
                round.step.notify_one();
            }
            Ok(())
        }
    });
    try_join_all(each).await.map(drop)
}

/// One command, and a signal where it is its turn: the first half of them early, well before the plugin is killed, so that
/// it is sure which of them have arrived.
async fn step(
    plugin: &Plugin,
    number: usize,
    task: &Task,
    progress: &Progress,
    round: &Round,
) -> Result<ControlFlow<()>> {
    let done = progress.execs.load(Ordering::SeqCst);
    let signals = progress.signals.load(Ordering::SeqCst);
    let early = signals < SIGNALS_A_TASK / 2;
    if signals < SIGNALS_A_TASK && done % 4 == 3 && (early || done > MOST_BEFORE_THE_KILL) {
        plugin.signal_task(task.id(), "SIGUSR1").await.context("SignalTask")?;
        let heard = task.alloc.stdout.to_hold(log_after(signals + 1).len(), LIMIT).await;
        heard.with_context(|| format!("task {number}, signal {}", signals + 1))?;
        progress.signals.fetch_add(1, Ordering::SeqCst);
    }
    match exec(plugin, task, number * EXECS_A_TASK + done).await {
        Ok(()) => drop(progress.execs.fetch_add(1, Ordering::SeqCst)),
        // It is done again with the next plugin.
        Err(Failure::Cut(_)) if round.is_over() => {
            round.cut.fetch_add(1, Ordering::SeqCst);
            return Ok(ControlFlow::Break(()));
        }
        Err(Failure::Cut(error) | Failure::Wrong(error)) => {
            return Err(error).with_context(|| format!("task {number}, exec {done}"));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// How an exec failed.
#[derive(Debug)]
enum Failure {
    /// Without an answer, as when the plugin dies.
    Cut(anyhow::Error),
    /// With a wrong one, which nothing excuses.
    Wrong(anyhow::Error),
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        let (Failure::Cut(error) | Failure::Wrong(error)) = failure;
        error
    }
}

/// One command of the mix.
async fn exec(plugin: &Plugin, task: &Task, number: usize) -> Result<(), Failure> {
    let code = i32::try_from(number % 100 + 1).unwrap_or(1);
    let wanted = match number % 10 {
        0..=3 => (0, Vec::new()),
        4 | 5 => (code, format!("{number}\n").into_bytes()),
        6..=8 => (0, payload(number)),
        _ => (code, b"a terminal\r\n".to_vec()),
    };
    let said = match number % 10 {
        0..=3 => short(plugin, task, &["true"]).await,
        4 | 5 => short(plugin, task, &["/bin/sh", "-c", &format!("echo {number}; exit {code}")]).await,
        6..=8 => through_cat(plugin, task, &wanted.1).await,
        _ => on_a_terminal(plugin, task, code).await,
    };
    let (code, output) = said.map_err(Failure::Cut)?;
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
    let said = exec.finish(LIMIT).await?;
    Ok((said.code()?, [&*said.stdout, &*said.stderr].concat()))
}

async fn on_a_terminal(plugin: &Plugin, task: &Task, code: i32) -> Result<(i32, Vec<u8>)> {
    let script = format!("[ -t 0 ] && [ -t 1 ] && echo a terminal; exit {code}");
    let exec = Exec::open(plugin, task.id(), &["/bin/sh", "-c", &script], true).await?;
    let said = exec.finish(LIMIT).await?;
    Ok((said.code()?, said.stdout))
}

/// Up to 100 KiB that no other number has.
fn payload(number: usize) -> Vec<u8> {
    let length = (number + 1) * 7919 * 13 % (100 * 1024);
    let blocks = (0..=length / 32).flat_map(|block| Sha256::digest(format!("{number} {block}")));
    blocks.take(length).collect()
}

/// Stops a task, and looks whether all that it ever wrote has come.
async fn take_leave(plugin: &Plugin, number: usize, task: &Task) -> Result<()> {
    task.stop(plugin, LIMIT).await?;
    let exit = task.wait(plugin).await?;
    same!((exit.exit_code, exit.signal), (exit_code(number), 0));
    let (log, wanted) = (task.alloc.stdout.to_end(LIMIT).await?, whole_log());
    if Sha256::digest(&log) != Sha256::digest(&wanted) {
        bail!("the log of task {number} has {} bytes of {}, or others", log.len(), wanted.len());
    }
    task.destroy(plugin).await
}
