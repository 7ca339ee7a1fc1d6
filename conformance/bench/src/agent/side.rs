//! One variation on a node of its own: a Nomad client agent, a containerd, a network namespace and copies of all
//! programs. Submits jobs to it, and looks at their tasks. Knows nothing of what is measured.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use harness::agent::config::DANGLING_KEPT;
use harness::agent::{Client, DOCKER, DRIVER, JobApi, Setup, poll};
use harness::context::{DockerCluster, DockerDriver, DockerNode, DockerNodeSetup};
use harness::fixture::network::Bridge;
use harness::fixture::{CertificateAuthority, Programs, Registry, RegistrySettings};
use harness::leaks::sweep;
use harness::processes::in_network;
use harness::timeline::{LoggedTimeline, in_agents_log};
use serde_json::{Map, Value, json};

use super::variation::{Driver, Variation};
use crate::report_data;
use crate::samples::nanoseconds;
use crate::setup::version;

/// docker's default bridge, which is the bridge of this driver under the name `docker`, and its subnet.
const BRIDGE: [&str; 2] = ["docker0", "172.17.0.0/16"];
/// The options that the agent's setup has itself.
const OF_SETUP: [&str; 3] = ["log_collection", "oci_runtime", "containerd_runtime"];
/// The variable by which programs in Go are told whose certificates they trust.
const TRUSTED: &str = "SSL_CERT_FILE";
/// The socket that the driver in Go asks, which can't be told another.
const GO_DRIVERS_SOCKET: &str = "/run/containerd/containerd.sock";
const CGROUPS: &str = "/sys/fs/cgroup";
/// The parent of the cgroups of tasks of the driver in Go, in each hierarchy of cgroup v1.
const GO_DRIVERS_GROUPS: &str = "nomad";
/// CPU shares of a task, and those of all tasks of a job together, in MHz.
const CPU: [u32; 2] = [20, 4000];
const MEMORY_MB: u32 = 32;
/// Disk of a task, and of one that writes many logs, in MB.
const DISK_MB: [u32; 2] = [10, 1000];
/// Time between the signal to end and SIGKILL. The driver in Go always takes all of it.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The programs and settings that all sides share.
pub(crate) struct Common<'a> {
    /// Directory of all files of the run.
    pub(crate) directory: &'a Path,
    pub(crate) plugin: &'a Path,
    pub(crate) dockerd: Option<&'a Path>,
    pub(crate) go_driver: Option<&'a Path>,
    /// The time that the driver in Go sleeps before it starts a task's process.
    pub(crate) go_drivers_sleep: Duration,
    /// Nomad's name of the level from which on agents log.
    pub(crate) log_level: &'static str,
}

/// A variation and its node.
pub(crate) struct Side<'a> {
    // The agent's node is dropped before the link to its containerd.
    node: DockerNode<'a>,
    _socket: Option<SocketLink>,
    /// A registry with TLS, for a driver that knows no other.
    _registry: Option<Registry>,
    pub(crate) variation: Variation,
    api: JobApi,
    image: String,
    sleep: Duration,
    parts: Vec<(&'static str, String)>,
}

/// What the tasks of a job do, and how many there are.
pub(crate) struct Work<'a> {
    pub(crate) script: &'a str,
    /// Number of allocations, and of the tasks of each.
    pub(crate) count: u32,
    pub(crate) group: u32,
    /// Whether its log files may have hundreds of megabytes.
    pub(crate) writes_much: bool,
}

impl<'a> Side<'a> {
    /// Starts the variation's node as the one of this number, from 1 on.
    ///
    /// # Errors
    /// Says what doesn't come up.
    pub(crate) fn start(
        cluster: &DockerCluster<'a>,
        number: u8,
        variation: Variation,
        programs: &Programs,
        common: &Common<'_>,
    ) -> Result<Self> {
        let is_go = variation.driver == Driver::Go;
        let plugin = if is_go { common.go_driver.context("no --go-driver")? } else { common.plugin };
        let is_docker = variation.driver == Driver::Docker;
        let [name, subnet] = BRIDGE.map(str::to_owned);
        let (registry, trusted) =
            is_go.then(|| registry_with_tls(cluster, common.directory)).transpose()?.unzip();
        let link = RefCell::new(None);
        let adjust = |setup: &mut Setup| {
            if is_go {
                setup.foreign_options =
                    Some(format!("    containerd_runtime = \"{}\"", programs.shim_runtime()));
                *link.borrow_mut() = Some(SocketLink::to(&setup.containerd_socket));
            }
            setup.variables.extend(trusted.clone().map(|path| (TRUSTED, path)));
            adjust(setup, &variation);
        };
        let node = cluster.start_node(DockerNodeSetup {
            number,
            name: &variation.name,
            plugin,
            dockerd: common.dockerd.filter(|_| is_docker),
            live_restore: false,
            driver: match variation.driver {
                Driver::Docker => DockerDriver::Nomads,
                Driver::AsDocker => DockerDriver::Ours,
                Driver::Ours | Driver::Go => DockerDriver::Nobody,
            },
            bridge: Bridge { name, subnet },
            options: &variation.option_lines(&OF_SETUP),
            dangling_containers: DANGLING_KEPT,
            log_level: common.log_level,
            programs: Some(programs),
            adjust: &adjust,
        })?;
        let address = registry.as_ref().unwrap_or(cluster.registry()).address().to_owned();
        let api = JobApi::at(cluster.server().http());
        let mut side = Self {
            node,
            _socket: link.into_inner().transpose()?,
            _registry: registry,
            api,
            // Docker's driver asks the registry about `latest` at each start.
            image: format!("{address}/busybox:oci"),
            sleep: if is_go { common.go_drivers_sleep } else { Duration::ZERO },
            parts: Vec::new(),
            variation,
        };
        side.parts = side.look_at_parts(programs, plugin)?;
        Ok(side)
    }

    pub(crate) fn name(&self) -> &str {
        &self.variation.name
    }

    /// Returns the client of the node's agent.
    pub(crate) fn client(&self) -> &Client {
        &self.node.agent
    }

    /// Returns the API of the node's own agent.
    pub(crate) fn own_api(&self) -> JobApi {
        JobApi::at(self.node.agent.own_http().to_owned())
    }

    /// Submits a job, once the driver is healthy: a plugin may have crashed at the end of another job.
    ///
    /// # Errors
    /// Fails with the server's reason if it refuses it, or with the driver's health.
    pub(crate) fn submit(&self, name: &str, work: &Work<'_>) -> Result<()> {
        self.client().driver_of_becomes(self.driver(), true)?;
        match self.api.submit(&self.job(name, work))? {
            Some(reason) => bail!("{name} is refused: {reason}"),
            None => Ok(()),
        }
    }

    /// Stops a job.
    ///
    /// # Errors
    /// Fails if the server knows no such job.
    pub(crate) fn stop(&self, job: &str) -> Result<()> {
        self.api.stop(job, false)
    }

    /// Stops a job, if it is there still, and forgets it.
    ///
    /// # Errors
    /// Fails if the server doesn't answer.
    pub(crate) fn forget(&self, job: &str) -> Result<()> {
        self.api.stop(job, true)
    }

    /// Returns the name of the driver in jobs.
    fn driver(&self) -> &'static str {
        match self.variation.driver {
            Driver::Docker | Driver::AsDocker => DOCKER,
            Driver::Ours | Driver::Go => DRIVER,
        }
    }

    fn job(&self, name: &str, work: &Work<'_>) -> Value {
        let config = json!({"image": self.image, "command": "/bin/sh", "args": ["-c", work.script]});
        let mut config: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
        config.extend(self.variation.task.clone());
        let (files, megabytes) = if work.writes_much { (60, 10) } else { (2, 2) };
        if work.writes_much && self.variation.option("log_collection") == Some("driver") {
            let size = format!("{megabytes}m");
            config.insert("logging".to_owned(), json!([{"max_files": files, "max_file_size": size}]));
        }
        let once = nanoseconds(Duration::from_secs(5));
        let all = work.count.saturating_mul(work.group).max(1);
        let task = |name: String| {
            json!({
                "Name": name,
                "Driver": self.driver(),
                "Config": config,
                "Resources": {"CPU": CPU[0].min(CPU[1] / all).max(1), "MemoryMB": MEMORY_MB},
                "KillTimeout": nanoseconds(KILL_TIMEOUT),
                "LogConfig": {"MaxFiles": files, "MaxFileSizeMB": megabytes},
            })
        };
        let tasks: Vec<_> = task_names(work.group).map(task).collect();
        json!({"Job": {
            "ID": name,
            "Name": name,
            "Type": "batch",
            "Datacenters": ["*"],
            "Constraints": [{"LTarget": "${node.unique.name}", "RTarget": self.name(), "Operand": "="}],
            "TaskGroups": [{
                "Name": "group",
                "Count": work.count,
                "RestartPolicy": {"Attempts": 0, "Mode": "fail", "Interval": once, "Delay": once},
                "ReschedulePolicy": {"Attempts": 0, "Unlimited": false},
                "EphemeralDisk": {"SizeMB": DISK_MB[usize::from(work.writes_much)]},
                "Tasks": tasks,
            }],
        }})
    }

    /// Returns the directory on the host of an allocation.
    pub(crate) fn allocation(&self, id: &str) -> PathBuf {
        self.node.agent.allocation_directory(id)
    }

    /// Waits for the file `/alloc/data/begun-<task>` of a task, and returns the time at which it was made: without a sleep
    /// that the driver is known for.
    ///
    /// # Errors
    /// Carries the allocation's events.
    pub(crate) fn first_write(&self, id: &str, task: &str, limit: Duration) -> Result<SystemTime> {
        let file = self.allocation(id).join(format!("alloc/data/begun-{task}"));
        let written = poll("first write", limit, || Ok(file.exists()));
        written.with_context(|| {
            let allocation = self.client().allocation(id);
            allocation.map_or_else(|error| error.to_string(), |allocation| allocation.summary())
        })?;
        let at = fs::metadata(&file)?.modified()?;
        at.checked_sub(self.sleep).context("a clock before its time")
    }

    /// Returns the processes of the node: the agent and the daemons with all that they have started, but for tasks.
    ///
    /// # Errors
    /// Fails if the node's network namespace is gone.
    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        in_network(&self.node.link.namespace)
    }

    /// Returns the length of the agent's log.
    pub(crate) fn log_length(&self) -> u64 {
        fs::metadata(self.node.agent.log()).map_or(0, |log| log.len())
    }

    /// Returns the timelines of this driver in the agent's log from an offset on. An agent logs them at DEBUG alone.
    ///
    /// # Errors
    /// Fails if one can't be parsed.
    pub(crate) fn timelines_from(&self, offset: u64) -> Result<Vec<LoggedTimeline>> {
        let log = fs::read(self.node.agent.log())?;
        let from = usize::try_from(offset)?.min(log.len());
        in_agents_log(&String::from_utf8_lossy(&log[from..])).collect()
    }

    /// Returns the seccomp profile of a task that runs, as this driver gives it to the OCI runtime. `None` if there is no
    /// such task.
    pub(crate) fn profile_of_a_task(&self) -> Option<Value> {
        profile_below(self.node.state_dir(), 4)
    }

    /// Returns the description of the side for the report.
    pub(crate) fn record(&self) -> report_data::Setup {
        let parts = self.parts.iter().map(|(what, words)| ((*what).to_owned(), words.clone()));
        report_data::Setup { name: self.name().to_owned(), parts: parts.collect() }
    }

    /// Adds to the description of the side.
    pub(crate) fn note(&mut self, what: &'static str, words: String) {
        self.parts.push((what, words));
    }

    fn look_at_parts(&self, programs: &Programs, plugin: &Path) -> Result<Vec<(&'static str, String)>> {
        let mut parts =
            vec![("variation", self.variation.words.clone()), ("programs", programs.versions().join(", "))];
        if let Some(dockerd) = &self.node.dockerd {
            let info: Value =
                serde_json::from_str(&dockerd.get("/info")?).context("dockerd's description")?;
            let [version, storage] =
                ["ServerVersion", "Driver"].map(|name| info[name].as_str().unwrap_or("unknown").to_owned());
            ensure!(
                storage.starts_with("overlay"),
                "dockerd has {storage}, where this driver has an overlay"
            );
            parts.push(("plugin", format!("dockerd {version} with {storage}")));
        } else if self.variation.driver == Driver::Go {
            parts.push(("plugin", "nomad-driver-containerd".to_owned()));
            parts.push(("sleep taken out", format!("{} ms", self.sleep.as_millis())));
        } else {
            let version =
                version(plugin, &["--version"]).unwrap_or_else(|| "of an unknown version".to_owned());
            parts.push(("plugin", format!("{version}, a {} build", build_of(plugin))));
        }
        Ok(parts)
    }

    /// Returns the ends of the node's logs.
    pub(crate) fn last_words(&self) -> String {
        format!("{}: {}", self.name(), self.node.last_words())
    }

    /// Stops all of the node, and asserts that the agent leaves nothing behind.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub(crate) fn end(&mut self) -> Result<()> {
        let ended = self.node.stop().with_context(|| self.variation.name.clone());
        if self.variation.driver == Driver::Go {
            // It leaves containers behind where it has crashed.
            go_drivers_groups().iter().for_each(|group| sweep::cgroups(group));
        }
        ended
    }
}

/// Starts a registry that has the images of the cluster's, and TLS. Also returns the path of the certificate to trust.
fn registry_with_tls(cluster: &DockerCluster<'_>, directory: &Path) -> Result<(Registry, PathBuf)> {
    let directory = directory.join("tls-registry");
    let authority = CertificateAuthority::new(&directory, "bench")?;
    let shown = authority.certify(cluster.address())?;
    let tls = Some((shown.certificate, shown.key));
    let host = Some(cluster.address().to_owned());
    let settings = RegistrySettings { host, tls, ..RegistrySettings::default() };
    Ok((cluster.registry().beside(&directory, settings)?, authority.certificate()))
}

/// Sets the options of a variation that the agent's setup has itself.
fn adjust(setup: &mut Setup, variation: &Variation) {
    if variation.option("log_collection") == Some("driver") {
        setup.log_collection = "driver";
    }
    for (name, option) in
        [("oci_runtime", &mut setup.oci_runtime), ("containerd_runtime", &mut setup.containerd_runtime)]
    {
        if let Some(value) = variation.option(name) {
            value.clone_into(option);
        }
    }
    setup.plugin_options = variation.option_lines(&OF_SETUP);
}

/// Returns the names of the cgroups of tasks `main` of the driver in Go, which no other process has while its socket is
/// ours.
fn go_drivers_groups() -> BTreeSet<String> {
    let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = hierarchies.flat_map(|hierarchy| {
        fs::read_dir(hierarchy.join(GO_DRIVERS_GROUPS)).into_iter().flatten().flatten()
    });
    let names = groups.map(|group| group.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("main-")).collect()
}

/// A link to a containerd's socket at the place where the driver in Go looks for it. Removed on drop.
struct SocketLink;

impl SocketLink {
    /// # Errors
    /// Fails if somebody else has a socket there.
    fn to(socket: &Path) -> Result<Self> {
        let place = Path::new(GO_DRIVERS_SOCKET);
        // What a run that was killed has left leads nowhere.
        if place.is_symlink() && !place.exists() {
            fs::remove_file(place)?;
        }
        fs::create_dir_all(place.parent().unwrap_or(place))?;
        match symlink(socket, place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!(
                    "the driver in Go can't be told its socket: {GO_DRIVERS_SOCKET} has to be free for the run"
                )
            }
            made => made.map(|()| Self).with_context(|| format!("make {GO_DRIVERS_SOCKET}")),
        }
    }
}

impl Drop for SocketLink {
    fn drop(&mut self) {
        let _ = fs::remove_file(GO_DRIVERS_SOCKET);
    }
}

/// Returns the seccomp profile of a bundle below a directory.
fn profile_below(directory: &Path, depth: u32) -> Option<Value> {
    let read = fs::read(directory.join("config.json")).ok();
    let specification = read.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let profile = specification.map(|mut specification| specification["linux"]["seccomp"].take());
    profile.filter(|profile| !profile.is_null()).or_else(|| {
        let depth = depth.checked_sub(1)?;
        let entries = fs::read_dir(directory).ok()?.flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .find_map(|entry| profile_below(&entry.path(), depth))
    })
}

/// Returns the names of the tasks of an allocation.
pub(crate) fn task_names(group: u32) -> impl Iterator<Item = String> {
    (0..group).map(|number| if number == 0 { "main".to_owned() } else { format!("main-{number}") })
}

/// Returns the kind of a build by cargo's directory of it: `debug` or `release`.
fn build_of(binary: &Path) -> String {
    let directory = binary.parent().and_then(Path::file_name).unwrap_or_default();
    let kind = directory.to_string_lossy();
    if matches!(&*kind, "debug" | "release") { kind.into_owned() } else { "unknown".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_known_by_cargos_directory() {
        let builds = ["/t/release/x", "/t/debug/x", "/usr/bin/x", "x"].map(|path| build_of(Path::new(path)));
        assert_eq!(builds, ["release", "debug", "unknown", "unknown"]);
    }

    #[test]
    fn a_profile_is_found_in_a_bundle() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("nomad/id");
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), r#"{"linux": {}}"#).unwrap();
        assert_eq!(profile_below(directory.path(), 4), None);
        fs::write(bundle.join("config.json"), r#"{"linux": {"seccomp": {"defaultAction": "x"}}}"#).unwrap();
        assert_eq!(profile_below(directory.path(), 4), Some(json!({"defaultAction": "x"})));
        assert_eq!(profile_below(directory.path(), 1), None);
    }
}
