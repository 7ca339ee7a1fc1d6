//! The server of a cluster, a Nomad agent without a client.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::client::{Client, READY};
use super::config::{self, Ports};
use super::poll;
use crate::fixture::process::{Process, tail};
use crate::fixture::registry::on_free_ports;
use crate::leaks::agent::{AgentLeaks, MARK};

/// How soon a server gives up a node that it doesn't hear from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heartbeats {
    /// Some ten seconds after the last heartbeat.
    Strict,
    /// After minutes. The allocations of an agent that comes back late, such as on a slow machine or after a reboot, are
    /// its own still.
    Lenient,
}

pub struct Server {
    address: String,
    ports: Ports,
    client: Client,
    process: Option<Process>,
    leaks: Arc<AgentLeaks>,
}

/// Waits until a server that was launched leads, and so can be asked.
///
/// # Errors
/// Fails if it ends instead, or doesn't come to lead, with the end of its log.
pub(super) fn until_it_leads(server: &mut Option<Process>, client: &Client, log: &Path) -> Result<()> {
    let leads = || {
        ensure!(server.as_mut().is_some_and(Process::runs), "the server ended while it started");
        Ok(client.server_has_keys())
    };
    poll("server with a leader", READY, leads)
        .with_context(|| format!("the server's log ends:\n{}", tail(log, 20)))
}

impl Server {
    /// Starts a server that keeps all it writes in a directory, and waits until clients can register.
    ///
    /// # Errors
    /// Carries the end of the server's log.
    pub fn start(nomad: &Path, directory: &Path, address: &str, heartbeats: Heartbeats) -> Result<Self> {
        fs::create_dir_all(directory)?;
        on_free_ports(|| Self::start_once(nomad, directory, address, heartbeats))
    }

    fn start_once(nomad: &Path, directory: &Path, address: &str, heartbeats: Heartbeats) -> Result<Self> {
        let leaks = AgentLeaks::note(directory, directory.join("alloc"));
        let ports = Ports::choose()?;
        let (file, log) = (directory.join("server.hcl"), directory.join("server.log"));
        fs::write(&file, config::cluster_server(directory, address, &ports, heartbeats))?;
        let mut command = Command::new(nomad);
        command.args(["agent", "-config"]).arg(file).env(MARK, directory).env_remove("AWS_CA_BUNDLE");
        let process = Some(Process::spawn("nomad", &mut command, &log)?);
        let http = format!("{address}:{}", ports.http);
        let client = Client::at(nomad.to_owned(), http.clone(), http);
        let mut server = Self { address: address.to_owned(), ports, client, process, leaks };
        until_it_leads(&mut server.process, &server.client, &log)?;
        Ok(server)
    }

    /// Returns the address and the port for clients.
    pub fn rpc(&self) -> String {
        format!("{}:{}", self.address, self.ports.rpc)
    }

    /// Returns the address and the port of the HTTP API.
    pub fn http(&self) -> String {
        format!("{}:{}", self.address, self.ports.http)
    }
}

impl Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.take());
        self.leaks.clear();
    }
}
