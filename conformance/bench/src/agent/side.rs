//! One variation on a node of its own: a Nomad client agent, a containerd, a network namespace and copies of all
//! programs. Submits jobs to it, and looks at their tasks. Knows nothing of what is measured.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use harness::agent::config::{DANGLING_KEPT, DEBUG};
use harness::agent::{Allocation, Client, DOCKER, DRIVER, JobApi, Setup, poll};
use harness::context::{DockerCluster, DockerDriver, DockerNode, DockerNodeSetup};
use harness::fixture::containerd::NAMESPACE;
use harness::fixture::network::Bridge;
use harness::fixture::process::output;
use harness::fixture::{CertificateAuthority, Programs, Registry, RegistrySettings};
use harness::leaks::sweep;
use harness::processes::in_network;
use harness::timeline::{LoggedTimeline, in_agents_log};
use rustix::time::{ClockId, clock_getres};
use serde_json::{Map, Value, json};

use super::floor::RUNTIME;
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

/// Longest time that the driver in Go takes for a single start besides its sleep.
const LONGEST_START: Duration = Duration::from_secs(2);

/// The programs and settings that all sides share.
pub(crate) struct Common<'a> {
    /// Directory of all files of the run.
    pub(crate) directory: &'a Path,
    pub(crate) plugin: &'a Path,
    pub(crate) dockerd: Option<&'a Path>,
    pub(crate) go_driver: Option<&'a Path>,
    /// The time that the driver in Go sleeps before it starts a task's process.
    pub(crate) go_drivers_sleep: Duration,
    /// Whether all agents log at DEBUG.
    pub(crate) timelines: bool,
}

/// The log level of agents: Nomad's default.
pub(crate) const USUAL_LOG_LEVEL: &str = "INFO";
/// What a side's description has, among others: the words of its variation, its runtime's path, the runtime that this
/// driver says it runs, the kind of this driver's build, the agent's log level, and the sleep that is taken out of its
/// times.
pub(crate) const VARIATION: &str = "variation";
pub(crate) const OCI_RUNTIME: &str = "oci_runtime";
pub(crate) const BUILD: &str = "build";
pub(crate) const LOG_LEVEL: &str = "log level";
pub(crate) const SLEEP: &str = "sleep taken out";

/// A variation and its node.
pub(crate) struct Side<'a> {
    // The agent's node is dropped before the link to its containerd.
    node: DockerNode<'a>,
    _socket: Option<SocketLink>,
    /// A registry with TLS, for a driver that knows no other.
    _registry: Option<Registry>,
    pub(crate) variation: Variation,
    /// Path of the OCI runtime that its words name, before it was copied.
    pub(crate) runtime: PathBuf,
    api: JobApi,
    image: String,
    sleep: Duration,
    log_level: &'static str,
    parts: BTreeMap<String, String>,
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
        let is_debug = common.timelines || variation.timelines;
        let log_level = if is_debug { DEBUG } else { USUAL_LOG_LEVEL };
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
            log_level,
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
            log_level,
            parts: BTreeMap::new(),
            runtime: programs.runtime().to_owned(),
            variation,
        };
        side.look_at_parts(programs, plugin)?;
        Ok(side)
    }

    pub(crate) fn name(&self) -> &str {
        &self.variation.name
    }

    /// Returns the id of a job, which no other side has.
    pub(crate) fn job(&self, what: &str) -> String {
        format!("{what}-{}", self.name())
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
        match self.api.submit(&self.specification(name, work))? {
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

    /// Stops a job if it runs still, waits until all of its allocations have ended, and has it forgotten.
    ///
    /// # Errors
    /// Fails if the server doesn't answer, or with the allocation that doesn't end in time.
    pub(crate) fn clear(&self, job: &str, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        let ids = self.client().allocations_of(job)?;
        if !ids.is_empty() {
            self.api.stop(job, false)?;
        }
        for id in &ids {
            let left = limit.saturating_sub(begun.elapsed());
            self.client().allocation_until(id, "end of the allocation", left, Allocation::is_terminal)?;
        }
        // The server knows no job that it has refused.
        let forgotten = self.api.stop(job, true);
        if ids.is_empty() { Ok(()) } else { forgotten }
    }

    /// Returns the name of the driver in jobs.
    fn driver(&self) -> &'static str {
        match self.variation.driver {
            Driver::Docker | Driver::AsDocker => DOCKER,
            Driver::Ours | Driver::Go => DRIVER,
        }
    }

    fn specification(&self, name: &str, work: &Work<'_>) -> Value {
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
    /// that the driver is known for. The kernel notes the beginning of the tick in which a file is made, so half a tick is
    /// added.
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
        let at = fs::metadata(&file)?.modified()? + tick() / 2;
        at.checked_sub(self.sleep).context("a clock before its time")
    }

    /// Checks that the driver sleeps as long as is taken out of its times, by a task's container and its first write.
    ///
    /// # Errors
    /// Says how long it takes from one to the other.
    pub(crate) fn check_sleep(&self, id: &str, written: SystemTime) -> Result<()> {
        if self.variation.driver != Driver::Go {
            return Ok(());
        }
        let ctr = |words: &[&str]| output(self.node.containerd.ctr_command(NAMESPACE).args(words));
        let names = ctr(&["containers", "ls", "-q"])?;
        let name = names.lines().find(|name| name.contains(id)).context("the task has no container")?;
        let container: Value = serde_json::from_str(&ctr(&["containers", "info", name])?)?;
        let made = container["CreatedAt"].as_str().context("a container without the time of its creation")?;
        let made = humantime::parse_rfc3339(made)?;
        sleeps_for(self.sleep, (written + self.sleep).duration_since(made)?)
    }

    /// Returns whether this driver's timelines are in the agent's log.
    pub(crate) fn has_timelines(&self) -> bool {
        self.variation.is_ours() && self.log_level == DEBUG
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
        report_data::Setup { name: self.name().to_owned(), parts: self.parts.clone() }
    }

    /// Adds to the description of the side.
    pub(crate) fn note(&mut self, what: &str, words: String) {
        self.parts.insert(what.to_owned(), words);
    }

    fn look_at_parts(&mut self, programs: &Programs, plugin: &Path) -> Result<()> {
        self.note(VARIATION, self.variation.words.clone());
        self.note("programs", programs.versions().join(", "));
        self.note(RUNTIME, programs.runtime().display().to_string());
        self.note(LOG_LEVEL, self.log_level.to_owned());
        if let Some(dockerd) = &self.node.dockerd {
            let info: Value =
                serde_json::from_str(&dockerd.get("/info")?).context("dockerd's description")?;
            let [version, storage] =
                ["ServerVersion", "Driver"].map(|name| info[name].as_str().unwrap_or("unknown").to_owned());
            ensure!(
                storage.starts_with("overlay"),
                "dockerd has {storage}, where this driver has an overlay"
            );
            self.note("plugin", format!("dockerd {version} with {storage}"));
        } else if self.variation.driver == Driver::Go {
            self.note("plugin", "nomad-driver-containerd".to_owned());
            self.note(SLEEP, format!("{} ms", self.sleep.as_millis()));
        } else {
            let version = version(plugin, &["--version"]);
            self.note("plugin", version.unwrap_or_else(|| "of an unknown version".to_owned()));
            self.note(BUILD, build_of(plugin));
            let health = self.client().driver_of_becomes(self.driver(), true)?;
            let attribute = format!("driver.{}.{OCI_RUNTIME}", self.driver());
            let runtime = health.attributes.and_then(|mut known| known.remove(&attribute));
            self.note(OCI_RUNTIME, runtime.unwrap_or_else(|| "unknown".to_owned()));
        }
        Ok(())
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
    // The image would be pulled again within a measured start, wherever the rounds leave it unused for some minutes.
    setup.image_gc = false;
}

/// Returns the time between two ticks of the clock by which the kernel notes the times of files.
pub(crate) fn tick() -> Duration {
    let tick = clock_getres(ClockId::RealtimeCoarse);
    Duration::from_nanos(u64::try_from(tick.tv_nsec).unwrap_or_default())
}

/// Checks the time from a container's creation to its first write against the sleep that is in it.
///
/// # Errors
/// Says which sleep is taken out of the times, and how long it takes.
fn sleeps_for(sleep: Duration, took: Duration) -> Result<()> {
    let is_it = took.checked_sub(sleep).is_some_and(|rest| rest < LONGEST_START);
    ensure!(
        is_it,
        "--go-driver-sleep is {} ms, and it takes {} ms from a container's creation to its first write",
        sleep.as_millis(),
        took.as_millis()
    );
    Ok(())
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
    fn a_sleep_that_is_not_there_or_is_not_said_is_refused() {
        let (sleep, ms) = (Duration::from_secs(5), Duration::from_millis);
        assert!(sleeps_for(sleep, ms(5_140)).is_ok());
        assert!(sleeps_for(sleep, ms(140)).unwrap_err().to_string().contains("it takes 140 ms"));
        assert!(sleeps_for(Duration::ZERO, ms(140)).is_ok());
        assert!(sleeps_for(Duration::ZERO, ms(5_140)).is_err());
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
