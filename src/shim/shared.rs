//! A shared shim: one that has the containers of several tasks.
//!
//! It has an id and a directory of its own, which is a bundle without a container. Each task's bundle names it, and so
//! says who has it; whoever ends one task's container leaves the shim alone, which ends when no bundle names it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::processes::blocking;
use super::spare::Place;
use super::start_inputs::FileId;
use super::{Bundle, Connection, DescriptorStore, Error, Launcher, Shim, bundles};
use crate::sys::error_chain::Chained;
use crate::sys::pidfd::{self, ProcessHandle};
use crate::sys::procfs;

/// Directory of the shared shims in the state directory. No namespace of containerd's has such a name.
const DIRECTORY: &str = ".shared";
const PREFIX: &str = "shared-";
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
        let Launcher { binary, runtime: _, namespace, address, events: _, start_inputs: _, family: _ } =
            launcher;
        let (binary, namespace, address) = (binary.clone(), namespace.clone(), address.clone());
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
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}{:x}-{now:x}-{number:x}", std::process::id());
        Self { bundle: Bundle::at(state_dir, DIRECTORY, &id), id }
    }

    /// Returns the place of a shim by its id. `None` if the id can't be one.
    pub(crate) fn of(state_dir: &Path, id: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let is_id = id.starts_with(PREFIX) && id.bytes().all(is_plain);
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
            let made = DescriptorStore::new().and_then(|store| Ok((store.ends()?, store)));
            made.map_err(Error::file("make a store of descriptors for", bundle.directory()))
        };
        let (ends, store) = bundle.off_thread(make).await?;
        let bootstrap = launcher.start(bundle, id, &ends).await?;
        let connection = Connection::open(&bootstrap, id).await?;
        let pid = connection.pid_of_fresh_shim().await?;
        let shim = launcher.note_shim(bootstrap, bundle, id, pid).await?;
        Ok((shim, Arc::new(store)))
    }

    /// Writes down where a shim is that runs here, and for which tasks; returns it as it is written down in their bundles.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) async fn record(&self, shim: Shim, key: &ShareKey) -> Result<Shim, Error> {
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

    /// Has no more tasks get the shim, such as one that does not answer. A failure is logged only.
    pub(crate) async fn retire(&self) {
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
        shim.process().is_alive() && !self.bundle.directory().join(RETIRED).exists()
    }

    /// Tells a shim to end, which it does if it has no container; one that does not is killed if it `may_be_killed`, and what
    /// it has started with it. Then its socket and directory are removed. Returns whether nothing is left.
    pub(crate) async fn end(&self, launcher: &Launcher, shim: &Shim, may_be_killed: bool) -> bool {
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
            let process = shim.process();
            let killed = blocking(move || -> std::io::Result<()> {
                let Some(shim) = ProcessHandle::open(process)? else { return Ok(()) };
                let started = procfs::descendants(process);
                shim.kill();
                started.into_iter().for_each(pidfd::kill);
                Ok(())
            });
            has_ended = killed.await.flatten().is_ok() && launcher.exits_within(shim, bundle, id, ENDS).await;
        }
        if !has_ended {
            return false;
        }
        shim.remove_socket().await;
        launcher.remove_socket(id).await;
        self.remove().await
    }

    /// Kills a shim that a launch has left here before it was written down, and removes the directory. Returns whether
    /// nothing is left.
    pub(crate) async fn clear(&self, launcher: &Launcher) -> bool {
        let place = Place { id: self.id.clone(), bundle: self.bundle.clone(), launcher: launcher.clone() };
        place.clear().await
    }

    async fn remove(&self) -> bool {
        match self.bundle.off_thread(Bundle::remove).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(shim = self.id, error = %error.chain(), "can't remove the directory of a shared shim yet");
                false
            }
        }
    }
}

/// What an earlier plugin has left of shared shims.
#[derive(Default)]
pub(crate) struct Found {
    pub shims: Vec<(SharedPlace, Shim, Option<ShareKey>)>,
    /// Those whose launch was cut off.
    pub cut_off: Vec<SharedPlace>,
    /// The shared shims that bundles name, each with the id of the bundle's container.
    pub users: Vec<(SharedPlace, Shim, String)>,
}

/// Finds the shared shims of a state directory, and whose they are. Blocking: not for an async thread.
///
/// # Errors
/// Names what can't be read.
pub(crate) fn find_shared(state_dir: &Path, namespace: &str) -> Result<Found, Error> {
    let mut found = Found::default();
    for place in bundles(state_dir, DIRECTORY)?.iter().filter_map(|id| SharedPlace::of(state_dir, id)) {
        match place.bundle.read_shim() {
            Some(shim) if shim.is_shared() => {
                let key = place.bundle.read_json(KEY)?;
                found.shims.push((place, shim, key));
            }
            _ => found.cut_off.push(place),
        }
    }
    for id in bundles(state_dir, namespace)? {
        let shim = Bundle::at(state_dir, namespace, &id).read_shim();
        let named = shim.and_then(|shim| Some((SharedPlace::of(state_dir, shim.shared.as_deref()?)?, shim)));
        found.users.extend(named.map(|(place, shim)| (place, shim, id)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use shim_protos::{ApiVersion, Bootstrap};

    use super::*;
    use crate::shim::launch::tests::launcher;

    #[tokio::test]
    async fn bundles_say_who_has_a_shared_shim() {
        let state = tempfile::tempdir().unwrap();
        let launcher = launcher("/bin/false", state.path());
        let place = SharedPlace::new(state.path());
        assert!(place.launch(&launcher).await.is_err());
        let found = find_shared(state.path(), "nomad").unwrap();
        assert_eq!((found.shims.len(), found.cut_off.len()), (0, 1));
        let bootstrap = Bootstrap { version: ApiVersion::V2, socket: "/nowhere.sock".into() };
        let shim = Shim { bootstrap, pid: i32::MAX, started_ticks: 9, shared: None };
        let key = ShareKey::new(&launcher, "node".to_owned(), None);
        let shim = place.record(shim, &key).await.unwrap();
        let web = Bundle::at(state.path(), "nomad", "web");
        web.create(Path::new("/bin/shim")).unwrap();
        web.write_shim(&shim).unwrap();
        let found = find_shared(state.path(), "nomad").unwrap();
        assert!(found.cut_off.is_empty() && found.shims[0].2.as_ref() == Some(&key));
        assert_eq!((found.users[0].0.id(), &*found.users[0].2), (place.id(), "web"));
        assert!(!place.takes_tasks(&shim), "it does not run");
        assert!(place.end(&launcher, &shim, false).await && !place.bundle.exists());
    }

    #[test]
    fn an_id_is_no_path() {
        let state = Path::new("/state");
        assert!(SharedPlace::of(state, SharedPlace::new(state).id()).is_some());
        assert!(SharedPlace::new(state).id().len() < 76);
        for id in ["shared-../x", "web-1", "", "../shared-1"] {
            assert!(SharedPlace::of(state, id).is_none(), "{id}");
        }
    }
}
