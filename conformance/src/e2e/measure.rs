//! Figures, not judgements: what the driver takes for a task's start, stop and exec, side by side with `ctr` doing the
//! same on the same containerd, one after the other in each round; and the plugin's memory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};

use super::stage::{SOON, Stage, eventually, jobs};
use crate::agent::command::run_well;
use crate::agent::processes;

/// What both run: it says that it runs, and ends at once when told to.
const SCRIPT: &str = "trap 'exit 0' TERM; touch /alloc/data/begun; sleep 1000 & wait";
const MANY: usize = 20;
/// `ctr` works in a namespace of its own.
const NAMESPACE: &str = "measure";

#[derive(Default)]
struct Samples {
    name: &'static str,
    milliseconds: Vec<f64>,
}

impl Samples {
    fn of(name: &'static str) -> Self {
        Self { name, milliseconds: Vec::new() }
    }

    fn add(&mut self, took: Duration) {
        self.milliseconds.push(took.as_secs_f64() * 1000.0);
    }

    /// The value that `part` of the samples don't exceed.
    fn percentile(&self, part: f64) -> f64 {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn print(&self) {
        let (p50, p90) = (self.percentile(0.5), self.percentile(0.9));
        println!("{:<62} {p50:>8.1} {p90:>8.1} {:>5}", self.name, self.milliseconds.len());
    }
}

/// Prints a table of `rounds` rounds.
///
/// # Errors
/// When anything in it fails.
pub fn measure(nomad: &Path, plugin: &Path, rounds: u32) -> Result<()> {
    let mut stage = Stage::set(nomad, plugin)?;
    let image = stage.busybox();
    ctr(&stage, &["images", "pull", "--plain-http", &image])?;
    let mut driver = [
        Samples::of("start, driver: event Task Setup to the process's first write"),
        Samples::of("stop, driver: event Killing to event Terminated"),
        Samples::of("stop, driver: event Killing to event Killed, all removed"),
        Samples::of("exec true, driver: nomad alloc exec, wall"),
    ];
    let mut reference = [
        Samples::of("start, ctr: run --detach to the process's first write"),
        Samples::of("stop, ctr: task kill to the exit of the process"),
        Samples::of("stop, ctr: the same, then delete task and container"),
        Samples::of("exec true, ctr: task exec, wall"),
    ];
    let mut idle = Samples::of("(nomad version, wall: what the command itself takes)");
    println!("{rounds} rounds");
    // The first round pulls the image; it isn't counted.
    for round in 0..=rounds {
        let ours = driver_round(&mut stage, round)?;
        let theirs = ctr_round(&stage, round)?;
        let version = run_well(&mut stage.agent.nomad(&["version"]), b"", SOON)?.took;
        if round > 0 {
            driver.iter_mut().zip(ours).for_each(|(samples, took)| samples.add(took));
            reference.iter_mut().zip(theirs).for_each(|(samples, took)| samples.add(took));
            idle.add(version);
        }
    }
    let resident = memory(&mut stage)?;
    println!("{:<62} {:>8} {:>8} {:>5}", "milliseconds", "p50", "p90", "n");
    for (ours, theirs) in driver.iter().zip(&reference) {
        ours.print();
        theirs.print();
    }
    idle.print();
    println!("plugin, resident: {} kB with 1 task, {} kB with {MANY}", resident.0, resident.1);
    ctr(&stage, &["images", "remove", "--sync", &image]).map(drop)
}

fn driver_round(stage: &mut Stage, round: u32) -> Result<[Duration; 4]> {
    let name = format!("measure-{round}");
    let id = stage.shell_with(&name, SCRIPT, &[("kill_timeout", "30s")])?;
    stage.made(&id, "begun")?;
    let begun = fs::metadata(stage.data(&id, "begun"))?.modified()?;
    stage.running(&id, "main")?;
    let exec = stage.exec(&id, b"", &["true"])?;
    ensure!(exec.code == Some(0), "exec ends with {:?}: {}", exec.code, exec.stderr());
    stage.agent.tell(&["job", "stop", "-detach", &name])?;
    let task = stage.dead(&id, "main")?;
    stage.clear()?;
    let between =
        |from, to| -> Result<_> { Ok(task.event(to)?.at().duration_since(task.event(from)?.at())?) };
    let start = begun.duration_since(task.event("Task Setup")?.at())?;
    Ok([start, between("Killing", "Terminated")?, between("Killing", "Killed")?, exec.took])
}

fn ctr(stage: &Stage, arguments: &[&str]) -> Result<Duration> {
    Ok(run_well(&mut ctr_command(stage, arguments), b"", SOON)?.took)
}

fn ctr_command(stage: &Stage, arguments: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(stage.world.containerd().socket()).args(["--namespace", NAMESPACE]);
    command.args(arguments);
    command
}

fn ctr_round(stage: &Stage, round: u32) -> Result<[Duration; 4]> {
    let id = format!("measure-{round}");
    let directory = stage.world.directory().join("measure");
    fs::create_dir_all(directory.join("data"))?;
    let mark = directory.join("data/begun");
    let _ = fs::remove_file(&mark);
    let mount = format!("type=bind,src={},dst=/alloc,options=rbind:rw", directory.display());
    let image = stage.busybox();
    let asked = SystemTime::now();
    ctr(stage, &["run", "--detach", "--mount", &mount, &image, &id, "sh", "-c", SCRIPT])?;
    eventually("file of ctr's task", || Ok(mark.exists()))?;
    let start = fs::metadata(&mark)?.modified()?.duration_since(asked)?;
    let exec = ctr(stage, &["tasks", "exec", "--exec-id", "true", &id, "true"])?;
    let pid = ctr_pid(stage, &id)?;
    let stop = Instant::now();
    ctr(stage, &["tasks", "kill", "--signal", "SIGTERM", &id])?;
    eventually("end of ctr's task", || Ok(!processes::alive(pid)))?;
    let exit = stop.elapsed();
    // The shim may take a moment to notice.
    eventually("deletion of ctr's task", || Ok(ctr(stage, &["tasks", "delete", &id]).is_ok()))?;
    ctr(stage, &["containers", "delete", &id])?;
    Ok([start, exit, stop.elapsed(), exec])
}

fn ctr_pid(stage: &Stage, id: &str) -> Result<i32> {
    let output = run_well(&mut ctr_command(stage, &["tasks", "list"]), b"", SOON)?;
    let listing = output.stdout();
    let line = listing.lines().find(|line| line.starts_with(id)).context("ctr does not list its task")?;
    Ok(line.split_whitespace().nth(1).context("no pid in ctr's list")?.parse()?)
}

/// The plugin's resident memory with one task and with many.
fn memory(stage: &mut Stage) -> Result<(u64, u64)> {
    let id = stage.shell("measure-one", SCRIPT)?;
    stage.made(&id, "begun")?;
    let one = processes::resident_kb(stage.agent.plugin()?)?;
    stage.clear()?;
    let image = stage.busybox();
    let count = MANY.to_string();
    let variables = [("image", image.as_str()), ("script", SCRIPT), ("count", &count), ("memory", "16")];
    stage.submit("measure-many", jobs::SHELL, &variables)?;
    for id in stage.allocations("measure-many", MANY)? {
        stage.made(&id, "begun").context("of twenty")?;
    }
    let many = processes::resident_kb(stage.agent.plugin()?)?;
    stage.clear()?;
    Ok((one, many))
}
