//! A real Nomad agent with the plugin in its plugin directory: started, asked, killed, restarted, and taken down with all
//! that it leaves. Knows nothing of cases.
//!
//! Every process that the agent starts inherits a mark in its environment, by which those that outlive it are found.

mod allocation;
mod api;
pub mod command;
mod config;
mod residue;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

pub use allocation::{Allocation, Ended, Task};
use api::Api;
use config::Ports;
pub use config::{Consul, Mode, Networks, Setup};
pub use residue::{check_interrupt, take_down_all};

use crate::fixture::process::{Process, tail};
use crate::fixture::programs::path_with;
use crate::processes;
use command::{Output, run, run_well};
use residue::Residue;

pub const DRIVER: &str = "containerd-driver";
/// From the agent's start until its node can place jobs.
const READY: Duration = Duration::from_secs(60);
/// Any one thing asked of the agent.
const SOON: Duration = Duration::from_secs(30);

pub struct Agent {
    setup: Setup,
    ports: Ports,
    server_rpc: Option<u16>,
    /// Who is asked: the servers know everything.
    api: Api,
    own: Api,
    server: Option<Process>,
    process: Option<Process>,
    node: String,
    residue: Arc<Residue>,
}

/// What the agent's node says of the driver.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DriverHealth {
    pub healthy: bool,
    #[serde(default)]
    pub health_description: String,
    #[serde(default)]
    pub attributes: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    status: String,
    #[serde(default)]
    drivers: BTreeMap<String, DriverHealth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    check: String,
    status: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    address: String,
    port: u16,
}

#[derive(Deserialize)]
struct Stub {
    #[serde(rename = "ID")]
    id: String,
}

impl Agent {
    /// Starts an agent and waits until jobs can be placed on it.
    ///
    /// # Errors
    /// With the end of the agent's log.
    pub fn start(setup: Setup) -> Result<Self> {
        for directory in
            [setup.plugins(), setup.allocations(), setup.temporary(), setup.host_volume(), setup.cni()]
        {
            fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        }
        fs::write(setup.cni().join("described.conflist"), config::network(&setup.networks.described))?;
        let place = setup.plugins().join(DRIVER);
        fs::copy(&setup.plugin, &place).with_context(|| format!("copy {}", setup.plugin.display()))?;
        let residue = Residue::note(&setup.directory, setup.allocations());
        let (ports, server) = (Ports::choose()?, Ports::choose()?);
        let api = |ports: &Ports| Api::at(format!("127.0.0.1:{}", ports.http));
        let kept = setup.mode == Mode::Kept;
        let own = api(&ports);
        let servers = if kept { api(&server) } else { own.clone() };
        let (process, node, server_rpc) = (None, String::new(), kept.then_some(server.rpc));
        let mut agent =
            Self { setup, ports, server_rpc, api: servers, own, server: None, process, node, residue };
        agent.configure()?;
        if kept {
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

    /// What the driver's option `log_collection` says.
    pub fn collects_logs_by(&self) -> &'static str {
        self.setup.log_collection
    }

    /// Has the driver's logs be collected by `whom` from here on, which takes a restart where it was otherwise.
    ///
    /// # Errors
    /// With the end of the agent's log.
    pub fn collect_logs_by(&mut self, whom: &'static str) -> Result<()> {
        if self.setup.log_collection == whom {
            return Ok(());
        }
        self.setup.log_collection = whom;
        self.configure()?;
        self.stop()?;
        self.launch()?;
        self.driver_becomes(true).map(drop)
    }

    /// The processes that collect tasks' logs for the agent.
    pub fn collectors(&self) -> Vec<i32> {
        let is_one = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"logmon")
        };
        processes::running(&self.setup.nomad).into_iter().filter(is_one).collect()
    }

    fn launch_server(&mut self) -> Result<()> {
        let log = self.setup.directory.join("server.log");
        self.server = Some(self.spawn("server.hcl", &log)?);
        // Without its first key a server refuses every client.
        let keys = || {
            Ok(self
                .api
                .get::<Vec<serde_json::Value>>("/v1/operator/keyring/keys")
                .is_ok_and(|k| !k.is_empty()))
        };
        poll("server with a leader", READY, keys)
            .with_context(|| format!("the server's log ends:\n{}", tail(&log, 20)))
    }

    /// Starts the agent again after [`Self::stop`] or [`Self::kill`], and waits as [`Self::start`] does.
    ///
    /// # Errors
    /// With the end of the agent's log.
    pub fn launch(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        self.process = Some(self.spawn("client.hcl", &self.log())?);
        self.wait_ready().with_context(|| format!("the agent's log ends:\n{}", tail(&self.log(), 20)))
    }

    fn spawn(&self, file: &str, log: &Path) -> Result<Process> {
        check_interrupt()?;
        let mut command = Command::new(&self.setup.nomad);
        command.arg("agent");
        if self.setup.mode == Mode::Dev {
            command.arg("-dev");
        }
        command.arg("-config").arg(self.setup.directory.join(file)).current_dir(&self.setup.directory);
        command.env("TMPDIR", self.setup.temporary()).env(residue::MARK, &self.setup.directory);
        command.env("PATH", path_with(self.setup.programs.iter().map(PathBuf::as_path))?);
        // Nomad's cloud fingerprinters refuse to start with it.
        command.env_remove("AWS_CA_BUNDLE");
        Process::spawn("nomad", &mut command, log)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let mut node = String::new();
        poll("node", READY, || {
            ensure!(self.is_alive(), "the agent ended while it started");
            let nodes = self.api.get::<Vec<Stub>>("/v1/nodes").unwrap_or_default();
            if let [found] = &nodes[..] {
                node.clone_from(&found.id);
            }
            // The server knows the node from before; the agent itself must be up, too.
            Ok(!node.is_empty() && self.own.get::<serde_json::Value>("/v1/agent/health?type=client").is_ok())
        })?;
        self.node = node;
        let ready = |node: &Node| node.status == "ready";
        self.until("ready node", READY, &format!("/v1/node/{}", self.node), ready).map(drop)
    }

    /// Whether the process runs, and answers.
    pub fn is_alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::runs)
    }

    /// Ends the agent in order; the plugin goes with it.
    ///
    /// # Errors
    /// When it has to be killed.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        if process.runs() { process.stop() } else { Ok(()) }
    }

    /// SIGKILL to the agent alone: the plugin and the log collectors live on.
    pub fn kill(&mut self) {
        drop(self.process.take());
    }

    pub fn log(&self) -> PathBuf {
        self.setup.log()
    }

    /// The directory of an allocation on the host.
    pub fn allocation_directory(&self, id: &str) -> PathBuf {
        self.setup.allocations().join(id)
    }

    /// The directory of the host volume `shared`.
    pub fn host_volume(&self) -> PathBuf {
        self.setup.host_volume()
    }

    /// The plugin's pid.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn plugin(&self) -> Result<i32> {
        match processes::running(&self.setup.plugins().join(DRIVER))[..] {
            [pid] => Ok(pid),
            [] => bail!("no plugin runs"),
            ref several => bail!("several plugins run: {several:?}"),
        }
    }

    /// The driver's health on the node, as the servers know it.
    ///
    /// # Errors
    /// When the agent does not answer, or the node has no such driver.
    pub fn driver(&self) -> Result<DriverHealth> {
        let node: Node = self.api.get(&format!("/v1/node/{}", self.node))?;
        node.drivers.get(DRIVER).cloned().with_context(|| format!("the node has no driver {DRIVER}"))
    }

    /// Waits for the driver's health to be `healthy`.
    ///
    /// # Errors
    /// With what it was at last.
    pub fn driver_becomes(&self, healthy: bool) -> Result<DriverHealth> {
        let path = format!("/v1/node/{}", self.node);
        let what = if healthy { "a healthy driver" } else { "an unhealthy driver" };
        let is = |node: &Node| node.drivers.get(DRIVER).is_some_and(|driver| driver.healthy == healthy);
        self.until(what, READY, &path, is).map(|node| node.drivers[DRIVER].clone()).with_context(|| {
            let now = self.driver().map(|driver| driver.health_description);
            format!("the driver's health is {now:?}")
        })
    }

    /// A `nomad` command that talks to this agent.
    pub fn nomad(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.setup.nomad);
        command.args(arguments).env("NOMAD_ADDR", self.api.url()).env("NOMAD_CLI_NO_COLOR", "1");
        command
    }

    /// Runs a `nomad` command to its end, whatever that is.
    ///
    /// # Errors
    /// When it can't run, or takes too long.
    pub fn ask(&self, arguments: &[&str]) -> Result<Output> {
        run(&mut self.nomad(arguments), b"", SOON)
    }

    /// Runs a `nomad` command that must succeed.
    ///
    /// # Errors
    /// With what it said.
    pub fn tell(&self, arguments: &[&str]) -> Result<Output> {
        run_well(&mut self.nomad(arguments), b"", SOON)
    }

    /// Submits a job file's text, with its variables set.
    ///
    /// # Errors
    /// With what Nomad says of the job.
    pub fn submit(&self, hcl: &str, variables: &[(&str, &str)]) -> Result<()> {
        let mut command = self.nomad(&["job", "run", "-detach"]);
        for (name, value) in variables {
            command.arg("-var").arg(format!("{name}={value}"));
        }
        run_well(command.arg("-"), hcl.as_bytes(), SOON).map(drop)
    }

    /// Waits until a job has so many allocations, and returns their ids.
    ///
    /// # Errors
    /// When they aren't placed in time.
    pub fn placed(&self, job: &str, count: usize) -> Result<Vec<String>> {
        let path = format!("/v1/job/{job}/allocations");
        let placed =
            self.until("placed allocation", SOON, &path, |stubs: &Vec<Stub>| stubs.len() >= count)?;
        Ok(placed.into_iter().map(|stub| stub.id).collect())
    }

    /// A job's allocations, however they are.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn allocations_of(&self, job: &str) -> Result<Vec<String>> {
        let stubs: Vec<Stub> = self.api.get(&format!("/v1/job/{job}/allocations"))?;
        Ok(stubs.into_iter().map(|stub| stub.id).collect())
    }

    /// The allocation as it is now.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn allocation(&self, id: &str) -> Result<Allocation> {
        self.api.get(&format!("/v1/allocation/{id}"))
    }

    /// The states of an allocation's checks that Nomad makes itself, by the checks' names.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn checks(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let checks: BTreeMap<String, Check> = self.api.get(&format!("/v1/client/allocation/{id}/checks"))?;
        Ok(checks.into_values().map(|check| (check.check, check.status)).collect())
    }

    /// Where a service is to be found, from Nomad's own catalogue.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn service(&self, name: &str) -> Result<Vec<SocketAddr>> {
        let services: Vec<Service> = self.api.get(&format!("/v1/service/{name}"))?;
        services.iter().map(|service| Ok(SocketAddr::new(service.address.parse()?, service.port))).collect()
    }

    /// What an allocation uses of the machine, as the agent has it from the driver.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn usage(&self, id: &str) -> Result<serde_json::Value> {
        let stats: serde_json::Value = self.api.get(&format!("/v1/client/allocation/{id}/stats"))?;
        Ok(stats["ResourceUsage"].clone())
    }

    /// Waits until an allocation is as wanted.
    ///
    /// # Errors
    /// With all of its events, after `limit`.
    pub fn allocation_until(
        &self,
        id: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Allocation) -> bool,
    ) -> Result<Allocation> {
        let path = format!("/v1/allocation/{id}");
        self.until(what, limit, &path, wanted).with_context(|| match self.allocation(id) {
            Ok(allocation) => allocation.story(),
            Err(error) => format!("allocation {id} can't be read: {error:#}"),
        })
    }

    /// Watches what is at a path by blocking queries.
    fn until<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        limit: Duration,
        path: &str,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut index = 0;
        loop {
            let answer = self.api.get_after(path, index)?;
            if wanted(&answer.value) {
                return Ok(answer.value);
            }
            ensure!(Instant::now() < deadline, "no {what} after {} s", limit.as_secs());
            index = answer.index;
        }
    }

    /// What of the agent's own making is still there once it is down. Empty is good.
    pub fn residue(&self) -> Vec<String> {
        self.residue.found()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
        drop(self.server.take());
        self.residue.clear();
    }
}

/// Tries until it is so. For what nobody announces: a file, a process, an agent that comes up.
///
/// # Errors
/// After the limit, after an interrupt, and when `is` fails.
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

/// The plugin's and the agent's lines of a log from an offset on that matter to a failure's reader.
pub fn lines_of_interest(log: &Path, offset: u64) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let from = usize::try_from(offset).unwrap_or(0).min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[from..]);
    let matters = |line: &&str| line.contains(DRIVER) || line.contains("[WARN]") || line.contains("[ERROR]");
    let lines: Vec<_> = text.lines().filter(matters).collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
