//! A task's start. Its order is that of what has to be undone: the bundle first, marked as doomed, so that whatever
//! comes after is found by its id even when the plugin dies in between; the mark goes once the process runs.
//!
//! The image comes before the rest, since it may take minutes. Then the shim is launched while the snapshot, the lease,
//! the record and the user are seen to. A failure at any step is undone by the same teardown that destroys a task.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use containerd_client::types::Mount;
use nomad_proto::driver as pb;
use shim_protos::{RuncOptions, api};
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;

use super::events::{Events, Teller};
use super::mounts::Sources;
use super::place::{self, Place};
use super::supervisor::{self, Watch};
use super::{Identity, Reservation, Saved, Settings, Started, Task, Tasks, node, stats};
use crate::cgroup::Cgroup;
use crate::config::{Dns, Network, Sharing, TaskOptions};
use crate::confinement::{self, Confinement};
use crate::containerd::{Image, Record, Reference};
use crate::error::{Error, Result};
use crate::init::{Init, ProcessId};
use crate::names::{Names, Resolver};
use crate::shim::{Connection, LogPaths, Shim};
use crate::spec::{self, BoundFile};
use crate::{cgroup, names, reaper, rootfs};

/// The label by which containers and leases of this plugin are told from others' in the same namespace.
pub(super) const OWNER_LABEL: &str = "containerd-driver/state-dir";

impl Tasks {
    /// Starts a task. When the caller goes away before it has started, it is taken down again.
    ///
    /// # Errors
    /// Says which step failed, on what; nothing is left of the task then.
    pub(crate) async fn start(
        self: &Arc<Self>,
        settings: Arc<Settings>,
        config: pb::TaskConfig,
    ) -> Result<Started> {
        let doing = format!("start task {}", config.id);
        let reservation =
            self.reserve(&place::container_id(&config.id)).await.map_err(|error| error.context(&doing))?;
        let (sender, answer) = oneshot::channel();
        let asker = Asker { answer: sender, called_off: reservation.called_off.clone() };
        tokio::spawn(run(reservation, settings, config, asker));
        let answer = answer.await.map_err(|_| Error::Failed("it broke off".to_owned()));
        answer.flatten().map_err(|error| error.context(doing))
    }
}

/// Whoever waits for the start, unless they have gone away, or it was told to stop.
struct Asker {
    answer: oneshot::Sender<Result<Started>>,
    called_off: CancellationToken,
}

impl Asker {
    async fn called_off(&mut self) -> Error {
        tokio::select! {
            () = self.answer.closed() => {}
            () = self.called_off.cancelled() => {}
        }
        Error::Failed("called off before it had started".to_owned())
    }
}

async fn run(reservation: Reservation, settings: Arc<Settings>, config: pb::TaskConfig, mut asker: Asker) {
    let tasks = Arc::clone(&reservation.tasks);
    let place = Place::by_id(&settings, &reservation.container_id);
    let start = Start { settings: &settings, config: &config, place: &place, events: tasks.events.clone() };
    let started = Box::pin(start.steps(&mut asker)).await;
    match started.and_then(|task| Ok((task.saved.encode()?, task))) {
        Ok((driver_state, task)) => {
            tracing::info!(task = config.id, container = place.id, pid = task.saved.init.pid, "started");
            reservation.fill(Arc::new(task));
            if asker.answer.send(Ok(Started { driver_state })).is_err()
                && let Err(error) = tasks.destroy(settings, &config.id, true).await
            {
                tracing::warn!(task = config.id, %error, "what is left of a start called off will be taken down later");
            }
        }
        Err(error) => {
            if let Err(error) = place.tear_down().await {
                tracing::warn!(task = config.id, %error, "what is left of a failed start will be taken down later");
            }
            drop(reservation);
            let _ = asker.answer.send(Err(error));
        }
    }
}

/// One start, and what it is made from.
struct Start<'a> {
    settings: &'a Settings,
    config: &'a pb::TaskConfig,
    place: &'a Place,
    events: Events,
}

/// What the shim needs besides itself.
struct Prepared {
    spec: oci_spec::runtime::Spec,
    mounts: Vec<Mount>,
    cgroup: Cgroup,
    shares_pids: bool,
    tty: bool,
}

/// What a job asks for, found to be possible here.
struct Wanted {
    options: TaskOptions,
    network: Network,
    hostname: String,
    /// The host's init program, if the task is to have one.
    init: Option<PathBuf>,
    cgroup: Cgroup,
    node: spec::Node,
    sources: Sources,
    confinement: Confinement,
}

impl Start<'_> {
    /// A start that is called off ends with the image, or else is carried through and then undone: a call to containerd
    /// that is dropped may still be carried out, after its undoing.
    async fn steps(&self, asker: &mut Asker) -> Result<Task> {
        let wanted = self.wanted().await?;
        let reference = wanted.options.image.parse::<Reference>()?;
        let logs =
            LogPaths { stdout: (&self.config.stdout_path).into(), stderr: (&self.config.stderr_path).into() };
        // The place took what it got; a runtime without a shim is said before anything is fetched or made.
        self.settings.shim()?;
        let held = logs.hold_open()?;
        if self.place.bundle.exists() {
            // Of a start that the plugin did not survive.
            self.place.tear_down().await?;
        }
        let image = tokio::select! {
            image = self.image(&reference) => image?,
            error = asker.called_off() => return Err(error),
        };
        self.place.bundle.create()?;
        let (prepared, launched) = tokio::join!(self.prepare(wanted, &image), self.launch());
        let (prepared, (connection, shim)) = (prepared?, launched?);
        let task = self.begin(prepared, connection, shim, logs, &image).await?;
        drop(held);
        // Once more, for whoever has gone away, or stopped it, meanwhile.
        match futures::FutureExt::now_or_never(asker.called_off()) {
            Some(error) => Err(error),
            None => Ok(task),
        }
    }

    /// Whatever can be refused is refused here.
    async fn wanted(&self) -> Result<Wanted> {
        let options = TaskOptions::decode(&self.config.msgpack_driver_config)?;
        options.permitted_by(&self.settings.config)?;
        let network = options.namespaces.network(self.config.network_isolation_spec.as_ref())?;
        let hostname = match &options.names.hostname {
            Some(name) => name.clone(),
            // In the host's network programs look up the address of their host's name.
            None if options.namespaces.uts_mode == Sharing::Host || network == Network::Host => {
                names::hosts_own()?
            }
            None => hostname(self.config),
        };
        let init_path = self.settings.config.init_path.as_deref();
        let init = options.process.init.then(|| reaper::find(init_path)).transpose()?;
        let mut cgroup = cgroup_of(self.config);
        let node = node::look(cgroup.clone()).await?;
        spec::check(&options.limits, self.config, &node)?;
        if options.limits.cpu.is_pinned() {
            cgroup.leave_shared();
        }
        let sources = Sources::open(&options.mounts, &self.settings.config, self.config).await?;
        let confinement = confinement::settle(&options.security, &self.settings.config.gates).await?;
        Ok(Wanted { options, network, hostname, init, cgroup, node, sources, confinement })
    }

    async fn image(&self, reference: &Reference) -> Result<Image> {
        let teller = self.teller();
        let name = reference.to_string();
        Ok(self.settings.containerd.image(reference, move |event| teller.pull(&name, event)).await?)
    }

    async fn launch(&self) -> Result<(Connection, Shim)> {
        let Place { id, bundle, launcher, .. } = self.place;
        let bootstrap = launcher.start(bundle, id).await?;
        let connection = Connection::open(&bootstrap, id).await?;
        let pid = connection.pid_of_fresh_shim().await?;
        let shim = Shim { bootstrap, pid };
        bundle.write_shim(&shim)?;
        shim.protect();
        Ok((connection, shim))
    }

    /// The lease first: whatever is made after it is kept by it.
    async fn prepare(&self, wanted: Wanted, image: &Image) -> Result<Prepared> {
        let Wanted { options, network, hostname, init, cgroup, node, sources, confinement } = wanted;
        let Place { id, bundle, containerd, .. } = self.place;
        let labels = self.labels();
        let owner = [(OWNER_LABEL.to_owned(), labels[OWNER_LABEL].clone())].into();
        containerd.create_lease(id, owner).await?;
        let mounts = containerd.prepare_snapshot(id, &image.chain_id, id).await?;
        let record = Record {
            id: id.clone(),
            image: image.name.clone(),
            runtime: self.settings.config.containerd_runtime.clone(),
            labels,
            lease: id.clone(),
        };
        let user = user(self.config, image);
        let (recorded, identity, files, sources) = tokio::join!(
            containerd.create_record(record),
            rootfs::identity(mounts.clone(), bundle.rootfs(), user, options.process.group_add.clone()),
            self.name_files(&options, &network, &hostname),
            sources.pin(bundle),
        );
        recorded?;
        let (identity, mut files, sources) = (identity?, files?, sources?);
        files.extend(init.map(|source| BoundFile { source, at: spec::INIT, writable: false }));
        let inputs = spec::Inputs {
            options: &options,
            operators: &self.settings.config.limits,
            confinement: &confinement,
            task: self.config,
            image: &image.config,
            identity: &identity,
            sources: &sources,
            rootfs: bundle.rootfs(),
            hostname,
            network: &network,
            files: &files,
            cgroups_are_v2: cgroup::mode() == cgroup::Mode::V2,
            cgroup_path: cgroup.path.clone(),
            node: &node,
        };
        let spec = spec::build(&inputs)?;
        let shares_pids = options.namespaces.pid_mode == Sharing::Host;
        Ok(Prepared { spec, mounts, cgroup, shares_pids, tty: options.process.tty })
    }

    /// The files by which the task finds names, in its bundle.
    async fn name_files(
        &self,
        options: &TaskOptions,
        network: &Network,
        hostname: &str,
    ) -> Result<Vec<BoundFile>> {
        let nomads = self.config.network_isolation_spec.as_ref().and_then(|spec| spec.hosts_config.as_ref());
        let names = Names {
            hostname: hostname.to_owned(),
            address: nomads.and_then(|hosts| hosts.address.parse().ok()),
            extra_hosts: options.names.extra_hosts.clone(),
            in_the_hosts_network: *network == Network::Host,
            resolver: resolver(self.config, options.names.dns),
        };
        let directory = self.place.bundle.names_directory();
        let written = tokio::task::spawn_blocking(move || names.write(&directory)).await;
        let files = written.map_err(|error| Error::Failed(error.to_string()))??;
        let bound = |file: names::NameFile| BoundFile { source: file.source, at: file.at, writable: true };
        Ok(files.into_iter().map(bound).collect())
    }

    /// Creates the container, asks for its end, and only then starts it.
    async fn begin(
        &self,
        prepared: Prepared,
        connection: Connection,
        shim: Shim,
        logs: LogPaths,
        image: &Image,
    ) -> Result<Task> {
        let Prepared { spec, mounts, cgroup, shares_pids, tty } = prepared;
        let bundle = &self.place.bundle;
        bundle.write_spec(&spec)?;
        let options = RuncOptions {
            root: place::runtime_root(self.settings),
            binary_name: self.settings.config.oci_runtime.clone().unwrap_or_default(),
            ..RuncOptions::default()
        };
        let rootfs = mounts.into_iter().map(shim_mount).collect();
        let pid = connection.create(bundle, rootfs, &logs, tty, &options).await?;
        bundle.unpin()?;
        if shares_pids {
            bundle.write_spec(&spec::with_private_pids(spec)?)?;
        }
        // Before it can end, so that the kernel's word on its end can be asked for.
        let id = ProcessId::of(pid);
        let init = Init::open(id);
        cgroup.place(pid).map_err(|error| {
            Error::Failed(format!("put the task into the cpuset {:?}: {error}", cgroup.cpuset))
        })?;
        let waiting = supervisor::ask(&connection, "").await;
        connection.start().await?;
        let saved = Saved {
            container_id: self.place.id.clone(),
            shim_binary: self.place.launcher.binary.clone(),
            shim,
            init: id,
            started_at: SystemTime::now(),
            logs,
            cgroup,
            shares_pids,
            image_digest: image.digest.clone(),
            stop_signal: stop_signal(image),
        };
        bundle.keep()?;
        let watch =
            Watch { saved, place: self.place.clone(), teller: self.teller(), init, waiting, oom_kills: 0 };
        Ok(Task::watched(watch, connection, self.settings))
    }

    fn teller(&self) -> Teller {
        Teller { identity: Identity::of(self.config), events: self.events.clone() }
    }

    fn labels(&self) -> std::collections::HashMap<String, String> {
        [
            (OWNER_LABEL, self.settings.config.state_dir.display().to_string()),
            ("nomad/alloc-id", self.config.alloc_id.clone()),
            ("nomad/task-id", self.config.id.clone()),
            ("nomad/task", self.config.name.clone()),
            ("nomad/group", self.config.task_group_name.clone()),
            ("nomad/job", self.config.job_name.clone()),
            ("nomad/namespace", self.config.namespace.clone()),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }
}

impl Task {
    /// A task that runs, or has run, with somebody to watch it.
    pub(super) fn watched(watch: Watch, connection: Connection, settings: &Settings) -> Self {
        let (saved, place) = (watch.saved.clone(), watch.place.clone());
        let identity = watch.teller.identity.clone();
        let phase = supervisor::watch(watch);
        let stats = Arc::new(stats::Sampler::new(settings.config.stats_interval));
        let (recovered, exec_template) = (Mutex::new(None), OnceCell::new());
        Self { identity, saved, place, connection, phase, stats, recovered, exec_template }
    }
}

impl Identity {
    pub(super) fn of(config: &pb::TaskConfig) -> Self {
        Self { task_id: config.id.clone(), alloc_id: config.alloc_id.clone(), name: config.name.clone() }
    }
}

fn cgroup_of(config: &pb::TaskConfig) -> Cgroup {
    let linux = config.resources.as_ref().and_then(|resources| resources.linux_resources.as_ref());
    Cgroup::of(&config.alloc_id, &config.name, linux.map_or("", |linux| linux.cpuset_cgroup.as_str()))
}

/// The job's word on the user counts before the image's.
fn user(config: &pb::TaskConfig, image: &Image) -> String {
    if !config.user.is_empty() {
        return config.user.clone();
    }
    image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default()
}

/// The servers that Nomad gives count before all else.
fn resolver(config: &pb::TaskConfig, dns: Dns) -> Option<Resolver> {
    let given = config.dns.clone().unwrap_or_default();
    let pb::DnsConfig { servers, searches, options } = given;
    let is_given = !(servers.is_empty() && searches.is_empty() && options.is_empty());
    (is_given || dns == Dns::Host).then_some(Resolver { servers, searches, options })
}

fn stop_signal(image: &Image) -> Option<String> {
    image.config.config().as_ref().and_then(|config| config.stop_signal().clone())
}

/// A name that tells tasks apart: the task's own and the start of its allocation's id, in the letters of host names.
fn hostname(config: &pb::TaskConfig) -> String {
    let short = config.alloc_id.get(..8).unwrap_or(&config.alloc_id);
    let full = format!("{}-{short}", config.name);
    let letters = full.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let mut name: String = letters.skip_while(|c| *c == '-').collect();
    // The kernel's limit is 64, that of DNS 63.
    name.truncate(63);
    name
}

fn shim_mount(mount: Mount) -> api::Mount {
    let Mount { r#type, source, target, options } = mount;
    api::Mount { type_: r#type, source, target, options, ..api::Mount::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_of_a_dns_block_count_before_host_dns() {
        let mut config = pb::TaskConfig::default();
        assert!(resolver(&config, Dns::Image).is_none());
        assert!(resolver(&config, Dns::Host).unwrap().servers.is_empty());
        config.dns = Some(pb::DnsConfig { servers: vec!["10.0.0.1".to_owned()], ..Default::default() });
        for dns in [Dns::Image, Dns::Host] {
            assert_eq!(resolver(&config, dns).unwrap().servers, ["10.0.0.1"]);
        }
    }

    #[test]
    fn a_hostname_has_only_the_letters_of_one() {
        let named = |name: &str| {
            hostname(&pb::TaskConfig {
                name: name.to_owned(),
                alloc_id: "5f1b2c3d-0000".to_owned(),
                ..Default::default()
            })
        };
        assert_eq!(named("redis_task"), "redis-task-5f1b2c3d");
        assert_eq!(named("ü"), "5f1b2c3d");
        assert!(named(&"x".repeat(100)).len() <= 63);
    }
}
