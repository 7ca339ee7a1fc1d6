//! A cluster for docker jobs. On each node either Nomad's own docker driver with a dockerd answers as `docker`, or this
//! driver. A node has a containerd and a network namespace of its own; the server and the registry are common to all.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::agent;
use crate::agent::{Agent, DOCKER, DRIVER, Heartbeats, Mode, Place, Server, Setup, lines_of_interest, poll};
use crate::environment::TestEnvironment;
use crate::fixture::containerd::{DOCKERS_NAMESPACE, NAMESPACE};
use crate::fixture::network::{Bridge, NodeLink, within};
use crate::fixture::process::{output, tail};
use crate::fixture::programs::copied;
use crate::fixture::{Containerd, Dockerd, DockerdSetup, Form, Programs, Registry, RegistrySettings};
use crate::leaks::census::{Census, daemon};
use crate::leaks::report::LeakCheck;
use crate::leaks::sweep;

/// Repository and tag of the image that docker's driver has the networks of groups kept by.
const KEEPER: [&str; 2] = ["keeper", "latest"];
/// dockerd's namespace in containerd.
const DOCKERDS_NAMESPACE: &str = "moby";
/// Attribute that the driver `docker` has only if it is this one.
const OURS: &str = "driver.docker.driver_version";
/// Time for the plugin's garbage collection.
const CLEAN: Duration = Duration::from_secs(20);

/// The server and the registry of the nodes. dockerd and this driver take the registry for one that speaks plain http.
pub struct DockerCluster<'a> {
    server: Server,
    registry: Registry,
    address: String,
    nomad: PathBuf,
    environment: &'a TestEnvironment,
}

/// Who answers as `docker` on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DockerDriver {
    /// Nomad's own docker driver, with the node's dockerd.
    Nomads,
    /// This driver.
    Ours,
    /// Nobody. A plugin answers as `containerd-driver` instead: this driver, or another one of that name.
    Nobody,
}

/// The settings of a node.
pub struct DockerNodeSetup<'a> {
    /// Number of the node, from 1 on.
    pub number: u8,
    pub name: &'a str,
    /// Path of this driver's binary.
    pub plugin: &'a Path,
    /// Path of dockerd's binary, with docker-proxy beside it. Without, the node has none.
    pub dockerd: Option<&'a Path>,
    /// Whether dockerd's containers outlive it.
    pub live_restore: bool,
    /// Who answers as `docker` at first.
    pub driver: DockerDriver,
    /// Bridge of this driver's networks.
    pub bridge: Bridge,
    /// More options in the block of the plugin `docker`, which both drivers have.
    pub options: &'a str,
    /// Options in this driver's block `dangling_containers`.
    pub dangling_containers: &'static str,
    /// Nomad's name of the level from which on the agent logs.
    pub log_level: &'static str,
    /// Other programs than those of the test environment. They and Nomad's are copied, so that their files' pages are in
    /// the memory of this node alone.
    pub programs: Option<&'a Programs>,
    /// Changes the agent's setup as the node's last step before the agent starts.
    pub adjust: &'a dyn Fn(&mut Setup),
}

pub struct DockerNode<'a> {
    // Fields are dropped in this order: the agent before what it uses.
    pub agent: Agent,
    pub dockerd: Option<Dockerd>,
    pub containerd: Containerd,
    pub link: NodeLink,
    /// Directory of all that belongs to the node.
    pub directory: PathBuf,
    state_dir: PathBuf,
    /// Options of Nomad's own docker driver, and those of this one.
    options: [String; 2],
    environment: &'a TestEnvironment,
    before: Census,
}

impl<'a> DockerCluster<'a> {
    /// Starts the server, and a registry with the images of the test environment.
    ///
    /// # Errors
    /// Says what doesn't come up.
    pub fn start(environment: &'a TestEnvironment, nomad: &Path) -> Result<Self> {
        let address = environment.networks().make_nodes_bridge()?;
        let directory = environment.directory();
        let settings = RegistrySettings { host: Some(address.clone()), ..RegistrySettings::default() };
        let registry = environment.registry().beside(&directory.join("nodes-reg"), settings)?;
        let keeper = json!({"Entrypoint": ["/bin/busybox", "sleep", "1000000"]});
        let [repository, tag] = KEEPER;
        environment.catalog().busybox(keeper)?.push(&registry, repository, tag, Form::Docker)?;
        let server = Server::start(nomad, &directory.join("server"), &address, Heartbeats::Lenient)?;
        Ok(Self { server, registry, address, nomad: nomad.to_owned(), environment })
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the address of the server and the registry.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the name of the cgroup of dockerd's containers, which nobody else on the machine has.
    pub fn dockerds_cgroup(&self) -> String {
        let name = self.environment.directory().file_name().unwrap_or_default();
        format!("docker-{}", name.to_string_lossy())
    }

    /// Starts a node, and waits until its driver `docker` is healthy.
    ///
    /// # Errors
    /// Says what doesn't come up.
    pub fn start_node(&self, node: DockerNodeSetup<'_>) -> Result<DockerNode<'a>> {
        let directory = self.environment.directory().join(node.name);
        let link = self.environment.networks().make_node(node.number)?;
        let (nomad, programs) = self.programs_of(&node, &directory.join("programs"))?;
        let containerd = Containerd::start_within(&directory.join("ctd"), programs, &link.namespace)?;
        let daemon = node.dockerd.map(|program| {
            Dockerd::start(DockerdSetup {
                program: program.to_owned(),
                directory: directory.join("dockerd"),
                containerd_socket: containerd.socket(),
                namespace: link.namespace.clone(),
                registry: self.registry.address().to_owned(),
                programs: containerd.programs_directory(),
                cgroup: self.dockerds_cgroup(),
                live_restore: node.live_restore,
            })
        });
        let dockerd = daemon.transpose()?;
        let [repository, tag] = KEEPER;
        let keeper = format!("infra_image = \"{}/{repository}:{tag}\"", self.registry.address());
        let options = [format!("{}\n    {keeper}", node.options), node.options.to_owned()];
        let state_dir = directory.join("state");
        let mut setup = agent::setup(self.environment, Mode::Kept, &nomad, node.plugin);
        setup.directory = directory.join("agent");
        setup.containerd_socket = containerd.socket();
        setup.state_dir.clone_from(&state_dir);
        setup.programs = vec![containerd.programs_directory()];
        setup.networks.near = None;
        setup.networks.docker = node.bridge;
        setup.place = Some(Place {
            name: node.name.to_owned(),
            namespace: link.namespace.clone(),
            address: link.address.clone(),
            server: self.server.rpc(),
            server_http: self.server.http(),
        });
        self.write_hosts(&setup)?;
        setup.dangling_containers = node.dangling_containers;
        setup.log_level = node.log_level;
        setup.containerd_runtime = containerd.programs().shim_runtime().to_owned();
        setup.oci_runtime = containerd.programs().oci_runtime().unwrap_or_default();
        setup.registry_config_dir = setup.dockers_hosts().display().to_string();
        node.driver.set(&mut setup, dockerd.as_ref(), &options);
        (node.adjust)(&mut setup);
        let agent = Agent::start(setup)?;
        let (environment, before) = (self.environment, Census::default());
        let mut made = DockerNode {
            agent,
            dockerd,
            containerd,
            link,
            directory,
            state_dir,
            options,
            environment,
            before,
        };
        made.answers_by(node.driver).with_context(|| made.last_words())?;
        made.before = made.leak_check(&[]).all();
        Ok(made)
    }

    /// Returns the path of Nomad's binary for a node, and the other programs. Its own ones are made in `directory`.
    fn programs_of(&self, node: &DockerNodeSetup<'_>, directory: &Path) -> Result<(PathBuf, Programs)> {
        match node.programs {
            None => Ok((self.nomad.clone(), self.environment.containerd().programs().clone())),
            Some(programs) => {
                let programs = programs.copied_to(directory)?;
                Ok((copied(&self.nomad, directory)?, programs))
            }
        }
    }

    /// Has this driver speak plain http with the registry.
    fn write_hosts(&self, setup: &Setup) -> Result<()> {
        let directory = setup.dockers_hosts().join(self.registry.address());
        fs::create_dir_all(&directory)?;
        let server = format!("server = \"http://{}\"\n", self.registry.address());
        Ok(fs::write(directory.join("hosts.toml"), server)?)
    }
}

impl DockerDriver {
    fn set(self, setup: &mut Setup, dockerd: Option<&Dockerd>, [of_nomads, of_ours]: &[String; 2]) {
        let (names, socket, options): (&[_], _, _) = match self {
            Self::Nomads => (&[], dockerd.map(Dockerd::socket), of_nomads),
            Self::Ours => (&[DOCKER], None, of_ours),
            Self::Nobody => (&[DRIVER], None, of_ours),
        };
        setup.plugin_names = names;
        setup.dockerd = socket;
        setup.docker_options.clone_from(options);
    }
}

impl DockerNode<'_> {
    /// Restarts the agent with another driver that answers as `docker`: the plugin's file is put into the agent's
    /// `plugin_dir`, or taken away. Tasks are left as they are.
    ///
    /// # Errors
    /// Carries the end of the agent's log. Fails if there is no dockerd to go back to.
    pub fn change_driver(&mut self, driver: DockerDriver) -> Result<()> {
        ensure!(driver == DockerDriver::Ours || self.dockerd.is_some(), "the node has no dockerd");
        self.agent.stop()?;
        let (dockerd, options) = (self.dockerd.as_ref(), &self.options);
        self.agent.reconfigure(|setup| driver.set(setup, dockerd, options))?;
        self.agent.launch()?;
        self.answers_by(driver)
    }

    /// Waits until the servers know that this driver answers as `docker`, and is healthy.
    fn answers_by(&self, driver: DockerDriver) -> Result<()> {
        if driver == DockerDriver::Nobody {
            return self.agent.driver_becomes(true).map(drop);
        }
        let ours = driver == DockerDriver::Ours;
        let what = if ours { "healthy driver of ours" } else { "healthy driver of Nomad's own" };
        let answers = self.agent.driver_of_until(DOCKER, what, |health| {
            let attributes = health.attributes.as_ref();
            health.healthy && attributes.is_some_and(|known| known.contains_key(OURS)) == ours
        });
        answers.map(drop)
    }

    /// Returns the ids of the containers that a driver has, running or not.
    ///
    /// # Errors
    /// Fails if containerd doesn't answer.
    pub fn containers_of(&self, driver: DockerDriver) -> Result<Vec<String>> {
        let namespace = match driver {
            DockerDriver::Nomads => DOCKERDS_NAMESPACE,
            DockerDriver::Ours => DOCKERS_NAMESPACE,
            DockerDriver::Nobody => NAMESPACE,
        };
        let census = daemon::take(&self.containerd.socket(), Some(namespace))?;
        Ok(census.of_kind("container record").cloned().collect())
    }

    /// Returns the directory of this driver's state.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Stops the agent and then dockerd, and leaves what they leave.
    ///
    /// # Errors
    /// Fails if one of them had to be killed, or if the node has no dockerd.
    pub fn stop_dockerd(&mut self) -> Result<()> {
        self.agent.stop()?;
        self.dockerd.as_mut().context("the node has no dockerd")?.stop_daemon()
    }

    /// Runs `ctr` in dockerd's namespace, as one does without dockerd, and returns its output.
    ///
    /// # Errors
    /// Fails with the output of `ctr`.
    pub fn ctr_of_dockerd(&self, arguments: &[&str]) -> Result<String> {
        output(self.containerd.ctr_command(DOCKERDS_NAMESPACE).args(arguments))
    }

    /// Removes the rules by which dockerd has the ports of its containers led to them.
    ///
    /// # Errors
    /// Fails with the output of `iptables`.
    pub fn remove_dockerds_ports(&self) -> Result<()> {
        let mut command = within(&self.link.namespace, Path::new("iptables"));
        output(command.args(["-w", "-t", "nat", "-F", "DOCKER"])).map(drop)
    }

    /// Asserts that nothing is left of tasks of this driver's, which are named `<alloc>.<task>`.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub fn assert_clean(&self, tasks: &[String]) -> Result<()> {
        self.leak_check(tasks).assert_nothing_left_within(CLEAN)
    }

    /// Waits until the node's network namespace has no link of a container, of whichever driver.
    ///
    /// # Errors
    /// Fails with the links.
    pub fn assert_no_links(&self) -> Result<()> {
        let mut links = Vec::new();
        poll("node without links of containers", CLEAN, || {
            links = self.link.containers()?;
            Ok(links.is_empty())
        })
        .with_context(|| format!("the links {links:?} are left"))
    }

    fn leak_check<'a>(&'a self, tasks: &'a [String]) -> LeakCheck<'a> {
        LeakCheck {
            containerd: &self.containerd,
            networks: self.environment.networks(),
            state_dir: &self.state_dir,
            cgroups: tasks,
            before: &self.before,
        }
    }

    /// Returns the ends of the node's logs.
    pub fn last_words(&self) -> String {
        let agent = lines_of_interest(&self.agent.log(), 0);
        let dockerd = self.dockerd.as_ref().map(|dockerd| tail(&dockerd.log(), 10));
        let dockerd = dockerd.map(|log| format!("\ndockerd:\n{log}")).unwrap_or_default();
        format!("the agent:\n{agent}{dockerd}")
    }

    /// Stops all of the node, and asserts that the agent leaves nothing behind.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub fn stop(&mut self) -> Result<()> {
        self.agent.stop()?;
        if self.dockerd.is_some() {
            // The agent leaves directories of tasks mounted that its own docker driver has failed to start.
            sweep::unmount_under(&self.directory.join("agent"));
        }
        let leaks = self.agent.leaks();
        ensure!(leaks.is_empty(), "an agent left behind:\n  {}", leaks.join("\n  "));
        if let Some(mut dockerd) = self.dockerd.take() {
            dockerd.stop()?;
        }
        self.containerd.stop()
    }
}
