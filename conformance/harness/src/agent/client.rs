//! The requests to an agent, by its HTTP API and by the `nomad` command. Doesn't know who started the agent.

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
use super::config::LOOPBACK;
use super::{DRIVER, SOON, poll};

/// Timeout from an agent's start until jobs can be placed on its node.
pub(crate) const READY: Duration = Duration::from_secs(60);

/// Client of the agent of one node, and of the servers, which know all of the cluster's state.
pub struct Client {
    /// Path of the `nomad` command.
    nomad: PathBuf,
    servers: Api,
    own: Api,
    node: String,
    /// Factor by which all timeouts are longer, for an agent on a slow machine.
    patience: u32,
}

/// The driver's health, as the agent's node reports it.
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
struct CsiVolume {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "CurrentWriters")]
    writers: usize,
}

#[derive(Deserialize)]
struct Stub {
    #[serde(rename = "ID")]
    id: String,
}

impl Client {
    /// Builds a client without a request. The ports are those of the HTTP APIs of the node's agent and of a server, on
    /// the loopback interface.
    pub fn new(nomad: PathBuf, own: u16, server: u16) -> Self {
        let at = |port: u16| format!("{LOOPBACK}:{port}");
        Self::at(nomad, at(own), at(server))
    }

    /// Does the same as [`Self::new`], for HTTP APIs at any addresses.
    pub(crate) fn at(nomad: PathBuf, own: String, server: String) -> Self {
        Self { nomad, servers: Api::at(server), own: Api::at(own), node: String::new(), patience: 1 }
    }

    /// Multiplies all timeouts by `patience`.
    pub fn with_patience(self, patience: u32) -> Self {
        Self { patience, ..self }
    }

    /// Returns the timeout of a single step.
    pub fn step_timeout(&self) -> Duration {
        SOON * self.patience
    }

    /// Polls until `is` returns true, within the timeout of a single step.
    ///
    /// # Errors
    /// Fails as [`poll`] does.
    pub fn eventually(&self, what: &str, is: impl FnMut() -> Result<bool>) -> Result<()> {
        poll(what, self.step_timeout(), is)
    }

    /// Returns whether the server has its first key. It refuses every client before that.
    pub fn server_has_keys(&self) -> bool {
        let keys = self.servers.get::<Vec<serde_json::Value>>("/v1/operator/keyring/keys");
        keys.is_ok_and(|keys| !keys.is_empty())
    }

    /// Waits until jobs can be placed on the node. `check` fails as soon as that can't come any more.
    ///
    /// # Errors
    /// Fails if `check` does, or after a minute.
    pub fn wait_ready(&mut self, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        let mut node = String::new();
        poll("node", READY * self.patience, || {
            check()?;
            // The server may know the node from an earlier agent; the agent itself must be up, too.
            let agent = self.own.get::<serde_json::Value>("/v1/agent/self").unwrap_or_default();
            agent["stats"]["client"]["node_id"].as_str().unwrap_or_default().clone_into(&mut node);
            let nodes = self.servers.get::<Vec<Stub>>("/v1/nodes").unwrap_or_default();
            let is_up = || self.own.get::<serde_json::Value>("/v1/agent/health?type=client").is_ok();
            Ok(nodes.iter().any(|known| known.id == node) && is_up())
        })?;
        self.node = node;
        let ready = |node: &Node| node.status == "ready";
        self.until("ready node", READY, &format!("/v1/node/{}", self.node), ready).map(drop)
    }

    /// Returns the node's id.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Returns the address and the port of the HTTP API of the node's own agent.
    pub fn own_http(&self) -> &str {
        self.own.address()
    }

    /// Waits until the servers give the node this status.
    ///
    /// # Errors
    /// Fails after a minute.
    pub fn node_becomes(&self, status: &str) -> Result<()> {
        let path = format!("/v1/node/{}", self.node);
        self.until(&format!("node that is {status}"), READY, &path, |node: &Node| node.status == status)
            .map(drop)
    }

    /// Returns the driver's health on the node, as the servers know it.
    ///
    /// # Errors
    /// Fails if the agent doesn't answer, or if the node has no such driver.
    pub fn driver(&self) -> Result<DriverHealth> {
        self.driver_of(DRIVER)
    }

    fn driver_of(&self, name: &str) -> Result<DriverHealth> {
        let node: Node = self.servers.get(&format!("/v1/node/{}", self.node))?;
        node.drivers.get(name).cloned().with_context(|| format!("the node has no driver {name}"))
    }

    /// Waits for the driver's health to be `healthy`.
    ///
    /// # Errors
    /// Carries the health at the time of the failure.
    pub fn driver_becomes(&self, healthy: bool) -> Result<DriverHealth> {
        self.driver_of_becomes(DRIVER, healthy)
    }

    /// Waits for the health of the driver of this name to be `healthy`.
    ///
    /// # Errors
    /// Carries the health at the time of the failure.
    pub fn driver_of_becomes(&self, name: &str, healthy: bool) -> Result<DriverHealth> {
        let what = if healthy { "a healthy driver" } else { "an unhealthy driver" };
        self.driver_of_until(name, what, |driver| driver.healthy == healthy)
    }

    /// Waits until `wanted` returns true for the driver of this name, as the servers know it.
    ///
    /// # Errors
    /// Carries the health at the time of the failure.
    pub fn driver_of_until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&DriverHealth) -> bool,
    ) -> Result<DriverHealth> {
        let path = format!("/v1/node/{}", self.node);
        let is = |node: &Node| node.drivers.get(name).is_some_and(&wanted);
        self.until(what, READY, &path, is).map(|node| node.drivers[name].clone()).with_context(|| {
            let now = self.driver_of(name).map(|driver| driver.health_description);
            format!("the driver's health is {now:?}")
        })
    }

    /// Returns a `nomad` command that talks to this agent.
    pub fn nomad(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.nomad);
        command.args(arguments).env("NOMAD_ADDR", self.servers.url()).env("NOMAD_CLI_NO_COLOR", "1");
        command
    }

    /// Runs a `nomad` command until it exits. A failed command is no error.
    ///
    /// # Errors
    /// Fails if the command can't be run, or takes too long.
    pub fn ask(&self, arguments: &[&str]) -> Result<Output> {
        run(&mut self.nomad(arguments), b"", self.step_timeout())
    }

    /// Runs a `nomad` command that must succeed.
    ///
    /// # Errors
    /// Carries the command's output.
    pub fn tell(&self, arguments: &[&str]) -> Result<Output> {
        run_well(&mut self.nomad(arguments), b"", self.step_timeout())
    }

    /// Submits a job file's text, with its variables set.
    ///
    /// # Errors
    /// Carries Nomad's message about the job.
    pub fn submit(&self, hcl: &str, variables: &[(&str, &str)]) -> Result<()> {
        let mut command = self.nomad(&["job", "run", "-detach"]);
        for (name, value) in variables {
            command.arg("-var").arg(format!("{name}={value}"));
        }
        run_well(command.arg("-"), hcl.as_bytes(), self.step_timeout()).map(drop)
    }

    /// Waits until a job has `count` allocations, and returns their ids.
    ///
    /// # Errors
    /// Fails if they aren't placed in time.
    pub fn placed(&self, job: &str, count: usize) -> Result<Vec<String>> {
        let path = format!("/v1/job/{job}/allocations");
        let placed =
            self.until("placed allocation", SOON, &path, |stubs: &Vec<Stub>| stubs.len() >= count)?;
        Ok(placed.into_iter().map(|stub| stub.id).collect())
    }

    /// Returns the ids of a job's allocations, in whatever state they are.
    ///
    /// # Errors
    /// Fails if the agent doesn't answer.
    pub fn allocations_of(&self, job: &str) -> Result<Vec<String>> {
        let stubs: Vec<Stub> = self.servers.get(&format!("/v1/job/{job}/allocations"))?;
        Ok(stubs.into_iter().map(|stub| stub.id).collect())
    }

    /// Returns the states of a job's allocations, all at the same time.
    ///
    /// # Errors
    /// Fails if the agent doesn't answer.
    pub fn states_of(&self, job: &str) -> Result<Vec<Allocation>> {
        self.servers.get(&format!("/v1/job/{job}/allocations"))
    }

    /// Returns the current state of an allocation.
    ///
    /// # Errors
    /// Fails if the agent doesn't answer.
    pub fn allocation(&self, id: &str) -> Result<Allocation> {
        self.servers.get(&format!("/v1/allocation/{id}"))
    }

    /// Returns the states of the checks of an allocation that Nomad runs itself, by the names of the checks.
    ///
    /// # Errors
    /// Fails if the agent doesn't answer.
    pub fn checks(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let checks: BTreeMap<String, Check> =
            self.servers.get(&format!("/v1/client/allocation/{id}/checks"))?;
        Ok(checks.into_values().map(|check| (check.check, check.status)).collect())
    }

    /// Returns the addresses of a service, from Nomad's own catalogue.
    ///
    /// # Errors
    /// Fails if the agent doesn't answer.
    pub fn service(&self, name: &str) -> Result<Vec<SocketAddr>> {
        let services: Vec<Service> = self.servers.get(&format!("/v1/service/{name}"))?;
        services.iter().map(|service| Ok(SocketAddr::new(service.address.parse()?, service.port))).collect()
    }

    /// Returns the number of allocations that may write a CSI volume.
    ///
    /// # Errors
    /// Fails if the agent doesn't answer, or if there is no such volume.
    pub fn csi_writers(&self, id: &str) -> Result<usize> {
        let volumes: Vec<CsiVolume> = self.servers.get("/v1/volumes?type=csi")?;
        let volume = volumes.iter().find(|volume| volume.id == id);
        volume.map(|volume| volume.writers).with_context(|| format!("no volume {id:?}"))
    }

    /// Returns the resource usage of an allocation, as the driver reports it to the agent.
    ///
    /// # Errors
    /// Fails if the agent doesn't answer.
    pub fn usage(&self, id: &str) -> Result<serde_json::Value> {
        let stats: serde_json::Value = self.servers.get(&format!("/v1/client/allocation/{id}/stats"))?;
        Ok(stats["ResourceUsage"].clone())
    }

    /// Waits until `wanted` returns true for an allocation.
    ///
    /// # Errors
    /// Fails after `limit`, with all events of the allocation.
    pub fn allocation_until(
        &self,
        id: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Allocation) -> bool,
    ) -> Result<Allocation> {
        let path = format!("/v1/allocation/{id}");
        self.until(what, limit, &path, wanted).with_context(|| match self.allocation(id) {
            Ok(allocation) => allocation.summary(),
            Err(error) => format!("allocation {id} can't be read: {error:#}"),
        })
    }

    /// Watches a path of the API by blocking queries until `wanted` returns true.
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
