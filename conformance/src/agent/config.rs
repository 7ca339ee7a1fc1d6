//! The agents' configuration files.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::fixture::registry::free_port;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `nomad agent -dev`: keeps nothing, and ends every task when it stops.
    Dev,
    /// A server, and beside it a client agent with its state on disk: tasks outlive it. Two agents, since a client that
    /// comes up before its server has a leader tries again only after a quarter of a minute.
    Kept,
}

/// What an agent is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    pub mode: Mode,
    pub nomad: PathBuf,
    pub plugin: PathBuf,
    /// Everything the agent writes goes below it.
    pub directory: PathBuf,
    /// The driver's options.
    pub containerd_socket: PathBuf,
    pub state_dir: PathBuf,
}

/// Where the pieces of a [`Setup`] lie in its directory.
impl Setup {
    pub fn plugins(&self) -> PathBuf {
        self.directory.join("plugins")
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    pub fn allocations(&self) -> PathBuf {
        self.directory.join("alloc")
    }

    /// What the host volume `shared` is.
    pub fn host_volume(&self) -> PathBuf {
        self.directory.join("host-volume")
    }

    pub fn temporary(&self) -> PathBuf {
        self.directory.join("tmp")
    }
}

/// Where an agent listens. Free ports: other agents may run on the machine.
pub struct Ports {
    pub http: u16,
    pub rpc: u16,
    serf: u16,
}

impl Ports {
    /// # Errors
    /// When the machine has no free port.
    pub fn choose() -> Result<Self> {
        Ok(Self { http: free_port()?, rpc: free_port()?, serf: free_port()? })
    }
}

/// An agent with the driver; with `server`, the port of the server that it is a client of.
pub fn client(setup: &Setup, ports: &Ports, server: Option<u16>) -> String {
    let shown = |path: &Path| path.display().to_string();
    let at = |name: &str| shown(&setup.directory.join(name));
    let (data, servers) = match server {
        Some(port) => (at("client"), format!("servers = [\"127.0.0.1:{port}\"]")),
        None => (String::new(), String::new()),
    };
    common(ports, &data)
        + &format!(
            r#"plugin_dir = "{plugins}"

client {{
  enabled          = true
  alloc_dir        = "{allocations}"
  alloc_mounts_dir = "{mounts}"
  state_dir        = "{state}"
  cni_path         = "/usr/lib/cni"
  {servers}
  options = {{
    "fingerprint.denylist" = "env_aws,env_azure,env_gce,env_digitalocean"
    "driver.allowlist"     = "containerd-driver"
  }}

  host_volume "shared" {{
    path = "{host_volume}"
  }}
}}

# Without it Nomad asks no driver for a task's usage.
telemetry {{
  publish_allocation_metrics = true
}}

plugin "containerd-driver" {{
  config {{
    containerd_runtime = "io.containerd.runc.v2"
    containerd_socket  = "{socket}"
    state_dir          = "{driver_state}"
    allowed_modes {{
      pid      = ["host"]
      ipc      = ["host"]
      uts      = ["host"]
      cgroupns = ["host"]
      userns   = ["host"]
    }}
    gc {{
      dangling_containers {{
        creation_grace = "1h"
      }}
    }}
  }}
}}
"#,
            plugins = shown(&setup.plugins()),
            allocations = shown(&setup.allocations()),
            mounts = at("mounts"),
            state = at("client-state"),
            host_volume = shown(&setup.host_volume()),
            socket = shown(&setup.containerd_socket),
            driver_state = shown(&setup.state_dir),
        )
}

/// A server without a client. Tasks may have a maximum of memory above what they are allotted.
pub fn server(setup: &Setup, ports: &Ports) -> String {
    common(ports, &setup.directory.join("server").display().to_string())
        + r#"server {
  enabled          = true
  bootstrap_expect = 1

  default_scheduler_config {
    memory_oversubscription_enabled = true
  }
}
"#
}

fn common(Ports { http, rpc, serf }: &Ports, data: &str) -> String {
    let data = if data.is_empty() { String::new() } else { format!("data_dir = \"{data}\"") };
    format!(
        r#"bind_addr            = "127.0.0.1"
disable_update_check = true
log_level            = "DEBUG"
{data}

ports {{
  http = {http}
  rpc  = {rpc}
  serf = {serf}
}}

advertise {{
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}}

"#
    )
}
