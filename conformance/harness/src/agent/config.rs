//! Writes the agents' configuration files, and that of the network `cni/described` that jobs use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{DOCKER, DRIVER, Heartbeats};
use crate::fixture::network::Bridge;
use crate::fixture::registry::free_port;
use crate::leaks::report::DOCKERS_STATE;

/// The value of [`Setup::dangling_containers`] by which no case meets a removal of what it makes.
pub const DANGLING_KEPT: &str = "creation_grace = \"1h\"";

/// The log level of an agent whose log is shown when a case fails.
pub const DEBUG: &str = "DEBUG";

pub(crate) const LOOPBACK: &str = "127.0.0.1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// An agent by `nomad agent -dev`: it keeps no state, and ends every task when it stops.
    Dev,
    /// A server and a separate client agent with state on disk, which tasks outlive. They are two agents, since a
    /// client that comes up before its server has a leader retries only after 15 seconds.
    Kept,
}

/// The settings of an agent.
#[derive(Debug, Clone)]
pub struct Setup {
    pub mode: Mode,
    pub nomad: PathBuf,
    pub plugin: PathBuf,
    /// Root directory of all that the agent writes.
    pub directory: PathBuf,
    /// Socket of containerd, an option of the driver like the two below.
    pub containerd_socket: PathBuf,
    pub containerd_runtime: String,
    pub oci_runtime: String,
    /// Directory of the CNI plugins, for the agent and the driver.
    pub cni_plugins: PathBuf,
    pub state_dir: PathBuf,
    pub networks: Networks,
    /// Directories that come first in the PATH of the agent and its drivers.
    pub programs: Vec<PathBuf>,
    pub log_collection: &'static str,
    pub shim_sharing: &'static str,
    /// Directory of the configuration of registry hosts. Empty for the driver's default.
    pub registry_config_dir: String,
    pub consul: Option<Consul>,
    /// The node's place in a cluster, whose server is another's. `None` for an agent alone on the loopback interface.
    pub place: Option<Place>,
    /// The names under which the plugin is there, of [`DRIVER`] and [`DOCKER`].
    pub plugin_names: &'static [&'static str],
    /// Socket of a dockerd, for which Nomad's own docker driver runs. No plugin is there under its name then.
    pub dockerd: Option<PathBuf>,
    /// All of the options in the block of the plugin `containerd-driver`, if that is another driver of this name.
    pub foreign_options: Option<String>,
    /// More of the options in the block of the plugin `containerd-driver`.
    pub plugin_options: String,
    /// More of the options in the block of the plugin `docker`.
    pub docker_options: String,
    /// Whether this driver and docker's remove unused images.
    pub image_gc: bool,
    /// Options of the plugin in its block `gc { dangling_containers { .. } }`.
    pub dangling_containers: &'static str,
    /// Nomad's name of the level from which on the agent logs.
    pub log_level: &'static str,
    /// Variables of the agent's environment, which its plugins inherit.
    pub variables: Vec<(&'static str, PathBuf)>,
}

/// The place of a node in a cluster of one machine.
#[derive(Debug, Clone)]
pub struct Place {
    /// Name of the node.
    pub name: String,
    /// Path of the network namespace in which the agent and all that it starts run.
    pub namespace: PathBuf,
    /// Address of the interface `eth0` in the namespace.
    pub address: String,
    /// Address and RPC port of the server, and those of its HTTP API.
    pub server: String,
    pub server_http: String,
}

/// The Consul agent that services are registered with.
#[derive(Debug, Clone)]
pub struct Consul {
    pub address: String,
    pub(crate) grpc_address: String,
}

/// The networks of the test environment that the agent uses.
#[derive(Debug, Clone)]
pub struct Networks {
    /// Bridge of tasks with a network of their own.
    pub tasks: Bridge,
    pub tasks_ipv6: String,
    /// Bridge of tasks with a network of their own, of the driver under the name `docker`.
    pub docker: Bridge,
    /// Bridge of groups in bridge mode.
    pub groups: Bridge,
    /// Bridge of the network `cni/described`.
    pub described: Bridge,
    /// Interface of the host network `near`. `None` if the kernel has no bridges.
    pub near: Option<String>,
}

/// The layout of the directory of a [`Setup`].
impl Setup {
    /// Creates the directories, and puts the configuration of the network `cni/described` and the plugin into them, the
    /// plugin under its names alone.
    ///
    /// # Errors
    /// Names the file that can't be written.
    pub fn lay_out(&self) -> Result<()> {
        for directory in
            [self.plugins(), self.allocations(), self.temporary(), self.host_volume(), self.cni()]
        {
            fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        }
        fs::write(self.cni().join("described.conflist"), network(&self.networks.described))?;
        for name in [DRIVER, DOCKER] {
            let place = self.plugins().join(name);
            if self.plugin_names.contains(&name) {
                fs::copy(&self.plugin, &place).with_context(|| format!("copy {}", self.plugin.display()))?;
            } else if place.exists() {
                fs::remove_file(&place).with_context(|| format!("remove {}", place.display()))?;
            }
        }
        Ok(())
    }

    /// Returns the names of the node's drivers.
    fn drivers(&self) -> Vec<&'static str> {
        self.plugin_names.iter().copied().chain(self.dockerd.as_ref().map(|_| DOCKER)).collect()
    }

    pub fn plugins(&self) -> PathBuf {
        self.directory.join("plugins")
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    pub fn allocations(&self) -> PathBuf {
        self.directory.join("alloc")
    }

    /// Returns the directory of the host volume `shared`.
    pub fn host_volume(&self) -> PathBuf {
        self.directory.join("host-volume")
    }

    /// Returns the directory of the configuration of registry hosts of the driver under the name `docker`.
    pub fn dockers_hosts(&self) -> PathBuf {
        self.directory.join("certs.d")
    }

    /// Returns the directory of CNI network configurations.
    pub fn cni(&self) -> PathBuf {
        self.directory.join("cni")
    }

    pub fn temporary(&self) -> PathBuf {
        self.directory.join("tmp")
    }
}

/// The ports of an agent. Free ones are chosen, since other agents may run on the machine.
pub struct Ports {
    pub http: u16,
    pub rpc: u16,
    pub serf: u16,
}

impl Ports {
    /// # Errors
    /// Fails if the machine has no free port.
    pub fn choose() -> Result<Self> {
        Ok(Self { http: free_port()?, rpc: free_port()?, serf: free_port()? })
    }
}

/// Returns the configuration of an agent with the driver. `server` is the RPC port of its server, if that is another
/// agent.
pub fn client(setup: &Setup, ports: &Ports, server: Option<u16>) -> String {
    let shown = |path: &Path| path.display().to_string();
    let at = |name: &str| shown(&setup.directory.join(name));
    let server = match (&setup.place, server) {
        (Some(place), _) => Some(place.server.clone()),
        (None, port) => port.map(|port| format!("{LOOPBACK}:{port}")),
    };
    let (data, servers) = match server {
        Some(server) => (at("client"), format!("servers = [\"{server}\"]")),
        None => (String::new(), String::new()),
    };
    let (address, interface) = match &setup.place {
        Some(place) => (&*place.address, "eth0"),
        None => (LOOPBACK, "lo"),
    };
    let name = setup.place.as_ref().map(|place| format!("name = \"{}\"\n", place.name)).unwrap_or_default();
    let near = setup.networks.near.as_deref().map(near).unwrap_or_default();
    common(address, setup.consul.as_ref(), ports, &data, setup.log_level)
        + &name
        + &format!(
            r#"plugin_dir = "{plugins}"

client {{
  enabled          = true
  alloc_dir        = "{allocations}"
  alloc_mounts_dir = "{mounts}"
  state_dir        = "{state}"
  cni_path         = "{cni_plugins}"
  cni_config_dir   = "{cni}"
  {servers}

  # However full this machine's disk is: else the allocations that have ended go at once, and their logs with them.
  gc_disk_usage_threshold  = 100
  gc_inode_usage_threshold = 100
  gc_max_allocs            = 1000

  # Ports are those of this interface, but for those that jobs want on the host network "near".
  network_interface = "{interface}"
  {near}
  bridge_network_name   = "{groups}"
  bridge_network_subnet = "{groups_subnet}"

  options = {{
    "fingerprint.denylist" = "env_aws,env_azure,env_gce,env_digitalocean"
    "driver.allowlist"     = "{drivers}"
  }}

  host_volume "shared" {{
    path = "{host_volume}"
  }}
}}

# Without it Nomad asks no driver for a task's usage.
telemetry {{
  publish_allocation_metrics = true
}}
"#,
            drivers = setup.drivers().join(","),
            plugins = shown(&setup.plugins()),
            allocations = shown(&setup.allocations()),
            mounts = at("mounts"),
            state = at("client-state"),
            cni = shown(&setup.cni()),
            cni_plugins = shown(&setup.cni_plugins),
            groups = setup.networks.groups.name,
            groups_subnet = setup.networks.groups.subnet,
            host_volume = shown(&setup.host_volume()),
        )
        + &plugins(setup)
}

/// Returns the blocks of the drivers in the agent's configuration.
fn plugins(setup: &Setup) -> String {
    let of_plugin = |name: &&str| match &setup.foreign_options {
        _ if *name == DOCKER => docker(setup),
        Some(options) => format!("\nplugin \"{DRIVER}\" {{\n  config {{\n{options}\n  }}\n}}\n"),
        None => plugin(setup),
    };
    let of_dockerd = setup.dockerd.iter().map(|socket| dockers_own(socket, setup));
    setup.plugin_names.iter().map(of_plugin).chain(of_dockerd).collect()
}

/// Returns the block of the plugin `containerd-driver`.
fn plugin(setup: &Setup) -> String {
    let shown = |path: &Path| path.display().to_string();
    format!(
        r#"
plugin "containerd-driver" {{
  config {{
    containerd_runtime = "{containerd_runtime}"
    oci_runtime        = "{oci_runtime}"
    containerd_socket  = "{socket}"
    state_dir          = "{driver_state}"
    cni_path           = "{cni_plugins}"
    cni_config_dir     = "{cni}"
    log_collection     = "{log_collection}"
    {registries}
    {sharing}
    {more}

    bridge_network_name        = "{tasks}"
    bridge_network_subnet      = "{tasks_subnet}"
    bridge_network_subnet_ipv6 = "{tasks_subnet_ipv6}"

    allowed_modes {{
      pid      = ["host"]
      ipc      = ["host"]
      uts      = ["host"]
      cgroupns = ["host"]
      userns   = ["host"]
    }}
    gc {{
      image = {image_gc}
      dangling_containers {{
        {dangling}
      }}
    }}
  }}
}}
"#,
        image_gc = setup.image_gc,
        dangling = setup.dangling_containers,
        containerd_runtime = setup.containerd_runtime,
        oci_runtime = setup.oci_runtime,
        cni = shown(&setup.cni()),
        cni_plugins = shown(&setup.cni_plugins),
        log_collection = setup.log_collection,
        registries = Some(&setup.registry_config_dir)
            .filter(|directory| !directory.is_empty())
            .map(|directory| format!("registry_config_dir = \"{directory}\""))
            .unwrap_or_default(),
        // No build from before that option knows it.
        sharing = match setup.shim_sharing {
            "task" => String::new(),
            whom => format!("shim_sharing = {whom:?}"),
        },
        more = setup.plugin_options,
        tasks = setup.networks.tasks.name,
        tasks_subnet = setup.networks.tasks.subnet,
        tasks_subnet_ipv6 = setup.networks.tasks_ipv6,
        socket = shown(&setup.containerd_socket),
        driver_state = shown(&setup.state_dir),
    )
}

/// Returns the block of the plugin `docker`: what an operator of docker's driver would write, and what keeps it within
/// the test environment.
fn docker(setup: &Setup) -> String {
    let shown = |path: &Path| path.display().to_string();
    format!(
        r#"
plugin "docker" {{
  config {{
    containerd_runtime = "{containerd_runtime}"
    oci_runtime        = "{oci_runtime}"
    containerd_socket  = "{socket}"
    state_dir          = "{driver_state}"
    cni_path           = "{cni_plugins}"
    cni_config_dir     = "{cni}"
    registry_config_dir = "{hosts}"

    bridge_network_name   = "{bridge}"
    bridge_network_subnet = "{subnet}"

{options}
  }}
}}
"#,
        options = dockers_options(setup.dangling_containers, setup),
        containerd_runtime = setup.containerd_runtime,
        oci_runtime = setup.oci_runtime,
        socket = shown(&setup.containerd_socket),
        driver_state = shown(&setup.state_dir.join(DOCKERS_STATE)),
        cni_plugins = shown(&setup.cni_plugins),
        cni = shown(&setup.cni()),
        hosts = shown(&setup.dockers_hosts()),
        bridge = setup.networks.docker.name,
        subnet = setup.networks.docker.subnet,
    )
}

/// Returns the block of Nomad's own docker driver.
fn dockers_own(socket: &Path, setup: &Setup) -> String {
    format!(
        r#"
plugin "docker" {{
  config {{
    endpoint = "unix://{socket}"

{options}
  }}
}}
"#,
        socket = socket.display(),
        // Less than a minute is refused.
        options = dockers_options(DANGLING_KEPT, setup),
    )
}

/// Returns the options of docker's driver, whoever answers as it, by which jobs may have what they ask for.
fn dockers_options(dangling: &str, setup: &Setup) -> String {
    let (image_gc, more) = (setup.image_gc, &setup.docker_options);
    format!(
        r#"    allow_privileged = true
    volumes {{
      enabled = true
    }}
    gc {{
      image = {image_gc}
      dangling_containers {{
        {dangling}
      }}
    }}
    {more}"#
    )
}

fn near(interface: &str) -> String {
    format!("host_network \"near\" {{\n    interface = \"{interface}\"\n  }}")
}

/// Returns a network configuration as an operator writes it for `network { mode = "cni/described" }`.
fn network(Bridge { name, subnet }: &Bridge) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "described",
        "plugins": [
            { "type": "loopback" },
            {
                "type": "bridge",
                "bridge": name,
                "isGateway": true,
                "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": subnet }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "firewall", "backend": "iptables" },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
        ],
    })
    .to_string()
}

/// Returns the configuration of a server without a client. Memory oversubscription is enabled: tasks may have a memory
/// maximum above their reservation.
pub fn server(setup: &Setup, ports: &Ports) -> String {
    let data = setup.directory.join("server").display().to_string();
    common(LOOPBACK, setup.consul.as_ref(), ports, &data, setup.log_level)
        + &server_block(Heartbeats::Lenient)
}

/// Returns the configuration of a server for the nodes of a cluster.
pub(crate) fn cluster_server(
    directory: &Path,
    address: &str,
    ports: &Ports,
    heartbeats: Heartbeats,
) -> String {
    let data = directory.join("server").display().to_string();
    common(address, None, ports, &data, DEBUG) + &server_block(heartbeats)
}

fn server_block(heartbeats: Heartbeats) -> String {
    let heartbeat = match heartbeats {
        Heartbeats::Strict => "min_heartbeat_ttl = \"3s\"\n  heartbeat_grace   = \"6s\"",
        Heartbeats::Lenient => "heartbeat_grace = \"5m\"",
    };
    format!(
        r#"server {{
  enabled          = true
  bootstrap_expect = 1

  {heartbeat}

  default_scheduler_config {{
    memory_oversubscription_enabled = true
  }}
}}
"#
    )
}

fn common(
    address: &str,
    with: Option<&Consul>,
    Ports { http, rpc, serf }: &Ports,
    data: &str,
    log_level: &str,
) -> String {
    let consul = with.map(consul).unwrap_or_default();
    let data = if data.is_empty() { String::new() } else { format!("data_dir = \"{data}\"") };
    format!(
        r#"bind_addr            = "{address}"
disable_update_check = true
log_level            = "{log_level}"
{data}

ports {{
  http = {http}
  rpc  = {rpc}
  serf = {serf}
}}

advertise {{
  http = "{address}"
  rpc  = "{address}"
  serf = "{address}"
}}

{consul}
"#
    )
}

/// Returns the configuration for Consul, which gets jobs' services but not the agent's own.
fn consul(Consul { address, grpc_address, .. }: &Consul) -> String {
    format!(
        r#"consul {{
  address          = "{address}"
  grpc_address     = "{grpc_address}"
  auto_advertise   = false
  client_auto_join = false
  server_auto_join = false
}}
"#
    )
}
