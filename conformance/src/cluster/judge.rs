//! The state of a cluster's jobs: what the server says of the allocations, held against the processes that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use harness::agent::{Allocation, Server, poll};

use super::job::Job;
use super::watch::running;

/// Time for all tasks of a job to run where they belong.
const SETTLED: Duration = Duration::from_secs(90);
/// Time for which they then have to.
const STAYS: Duration = Duration::from_secs(2);

/// A look at a job.
pub struct State {
    pub allocations: Vec<Allocation>,
    /// The first processes of all jobs' tasks, by the ids of their allocations.
    pub processes: BTreeMap<String, Vec<i32>>,
}

/// What a job should be like.
#[derive(Default)]
pub struct Wanted<'a> {
    /// Node on which none of its tasks runs.
    pub without: Option<&'a str>,
    /// Allocations that may have a process although the server counts on them no more: they are on a node that it can't
    /// reach. Each has one.
    pub stray: BTreeSet<String>,
    /// Names of allocations of which none should run.
    pub missing: BTreeSet<String>,
}

impl State {
    fn of(server: &Server, job: &Job, directories: &[PathBuf]) -> Result<Self> {
        // The processes first: those of allocations that the server doesn't know yet wouldn't be missed.
        let processes = running(directories);
        Ok(Self { allocations: server.states_of(job.name)?, processes })
    }

    /// Returns the allocations that run and should.
    pub fn running(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations
            .iter()
            .filter(|allocation| allocation.desired_status == "run" && allocation.client_status == "running")
    }

    /// Returns the allocations that run on a node.
    pub fn running_on(&self, node: &str) -> BTreeSet<String> {
        self.running().filter(|found| found.node == node).map(|found| found.id.clone()).collect()
    }

    /// # Errors
    /// Says what isn't as it should be.
    fn check(&self, job: &Job, wanted: &Wanted<'_>) -> Result<()> {
        let mut names: Vec<_> = self.running().map(|allocation| allocation.name.clone()).collect();
        names.sort();
        let mut all = job.names();
        all.retain(|name| !wanted.missing.contains(name));
        all.sort();
        if names != all {
            let lost: Vec<_> = all.iter().filter(|name| !names.contains(name)).collect();
            let mut more = names.clone();
            all.iter()
                .for_each(|name| drop(more.iter().position(|other| other == name).map(|at| more.remove(at))));
            bail!("no allocation runs for {lost:?}; too many do for {more:?}");
        }
        for allocation in &self.allocations {
            let (id, name) = (&allocation.id, &allocation.name);
            let runs = self.running().any(|running| running.id == *id);
            ensure!(!runs || wanted.without != Some(&*allocation.node), "{name} runs on {}", allocation.node);
            let processes = self.processes.get(id).map(Vec::as_slice).unwrap_or_default();
            let expected = usize::from(runs || wanted.stray.contains(id));
            let status = (&allocation.desired_status, &allocation.client_status);
            ensure!(processes.len() == expected, "{name}, {id}, {status:?}, has the processes {processes:?}");
        }
        Ok(())
    }

    /// Returns the server's and the machine's view of each allocation, for the report of a failure.
    fn summary(&self) -> String {
        let line = |allocation: &Allocation| {
            let Allocation { id, name, node, desired_status, client_status, .. } = allocation;
            let (node, processes) = (&node[..node.len().min(8)], self.processes.get(id));
            let processes = processes.map(Vec::as_slice).unwrap_or_default();
            format!("  {name} {id} on {node}: {desired_status}, {client_status}; processes {processes:?}\n")
        };
        self.allocations.iter().map(line).collect()
    }
}

/// Waits until a job is as it should be, and sees that it stays so.
///
/// # Errors
/// Says what isn't as it should be, with all allocations.
pub fn settled(server: &Server, job: &Job, directories: &[PathBuf], wanted: &Wanted<'_>) -> Result<State> {
    let look = || State::of(server, job, directories);
    let mut last = String::new();
    let waited = poll("state of the job as it should be", SETTLED, || {
        // A look takes a part of a processor that the agents need.
        thread::sleep(Duration::from_millis(200));
        let checked = look()?.check(job, wanted);
        last = checked.as_ref().err().map(ToString::to_string).unwrap_or_default();
        Ok(checked.is_ok())
    });
    waited
        .and_then(|()| {
            thread::sleep(STAYS);
            look()?.check(job, wanted).context("for a moment only")
        })
        .with_context(|| {
            format!(
                "job {}: {last}\n{}",
                job.name,
                look().map_or_else(|error| error.to_string(), |state| state.summary())
            )
        })?;
    look()
}
