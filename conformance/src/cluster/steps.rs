//! The steps of a cluster's day, each with what must hold afterwards.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::agent::{Allocation, poll};

use super::Cluster;
use super::job::{FAILURE, Group, Job, KILL_TIMEOUT, Kind, STOPPED};
use super::judge::{State, Wanted};

/// Time for the agents and the server to tell each other of an end.
const TOLD: Duration = Duration::from_secs(30);
/// Time in which a task that heeds SIGTERM has ended, on a busy machine.
const HEEDED: Duration = Duration::from_secs(KILL_TIMEOUT - 1);
/// Time that SIGKILL and what follows take, on a busy machine.
const KILLED: Duration = Duration::from_secs(10);
/// Time for which the tasks of a partition are left alone once all is as it should be.
const CUT_OFF: Duration = Duration::from_secs(3);

/// The result of a step: how many tasks it was about, and what held.
pub struct Held {
    pub tasks: usize,
    pub what: String,
}

/// Returns the job of the first steps: 30 tasks, some of each kind that doesn't fail.
pub fn thirty() -> Job {
    let group = |name, count, kind| Group { name, count, kind, more: "" };
    let groups = vec![
        group("heeds", 18, Kind::Heeds),
        group("deaf", 6, Kind::Deaf),
        group("networked", 6, Kind::Networked),
    ];
    Job { name: "thirty", groups }
}

/// Starts a job, whose tasks are spread over all nodes.
///
/// # Errors
/// Says what doesn't hold, as all steps do.
pub fn start(cluster: &mut Cluster<'_>, job: &Job) -> Result<Held> {
    let state = cluster.run(job)?;
    let counts = (0..cluster.nodes.len()).map(|node| cluster.running_on(&state, node).len());
    let counts: Vec<_> = counts.map(|count| count.to_string()).collect();
    ensure!(!counts.contains(&"0".to_owned()), "the nodes have {counts:?} tasks");
    Ok(Held { tasks: job.count(), what: format!("each runs once; the nodes have {}", counts.join(", ")) })
}

/// Drains a node.
pub fn drain(cluster: &mut Cluster<'_>, job: &Job, node: usize) -> Result<Held> {
    let state = cluster.settled(job, &Wanted::default())?;
    let before = cluster.running_on(&state, node);
    let id = cluster.nodes[node].agent.node().to_owned();
    cluster.server.tell(&["node", "drain", "-enable", "-deadline", "1m", "-detach", "-yes", &id])?;
    cluster.settled(job, &Wanted { without: Some(&id), ..Wanted::default() })?;
    let slowest = ended_in_order(cluster, job, node, &before, Evidence::All)?;
    cluster.nodes[node].assert_clean()?;
    cluster.server.tell(&["node", "drain", "-disable", "-yes", &id])?;
    let what = format!(
        "they ended in order, those that heed SIGTERM within {} ms; nothing left on the node",
        slowest.as_millis()
    );
    Ok(Held { tasks: before.len(), what })
}

/// Kills a node's agent and plugin, and starts them again once the tasks have replacements.
pub fn agent_dies(cluster: &mut Cluster<'_>, job: &Job, node: usize) -> Result<Held> {
    let state = cluster.settled(job, &Wanted::default())?;
    let before = cluster.running_on(&state, node);
    cluster.nodes[node].kill_agent()?;
    let id = cluster.nodes[node].agent.node().to_owned();
    cluster.server_sees(node, "down")?;
    let wanted = Wanted { without: Some(&id), stray: before.clone(), ..Wanted::default() };
    let meanwhile = cluster.settled(job, &wanted)?;
    same_processes(&before, &state, &meanwhile)?;
    cluster.nodes[node].come_back()?;
    cluster.settled(job, &Wanted::default())?;
    ended_in_order(cluster, job, node, &before, Evidence::NoTimes)?;
    for id in &before {
        let pids = cluster.watch.life(id).map(|life| life.pids).unwrap_or_default();
        ensure!(pids.len() == 1, "{id} had the processes {pids:?}");
    }
    cluster.nodes[node].assert_clean()?;
    let what = "the old ones went on, were recovered, and ended in order; nothing left on the node";
    Ok(Held { tasks: before.len(), what: what.to_owned() })
}

/// Kills all that runs on a node, and starts its containerd and its agent again once the tasks have replacements.
pub fn machine_dies(cluster: &mut Cluster<'_>, job: &Job, node: usize) -> Result<Held> {
    let state = cluster.settled(job, &Wanted::default())?;
    let before = cluster.running_on(&state, node);
    cluster.nodes[node].kill_machine()?;
    let died = Instant::now();
    let id = cluster.nodes[node].agent.node().to_owned();
    cluster.server_sees(node, "down")?;
    cluster.settled(job, &Wanted { without: Some(&id), ..Wanted::default() })?;
    cluster.nodes[node].come_back()?;
    cluster.settled(job, &Wanted::default())?;
    for id in &before {
        let life = cluster.watch.life(id).with_context(|| format!("{id} was never seen"))?;
        let after = life.last.saturating_duration_since(died);
        ensure!(
            after.is_zero() && life.pids.len() == 1,
            "{id} was seen {after:?} after it was killed: {life:?}"
        );
    }
    cluster.nodes[node].assert_clean()?;
    let what = "none of the old ones was started again; nothing left on the node";
    Ok(Held { tasks: before.len(), what: what.to_owned() })
}

/// A job with tasks on a node that is cut off.
struct Strategy {
    job: Job,
    /// What `disconnect` has, for the table.
    shown: &'static str,
    /// Whether the tasks go on on the node while it is cut off. Else the node stops them itself.
    goes_on: bool,
    /// Whether the tasks run elsewhere, too, while the node is cut off.
    replaced: bool,
    kept: Kept,
}

/// The tasks that are kept once the node is back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Original,
    Replacement,
    Either,
}

fn strategies() -> [Strategy; 6] {
    let strategy = |name, more, shown, [goes_on, replaced]: [bool; 2], kept| Strategy {
        job: Job::of(name, 6, more),
        shown,
        goes_on,
        replaced,
        kept,
    };
    [
        strategy(
            "original",
            "disconnect {\n lost_after = \"10m\"\n reconcile = \"keep_original\"\n}",
            "`lost_after`, `reconcile = \"keep_original\"`",
            [true, true],
            Kept::Original,
        ),
        strategy(
            "replacement",
            "disconnect {\n lost_after = \"10m\"\n reconcile = \"keep_replacement\"\n}",
            "`lost_after`, `reconcile = \"keep_replacement\"`",
            [true, true],
            Kept::Replacement,
        ),
        strategy(
            "score",
            "disconnect {\n lost_after = \"10m\"\n reconcile = \"best_score\"\n}",
            "`lost_after`, `reconcile = \"best_score\"`",
            [true, true],
            Kept::Either,
        ),
        strategy(
            "alone",
            "disconnect {\n lost_after = \"10m\"\n replace = false\n}",
            "`lost_after`, `replace = false`",
            [true, false],
            Kept::Original,
        ),
        strategy(
            "stopped",
            "disconnect {\n stop_on_client_after = \"12s\"\n}",
            "`stop_on_client_after`",
            [false, true],
            Kept::Replacement,
        ),
        // Without `lost_after`, Nomad replaces them all the same.
        strategy(
            "stopped-alone",
            "disconnect {\n stop_on_client_after = \"12s\"\n replace = false\n}",
            "`stop_on_client_after`, `replace = false`",
            [false, true],
            Kept::Replacement,
        ),
    ]
}

/// Cuts a node off, with tasks of several strategies on it, and heals that. Fills a table of the strategies.
pub fn partition(cluster: &mut Cluster<'_>, node: usize, table: &mut String) -> Result<Held> {
    let all = strategies();
    let mut before = Vec::new();
    for Strategy { job, .. } in &all {
        let state = cluster.run(job)?;
        let originals = cluster.running_on(&state, node);
        ensure!(!originals.is_empty(), "{} has no task on the node", job.name);
        before.push((state, originals));
    }
    cluster.nodes[node].link.cut()?;
    cluster.server_sees(node, "disconnected")?;
    for (strategy, (state, originals)) in all.iter().zip(&before) {
        cut_off(cluster, node, strategy, state, originals).context("while the node is cut off")?;
    }
    thread::sleep(CUT_OFF);
    cluster.nodes[node].link.heal()?;
    cluster.server_sees(node, "ready")?;
    "| `disconnect` | tasks on the node | while it was cut off | once it was back |\n|---|---|---|---|\n"
        .clone_into(table);
    for (strategy, (state, originals)) in all.iter().zip(&before) {
        let what = back(cluster, node, strategy, state, originals).context("after the node is back")?;
        let meanwhile = match (strategy.goes_on, strategy.replaced) {
            (true, true) => "they went on; replacements ran elsewhere",
            (true, false) => "they went on, without replacements",
            (false, _) => "they were stopped; replacements ran elsewhere afterwards",
        };
        let _ = writeln!(table, "| {} | {} | {meanwhile} | {what} |", strategy.shown, originals.len());
    }
    for Strategy { job, .. } in &all {
        cluster.end(job)?;
    }
    let tasks = all.iter().map(|strategy| strategy.job.count()).sum();
    Ok(Held { tasks, what: "what the second table says".to_owned() })
}

/// Asserts that a job is as it should be while a node is cut off.
fn cut_off(
    cluster: &mut Cluster<'_>,
    node: usize,
    strategy: &Strategy,
    before: &State,
    originals: &BTreeSet<String>,
) -> Result<()> {
    let id = cluster.nodes[node].agent.node().to_owned();
    let names = before.running().filter(|found| originals.contains(&found.id));
    let names = names.map(|found| found.name.clone());
    let wanted = Wanted {
        without: Some(&id),
        stray: originals.iter().filter(|_| strategy.goes_on).cloned().collect(),
        missing: names.filter(|_| !strategy.replaced).collect(),
    };
    let meanwhile = cluster.settled(&strategy.job, &wanted)?;
    if strategy.goes_on { same_processes(originals, before, &meanwhile) } else { Ok(()) }
}

/// Asserts that a job is as it should be once the node is back, and says what was kept.
fn back(
    cluster: &mut Cluster<'_>,
    node: usize,
    Strategy { job, goes_on, kept, .. }: &Strategy,
    before: &State,
    originals: &BTreeSet<String>,
) -> Result<String> {
    let healed = cluster.settled(job, &Wanted::default())?;
    let kept_ones = originals.intersection(&cluster.running_on(&healed, node)).count();
    match kept {
        Kept::Original => {
            ensure!(kept_ones == originals.len(), "{}: {kept_ones} of {originals:?} are kept", job.name);
            same_processes(originals, before, &healed)?;
            Ok("they stayed, with the same processes".to_owned())
        }
        Kept::Replacement => {
            ensure!(kept_ones == 0, "{}: {kept_ones} of {originals:?} are kept", job.name);
            let evidence = if *goes_on { Evidence::NoTimes } else { Evidence::ExitCode };
            ended_in_order(cluster, job, node, originals, evidence)?;
            if *goes_on {
                return Ok("they ended in order; the replacements stayed".to_owned());
            }
            never_two_of_a_name(cluster, &healed)?;
            Ok("others stayed; no two ever ran at the same time".to_owned())
        }
        Kept::Either => Ok(format!("{kept_ones} of the {} stayed", originals.len())),
    }
}

/// Starts tasks that fail on all nodes but one.
pub fn reschedule(cluster: &mut Cluster<'_>, node: usize) -> Result<Held> {
    let kind = Kind::RunsOn("node-3");
    ensure!(cluster.nodes[node].name == "node-3", "the tasks run on another node");
    let job = Job { name: "fails", groups: vec![Group { name: "main", count: 12, kind, more: "" }] };
    let state = cluster.run(&job)?;
    let running = cluster.running_on(&state, node);
    ensure!(running.len() == job.count(), "a task runs where it fails");
    let failed: Vec<_> =
        state.allocations.iter().filter(|allocation| !running.contains(&allocation.id)).collect();
    ensure!(!failed.is_empty(), "no task was started where it fails");
    for allocation in &failed {
        let ended = allocation.task("main").ended().with_context(|| allocation.summary())?;
        let is_failure = ended.exit_code == FAILURE && allocation.client_status == "failed";
        ensure!(is_failure, "{}", allocation.summary());
    }
    let what =
        format!("{} starts failed, with their exit code; each task runs on the third node", failed.len());
    cluster.end(&job)?;
    Ok(Held { tasks: job.count(), what })
}

/// What there is of a task that was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    All,
    /// The agent was away, and its events don't say how long the stop took.
    NoTimes,
    /// The agent has removed the allocation's files, as it does when it stops a task by itself.
    ExitCode,
}

/// Asserts that tasks of a node ended as they do when they are stopped, and returns the longest time that one took
/// which heeds SIGTERM.
fn ended_in_order(
    cluster: &Cluster<'_>,
    job: &Job,
    node: usize,
    ids: &BTreeSet<String>,
    evidence: Evidence,
) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for id in ids {
        let mut last = cluster.server.allocation(id)?;
        poll("word of the end of a task", TOLD, || {
            last = cluster.server.allocation(id)?;
            Ok(last.task("main").state == "dead" && last.is_terminal())
        })
        .with_context(|| last.summary())?;
        let took = ended(cluster, job, node, &last, evidence).with_context(|| last.summary())?;
        slowest = slowest.max(took.unwrap_or_default());
    }
    Ok(slowest)
}

fn ended(
    cluster: &Cluster<'_>,
    job: &Job,
    node: usize,
    allocation: &Allocation,
    evidence: Evidence,
) -> Result<Option<Duration>> {
    let task = allocation.task("main");
    let code = task.ended()?.exit_code;
    let is_deaf = job.kind_of(allocation) == Some(Kind::Deaf);
    let (expected, said) = if is_deaf { (137, "up\ndeaf\n") } else { (3, STOPPED) };
    ensure!(code == expected, "its exit code is {code}");
    if evidence != Evidence::ExitCode {
        let output = cluster.nodes[node].output(&allocation.id)?;
        ensure!(output == said, "its output is {output:?}");
    }
    if evidence != Evidence::All {
        return Ok(None);
    }
    let took = task.event("Terminated")?.at().duration_since(task.event("Killing")?.at())?;
    let timeout = Duration::from_secs(KILL_TIMEOUT);
    if is_deaf {
        ensure!(took >= timeout && took < timeout + KILLED, "it took {took:?} to kill it");
        return Ok(None);
    }
    ensure!(took < HEEDED, "it took {took:?} to stop it");
    Ok(Some(took))
}

/// Asserts that allocations have the same processes at both times, and that these have heard of no stop.
fn same_processes(ids: &BTreeSet<String>, before: &State, after: &State) -> Result<()> {
    for id in ids {
        let (was, is) = (before.processes.get(id), after.processes.get(id));
        ensure!(was.is_some() && was == is, "{id} had the processes {was:?}, and has {is:?}");
    }
    Ok(())
}

/// Asserts that no allocation was there at the same time as another one of the same name.
fn never_two_of_a_name(cluster: &Cluster<'_>, state: &State) -> Result<()> {
    for (one, other) in
        state.allocations.iter().flat_map(|one| state.allocations.iter().map(move |other| (one, other)))
    {
        if one.id >= other.id || one.name != other.name {
            continue;
        }
        let (Some(a), Some(b)) = (cluster.watch.life(&one.id), cluster.watch.life(&other.id)) else {
            continue;
        };
        ensure!(a.last < b.first || b.last < a.first, "{} ran twice: {} and {}", one.name, one.id, other.id);
    }
    Ok(())
}
