//! What an agent is asked and told: by its HTTP API, and by the `nomad` command. Doesn't know who started it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::allocation::Allocation;
use super::api::Api;
use super::command::{Output, run, run_well};
use super::{DRIVER, SOON, poll};

/// From an agent's start until its node can place jobs.
pub const READY: Duration = Duration::from_secs(60);

/// The agent of one node, and the servers that know everything of it.
pub struct Client {
    /// The command.
    nomad: PathBuf,
    servers: Api,
    own: Api,
    node: String,
    /// By how much the agent may be slower than on a usual machine.
    patience: u32,
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

impl Client {
    /// Asks nobody yet. The ports are those of the HTTP APIs of the node's agent and of a server, on the loopback interface.
    pub fn new(nomad: PathBuf, own: u16, server: u16) -> Self {
        let api = |port: u16| Api::at(format!("127.0.0.1:{port}"));
        Self { nomad, servers: api(server), own: api(own), node: String::new(), patience: 1 }
    }

    /// Waits so many times as long for everything.
    pub fn with_patience(self, patience: u32) -> Self {
        Self { patience, ..self }
    }

    /// How long any one step may take.
    pub fn soon(&self) -> Duration {
        SOON * self.patience
    }

    /// Tries until it is so, for as long as any one step may take.
    ///
    /// # Errors
    /// As [`poll`].
    pub fn eventually(&self, what: &str, is: impl FnMut() -> Result<bool>) -> Result<()> {
        poll(what, self.soon(), is)
    }

    /// Whether the server has its first key. Without one it refuses every client.
    pub fn server_has_keys(&self) -> bool {
        let keys = self.servers.get::<Vec<serde_json::Value>>("/v1/operator/keyring/keys");
        keys.is_ok_and(|keys| !keys.is_empty())
    }

    /// Waits until jobs can be placed on the node. `check` fails as soon as that can't come any more.
    ///
    /// # Errors
    /// As `check`, and after a minute.
    pub fn wait_ready(&mut self, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        let mut node = String::new();
        poll("node", READY * self.patience, || {
            check()?;
            let nodes = self.servers.get::<Vec<Stub>>("/v1/nodes").unwrap_or_default();
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

    /// The driver's health on the node, as the servers know it.
    ///
    /// # Errors
    /// When the agent does not answer, or the node has no such driver.
    pub fn driver(&self) -> Result<DriverHealth> {
        let node: Node = self.servers.get(&format!("/v1/node/{}", self.node))?;
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
        let mut command = Command::new(&self.nomad);
        command.args(arguments).env("NOMAD_ADDR", self.servers.url()).env("NOMAD_CLI_NO_COLOR", "1");
        command
    }

    /// Runs a `nomad` command to its end, whatever that is.
    ///
    /// # Errors
    /// When it can't run, or takes too long.
    pub fn ask(&self, arguments: &[&str]) -> Result<Output> {
        run(&mut self.nomad(arguments), b"", self.soon())
    }

    /// Runs a `nomad` command that must succeed.
    ///
    /// # Errors
    /// With what it said.
    pub fn tell(&self, arguments: &[&str]) -> Result<Output> {
        run_well(&mut self.nomad(arguments), b"", self.soon())
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
        run_well(command.arg("-"), hcl.as_bytes(), self.soon()).map(drop)
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
        let stubs: Vec<Stub> = self.servers.get(&format!("/v1/job/{job}/allocations"))?;
        Ok(stubs.into_iter().map(|stub| stub.id).collect())
    }

    /// The allocation as it is now.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn allocation(&self, id: &str) -> Result<Allocation> {
        self.servers.get(&format!("/v1/allocation/{id}"))
    }

    /// The states of an allocation's checks that Nomad makes itself, by the checks' names.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn checks(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let checks: BTreeMap<String, Check> =
            self.servers.get(&format!("/v1/client/allocation/{id}/checks"))?;
        Ok(checks.into_values().map(|check| (check.check, check.status)).collect())
    }

    /// Where a service is to be found, from Nomad's own catalogue.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn service(&self, name: &str) -> Result<Vec<SocketAddr>> {
        let services: Vec<Service> = self.servers.get(&format!("/v1/service/{name}"))?;
        services.iter().map(|service| Ok(SocketAddr::new(service.address.parse()?, service.port))).collect()
    }

    /// What an allocation uses of the machine, as the agent has it from the driver.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn usage(&self, id: &str) -> Result<serde_json::Value> {
        let stats: serde_json::Value = self.servers.get(&format!("/v1/client/allocation/{id}/stats"))?;
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
        let limit = limit * self.patience;
        let deadline = Instant::now() + limit;
        let mut index = 0;
        loop {
            let answer = self.servers.get_after(path, index)?;
            if wanted(&answer.value) {
                return Ok(answer.value);
            }
            ensure!(Instant::now() < deadline, "no {what} after {} s", limit.as_secs());
            index = answer.index;
        }
    }
}
