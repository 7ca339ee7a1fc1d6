//! The context of the cases: one test environment, one agent, and a list of every job that was started, so that the end
//! of a case can look for its leftovers.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::agent::config::{DANGLING_KEPT, DEBUG};
use crate::agent::{self, Agent, Client, DOCKER, DRIVER, Mode, Networks, Setup, lines_of_interest};
pub use crate::agent::{SOON, eventually};
use crate::environment::TestEnvironment;
use crate::fixture::{Consul, Programs};
use crate::leaks::agent::check_interrupt;
use crate::leaks::census::Census;
use crate::leaks::report::LeakCheck;
use crate::leaks::sweep;

/// Time for the plugin's garbage collection after containerd was down or the plugin was killed.
const CLEAN: Duration = Duration::from_secs(20);

pub mod jobs {
    pub use crate::agent::SHELL;
    pub const RESTART: &str = include_str!("../../../../hack/jobs/restart.nomad.hcl");
    pub const PAIR: &str = include_str!("../../../../hack/jobs/pair.nomad.hcl");
    pub const VOLUME_MOUNT: &str = include_str!("../../../../hack/jobs/volume-mount.nomad.hcl");
    pub const TEMPLATE: &str = include_str!("../../../../hack/jobs/template.nomad.hcl");
    pub const SCRIPT: &str = include_str!("../../../../hack/jobs/script.nomad.hcl");
    pub const MISSING_IMAGE: &str = include_str!("../../../../hack/jobs/missing-image.nomad.hcl");
    pub const UNKNOWN_OPTION: &str = include_str!("../../../../hack/jobs/unknown-option.nomad.hcl");

    /// Returns [`SHELL`] with more in its task's `config`.
    pub fn shell_configured(more: &str) -> String {
        let last_line = "args    = [\"-c\", var.script]";
        SHELL.replace(last_line, &format!("{last_line}\n\n{more}"))
    }
}

pub struct AgentContext {
    // Fields are dropped in this order: the agent before what it uses.
    pub agent: Agent,
    pub consul: Option<Consul>,
    pub environment: Arc<TestEnvironment>,
    state_dir: PathBuf,
    before: Census,
    jobs: Vec<String>,
    /// Names `<alloc>.<task>` of the cgroups of the tasks that ran.
    cgroups: Vec<String>,
    log_offset: u64,
}

/// Returns a setup for an agent in a test environment.
pub fn setup(environment: &TestEnvironment, mode: Mode, nomad: &Path, plugin: &Path) -> Setup {
    let (networks, containerd) = (environment.networks(), environment.containerd());
    let programs = containerd.programs();
    Setup {
        mode,
        nomad: nomad.to_owned(),
        plugin: plugin.to_owned(),
        directory: environment.directory().join("agent"),
        containerd_socket: containerd.socket(),
        containerd_runtime: programs.shim_runtime().to_owned(),
        oci_runtime: programs.oci_runtime().unwrap_or_default(),
        cni_plugins: programs.cni().to_owned(),
        state_dir: environment.state_dir("agent"),
        networks: Networks {
            tasks: networks.tasks(),
            tasks_ipv6: networks.tasks_ipv6(),
            docker: networks.docker(),
            groups: networks.groups(),
            described: networks.described(),
            near: networks.make_near().ok().map(|bridge| bridge.name),
        },
        programs: vec![containerd.programs_directory()],
        log_collection: "nomad",
        shim_sharing: "task",
        registry_config_dir: String::new(),
        consul: None,
        place: None,
        plugin_names: &[DRIVER],
        dockerd: None,
        foreign_options: None,
        plugin_options: String::new(),
        docker_options: String::new(),
        image_gc: true,
        dangling_containers: DANGLING_KEPT,
        log_level: DEBUG,
        variables: Vec::new(),
    }
}

/// Has jobs of others, which name images of Docker Hub, get them from the test environment's registry.
fn mirror_docker_hub(setup: &Setup, environment: &TestEnvironment) -> Result<()> {
    let directory = setup.dockers_hosts().join("docker.io");
    fs::create_dir_all(&directory)?;
    let url = format!("http://{}", environment.registry().address());
    let hosts = format!("server = {url:?}\n[host.{url:?}]\ncapabilities = [\"pull\", \"resolve\"]\n");
    Ok(fs::write(directory.join("hosts.toml"), hosts)?)
}

impl AgentContext {
    /// Starts a test environment, an agent and, if wanted, Consul.
    ///
    /// # Errors
    /// Fails if one of them does not come up.
    pub fn set(programs: Programs, nomad: &Path, plugin: &Path, consul: Option<&Path>) -> Result<Self> {
        let environment = TestEnvironment::start_of(programs)?;
        let directory = environment.directory().join("consul");
        let consul = consul.map(|binary| Consul::start_in(&directory, binary)).transpose()?;
        Self::beside(&environment, consul, nomad, plugin)
    }

    /// Starts an agent in a test environment that others may use before and after.
    ///
    /// # Errors
    /// Fails if the agent does not come up.
    pub fn on(environment: &Arc<TestEnvironment>, nomad: &Path, plugin: &Path) -> Result<Self> {
        Self::beside(environment, None, nomad, plugin)
    }

    fn beside(
        environment: &Arc<TestEnvironment>,
        consul: Option<Consul>,
        nomad: &Path,
        plugin: &Path,
    ) -> Result<Self> {
        let mut setup = setup(environment, Mode::Kept, nomad, plugin);
        setup.consul = consul
            .as_ref()
            .map(|consul| agent::Consul { address: consul.address(), grpc_address: consul.grpc_address() });
        setup.plugin_names = &[DRIVER, DOCKER];
        mirror_docker_hub(&setup, environment)?;
        // Nomad runs the program `consul` to set up a sidecar.
        setup.programs.extend(consul.as_ref().map(Consul::programs));
        let state_dir = setup.state_dir.clone();
        let agent = Agent::start(setup)?;
        agent.driver_becomes(true)?;
        agent.driver_of_becomes(DOCKER, true)?;
        let mut context = Self {
            agent,
            consul,
            environment: Arc::clone(environment),
            state_dir,
            before: Census::default(),
            jobs: Vec::new(),
            cgroups: Vec::new(),
            log_offset: 0,
        };
        context.before = context.leak_check().all();
        Ok(context)
    }

    /// Returns the image that most jobs run.
    pub fn busybox(&self) -> String {
        self.environment.image("busybox:latest")
    }

    /// Submits a job under a name of its own, and returns its allocation. `hcl` begins with a job of any name.
    ///
    /// # Errors
    /// Fails if Nomad refuses the job or doesn't place it.
    pub fn start(&mut self, name: &str, hcl: &str, variables: &[(&str, &str)]) -> Result<String> {
        self.submit(name, hcl, variables)?;
        Ok(self.allocations(name, 1)?.remove(0))
    }

    /// Waits until a job of [`Self::submit`] has this many allocations.
    ///
    /// # Errors
    /// Fails if they aren't placed in time.
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
    /// Fails if Nomad refuses the job.
    pub fn submit(&mut self, name: &str, hcl: &str, variables: &[(&str, &str)]) -> Result<()> {
        self.jobs.push(name.to_owned());
        self.agent.submit_as(name, hcl, variables)
    }

    /// Ends those of these jobs that were submitted, as the case's end does, and forgets them.
    ///
    /// # Errors
    /// Names the job that can't be ended.
    pub fn end(&mut self, names: &[&str]) -> Result<()> {
        let is_named = |job: &String| names.contains(&job.as_str());
        let (ended, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.jobs).into_iter().partition(is_named);
        self.jobs = others;
        self.agent.end_jobs(&ended)
    }

    /// Starts a job with one task, `main`, that runs a shell script.
    ///
    /// # Errors
    /// Fails as [`Self::start`] does.
    pub fn shell(&mut self, name: &str, script: &str) -> Result<String> {
        self.shell_with(name, script, &[])
    }

    /// Does the same as [`Self::shell`], with more variables.
    ///
    /// # Errors
    /// Fails as [`Self::start`] does.
    pub fn shell_with(&mut self, name: &str, script: &str, more: &[(&str, &str)]) -> Result<String> {
        let image = self.busybox();
        let mut variables = vec![("image", image.as_str()), ("script", script)];
        variables.extend(more);
        self.start(name, jobs::SHELL, &variables)
    }

    /// Returns the path on the host of `/alloc/data/<name>`.
    pub fn data(&self, id: &str, name: &str) -> PathBuf {
        self.agent.allocation_directory(id).join("alloc/data").join(name)
    }

    /// Waits for a task's script to make `/alloc/data/<name>`.
    ///
    /// # Errors
    /// Fails with the task's events.
    pub fn made(&self, id: &str, name: &str) -> Result<()> {
        let path = self.data(id, name);
        eventually(&format!("file {name}"), || Ok(path.exists())).with_context(|| {
            self.agent
                .allocation(id)
                .map_or_else(|error| error.to_string(), |allocation| allocation.summary())
        })
    }

    /// Ends a case: stops and forgets its jobs, restarts what it stopped, and asserts that nothing is left.
    ///
    /// # Errors
    /// Fails with everything that is left. It has been removed by force then, for the next case to start clean.
    pub fn clear(&mut self) -> Result<()> {
        let result = self.end_jobs().and_then(|()| self.leak_check().assert_nothing_left_within(CLEAN));
        if result.is_err() {
            sweep::processes_under(&self.state_dir);
            self.cgroups.iter().for_each(|group| sweep::cgroups(group));
            sweep::unmount_under(&self.state_dir);
            self.environment.networks().clear();
            sweep::records(self.environment.containerd());
            let _ = fs::remove_dir_all(&self.state_dir);
        }
        self.cgroups.clear();
        self.log_offset = fs::metadata(self.agent.log()).map_or(0, |log| log.len());
        result
    }

    fn end_jobs(&mut self) -> Result<()> {
        check_interrupt()?;
        self.environment.containerd().start()?;
        if !self.agent.is_alive() {
            self.agent.stop()?;
            self.agent.launch()?;
        }
        let jobs = std::mem::take(&mut self.jobs);
        self.agent.end_jobs(&jobs)?;
        self.agent.collect_logs_by("nomad")?;
        self.agent.share_shims_by("task")?;
        self.agent.driver_becomes(true).map(drop)
    }

    fn leak_check(&self) -> LeakCheck<'_> {
        LeakCheck {
            containerd: self.environment.containerd(),
            networks: self.environment.networks(),
            state_dir: &self.state_dir,
            cgroups: &self.cgroups,
            before: &self.before,
        }
    }

    /// Returns the lines of the agent's log since the last case that matter to a failure.
    pub fn agent_log(&self) -> String {
        lines_of_interest(&self.agent.log(), self.log_offset)
    }
}

impl Deref for AgentContext {
    type Target = Client;

    /// Returns the agent's client, for questions about tasks.
    fn deref(&self) -> &Client {
        &self.agent
    }
}
