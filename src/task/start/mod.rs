//! A task's start. Its order follows from what has to be undone: the bundle comes first, marked as doomed, so that
//! whatever is made later is found by its id even when the plugin dies in between; the mark is removed once the process
//! runs.
//!
//! The image comes before the rest, since it may take minutes. Then the start waits for its permit: a machine that
//! starts all tasks at once has none of them started in time. Then the shim is launched while the lease, the snapshot and
//! the user are seen to. The record is made beside the container's create. A failure at any step is undone by the same
//! teardown that destroys a task.

mod disk_full;
mod dockerenv;
mod filter_cache;
mod first;
mod host_facts;
mod image;
mod image_volumes;
mod labels;
pub(super) mod limit;
pub(super) mod plan;
mod shim_choice;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use containerd_client::types::Mount;
use nomad_proto::driver as pb;
use oci_spec::runtime::{LinuxCpu, Spec};
use shim_protos::api;
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;

use super::attempt::Attempt;
use super::container::ContainerHandles;
use super::error::{Error, Result};
use super::events::TaskEvents;
use super::log_receiver::{self, Receiver};
use super::network::Joined;
use super::output::Output;
use super::shared_shims;
use super::supervisor::{self, Supervision};
use super::timeline::{Call, Timeline};
use super::{
    DriverNetwork, DriverState, Identity, Reservation, Settings, Started, Starting, Task, Tasks,
    auto_runtime, stats,
};
use crate::cgroup::{self, Limit, MoveWindow};
use crate::config::Sharing;
use crate::containerd::{Image, Record};
use crate::image::user;
use crate::security::{self, Confined};
use crate::shim::{self, Bundle, BundleEventSocket, Connection, Family, HeldPipes, Holds, Shim};
use crate::spec::{self, BoundFile, ImageVolume, StagedSource};
use crate::sys::error_chain::Chained;
use disk_full::is_full;
use first::First;
use image_volumes::Volumes;
pub(super) use image_volumes::check_not_filled;
pub(super) use labels::OWNER_LABEL;
use plan::StartPlan;

impl Tasks {
    /// Starts a task. If the caller goes away before it has started, it is taken down again.
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
        self.group_networks.has_alloc_dir(&config.alloc_dir);
        let reservation =
            self.reserve(&Identity::of(&config)).await.map_err(|error| error.context(&doing))?;
        let (sender, answer) = oneshot::channel();
        let caller = StartCaller { answer: sender, cancelled: reservation.starting.cancelled.clone() };
        tokio::spawn(run(reservation, settings, config, caller, timeline));
        let answer = answer.await.map_err(|_| Error::failed("it was interrupted"));
        answer.flatten().map_err(|error| error.context(doing))
    }
}

/// The caller of a start, who may go away or cancel it.
struct StartCaller {
    answer: oneshot::Sender<Result<Started>>,
    cancelled: CancellationToken,
}

impl StartCaller {
    async fn cancelled(&mut self) -> Error {
        tokio::select! {
            () = self.answer.closed() => {}
            () = self.cancelled.cancelled() => {}
        }
        Error::failed("cancelled before it had started")
    }
}

async fn run(
    reservation: Reservation,
    settings: Arc<Settings>,
    config: pb::TaskConfig,
    mut caller: StartCaller,
    timeline: Timeline,
) {
    let tasks = Arc::clone(&reservation.tasks);
    let id = &reservation.container_id;
    let containerd = settings.containerd.counted();
    // Held until a failed start is undone: a shim that hangs may open a pipe later, by the descriptor's number.
    let mut pipes = None;
    let mut own_container = None;
    let removed_filters = filter_cache::removed();
    let unanswered = OnceLock::new();
    let started = async {
        tokio::select! {
            checked = tasks.dockerd_containers.check(settings.config.name, &config) => checked?,
            error = caller.cancelled() => return Err(error),
        }
        let plan = Box::pin(StartPlan::resolve(&settings, &config, &timeline));
        let plan = timeline.step("wanted", plan).await?;
        let container = &*own_container.insert(settings.container_for(id, &plan, &containerd).await?);
        let start = Start {
            settings: &settings,
            config: &config,
            plan: &plan,
            container,
            tasks: &tasks,
            starting: &reservation.starting,
            timeline: &timeline,
            unanswered: &unanswered,
        };
        Box::pin(start.steps(&mut caller, &mut pipes)).await
    };
    let started = started.await;
    tasks.spares.has_started();
    timeline.tell(Call::Start, id, started.is_ok(), containerd.calls());
    match started.and_then(|task| Ok((task.driver_state.encode()?, task))) {
        Ok((driver_state, task)) => {
            tracing::info!(task = config.id, container = id, pid = task.driver_state.init.pid, "started");
            let network = task.driver_state.network.clone();
            reservation.fill(Arc::new(task));
            if caller.answer.send(Ok(Started { driver_state, network })).is_err()
                && let Err(error) = tasks.destroy(settings, &config.id, true).await
            {
                tracing::warn!(task = config.id, error = %error.chain(), "the rest of a cancelled start is removed later");
            }
        }
        Err(error) => {
            // Checked before the teardown makes room.
            let error = if is_full(&settings.config.state_dir).await {
                error.while_full(&settings.config.state_dir)
            } else {
                error
            };
            let container = own_container.unwrap_or_else(|| ContainerHandles::by_id(&settings, id));
            let error = filter_cache::after(error, &container, removed_filters).await;
            // Nothing is made before the bundle.
            if container.bundle.off_thread(Bundle::exists).await
                && let Err(error) = tasks.tear_down(&settings, &container).await
            {
                tracing::warn!(task = config.id, error = %error.chain(), "the rest of a failed start is removed later");
            }
            if let (Some(shim), Some(pipes)) = (unanswered.into_inner(), pipes) {
                shared_shims::hold_for_late_create(shim, id.clone(), pipes);
            }
            drop(reservation);
            let _ = caller.answer.send(Err(error));
        }
    }
}

/// A start that is under way, with what it is made from.
struct Start<'a> {
    settings: &'a Arc<Settings>,
    config: &'a pb::TaskConfig,
    plan: &'a StartPlan,
    container: &'a ContainerHandles,
    tasks: &'a Arc<Tasks>,
    starting: &'a Starting,
    timeline: &'a Timeline,
    /// The shared shim that has given no answer to a create.
    unanswered: &'a OnceLock<Shim>,
}

async fn or_give_up<T>(step: impl Future<Output = Result<T>>, given_up: &CancellationToken) -> Result<T> {
    let done = step.await;
    if done.is_err() {
        given_up.cancel();
    }
    done
}

/// The parts of the container that are from containerd and the image.
struct Prepared {
    mounts: Vec<Mount>,
    /// What containerd is to know of the container, from the create on.
    record: Record,
    identity: user::Identity,
    /// Image in which the paths that the runtime opens are checked ([`user::check`]).
    ends: Arc<user::Ends>,
    /// Places where the sources of mounts are staged, by target.
    staged: BTreeMap<String, StagedSource>,
    image_volumes: Vec<ImageVolume>,
}

/// The parts that a container is created from.
struct Made {
    spec: Spec,
    mounts: Vec<Mount>,
    record: Record,
    network: Option<DriverNetwork>,
    connection: Connection,
    shim: Shim,
    window: MoveWindow,
}

impl Start<'_> {
    /// Returns an error of a step that uses the snapshot with the reason that the snapshot is gone, if it is.
    async fn with_lost_snapshot(&self, error: Error) -> Error {
        let id = &self.container.id;
        if !matches!(error, Error::Failed(_)) {
            return error;
        }
        match self.container.containerd.snapshot_exists(id).await {
            Ok(false) => error.without_snapshot(id),
            _ => error,
        }
    }

    /// Runs the steps of the start. A start that is cancelled before the bundle is made ends at once. Later it ends
    /// when the snapshot, the network and the shim are no longer being made (a wait for the snapshot is cut short), or
    /// else is carried through, and is then undone: a call to containerd that is dropped may still be carried out,
    /// after its undoing.
    async fn steps(&self, caller: &mut StartCaller, pipes: &mut Option<HeldPipes>) -> Result<Task> {
        self.task_events().without_effect(&self.plan.options.warnings_under(&self.settings.config));
        let pull_options = self.pull_options()?;
        let output = Output::of(self.settings, &self.plan.options, self.config, &self.container.bundle)?;
        output.logs.check_writable_by(&self.container.launcher.binary, self.plan.options.process.tty)?;
        let nomads = output.hold_nomads().await?;
        let nomads_writers = output.open_nomads().await?;
        output.check_receiver().await?;
        if self.container.bundle.off_thread(Bundle::exists).await {
            // Left by a start that the plugin did not survive.
            let left = ContainerHandles::by_id(self.settings, &self.container.id);
            self.tasks.tear_down(self.settings, &left).await?;
        }
        tokio::select! {
            ended = self.end_earlier_attempts() => ended?,
            error = caller.cancelled() => return Err(error),
        }
        let timeline = self.timeline;
        // For as long as the container has no record, which keeps the image then.
        let _hold = self.tasks.image_uses.hold(&self.plan.image.name()).await;
        let (image, _permit) = Box::pin(self.image_and_permit(&pull_options, caller)).await?;
        let window = MoveWindow::open();
        let share_key = self.share_key().await;
        let inherits = !nomads_writers.is_empty() || self.plan.options.process.needs_stdin();
        let needs = match (share_key.is_some() || inherits, nomads.is_none()) {
            (true, _) => None,
            (false, true) => Some(Holds::Pipes),
            (false, false) => Some(Holds::Nothing),
        };
        let spare = timeline.step("bundle", self.make_bundle(needs)).await?;
        let (held, mut inherited) = match nomads {
            // Where nothing is written, Nomad's collector is to wait all the same for as long as the task is there.
            Some(held) => (held, nomads_writers),
            None => output.make_own(nomads_writers).await?,
        };
        let held = pipes.insert(held);
        if self.plan.options.process.needs_stdin() {
            inherited.push(held.make_stdin(&self.container.bundle).await?);
        }
        // Takes the shim's events until the keeper of the sandbox does.
        let _events = match self.plan.runtime.family {
            Family::Gvisor => Some(self.container.bundle.off_thread(BundleEventSocket::in_bundle).await?),
            Family::Runc | Family::Other => None,
        };
        let given_up = CancellationToken::new();
        let made = async {
            // Where one fails, a container that takes long is given up.
            tokio::join!(
                timeline.step("container", self.prepare(&image, &given_up)),
                or_give_up(timeline.step("network", self.join_network()), &given_up),
                or_give_up(
                    timeline.step("shim", self.shim(spare, share_key, inherited, &given_up)),
                    &given_up
                ),
            )
        };
        let mut made = Box::pin(made);
        let (prepared, joined, launched) = tokio::select! {
            made = made.as_mut() => made,
            error = caller.cancelled() => {
                given_up.cancel();
                drop(made.await);
                return Err(error);
            }
        };
        drop(made);
        // The container's may be that it was given up.
        let ((joined, files), (connection, shim)) = (joined?, launched?);
        let prepared = prepared?;
        let spec = self.specification(&image, &prepared, &joined, files)?;
        if let Err(error) = user::check(&prepared.ends, &spec).await {
            return Err(self.with_lost_snapshot(error.into()).await);
        }
        let (mounts, record, network) = (prepared.mounts, prepared.record, joined.driver_network);
        let made = Made { spec, mounts, record, network, connection, shim, window };
        let task = match Box::pin(self.begin(made, output, held, &image)).await {
            Ok(task) => task,
            Err(error) => return Err(self.with_lost_snapshot(error).await),
        };
        *pipes = None;
        // Checked once more, for a caller that has gone away or cancelled meanwhile.
        match futures::FutureExt::now_or_never(caller.cancelled()) {
            Some(error) => Err(error),
            None => Ok(task),
        }
    }

    /// Returns the attempt that the container belongs to.
    fn attempt(&self) -> Attempt {
        let Identity { task_id: _, alloc_id, name } = Identity::of(self.config);
        Attempt { alloc_id, task: name, cgroup: self.plan.cgroup.path.clone() }
    }

    async fn end_earlier_attempts(&self) -> Result<()> {
        let earlier = self.tasks.end_earlier_attempts(
            self.settings,
            self.container,
            self.attempt(),
            self.starting.order,
        );
        earlier.await
    }

    /// Makes the container's parts in containerd. The lease comes first, since it keeps whatever is made after it.
    async fn prepare(&self, image: &Image, given_up: &CancellationToken) -> Result<Prepared> {
        let (ContainerHandles { id, bundle, containerd, .. }, timeline) = (self.container, self.timeline);
        let StartPlan { options, sources, .. } = self.plan;
        let labels = self.labels();
        let owner = [(OWNER_LABEL.to_owned(), labels[OWNER_LABEL].clone())].into();
        timeline.step("container/lease", containerd.create_lease(id, owner)).await?;
        let snapshot = containerd.prepare_snapshot(id, &image.chain_id, id, given_up);
        let mounts = Box::pin(timeline.step("container/snapshot", snapshot)).await?;
        if self.settings.config.name.is_docker()
            && let Err(error) = dockerenv::make(&mounts).await
        {
            return Err(self.with_lost_snapshot(error).await);
        }
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
        let root = user::Root { layers, mounts: mounts.clone(), at: bundle.rootfs(), cwd };
        let groups = options.process.group_add.clone();
        let (looked, staged, volumes) = tokio::join!(
            timeline.step("container/user", user::look(&self.tasks.accounts, root, &user, &groups)),
            timeline.step("container/mounts", sources.stage(bundle)),
            timeline.step("container/volumes", self.volumes(image, &mounts, given_up)),
        );
        let (identity, ends) = match looked {
            Ok(looked) => looked,
            Err(error) => return Err(self.with_lost_snapshot(error.into()).await),
        };
        let Volumes { of_image: image_volumes, of_job } = match volumes {
            Ok(volumes) => volumes,
            Err(error) => return Err(self.with_lost_snapshot(error).await),
        };
        let mut staged = staged?;
        staged.extend(of_job);
        Ok(Prepared { mounts, record, identity, ends, staged, image_volumes })
    }

    /// Joins the network, then writes the name files, which have the addresses in them.
    async fn join_network(&self) -> Result<(Joined, Vec<BoundFile>)> {
        let is_sandboxed = self.plan.runtime.family == Family::Gvisor;
        let joined = self.plan.network.join(self.tasks, self.container, self.config, is_sandboxed);
        let joined = self.timeline.step("network/join", joined).await?;
        let files = self.plan.name_files(self.settings, self.config, &self.container.bundle, &joined);
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
        let StartPlan {
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
            runtime,
        } = self.plan;
        files.extend(init.clone().map(|source| BoundFile { source, at: spec::INIT, writable: false }));
        let inputs = spec::Inputs {
            options,
            plugin_limits: &self.settings.config.limits,
            confinement,
            task: self.config,
            image: &image.config,
            identity: &prepared.identity,
            sources: &prepared.staged,
            rootfs: self.container.bundle.rootfs(),
            hostname: hostname.clone(),
            network: &joined.namespace,
            files: &files,
            image_volumes: &prepared.image_volumes,
            cgroup_path: cgroup.path.clone(),
            host: node,
            devices,
            is_sandboxed: runtime.family == Family::Gvisor,
        };
        Ok(spec::build(&inputs)?)
    }

    /// Creates the container, sends the shim a Wait for its exit, and only then starts it.
    async fn begin(&self, made: Made, output: Output, held: &HeldPipes, image: &Image) -> Result<Task> {
        let Made { spec, mounts, record, network, connection, shim, window } = made;
        let Output { logs, collected, receiver, forwarded, nomads_pipes: _ } = output;
        let StartPlan { options: requested, cgroup, runtime, .. } = self.plan;
        let (bundle, timeline) = (&self.container.bundle, self.timeline);
        self.record_receiver(receiver, &spec, image).await?;
        let spec = Arc::new(spec);
        let written = Arc::clone(&spec);
        timeline.step("spec", bundle.off_thread(move |bundle| bundle.write_spec(&written))).await?;
        let limits = limits(&spec);
        if !shim.is_shared() {
            shim.set_oom_score_of_task(spec::oom_score_adj(&requested.limits, &self.settings.config.limits));
        }
        let rootfs = mounts.into_iter().map(shim_mount).collect();
        if runtime.family == Family::Gvisor {
            self.leave_cgroup_to_runtime().await?;
        }
        // Another program may have unloaded it while the image was pulled.
        security::load_profile(self.plan.confinement.apparmor_profile.as_deref(), Confined::Task).await?;
        if let Some(crun) = runtime.chosen_crun {
            auto_runtime::check_unchanged(crun).await?;
        }
        // What came before may have taken the whole time of the first.
        window.renew();
        let create = self.create(&connection, &shim, rootfs, held);
        let pid = Box::pin(self.create_and_record(create, record, &spec)).await?;
        if requested.security.no_new_privileges {
            filter_cache::check(self.container, requested.security.seccomp_profile.as_ref()).await?;
        }
        let shares_pids = requested.namespaces.pid_mode == Sharing::Host;
        let spec = Arc::unwrap_or_clone(spec);
        let next_spec = shares_pids.then(|| spec::with_private_pids(spec).map(Box::new)).transpose()?;
        let settled = timeline.step("settle", self.settle(pid, &shim, limits, next_spec, held.ids()));
        let First { id, init, oom_kills } = settled.await?;
        drop(window);
        let waiting = shim::wait_pending(&connection, "").await;
        let start = shim::with_runtime_reason(bundle, connection.start());
        let unstaging = self.unstage();
        let started = timeline.step("start", start).await;
        let started_at = SystemTime::now();
        timeline.step("unstage", unstaging.wait()).await;
        started?;
        let driver_state = DriverState {
            container_id: self.container.id.clone(),
            shim_binary: self.container.launcher.binary.clone(),
            family: Some(runtime.family),
            shim,
            init: id,
            started_at,
            logs,
            collected,
            cgroup: cgroup.clone(),
            shares_pids,
            image_digest: image.digest.clone(),
            stop_signal: stop_signal(image),
            network,
            oom_kills: Some(oom_kills),
            runsc: runtime.options.runsc().map(str::to_owned),
            forwarded,
            chosen_crun: runtime.chosen_crun.is_some(),
        };
        let (container, task_events) = (self.container.clone(), self.task_events());
        let log_collector = self.tasks.collect_output(bundle, &driver_state, &task_events).await?;
        bundle.off_thread(Bundle::clear_removal_mark).await?;
        let supervision = Supervision {
            driver_state,
            container,
            task_events,
            init,
            had_exited: false,
            connection,
            waiting,
            log_collector,
            oom_kills,
        };
        Ok(Task::supervised(supervision, self.settings))
    }

    /// Carries a create out, and beside it tells containerd of the container, whose snapshot the lease keeps until then.
    /// Waits for both answers: a start or a teardown must not come before either. Returns the pid of the first process.
    async fn create_and_record(
        &self,
        create: impl Future<Output = std::result::Result<i32, shim::Error>>,
        record: Record,
        spec: &Spec,
    ) -> Result<i32> {
        let ContainerHandles { id, containerd, .. } = self.container;
        let (created, recorded) = tokio::join!(
            self.timeline.step("create", create),
            self.timeline.step("record", containerd.create_record(record)),
        );
        if let (Err(_), Err(error)) = (&created, &recorded) {
            tracing::warn!(container = id, error = %error.chain(), "can't tell containerd of a container whose create failed as well");
        }
        let pid = created.map_err(|error| naming_program(error, spec))?;
        recorded?;
        Ok(pid)
    }

    /// Has the shim create the container. Returns the pid of its first process, as the shim says it.
    async fn create(
        &self,
        connection: &Connection,
        shim: &Shim,
        rootfs: Vec<api::Mount>,
        held: &HeldPipes,
    ) -> std::result::Result<i32, shim::Error> {
        let StartPlan { options, runtime, .. } = self.plan;
        let bundle = &self.container.bundle;
        let _creating = shim.creating();
        let create = connection.create(bundle, rootfs, held, options.process.tty, &runtime.options);
        let created = shim::with_runtime_reason(bundle, create).await;
        if shim.is_shared()
            && let Err(error) = &created
        {
            if !error.is_refusal() {
                let _ = self.unanswered.set(shim.clone());
            } else if error.is_shortage() {
                tracing::warn!(container = self.container.id, shim = shim.shared, error = %error.chain(), "a shared shim lacks what it takes to create a container; it gets no more tasks");
                self.container.retire_shared(shim).await;
            }
        }
        created
    }

    /// Keeps what a log receiver is told of the container in the bundle, and tells of labels and variables that it
    /// isn't told.
    async fn record_receiver(&self, receiver: Option<Receiver>, spec: &Spec, image: &Image) -> Result<()> {
        let Some(receiver) = receiver else { return Ok(()) };
        let container = log_receiver::Container {
            id: &self.container.id,
            config: self.config,
            image_name: &self.plan.options.image,
            image_digest: &image.digest,
            spec,
            labels: self.labels(),
        };
        let (forwarding, left_out) = receiver.forwarding(container).await;
        self.task_events().attributes_left_out(&left_out);
        self.container.bundle.off_thread(move |bundle| log_receiver::write(bundle, &forwarding)).await
    }

    /// Removes the empty cgroup that the agent has made for the task: gVisor's runtime sets no limits on a cgroup that
    /// it finds there.
    async fn leave_cgroup_to_runtime(&self) -> Result<()> {
        let path = &self.plan.cgroup.path;
        cgroup::remove_empty(path).await.map_err(|error| {
            let shown = path.display();
            let doing = format!("remove the task's cgroup {shown}, so that it is created with its limits");
            Error::transient(error).context(doing)
        })
    }

    fn task_events(&self) -> TaskEvents {
        TaskEvents { identity: Identity::of(self.config), events: self.tasks.events.clone() }
    }
}

impl Task {
    /// Returns a task that runs, or has run, and starts its supervisor.
    pub(super) fn supervised(supervision: Supervision, settings: &Settings) -> Self {
        let (driver_state, container, connection) =
            (supervision.driver_state.clone(), supervision.container.clone(), supervision.connection.clone());
        let identity = supervision.task_events.identity.clone();
        let phase = supervisor::supervise(supervision);
        let stats = Arc::new(stats::Sampler::new(settings.config.stats_interval));
        let (recovered, exec_template) = (Mutex::new(None), OnceCell::new());
        Self { identity, driver_state, container, connection, phase, stats, recovered, exec_template }
    }
}

impl Identity {
    pub(super) fn of(config: &pb::TaskConfig) -> Self {
        Self { task_id: config.id.clone(), alloc_id: config.alloc_id.clone(), name: config.name.clone() }
    }
}

/// Returns the task's user: the job's, else the image's.
fn user(config: &pb::TaskConfig, image: &Image) -> String {
    if !config.user.is_empty() {
        return config.user.clone();
    }
    image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default()
}

fn stop_signal(image: &Image) -> Option<String> {
    image.config.config().as_ref().and_then(|config| config.stop_signal().clone())
}

/// Returns the limits that the runtime is to set.
fn limits(spec: &Spec) -> Vec<Limit> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref()?.limit());
    let pids = resources.and_then(|resources| Some(resources.pids().as_ref()?.limit()));
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let quota = cpu.and_then(|cpu| Some(Limit::Cpu { quota_us: cpu.quota()?, period_us: cpu.period()? }));
    let limits = [
        memory.filter(|bytes| *bytes > 0).map(Limit::MemoryBytes),
        pids.filter(|count| *count > 0).map(Limit::Pids),
        quota,
        cpu.and_then(LinuxCpu::shares).map(Limit::CpuShares),
    ];
    limits.into_iter().flatten().collect()
}

/// Adds the program's name to an error of crun's, which does not say what it can't open.
fn naming_program(error: shim::Error, spec: &Spec) -> Error {
    let words = spec.process().as_ref().and_then(|process| process.args().as_ref());
    let error = Error::from(error);
    match words.and_then(|words| words.first()) {
        Some(program) if error.chain().to_string().contains("open executable") => {
            error.context(format_args!("run {program:?}"))
        }
        _ => error,
    }
}

fn shim_mount(mount: Mount) -> api::Mount {
    let Mount { r#type, source, target, options } = mount;
    api::Mount { type_: r#type, source, target, options, ..api::Mount::default() }
}
