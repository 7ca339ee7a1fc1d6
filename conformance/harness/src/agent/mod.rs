//! Runs a real Nomad agent with the plugin in its plugin directory: starts, queries, kills and restarts it, and takes
//! it down with all that it leaves. Knows nothing of cases.
//!
//! Every process that the agent starts inherits a variable in its environment, by which those that outlive it are
//! found.

mod allocation;
mod api;
mod client;
pub mod command;
pub mod config;
pub mod job_api;
mod server;
mod tasks;

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use allocation::{Allocation, Ended};
pub use client::Client;
use config::Ports;
pub use config::{Consul, Mode, Networks, Place, Setup};
pub use job_api::JobApi;
use server::until_it_leads;
pub use server::{Heartbeats, Server};
pub use tasks::{SHELL, eventually};

use crate::fixture::network::within;
use crate::fixture::process::{Process, tail};
use crate::fixture::programs::path_with;
use crate::fixture::registry::on_free_ports;
pub use crate::leaks::agent::take_down_all;
use crate::leaks::agent::{AgentLeaks, MARK, check_interrupt};
use crate::processes;

pub const DRIVER: &str = "containerd-driver";
/// The driver's other name, in the place of Nomad's own docker driver.
pub const DOCKER: &str = "docker";
/// Timeout of any single step of a task's life, and of any single request to the agent. Far above what it takes, far
/// below what a person would wait.
pub const SOON: Duration = Duration::from_secs(30);

pub struct Agent {
    setup: Setup,
    ports: Ports,
    server_rpc: Option<u16>,
    /// The client for requests. It asks the servers, which know all of the cluster's state.
    client: Client,
    server: Option<Process>,
    process: Option<Process>,
    leaks: Arc<AgentLeaks>,
}

impl Agent {
    /// Starts an agent and waits until jobs can be placed on it.
    ///
    /// # Errors
    /// Carries the end of the agent's log.
    pub fn start(setup: Setup) -> Result<Self> {
        setup.lay_out()?;
        on_free_ports(move || Self::start_once(setup.clone()))
    }

    fn start_once(setup: Setup) -> Result<Self> {
        let leaks = AgentLeaks::note(&setup.directory, setup.allocations());
        let (ports, server) = (Ports::choose()?, Ports::choose()?);
        let has_own_server = setup.mode == Mode::Kept && setup.place.is_none();
        let http = if has_own_server { &server } else { &ports };
        let client = match &setup.place {
            Some(place) => {
                let own = format!("{}:{}", place.address, ports.http);
                Client::at(setup.nomad.clone(), own, place.server_http.clone())
            }
            None => Client::new(setup.nomad.clone(), ports.http, http.http),
        };
        let (process, server_rpc) = (None, has_own_server.then_some(server.rpc));
        let mut agent = Self { setup, ports, server_rpc, client, server: None, process, leaks };
        agent.configure()?;
        if has_own_server {
            fs::write(agent.setup.directory.join("server.hcl"), config::server(&agent.setup, &server))?;
            agent.launch_server()?;
        }
        agent.launch()?;
        Ok(agent)
    }

    fn configure(&self) -> Result<()> {
        let text = config::client(&self.setup, &self.ports, self.server_rpc);
        Ok(fs::write(self.setup.directory.join("client.hcl"), text)?)
    }

    /// Returns the value of the driver's option `log_collection`.
    pub fn collects_logs_by(&self) -> &'static str {
        self.setup.log_collection
    }

    /// Sets the driver's option `log_collection`. Restarts the agent if the value changes.
    ///
    /// # Errors
    /// Carries the end of the agent's log.
    pub fn collect_logs_by(&mut self, whom: &'static str) -> Result<()> {
        if self.setup.log_collection == whom {
            return Ok(());
        }
        self.setup.log_collection = whom;
        self.restart_configured()
    }

    /// Sets the driver's option `shim_sharing`. Restarts the agent if the value changes.
    ///
    /// # Errors
    /// Carries the end of the agent's log.
    pub fn share_shims_by(&mut self, whom: &'static str) -> Result<()> {
        if self.setup.shim_sharing == whom {
            return Ok(());
        }
        self.setup.shim_sharing = whom;
        self.restart_configured()
    }

    fn restart_configured(&mut self) -> Result<()> {
        self.configure()?;
        self.stop()?;
        self.launch()?;
        self.driver_becomes(true).map(drop)
    }

    /// Returns the pids of the agent's log collectors (logmon).
    pub fn collectors(&self) -> Vec<i32> {
        processes::running(&self.setup.nomad).into_iter().filter(|pid| is_told(*pid, "logmon")).collect()
    }

    /// Ends the processes by which Nomad's own docker driver reads the output of its tasks, and returns how many there
    /// were. They outlive an agent, also one that comes back with another driver.
    ///
    /// # Errors
    /// Fails if one doesn't end.
    pub fn end_docker_loggers(&self) -> Result<usize> {
        let loggers: Vec<_> =
            self.leaks.processes().into_iter().filter(|pid| is_told(*pid, "docker_logger")).collect();
        for logger in &loggers {
            // One may have ended by itself.
            let _ = kill(Pid::from_raw(*logger), Signal::SIGTERM);
        }
        poll("end of docker's loggers", SOON, || {
            Ok(loggers.iter().all(|logger| !processes::alive(*logger)))
        })?;
        Ok(loggers.len())
    }

    /// Changes the setup of an agent that is stopped, for its next start: its configuration, and where the plugin is.
    ///
    /// # Errors
    /// Names the file that can't be written. If the agent runs.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Setup)) -> Result<()> {
        ensure!(self.process.is_none(), "the agent runs");
        change(&mut self.setup);
        self.setup.lay_out()?;
        self.configure()
    }

    fn launch_server(&mut self) -> Result<()> {
        let log = self.setup.directory.join("server.log");
        self.server = Some(self.spawn("server.hcl", &log)?);
        until_it_leads(&mut self.server, &self.client, &log)
    }

    /// Starts the agent again after [`Self::stop`] or [`Self::kill`], and waits as [`Self::start`] does.
    ///
    /// # Errors
    /// Carries the end of the agent's log.
    pub fn launch(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        self.process = Some(self.spawn("client.hcl", &self.log())?);
        let (process, client) = (&mut self.process, &mut self.client);
        let runs = || {
            ensure!(process.as_mut().is_some_and(Process::runs), "the agent ended while it started");
            Ok(())
        };
        let log = self.setup.log();
        client.wait_ready(runs).with_context(|| format!("the agent's log ends:\n{}", tail(&log, 20)))
    }

    fn spawn(&self, file: &str, log: &Path) -> Result<Process> {
        check_interrupt()?;
        let mut command = match &self.setup.place {
            Some(place) => within(&place.namespace, &self.setup.nomad),
            None => Command::new(&self.setup.nomad),
        };
        command.arg("agent");
        if self.setup.mode == Mode::Dev {
            command.arg("-dev");
        }
        command.arg("-config").arg(self.setup.directory.join(file)).current_dir(&self.setup.directory);
        command.env("TMPDIR", self.setup.temporary()).env(MARK, &self.setup.directory);
        command.env("PATH", path_with(self.setup.programs.iter().map(PathBuf::as_path))?);
        command.envs(self.setup.variables.iter().map(|(name, value)| (name, value)));
        // Nomad's cloud fingerprinters refuse to start if the variable is set.
        command.env_remove("AWS_CA_BUNDLE");
        Process::spawn("nomad", &mut command, log)
    }

    /// Returns whether the agent's process runs.
    pub fn is_alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::runs)
    }

    /// Stops the agent gracefully. The plugin is ended with it.
    ///
    /// # Errors
    /// Fails if the agent has to be killed.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        if process.runs() { process.stop() } else { Ok(()) }
    }

    /// Kills the agent's process only: the plugin and the log collectors live on.
    pub fn kill(&mut self) {
        drop(self.process.take());
    }

    /// Kills the plugin's process only.
    ///
    /// # Errors
    /// Fails if no plugin runs.
    pub fn kill_plugin(&self) -> Result<()> {
        let plugin = self.plugin()?;
        kill(Pid::from_raw(plugin), Signal::SIGKILL)?;
        poll("end of the plugin", SOON, || Ok(!processes::alive(plugin)))
    }

    pub fn log(&self) -> PathBuf {
        self.setup.log()
    }

    /// Returns the directory of an allocation on the host.
    pub fn allocation_directory(&self, id: &str) -> PathBuf {
        self.setup.allocations().join(id)
    }

    /// Returns the directory of the host volume `shared`.
    pub fn host_volume(&self) -> PathBuf {
        self.setup.host_volume()
    }

    /// Returns the plugin's pid.
    ///
    /// # Errors
    /// Fails if no plugin runs, or more than one.
    pub fn plugin(&self) -> Result<i32> {
        self.plugin_of(DRIVER)
    }

    /// Returns the pid of the plugin of this name.
    ///
    /// # Errors
    /// Fails if no such plugin runs, or more than one.
    pub fn plugin_of(&self, name: &str) -> Result<i32> {
        match processes::running(&self.setup.plugins().join(name))[..] {
            [pid] => Ok(pid),
            [] => bail!("no plugin runs"),
            ref several => bail!("several plugins run: {several:?}"),
        }
    }

    /// Returns what the agent itself has left behind once it is down. Should be empty.
    pub fn leaks(&self) -> Vec<String> {
        self.leaks.found()
    }
}

impl Deref for Agent {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
        drop(self.server.take());
        self.leaks.clear();
    }
}

/// Returns whether a process has this word in its command line.
fn is_told(pid: i32, word: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|found| found == word.as_bytes())
}

/// Polls until `is` returns true. For conditions that nobody announces: a file, a process, an agent that comes up.
///
/// # Errors
/// Fails after `limit`, after an interrupt, and if `is` fails.
pub fn poll(what: &str, limit: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        check_interrupt()?;
        if is()? {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no {what} after {} s", limit.as_secs());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the last lines of a log, from an offset on, that help with a failure: the plugin's lines, and the agent's
/// warnings and errors.
pub fn lines_of_interest(log: &Path, offset: u64) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let from = usize::try_from(offset).unwrap_or(0).min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[from..]);
    let matters = |line: &&str| {
        line.contains(DRIVER)
            || line.contains("driver=docker")
            || line.contains("[WARN]")
            || line.contains("[ERROR]")
    };
    let lines: Vec<_> = text.lines().filter(matters).collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
