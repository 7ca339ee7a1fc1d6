//! A soak test: twenty tasks with their statistics, a thousand execs, two hundred signals, and the plugin killed in the
//! middle. No exit code may be wrong and no byte lost, and the resource usage of plugin and shims must come back to
//! what it was.

mod mix;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use harness::context::CaseContext;
use harness::host::stats::Stats;
use harness::host::{Exec, Plugin};
use harness::leaks::inspect::special_files;
use harness::task::{LIMIT, Task};
use mix::{Failure, exec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore};

use crate::case::Case;
use crate::cases::support::resource_usage::{self, ResourceBaseline, ResourceUsage, come_back, pid, shim_of};
use crate::cases::support::{cases as listed, ensure_eq, terminals_are_read_to_their_end};

listed!["soak":
    a_thousand_execs_and_the_plugins_death_leave_no_trace,
];

const TASKS: usize = 20;
const EXECS_A_TASK: usize = 50;
const SIGNALS_A_TASK: usize = 10;
/// Number of execs, over all tasks, after which the plugin is killed.
const EXECS_BEFORE_THE_KILL: usize = TASKS * EXECS_A_TASK / 2;
/// Maximum number of execs of one task before the kill, so that enough are left for after it.
const MOST_BEFORE_THE_KILL: usize = 30;
/// Number of execs that run at a time, over all tasks.
const EXECS_AT_A_TIME: usize = 8;
/// Duration for which statistics are read, a sample each second.
const LISTENING: Duration = Duration::from_secs(60);
const EACH_SECOND: Duration = Duration::from_secs(1);
/// Time limit of the case, for a busy machine.
const CASE_LIMIT: Duration = Duration::from_secs(400);
/// Growth allowed to a shim. A leak of one descriptor by each of its fifty execs would exceed it.
const MORE_OF_A_SHIM: ResourceUsage = ResourceUsage { descriptors: 30, ..resource_usage::OF_A_SHIM };
/// Growth allowed to the plugin, which buffers for twenty tasks.
const MORE_OF_THE_PLUGIN: ResourceUsage =
    ResourceUsage { descriptors: 30, resident_kb: 16 * 1024, ..resource_usage::OF_THE_PLUGIN };
const BLOCK_BYTES: usize = 4000;
const LAST_WORDS_BYTES: usize = 100_000;

pub fn long_cases() -> Vec<Case> {
    cases().into_iter().map(|case| Case { limit: CASE_LIMIT, ..case }).collect()
}

/// Returns the script of a task that prints a line at each USR1, and much at a TERM before it exits.
fn script(number: usize) -> String {
    format!(
        "block=$(head -c {BLOCK_BYTES} /dev/zero | tr '\\0' b); n=0; \
         trap 'n=$((n+1)); echo usr1 $n $block' USR1; \
         trap 'head -c {LAST_WORDS_BYTES} /dev/zero | tr \"\\0\" e; exit {}' TERM; \
         sleep 6000 & held=$!; echo up; while :; do wait $held; done",
        exit_code(number)
    )
}

/// Number of processes of such a task: the shell and the `sleep` that it waits for.
const PROCESSES_A_TASK: usize = 2;

fn exit_code(number: usize) -> i32 {
    40 + i32::try_from(number).unwrap_or(0)
}

/// Returns the output of such a task after this many USR1 signals.
fn log_after(signals: usize) -> String {
    let block = "b".repeat(BLOCK_BYTES);
    let lines = (1..=signals).map(|n| format!("usr1 {n} {block}\n"));
    std::iter::once("up\n".to_owned()).chain(lines).collect()
}

fn whole_log() -> String {
    log_after(SIGNALS_A_TASK) + &"e".repeat(LAST_WORDS_BYTES)
}

/// Number of completed execs and signals of one task.
#[derive(Default)]
struct Progress {
    execs: AtomicUsize,
    signals: AtomicUsize,
}

/// State that all tasks share while they work with one plugin process.
#[derive(Default)]
struct Round {
    /// Set when the plugin is about to be killed, or when the time is over.
    is_over: AtomicBool,
    over: Notify,
    step: Notify,
    /// Number of execs that the plugin's death has cut off.
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

async fn a_thousand_execs_and_the_plugins_death_leave_no_trace(case: &CaseContext) -> Result<()> {
    terminals_are_read_to_their_end(case)?;
    // An old shim starts one command after the other, of all tasks that it has.
    let plugin = case.with_own_shims().plugin().await?;
    let tasks = start_all(case, &plugin).await?;
    let progress: Vec<Progress> = tasks.iter().map(|_| Progress::default()).collect();
    warm_up(&plugin, &tasks).await?;
    let shims = shims(&plugin, &tasks).await?;
    let pipes = special_files(&case.state_dir()).len();
    let before = ResourceBaseline::of(&shims, MORE_OF_A_SHIM)?;
    let begun = Instant::now();

    let (first, mut plugin) = (Round::default(), plugin);
    let left = until_killed(&plugin, &tasks, &progress, &first).await?;
    plugin.kill().await?;
    drop(left);
    let mut next = case.plugin().await?;
    try_join_all(tasks.iter().map(|task| task.recover(&next))).await?;
    let nothing_runs = || -> Result<()> {
        for (number, task) in tasks.iter().enumerate() {
            let count = task.alloc.cgroup.pids().len();
            ensure!(count == PROCESSES_A_TASK, "{count} processes in task {number}, not {PROCESSES_A_TASK}");
        }
        let now = special_files(&case.state_dir()).len();
        ensure!(now == pipes, "{now} pipes and sockets of execs and shims, not {pipes}");
        Ok(())
    };
    come_back(LIMIT, nothing_runs).await.context("after the plugin's death")?;

    warm_up(&next, &tasks).await?;
    let plugin_before = ResourceBaseline::of(&[("the plugin".to_owned(), pid(&next)?)], MORE_OF_THE_PLUGIN)?;
    let second = Round::default();
    to_the_end(&next, &tasks, &progress, &second, begun).await?;

    let execs: usize = progress.iter().map(|one| one.execs.load(Ordering::SeqCst)).sum();
    let signals: usize = progress.iter().map(|one| one.signals.load(Ordering::SeqCst)).sum();
    ensure_eq!((execs, signals), (TASKS * EXECS_A_TASK, TASKS * SIGNALS_A_TASK));
    let samples = [&first, &second].map(|round| round.samples.load(Ordering::SeqCst));
    ensure!(samples.iter().all(|count| *count >= TASKS), "{samples:?} samples of {TASKS} tasks");
    let held = || {
        nothing_runs()?;
        before.assert_no_growth()?;
        plugin_before.assert_no_growth()
    };
    come_back(LIMIT, held).await.with_context(|| {
        format!(
            "after {execs} execs, {} more cut off by the plugin's death",
            first.cut.load(Ordering::SeqCst)
        )
    })?;
    try_join_all(tasks.iter().enumerate().map(|(number, task)| end_and_check_log(&next, number, task)))
        .await?;
    next.shut_down().await
}

async fn start_all(case: &CaseContext, plugin: &Plugin) -> Result<Vec<Task>> {
    // The first task pulls the image.
    let mut tasks = vec![case.run(plugin, &case.shell(&script(0))).await?];
    let rest = (1..TASKS).map(|number| async move { case.run(plugin, &case.shell(&script(number))).await });
    tasks.extend(try_join_all(rest).await?);
    try_join_all(tasks.iter().map(|task| task.alloc.stdout.to_hold(log_after(0).len(), LIMIT))).await?;
    Ok(tasks)
}

async fn shims(plugin: &Plugin, tasks: &[Task]) -> Result<Vec<(String, Pid)>> {
    let found = tasks.iter().enumerate().map(|(number, task)| async move {
        Ok((format!("the shim of task {number}"), shim_of(plugin, task).await?))
    });
    try_join_all(found).await
}

/// Causes allocations that are made only once, such as buffers and threads.
async fn warm_up(plugin: &Plugin, tasks: &[Task]) -> Result<()> {
    let each = tasks.iter().map(|task| async move {
        Stats::open(plugin, task.id(), EACH_SECOND).await?.next(LIMIT).await?;
        // The largest of the payloads, a terminal, and a short command, at the same time.
        try_join_all([6, 9, 0].map(|number| exec(plugin, task, number))).await?;
        Ok(())
    });
    try_join_all(each).await.map(drop)
}

/// Runs execs and signals until enough are done, and kills the plugin in the middle of them. Returns execs that ran
/// when it died.
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
        // These execs surely run when the plugin dies, and no client is there to end them.
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

/// Runs all execs and signals that are left, and reads statistics until the time is over.
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

/// Reads a task's statistics until the round is over.
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

/// Runs one exec, after a signal if one is due: half of the signals come early, well before the plugin is killed, so
/// that it is certain which of them have arrived.
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
        // The exec is repeated with the next plugin.
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

/// Stops a task, and asserts that its exit code is right and that all its output has come.
async fn end_and_check_log(plugin: &Plugin, number: usize, task: &Task) -> Result<()> {
    task.stop(plugin, LIMIT).await?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal), (exit_code(number), 0));
    let (log, wanted) = (task.alloc.stdout.to_end(LIMIT).await?, whole_log());
    if Sha256::digest(&log) != Sha256::digest(&wanted) {
        bail!("the log of task {number} has {} bytes of {}, or others", log.len(), wanted.len());
    }
    task.destroy(plugin).await
}
