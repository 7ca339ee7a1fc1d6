//! A cluster on one machine: a server, and client agents in network namespaces, each with a plugin and a containerd of
//! its own. Nodes are drained, die, and are cut off, and tasks fail. After each step every task has to run exactly once,
//! by the server's word and by the processes that there are.

mod job;
mod judge;
mod node;
mod steps;
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use harness::agent::{Heartbeats, Server};
use harness::environment::TestEnvironment;
use harness::fixture::{Choice, Programs, Registry, RegistrySettings};
use harness::leaks::inspect::find_processes;
use job::Job;
use judge::{State, Wanted};
use node::Node;
use steps::Held;
use watch::Watch;

use harness::page;

/// Words that frame the table in a page.
const FRAME: &str = "hack/cluster";
const NODES: u8 = 3;

#[derive(clap::Args)]
pub struct Args {
    /// Path of the driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Path of Nomad's binary.
    #[arg(long)]
    nomad: PathBuf,
    /// Page whose table of results is replaced by this run's.
    #[arg(long)]
    page: Option<PathBuf>,
    /// Make only the steps whose names contain this, after the start of the tasks that they need.
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    pub choice: Choice,
}

pub struct Cluster<'a> {
    // Fields are dropped in this order: the nodes before their server.
    watch: Watch,
    nodes: Vec<Node<'a>>,
    server: Server,
    registry: Registry,
    directories: Vec<PathBuf>,
}

/// # Errors
/// Fails with the first step after which something didn't hold, or with what is left.
pub fn run(args: &Args) -> Result<ExitCode> {
    let programs = Programs::find(&args.choice)?;
    println!("{}", programs.versions().join(", "));
    let environment = TestEnvironment::start_of(programs)?;
    let binaries = [std::path::absolute(&args.nomad)?, std::path::absolute(&args.plugin)?];
    let begun = Instant::now();
    let mut cluster = Cluster::start(&environment, [&binaries[0], &binaries[1]])?;
    println!("a server and {NODES} nodes after {:.1} s", begun.elapsed().as_secs_f32());
    let made = cluster.all_steps(args.only.as_deref());
    let table = made.map_err(|error| anyhow::anyhow!("{}{error:#}", cluster.last_words()))?;
    let places: Vec<_> = cluster.nodes.iter().flat_map(|node| node.link.places()).collect();
    drop(cluster);
    let directory = environment.directory().to_owned();
    drop(environment);
    for place in places.iter().chain([&directory]) {
        ensure!(!place.exists(), "{} is still there", place.display());
    }
    let left = find_processes(&directory);
    ensure!(left.is_empty(), "these are still there: {left:?}");
    println!("\n{table}");
    println!("all of it done in {:.0} s", begun.elapsed().as_secs_f32());
    if let Some(path) = &args.page {
        page::write_into(path, FRAME, &table)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl<'a> Cluster<'a> {
    fn start(environment: &'a TestEnvironment, binaries: [&Path; 2]) -> Result<Self> {
        let address = environment.networks().make_nodes_bridge()?;
        let directory = environment.directory();
        let settings = RegistrySettings { host: Some(address.clone()), ..RegistrySettings::default() };
        let registry = environment.registry().beside(&directory.join("cluster-reg"), settings)?;
        let server = Server::start(binaries[0], &directory.join("server"), &address, Heartbeats::Strict)?;
        let hosts = directory.join("hosts");
        let of_registry = hosts.join(registry.address());
        fs::create_dir_all(&of_registry)?;
        fs::write(of_registry.join("hosts.toml"), format!("server = \"http://{}\"\n", registry.address()))?;
        let start = |number| Node::start(environment, &server, number, binaries, &hosts);
        let nodes = (1..=NODES).map(start).collect::<Result<Vec<_>>>()?;
        let directories: Vec<_> = nodes.iter().map(|node| node.agent.allocation_directory("")).collect();
        let watch = Watch::begin(directories.clone());
        Ok(Self { watch, nodes, server, registry, directories })
    }

    fn all_steps(&mut self, only: Option<&str>) -> Result<String> {
        let is_wanted = |name: &str| only.is_none_or(|word| name.contains(word));
        let mut table = Table::default();
        let job = steps::thirty();
        if ["drain", "agent", "machine"].into_iter().any(is_wanted) || is_wanted("start") {
            table.add("start", "30 tasks on three nodes", || steps::start(self, &job))?;
        }
        if is_wanted("drain") {
            table.add("drain", "a node is drained, and taken back", || steps::drain(self, &job, 0))?;
        }
        if is_wanted("agent") {
            let what = "the agent and the plugin of a node are killed, and come back";
            table.add("agent", what, || steps::agent_dies(self, &job, 1))?;
        }
        if is_wanted("machine") {
            let what = "all that runs on a node is killed; containerd and the agent come back";
            table.add("machine", what, || steps::machine_dies(self, &job, 2))?;
        }
        self.end(&job)?;
        if is_wanted("partition") {
            let what = "a node is cut off, with tasks of six kinds of `disconnect`, and comes back";
            let mut strategies = String::new();
            table.add("partition", what, || steps::partition(self, 0, &mut strategies))?;
            table.strategies = strategies;
        }
        if is_wanted("reschedule") {
            table.add("reschedule", "tasks fail on two of the nodes", || steps::reschedule(self, 2))?;
        }
        self.close()?;
        Ok(table.text())
    }

    /// Submits a job, and waits until all of its tasks run.
    fn run(&mut self, job: &Job) -> Result<State> {
        let image = format!("{}/busybox:latest", self.registry.address());
        self.server.submit(&job.text(&image), &[])?;
        self.settled(job, &Wanted::default())
    }

    /// Waits until a job is as it should be, see [`judge::settled`].
    fn settled(&mut self, job: &Job, wanted: &Wanted<'_>) -> Result<State> {
        let state = judge::settled(&self.server, job, &self.directories, wanted);
        // After a failure, too: it is what the end cleans up by.
        for allocation in self.server.states_of(job.name).unwrap_or_default() {
            for node in self.nodes.iter_mut().filter(|node| node.agent.node() == allocation.node) {
                node.had(&allocation.id);
            }
        }
        state
    }

    fn running_on(&self, state: &State, node: usize) -> BTreeSet<String> {
        state.running_on(self.nodes[node].agent.node())
    }

    /// Waits until the server gives a node another status.
    fn server_sees(&self, node: usize, status: &str) -> Result<()> {
        self.nodes[node].agent.node_becomes(status)
    }

    /// Purges a job, if it was submitted.
    fn end(&self, job: &Job) -> Result<()> {
        if self.server.states_of(job.name)?.is_empty() {
            return Ok(());
        }
        self.server.end_jobs(&[job.name.to_owned()])
    }

    /// Looks for what is left once all jobs are gone, and stops the agents.
    fn close(&mut self) -> Result<()> {
        let twice = self.watch.twice();
        ensure!(twice.is_empty(), "these had two first processes at the same time: {twice:?}");
        let left = watch::running(&self.directories);
        ensure!(left.is_empty(), "processes without a job: {left:?}");
        self.nodes.iter().try_for_each(Node::assert_clean)?;
        self.nodes.iter().try_for_each(Node::forgets_allocations)?;
        self.nodes.iter_mut().try_for_each(Node::stop)
    }

    fn last_words(&self) -> String {
        self.nodes.iter().map(Node::last_words).collect()
    }
}

/// The table of results, which grows with each step.
#[derive(Default)]
struct Table {
    rows: String,
    /// Table of the strategies for tasks on a node that is cut off.
    strategies: String,
}

impl Table {
    fn add(&mut self, step: &str, what: &str, make: impl FnOnce() -> Result<Held>) -> Result<()> {
        let begun = Instant::now();
        let Held { tasks, what: held } = make().with_context(|| format!("{step}: {what}"))?;
        let seconds = begun.elapsed().as_secs();
        println!("{step}: {tasks} tasks, {seconds} s: {held}");
        self.rows += &format!("| {step} | {what} | {tasks} | {seconds} | {held} |\n");
        Ok(())
    }

    fn text(&self) -> String {
        let head = "| step | what was done | tasks | seconds | what held |\n|---|---|---|---|---|\n";
        [head, &self.rows, if self.strategies.is_empty() { "" } else { "\n" }, &self.strategies].concat()
    }
}
