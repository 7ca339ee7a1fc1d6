//! The tasks of this plugin, and the calls on one. A task's life is in the modules below, one for each part: [`start`],
//! [`supervisor`] (the only writer of its phase), [`stop`], [`exec`], [`stats`], [`recover`], [`teardown`].
//!
//! A task's container has one id everywhere (bundle, shim, snapshot, lease, record), which derives from Nomad's id of
//! the task. So whatever is left of a task can be found and taken down by that id alone.

mod agent;
mod attempts;
mod claim;
mod ending;
mod events;
mod exec;
mod images;
mod mounts;
mod network;
mod node;
mod orphans;
mod output;
mod place;
mod queue;
mod recover;
mod restore;
mod room;
mod runtime;
mod signal;
mod start;
mod stats;
mod stop;
mod stuck;
mod supervisor;
mod sweep;
mod teardown;
mod timeline;
mod wanted;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OnceCell, watch};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use crate::cgroup::Cgroup;
use crate::cni::{Cni, DefaultNetwork};
use crate::config::{Auth, Bridge, Inline, PluginConfig, Pulls};
use crate::containerd::{Containerd, ImageTerms, PullTerms};
use crate::error::{Error, Result};
use crate::image::user;
use crate::logs::{Target, WriterPool};
use crate::registry::{Credentials, Keyring};
use crate::shim::{self, Connection, Family, LogPaths, Shim};
use crate::sys::host_files;
use crate::sys::procfs::ProcessId;
pub(crate) use agent::Agent;
use claim::Claims;
pub(crate) use events::TaskEvent;
use events::{Events, Teller};
pub(crate) use exec::{Exec, ExecOutput, ExecRefused, Output, Stdin, Terminal, TerminalSize};
pub(crate) use network::DriverNetwork;
use place::Place;
use queue::Queue;
pub(crate) use stats::{Load, Reading};
use wanted::Wanted;

/// Namespace in containerd of everything that this driver makes. `ctr -n nomad` shows it.
const NAMESPACE: &str = "nomad";

/// The plugin's configuration, and the clients that are built from it.
pub(crate) struct Settings {
    pub config: PluginConfig,
    pub containerd: Containerd,
    pub cni: Arc<Cni>,
    events: shim::EventSocket,
    start_inputs: shim::StartInputs,
    /// Average speed of a CPU core in MHz, as the agent counts it.
    pub mhz_per_core: f64,
    starts: Queue,
}

impl Settings {
    /// Builds the settings without any connection or I/O.
    ///
    /// # Errors
    /// Names an option that a shim can't have.
    pub(crate) fn new(config: PluginConfig, mhz_per_core: f64) -> Result<Self> {
        runtime::check_options(&config)?;
        runtime::tell_of_unknown(&config);
        let socket = config.containerd_socket.clone();
        let images = ImageTerms {
            keyring: keyring(&config.auth),
            hosts: config.registry_config_dir.clone(),
            pulls: terms(&config.pulls),
            owner: config.state_dir.display().to_string(),
        };
        let containerd = Containerd::new(socket, NAMESPACE, &config.snapshotter, images);
        let networks = &config.networks;
        let cni = Cni::new(
            networks.cni_path.clone(),
            networks.cni_config_dir.clone(),
            default_network(&networks.bridge, &config.state_dir),
            networks.cni_timeout,
        );
        let cni = Arc::new(cni);
        let starts = Queue::new(config.start_limit.max_concurrent_starts());
        let events = shim::EventSocket::of(&config.state_dir);
        let start_inputs = shim::StartInputs::default();
        Ok(Self { config, containerd, cni, events, start_inputs, mhz_per_core, starts })
    }

    /// Returns the path of the configured runtime's shim binary.
    ///
    /// # Errors
    /// Names the file that was looked for, and where.
    pub(crate) async fn shim(&self) -> Result<PathBuf> {
        find_programs(self.config.containerd_runtime.clone(), None).await
    }

    /// Resolves the handles to the container of a task that starts, with the shim, OCI runtime and snapshotter that its
    /// job and the operator choose.
    ///
    /// # Errors
    /// When the shim of the task's runtime is missing, or the OCI runtime that the shim is to run.
    async fn place_for(&self, container_id: &str, wanted: &Wanted, containerd: &Containerd) -> Result<Place> {
        let runtime = &wanted.options.runtime;
        let program = runtime.program(&self.config).map(str::to_owned);
        let shim = find_programs(runtime.shim(&self.config).to_owned(), program).await?;
        let mut place = Place::of(self, container_id, shim);
        place.launcher.family = wanted.runtime.family;
        place.containerd = containerd.with_snapshotter(runtime.snapshotter(&self.config));
        Ok(place)
    }
}

/// Finds a runtime's shim, and checks that the OCI runtime which it is to run exists. The lookup has a time limit,
/// since a directory of PATH may be on a slow file system.
async fn find_programs(runtime: String, program: Option<String>) -> Result<PathBuf> {
    let named = [Some(runtime.as_str()), program.as_deref()].into_iter().flatten();
    let place = named.map(Path::new).find(|path| path.is_absolute()).unwrap_or(Path::new("/usr")).to_owned();
    let find = move || {
        let shim = shim::find_shim(&runtime)?;
        program.as_deref().map_or(Ok(()), shim::require_program)?;
        Ok::<_, shim::Error>(shim)
    };
    let found = host_files::look(&place, host_files::LIMIT, find).await;
    Ok(found.map_err(|error| Error::system("find the programs of the runtime, by PATH", &error))??)
}

fn terms(pulls: &Pulls) -> PullTerms {
    let Pulls { max_parallel, max_parallel_layers, activity_timeout, max_image_bytes, max_unpacked_bytes } =
        *pulls;
    PullTerms {
        pulls_at_once: max_parallel,
        layers_at_once: max_parallel_layers,
        activity_timeout,
        image_limit_bytes: max_image_bytes,
        unpacked_limit_bytes: max_unpacked_bytes,
    }
}

/// Returns the settings of the built-in network. Its address leases are in the state directory: where that is emptied
/// at a reboot, they go together with the network namespaces that have the addresses.
fn default_network(bridge: &Bridge, state_dir: &Path) -> DefaultNetwork {
    let Bridge { name, subnets, hairpin } = bridge;
    DefaultNetwork {
        name: name.clone(),
        bridge: name.clone(),
        subnets: subnets.clone(),
        hairpin: *hairpin,
        leases: state_dir.join("leases"),
    }
}

fn keyring(auth: &Auth) -> Keyring {
    let Auth { inline, config, helper, helper_env } = auth.clone();
    let inline = inline.map(|Inline { username, password, server_address }| {
        (server_address, Credentials { username, password })
    });
    Keyring { inline, config, helper, helper_env }
}

/// A task's exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub code: i32,
    pub signal: i32,
    pub oom_killed: bool,
    pub at: SystemTime,
    /// Reason why the task's own exit status is not known. `code` and `signal` are substitutes then.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Exited(Exit),
}

/// A task's identity in Nomad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub task_id: String,
    pub alloc_id: String,
    pub name: String,
}

/// The driver state: everything needed to find a running task again. Nomad keeps it in the task's handle, and hands it
/// back at a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    container_id: String,
    /// Path of the binary that the shim was started from. The shim's own clean-up is run with it.
    shim_binary: PathBuf,
    /// Kind of the shim; `None` if an earlier build of the plugin started the task.
    #[serde(default)]
    family: Option<Family>,
    shim: Shim,
    init: ProcessId,
    started_at: SystemTime,
    logs: LogPaths,
    /// Log files that the driver itself writes the output to; `None` if somebody else reads the pipes.
    #[serde(default)]
    collected: Option<Target>,
    cgroup: Cgroup,
    /// Whether the task is in the host's pid namespace, where its processes don't end with the first one by themselves.
    shares_pids: bool,
    image_digest: String,
    /// Stop signal that the image names.
    stop_signal: Option<String>,
    /// Network that is reported to Nomad, such as one of the task's own.
    #[serde(default)]
    network: Option<DriverNetwork>,
    /// Number of OOM kills in the task's cgroup before it was started: those of an earlier attempt. `None` if an
    /// earlier build of the plugin started the task.
    #[serde(default)]
    oom_kills: Option<u64>,
    /// Path of the `runsc` that runs a task in gVisor's sandbox.
    #[serde(default)]
    runsc: Option<String>,
}

impl Saved {
    fn family(&self) -> Family {
        self.family.unwrap_or_else(|| Family::of_binary(&self.shim_binary))
    }
}

/// The result of a start, for Nomad.
pub(crate) struct Started {
    pub driver_state: Vec<u8>,
    pub network: Option<DriverNetwork>,
}

/// A task whose process has started, and may have exited. Lives until its DestroyTask.
pub(crate) struct Task {
    identity: Identity,
    saved: Saved,
    place: Place,
    connection: Connection,
    phase: watch::Receiver<Phase>,
    stats: Arc<stats::Sampler>,
    /// Sender of the recovery event, taken by the first caller that waits for the task: before that, the agent has no
    /// task to which it could put the event.
    recovered: Mutex<Option<Teller>>,
    /// Specification that the processes of execs are made from; filled at the first exec.
    exec_template: OnceCell<Process>,
}

impl Task {
    pub(crate) fn id(&self) -> &str {
        &self.identity.task_id
    }

    pub(crate) fn name(&self) -> &str {
        &self.identity.name
    }

    pub(crate) fn started_at(&self) -> SystemTime {
        self.saved.started_at
    }

    pub(crate) fn network(&self) -> Option<&DriverNetwork> {
        self.saved.network.as_ref()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub(crate) fn attributes(&self) -> HashMap<String, String> {
        HashMap::from([
            ("container_id".to_owned(), self.saved.container_id.clone()),
            ("image_digest".to_owned(), self.saved.image_digest.clone()),
            ("pid".to_owned(), self.saved.init.pid.to_string()),
            ("shim_pid".to_owned(), self.saved.shim.pid.to_string()),
        ])
    }

    /// Waits for the task's exit, however long ago it was.
    ///
    /// # Errors
    /// When the supervisor has gone without reporting an exit, which is a defect of the driver.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        self.tell_recovery();
        let mut phase = self.phase.clone();
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Exited(_))).await;
        match ended.as_deref() {
            Ok(Phase::Exited(exit)) => Ok(exit.clone()),
            _ => Err(Error::Failed(format!("wait for task {}: its supervisor has ended", self.id()))),
        }
    }

    fn tell_recovery(&self) {
        let teller = self.recovered.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(teller) = teller {
            teller.recovered(self.saved.init.pid);
        }
    }
}

/// The state of a container id in the registry of tasks.
enum Slot {
    /// A start or a recovery is under way.
    Starting(Starting),
    Here(Arc<Task>),
    /// A teardown is under way.
    Ending,
}

/// A start or a recovery that is under way.
#[derive(Clone)]
struct Starting {
    identity: Identity,
    /// Cancels the start, which then ends as a failed one.
    called_off: CancellationToken,
    /// Whether the start has joined the queue for a start permit: only earlier starts can delay it from then on.
    is_in_line: Arc<AtomicBool>,
    /// Number of the start within this plugin: a later start has a higher number.
    order: u64,
}

/// The registry of this plugin's tasks, by container id.
pub(crate) struct Tasks {
    slots: Mutex<HashMap<String, Slot>>,
    /// Number of the next start.
    orders: AtomicU64,
    /// Notified when an id has been released, or a start has become a task.
    freed: Notify,
    events: Events,
    claims: Claims,
    agent: Arc<Agent>,
    sweeping: AtomicBool,
    image_uses: Arc<images::ImageUses>,
    /// Pool of threads that write log files, made for the first task whose output the driver collects.
    log_writers: OnceCell<WriterPool>,
    accounts: user::Known,
}

impl Tasks {
    /// Returns an empty registry. Notifying `stop` shuts the plugin down in good order.
    pub(crate) fn new(agent: Arc<Agent>, stop: Arc<Notify>) -> Self {
        Self {
            slots: Mutex::new(HashMap::new()),
            orders: AtomicU64::new(0),
            freed: Notify::new(),
            events: Events::new(),
            claims: Claims::new(Arc::clone(&agent), stop),
            agent,
            sweeping: AtomicBool::new(false),
            image_uses: Arc::default(),
            log_writers: OnceCell::new(),
            accounts: user::Known::default(),
        }
    }

    pub(crate) fn get(&self, task_id: &str) -> Option<Arc<Task>> {
        match self.lock().get(&place::container_id(task_id)) {
            Some(Slot::Here(task)) => Some(Arc::clone(task)),
            _ => None,
        }
    }

    fn here(&self) -> Vec<Arc<Task>> {
        let slots = self.lock();
        let tasks =
            slots.values().filter_map(|slot| if let Slot::Here(task) = slot { Some(task) } else { None });
        tasks.cloned().collect()
    }

    /// Returns whether the task `name` of an allocation is being started and waits for its start permit, or is past
    /// that.
    fn is_coming(&self, alloc_id: &str, name: &str) -> bool {
        let is_it = |starting: &Starting| {
            let Starting { identity, called_off: _, is_in_line, order: _ } = starting;
            identity.alloc_id == alloc_id && identity.name == name && is_in_line.load(Ordering::Relaxed)
        };
        self.lock().values().any(|slot| matches!(slot, Slot::Starting(starting) if is_it(starting)))
    }

    /// Returns the stream of task events, beginning with those that no listener has received yet.
    pub(crate) fn events(&self) -> impl Stream<Item = TaskEvent> + Send + use<> {
        self.events.listen()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a container id for a start or a recovery, after a teardown of that id that is under way. Dropping the
    /// reservation without a task releases the id.
    ///
    /// # Errors
    /// When a task has the id, or another start or recovery.
    async fn reserve(self: &Arc<Self>, identity: &Identity) -> Result<Reservation> {
        let container_id = place::container_id(&identity.task_id);
        loop {
            let freed = self.freed.notified();
            match self.try_reserve(&container_id, identity)? {
                Some(reservation) => return Ok(reservation),
                None => freed.await,
            }
        }
    }

    /// Returns `None` while a teardown of the id is under way.
    fn try_reserve(self: &Arc<Self>, container_id: &str, identity: &Identity) -> Result<Option<Reservation>> {
        let mut slots = self.lock();
        match slots.get(container_id) {
            None => {}
            Some(Slot::Ending) => return Ok(None),
            Some(Slot::Starting(_) | Slot::Here(_)) => {
                return Err(Error::Conflict("it already exists".to_owned()));
            }
        }
        let starting = Starting {
            identity: identity.clone(),
            called_off: CancellationToken::new(),
            is_in_line: Arc::default(),
            order: self.orders.fetch_add(1, Ordering::Relaxed),
        };
        slots.insert(container_id.to_owned(), Slot::Starting(starting.clone()));
        Ok(Some(Reservation { tasks: Arc::clone(self), container_id: container_id.to_owned(), starting }))
    }

    /// Reserves an id for a teardown. Returns `None` if a task, a start, a recovery or another teardown has it.
    fn reserve_end(self: &Arc<Self>, container_id: &str) -> Option<Ending> {
        let mut slots = self.lock();
        if slots.contains_key(container_id) {
            return None;
        }
        slots.insert(container_id.to_owned(), Slot::Ending);
        Some(Ending { tasks: Arc::clone(self), container_id: container_id.to_owned() })
    }
}

struct Reservation {
    tasks: Arc<Tasks>,
    container_id: String,
    starting: Starting,
}

impl Reservation {
    fn fill(self, task: Arc<Task>) {
        self.tasks.lock().insert(self.container_id.clone(), Slot::Here(task));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        {
            let mut slots = self.tasks.lock();
            // Once filled, the slot is the task's, which may be in its teardown already.
            if matches!(slots.get(&self.container_id), Some(Slot::Starting(_))) {
                slots.remove(&self.container_id);
            }
        }
        self.tasks.freed.notify_waiters();
    }
}

/// The guard of a teardown: releases the id on drop, whatever the outcome.
struct Ending {
    tasks: Arc<Tasks>,
    container_id: String,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.tasks.lock().remove(&self.container_id);
        self.tasks.freed.notify_waiters();
    }
}
