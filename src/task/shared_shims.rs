//! The shared shims of this plugin: which there are, and whose containers each has.
//!
//! What is on the disk counts: a task's bundle names its shim until none of the task's processes is left. The registry
//! spares a look at all bundles at each teardown, and lets a start and the end of the shim not meet: a start joins under
//! the lock under which the last task's end decides that the shim ends.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::container::ContainerHandles;
use super::spares::Spares;
use super::{Settings, Tasks};
use crate::shim::{
    self, Bundle, Connection, DescriptorStore, Found, Holds, Launcher, ShareKey, SharedPlace, Shim,
    find_shared,
};
use crate::sys::blocking;
use crate::sys::error_chain::Chained;

/// Number of shims that a start tries to join.
const TRIES: usize = 2;

#[derive(Default)]
pub(super) struct SharedShims {
    /// By the shim's id.
    known: Mutex<HashMap<String, Known>>,
    /// Launches that have left something, to be cleared.
    cut_off: Mutex<Vec<SharedPlace>>,
    /// State directory whose shims are known.
    loaded: tokio::sync::Mutex<Option<PathBuf>>,
    /// Mutexes of joins, so that tasks that come at once launch one shim.
    turns: Mutex<HashMap<ShareKey, Weak<tokio::sync::Mutex<()>>>>,
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
}

impl SharedShims {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns which shared shims there are, once.
    pub(super) async fn load(&self, settings: &Settings) {
        let (state_dir, namespace) = (settings.config.state_dir.clone(), settings.namespace());
        let mut loaded = self.loaded.lock().await;
        if loaded.as_ref() == Some(&state_dir) {
            return;
        }
        let at = state_dir.clone();
        let Found { shims, cut_off, users } = match blocking::run(move || find_shared(&at, namespace)).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %error.chain(), "can't look for shared shims yet");
                return;
            }
        };
        for (place, shim, key) in shims {
            self.add(place, shim, key).await;
        }
        for (place, shim, user) in users {
            self.add(place, shim.clone(), None).await;
            self.enter(&shim, user);
        }
        self.cut_off.lock().unwrap_or_else(PoisonError::into_inner).extend(cut_off);
        *loaded = Some(state_dir);
    }

    /// Adds a shim of an earlier plugin, unless it is known.
    async fn add(&self, place: SharedPlace, shim: Shim, key: Option<ShareKey>) {
        if self.lock().contains_key(place.id()) {
            return;
        }
        let of = shim.clone();
        let opened = shim::look_at_processes(move || SharedPlace::open_store(&of)).await.flatten();
        let store = opened.map_err(|error| {
            tracing::debug!(shim = place.id(), %error, "can't open the store of descriptors of a shared shim");
        });
        // Without its store it can't hold what a task needs.
        let phase = if store.is_ok() { Phase::Serving } else { Phase::Retired };
        let known =
            Known { key, store: store.ok(), users: HashSet::new(), is_own: false, phase, place, shim };
        self.lock().entry(known.place.id().to_owned()).or_insert(known);
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
        let Join { settings, spares, container, key, held } = join;
        let ContainerHandles { id, launcher, bundle, .. } = container;
        self.load(settings).await;
        let turn = self.turn(&key);
        let mut tries = 0..TRIES;
        loop {
            tries.next();
            let (place, shim, store) = {
                let _turn = turn.lock().await;
                match self.find(&key, id).await {
                    Some(found) => found,
                    None => Box::pin(self.launch(settings, launcher, spares, &key, id)).await?,
                }
            };
            match ask(&shim, id).await {
                Ok(connection) => {
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
                    tracing::warn!(container = id, shim = place.id(), error = %error.chain(), "a shared shim does not answer; it gets no more tasks");
                    self.retire(place.id());
                    place.retire().await;
                    self.leave(settings, id, None).await;
                    if tries.is_empty() {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn turn(&self, key: &ShareKey) -> Arc<tokio::sync::Mutex<()>> {
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
    async fn find(&self, key: &ShareKey, user: &str) -> Option<(SharedPlace, Shim, Arc<DescriptorStore>)> {
        loop {
            let (place, shim, store) = {
                let mut known = self.lock();
                let serves =
                    |known: &&mut Known| known.phase == Phase::Serving && known.key.as_ref() == Some(key);
                let found = known.values_mut().find(serves)?;
                let store = found.store.clone()?;
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
    ) -> Result<(SharedPlace, Shim, Arc<DescriptorStore>), shim::Error> {
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
                if !place.clear(launcher).await {
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
        for Known { place, store, .. } in left {
            if let Some(store) = store {
                let (owner, id) = (container_id.to_owned(), place.id().to_owned());
                let released = blocking::run(move || store.retain(|of| of != owner)).await;
                if let Err(error) = released {
                    tracing::warn!(container = container_id, shim = id, %error, "can't release the descriptors that the shared shim holds for it");
                }
            }
            self.end_unused(settings, place.id(), false).await;
        }
    }

    fn has(&self, place: &SharedPlace, container_id: &str) -> bool {
        self.lock().get(place.id()).is_some_and(|known| known.users.contains(container_id))
    }

    /// Returns all shared shims.
    pub(super) fn all(&self) -> Vec<Shim> {
        self.lock().values().map(|known| known.shim.clone()).collect()
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
        let has_ended = known.place.end(&launcher, &known.shim, may_be_killed).await;
        let mut all = self.lock();
        if has_ended {
            all.remove(id);
        } else if let Some(known) = all.get_mut(id) {
            // One that goes on has a container of a task that is about to be recovered.
            known.phase = if may_be_killed { Phase::Retired } else { before };
        }
    }
}

/// Connects to a shared shim for a container that it is to get. Some shims answer only when another container was created.
async fn ask(shim: &Shim, id: &str) -> Result<Connection, shim::Error> {
    let connection = Connection::open(&shim.bootstrap, id).await?;
    connection.pid_of_fresh_shim().await?;
    Ok(connection)
}

impl Tasks {
    /// Ends shared shims that nobody has, such as those that an earlier plugin has left, releases what they hold for
    /// tasks that are gone, and keeps their logs small. `has_settled` says that the agent has recovered its tasks.
    pub(super) async fn sweep_shared_shims(self: &Arc<Self>, settings: &Settings, has_settled: bool) {
        let shared = &self.shared_shims;
        shared.load(settings).await;
        let cut_off = std::mem::take(&mut *shared.cut_off.lock().unwrap_or_else(PoisonError::into_inner));
        let launcher = ContainerHandles::by_id(settings, "").launcher;
        for place in cut_off {
            if !place.clear(&launcher).await {
                shared.cut_off.lock().unwrap_or_else(PoisonError::into_inner).push(place);
            }
        }
        let all: Vec<Known> = shared.lock().values().cloned().collect();
        for Known { place, users, store, .. } in all {
            if users.is_empty() {
                shared.end_unused(settings, place.id(), has_settled).await;
                continue;
            }
            place.bundle().off_thread(Bundle::trim_logs).await;
            if let Some(store) = store.filter(|_| has_settled) {
                let tasks = Arc::clone(self);
                // By who has the shim at that moment: a task that joins is noted before its descriptors come.
                let swept =
                    blocking::run(move || store.retain(|owner| tasks.shared_shims.has(&place, owner)));
                let swept = swept.await;
                if let Err(error) = swept {
                    tracing::debug!(%error, "can't look through the descriptors of a shared shim");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;
    use shim_protos::{ApiVersion, Bootstrap};

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
        let state_dir = &settings.config.state_dir;
        let place = SharedPlace::new(state_dir);
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
