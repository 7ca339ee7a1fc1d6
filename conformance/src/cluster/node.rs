//! A node of the cluster: a client agent in a network namespace of its own, with a containerd of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::agent::{Agent, Mode, Place, Server, lines_of_interest, poll};
use harness::context::agent;
use harness::environment::TestEnvironment;
use harness::fixture::Containerd;
use harness::fixture::network::NodeLink;
use harness::leaks::census::Census;
use harness::leaks::report::LeakCheck;
use harness::leaks::sweep;

/// Time for the plugin's garbage collection after containerd was down or the plugin was killed.
const CLEAN: Duration = Duration::from_secs(20);
/// Number of lines of a log that are shown after a failure.
const LAST_LINES: usize = 12;

pub struct Node<'a> {
    // Fields are dropped in this order: the agent before what it uses.
    pub agent: Agent,
    containerd: Containerd,
    pub link: NodeLink,
    pub name: String,
    state_dir: PathBuf,
    environment: &'a TestEnvironment,
    before: Census,
    /// Names `<alloc>.<task>` of the cgroups of the tasks that the node had.
    cgroups: Vec<String>,
}

impl<'a> Node<'a> {
    /// Starts a node with everything of its own but the registry.
    ///
    /// # Errors
    /// Says what doesn't come up.
    pub fn start(
        environment: &'a TestEnvironment,
        server: &Server,
        number: u8,
        [nomad, plugin]: [&Path; 2],
        registry_config_dir: &Path,
    ) -> Result<Self> {
        let name = format!("node-{number}");
        let directory = environment.directory().join(&name);
        let link = environment.networks().make_node(number)?;
        let programs = environment.containerd().programs().clone();
        let containerd = Containerd::start_in(&directory.join("ctd"), programs)?;
        let state_dir = directory.join("state");
        let mut setup = agent::setup(environment, Mode::Kept, nomad, plugin);
        setup.directory = directory.join("agent");
        setup.containerd_socket = containerd.socket();
        setup.state_dir.clone_from(&state_dir);
        setup.programs = vec![containerd.programs_directory()];
        setup.networks.near = None;
        setup.registry_config_dir = registry_config_dir.display().to_string();
        setup.place = Some(Place {
            name: name.clone(),
            namespace: link.namespace.clone(),
            address: link.address.clone(),
            server: server.rpc(),
            server_http: server.http(),
        });
        let agent = Agent::start(setup)?;
        agent.driver_becomes(true)?;
        let (before, cgroups) = (Census::default(), Vec::new());
        let mut node = Self { agent, containerd, link, name, state_dir, environment, before, cgroups };
        node.before = node.leak_check().all();
        Ok(node)
    }

    /// Counts a task as one that the node had.
    pub fn had(&mut self, allocation: &str) {
        let cgroup = format!("{allocation}.main");
        if !self.cgroups.contains(&cgroup) {
            self.cgroups.push(cgroup);
        }
    }

    /// Kills the agent and the plugin. The tasks live on.
    ///
    /// # Errors
    /// Fails if the plugin doesn't run.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.kill();
        self.agent.kill_plugin()
    }

    /// Ends all that runs on the node, and removes what a reboot would: the state directory, which is in memory.
    ///
    /// # Errors
    /// Fails if the plugin or containerd don't run.
    pub fn kill_machine(&mut self) -> Result<()> {
        self.kill_agent()?;
        self.containerd.kill()?;
        sweep::processes_with(&self.state_dir, None);
        self.cgroups.iter().for_each(|cgroup| sweep::cgroups(cgroup));
        let directory = self.state_dir.parent().context("a state directory without a parent")?;
        sweep::processes_with(directory, None);
        sweep::unmount_under(directory);
        Ok(fs::remove_dir_all(&self.state_dir)?)
    }

    /// Starts what [`Self::kill_agent`] or [`Self::kill_machine`] has killed.
    ///
    /// # Errors
    /// Says what doesn't come up.
    pub fn come_back(&mut self) -> Result<()> {
        self.containerd.start()?;
        self.agent.launch()?;
        self.agent.driver_becomes(true).map(drop)
    }

    /// Asserts that nothing is left of the tasks that the node had, of which none may run.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub fn assert_clean(&self) -> Result<()> {
        self.leak_check().assert_nothing_left_within(CLEAN).with_context(|| self.name.clone())?;
        let mut links = Vec::new();
        poll("node without links of containers", CLEAN, || {
            links = self.link.containers()?;
            Ok(links.is_empty())
        })
        .with_context(|| format!("{} has the links {links:?}", self.name))
    }

    /// Waits until the agent has removed the directories of all allocations, as it does once their jobs are purged.
    ///
    /// # Errors
    /// Fails if it takes too long.
    pub fn forgets_allocations(&self) -> Result<()> {
        let directory = self.agent.allocation_directory("");
        poll("node without allocations", CLEAN, || Ok(fs::read_dir(&directory)?.next().is_none()))
            .with_context(|| self.name.clone())
    }

    /// Returns the output of a task that the node had.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn output(&self, allocation: &str) -> Result<String> {
        let path = self.agent.allocation_directory(allocation).join("alloc/logs/main.stdout.0");
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Returns the lines of the agent's log that matter to a failure.
    pub fn last_words(&self) -> String {
        let lines = lines_of_interest(&self.agent.log(), 0);
        let lines: Vec<_> = lines.lines().filter(|line| !line.contains("[DEBUG]")).collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        format!("the log of {} ends:\n{}\n", self.name, last.join("\n"))
    }

    /// Stops the agent, and asserts that it leaves nothing behind.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub fn stop(&mut self) -> Result<()> {
        self.agent.stop()?;
        let leaks = self.agent.leaks();
        ensure!(leaks.is_empty(), "the agent of {} left behind:\n  {}", self.name, leaks.join("\n  "));
        self.containerd.stop()
    }

    fn leak_check(&self) -> LeakCheck<'_> {
        LeakCheck {
            containerd: &self.containerd,
            networks: self.environment.networks(),
            state_dir: &self.state_dir,
            cgroups: &self.cgroups,
            before: &self.before,
        }
    }
}
