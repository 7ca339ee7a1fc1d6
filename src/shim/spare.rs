//! A spare: a shim that is launched before its container is known, so that a start needs not wait for it.
//!
//! It has an id and a directory of its own, which is a bundle without a container. The directory becomes the bundle of
//! the container that gets the shim, in one step: a plugin that dies leaves either a spare, which the next one ends, or
//! a bundle that is taken down like any other. The shim's working directory moves with it, which is the proof of whose
//! shim it is, since its arguments keep the spare's id.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::processes::{Ahead, SPARE_PREFIX, blocking, end_removed_below, open_ahead};
use super::start_inputs::FileId;
use super::{Bundle, Connection, DescriptorStore, Error, Launcher, LogPaths, Shim, bundles, own_id};
use crate::sys;
use crate::sys::error_chain::Chained;
use crate::sys::pidfd::Init;

/// Directory of the spares in the state directory. No namespace of containerd's has such a name.
const DIRECTORY: &str = ".spares";
/// Maximum time of a spare's answer, which is there within a millisecond.
const ANSWERS: Duration = Duration::from_millis(300);
/// Maximum time that a killed spare may take to exit.
const ENDS: Duration = Duration::from_secs(2);
/// Pause between two looks for a shim that was killed.
const LOOKS_AGAIN: Duration = Duration::from_millis(10);

/// What a spare is given at its launch, since it can't be given it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Nothing,
    /// The log pipes of a bundle, of which it holds the read ends.
    Pipes,
    /// A store of descriptors, for tasks that share a shim.
    Store,
}

/// Where a shim is launched that is no container's yet: an id that no other one has, and its directory.
pub(crate) struct Place {
    pub(super) id: String,
    pub(super) bundle: Bundle,
    pub(super) launcher: Launcher,
}

impl Place {
    pub(crate) fn new(launcher: &Launcher, state_dir: &Path) -> Self {
        let id = own_id::new(SPARE_PREFIX);
        let bundle = Bundle::at(state_dir, DIRECTORY, &id);
        Self { id, bundle, launcher: launcher.clone() }
    }

    /// Launches a spare.
    ///
    /// # Errors
    /// As the launch of any shim; [`Self::clear`] removes what is left of it.
    pub(crate) async fn launch(self: &Arc<Self>, holds: Holds) -> Result<Spare, Error> {
        let Self { id, bundle, launcher } = &**self;
        let path = launcher.binary.clone();
        let make = move |bundle: &Bundle| -> Result<_, Error> {
            let binary = FileId::of(&path);
            bundle.create(&path)?;
            let (inherited, store) = match holds {
                Holds::Nothing => (Vec::new(), None),
                Holds::Pipes => {
                    let [stdout, stderr] = ["stdout", "stderr"].map(|stream| bundle.log_pipe(stream));
                    let readers = LogPaths { stdout, stderr }.make_readers()?;
                    (readers.into_iter().flatten().collect(), None)
                }
                Holds::Store => {
                    let (ends, store) = DescriptorStore::new_in(bundle)?;
                    (ends, Some(store))
                }
            };
            Ok((binary, inherited, store))
        };
        let (binary, inherited, store): (_, Vec<OwnedFd>, _) = bundle.off_thread(make).await?;
        let shim = launcher.launch_ahead(bundle, id, &inherited).await?;
        let place = Arc::clone(self);
        let process = Init::open(shim.process()).map(Arc::new);
        Ok(Spare { place, binary, shim, holds, store: store.map(Arc::new), process })
    }

    /// Kills the shim that a launch has left here, and removes the directory. Returns whether nothing is left.
    pub(crate) async fn clear(&self) -> bool {
        let Self { id, bundle, launcher } = self;
        // What is written down is by any configuration; what the arguments say is by this one.
        if let Some(shim) = bundle.off_thread(Bundle::read_shim).await
            && !self.end_shim(&shim).await
        {
            return false;
        }
        let ends = async {
            loop {
                launcher.kill_stale_shims(bundle, id).await;
                match launcher.has_stale_shim(bundle, id).await {
                    Ok(true) => tokio::time::sleep(LOOKS_AGAIN).await,
                    looked => return looked.is_ok(),
                }
            }
        };
        if !tokio::time::timeout(ENDS, ends).await.unwrap_or(false) {
            return false;
        }
        launcher.remove_socket(id).await;
        self.remove().await
    }

    /// Kills a shim, if it is the one that was written down, and removes its socket. Returns whether it has exited.
    async fn end_shim(&self, shim: &Shim) -> bool {
        let Self { id, bundle, launcher } = self;
        let (process, at, of) = (shim.process(), bundle.clone(), id.clone());
        let kill = move || match open_ahead(process, &at, &of) {
            Ok(Ahead::Is(shim)) => {
                shim.kill();
                false
            }
            Ok(Ahead::IsNot) => process.started_ticks != 0,
            Ok(Ahead::Unknown) | Err(_) => false,
        };
        let Ok(is_another) = blocking(kill).await else { return false };
        if !is_another && !launcher.exits_within(shim, bundle, id, ENDS).await {
            return false;
        }
        shim.remove_socket().await;
        true
    }

    pub(super) async fn remove(&self) -> bool {
        match self.bundle.off_thread(Bundle::remove).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(shim = self.id, error = %error.chain(), "can't remove the directory of a shim without tasks yet");
                false
            }
        }
    }
}

/// A shim without a container.
pub(crate) struct Spare {
    place: Arc<Place>,
    /// The file that the shim runs: another one may be at its path by now.
    binary: Option<FileId>,
    shim: Shim,
    holds: Holds,
    store: Option<Arc<DescriptorStore>>,
    /// `None` where the kernel gives no handle of a process: a dead one is then noticed when it is to be taken.
    process: Option<Arc<Init>>,
}

impl Spare {
    /// Returns a handle of the shim's process, which ends with it.
    pub(crate) fn process(&self) -> Option<Arc<Init>> {
        self.process.clone()
    }

    /// Returns its store of descriptors, if it has one.
    pub(crate) fn store(&self) -> Option<Arc<DescriptorStore>> {
        self.store.clone()
    }

    /// Returns whether this is a shim such as the launcher launches, with what is needed of it.
    pub(crate) fn is_by(&self, launcher: &Launcher, needs: Holds) -> bool {
        let is_same = self.place.launcher.kind() == launcher.kind();
        is_same && (self.holds == needs || needs == Holds::Nothing)
    }

    /// Returns the file that is at the path of the shim's binary, whose file system may hang.
    async fn current_file(&self) -> Option<FileId> {
        let path = self.place.launcher.binary.clone();
        blocking(move || FileId::of(&path)).await.ok().flatten()
    }

    /// Returns whether the shim runs this file. What can't be looked at is taken for the same.
    pub(crate) fn runs(&self, file: Option<FileId>) -> bool {
        file.is_none_or(|file| self.binary == Some(file))
    }

    /// Returns whether both run the same file.
    pub(crate) fn runs_file_of(&self, other: &Self) -> bool {
        self.binary == other.binary
    }

    /// Makes this the shim of a container: its directory becomes the container's bundle, which isn't there if this fails.
    ///
    /// # Errors
    /// Says what is to become of the spare.
    pub(crate) async fn hand_over(&self, bundle: &Bundle, id: &str) -> Result<(Connection, Shim), Refusal> {
        match self.current_file().await {
            None => return Err(Refusal::Useless),
            file if !self.runs(file) => return Err(Refusal::Replaced),
            Some(_) => {}
        }
        let answer = async {
            let connection = Connection::open(&self.shim.bootstrap, id).await?;
            let pid = connection.pid_of_fresh_shim().await?;
            Ok::<_, Error>((connection, pid))
        };
        let connection = match tokio::time::timeout(ANSWERS, answer).await {
            Ok(Ok((connection, pid))) if pid == 0 || pid == self.shim.pid => connection,
            Ok(answer) => {
                let why = answer.map(drop).map_err(|error| error.chain().to_string());
                tracing::debug!(spare = self.place.id, ?why, "a spare shim does not answer as it should");
                return Err(Refusal::Useless);
            }
            Err(_) => {
                tracing::debug!(spare = self.place.id, "a spare shim does not answer in time");
                return Err(Refusal::Hangs);
            }
        };
        let to = bundle.clone();
        let moved = self.place.bundle.off_thread(move |bundle| bundle.move_to(&to)).await;
        match moved {
            Ok(()) => Ok((connection, self.shim.clone())),
            Err(error) if error.is_missing_file() => Err(Refusal::Useless),
            Err(error) => Err(Refusal::CannotMove(error)),
        }
    }

    /// Kills the shim, and removes its socket and directory. Returns whether nothing is left.
    pub(crate) async fn end(&self) -> bool {
        self.place.end_shim(&self.shim).await && self.place.remove().await
    }
}

/// Why a spare can't become the shim of a container.
pub(crate) enum Refusal {
    /// It has died, doesn't answer as it should, or has no directory, or its binary can't be looked at.
    Useless,
    /// Another file is at the path of its binary.
    Replaced,
    /// It doesn't answer in time.
    Hangs,
    /// The shim is fine, but its directory can't be moved.
    CannotMove(Error),
}

/// Ends the spares that an earlier plugin has left in a state directory, also those whose directory was removed. Returns the
/// places of which something is left.
///
/// # Errors
/// If they can't be looked for. None was ended then.
pub(crate) async fn end_left_spares(launcher: &Launcher, state_dir: &Path) -> Result<Vec<Place>, Error> {
    let (at, directory) = (state_dir.to_owned(), state_dir.join(DIRECTORY));
    let mut found = sys::blocking::run(move || bundles(&at, DIRECTORY)).await?;
    // One of this plugin's may be on its way to a container.
    found.retain(|id| !own_id::is_own(SPARE_PREFIX, id));
    let mut left = Vec::new();
    for id in found {
        let place = Place { bundle: Bundle::at(state_dir, DIRECTORY, &id), id, launcher: launcher.clone() };
        if !place.clear().await {
            left.push(place);
        }
    }
    end_removed_below(&directory, Vec::new()).await;
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::launch::tests::launcher;

    #[tokio::test]
    async fn what_is_left_of_spares_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), DIRECTORY, "spare-1");
        bundle.create(Path::new("/bin/shim")).unwrap();
        let launcher = launcher("/bin/false", state.path());
        assert!(end_left_spares(&launcher, state.path()).await.unwrap().is_empty() && !bundle.exists());
        let place = Arc::new(Place::new(&launcher, state.path()));
        assert!(place.launch(Holds::Pipes).await.is_err() && place.clear().await);
        assert_eq!(bundles(state.path(), DIRECTORY).unwrap(), [""; 0], "a failed launch leaves nothing");
    }
}
