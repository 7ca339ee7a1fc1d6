//! The objects of the checks: the units of this machine, the agent that is one of them, and a list of the jobs that a
//! check has started, so that its end can look for their leftovers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use harness::agent::config::{self, Ports};
use harness::agent::{Client, Mode, Networks, SHELL, Setup};
use harness::fixture::containerd::NAMESPACE;
use harness::fixture::network::Bridge;
use harness::leaks::census::{Census, daemon, machine};
use harness::processes;

use super::units::{self, AGENT, SERVER};
use super::{BUSYBOX, UNDER_TEST};
use crate::e2e::support::SCRIPT;

pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// The driver's default state directory.
pub const STATE_DIR: &str = "/run/containerd-driver";
const AGENT_DIRECTORY: &str = "/var/lib/nomad";
/// Directory of the agent's configuration files.
const CONFIGURATION: &str = "/etc/nomad.d";
/// Nomad's default ports.
const PORTS: Ports = Ports { http: 4646, rpc: 4647, serf: 4648 };
const SERVER_PORTS: Ports = Ports { http: 5646, rpc: 5647, serf: 5648 };
/// Kinds of a task's things in containerd; images and their content stay for the next task.
pub const RECORDS: [&str; 4] = ["container record", "lease", "active snapshot", "unfinished content"];
/// Parts of names that the census ignores: those of other units, which come and go, and that of each plugin's socket.
const FOREIGN: [&str; 4] = ["/system.slice/", "/user.slice/", "/systemd", "/plugin.sock"];
/// Directories below the state directory that come with the first task and stay. In the last one crun keeps compiled
/// seccomp filters.
const LASTING: [&str; 4] = ["nomad", "runc", "runc/nomad", "runc/nomad/.cache"];
const CRUNS_CACHE: &str = "runc/nomad/.cache/";
/// Factor for timeouts, since the machine is emulated in software on a machine that may be busy.
const PATIENCE: u32 = 4;

pub struct Site {
    pub client: Client,
    setup: Setup,
    before: Census,
    jobs: Vec<String>,
}

impl Site {
    /// Makes the units, starts them, and has systemd start them at each boot.
    ///
    /// # Errors
    /// Fails with what couldn't be made, or with the end of a unit's log.
    pub fn make() -> Result<Self> {
        let mut site = Self::on(setup());
        site.setup.lay_out()?;
        site.configure()?;
        let server = Path::new(AGENT_DIRECTORY).join("server.hcl");
        fs::write(&server, config::server(&site.setup, &SERVER_PORTS))?;
        units::install(SERVER, &units::server(&server))?;
        site.client
            .eventually("server with a leader", || Ok(site.client.server_has_keys()))
            .with_context(|| units::journal(SERVER, 10))?;
        units::install(AGENT, &units::agent(Path::new(CONFIGURATION)))?;
        site.settle()?;
        Ok(site)
    }

    /// Waits for the units that an earlier boot has made and systemd has started.
    ///
    /// # Errors
    /// Fails with the end of a unit's log.
    pub fn again() -> Result<Self> {
        let mut site = Self::on(setup());
        site.wait_ready()?;
        Ok(site)
    }

    fn on(setup: Setup) -> Self {
        let client = Client::new(setup.nomad.clone(), PORTS.http, SERVER_PORTS.http).with_patience(PATIENCE);
        Self { client, setup, before: Census::default(), jobs: Vec::new() }
    }

    fn configure(&self) -> Result<()> {
        fs::create_dir_all(CONFIGURATION)?;
        let client = config::client(&self.setup, &PORTS, Some(SERVER_PORTS.rpc));
        Ok(fs::write(Path::new(CONFIGURATION).join("client.hcl"), client)?)
    }

    /// Waits for an idle agent, and takes a census while no task runs.
    ///
    /// # Errors
    /// Fails with the end of the agent's log.
    pub fn settle(&mut self) -> Result<()> {
        self.wait_ready()?;
        self.before = self.census()?;
        Ok(())
    }

    /// Waits until jobs can be placed and the driver is healthy.
    ///
    /// # Errors
    /// Fails with the end of the agent's log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let is_up = || {
            let state = units::property(AGENT, "ActiveState")?;
            ensure!(state != "failed", "{AGENT} has failed");
            Ok(())
        };
        let ready = self.client.wait_ready(is_up).and_then(|()| self.client.driver_becomes(true));
        ready.map(drop).with_context(|| format!("{AGENT} said:\n{}", units::journal(AGENT, 20)))
    }

    /// Restarts the agent's unit with another OCI runtime for its tasks.
    ///
    /// # Errors
    /// Fails as [`Self::wait_ready`] does.
    pub fn use_runtime(&mut self, runtime: &str) -> Result<()> {
        runtime.clone_into(&mut self.setup.oci_runtime);
        self.configure()?;
        self.restart_agent()
    }

    /// Restarts the agent's unit with more options of the plugin.
    ///
    /// # Errors
    /// Fails as [`Self::wait_ready`] does.
    pub fn use_options(&mut self, options: &str) -> Result<()> {
        options.clone_into(&mut self.setup.plugin_options);
        self.configure()?;
        self.restart_agent()
    }

    /// Restarts the agent's unit, and waits until it is ready.
    ///
    /// # Errors
    /// Fails as [`Self::wait_ready`] does.
    pub fn restart_agent(&mut self) -> Result<()> {
        let before = units::main_process(AGENT)?;
        units::systemctl(&["restart", AGENT])?;
        ensure!(units::main_process(AGENT)? != before, "the agent goes on as process {before}");
        self.wait_ready()
    }

    /// Returns the plugin's pid.
    ///
    /// # Errors
    /// Fails if there is none, or more than one.
    pub fn plugin(&self) -> Result<i32> {
        match processes::running(&self.setup.plugins().join(harness::agent::DRIVER))[..] {
            [pid] => Ok(pid),
            ref pids => bail!("{} plugins run, not one: {pids:?}", pids.len()),
        }
    }

    /// Starts a job whose task prints a line and waits for SIGUSR1. Returns its allocation and the pid of its first
    /// process.
    ///
    /// # Errors
    /// Fails with the agent's account of the job.
    pub fn start(&mut self, name: &str, more_options: &str) -> Result<(String, i32)> {
        self.start_script(name, SCRIPT, more_options)
    }

    /// Does the same as [`Self::start`], with another script that prints the same line.
    ///
    /// # Errors
    /// Fails as [`Self::start`] does.
    pub fn start_script(&mut self, name: &str, script: &str, more_options: &str) -> Result<(String, i32)> {
        let last_line = "args    = [\"-c\", var.script]";
        let hcl = SHELL.replace(last_line, &format!("{last_line}\n{more_options}"));
        self.jobs.push(name.to_owned());
        self.client.submit_as(name, &hcl, &[("image", BUSYBOX), ("script", script)])?;
        let id = self.client.placed(name, 1)?.remove(0);
        self.client.running(&id, "main")?;
        self.client.logged(&id, "main", "before\n")?;
        let pid = self.client.pid(&id)?;
        Ok((id, pid))
    }

    /// Adds a job that is already there to those that the check's end stops.
    pub fn adopt(&mut self, job: &str) {
        self.jobs.push(job.to_owned());
    }

    /// Ends a check: stops and forgets its jobs, restores the agent, and asserts that nothing is left.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub fn clear(&mut self) -> Result<()> {
        let jobs = std::mem::take(&mut self.jobs);
        let is_usual = self.setup.oci_runtime.is_empty() && self.setup.plugin_options.is_empty();
        let changed = units::restore_agent()? || !is_usual;
        self.client.end_jobs(&jobs)?;
        if changed {
            self.setup.plugin_options.clear();
            self.use_runtime("")?;
        }
        let mut left = Vec::new();
        let clean = self.client.eventually("clean machine", || {
            left = self.census()?.since(&self.before).lines();
            left.retain(|line| {
                let file = line.strip_prefix(&format!("state file {STATE_DIR}/"));
                !file.is_some_and(|file| LASTING.contains(&file) || file.starts_with(CRUNS_CACHE))
            });
            Ok(left.is_empty())
        });
        clean.with_context(|| format!("left behind:\n  {}", left.join("\n  ")))
    }

    fn census(&self) -> Result<Census> {
        let mut census = machine::take(&[PathBuf::from(STATE_DIR)], &[])?;
        census.merge(records()?, "");
        Ok(census.without(&FOREIGN.map(str::to_owned)))
    }
}

/// Takes a census of tasks' things in containerd.
///
/// # Errors
/// Fails with what can't be listed.
pub fn records() -> Result<Census> {
    Ok(daemon::take(Path::new(CONTAINERD_SOCKET), Some(NAMESPACE))?.only(&RECORDS))
}

fn setup() -> Setup {
    let bridge = |name: &str, subnet: &str| Bridge { name: name.to_owned(), subnet: subnet.to_owned() };
    Setup {
        mode: Mode::Kept,
        nomad: Path::new(UNDER_TEST).join("nomad"),
        plugin: Path::new(UNDER_TEST).join(harness::agent::DRIVER),
        directory: AGENT_DIRECTORY.into(),
        containerd_socket: CONTAINERD_SOCKET.into(),
        containerd_runtime: "io.containerd.runc.v2".to_owned(),
        oci_runtime: String::new(),
        cni_plugins: "/usr/lib/cni".into(),
        state_dir: STATE_DIR.into(),
        networks: Networks {
            tasks: bridge("tasks0", "172.26.64.0/20"),
            docker: bridge("docker0", "172.26.144.0/20"),
            tasks_ipv6: "fd00:10:201:1::/64".to_owned(),
            groups: bridge("groups0", "172.26.96.0/20"),
            described: bridge("described0", "172.26.128.0/20"),
            near: None,
        },
        programs: Vec::new(),
        log_collection: "nomad",
        shim_sharing: "task",
        registry_config_dir: String::new(),
        consul: None,
        place: None,
        plugin_names: &[harness::agent::DRIVER],
        dockerd: None,
        foreign_options: None,
        plugin_options: String::new(),
        docker_options: String::new(),
        image_gc: true,
        dangling_containers: config::DANGLING_KEPT,
        log_level: config::DEBUG,
        variables: Vec::new(),
    }
}
