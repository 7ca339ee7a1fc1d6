//! What the driver takes of the machine: CPU time for the statistics of many tasks, in the plugin, their shims and
//! containerd; the plugin's memory.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::driven::{IDLE, read};
use super::{Findings, Ground};
use crate::agent::processes::resident_kb;
use crate::host::Plugin;
use crate::interrupt::interrupted;
use crate::scene::Scene;
use crate::task::Task;

const TASKS: usize = 20;
const INTERVAL: Duration = Duration::from_secs(1);
const READ_FOR: Duration = Duration::from_secs(30);
const IDLE_FOR: Duration = Duration::from_secs(10);

/// CPU time in milliseconds for each second of each task.
#[derive(Debug, Clone, Copy)]
struct Cost {
    plugin: f64,
    shims: f64,
    containerd: f64,
}

pub struct Usage {
    /// While nobody reads statistics.
    idle: Cost,
    reading: Cost,
    samples: usize,
    one_task_kb: u64,
    many_tasks_kb: u64,
}

pub fn measure(ground: &Ground<'_>, findings: &mut Findings) -> Result<()> {
    ground.runtime.block_on(async {
        let scene = Scene::new(Arc::clone(ground.world), ground.plugin, "usage".to_owned());
        let mut plugin = scene.plugin().await?;
        let (tasks, one_task_kb) = start(&scene, &plugin).await?;
        let (idle, reading, samples, many_tasks_kb) = tokio::select! {
            measured = read_statistics(ground, &scene, &plugin, &tasks) => measured?,
            () = interrupted() => bail!("interrupted"),
        };
        findings.usage = Some(Usage { idle, reading, samples, one_task_kb, many_tasks_kb });
        try_join_all(tasks.iter().map(|task| task.end(&plugin))).await?;
        plugin.shut_down().await?;
        scene.close()
    })
}

async fn start(scene: &Scene, plugin: &Plugin) -> Result<(Vec<Task>, u64)> {
    let mut tasks = vec![scene.run(plugin, &scene.shell(IDLE)).await?];
    let one_task_kb = resident_kb(i32::try_from(plugin.pid())?)?;
    while tasks.len() < TASKS {
        tasks.push(scene.run(plugin, &scene.shell(IDLE)).await?);
    }
    Ok((tasks, one_task_kb))
}

async fn read_statistics(
    ground: &Ground<'_>,
    scene: &Scene,
    plugin: &Plugin,
    tasks: &[Task],
) -> Result<(Cost, Cost, usize, u64)> {
    let pids = Pids {
        plugin: i32::try_from(plugin.pid())?,
        shims: shims(scene)?,
        containerd: ground.world.containerd().pid()?,
    };
    let idle = pids.cost_over(IDLE_FOR).await?;
    let mut streams = Vec::new();
    for task in tasks {
        streams.push(plugin.stats(task.id(), INTERVAL).await?);
    }
    let reading = streams.into_iter().map(|mut stream| async move {
        let until = Instant::now() + READ_FOR;
        let mut samples = 0;
        while let Ok(message) = tokio::time::timeout_at(until, stream.message()).await {
            message?.context("a stream of statistics ended")?;
            samples += 1;
        }
        anyhow::Ok(samples)
    });
    let (cost, samples) = tokio::join!(pids.cost_over(READ_FOR), try_join_all(reading));
    let samples: Vec<usize> = samples?;
    Ok((idle, cost?, samples.iter().sum(), resident_kb(pids.plugin)?))
}

/// The shims of a plugin's tasks.
fn shims(scene: &Scene) -> Result<Vec<i32>> {
    let bundles = fs::read_dir(scene.state_dir().join("nomad"))?;
    bundles
        .map(|bundle| {
            let pid = read(&bundle?.path().join("shim.json"))?["pid"].as_i64();
            Ok(i32::try_from(pid.context("no pid in shim.json")?)?)
        })
        .collect()
}

struct Pids {
    plugin: i32,
    shims: Vec<i32>,
    containerd: i32,
}

impl Pids {
    async fn cost_over(&self, time: Duration) -> Result<Cost> {
        let (before, begun) = (self.used_ms()?, Instant::now());
        sleep(time).await;
        let (after, seconds) = (self.used_ms()?, begun.elapsed().as_secs_f64());
        let [plugin, shims, containerd] =
            std::array::from_fn(|i| (after[i] - before[i]) / seconds / TASKS as f64);
        Ok(Cost { plugin, shims, containerd })
    }

    fn used_ms(&self) -> Result<[f64; 3]> {
        let shims = self.shims.iter().map(|pid| cpu_ms(*pid)).sum::<Result<f64>>()?;
        Ok([cpu_ms(self.plugin)?, shims, cpu_ms(self.containerd)?])
    }
}

/// The time that a process' threads have had, by the scheduler's own clock: `/proc/<pid>/stat` counts in ticks, of which
/// short work takes none.
fn cpu_ms(pid: i32) -> Result<f64> {
    let directory = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&directory).with_context(|| format!("read {directory}"))?;
    let mut nanoseconds = 0;
    for thread in threads {
        // One may have ended since.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        nanoseconds +=
            text.split_whitespace().next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e6)
}

impl Cost {
    fn words(self) -> String {
        format!("plugin {:.3}, shims {:.3}, containerd {:.3}", self.plugin, self.shims, self.containerd)
    }

    fn json(self) -> Value {
        let Self { plugin, shims, containerd } = self;
        json!({"plugin": plugin, "shims": shims, "containerd": containerd})
    }
}

impl Usage {
    pub fn print(&self) {
        let per = "CPU ms for each second of each task";
        println!("{per}, {TASKS} tasks read every {INTERVAL:?}: {}", self.reading.words());
        println!("{per}, not read: {}", self.idle.words());
        println!("samples read in {READ_FOR:?}: {}", self.samples);
        let (one, many) = (self.one_task_kb, self.many_tasks_kb);
        println!("plugin, resident: {one} kB with 1 task, {many} kB with {TASKS} that are read");
    }

    pub fn json(&self) -> Value {
        json!({
            "tasks": TASKS,
            "read_every_ms": INTERVAL.as_millis() as u64,
            "read_for_ms": READ_FOR.as_millis() as u64,
            "samples": self.samples,
            "cpu_ms_per_task_second": self.reading.json(),
            "cpu_ms_per_task_second_not_read": self.idle.json(),
            "plugin_resident_kb": {"one_task": self.one_task_kb, "many_tasks": self.many_tasks_kb},
        })
    }
}
