//! The tasks of this plugin, and the calls on one. A task's life is in the modules below, one for each part: [`start`],
//! [`supervisor`] (the only writer of its phase), [`stop`], [`exec`], [`stats`], [`recover`], [`teardown`].
//!
//! A task's container has one id everywhere (bundle, shim, snapshot, lease, record), which derives from Nomad's id of
//! the task. So whatever is left of a task can be found and taken down by that id alone.
//!
//! The states of an id, which are those of [`Slot`], and for an active task its [`Phase`]:
//!
//! ```text
//! StartTask, RecoverTask ──▶ Starting ──▶ Active: Running ──▶ Exited
//!                               │             │ DestroyTask      │ DestroyTask
//!                               │ failed      │ by force         │
//!                               ▼             ▼                  ▼
//!                            (teardown)    Removing ──▶ (released; what is left is marked, and the sweeper's)
//! ```

mod agent;
mod attempt;
mod attempts;
mod auto_runtime;
mod claim;
mod container;
mod dockerd;
mod end_by_shim;
mod ending;
mod error;
mod events;
mod exec;
mod gc;
mod group_network;
mod log_receiver;
#[cfg(test)]
mod model;
mod mounts;
mod network;
mod network_parameters;
mod output;
mod recover;
mod restore;
mod runtime;
mod settings;
mod shared_shims;
mod signal;
mod slot;
mod spares;
mod start;
mod state;
mod stats;
mod stop;
mod stuck;
mod supervisor;
mod teardown;
mod timeline;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use oci_spec::runtime::Process;
use tokio::sync::{Notify, OnceCell, watch};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use crate::image::user;
use crate::logs::WriterPool;
use crate::shim::Connection;
pub(crate) use agent::Agent;
use claim::Claims;
use container::ContainerHandles;
use dockerd::DockerdContainers;
pub(crate) use error::{Error, Result};
pub(crate) use events::TaskEvent;
use events::{EventBus, TaskEvents};
pub(crate) use exec::{Exec, ExecOutput, ExecRefused, Output, Stdin, Terminal, TerminalSize};
pub(crate) use group_network::GroupNetwork;
use group_network::GroupNetworks;
pub(crate) use network::DriverNetwork;
pub(crate) use settings::Settings;
use settings::find_programs;
use shared_shims::SharedShims;
use slot::{AtStart, Occupant};
use spares::Spares;
pub(crate) use spares::kept as kept_spares;
use state::DriverState;
pub(crate) use state::{Exit, Identity, Phase, Started};
pub(crate) use stats::{Load, Reading};

/// A task whose process has started, and may have exited. Lives until its DestroyTask.
pub(crate) struct Task {
    identity: Identity,
    driver_state: DriverState,
    container: ContainerHandles,
    connection: Connection,
    phase: watch::Receiver<Phase>,
    stats: Arc<stats::Sampler>,
    /// Sender of the recovery event, taken by the first caller that waits for the task: before that, the agent has no
    /// task to which it could put the event.
    recovered: Mutex<Option<TaskEvents>>,
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
        self.driver_state.started_at
    }

    pub(crate) fn network(&self) -> Option<&DriverNetwork> {
        self.driver_state.network.as_ref()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub(crate) fn attributes(&self) -> HashMap<String, String> {
        HashMap::from([
            ("container_id".to_owned(), self.driver_state.container_id.clone()),
            ("image_digest".to_owned(), self.driver_state.image_digest.clone()),
            ("pid".to_owned(), self.driver_state.init.pid.to_string()),
            ("shim_pid".to_owned(), self.driver_state.shim.pid.to_string()),
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
            _ => Err(Error::failed(format!("wait for task {}: its supervisor has ended", self.id()))),
        }
    }

    fn tell_recovery(&self) {
        let task_events = self.recovered.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task_events) = task_events {
            task_events.recovered(self.driver_state.init.pid);
        }
    }
}

/// The state of a container id in the registry of tasks.
enum Slot {
    /// A start or a recovery is under way.
    Starting(Starting),
    Active(Arc<Task>),
    /// A teardown is under way.
    Removing,
}

/// A start or a recovery that is under way.
#[derive(Clone)]
struct Starting {
    identity: Identity,
    /// Cancels the start, which then ends as a failed one.
    cancelled: CancellationToken,
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
    events: EventBus,
    claims: Claims,
    agent: Arc<Agent>,
    sweeping: AtomicBool,
    /// Notified when there is something to remove that no call comes back for.
    left: Notify,
    image_uses: Arc<gc::ImageUses>,
    /// Pool of threads that write log files, made for the first task whose output the driver collects.
    log_writers: OnceCell<WriterPool>,
    accounts: user::AccountCache,
    dockerd_containers: DockerdContainers,
    spares: Spares,
    shared_shims: SharedShims,
    group_networks: Arc<GroupNetworks>,
}

impl Tasks {
    /// Returns an empty registry. Notifying `stop` shuts the plugin down in good order.
    pub(crate) fn new(agent: Arc<Agent>, stop: Arc<Notify>) -> Self {
        Self {
            slots: Mutex::new(HashMap::new()),
            orders: AtomicU64::new(0),
            freed: Notify::new(),
            events: EventBus::new(),
            claims: Claims::new(Arc::clone(&agent), stop),
            agent,
            sweeping: AtomicBool::new(false),
            left: Notify::new(),
            image_uses: Arc::default(),
            log_writers: OnceCell::new(),
            accounts: user::AccountCache::default(),
            dockerd_containers: DockerdContainers::default(),
            spares: Spares::default(),
            shared_shims: SharedShims::default(),
            group_networks: Arc::default(),
        }
    }

    pub(crate) fn get(&self, task_id: &str) -> Option<Arc<Task>> {
        match self.lock().get(&container::container_id(task_id)) {
            Some(Slot::Active(task)) => Some(Arc::clone(task)),
            _ => None,
        }
    }

    fn active(&self) -> Vec<Arc<Task>> {
        let slots = self.lock();
        let tasks =
            slots.values().filter_map(|slot| if let Slot::Active(task) = slot { Some(task) } else { None });
        tasks.cloned().collect()
    }

    /// Returns whether the task `name` of an allocation is being started and waits for its start permit, or is past
    /// that.
    fn is_coming(&self, alloc_id: &str, name: &str) -> bool {
        let is_it = |starting: &Starting| {
            let Starting { identity, cancelled: _, is_in_line, order: _ } = starting;
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
        let container_id = container::container_id(&identity.task_id);
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
        match Occupant::of(slots.get(container_id)).at_start() {
            AtStart::Begin => {}
            AtStart::Wait => return Ok(None),
            AtStart::Refuse => return Err(Error::conflict("it already exists")),
        }
        let starting = Starting {
            identity: identity.clone(),
            cancelled: CancellationToken::new(),
            is_in_line: Arc::default(),
            order: self.orders.fetch_add(1, Ordering::Relaxed),
        };
        slots.insert(container_id.to_owned(), Slot::Starting(starting.clone()));
        self.group_networks.has_task(&identity.alloc_id);
        Ok(Some(Reservation { tasks: Arc::clone(self), container_id: container_id.to_owned(), starting }))
    }

    /// Reserves an id for a teardown. Returns `None` if a task, a start, a recovery or another teardown has it.
    fn reserve_removal(self: &Arc<Self>, container_id: &str) -> Option<RemovalGuard> {
        let mut slots = self.lock();
        if !Occupant::of(slots.get(container_id)).is_free() {
            return None;
        }
        slots.insert(container_id.to_owned(), Slot::Removing);
        Some(RemovalGuard { tasks: Arc::clone(self), container_id: container_id.to_owned() })
    }
}

struct Reservation {
    tasks: Arc<Tasks>,
    container_id: String,
    starting: Starting,
}

impl Reservation {
    fn fill(self, task: Arc<Task>) {
        self.tasks.lock().insert(self.container_id.clone(), Slot::Active(task));
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
struct RemovalGuard {
    tasks: Arc<Tasks>,
    container_id: String,
}

impl Drop for RemovalGuard {
    fn drop(&mut self) {
        self.tasks.lock().remove(&self.container_id);
        self.tasks.freed.notify_waiters();
    }
}
