//! The shared shims of this plugin: which there are, and whose containers each has.
//!
//! What is on the disk counts: a task's bundle names its shim until none of the task's processes is left. The registry
//! spares a look at all bundles at each teardown, and lets a start and the end of the shim not meet: a start joins under
//! the lock under which the last task's end decides that the shim ends.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::container::ContainerHandles;
use super::end_by_shim::end_in;
use super::spares::Spares;
use super::{Settings, Tasks, error as task};
use crate::config::DriverName;
use crate::shim::{
    self, Bundle, Connection, DescriptorStore, Found, HeldPipes, Holds, Launcher, RUNTIME_CALL_TIMEOUT,
    ShareKey, SharedEnd, SharedPlace, Shim, end_removed_shared, find_shared, names_no_shim,
};
use crate::sys::blocking;
use crate::sys::error_chain::Chained;
use crate::sys::os_error::is_transient;

/// Number of shims that a start tries to join.
const TRIES: usize = 2;
/// Time for which a shim that gave no answer is not asked again where somebody waits.
const SILENT: Duration = Duration::from_secs(30);
/// Pause between two questions to a shim that does not answer.
const ASKS_AGAIN: Duration = Duration::from_secs(10);
/// Maximum time of an answer about a container that a shim most likely does not have.
const LOST_IS_TOLD: Duration = Duration::from_secs(2);
/// Maximum time that a start waits for another one's launch of the shim that they share.
const TURN: Duration = Duration::from_secs(60);
/// Maximum time in which a sweep has shims remove what they have of containers that were taken down.
const REMOVES: Duration = Duration::from_secs(30);
/// Pause before bundles are read again of which some could not be read.
const READS_AGAIN: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct SharedShims {
    /// By the shim's id.
    known: Mutex<HashMap<String, Known>>,
    /// Launches that have left something, to be cleared.
    cut_off: Mutex<Vec<SharedPlace>>,
    /// Containers that were taken down, of which their shims may still have something.
    taken_down: Mutex<Vec<(Shim, String)>>,
    /// Whether those whose directory was removed were looked for.
    has_swept: AtomicBool,
    loaded: tokio::sync::Mutex<Option<Loaded>>,
    /// Why bundles could not be read, of which was warned.
    warned: Mutex<HashSet<String>>,
    /// So that tasks that come at once launch one shim.
    turns: Mutex<HashMap<ShareKey, Weak<Turn>>>,
    /// Shims that gave no answer, and when.
    silent: Mutex<HashMap<String, Instant>>,
}

/// The state directory whose shims are known.
struct Loaded {
    state_dir: PathBuf,
    /// Time of the last look, if it could not read all.
    incomplete: Option<Instant>,
}

/// What a shim has of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holding {
    Nothing,
    Container,
    Unknown,
}

/// The launches of shims of one key, one after the other.
#[derive(Default)]
struct Turn {
    lock: tokio::sync::Mutex<()>,
    /// The last launch that failed, which is the answer for all who were waiting then.
    failed: Mutex<Option<(Instant, Arc<shim::Error>)>>,
}

impl Turn {
    /// Returns the error of a launch that has failed since then.
    fn failed_since(&self, asked: Instant) -> Option<shim::Error> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, error) = failed.as_ref()?;
        (*at >= asked).then(|| shim::Error::OfAnother(Arc::clone(error)))
    }

    fn note(&self, error: shim::Error) -> shim::Error {
        let error = Arc::new(error);
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), Arc::clone(&error)));
        shim::Error::OfAnother(error)
    }
}

/// A shared shim.
#[derive(Clone)]
struct Known {
    place: SharedPlace,
    shim: Shim,
    /// Which tasks may have it. `None` if nothing tells it: no more tasks get it.
    key: Option<ShareKey>,
    store: Option<Arc<DescriptorStore>>,
    /// Ids of the containers that it may have.
    users: HashSet<String>,
    /// Whether this plugin knows all of its tasks, since it has launched it.
    is_own: bool,
    /// Whether the store may have descriptors of tasks that are gone.
    is_unswept: bool,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// It gets no more tasks.
    Retired,
    Ending,
}

/// A start that asks for a shared shim.
pub(super) struct Join<'a> {
    pub(super) settings: &'a Settings,
    pub(super) spares: &'a Spares,
    pub(super) container: &'a ContainerHandles,
    pub(super) key: ShareKey,
    /// Descriptors that the shim is to hold for the task.
    pub(super) held: &'a [OwnedFd],
    /// Cancelled when the start is given up.
    pub(super) given_up: &'a CancellationToken,
}

type Joined = (SharedPlace, Shim, Arc<DescriptorStore>);

impl SharedShims {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns which shared shims there are, once, or again while some bundles can't be read. Returns whether all are known,
    /// with all of their tasks.
    pub(super) async fn load(&self, settings: &Settings) -> bool {
        let state_dir = settings.config.state_dir.clone();
        let mut loaded = self.loaded.lock().await;
        match loaded.as_ref().filter(|loaded| loaded.state_dir == state_dir) {
            Some(Loaded { incomplete: None, .. }) => return true,
            Some(Loaded { incomplete: Some(at), .. }) if at.elapsed() < READS_AGAIN => return false,
            _ => {}
        }
        let at = state_dir.clone();
        // The driver may have had its other name.
        let namespaces =
            [DriverName::ContainerdDriver, DriverName::Docker].map(DriverName::containerd_namespace);
        let found = blocking::run(move || find_shared(&at, &namespaces)).await;
        let Found { shims, cut_off, users, unread } = match found {
            Ok(found) => found,
            Err(error) => {
                self.warn_once(&error);
                return false;
            }
        };
        unread.iter().for_each(|error| self.warn_once(error));
        join_all(shims.into_iter().map(|(place, shim, key)| self.add(place, shim, key))).await;
        let mut entered = Vec::new();
        for (place, shim, user) in users {
            self.add(place, shim.clone(), None).await;
            // This plugin knows who has the shims that it has launched.
            if !shim.shared.as_ref().is_some_and(|id| self.is_own(id)) {
                self.enter(&shim, user.clone());
                entered.push(user);
            }
        }
        self.forget_gone(&state_dir, namespaces, entered).await;
        {
            let mut all = self.cut_off.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|known| !cut_off.iter().any(|place| place.id() == known.id()));
            all.extend(cut_off);
        }
        let is_complete = unread.is_empty();
        *loaded = Some(Loaded { state_dir, incomplete: (!is_complete).then(Instant::now) });
        is_complete
    }

    /// Warns of what keeps shared shims, or who has them, from being known, once for each reason.
    fn warn_once(&self, error: &shim::Error) {
        let (error, mut warned) =
            (error.chain().to_string(), self.warned.lock().unwrap_or_else(PoisonError::into_inner));
        if !warned.contains(&error) {
            tracing::warn!(%error, "can't tell yet which tasks have which shared shim; trying again");
            warned.insert(error);
        }
    }

    fn is_own(&self, id: &str) -> bool {
        self.lock().get(id).is_some_and(|known| known.is_own)
    }

    /// Takes out those whose teardown was over before they were entered: nobody else will.
    async fn forget_gone(&self, state_dir: &Path, namespaces: [&'static str; 2], mut entered: Vec<String>) {
        let at = state_dir.to_owned();
        let gone = blocking::run(move || {
            entered.retain(|id| names_no_shim(&at, &namespaces, id));
            entered
        });
        let gone = gone.await;
        for known in self.lock().values_mut().filter(|known| !known.is_own) {
            known.users.retain(|user| !gone.contains(user));
        }
    }

    /// Adds a shim of an earlier plugin, unless it is known.
    async fn add(&self, place: SharedPlace, shim: Shim, key: Option<ShareKey>) {
        if let Some(known) = self.lock().get_mut(place.id()) {
            known.learn(key);
            return;
        }
        let (store, phase) = match open_store(&shim).await {
            Ok(store) => (Some(store), Phase::Serving),
            // It may work later, but no task can wait for that.
            Err(error) if is_short(&error) => (None, Phase::Serving),
            // Without its store it can't hold what a task needs.
            Err(_) => (None, Phase::Retired),
        };
        let (users, is_own, is_unswept) = (HashSet::new(), false, true);
        let known = Known { key: key.clone(), store, users, is_own, is_unswept, phase, place, shim };
        self.lock().entry(known.place.id().to_owned()).or_insert(known).learn(key);
    }

    /// Notes that a container may be in a shim that is known.
    fn enter(&self, shim: &Shim, user: String) {
        let Some(id) = &shim.shared else { return };
        if let Some(known) = self.lock().get_mut(id) {
            known.users.insert(user);
        }
    }

    /// Notes that a task that is recovered has its shared shim, if it has one.
    pub(super) async fn claim(&self, settings: &Settings, shim: &Shim, container_id: &str) {
        let place = shim.shared.as_deref().and_then(|id| SharedPlace::of(&settings.config.state_dir, id));
        let Some(place) = place else { return };
        self.load(settings).await;
        self.add(place, shim.clone(), None).await;
        self.enter(shim, container_id.to_owned());
    }

    /// Has a container join the shim that its task shares with others, which is launched if there is none. Returns `None`
    /// where the shim can't hold the task's descriptors: then the task needs a shim of its own.
    ///
    /// # Errors
    /// As the launch of any shim, or when it does not answer.
    pub(super) async fn join(&self, join: Join<'_>) -> Result<Option<(Connection, Shim)>, shim::Error> {
        let Join { settings, container, held, .. } = &join;
        let ContainerHandles { id, bundle, .. } = container;
        self.load(settings).await;
        let mut tries = 0..TRIES;
        loop {
            tries.next();
            let Some((place, shim, store)) = self.find_or_launch(&join).await? else {
                tracing::warn!(
                    container = id,
                    "another task has not launched the shim that they are to share within {TURN:?}; the task gets a shim of its own"
                );
                return Ok(None);
            };
            match ask(&shim, id).await {
                Ok(connection) => {
                    self.has_answered(&shim);
                    if let Err(error) = store.add(id, held) {
                        tracing::warn!(container = id, %error, "the shared shim can't hold the task's descriptors; the task gets a shim of its own");
                        self.leave(settings, id, None).await;
                        return Ok(None);
                    }
                    let written = shim.clone();
                    bundle.off_thread(move |bundle| bundle.write_shim(&written)).await?;
                    return Ok(Some((connection, shim)));
                }
                Err(error) => {
                    self.leave(settings, id, None).await;
                    let is_faulty = error.is_late() || matches!(error, shim::Error::Unidentified { .. });
                    if shim.is_creating() || (!is_faulty && shim.is_alive()) {
                        tracing::info!(container = id, shim = place.id(), error = %error.chain(), "the shared shim is busy with another container, or can't be asked now; the task gets a shim of its own");
                        return Ok(None);
                    }
                    tracing::warn!(container = id, shim = place.id(), error = %error.chain(), "a shared shim does not answer; it gets no more tasks");
                    self.retire(place.id());
                    place.retire().await;
                    if tries.is_empty() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Returns a shim that the tasks of the key share, which is launched if there is none. `None` if another start is about
    /// to launch it for too long.
    async fn find_or_launch(&self, join: &Join<'_>) -> Result<Option<Joined>, shim::Error> {
        let Join { settings, spares, container, key, given_up, .. } = join;
        let (id, asked) = (&container.id, Instant::now());
        if let Some(found) = self.find(key, id).await {
            return Ok(Some(found));
        }
        let turn = self.turn(key);
        let _turn = tokio::select! {
            turn = turn.lock.lock() => turn,
            () = given_up.cancelled() => return Err(shim::Error::GivenUp),
            () = tokio::time::sleep(TURN) => return Ok(None),
        };
        if let Some(error) = turn.failed_since(asked) {
            return Err(error);
        }
        match self.find(key, id).await {
            Some(found) => Ok(Some(found)),
            None => Box::pin(self.launch(settings, &container.launcher, spares, key, id))
                .await
                .map(Some)
                .map_err(|error| turn.note(error)),
        }
    }

    fn turn(&self, key: &ShareKey) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(key.clone(), Arc::downgrade(&turn));
        turn
    }

    /// Returns a shim that runs and that the tasks of this key share, and notes that the container may be in it.
    async fn find(&self, key: &ShareKey, user: &str) -> Option<Joined> {
        loop {
            let (place, shim, store) = {
                let mut known = self.lock();
                let mut serving = known.values_mut().filter(|known| known.serves(key));
                let (found, store) =
                    serving.find_map(|known| known.store.clone().map(|store| (known, store)))?;
                found.users.insert(user.to_owned());
                (found.place.clone(), found.shim.clone(), store)
            };
            let (at, of) = (place.clone(), shim.clone());
            if blocking::run(move || at.takes_tasks(&of)).await {
                return Some((place, shim, store));
            }
            self.retire(place.id());
            if let Some(known) = self.lock().get_mut(place.id()) {
                known.users.remove(user);
            }
        }
    }

    async fn launch(
        &self,
        settings: &Settings,
        launcher: &Launcher,
        spares: &Spares,
        key: &ShareKey,
        user: &str,
    ) -> Result<Joined, shim::Error> {
        let place = SharedPlace::new(&settings.config.state_dir);
        let launched = async {
            let spare = spares.take(launcher, place.bundle(), place.id(), Holds::Store).await;
            let (shim, store) = match spare {
                Some((_, shim, Some(store))) => (shim, store),
                _ => place.launch(launcher).await?,
            };
            Ok((place.record(shim, key).await?, store))
        };
        let (shim, store) = match launched.await {
            Ok(launched) => launched,
            Err(error) => {
                if !place.clear(launcher, true).await {
                    self.cut_off.lock().unwrap_or_else(PoisonError::into_inner).push(place);
                }
                return Err(error);
            }
        };
        match key.oom_score() {
            Some(score) => shim.set_oom_score_of_task(score),
            None => shim.protect(),
        }
        tracing::debug!(shim = place.id(), pid = shim.pid, "launched a shared shim");
        let known = Known {
            place: place.clone(),
            shim: shim.clone(),
            key: Some(key.clone()),
            store: Some(Arc::clone(&store)),
            users: HashSet::from([user.to_owned()]),
            is_own: true,
            is_unswept: false,
            phase: Phase::Serving,
        };
        self.lock().insert(place.id().to_owned(), known);
        Ok((place, shim, store))
    }

    fn retire(&self, id: &str) {
        if let Some(known) = self.lock().get_mut(id)
            && known.phase == Phase::Serving
        {
            known.phase = Phase::Retired;
        }
    }

    /// Notes that a container is in no shared shim but the one that its bundle still names, and ends those that have no
    /// other.
    pub(super) async fn leave(&self, settings: &Settings, container_id: &str, named: Option<&str>) {
        let mut left = Vec::new();
        for known in self.lock().values_mut() {
            if named != Some(known.place.id()) && known.users.remove(container_id) {
                left.push(known.clone());
            }
        }
        for Known { place, shim, store, .. } in left {
            self.taken_down
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((shim, container_id.to_owned()));
            if let Some(store) = store {
                let owner = container_id.to_owned();
                if let Err(error) = blocking::run(move || store.release(&owner)).await {
                    tracing::debug!(container = container_id, shim = place.id(), %error, "can't release yet what the shared shim holds for it");
                }
            }
            self.end_unused(settings, place.id(), false).await;
        }
    }

    fn has(&self, place: &SharedPlace, container_id: &str) -> bool {
        self.lock().get(place.id()).is_some_and(|known| known.users.contains(container_id))
    }

    /// Notes that a shim has given no answer in time.
    pub(super) fn is_not_answering(&self, shim: &Shim) {
        if let Some(id) = &shim.shared {
            self.silent.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), Instant::now());
        }
    }

    /// Notes that a shim has answered.
    fn has_answered(&self, shim: &Shim) {
        if let Some(id) = &shim.shared {
            self.silent.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        }
    }

    /// Notes whether a shim has answered a call in time. One that did not reach it says nothing of that.
    pub(super) fn note_answer<T>(&self, shim: &Shim, answer: &Result<T, shim::Error>) {
        match answer {
            Err(error) if error.is_late() => self.is_not_answering(shim),
            Err(error) if !error.is_not_found() && !error.is_refusal() => {}
            _ => self.has_answered(shim),
        }
    }

    /// Returns whether a shim that several tasks have gave one of them no answer a moment ago.
    pub(super) fn is_silent(&self, shim: &Shim) -> bool {
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        shim.shared.as_ref().and_then(|id| silent.get(id)).is_some_and(|at| at.elapsed() < SILENT)
    }

    /// Ends a container that the runtime knows and no bundle says the shim of, if a shared shim has it, or may have it.
    ///
    /// # Errors
    /// When it can't be ended.
    pub(super) async fn end_lost(&self, container: &ContainerHandles) -> task::Result<()> {
        let ContainerHandles { id, bundle, launcher, .. } = container;
        // This plugin knows who has the shims that it has launched.
        let may_have = |known: &&Known| !known.is_own || known.users.contains(id);
        let all: Vec<Shim> = self.lock().values().filter(may_have).map(|known| known.shim.clone()).collect();
        let found = join_all(all.iter().map(|shim| self.holding(shim, id))).await;
        let state = container.runtime_state();
        let is_there = bundle.off_thread(move |bundle| bundle.exists() || state.try_exists().unwrap_or(true));
        let is_there = is_there.await;
        let mut is_ended = None;
        for (shim, holding) in all.iter().zip(found) {
            match holding {
                Holding::Nothing => continue,
                // Most likely it was taken down long ago.
                Holding::Unknown if !is_there => continue,
                Holding::Unknown | Holding::Container => {}
            }
            // A runtime that can't write its log does nothing.
            bundle.off_thread(Bundle::make_directory).await?;
            let ended =
                if self.is_silent(shim) { Ok(false) } else { self.end_in(shim, id).await.map(|()| true) };
            is_ended = Some(is_ended == Some(true) || matches!(ended, Ok(true)));
            if let Err(error) = ended {
                tracing::debug!(container = id, shim = shim.shared, error = %error.chain(), "a shared shim can't end a lost container");
            }
        }
        match is_ended {
            None => {}
            Some(true) => {
                tracing::warn!(container = id, "ended a container in a shared shim whose bundle was lost");
            }
            Some(false) => launcher.delete(bundle, id).await?,
        }
        Ok(())
    }

    /// Asks a shim for a container of this id, unless it gave no answer a moment ago.
    async fn holding(&self, shim: &Shim, container_id: &str) -> Holding {
        let unless_dead = || if shim.is_alive() { Holding::Unknown } else { Holding::Nothing };
        if self.is_silent(shim) {
            return unless_dead();
        }
        let state = async { Connection::open(&shim.bootstrap, container_id).await?.state().await };
        let Ok(answer) = tokio::time::timeout(LOST_IS_TOLD, state).await else {
            self.is_not_answering(shim);
            return Holding::Unknown;
        };
        self.note_answer(shim, &answer);
        match answer {
            Ok(_) => Holding::Container,
            Err(error) if error.is_not_found() => Holding::Nothing,
            Err(_) => unless_dead(),
        }
    }

    async fn end_in(&self, shim: &Shim, container_id: &str) -> Result<(), shim::Error> {
        let ended = end_in(shim, container_id).await;
        self.note_answer(shim, &ended);
        ended
    }

    /// Ends a shim that has no container any more. One whose tasks this plugin may not all know is killed only if it
    /// `has_settled`, which is when the agent has recovered its tasks.
    async fn end_unused(&self, settings: &Settings, id: &str, has_settled: bool) {
        let (known, before) = {
            let mut all = self.lock();
            let Some(known) = all.get_mut(id) else { return };
            if !known.users.is_empty() || known.phase == Phase::Ending {
                return;
            }
            let before = std::mem::replace(&mut known.phase, Phase::Ending);
            (known.clone(), before)
        };
        let launcher = ContainerHandles::by_id(settings, "").launcher;
        let may_be_killed = known.is_own || has_settled;
        let end = known.place.end(&launcher, &known.shim, may_be_killed).await;
        let mut all = self.lock();
        match (end, all.get_mut(id)) {
            (SharedEnd::Gone, _) => {
                all.remove(id);
                self.silent.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            }
            // It has a container of a task that is about to be recovered.
            (SharedEnd::GoesOn, Some(known)) if !may_be_killed => known.phase = before,
            (SharedEnd::GoesOn | SharedEnd::Unknown, Some(known)) => known.phase = Phase::Retired,
            (_, None) => {}
        }
    }

    /// Has shims remove what they still have of containers that were taken down while they could not be asked, or were in
    /// the middle of their creation. A shim that takes too long holds up the others of this sweep only.
    async fn end_taken_down(&self) {
        let taken_down = std::mem::take(&mut *self.taken_down.lock().unwrap_or_else(PoisonError::into_inner));
        let until = Instant::now() + REMOVES;
        let (mut untried, mut failed) = (Vec::new(), Vec::new());
        for (shim, id) in taken_down {
            if !shim.is_alive() || self.lock().values().any(|known| known.users.contains(&id)) {
                continue;
            }
            if Instant::now() >= until {
                untried.push((shim, id));
                continue;
            }
            let asked_at = Instant::now();
            match tokio::time::timeout_at(until, self.removes(&shim, &id)).await {
                Ok(true) => continue,
                Ok(false) => {}
                // Another may have taken most of the time.
                Err(_) if asked_at.elapsed() >= LOST_IS_TOLD => self.is_not_answering(&shim),
                Err(_) => {
                    untried.push((shim, id));
                    continue;
                }
            }
            failed.push((shim, id));
        }
        // Those that failed come last the next time.
        let left = untried.into_iter().chain(failed);
        self.taken_down.lock().unwrap_or_else(PoisonError::into_inner).extend(left);
    }

    /// Has a shim remove a container, and returns whether it has none of this id any more.
    async fn removes(&self, shim: &Shim, container_id: &str) -> bool {
        match self.holding(shim, container_id).await {
            Holding::Nothing => true,
            _ if self.is_silent(shim) => false,
            _ => self.end_in(shim, container_id).await.is_ok(),
        }
    }
}

impl Known {
    /// Notes which tasks may have the shim, where nothing has told it so far.
    fn learn(&mut self, key: Option<ShareKey>) {
        if self.key.is_none() {
            self.key = key;
        }
    }

    fn serves(&self, key: &ShareKey) -> bool {
        self.phase == Phase::Serving && self.key.as_ref() == Some(key)
    }
}

/// Holds the pipes of a create that has no answer for as long as a shared shim may do as it was told: it was told the
/// descriptors' numbers, which later are another task's.
pub(super) fn hold_for_late_create(shim: Shim, container_id: String, pipes: HeldPipes) {
    tokio::spawn(async move {
        let connection = Connection::deferred(&shim.bootstrap, &container_id);
        while shim.is_alive() {
            match connection.state().await {
                Err(error) if !error.is_not_found() && !error.is_refusal() => {
                    tokio::time::sleep(ASKS_AGAIN).await;
                }
                // Not every shim waits with its answer for the end of a create.
                _ => {
                    tokio::time::sleep(RUNTIME_CALL_TIMEOUT).await;
                    break;
                }
            }
        }
        drop(pipes);
    });
}

async fn open_store(shim: &Shim) -> std::io::Result<Arc<DescriptorStore>> {
    let of = shim.clone();
    let opened = shim::look_at_processes(move || SharedPlace::open_store(&of)).await.flatten();
    if let Err(error) = &opened {
        tracing::debug!(shim = shim.shared, %error, "can't open the store of descriptors of a shared shim");
    }
    opened
}

/// Returns whether the plugin may only lack something for now.
fn is_short(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::TimedOut || is_transient(error)
}

/// Connects to a shared shim for a container that it is to get. Some shims answer only when another container was created.
/// One that has a container of this id, which nobody knows of, loses it.
async fn ask(shim: &Shim, id: &str) -> Result<Connection, shim::Error> {
    let connection = Connection::open(&shim.bootstrap, id).await?;
    let pid = match connection.pid_of_fresh_shim().await {
        Err(shim::Error::StaleShim { .. }) => {
            end_in(shim, id).await?;
            connection.pid_of_fresh_shim().await?
        }
        pid => pid?,
    };
    if pid != 0 && pid != shim.pid {
        let binary = shim.bootstrap.socket.clone();
        return Err(shim::Error::Unidentified { binary, id: id.to_owned(), reported_pid: pid });
    }
    Ok(connection)
}

impl Tasks {
    /// Ends shared shims that nobody has, such as those that an earlier plugin has left, releases what they hold for
    /// tasks that are gone, and keeps their logs small. `has_settled` says that the agent has recovered its tasks.
    pub(super) async fn sweep_shared_shims(self: &Arc<Self>, settings: &Settings, has_settled: bool) {
        let shared = &self.shared_shims;
        // Without that, one that seems to have no task may have some.
        let is_sure = shared.load(settings).await && has_settled;
        let cut_off = std::mem::take(&mut *shared.cut_off.lock().unwrap_or_else(PoisonError::into_inner));
        let launcher = ContainerHandles::by_id(settings, "").launcher;
        for place in cut_off {
            // The agent may have recovered a task that names it.
            if !shared.lock().contains_key(place.id()) && !place.clear(&launcher, is_sure).await {
                shared.cut_off.lock().unwrap_or_else(PoisonError::into_inner).push(place);
            }
        }
        shared.end_taken_down().await;
        let all: Vec<Known> = shared.lock().values().cloned().collect();
        for known in &all {
            if known.users.is_empty() {
                shared.end_unused(settings, known.place.id(), is_sure).await;
            } else {
                known.place.bundle().off_thread(Bundle::trim_logs).await;
                self.sweep_store(known.clone(), is_sure).await;
            }
        }
        // Once, since no shim of this plugin's comes to be so.
        if is_sure && !shared.has_swept.swap(true, Ordering::Relaxed) {
            let known: Vec<_> = all.into_iter().map(|known| known.shim).collect();
            end_removed_shared(&settings.config.state_dir, &known).await;
        }
    }

    /// Releases what a shared shim holds for tasks that are gone. What it holds for those of an earlier plugin is looked at
    /// once, when the agent has recovered its tasks.
    async fn sweep_store(self: &Arc<Self>, known: Known, has_settled: bool) {
        let Known { place, shim, store, is_unswept, .. } = known;
        let id = place.id().to_owned();
        let Some(store) = store else {
            if let Ok(store) = open_store(&shim).await
                && let Some(known) = self.shared_shims.lock().get_mut(&id)
            {
                known.store = Some(store);
            }
            return;
        };
        let looks_at_all = is_unswept && has_settled;
        let tasks = Arc::clone(self);
        let swept = blocking::run(move || match looks_at_all {
            // By who has the shim at that moment: a task that joins is noted before its descriptors come.
            true => store.retain(|owner| tasks.shared_shims.has(&place, owner)),
            false => store.release_rest().map(|()| false),
        });
        match swept.await {
            Ok(true) => {
                if let Some(known) = self.shared_shims.lock().get_mut(&id) {
                    known.is_unswept = false;
                }
            }
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(shim = id, %error, "can't look through the descriptors of a shared shim");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use serde_json::json;
    use shim_protos::{ApiVersion, Bootstrap, CallError};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;
    use crate::config::{DriverName, PluginConfig};

    fn settings(state_dir: &Path) -> Settings {
        let options = json!({"containerd_runtime": "io.containerd.runc.v2", "state_dir": state_dir});
        let options = rmp_serde::to_vec_named(&options).unwrap();
        let config = PluginConfig::decode(DriverName::ContainerdDriver, &options).unwrap().unwrap();
        Settings::new(config, 1000.0).unwrap()
    }

    /// Leaves a shared shim that has died, and bundles that name it. Returns its place and what tasks are written down to
    /// share it.
    async fn left(settings: &Settings, users: &[&str]) -> (SharedPlace, Shim, ShareKey) {
        left_at(SharedPlace::new(&settings.config.state_dir), settings, users).await
    }

    async fn left_at(
        place: SharedPlace,
        settings: &Settings,
        users: &[&str],
    ) -> (SharedPlace, Shim, ShareKey) {
        let state_dir = &settings.config.state_dir;
        place.bundle().create(Path::new("/bin/shim")).unwrap();
        let bootstrap = Bootstrap { version: ApiVersion::V2, socket: state_dir.join("nobody.sock") };
        let shim = Shim { bootstrap, pid: i32::MAX, started_ticks: 9, shared: None };
        let launcher = ContainerHandles::by_id(settings, "").launcher;
        let key = ShareKey::new(&launcher, "node".to_owned(), None);
        let shim = place.record(shim, &key).await.unwrap();
        for user in users {
            let bundle = Bundle::at(state_dir, settings.namespace(), user);
            bundle.create(Path::new("/bin/shim")).unwrap();
            bundle.write_shim(&shim).unwrap();
        }
        (place, shim, key)
    }

    #[tokio::test]
    async fn a_shim_ends_with_the_last_bundle_that_names_it() {
        let state = tempfile::tempdir().unwrap();
        let settings = settings(state.path());
        let (place, ..) = left(&settings, &["web", "db"]).await;
        let shared = SharedShims::default();
        shared.load(&settings).await;
        assert!(shared.has(&place, "web") && shared.has(&place, "db") && !shared.has(&place, "other"));
        // A teardown that has not ended the processes leaves the name.
        shared.leave(&settings, "web", Some(place.id())).await;
        assert!(shared.has(&place, "web"));
        shared.leave(&settings, "web", None).await;
        shared.leave(&settings, "other", None).await;
        assert!(place.bundle().exists() && shared.has(&place, "db"));
        shared.leave(&settings, "db", None).await;
        assert!(!place.bundle().exists() && shared.lock().is_empty());
    }

    #[tokio::test]
    async fn a_recovered_task_has_its_shim_also_where_nothing_on_the_disk_says_so() {
        let state = tempfile::tempdir().unwrap();
        let settings = settings(state.path());
        let (place, shim, _) = left(&settings, &[]).await;
        place.bundle().remove().unwrap();
        let shared = SharedShims::default();
        shared.claim(&settings, &shim, "web").await;
        assert!(shared.has(&place, "web"));
        shared.claim(&settings, &Shim { shared: Some("../x".to_owned()), ..shim }, "db").await;
        assert_eq!(shared.lock().len(), 1, "an id that is a path is none");
    }

    #[tokio::test]
    async fn a_shim_that_has_died_gets_no_more_tasks() {
        let state = tempfile::tempdir().unwrap();
        let settings = settings(state.path());
        let (place, _, key) = left(&settings, &["web"]).await;
        let shared = SharedShims::default();
        shared.load(&settings).await;
        assert!(shared.find(&key, "db").await.is_none() && !shared.has(&place, "db"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_launch_that_fails_has_its_error_and_who_comes_later_tries_again() {
        let turn = Turn::default();
        let asked = Instant::now();
        assert!(turn.failed_since(asked).is_none());
        let own = turn.note(shim::Error::GivenUp);
        assert_eq!(own.to_string(), turn.failed_since(asked).unwrap().to_string());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(turn.failed_since(Instant::now()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_gave_no_answer_is_silent_for_a_while() {
        let state = tempfile::tempdir().unwrap();
        let (_, shim, _) = left(&settings(state.path()), &[]).await;
        let shared = SharedShims::default();
        assert!(!shared.is_silent(&shim));
        shared.is_not_answering(&shim);
        assert!(shared.is_silent(&shim) && !shared.is_silent(&Shim { shared: None, ..shim.clone() }));
        tokio::time::advance(SILENT).await;
        assert!(!shared.is_silent(&shim));
        let answer = |source| Err::<(), _>(shim::Error::Call { doing: "look".to_owned(), source });
        let late = answer(CallError::TimedOut(LOST_IS_TOLD));
        let answers =
            [answer(CallError::NotFound("x".to_owned())), answer(CallError::Refused("x".to_owned())), Ok(())];
        for answered in answers {
            shared.note_answer(&shim, &late);
            assert!(shared.is_silent(&shim));
            shared.note_answer(&shim, &answer(CallError::Disconnected("x".to_owned())));
            assert!(shared.is_silent(&shim), "nothing was heard of it");
            shared.note_answer(&shim, &answered);
            assert!(!shared.is_silent(&shim), "it has answered: {answered:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bundle_that_can_not_be_read_hides_no_other_and_is_read_again() {
        let state = tempfile::tempdir().unwrap();
        let settings = settings(state.path());
        // Not one of this plugin's.
        let place = SharedPlace::of(state.path(), "shared-1-2-3").unwrap();
        let (place, shim, key) = left_at(place, &settings, &["web", "db"]).await;
        let web = state.path().join(settings.namespace()).join("web/shim.json");
        std::fs::remove_file(&web).unwrap();
        std::fs::create_dir(&web).unwrap();
        let shared = SharedShims::default();
        // As a recovery does that could not look for it.
        shared.add(place.clone(), shim.clone(), None).await;
        assert!(!shared.load(&settings).await, "somebody unknown may have it");
        assert!(shared.has(&place, "db") && shared.lock()[place.id()].key == Some(key));
        std::fs::remove_dir(&web).unwrap();
        Bundle::at(state.path(), settings.namespace(), "web").write_shim(&shim).unwrap();
        assert!(!shared.load(&settings).await && !shared.has(&place, "web"), "each start looks again");
        tokio::time::advance(READS_AGAIN).await;
        assert!(shared.load(&settings).await && shared.has(&place, "web"));
        assert_eq!(shared.warned.lock().unwrap().len(), 1, "warned of once");
        // A teardown may be over between the look and the note.
        shared.enter(&shim, "gone".to_owned());
        let namespaces =
            [DriverName::ContainerdDriver, DriverName::Docker].map(DriverName::containerd_namespace);
        shared.forget_gone(state.path(), namespaces, vec!["gone".to_owned(), "db".to_owned()]).await;
        assert!(!shared.has(&place, "gone") && shared.has(&place, "db"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_does_not_wait_for_ever_for_anothers_launch() {
        let state = tempfile::tempdir().unwrap();
        let settings = settings(state.path());
        let (shared, spares, given_up) =
            (SharedShims::default(), Spares::default(), CancellationToken::new());
        let container = ContainerHandles::by_id(&settings, "web");
        let key = ShareKey::new(&container.launcher, "node".to_owned(), None);
        let turn = shared.turn(&key);
        let _launches = turn.lock.lock().await;
        let (settings, spares, container, given_up) = (&settings, &spares, &container, &given_up);
        let join = Join { settings, spares, container, key, held: &[], given_up };
        assert!(shared.find_or_launch(&join).await.unwrap().is_none());
    }

    /// Plays a shim that says of each container that it has stopped, and never answers a Delete, which it counts.
    async fn hang_in_delete(listener: UnixListener, deletes: Arc<AtomicUsize>) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let deletes = Arc::clone(&deletes);
            tokio::spawn(async move {
                // Of ttrpc: length, stream, kind and flags.
                let mut header = [0; 10];
                while stream.read_exact(&mut header).await.is_ok() {
                    let length = u32::from_be_bytes(header[..4].try_into().unwrap());
                    let mut request = vec![0; length.try_into().unwrap()];
                    stream.read_exact(&mut request).await.unwrap();
                    if request.windows(6).any(|word| word == b"Delete") {
                        deletes.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    // A response whose payload says that the status, the fourth field, is STOPPED.
                    let answer = [0x12, 2, 0x20, 3];
                    let frame = [&[0, 0, 0, 4], &header[4..8], &[2, 0], &answer[..]].concat();
                    stream.write_all(&frame).await.unwrap();
                }
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_hangs_in_a_removal_holds_up_no_sweep() {
        let state = tempfile::tempdir().unwrap();
        let (_, dead, _) = left(&settings(state.path()), &[]).await;
        let deletes = Arc::new(AtomicUsize::new(0));
        let listener = UnixListener::bind(&dead.bootstrap.socket).unwrap();
        tokio::spawn(hang_in_delete(listener, Arc::clone(&deletes)));
        let shared = SharedShims::default();
        let left_in =
            |shim: &Shim, id: &str| shared.taken_down.lock().unwrap().push((shim.clone(), id.to_owned()));
        left_in(&dead, "gone");
        let own = i32::try_from(std::process::id()).unwrap();
        let started_ticks = crate::sys::procfs::ProcessId::of(own).started_ticks;
        let shim = Shim { pid: own, started_ticks, ..dead };
        ["web", "db", "cache"].into_iter().for_each(|id| left_in(&shim, id));
        let began = Instant::now();
        shared.end_taken_down().await;
        assert!(began.elapsed() <= REMOVES, "{:?}", began.elapsed());
        assert_eq!(deletes.load(Ordering::Relaxed), 1, "the others are not asked for in vain");
        assert_eq!(shared.taken_down.lock().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn nothing_is_made_for_a_container_that_only_a_silent_shim_may_have() {
        let state = tempfile::tempdir().unwrap();
        let settings = settings(state.path());
        let (place, dead, _) = left(&settings, &["web"]).await;
        let own = i32::try_from(std::process::id()).unwrap();
        let started_ticks = crate::sys::procfs::ProcessId::of(own).started_ticks;
        let shared = SharedShims::default();
        shared.load(&settings).await;
        shared.is_not_answering(&dead);
        let silent = Shim { pid: own, started_ticks, ..dead };
        shared.lock().get_mut(place.id()).unwrap().shim = silent;
        let mut gone = ContainerHandles::by_id(&settings, "gone");
        gone.launcher.runtime = "io.containerd.missing.v1".to_owned();
        shared.end_lost(&gone).await.unwrap();
        assert!(!gone.bundle.exists());
        // One that the runtime knows is looked for by the shim's own clean-up, which is missing here.
        std::fs::create_dir_all(gone.runtime_state()).unwrap();
        assert!(shared.end_lost(&gone).await.is_err() && gone.bundle.exists());
    }

    #[test]
    fn starts_of_one_key_take_turns() {
        let state = tempfile::tempdir().unwrap();
        let launcher = ContainerHandles::by_id(&settings(state.path()), "").launcher;
        let key = |group: &str, score| ShareKey::new(&launcher, group.to_owned(), score);
        let shared = SharedShims::default();
        let first = shared.turn(&key("a", None));
        assert!(Arc::ptr_eq(&first, &shared.turn(&key("a", None))));
        assert!(!Arc::ptr_eq(&first, &shared.turn(&key("b", None))));
        assert!(!Arc::ptr_eq(&first, &shared.turn(&key("a", Some(300)))), "its OOM score is another");
        drop(first);
        shared.turn(&key("c", None));
        assert_eq!(shared.turns.lock().unwrap().len(), 1, "those that nobody takes are forgotten");
    }
}
