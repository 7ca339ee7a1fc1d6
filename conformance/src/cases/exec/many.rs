//! Many commands, at the same time and one after the other: they leave nothing behind, not even a little each.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::alloc::set_memory;
use harness::host::{Exec, Plugin};
use harness::task::{LIMIT, Task};

use crate::case::Case;
use crate::cases::support::commands::{shell, sleeper};
use crate::cases::support::resource_usage::{
    OF_A_SHIM, OF_THE_PLUGIN, ResourceBaseline, come_back, pid, shim_of,
};
use crate::cases::support::{cases, ensure_eq, terminals_are_read_to_their_end};

cases!["exec many":
    a_thousand_in_turn_leave_nothing,
    a_hundred_at_a_time_leave_nothing,
    many_at_a_time_keep_their_streams_apart,
];

/// Time limit of a case. A runtime compiles the task's seccomp profile anew for each exec, which can take more than
/// half of the time.
const CASE_LIMIT: Duration = Duration::from_secs(300);
const AT_A_TIME: usize = 100;
const IN_TURN: usize = 1000;
const WARM_UP: usize = 50;
/// Number of sequences of execs that run beside each other.
const WORKERS: usize = 4;

pub fn long_cases() -> Vec<Case> {
    cases().into_iter().map(|case| Case { limit: CASE_LIMIT, ..case }).collect()
}

/// Takes a baseline of the resource usage of the plugin and of the task's shim.
async fn held(plugin: &Plugin, task: &Task) -> Result<[ResourceBaseline; 2]> {
    let the_plugin = ResourceBaseline::of(&[("the plugin".to_owned(), pid(plugin)?)], OF_THE_PLUGIN)?;
    let the_shim = ResourceBaseline::of(&[("the shim".to_owned(), shim_of(plugin, task).await?)], OF_A_SHIM)?;
    Ok([the_plugin, the_shim])
}

/// Runs one exec, of a kind that depends on its number: streamed, with a terminal, as a script's check.
async fn one(plugin: &Plugin, task: &Task, number: usize) -> Result<()> {
    let script = format!("echo {number}; exit {}", number % 100);
    let code = i32::try_from(number % 100)?;
    match number % 4 {
        0 | 1 => {
            let output = shell(plugin, task, &script, false).await?.finish(LIMIT).await?;
            ensure_eq!((output.stdout_text(), output.code()?), (format!("{number}\n"), code));
        }
        2 => {
            let output = shell(plugin, task, &script, true).await?.finish(LIMIT).await?;
            ensure_eq!((output.stdout_text(), output.code()?), (format!("{number}\r\n"), code));
        }
        _ => ensure_eq!(task.exec(plugin, &script).await?, (code, format!("{number}\n"))),
    }
    Ok(())
}

async fn in_turn(plugin: &Plugin, task: &Task, count: usize) -> Result<()> {
    let worker = |worker: usize| async move {
        for number in (worker..count).step_by(WORKERS) {
            one(plugin, task, number).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    futures::future::try_join_all((0..WORKERS).map(worker)).await.map(drop)
}

/// Runs this many execs, all of which run before the first one ends.
async fn at_a_time(plugin: &Plugin, task: &Task, count: usize) -> Result<()> {
    let open = |number: usize| async move {
        let script = format!("echo {number}; read word; echo $word; exit {}", number % 100);
        let mut exec = shell(plugin, task, &script, number.is_multiple_of(3)).await?;
        exec.stdout_to_contain(&number.to_string(), 2 * LIMIT).await?;
        Ok::<_, anyhow::Error>(exec)
    };
    let execs = futures::future::try_join_all((0..count).map(open)).await?;
    let end = |(number, exec): (usize, Exec)| async move {
        exec.stdin(format!("word-{number}\n").as_bytes()).await?;
        let output = exec.finish(2 * LIMIT).await?;
        ensure_eq!(output.code()?, i32::try_from(number % 100)?);
        ensure!(
            output.stdout_text().contains(&format!("word-{number}")),
            "it said {:?}",
            output.stdout_text()
        );
        Ok::<_, anyhow::Error>(())
    };
    futures::future::try_join_all(execs.into_iter().enumerate().map(end)).await.map(drop)
}

/// Waits until nothing is left. Idle threads end after a while, and the shim forgets an exec only after the exec's last
/// message.
async fn nothing_left(
    case: &CaseContext,
    before: &[ResourceBaseline],
    processes: usize,
    task: &Task,
) -> Result<()> {
    task.processes_become(processes).await?;
    let nothing = || {
        let pipes: Vec<_> = case.census().into_iter().filter(|line| line.starts_with("pipe")).collect();
        ensure_eq!(pipes, Vec::<String>::new());
        before.iter().try_for_each(ResourceBaseline::assert_no_growth)
    };
    come_back(LIMIT, nothing).await
}

async fn a_thousand_in_turn_leave_nothing(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    terminals_are_read_to_their_end(case)?;
    let task = sleeper(case, plugin).await?;
    let processes = task.alloc.cgroup.pids().len();
    at_a_time(plugin, &task, WARM_UP).await.context("warm up")?;
    in_turn(plugin, &task, WARM_UP).await.context("warm up")?;
    let before = held(plugin, &task).await?;
    in_turn(plugin, &task, IN_TURN).await?;
    nothing_left(case, &before, processes, &task).await?;
    task.end(plugin).await
}

async fn a_hundred_at_a_time_leave_nothing(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    terminals_are_read_to_their_end(case)?;
    let mut task = case.prepare(plugin, &case.shell("sleep 600")).await?;
    // This many of runc's own first processes are in the task's cgroup at once; each of runc 1.3's takes some 3.5 MiB.
    set_memory(&mut task.config, 1024, 0);
    task.start(plugin).await?;
    let processes = task.alloc.cgroup.pids().len();
    at_a_time(plugin, &task, AT_A_TIME).await.context("warm up")?;
    let before = held(plugin, &task).await?;
    at_a_time(plugin, &task, AT_A_TIME).await?;
    nothing_left(case, &before, processes, &task).await?;
    task.end(plugin).await
}

async fn many_at_a_time_keep_their_streams_apart(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let run = |number: usize| {
        let task = &task;
        async move {
            let script = format!("yes {number} | head -c 200000; yes e{number} | head -c 100000 >&2");
            let output = shell(plugin, task, &script, false).await?.finish(LIMIT).await?;
            ensure_eq!((output.stdout.len(), output.stderr.len(), output.code()?), (200_000, 100_000, 0));
            let (line, other) = (number.to_string(), format!("e{number}"));
            let all = |text: String, line: &str| {
                text.lines().all(|part| line.starts_with(part) && !part.is_empty())
            };
            ensure!(
                all(output.stdout_text(), &line) && all(output.stderr_text(), &other),
                "streams are mixed"
            );
            Ok::<_, anyhow::Error>(())
        }
    };
    futures::future::try_join_all((100..120).map(run)).await?;
    task.end(plugin).await
}
