//! Many commands: at the same time, and one after the other. They leave nothing behind, not even a little each.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::exec::{leave, shell, sleeper};
use super::{cases, same};
use crate::agent::processes::resident_kb;
use crate::host::{Exec, Plugin};
use crate::scene::Scene;
use crate::task::{LIMIT, Task};

cases!["exec many":
    a_thousand_in_turn_leave_nothing,
    a_hundred_at_a_time_leave_nothing,
    many_at_a_time_keep_their_streams_apart,
];

const AT_A_TIME: usize = 100;
const IN_TURN: usize = 1000;
const WARM_UP: usize = 50;
/// So many run in turn beside each other.
const LANES: usize = 4;
/// What the plugin may keep after a warm-up: its allocator's share.
const MORE_OF_PLUGIN: Held = Held { files: 8, threads: 8, kb: 8 * 1024 };
/// What a shim may: Go's collector closes files and gives memory back when it comes to it. Over four thousand execs one
/// was seen to gain 12 MiB in the first two thousand and nothing in the others, and between 20 and 50 files all the way.
const MORE_OF_SHIM: Held = Held { files: 80, threads: 8, kb: 16 * 1024 };

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    files: usize,
    threads: usize,
    kb: u64,
}

impl Held {
    fn by(pid: i32) -> Result<Self> {
        let count =
            |name: &str| Ok::<_, anyhow::Error>(std::fs::read_dir(format!("/proc/{pid}/{name}"))?.count());
        Ok(Self { files: count("fd")?, threads: count("task")?, kb: resident_kb(pid)? })
    }

    fn is_within(self, before: Self, more: Self) -> bool {
        self.files <= before.files + more.files
            && self.threads <= before.threads + more.threads
            && self.kb <= before.kb + more.kb
    }
}

fn look(holders: &[(&str, i32)]) -> Result<Vec<Held>> {
    holders.iter().map(|(_, pid)| Held::by(*pid)).collect()
}

/// The plugin's pid and the shim's.
async fn holders(plugin: &Plugin, task: &Task) -> Result<[(&'static str, i32); 2]> {
    let answer = plugin.inspect_task(task.id()).await?;
    let attributes = answer.driver.context("no driver's word on the task")?.attributes;
    let shim = attributes.get("shim_pid").context("no pid of a shim")?.parse()?;
    Ok([("plugin", i32::try_from(plugin.pid())?), ("shim", shim)])
}

/// One of each kind in turn: streamed, with a terminal, as a script's check.
async fn one(plugin: &Plugin, task: &Task, number: usize) -> Result<()> {
    let script = format!("echo {number}; exit {}", number % 100);
    let code = i32::try_from(number % 100)?;
    match number % 4 {
        0 | 1 => {
            let said = shell(plugin, task, &script, false).await?.finish(LIMIT).await?;
            same!((said.stdout_text(), said.code()?), (format!("{number}\n"), code));
        }
        2 => {
            let said = shell(plugin, task, &script, true).await?.finish(LIMIT).await?;
            same!((said.stdout_text(), said.code()?), (format!("{number}\r\n"), code));
        }
        _ => same!(task.exec(plugin, &script).await?, (code, format!("{number}\n"))),
    }
    Ok(())
}

async fn in_turn(plugin: &Plugin, task: &Task, count: usize) -> Result<()> {
    let lane = |lane: usize| async move {
        for number in (lane..count).step_by(LANES) {
            one(plugin, task, number).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    futures::future::try_join_all((0..LANES).map(lane)).await.map(drop)
}

/// All of them run before the first one ends.
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
        let said = exec.finish(2 * LIMIT).await?;
        same!(said.code()?, i32::try_from(number % 100)?);
        ensure!(said.stdout_text().contains(&format!("word-{number}")), "it said {:?}", said.stdout_text());
        Ok::<_, anyhow::Error>(())
    };
    futures::future::try_join_all(execs.into_iter().enumerate().map(end)).await.map(drop)
}

/// Threads go after a while without work, and what the shim forgets it forgets after the exec's last message.
async fn nothing_left(
    scene: &Scene,
    holders: &[(&str, i32)],
    before: &[Held],
    processes: usize,
    task: &Task,
) -> Result<()> {
    task.processes_become(processes).await?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let now = look(holders)?;
        let pipes: Vec<_> = scene.census().into_iter().filter(|line| line.starts_with("pipe")).collect();
        let slack = [MORE_OF_PLUGIN, MORE_OF_SHIM];
        let within = |((now, before), more): ((&Held, &Held), Held)| now.is_within(*before, more);
        if pipes.is_empty() && now.iter().zip(before).zip(slack).all(within) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{holders:?} held {before:?}, and now {now:?}; {pipes:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn a_thousand_in_turn_leave_nothing(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let processes = task.alloc.cgroup.pids().len();
    let holders = holders(&plugin, &task).await?;
    at_a_time(&plugin, &task, WARM_UP).await.context("warm up")?;
    in_turn(&plugin, &task, WARM_UP).await.context("warm up")?;
    let before = look(&holders)?;
    in_turn(&plugin, &task, IN_TURN).await?;
    nothing_left(scene, &holders, &before, processes, &task).await?;
    leave(plugin, &task).await
}

async fn a_hundred_at_a_time_leave_nothing(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let processes = task.alloc.cgroup.pids().len();
    let holders = holders(&plugin, &task).await?;
    at_a_time(&plugin, &task, AT_A_TIME).await.context("warm up")?;
    let before = look(&holders)?;
    at_a_time(&plugin, &task, AT_A_TIME).await?;
    nothing_left(scene, &holders, &before, processes, &task).await?;
    leave(plugin, &task).await
}

async fn many_at_a_time_keep_their_streams_apart(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let run = |number: usize| {
        let (plugin, task) = (&plugin, &task);
        async move {
            let script = format!("yes {number} | head -c 200000; yes e{number} | head -c 100000 >&2");
            let said = shell(plugin, task, &script, false).await?.finish(LIMIT).await?;
            same!((said.stdout.len(), said.stderr.len(), said.code()?), (200_000, 100_000, 0));
            let (line, other) = (number.to_string(), format!("e{number}"));
            let all = |text: String, line: &str| {
                text.lines().all(|said| line.starts_with(said) && !said.is_empty())
            };
            ensure!(all(said.stdout_text(), &line) && all(said.stderr_text(), &other), "streams are mixed");
            Ok::<_, anyhow::Error>(())
        }
    };
    futures::future::try_join_all((100..120).map(run)).await?;
    leave(plugin, &task).await
}
