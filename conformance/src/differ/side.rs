//! The two sides: a Nomad server, and two nodes in network namespaces of their own. One has a dockerd and Nomad's own
//! docker driver, the other one this driver under the name `docker`. Their configurations have the same words.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use harness::agent::JobApi;
use harness::agent::config::{DANGLING_KEPT, DEBUG};
use harness::context::{DockerCluster, DockerDriver, DockerNode, DockerNodeSetup};
use harness::environment::TestEnvironment;
use harness::fixture::network::Bridge;
use harness::fixture::process::Process;

use super::facts::Names;
use super::images;
use super::run::Bench;

/// The names of the two nodes.
const NODES: [&str; 2] = ["docker", "here"];
/// docker's default bridge, which is the bridge of both sides, and its subnet.
const BRIDGE: [&str; 2] = ["docker0", "172.17.0.0/16"];
/// Options of the plugin on both sides.
const OPTIONS: &str = "allow_caps = [\"all\"]";

/// The server, the two nodes, and what they share.
pub struct Sides<'a> {
    // Fields are dropped in this order: the nodes before what they use.
    nodes: [DockerNode<'a>; 2],
    cluster: DockerCluster<'a>,
    /// Serves the files that jobs fetch.
    files: Process,
    files_address: String,
    environment: &'a TestEnvironment,
}

impl<'a> Sides<'a> {
    /// Starts both sides. The binaries are those of Nomad, the driver and dockerd.
    ///
    /// # Errors
    /// Says what doesn't come up.
    pub fn start(environment: &'a TestEnvironment, [nomad, plugin, dockerd]: [&Path; 3]) -> Result<Self> {
        let cluster = DockerCluster::start(environment, nomad)?;
        images::push(environment.catalog(), cluster.registry()).context("push the images")?;
        let (files, files_address) = serve_files(environment, cluster.address())?;
        lay_out_shared(&environment.directory().join("shared"))?;
        let start = |number: u8, driver, dockerd| {
            let [name, subnet] = BRIDGE.map(str::to_owned);
            cluster.start_node(DockerNodeSetup {
                number,
                name: NODES[usize::from(number) - 1],
                plugin,
                dockerd,
                live_restore: false,
                driver,
                bridge: Bridge { name, subnet },
                options: OPTIONS,
                dangling_containers: DANGLING_KEPT,
                log_level: DEBUG,
                programs: None,
                adjust: &|_| {},
            })
        };
        let nodes = [start(1, DockerDriver::Nomads, Some(dockerd))?, start(2, DockerDriver::Ours, None)?];
        Ok(Self { nodes, cluster, files, files_address, environment })
    }

    /// Returns what jobs of a side run with.
    ///
    /// # Errors
    /// Fails if the registry lacks an image.
    pub fn bench(&self, side: usize) -> Result<Bench<'_>> {
        let node = &self.nodes[side];
        let registry = self.cluster.registry();
        let digest = registry.digest_of(images::REPOSITORY, images::PLAIN)?;
        let shared = self.environment.directory().join("shared");
        let (registry, shared) = (registry.address().to_owned(), shared.display().to_string());
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
        names.add(&*node.link.address, "{address of the node}");
        names.add(node.agent.node(), "{node id}");
        names.add(self.cluster.dockerds_cgroup(), "{cgroup}");
        for kind in ["cgroup", "ipc", "mnt", "pid", "user", "uts"] {
            let id = fs::read_link(format!("/proc/self/ns/{kind}"))?;
            names.add(id.to_string_lossy(), "the host's");
        }
        let network = fs::metadata(&node.link.namespace)?.ino();
        names.add(format!("net:[{network}]"), "the host's");
        Ok(Bench {
            api: JobApi::at(self.cluster.server().http()),
            client: &node.agent,
            node: NODES[side].to_owned(),
            allocations: node.agent.allocation_directory(""),
            registry,
            places,
            names,
        })
    }

    /// Returns the ends of both sides' logs.
    pub fn last_words(&self) -> String {
        let [docker, here] = &self.nodes;
        format!("on docker's side, {}\non this driver's side, {}", docker.last_words(), here.last_words())
    }

    /// Stops both sides, and asserts that the agents leave nothing behind.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub fn stop(&mut self) -> Result<()> {
        let _ = self.files.runs();
        self.nodes.iter_mut().try_for_each(DockerNode::stop)
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
