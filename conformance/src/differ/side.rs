//! The two sides: a Nomad server, and two nodes in network namespaces of their own. One has a dockerd and Nomad's own
//! docker driver, the other one this driver under the name `docker`. Their configurations have the same words.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use harness::agent::{Agent, Mode, Place, Server, lines_of_interest};
use harness::context::agent;
use harness::environment::TestEnvironment;
use harness::fixture::process::{Process, tail};
use harness::fixture::{Containerd, Dockerd, DockerdSetup, Registry, RegistrySettings};

use super::facts::Names;
use super::images;
use super::nomad::Api;
use super::run::Bench;

/// The names of the two nodes.
const NODES: [&str; 2] = ["docker", "here"];
/// Subnet of docker's default bridge, which is the bridge of both sides.
const SUBNET: &str = "172.17.0.0/16";

/// The server, the two nodes, and what they share.
pub struct Sides<'a> {
    // Fields are dropped in this order: the nodes before what they use.
    nodes: [Node; 2],
    dockerd: Dockerd,
    server: Server,
    /// Serves the files that jobs fetch.
    files: Process,
    files_address: String,
    registry: Registry,
    environment: &'a TestEnvironment,
}

/// An agent with its containerd.
struct Node {
    agent: Agent,
    containerd: Containerd,
    directory: PathBuf,
    address: String,
    /// Path of the network namespace.
    namespace: PathBuf,
}

impl<'a> Sides<'a> {
    /// Starts both sides. The binaries are those of Nomad, the driver and dockerd.
    ///
    /// # Errors
    /// Says what doesn't come up.
    pub fn start(environment: &'a TestEnvironment, [nomad, plugin, dockerd]: [&Path; 3]) -> Result<Self> {
        let address = environment.networks().make_nodes_bridge()?;
        let directory = environment.directory();
        let settings = RegistrySettings { host: Some(address.clone()), ..RegistrySettings::default() };
        let registry = environment.registry().beside(&directory.join("differ-reg"), settings)?;
        images::push(environment.catalog(), &registry).context("push the images")?;
        let (files, files_address) = serve_files(environment, &address)?;
        lay_out_shared(&directory.join("shared"))?;
        let hosts = directory.join("hosts");
        let of_registry = hosts.join(registry.address());
        fs::create_dir_all(&of_registry)?;
        fs::write(of_registry.join("hosts.toml"), format!("server = \"http://{}\"\n", registry.address()))?;
        let server = Server::start(nomad, &directory.join("server"), &address)?;
        let start =
            |number: u8| Start { environment, server: &server, registry: &registry, hosts: &hosts, number };
        let (docker, daemon) = start(1).node([nomad, plugin], Some(dockerd))?;
        let dockerd = daemon.context("no dockerd was started")?;
        let (here, _) = start(2).node([nomad, plugin], None)?;
        Ok(Self { nodes: [docker, here], dockerd, server, files, files_address, registry, environment })
    }

    /// Returns what jobs of a side run with.
    ///
    /// # Errors
    /// Fails if the registry lacks an image.
    pub fn bench(&self, side: usize) -> Result<Bench<'_>> {
        let node = &self.nodes[side];
        let digest = self.registry.digest_of(images::REPOSITORY, images::PLAIN)?;
        let shared = self.environment.directory().join("shared");
        let (registry, shared) = (self.registry.address().to_owned(), shared.display().to_string());
        let places = vec![
            ("{registry}", registry.clone()),
            ("{digest}", digest),
            ("{shared}", shared.clone()),
            ("{own}", node.directory.join("own").display().to_string()),
            ("{files}", format!("http://{}", self.files_address)),
        ];
        let mut names = Names::default();
        names.add(&*registry, "{registry}");
        names.add(shared, "{shared}");
        names.add(node.directory.join("agent/alloc").display().to_string(), "{allocations}");
        names.add(node.directory.join("agent").display().to_string(), "{agent}");
        names.add(node.directory.display().to_string(), "{node}");
        names.add(&*node.address, "{address of the node}");
        names.add(node.agent.node(), "{node id}");
        names.add(self.cgroup(), "{cgroup}");
        for kind in ["cgroup", "ipc", "mnt", "pid", "user", "uts"] {
            let id = fs::read_link(format!("/proc/self/ns/{kind}"))?;
            names.add(id.to_string_lossy(), "the host's");
        }
        let network = fs::metadata(&node.namespace)?.ino();
        names.add(format!("net:[{network}]"), "the host's");
        Ok(Bench {
            api: Api::at(self.server.http()),
            client: &node.agent,
            node: NODES[side].to_owned(),
            allocations: node.agent.allocation_directory(""),
            registry,
            places,
            names,
        })
    }

    fn cgroup(&self) -> String {
        cgroup(self.environment)
    }

    /// Returns the ends of both sides' logs.
    pub fn last_words(&self) -> String {
        let log = |node: &Node| lines_of_interest(&node.agent.log(), 0);
        format!(
            "docker's agent:\n{}\ndockerd:\n{}\nthis driver's agent:\n{}",
            log(&self.nodes[0]),
            tail(&self.dockerd.log(), 10),
            log(&self.nodes[1])
        )
    }

    /// Stops both sides, and asserts that the agents leave nothing behind.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub fn stop(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.agent.stop()?;
            let leaks = node.agent.leaks();
            ensure!(leaks.is_empty(), "an agent left behind:\n  {}", leaks.join("\n  "));
        }
        self.dockerd.stop()?;
        let _ = self.files.runs();
        self.nodes.iter().try_for_each(|node| node.containerd.stop())
    }
}

/// Returns the name of the cgroup of docker's containers.
fn cgroup(environment: &TestEnvironment) -> String {
    let name = environment.directory().file_name().unwrap_or_default();
    format!("docker-{}", name.to_string_lossy())
}

/// The neighbours of a node that is started.
struct Start<'a> {
    environment: &'a TestEnvironment,
    server: &'a Server,
    registry: &'a Registry,
    hosts: &'a Path,
    number: u8,
}

impl Start<'_> {
    /// Starts a node with Nomad's own docker driver, if it has a dockerd, or with this one.
    fn node(&self, [nomad, plugin]: [&Path; 2], dockerd: Option<&Path>) -> Result<(Node, Option<Dockerd>)> {
        let name = NODES[usize::from(self.number) - 1];
        let directory = self.environment.directory().join(name);
        let link = self.environment.networks().make_node(self.number)?;
        let programs = self.environment.containerd().programs().clone();
        let containerd = Containerd::start_within(&directory.join("ctd"), programs, &link.namespace)?;
        let daemon = dockerd.map(|program| {
            Dockerd::start(DockerdSetup {
                program: program.to_owned(),
                directory: directory.join("dockerd"),
                containerd_socket: containerd.socket(),
                namespace: link.namespace.clone(),
                registry: self.registry.address().to_owned(),
                programs: containerd.programs_directory(),
                cgroup: cgroup(self.environment),
            })
        });
        let daemon = daemon.transpose()?;
        let mut setup = agent::setup(self.environment, Mode::Kept, nomad, plugin);
        setup.directory = directory.join("agent");
        setup.containerd_socket = containerd.socket();
        setup.state_dir = directory.join("state");
        setup.programs = vec![containerd.programs_directory()];
        setup.networks.near = None;
        "docker0".clone_into(&mut setup.networks.docker.name);
        SUBNET.clone_into(&mut setup.networks.docker.subnet);
        setup.docker = dockerd.is_none();
        setup.docker_options = self.options(daemon.is_some());
        setup.dockerd = daemon.as_ref().map(Dockerd::socket);
        setup.place = Some(Place {
            name: name.to_owned(),
            namespace: link.namespace.clone(),
            address: link.address.clone(),
            server: self.server.rpc(),
            server_http: self.server.http(),
        });
        let agent = Agent::start(setup)?;
        agent.driver_of_becomes("docker", true).with_context(|| lines_of_interest(&agent.log(), 0))?;
        let (address, namespace) = (link.address, link.namespace);
        Ok((Node { agent, containerd, directory, address, namespace }, daemon))
    }

    /// Returns the options in the block of the plugin, which are the same for both, but for what only one of them needs.
    fn options(&self, is_docker: bool) -> String {
        let own = if is_docker {
            format!("infra_image = \"{}/{}:keeper\"", self.registry.address(), images::REPOSITORY)
        } else {
            format!("registry_config_dir = \"{}\"", self.hosts.display())
        };
        format!("allow_caps = [\"all\"]\n    {own}")
    }
}

/// Starts a server of the files that jobs fetch, and returns its address.
fn serve_files(environment: &TestEnvironment, address: &str) -> Result<(Process, String)> {
    let directory = environment.directory().join("files");
    fs::create_dir_all(&directory)?;
    let (image, _) = images::image(environment.catalog(), images::PLAIN)?;
    fs::write(directory.join("saved.tar"), image.docker_archive(&["differ:saved"])?)?;
    let address = format!("{address}:{}", harness::fixture::registry::free_port()?);
    let mut command = std::process::Command::new("/bin/busybox");
    command.args(["httpd", "-f", "-p", &address, "-h"]).arg(&directory);
    Ok((Process::spawn("httpd", &mut command, &environment.directory().join("files.log"))?, address))
}

/// Fills the directory of the host that jobs mount, which is the same on both sides.
fn lay_out_shared(directory: &Path) -> Result<()> {
    images::lay_out(directory)?;
    for below in ["a", "b"] {
        fs::create_dir_all(directory.join(below))?;
        fs::write(directory.join(below).join(below), below)?;
    }
    fs::write(directory.join("file"), "a file of the host\n")?;
    // No system call is refused by it, but one that the probe makes nowhere.
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]}"#;
    Ok(fs::write(directory.join("seccomp.json"), profile)?)
}
