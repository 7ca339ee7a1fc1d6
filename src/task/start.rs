//! A task's start. Its order is that of what has to be undone: the bundle first, marked as doomed, so that whatever
//! comes after is found by its id even when the plugin dies in between; the mark goes once the process runs.
//!
//! The image comes before the rest, since it may take minutes. Then those have their turn that came before, since a machine
//! that starts all at once has none of them started in time. Then the shim is launched while the snapshot, the lease, the
//! record and the user are seen to. A failure at any step is undone by the same teardown that destroys a task.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use containerd_client::types::Mount;
use nix::sys::statvfs::statvfs;
use nomad_proto::driver as pb;
use oci_spec::runtime::Spec;
use shim_protos::{RuncOptions, api};
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;

use super::attempts::Attempt;
use super::events::Teller;
use super::mounts::off_thread;
use super::network::Joined;
use super::output::Output;
use super::place::{self, Place};
use super::queue::{Turn, Wait};
use super::supervisor::{self, Watch};
use super::timeline::{Call, Timeline};
use super::wanted::{ImageSource, Wanted};
use super::{DriverNetwork, Identity, Reservation, Saved, Settings, Started, Starting, Task, Tasks, stats};
use crate::cgroup::Cgroup;
use crate::config::{Labels, Pull, PullPolicy, Sharing, TaskAuth as Auth};
use crate::containerd::{Access, Credentials, Image, Policy, Record, is_server};
use crate::error::{Error, Result};
use crate::init::Init;
use crate::process_stat::{self, ProcessId};
use crate::rootfs;
use crate::shim::{self, Connection, HeldPipes, Shim};
use crate::spec::{self, BoundFile, Pinned};

/// How long an image that was found is taken to be there, which is less than containerd takes to collect one.
const STALE: Duration = Duration::from_secs(1);
/// The label by which containers and leases of this plugin are told from others' in the same namespace.
pub(super) const OWNER_LABEL: &str = "containerd-driver/state-dir";
/// The label that Nomad's docker driver always sets, for tools that look for it.
const DOCKERS_ALLOC_LABEL: &str = "com.hashicorp.nomad.alloc_id";
/// What a shim and a runtime write of one container.
const LEAST_ROOM_BYTES: u64 = 64 * 1024;
const LEAST_FILES: u64 = 16;

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
        let timeline = Timeline::begin();
        let reservation =
            self.reserve(&Identity::of(&config)).await.map_err(|error| error.context(&doing))?;
        let (sender, answer) = oneshot::channel();
        let asker = Asker { answer: sender, called_off: reservation.starting.called_off.clone() };
        tokio::spawn(run(reservation, settings, config, asker, timeline));
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

async fn run(
    reservation: Reservation,
    settings: Arc<Settings>,
    config: pb::TaskConfig,
    mut asker: Asker,
    timeline: Timeline,
) {
    let tasks = Arc::clone(&reservation.tasks);
    let id = &reservation.container_id;
    let containerd = settings.containerd.counted();
    // Held until a failed start is undone: a shim that hangs may open one later, by the descriptor's number.
    let mut pipes = None;
    let started = async {
        let wanted = Box::pin(Wanted::of(&settings, &config, &timeline));
        let wanted = timeline.step("wanted", wanted).await?;
        let place = settings.place_for(id, &wanted.options, &containerd)?;
        let start = Start {
            settings: &settings,
            config: &config,
            wanted: &wanted,
            place: &place,
            tasks: &tasks,
            starting: &reservation.starting,
            timeline: &timeline,
        };
        Box::pin(start.steps(&mut asker, &mut pipes)).await
    };
    let started = started.await;
    timeline.tell(Call::Start, id, started.is_ok(), containerd.calls());
    match started.and_then(|task| Ok((task.saved.encode()?, task))) {
        Ok((driver_state, task)) => {
            tracing::info!(task = config.id, container = id, pid = task.saved.init.pid, "started");
            let network = task.saved.network.clone();
            reservation.fill(Arc::new(task));
            if asker.answer.send(Ok(Started { driver_state, network })).is_err()
                && let Err(error) = tasks.destroy(settings, &config.id, true).await
            {
                tracing::warn!(task = config.id, %error, "what is left of a start called off will be taken down later");
            }
        }
        Err(error) => {
            // Before the teardown makes room.
            let error = if is_full(&settings.config.state_dir).await {
                error.while_full(&settings.config.state_dir)
            } else {
                error
            };
            let place = Place::by_id(&settings, id);
            // Nothing is made before the bundle.
            if place.bundle.exists()
                && let Err(error) = place.tear_down().await
            {
                tracing::warn!(task = config.id, %error, "what is left of a failed start will be taken down later");
            }
            drop(reservation);
            let _ = asker.answer.send(Err(error));
        }
    }
}

/// One start, and what it is made from.
struct Start<'a> {
    settings: &'a Arc<Settings>,
    config: &'a pb::TaskConfig,
    wanted: &'a Wanted,
    place: &'a Place,
    tasks: &'a Arc<Tasks>,
    starting: &'a Starting,
    timeline: &'a Timeline,
}

/// What containerd and the image have for the container.
struct Prepared {
    mounts: Vec<Mount>,
    identity: rootfs::Identity,
    /// Where the paths lead that the runtime opens in the image.
    ends: Arc<rootfs::Ends>,
    /// Where the sources of mounts are held, by target.
    pinned: BTreeMap<String, Pinned>,
}

/// All that a container is created from.
struct Made {
    spec: Spec,
    mounts: Vec<Mount>,
    network: Option<DriverNetwork>,
    connection: Connection,
    shim: Shim,
}

impl Start<'_> {
    /// A start that is called off ends with the image, or with the waits for its snapshot, its network and its shim; or
    /// else is carried through and then undone: a call to containerd that is dropped may still be carried out, after its
    /// undoing.
    async fn steps(&self, asker: &mut Asker, pipes: &mut Option<HeldPipes>) -> Result<Task> {
        let access = self.access()?;
        let output = Output::of(self.settings, &self.wanted.options, self.config, &self.place.bundle);
        output.logs.fit(&self.place.launcher.binary, self.wanted.options.process.tty)?;
        let nomads = output.hold_nomads().await?;
        if self.place.bundle.exists() {
            // Of a start that the plugin did not survive.
            Place::by_id(self.settings, &self.place.id).tear_down().await?;
        }
        tokio::select! {
            ended = self.end_earlier_attempts() => ended?,
            error = asker.called_off() => return Err(error),
        }
        let timeline = self.timeline;
        let hold = self.tasks.image_uses.hold(&self.wanted.image.name()).await;
        let (image, _turn) = Box::pin(self.image_and_turn(&access, asker)).await?;
        timeline.step("bundle", async { self.place.bundle.create(&self.place.launcher.binary) }).await?;
        self.attempt().write(&self.place.bundle)?;
        let (held, kept) = match nomads {
            Some(held) => (held, Vec::new()),
            None => output.make_own()?,
        };
        let held = pipes.insert(held);
        let given_up = CancellationToken::new();
        let made = async {
            tokio::join!(
                timeline.step("container", self.prepare(&image, &given_up)),
                timeline.step("network", self.join_network()),
                timeline.step("shim", self.launch(kept)),
            )
        };
        let mut made = Box::pin(made);
        let (prepared, joined, launched) = tokio::select! {
            made = made.as_mut() => made,
            error = asker.called_off() => {
                given_up.cancel();
                drop(made.await);
                return Err(error);
            }
        };
        drop(made);
        let (prepared, (joined, files), (connection, shim)) = (prepared?, joined?, launched?);
        // From here on the record says that the image is in use.
        drop(hold);
        let spec = self.specification(&image, &prepared, &joined, files)?;
        rootfs::check(&prepared.ends, &spec).await?;
        let made = Made { spec, mounts: prepared.mounts, network: joined.told, connection, shim };
        let task = self.begin(made, output, held, &image).await?;
        *pipes = None;
        // Once more, for whoever has gone away, or stopped it, meanwhile.
        match futures::FutureExt::now_or_never(asker.called_off()) {
            Some(error) => Err(error),
            None => Ok(task),
        }
    }

    /// Whose container it is.
    fn attempt(&self) -> Attempt {
        let Identity { task_id: _, alloc_id, name } = Identity::of(self.config);
        Attempt { alloc_id, task: name, cgroup: self.wanted.cgroup.path.clone() }
    }

    async fn end_earlier_attempts(&self) -> Result<()> {
        let earlier =
            self.tasks.end_earlier_attempts(self.settings, self.place, self.attempt(), self.starting.order);
        earlier.await
    }

    /// The image, and then the turn to make a container from it. While a start is in line the image's name may come to stand
    /// for another image, and the one that was found be collected: then it is looked for again.
    async fn image_and_turn(&self, access: &Access, asker: &mut Asker) -> Result<(Image, Turn)> {
        loop {
            let image = tokio::select! {
                image = self.timeline.step("image", self.image(access.clone())) => image?,
                error = asker.called_off() => return Err(error),
            };
            let found = Instant::now();
            let turn = tokio::select! {
                turn = self.timeline.step("queue", self.turn()) => turn?,
                error = asker.called_off() => return Err(error),
            };
            let containerd = &self.place.containerd;
            if found.elapsed() < STALE || containerd.snapshot_exists(&image.chain_id).await? {
                return Ok((image, turn));
            }
            tracing::info!(
                task = self.config.id,
                image = image.name,
                "the image has gone while the start was in line"
            );
        }
    }

    /// Whom it has to wait for is waited for before: meanwhile others have their turns.
    async fn turn(&self) -> Result<Turn> {
        self.wanted.network.comes(self.tasks, self.config).await?;
        self.starting.is_in_line.store(true, Ordering::Relaxed);
        let starts = &self.settings.starts;
        let tell = |wait| match wait {
            Wait::Begun => {
                tracing::debug!(task = self.config.id, container = self.place.id, "in line for its start");
            }
            Wait::Long => self.teller().queued(starts.at_once()),
        };
        Ok(starts.turn(tell).await)
    }

    /// On what terms the image is pulled. A password goes to no other registry than the one that it is said to be for.
    fn access(&self) -> Result<Access> {
        let Pull { policy, timeout, auth, auth_soft_fail: soft_fail } = self.wanted.options.pull.clone();
        let policy = match policy {
            PullPolicy::Missing => Policy::Missing,
            PullPolicy::Always => Policy::Always,
            PullPolicy::Never => Policy::Never,
        };
        let mut access = Access { policy, timeout, credentials: None, soft_fail };
        let (Some(Auth { username, password, server_address }), ImageSource::Name(reference)) =
            (auth, &self.wanted.image)
        else {
            return Ok(access);
        };
        match server_address.filter(|address| !is_server(address, reference.host())) {
            None => access.credentials = Some(Credentials { username, password }),
            Some(address) => {
                let error = format!(
                    "the option auth.server_address is {address:?}, and the image's registry is {:?}: the credentials \
                     are for another one",
                    reference.host()
                );
                if !soft_fail {
                    return Err(Error::Invalid(error));
                }
                tracing::warn!(task = self.config.id, "{error}; going without (auth_soft_fail)");
            }
        }
        Ok(access)
    }

    async fn image(&self, access: Access) -> Result<Image> {
        let reference = match &self.wanted.image {
            ImageSource::Name(reference) => reference,
            ImageSource::Archive(source) => {
                return Ok(self.place.containerd.load(source.clone(), access.timeout).await?);
            }
        };
        let teller = self.teller();
        let name = reference.to_string();
        let tell = move |event| teller.pull(&name, event);
        Ok(self.place.containerd.image(reference, access, tell).await?)
    }

    async fn launch(&self, kept: Vec<OwnedFd>) -> Result<(Connection, Shim)> {
        let (Place { id, bundle, launcher, .. }, timeline) = (self.place, self.timeline);
        let bootstrap = timeline.step("shim/exec", launcher.start(bundle, id, kept)).await?;
        let connection = timeline.step("shim/connect", Connection::open(&bootstrap, id)).await?;
        let said = timeline.step("shim/ask", connection.pid_of_fresh_shim()).await?;
        let shim = launcher.identify(bootstrap, bundle, id, said).await?;
        bundle.write_shim(&shim)?;
        Ok((connection, shim))
    }

    /// The lease first: whatever is made after it is kept by it.
    async fn prepare(&self, image: &Image, given_up: &CancellationToken) -> Result<Prepared> {
        let (Place { id, bundle, containerd, .. }, timeline) = (self.place, self.timeline);
        let Wanted { options, sources, .. } = self.wanted;
        let labels = self.labels();
        let owner = [(OWNER_LABEL.to_owned(), labels[OWNER_LABEL].clone())].into();
        timeline.step("container/lease", containerd.create_lease(id, owner)).await?;
        let snapshot = containerd.prepare_snapshot(id, &image.chain_id, id, given_up);
        let mounts = Box::pin(timeline.step("container/snapshot", snapshot)).await?;
        let record = Record {
            id: id.clone(),
            image: image.name.clone(),
            runtime: options.runtime.shim(&self.settings.config).to_owned(),
            labels,
            lease: id.clone(),
        };
        let user = user(self.config, image);
        let layers = format!("{} {}", containerd.snapshotter(), image.chain_id);
        let cwd = spec::working_directory(&options.process, image.config.config().as_ref())?;
        let root = rootfs::Root { layers, mounts: mounts.clone(), at: bundle.rootfs(), cwd };
        let groups = options.process.group_add.clone();
        let (recorded, looked, pinned) = tokio::join!(
            timeline.step("container/record", containerd.create_record(record)),
            timeline.step("container/user", rootfs::look(&self.tasks.accounts, root, &user, &groups)),
            timeline.step("container/mounts", sources.pin(bundle)),
        );
        recorded?;
        let (identity, ends) = looked?;
        Ok(Prepared { mounts, identity, ends, pinned: pinned? })
    }

    /// Its addresses are in the files by which the task finds names.
    async fn join_network(&self) -> Result<(Joined, Vec<BoundFile>)> {
        let joined = self.wanted.network.join(self.tasks, self.place, self.config);
        let joined = self.timeline.step("network/join", joined).await?;
        let files = self.wanted.name_files(self.config, &self.place.bundle, &joined);
        let files = self.timeline.step("network/names", files).await?;
        Ok((joined, files))
    }

    fn specification(
        &self,
        image: &Image,
        prepared: &Prepared,
        joined: &Joined,
        mut files: Vec<BoundFile>,
    ) -> Result<Spec> {
        let Wanted {
            options,
            image: _,
            network: _,
            hostname,
            init,
            cgroup,
            node,
            sources: _,
            confinement,
            devices,
        } = self.wanted;
        files.extend(init.clone().map(|source| BoundFile { source, at: spec::INIT, writable: false }));
        let inputs = spec::Inputs {
            options,
            operators: &self.settings.config.limits,
            confinement,
            task: self.config,
            image: &image.config,
            identity: &prepared.identity,
            sources: &prepared.pinned,
            rootfs: self.place.bundle.rootfs(),
            hostname: hostname.clone(),
            network: &joined.namespace,
            files: &files,
            cgroup_path: cgroup.path.clone(),
            node,
            devices,
        };
        Ok(spec::build(&inputs)?)
    }

    /// Creates the container, asks for its end, and only then starts it.
    async fn begin(&self, made: Made, output: Output, held: &HeldPipes, image: &Image) -> Result<Task> {
        let Made { spec, mounts, network, connection, shim } = made;
        let Output { logs, collected } = output;
        let Wanted { options: asked, cgroup, .. } = self.wanted;
        let shares_pids = asked.namespaces.pid_mode == Sharing::Host;
        let (bundle, timeline) = (&self.place.bundle, self.timeline);
        timeline.step("spec", async { bundle.write_spec(&spec) }).await?;
        let options = RuncOptions {
            root: place::runtime_root(self.settings),
            binary_name: asked.runtime.program(&self.settings.config).unwrap_or_default().to_owned(),
            ..RuncOptions::default()
        };
        shim.take_oom_score_of_task(spec::oom_score_adj(&asked.limits, &self.settings.config.limits));
        let rootfs = mounts.into_iter().map(shim_mount).collect();
        let create = connection.create(bundle, rootfs, held, asked.process.tty, &options);
        let pid = timeline.step("create", create).await.map_err(|error| naming_program(error, &spec))?;
        let program = asked.runtime.program(&self.settings.config);
        if shim::sets_oom_scores(&self.place.launcher.binary, program) {
            shim.protect();
        }
        self.unpin().await?;
        if shares_pids {
            bundle.write_spec(&spec::with_private_pids(spec)?)?;
        }
        // Before it can end, so that the kernel's word on its end can be asked for.
        let id = self.first_process(pid, &shim);
        let init = Init::open(id);
        timeline.step("cpuset", place_in_cpuset(cgroup.clone(), id.pid)).await?;
        let oom_kills = cgroup.oom_kills();
        let waiting = supervisor::ask(&connection, "").await;
        timeline.step("start", connection.start()).await?;
        let saved = Saved {
            container_id: self.place.id.clone(),
            shim_binary: self.place.launcher.binary.clone(),
            shim,
            init: id,
            started_at: SystemTime::now(),
            logs,
            collected,
            cgroup: cgroup.clone(),
            shares_pids,
            image_digest: image.digest.clone(),
            stop_signal: stop_signal(image),
            network,
            oom_kills: Some(oom_kills),
        };
        let (place, teller) = (self.place.clone(), self.teller());
        let pump = self.tasks.collect_output(&saved, &teller).await?;
        bundle.keep()?;
        let watch = Watch { saved, place, teller, init, connection, waiting, pump, oom_kills };
        Ok(Task::watched(watch, self.settings))
    }

    /// The task's first process, which has the pid that the shim says only if it is the shim's doing: what descends from it,
    /// or is in the task's cgroup. Any other is not known, and left alone.
    fn first_process(&self, said: i32, shim: &Shim) -> ProcessId {
        let is_in_cgroup = || self.wanted.cgroup.processes().is_ok_and(|pids| pids.contains(&said));
        if said > 1 && (process_stat::descends(said, shim.pid) || is_in_cgroup()) {
            return ProcessId::of(said);
        }
        tracing::warn!(
            container = self.place.id,
            pid = said,
            "the shim names a process as the task's which is none of its own; the kernel is not asked for the task's end"
        );
        ProcessId::UNKNOWN
    }

    /// The kernel may take its time for an unmount.
    async fn unpin(&self) -> Result<()> {
        let bundle = self.place.bundle.clone();
        let place = bundle.directory().to_owned();
        off_thread(&place, "the sources of the task's mounts", move || Ok(bundle.unpin()?)).await
    }

    fn teller(&self) -> Teller {
        Teller { identity: Identity::of(self.config), events: self.tasks.events.clone() }
    }

    /// Nobody's label can take the place of one that comes after it: the job's come first.
    fn labels(&self) -> HashMap<String, String> {
        let own = [
            (OWNER_LABEL, self.settings.config.state_dir.display().to_string()),
            ("nomad/alloc-id", self.config.alloc_id.clone()),
            ("nomad/task-id", self.config.id.clone()),
            ("nomad/task", self.config.name.clone()),
            ("nomad/group", self.config.task_group_name.clone()),
            ("nomad/job", self.config.job_name.clone()),
            ("nomad/namespace", self.config.namespace.clone()),
            (DOCKERS_ALLOC_LABEL, self.config.alloc_id.clone()),
        ];
        let own = own.into_iter().filter(|(_, value)| !value.is_empty());
        let Labels(jobs) = &self.wanted.options.labels;
        jobs.clone()
            .into_iter()
            .chain(self.settings.config.extra_labels.of(self.config))
            .chain(own.map(|(key, value)| (key.to_owned(), value)))
            .collect()
    }
}

impl Task {
    /// A task that runs, or has run, with somebody to watch it.
    pub(super) fn watched(watch: Watch, settings: &Settings) -> Self {
        let (saved, place, connection) = (watch.saved.clone(), watch.place.clone(), watch.connection.clone());
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

/// Whether the file system of a directory has no room for a few files of a few pages, or for a few more files.
async fn is_full(directory: &Path) -> bool {
    let directory = directory.to_owned();
    let look = move || {
        let found = statvfs(&directory).ok()?;
        let free_bytes = found.blocks_available().saturating_mul(found.fragment_size());
        // One without a limit, such as a tmpfs with size=0, says 0 of everything.
        let has_no_room = found.blocks() > 0 && free_bytes < LEAST_ROOM_BYTES;
        Some(has_no_room || (found.files() > 0 && found.files_available() < LEAST_FILES))
    };
    tokio::task::spawn_blocking(look).await.ok().flatten().unwrap_or(false)
}

/// The job's word on the user counts before the image's.
fn user(config: &pb::TaskConfig, image: &Image) -> String {
    if !config.user.is_empty() {
        return config.user.clone();
    }
    image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default()
}

/// The kernel may take its time: a move between control groups of v1 waits for all processors.
async fn place_in_cpuset(cgroup: Cgroup, pid: i32) -> Result<()> {
    let placed = tokio::task::spawn_blocking(move || {
        let Some(cpuset) = cgroup.cpuset.as_ref() else { return Ok(()) };
        let doing = format!("put the task into the cpuset {}", cpuset.display());
        cgroup.place(pid).map_err(|error| Error::system(doing, &error))
    });
    placed.await.map_err(|error| Error::Failed(format!("put the task into its cpuset: {error}")))?
}

fn stop_signal(image: &Image) -> Option<String> {
    image.config.config().as_ref().and_then(|config| config.stop_signal().clone())
}

/// crun does not say what it is that it can't open.
fn naming_program(error: shim::Error, spec: &Spec) -> Error {
    let words = spec.process().as_ref().and_then(|process| process.args().as_ref());
    let error = Error::from(error);
    match words.and_then(|words| words.first()) {
        Some(program) if error.to_string().contains("open executable") => {
            error.context(format_args!("run {program:?}"))
        }
        _ => error,
    }
}

fn shim_mount(mount: Mount) -> api::Mount {
    let Mount { r#type, source, target, options } = mount;
    api::Mount { type_: r#type, source, target, options, ..api::Mount::default() }
}
