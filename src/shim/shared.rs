//! A shared shim: one that has the containers of several tasks.
//!
//! It has an id and a directory of its own, which is a bundle without a container. Each task's bundle names it, and so
//! says who has it; whoever ends one task's container leaves the shim alone, which ends when no bundle names it.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::launch::LaunchKind;
use super::processes::{Ahead, SHARED_PREFIX, blocking, end_removed_below, kill_with_started, open_ahead};
use super::spare::Place;
use super::start_inputs::FileId;
use super::{Bundle, Connection, DescriptorStore, Error, Launcher, Shim, bundles, own_id};
use crate::sys::error_chain::Chained;
use crate::sys::procfs;

/// Directory of the shared shims in the state directory. No namespace of containerd's has such a name.
const DIRECTORY: &str = ".shared";
/// Name of the file that says which tasks may have the shim.
const KEY: &str = "shared.json";
/// Name of the file whose presence says that the shim gets no more tasks.
const RETIRED: &str = "retired";
/// Maximum time of the answer to a Shutdown, and then of the shim's exit.
const ENDS: Duration = Duration::from_secs(2);

/// What two tasks have alike that have one shim.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct ShareKey {
    /// Id of the allocation, or a word for the node.
    group: String,
    binary: PathBuf,
    /// The file at that path: an upgrade replaces it, and tasks that come later get the new one.
    file: Option<FileId>,
    namespace: String,
    address: String,
    /// OOM score of the shim. `None` where no process of a container inherits it.
    oom_score: Option<i32>,
}

impl ShareKey {
    /// Blocking: not for an async thread.
    pub(crate) fn new(launcher: &Launcher, group: String, oom_score: Option<i32>) -> Self {
        let LaunchKind { binary, namespace, address, family: _ } = launcher.kind();
        let (binary, namespace, address) = (binary.to_owned(), namespace.to_owned(), address.to_owned());
        Self { group, file: FileId::of(&binary), binary, namespace, address, oom_score }
    }

    /// Returns the OOM score of the shim. `None` where no process of a container inherits it.
    pub(crate) fn oom_score(&self) -> Option<i32> {
        self.oom_score
    }
}

/// Where a shared shim is: its id and its directory.
#[derive(Debug, Clone)]
pub(crate) struct SharedPlace {
    id: String,
    bundle: Bundle,
}

impl SharedPlace {
    /// Returns a place that no other shim has.
    pub(crate) fn new(state_dir: &Path) -> Self {
        let id = own_id::new(SHARED_PREFIX);
        Self { bundle: Bundle::at(state_dir, DIRECTORY, &id), id }
    }

    /// Returns the place of a shim by its id. `None` if the id can't be one.
    pub(crate) fn of(state_dir: &Path, id: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let is_id = id.starts_with(SHARED_PREFIX) && id.bytes().all(is_plain);
        is_id.then(|| Self { id: id.to_owned(), bundle: Bundle::at(state_dir, DIRECTORY, id) })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Launches a shim here.
    ///
    /// # Errors
    /// As the launch of any shim; [`Self::clear`] removes what is left of it.
    pub(crate) async fn launch(&self, launcher: &Launcher) -> Result<(Shim, Arc<DescriptorStore>), Error> {
        let Self { id, bundle } = self;
        let path = launcher.binary.clone();
        let make = move |bundle: &Bundle| {
            bundle.create(&path)?;
            DescriptorStore::new_in(bundle)
        };
        let (ends, store) = bundle.off_thread(make).await?;
        let shim = launcher.launch_ahead(bundle, id, &ends).await?;
        Ok((shim, Arc::new(store)))
    }

    /// Writes down where a shim is that runs here, and for which tasks; returns it as it is written down in their bundles.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) async fn record(&self, shim: Shim, key: &ShareKey) -> Result<Shim, Error> {
        if shim.started_ticks == 0 {
            // Its arguments don't tell it for a task's, so that only its start time does.
            let (binary, reported_pid) = (key.binary.clone(), shim.pid);
            return Err(Error::Unidentified { binary, id: self.id.clone(), reported_pid });
        }
        let shim = Shim { shared: Some(self.id.clone()), ..shim };
        let (written, key) = (shim.clone(), key.clone());
        let write = move |bundle: &Bundle| {
            bundle.write_shim(&written)?;
            let json = serde_json::to_vec(&key).map_err(std::io::Error::from);
            bundle.write(KEY, &json.map_err(Error::file("write", bundle.directory()))?)
        };
        self.bundle.off_thread(write).await?;
        Ok(shim)
    }

    /// Has no more tasks get the shim, such as one that does not answer, also by a later plugin. Where that can't be written
    /// down, it is so for this plugin.
    pub(crate) async fn retire(&self) {
        noted().retired.insert(self.id.clone());
        if let Err(error) = self.bundle.off_thread(|bundle| bundle.write(RETIRED, b"")).await {
            tracing::debug!(shim = self.id, error = %error.chain(), "can't note that a shared shim gets no more tasks");
        }
    }

    /// Opens the store of descriptors of a shim that an earlier plugin has launched. Blocking: not for an async thread.
    ///
    /// # Errors
    /// As [`DescriptorStore::of`].
    pub(crate) fn open_store(shim: &Shim) -> std::io::Result<Arc<DescriptorStore>> {
        DescriptorStore::of(shim.process()).map(Arc::new)
    }

    /// Returns whether a shim can get more tasks: it runs, and nobody has retired it. Blocking: not for an async thread.
    pub(crate) fn takes_tasks(&self, shim: &Shim) -> bool {
        let is_retired = noted().retired.contains(&self.id) || self.bundle.directory().join(RETIRED).exists();
        !is_retired && shim.is_alive()
    }

    /// Tells a shim to end, which it does if it has no container; one that does not is killed if it `may_be_killed`, and what
    /// it has started with it. Then its socket and directory are removed.
    pub(crate) async fn end(&self, launcher: &Launcher, shim: &Shim, may_be_killed: bool) -> SharedEnd {
        let Self { id, bundle } = self;
        let told = async { Connection::open(&shim.bootstrap, id).await?.shutdown().await };
        let told = tokio::time::timeout(ENDS, told).await;
        let mut has_ended = launcher.exits_within(shim, bundle, id, ENDS).await;
        if !has_ended && may_be_killed {
            tracing::warn!(
                shim = id,
                pid = shim.pid,
                ?told,
                "a shared shim without tasks did not exit; killing it"
            );
            let (process, at, of) = (shim.process(), bundle.clone(), id.clone());
            let kill = move || match open_ahead(process, &at, &of) {
                Ok(Ahead::Is(shim)) => {
                    kill_with_started(&shim, process);
                    false
                }
                Ok(Ahead::IsNot) => true,
                Ok(Ahead::Unknown) | Err(_) => false,
            };
            has_ended =
                blocking(kill).await.unwrap_or(false) || launcher.exits_within(shim, bundle, id, ENDS).await;
        }
        if !has_ended {
            return if matches!(told, Ok(Ok(()))) { SharedEnd::GoesOn } else { SharedEnd::Unknown };
        }
        shim.remove_socket().await;
        launcher.remove_socket(id).await;
        if !self.place(launcher).remove().await {
            return SharedEnd::Unknown;
        }
        noted().retired.remove(id);
        SharedEnd::Gone
    }

    /// Kills a shim that a launch has left here before it was written down, and removes the directory. One that has started
    /// anything may have tasks, whose bundles somebody has removed: it is killed only if that is `sure` not to be. Returns
    /// whether nothing is left.
    pub(crate) async fn clear(&self, launcher: &Launcher, sure: bool) -> bool {
        let (by, bundle, id) = (launcher.clone(), self.bundle.clone(), self.id.clone());
        let is_busy = move || {
            let shims = by.serving_shims(&bundle, &id);
            shims.iter().any(|shim| !procfs::children(shim.pid).is_empty())
        };
        if !sure && blocking(is_busy).await.unwrap_or(true) {
            return false;
        }
        self.place(launcher).clear().await
    }

    /// Returns the place as that of a shim that is no container's.
    fn place(&self, launcher: &Launcher) -> Place {
        Place { id: self.id.clone(), bundle: self.bundle.clone(), launcher: launcher.clone() }
    }
}

/// What this plugin has noted of shared shims, by their ids.
#[derive(Default)]
struct Noted {
    retired: HashSet<String>,
    /// The number of containers that are being created.
    creates: HashMap<String, usize>,
}

fn noted() -> MutexGuard<'static, Noted> {
    static NOTED: LazyLock<Mutex<Noted>> = LazyLock::new(Mutex::default);
    NOTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A container that is being created in a shared shim. Many a shim answers nothing else meanwhile.
pub(crate) struct Creating(String);

impl Shim {
    /// Notes that a container is being created in this shim, if it is a shared one.
    pub(crate) fn creating(&self) -> Option<Creating> {
        let id = self.shared.clone()?;
        *noted().creates.entry(id.clone()).or_default() += 1;
        Some(Creating(id))
    }

    /// Returns whether this plugin has a container created in this shim, so that no answer says nothing of the shim.
    pub(crate) fn is_creating(&self) -> bool {
        self.shared.as_ref().is_some_and(|id| noted().creates.contains_key(id))
    }

    /// Returns whether a container may be under way in this shim: one of this plugin's, or of the earlier one that has
    /// launched the shim.
    pub(crate) fn may_be_creating(&self) -> bool {
        let is_of_earlier = |id: &String| !own_id::is_own(SHARED_PREFIX, id);
        self.is_creating() || self.shared.as_ref().is_some_and(is_of_earlier)
    }
}

impl Drop for Creating {
    fn drop(&mut self) {
        let mut noted = noted();
        if let Some(count) = noted.creates.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                noted.creates.remove(&self.0);
            }
        }
    }
}

/// What has become of a shared shim that was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SharedEnd {
    /// Nothing is left of it.
    Gone,
    /// It has answered and goes on: it has a container.
    GoesOn,
    Unknown,
}

/// Kills shared shims whose directory was removed, but for the `known` ones: for when no task has one of the others.
pub(crate) async fn end_removed_shared(state_dir: &Path, known: &[Shim]) {
    end_removed_below(&state_dir.join(DIRECTORY), known.iter().map(Shim::process).collect()).await;
}

/// What an earlier plugin has left of shared shims.
#[derive(Default)]
pub(crate) struct Found {
    pub shims: Vec<(SharedPlace, Shim, Option<ShareKey>)>,
    /// Those whose launch was cut off, before any bundle named them.
    pub cut_off: Vec<SharedPlace>,
    /// The shared shims that bundles name, each with the id of the bundle's container.
    pub users: Vec<(SharedPlace, Shim, String)>,
    /// What could not be read: then it is not known who has which.
    pub unread: Vec<Error>,
}

/// Finds the shared shims of a state directory, and whose they are by the bundles of these namespaces. One that this plugin
/// is launching is none yet. A bundle that can't be read hides no other. Blocking: not for an async thread.
///
/// # Errors
/// Names a directory of bundles that can't be listed.
pub(crate) fn find_shared(state_dir: &Path, namespaces: &[&str]) -> Result<Found, Error> {
    let mut found = Found::default();
    for place in bundles(state_dir, DIRECTORY)?.iter().filter_map(|id| SharedPlace::of(state_dir, id)) {
        match place.bundle.look_for_shim() {
            // This plugin is launching it, or has it.
            _ if own_id::is_own(SHARED_PREFIX, &place.id) => {}
            Ok(Some(shim)) if shim.is_shared() => {
                let key = place.bundle.read_json(KEY).unwrap_or_else(|error| {
                    found.unread.push(error);
                    None
                });
                found.shims.push((place, shim, key));
            }
            Ok(_) => found.cut_off.push(place),
            Err(error) => found.unread.push(error),
        }
    }
    for namespace in namespaces {
        for id in bundles(state_dir, namespace)? {
            let shim = match Bundle::at(state_dir, namespace, &id).look_for_shim() {
                Ok(shim) => shim,
                Err(error) => {
                    found.unread.push(error);
                    continue;
                }
            };
            let named =
                shim.and_then(|shim| Some((SharedPlace::of(state_dir, shim.shared.as_deref()?)?, shim)));
            found.users.extend(named.map(|(place, shim)| (place, shim, id)));
        }
    }
    // Somebody may have removed what was written down of a shim, and one that could not be read may name it.
    let is_all_read = found.unread.is_empty();
    found
        .cut_off
        .retain(|cut_off| is_all_read && !found.users.iter().any(|(place, ..)| place.id == cut_off.id));
    Ok(found)
}

/// Returns whether the bundles of a container, which may be in any of these namespaces, name no shim. Blocking: not for an
/// async thread.
pub(crate) fn names_no_shim(state_dir: &Path, namespaces: &[&str], id: &str) -> bool {
    let names_none =
        |namespace: &&str| matches!(Bundle::at(state_dir, namespace, id).look_for_shim(), Ok(None));
    namespaces.iter().all(names_none)
}

#[cfg(test)]
mod tests {
    use shim_protos::{ApiVersion, Bootstrap};

    use super::*;
    use crate::shim::launch::tests::launcher;
    use crate::sys::procfs::ProcessId;

    fn shim() -> Shim {
        let bootstrap = Bootstrap { version: ApiVersion::V2, socket: "/nowhere.sock".into() };
        Shim { bootstrap, pid: i32::MAX, started_ticks: 9, shared: None }
    }

    #[tokio::test]
    async fn bundles_say_who_has_a_shared_shim() {
        let state = tempfile::tempdir().unwrap();
        let launcher = launcher("/bin/false", state.path());
        let place = SharedPlace::new(state.path());
        assert!(place.launch(&launcher).await.is_err());
        let found = find_shared(state.path(), &["nomad"]).unwrap();
        assert_eq!((found.shims.len(), found.cut_off.len()), (0, 0), "this plugin may be launching it");
        let key = ShareKey::new(&launcher, "node".to_owned(), None);
        let own = place.record(shim(), &key).await.unwrap();
        assert!(find_shared(state.path(), &["nomad"]).unwrap().shims.is_empty());
        assert_eq!(place.end(&launcher, &own, false).await, SharedEnd::Gone);
        let place = SharedPlace::of(state.path(), "shared-1-2-3").unwrap();
        place.bundle.create(Path::new("/bin/shim")).unwrap();
        let shim = place.record(shim(), &key).await.unwrap();
        let web = Bundle::at(state.path(), "nomad", "web");
        web.create(Path::new("/bin/shim")).unwrap();
        web.write_shim(&shim).unwrap();
        let found = find_shared(state.path(), &["nomad"]).unwrap();
        assert!(found.cut_off.is_empty() && found.shims[0].2.as_ref() == Some(&key));
        assert_eq!((found.users[0].0.id(), &*found.users[0].2), (place.id(), "web"));
        assert!(find_shared(state.path(), &["docker"]).unwrap().users.is_empty());
        assert!(!place.takes_tasks(&shim), "it does not run");
        assert_eq!(place.end(&launcher, &shim, false).await, SharedEnd::Gone);
        assert!(!place.bundle.exists());
    }

    #[test]
    fn a_launch_was_cut_off_only_where_nobody_names_the_shim() {
        let state = tempfile::tempdir().unwrap();
        let place = SharedPlace::of(state.path(), "shared-1-2-3").unwrap();
        place.bundle.create(Path::new("/bin/shim")).unwrap();
        place.bundle.write_shim(&shim()).unwrap();
        let cut_off = || find_shared(state.path(), &["nomad", "docker"]).map(|found| found.cut_off.len());
        assert_eq!(cut_off().unwrap(), 1);
        let web = Bundle::at(state.path(), "docker", "web");
        web.create(Path::new("/bin/shim")).unwrap();
        web.write_shim(&Shim { shared: Some(place.id), ..shim() }).unwrap();
        assert_eq!(cut_off().unwrap(), 0, "its file was removed");
        // Reading a directory fails, as reading a file does for want of descriptors.
        std::fs::remove_file(web.directory().join("shim.json")).unwrap();
        std::fs::create_dir(web.directory().join("shim.json")).unwrap();
        assert_eq!(cut_off().unwrap(), 0, "one that can't be read may name it");
    }

    #[test]
    fn a_bundle_that_can_not_be_read_hides_no_other() {
        let state = tempfile::tempdir().unwrap();
        let [known, unread] = ["shared-1-2-3", "shared-1-2-4"].map(|id| {
            let place = SharedPlace::of(state.path(), id).unwrap();
            place.bundle.create(Path::new("/bin/shim")).unwrap();
            place
        });
        let shim = Shim { shared: Some(known.id.clone()), ..shim() };
        known.bundle.write_shim(&shim).unwrap();
        std::fs::create_dir(known.bundle.directory().join(KEY)).unwrap();
        std::fs::create_dir(unread.bundle.directory().join("shim.json")).unwrap();
        for id in ["db", "web"] {
            let bundle = Bundle::at(state.path(), "nomad", id);
            bundle.create(Path::new("/bin/shim")).unwrap();
            bundle.write_shim(&shim).unwrap();
        }
        let web = state.path().join("nomad/web/shim.json");
        std::fs::remove_file(&web).unwrap();
        std::fs::create_dir(&web).unwrap();
        let found = find_shared(state.path(), &["nomad"]).unwrap();
        assert_eq!((found.shims.len(), found.users.len(), &*found.users[0].2), (1, 1, "db"));
        assert_eq!(found.unread.len(), 3, "{:?}", found.unread);
        assert!(
            !names_no_shim(state.path(), &["nomad"], "db") && !names_no_shim(state.path(), &["nomad"], "web")
        );
        assert!(names_no_shim(state.path(), &["nomad"], "gone"));
    }

    #[tokio::test]
    async fn a_retired_shim_gets_no_tasks_also_where_that_is_not_written_down() {
        let place = SharedPlace::new(Path::new("/nowhere"));
        let own = Shim { pid: i32::try_from(std::process::id()).unwrap(), ..shim() };
        let own = Shim { started_ticks: ProcessId::of(own.pid).started_ticks, ..own };
        assert!(place.takes_tasks(&own));
        place.retire().await;
        assert!(!place.takes_tasks(&own));
    }

    #[tokio::test]
    async fn a_shim_of_unknown_start_is_not_shared() {
        let state = tempfile::tempdir().unwrap();
        let place = SharedPlace::new(state.path());
        place.bundle.create(Path::new("/bin/shim")).unwrap();
        let key = ShareKey::new(&launcher("/bin/false", state.path()), "node".to_owned(), None);
        assert!(place.record(Shim { started_ticks: 0, ..shim() }, &key).await.is_err());
    }

    #[test]
    fn a_create_is_noted_for_as_long_as_it_takes() {
        let shim = Shim { shared: Some("shared-a-create".to_owned()), ..shim() };
        let (one, other) = (shim.creating(), shim.creating());
        drop(one);
        assert!(shim.is_creating());
        drop(other);
        assert!(!shim.is_creating());
        assert!(Shim { shared: None, ..shim }.creating().is_none());
    }

    #[test]
    fn an_id_is_no_path() {
        let state = Path::new("/state");
        assert!(SharedPlace::of(state, SharedPlace::new(state).id()).is_some());
        for id in ["shared-../x", "web-1", "", "../shared-1"] {
            assert!(SharedPlace::of(state, id).is_none(), "{id}");
        }
    }
}
