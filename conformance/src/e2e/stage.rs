//! What the cases play on: one world, one agent, and a memory of every job that was started, so that the end of a case
//! can look for what is left of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::agent::command::{Output, run};
use crate::agent::{
    self, Agent, Allocation, Mode, Networks, Setup, Task, check_interrupt, lines_of_interest, poll,
};
use crate::fixture::census::Census;
use crate::fixture::leftovers::Leftovers;
use crate::fixture::sweep;
use crate::fixture::{Consul, Programs, World};
use crate::processes;

/// Any one step of a task's life. Far above what it takes, far below what a person would wait.
pub const SOON: Duration = Duration::from_secs(30);
/// A containerd that was away, or a plugin that was killed: the plugin cleans up when it next looks.
const CLEAN: Duration = Duration::from_secs(20);

pub mod jobs {
    pub const SHELL: &str = include_str!("../../../hack/jobs/shell.nomad.hcl");
    pub const RESTART: &str = include_str!("../../../hack/jobs/restart.nomad.hcl");
    pub const PAIR: &str = include_str!("../../../hack/jobs/pair.nomad.hcl");
    pub const VOLUME_MOUNT: &str = include_str!("../../../hack/jobs/volume-mount.nomad.hcl");
    pub const TEMPLATE: &str = include_str!("../../../hack/jobs/template.nomad.hcl");
    pub const SCRIPT: &str = include_str!("../../../hack/jobs/script.nomad.hcl");
    pub const MISSING_IMAGE: &str = include_str!("../../../hack/jobs/missing-image.nomad.hcl");
    pub const UNKNOWN_OPTION: &str = include_str!("../../../hack/jobs/unknown-option.nomad.hcl");

    /// [`SHELL`], whose task's `config` has more in it.
    pub fn shell_configured(more: &str) -> String {
        let last_line = "args    = [\"-c\", var.script]";
        SHELL.replace(last_line, &format!("{last_line}\n\n{more}"))
    }
}

pub struct Stage {
    // Dropped in this order: the agent before what it works on.
    pub agent: Agent,
    pub consul: Option<Consul>,
    pub world: Arc<World>,
    state_dir: PathBuf,
    before: Census,
    jobs: Vec<String>,
    /// `<alloc>.<task>` of what ran.
    cgroups: Vec<String>,
    log_offset: u64,
}

/// A setup for an agent that works in a world.
pub fn setup(world: &World, mode: Mode, nomad: &Path, plugin: &Path) -> Setup {
    let (networks, containerd) = (world.networks(), world.containerd());
    let programs = containerd.programs();
    Setup {
        mode,
        nomad: nomad.to_owned(),
        plugin: plugin.to_owned(),
        directory: world.directory().join("agent"),
        containerd_socket: containerd.socket(),
        containerd_runtime: programs.shim_runtime().to_owned(),
        oci_runtime: programs.oci_runtime().unwrap_or_default(),
        cni_plugins: programs.cni().to_owned(),
        state_dir: world.state_dir("agent"),
        networks: Networks {
            tasks: networks.tasks(),
            tasks_ipv6: networks.tasks_ipv6(),
            groups: networks.groups(),
            described: networks.described(),
            near: networks.make_near().ok().map(|bridge| bridge.name),
        },
        programs: vec![containerd.programs_directory()],
        log_collection: "nomad",
        consul: None,
    }
}

impl Stage {
    /// # Errors
    /// When the world, the agent or Consul does not come up.
    pub fn set(programs: Programs, nomad: &Path, plugin: &Path, consul: Option<&Path>) -> Result<Self> {
        let world = World::start_of(programs)?;
        let directory = world.directory().join("consul");
        let consul = consul.map(|binary| Consul::start_in(&directory, binary)).transpose()?;
        Self::beside(&world, consul, nomad, plugin)
    }

    /// An agent in a world that others may use before and after.
    ///
    /// # Errors
    /// When the agent does not come up.
    pub fn on(world: &Arc<World>, nomad: &Path, plugin: &Path) -> Result<Self> {
        Self::beside(world, None, nomad, plugin)
    }

    fn beside(world: &Arc<World>, consul: Option<Consul>, nomad: &Path, plugin: &Path) -> Result<Self> {
        let mut setup = setup(world, Mode::Kept, nomad, plugin);
        setup.consul = consul
            .as_ref()
            .map(|consul| agent::Consul { address: consul.address(), grpc_address: consul.grpc_address() });
        // Nomad runs the program `consul` to set up a sidecar.
        setup.programs.extend(consul.as_ref().map(Consul::programs));
        let state_dir = setup.state_dir.clone();
        let agent = Agent::start(setup)?;
        agent.driver_becomes(true)?;
        let mut stage = Self {
            agent,
            consul,
            world: Arc::clone(world),
            state_dir,
            before: Census::default(),
            jobs: Vec::new(),
            cgroups: Vec::new(),
            log_offset: 0,
        };
        stage.before = stage.leftovers().all();
        Ok(stage)
    }

    /// The image most jobs run.
    pub fn busybox(&self) -> String {
        self.world.image("busybox:latest")
    }

    /// Submits a job under a name of its own, and returns its allocation. `hcl` begins a job of any name.
    ///
    /// # Errors
    /// When Nomad refuses it or doesn't place it.
    pub fn start(&mut self, name: &str, hcl: &str, variables: &[(&str, &str)]) -> Result<String> {
        self.submit(name, hcl, variables)?;
        Ok(self.allocations(name, 1)?.remove(0))
    }

    /// Waits until a job of [`Self::submit`] has so many allocations.
    ///
    /// # Errors
    /// When they aren't placed in time.
    pub fn allocations(&mut self, name: &str, count: usize) -> Result<Vec<String>> {
        let ids = self.agent.placed(name, count)?;
        for id in &ids {
            let allocation = self.agent.allocation(id)?;
            self.cgroups.extend(allocation.task_names().map(|task| format!("{id}.{task}")));
        }
        Ok(ids)
    }

    /// Submits a job under a name of its own.
    ///
    /// # Errors
    /// When Nomad refuses it.
    pub fn submit(&mut self, name: &str, hcl: &str, variables: &[(&str, &str)]) -> Result<()> {
        let label = hcl.lines().find(|line| line.starts_with("job ")).context("no job in the text")?;
        self.jobs.push(name.to_owned());
        self.agent.submit(&hcl.replacen(label, &format!("job \"{name}\" {{"), 1), variables)
    }

    /// A job with one task, `main`, that runs a shell script.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shell(&mut self, name: &str, script: &str) -> Result<String> {
        self.shell_with(name, script, &[])
    }

    /// # Errors
    /// As [`Self::start`].
    pub fn shell_with(&mut self, name: &str, script: &str, more: &[(&str, &str)]) -> Result<String> {
        let image = self.busybox();
        let mut variables = vec![("image", image.as_str()), ("script", script)];
        variables.extend(more);
        self.start(name, jobs::SHELL, &variables)
    }

    /// Waits for a task to run.
    ///
    /// # Errors
    /// With its events.
    pub fn running(&self, id: &str, task: &str) -> Result<()> {
        let ready =
            |allocation: &Allocation| matches!(allocation.task(task).state.as_str(), "running" | "dead");
        let allocation = self.agent.allocation_until(id, "running task", SOON, ready)?;
        ensure!(allocation.task(task).state == "running", "task {task} has ended\n{}", allocation.story());
        Ok(())
    }

    /// Waits for a task to end for good.
    ///
    /// # Errors
    /// With its events.
    pub fn dead(&self, id: &str, task: &str) -> Result<Task> {
        let ended =
            |allocation: &Allocation| allocation.task(task).state == "dead" && allocation.is_terminal();
        self.agent.allocation_until(id, "ended task", SOON, ended).map(|allocation| allocation.task(task))
    }

    /// Waits for a task to end well, whatever the others of its group do.
    ///
    /// # Errors
    /// With its events and its output.
    pub fn done(&self, id: &str, task: &str) -> Result<()> {
        let ended = |allocation: &Allocation| allocation.task(task).state == "dead";
        let allocation = self.agent.allocation_until(id, "ended task", SOON, ended);
        let well = allocation.as_ref().is_ok_and(|allocation| !allocation.task(task).failed);
        let said = if well { Vec::new() } else { self.log(id, task, true).unwrap_or_default() };
        let said = || format!("task {task} said:\n{}", String::from_utf8_lossy(&said));
        let allocation = allocation.with_context(said)?;
        ensure!(well, "task {task} has failed\n{}{}", allocation.story(), said());
        Ok(())
    }

    /// Where the host finds `/alloc/data/<name>`.
    pub fn data(&self, id: &str, name: &str) -> PathBuf {
        self.agent.allocation_directory(id).join("alloc/data").join(name)
    }

    /// Waits for a task's script to make `/alloc/data/<name>`.
    ///
    /// # Errors
    /// With the task's events.
    pub fn made(&self, id: &str, name: &str) -> Result<()> {
        let path = self.data(id, name);
        eventually(&format!("file {name}"), || Ok(path.exists())).with_context(|| {
            self.agent.allocation(id).map_or_else(|error| error.to_string(), |allocation| allocation.story())
        })
    }

    /// The whole of a task's output, through the agent.
    ///
    /// # Errors
    /// When the agent refuses.
    pub fn log(&self, id: &str, task: &str, stderr: bool) -> Result<Vec<u8>> {
        let mut arguments = vec!["alloc", "logs"];
        if stderr {
            arguments.push("-stderr");
        }
        arguments.extend([id, task]);
        Ok(self.agent.tell(&arguments)?.stdout)
    }

    /// Waits for a text in a task's stdout.
    ///
    /// # Errors
    /// With what there is instead.
    pub fn logged(&self, id: &str, task: &str, text: &str) -> Result<()> {
        let mut seen = String::new();
        let found = eventually(&format!("{text:?} in the log of {task}"), || {
            seen = String::from_utf8_lossy(&self.log(id, task, false)?).into_owned();
            Ok(seen.contains(text))
        });
        found.with_context(|| format!("the log is {seen:?}"))
    }

    /// `nomad alloc exec` without a terminal, in task `main`.
    ///
    /// # Errors
    /// When it can't run or takes too long. Its exit code is in the output.
    pub fn exec(&self, id: &str, stdin: &[u8], words: &[&str]) -> Result<Output> {
        let mut command = self.agent.nomad(&["alloc", "exec", "-i", "-t=false", "-task", "main", id]);
        run(command.args(words), stdin, SOON)
    }

    /// Ends a case: its jobs are stopped and forgotten, what it took away is brought back, and the census must be clean.
    ///
    /// # Errors
    /// Lists what is left. It has been removed by force then, for the next case to start clean.
    pub fn clear(&mut self) -> Result<()> {
        let result = self.end_jobs().and_then(|()| self.leftovers().assert_nothing_left_within(CLEAN));
        if result.is_err() {
            sweep::processes_under(&self.state_dir);
            self.cgroups.iter().for_each(|group| sweep::cgroups(group));
            sweep::unmount_under(&self.state_dir);
            self.world.networks().clear();
            sweep::records(self.world.containerd());
            let _ = fs::remove_dir_all(&self.state_dir);
        }
        self.cgroups.clear();
        self.log_offset = fs::metadata(self.agent.log()).map_or(0, |log| log.len());
        result
    }

    fn end_jobs(&mut self) -> Result<()> {
        check_interrupt()?;
        self.world.containerd().start()?;
        if !self.agent.is_alive() {
            self.agent.stop()?;
            self.agent.launch()?;
        }
        // A purged job takes its ended allocations with it, and with them the word that they have ended.
        let jobs = std::mem::take(&mut self.jobs);
        for job in &jobs {
            self.agent.tell(&["job", "stop", "-detach", job])?;
        }
        for job in &jobs {
            for id in self.agent.allocations_of(job)? {
                self.agent.allocation_until(&id, "stopped allocation", SOON, Allocation::is_terminal)?;
            }
            self.agent.tell(&["job", "stop", "-purge", "-detach", job])?;
        }
        self.agent.collect_logs_by("nomad")?;
        self.agent.driver_becomes(true).map(drop)
    }

    fn leftovers(&self) -> Leftovers<'_> {
        Leftovers {
            containerd: self.world.containerd(),
            networks: self.world.networks(),
            state_dir: &self.state_dir,
            cgroups: &self.cgroups,
            before: &self.before,
        }
    }

    /// What the agent's log says since the last case that matters to a failure.
    pub fn agent_log(&self) -> String {
        lines_of_interest(&self.agent.log(), self.log_offset)
    }

    /// The host's pid of task `main`'s first process.
    ///
    /// # Errors
    /// When it has none.
    pub fn pid(&self, id: &str) -> Result<i32> {
        processes::first_of_task(id, "main")
    }
}

/// Tries until it is so, for as long as any one step may take.
///
/// # Errors
/// As [`poll`].
pub fn eventually(what: &str, is: impl FnMut() -> Result<bool>) -> Result<()> {
    poll(what, SOON, is)
}
