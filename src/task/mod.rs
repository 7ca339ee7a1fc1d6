//! The tasks of this plugin, and what can be asked of one. A task's life is in the modules below, one for each part:
//! [`start`], [`supervisor`] (the only writer of its phase), [`stop`], [`exec`], [`stats`], [`recover`], [`teardown`].
//!
//! A task's container goes by one id everywhere (bundle, shim, snapshot, lease, record), which derives from Nomad's id
//! of the task. So whatever is left of a task can be found and taken down by that id alone.

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
use crate::containerd::{Containerd, Credentials, ImageTerms, Keyring, PullTerms};
use crate::error::{Error, Result};
use crate::host_files;
use crate::logs::{Movers, Target};
use crate::process_stat::ProcessId;
use crate::rootfs;
use crate::shim::{self, Connection, Family, LogPaths, Shim};
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

/// The namespace in containerd of all that is ours. `ctr -n nomad` shows it.
const NAMESPACE: &str = "nomad";

/// The plugin's configuration, and what follows from it.
pub(crate) struct Settings {
    pub config: PluginConfig,
    pub containerd: Containerd,
    pub cni: Arc<Cni>,
    events: shim::Events,
    start_inputs: shim::StartInputs,
    /// What a core does on average.
    pub mhz_per_core: f64,
    starts: Queue,
}

impl Settings {
    /// Reaches for nothing.
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
        let starts = Queue::new(config.starts.at_once());
        let events = shim::Events::of(&config.state_dir);
        let start_inputs = shim::StartInputs::default();
        Ok(Self { config, containerd, cni, events, start_inputs, mhz_per_core, starts })
    }

    /// The binary of the configured runtime's shim.
    ///
    /// # Errors
    /// Says which file was looked for, and where.
    pub(crate) async fn shim(&self) -> Result<PathBuf> {
        find_programs(self.config.containerd_runtime.clone(), None).await
    }

    /// Where a task of this id will be, made as its job and the operator say.
    ///
    /// # Errors
    /// When the shim of its runtime is missing, or the program that it is to run.
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

/// Finds the shim of a runtime, and that the program is there which it is to run. The directories of PATH may be slow.
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

/// Its leases go with the namespaces that have them, at a reboot, where the state directory does.
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

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub code: i32,
    pub signal: i32,
    pub oom_killed: bool,
    pub at: SystemTime,
    /// Why nothing of the above is known.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Exited(Exit),
}

/// Who a task is to Nomad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub task_id: String,
    pub alloc_id: String,
    pub name: String,
}

/// All that is needed to find a running task again. Nomad keeps it, and hands it back after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    container_id: String,
    /// The binary that the shim was started from, and its private address: what its own clean-up is run with.
    shim_binary: PathBuf,
    /// None where an earlier build of the plugin started it.
    #[serde(default)]
    family: Option<Family>,
    shim: Shim,
    init: ProcessId,
    started_at: SystemTime,
    logs: LogPaths,
    /// Where the driver itself puts what comes out of them.
    #[serde(default)]
    collected: Option<Target>,
    cgroup: Cgroup,
    /// Its processes don't end with the first one by themselves.
    shares_pids: bool,
    image_digest: String,
    /// The image's word on how it wants to be stopped.
    stop_signal: Option<String>,
    /// Of a network of its own.
    #[serde(default)]
    network: Option<DriverNetwork>,
    /// How many processes the kernel had killed for want of memory in its cgroup before it was started: an earlier
    /// attempt's. None where an earlier build of the plugin started it.
    #[serde(default)]
    oom_kills: Option<u64>,
    /// The `runsc` of a task in gVisor's sandbox.
    #[serde(default)]
    runsc: Option<String>,
}

impl Saved {
    fn family(&self) -> Family {
        self.family.unwrap_or_else(|| Family::of_binary(&self.shim_binary))
    }
}

/// What Nomad is told of a task that has started.
pub(crate) struct Started {
    pub driver_state: Vec<u8>,
    pub network: Option<DriverNetwork>,
}

/// A task whose process has started, and may have ended. Lives until its destroy.
pub(crate) struct Task {
    identity: Identity,
    saved: Saved,
    place: Place,
    connection: Connection,
    phase: watch::Receiver<Phase>,
    stats: Arc<stats::Sampler>,
    /// Tells of its recovery, once somebody waits for it: before, the agent knows no task to put the event to.
    recovered: Mutex<Option<Teller>>,
    /// What an exec's process is made from; filled at the first one.
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

    /// Waits for the task's end, however long ago it was.
    ///
    /// # Errors
    /// When the supervisor is gone without a word, which is a defect of ours.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        self.tell_recovery();
        let mut phase = self.phase.clone();
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Exited(_))).await;
        match ended.as_deref() {
            Ok(Phase::Exited(exit)) => Ok(exit.clone()),
            _ => Err(Error::Failed(format!("wait for task {}: nobody watches it any more", self.id()))),
        }
    }

    fn tell_recovery(&self) {
        let teller = self.recovered.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(teller) = teller {
            teller.recovered(self.saved.init.pid);
        }
    }
}

/// What an id stands for.
enum Slot {
    /// Being started or recovered.
    Starting(Starting),
    Here(Arc<Task>),
    /// Being taken down.
    Ending,
}

/// A start, or a recovery, that is on its way.
#[derive(Clone)]
struct Starting {
    identity: Identity,
    /// A start that is called off ends as a failed one.
    called_off: CancellationToken,
    /// Nothing is between it and its start but those that came before.
    is_in_line: Arc<AtomicBool>,
    /// Which of the plugin's starts it is: a later one has a higher number.
    order: u64,
}

/// The tasks of this plugin, by their containers' ids.
pub(crate) struct Tasks {
    slots: Mutex<HashMap<String, Slot>>,
    /// The number of the next start.
    orders: AtomicU64,
    /// An id has been given back, or a start has become a task.
    freed: Notify,
    events: Events,
    claims: Claims,
    agent: Arc<Agent>,
    sweeping: AtomicBool,
    image_uses: Arc<images::ImageUses>,
    /// Made for the first task whose output the driver collects.
    movers: OnceCell<Movers>,
    accounts: rootfs::Known,
}

impl Tasks {
    /// `stop` ends the plugin in good order.
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
            movers: OnceCell::new(),
            accounts: rootfs::Known::default(),
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

    /// Whether a task of this name of an allocation is in line to be started, or past that.
    fn is_coming(&self, alloc_id: &str, name: &str) -> bool {
        let is_it = |starting: &Starting| {
            let Starting { identity, called_off: _, is_in_line, order: _ } = starting;
            identity.alloc_id == alloc_id && identity.name == name && is_in_line.load(Ordering::Relaxed)
        };
        self.lock().values().any(|slot| matches!(slot, Slot::Starting(starting) if is_it(starting)))
    }

    /// What happens to the tasks from here on, and what nobody has been told of yet.
    pub(crate) fn events(&self) -> impl Stream<Item = TaskEvent> + Send + use<> {
        self.events.listen()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the id of a container for a start or a recovery. It is given back when the reservation is dropped without
    /// a task.
    ///
    /// # Errors
    /// When the id is taken.
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

    /// None while what was left of an earlier try is taken down.
    fn try_reserve(self: &Arc<Self>, container_id: &str, identity: &Identity) -> Result<Option<Reservation>> {
        let mut slots = self.lock();
        match slots.get(container_id) {
            None => {}
            Some(Slot::Ending) => return Ok(None),
            Some(Slot::Starting(_) | Slot::Here(_)) => {
                return Err(Error::Conflict("it is here already".to_owned()));
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

    /// Takes an id for a teardown, if nobody deals with it.
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
            // Filled, it is the task's, which may be on its way out already.
            if matches!(slots.get(&self.container_id), Some(Slot::Starting(_))) {
                slots.remove(&self.container_id);
            }
        }
        self.tasks.freed.notify_waiters();
    }
}

/// Gives an id free when its teardown is over, however that went.
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
