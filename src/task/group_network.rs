//! Network namespaces of groups, which the driver makes under docker's name: there Nomad has the driver make them, and
//! connects them itself. No container holds such a namespace: it is bound to a file in the state directory, by its
//! allocation's id, so it is found again after any restart.
//!
//! Source of the facts: hashicorp/nomad `client/allocrunner/network_hook.go`, `drivers/docker/network.go`.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::{Error, Result};
use super::{Settings, Slot, Tasks, network_parameters};
use crate::sys::error_chain::Chained;
use crate::sys::{blocking, host_files, netns};

/// Name of the directory in the state directory.
const DIRECTORY: &str = "groups";
/// Maximum time of a look at an allocation's directory.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of an allocation's id, which is a UUID.
const ID_LIMIT_BYTES: usize = 64;
/// The kernel's maximum length of a host name.
const HOSTNAME_LIMIT_BYTES: usize = 64;

/// The network namespace of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupNetwork {
    pub path: PathBuf,
    /// `false` if it was there already.
    pub created: bool,
}

/// What this plugin knows of the networks of groups.
#[derive(Default)]
pub(super) struct GroupNetworks {
    /// Mutex of what is done to the namespaces.
    turn: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

/// What the agent has said since the plugin's launch, by the allocation's id.
#[derive(Debug, Default)]
struct Known {
    /// Allocations that live: their network was asked for, or a task of theirs was started or recovered.
    claimed: HashSet<String>,
    /// Allocations whose network was to be removed, and may still be there.
    doomed: HashSet<String>,
    /// Directory in which the agent has the directories of its allocations; `None` before the first task.
    alloc_dirs: Option<PathBuf>,
}

impl GroupNetworks {
    /// Records that the agent starts or recovers a task of an allocation.
    pub(super) fn has_task(&self, alloc_id: &str) {
        self.known().claimed.insert(alloc_id.to_owned());
    }

    /// Records the directory of a task's allocation: the agent has those of all its allocations side by side.
    pub(super) fn has_alloc_dir(&self, alloc_dir: &str) {
        if let Some(all) = Path::new(alloc_dir).parent().filter(|all| all.is_absolute()) {
            self.known().alloc_dirs = Some(all.to_owned());
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn wanted(&mut self, alloc_id: &str) {
        self.doomed.remove(alloc_id);
        self.claimed.insert(alloc_id.to_owned());
    }

    fn unwanted(&mut self, alloc_id: &str) {
        self.claimed.remove(alloc_id);
        self.doomed.insert(alloc_id.to_owned());
    }

    /// Forgets the claims of allocations without a network, and returns those whose network is yet to be removed.
    fn at_sweep(&mut self, there: &[Found]) -> Vec<String> {
        let has_network = |id: &String| there.iter().any(|found| id_of(&found.path) == *id);
        self.claimed.retain(has_network);
        self.doomed.iter().cloned().collect()
    }
}

/// A file in the directory of the groups' networks.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    /// Whether a namespace is bound to it.
    is_bound: bool,
}

impl Tasks {
    /// Creates the network namespace of an allocation's group, or finds the one that it has. A new one has the kernel
    /// parameters of docker's networks; a task that joins it sets only those of its job.
    ///
    /// # Errors
    /// Names what is invalid, or what can't be made. Nothing is left over then.
    pub(crate) async fn create_group_network(
        &self,
        settings: &Settings,
        alloc_id: &str,
        hostname: &str,
    ) -> Result<GroupNetwork> {
        if !hostname.is_empty() {
            check_hostname(hostname)?;
        }
        let (directory, path) = place(&settings.config.state_dir, alloc_id)?;
        let (groups, alloc_id) = (Arc::clone(&self.group_networks), alloc_id.to_owned());
        let create = async move {
            groups.known().wanted(&alloc_id);
            let bound = path.clone();
            if blocking::run(move || netns::is_bound(&bound)).await {
                return Ok(GroupNetwork { path, created: false });
            }
            // The file is there without the namespace after a reboot, and where a plugin was killed in between.
            netns::remove(&path).await?;
            blocking::run(move || make_directory(&directory)).await?;
            let parameters = blocking::run(network_parameters::settable).await;
            netns::create_with(&path, parameters).await?;
            Ok(GroupNetwork { path, created: true })
        };
        self.alone(create).await
    }

    /// Removes the network namespace of an allocation's group. If it has none, there is nothing to do.
    ///
    /// # Errors
    /// Names what can't be removed. The sweeper tries that again.
    pub(crate) async fn destroy_group_network(&self, settings: &Settings, alloc_id: &str) -> Result<()> {
        let (directory, path) = place(&settings.config.state_dir, alloc_id)?;
        let (groups, alloc_id) = (Arc::clone(&self.group_networks), alloc_id.to_owned());
        let destroy = async move {
            groups.known().unwanted(&alloc_id);
            netns::remove(&path).await?;
            groups.known().doomed.remove(&alloc_id);
            // It stays as long as another group has its network there.
            let _ = blocking::run(move || fs::remove_dir(directory)).await;
            Ok(())
        };
        self.alone(destroy).await
    }

    /// Removes what no call comes back for: files of namespaces that are not there, which a plugin has left that was
    /// killed as it made or removed one, and namespaces whose removal was asked for and has failed.
    pub(super) async fn sweep_group_networks(&self, settings: &Settings) {
        let directory = settings.config.state_dir.join(DIRECTORY);
        let there = match list_without_blocking(&directory).await {
            Ok(there) => there,
            Err(error) => {
                tracing::debug!(error = %error.chain(), "can't look for networks of groups that are to be removed");
                return;
            }
        };
        let doomed = self.group_networks.known().at_sweep(&there);
        let doomed = doomed.into_iter().map(|alloc_id| directory.join(alloc_id));
        let unbound = there.into_iter().filter(|found| !found.is_bound).map(|found| found.path);
        // One that can't be removed holds up no other.
        for path in unbound.chain(doomed) {
            if let Err(error) = self.remove_again(path).await {
                tracing::debug!(error = %error.chain(), "can't remove the network of a group yet");
            }
        }
        let _ = self.remove_directory(directory).await;
    }

    /// Removes a namespace whose removal was asked for, or a file without one.
    async fn remove_again(&self, path: PathBuf) -> Result<()> {
        let groups = Arc::clone(&self.group_networks);
        let remove = async move {
            let alloc_id = id_of(&path);
            let is_doomed = groups.known().doomed.contains(&alloc_id);
            let at = path.clone();
            // The agent may have asked for it meanwhile.
            if !is_doomed && blocking::run(move || netns::is_bound(&at)).await {
                return Ok(());
            }
            netns::remove(&path).await?;
            if groups.known().doomed.remove(&alloc_id) {
                tracing::info!(
                    alloc = alloc_id,
                    "removed the network of a group that could not be removed before"
                );
            }
            Ok(())
        };
        self.alone(remove).await
    }

    /// Removes namespaces of groups whose allocations have not been named by the agent since the plugin's launch, and have
    /// no directory any more, if no process is in them: the allocation was removed while there was no plugin, or the agent
    /// has lost its state. One whose tasks all wait to be started has not been named either, but has a directory. The
    /// caller knows that the agent had the time to name those that live.
    pub(super) async fn reap_group_networks(self: &Arc<Self>, settings: &Settings) {
        let Some(alloc_dirs) = self.group_networks.known().alloc_dirs.clone() else { return };
        let directory = settings.config.state_dir.join(DIRECTORY);
        let found = list_without_blocking(&directory).await.unwrap_or_else(|error| {
            tracing::warn!(error = %error.chain(), "can't look for networks of groups that Nomad does not know");
            Vec::new()
        });
        for Found { path, is_bound } in found {
            let alloc_id = id_of(&path);
            if !is_bound || self.lives(&alloc_id) || !has_no_directory(&alloc_dirs, &alloc_id).await {
                continue;
            }
            if settings.config.gc.dangling_containers.dry_run {
                tracing::warn!(
                    alloc = alloc_id,
                    "Nomad does not know this group's network; leaving it (dry_run)"
                );
            } else if let Err(error) = self.reap_group_network(path).await {
                tracing::warn!(alloc = alloc_id, error = %error.chain(), "can't remove the network of a group yet");
            }
        }
        let _ = self.remove_directory(directory).await;
    }

    async fn reap_group_network(self: &Arc<Self>, path: PathBuf) -> Result<()> {
        let tasks = Arc::clone(self);
        let reap = async move {
            let (alloc_id, at) = (id_of(&path), path.clone());
            let used = blocking::run(move || netns::has_process(&at)).await;
            let is_used =
                used.map_err(|error| Error::system("see who uses the network of the group", error))?;
            // The agent may have named the allocation during the look.
            if is_used || tasks.lives(&alloc_id) {
                return Ok(());
            }
            tracing::warn!(alloc = alloc_id, "Nomad does not know this group's network; removing it");
            netns::remove(&path).await?;
            Ok(())
        };
        self.alone(reap).await
    }

    /// Removes the directory of the namespaces, if it is empty.
    async fn remove_directory(&self, directory: PathBuf) -> Result<()> {
        let remove = async move {
            let _ = blocking::run(move || fs::remove_dir(directory)).await;
            Ok(())
        };
        self.alone(remove).await
    }

    /// Returns whether the agent has named the allocation since the plugin's launch.
    fn lives(&self, alloc_id: &str) -> bool {
        let is_of = |slot: &Slot| match slot {
            Slot::Starting(starting) => starting.identity.alloc_id == alloc_id,
            Slot::Active(task) => task.identity.alloc_id == alloc_id,
            Slot::Removing => false,
        };
        // One lock after the other: a start takes them in the other order.
        let is_claimed = self.group_networks.known().claimed.contains(alloc_id);
        is_claimed || self.lock().values().any(is_of)
    }

    /// Does one thing at a time to the namespaces of groups. It is carried through, whether or not anybody waits for it.
    async fn alone<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let groups = Arc::clone(&self.group_networks);
        let work = async move {
            let _guard = groups.turn.lock().await;
            work.await
        };
        tokio::spawn(work).await.map_err(Error::failed)?
    }
}

/// Returns the directory, and the path of a group's namespace in it.
fn place(state_dir: &Path, alloc_id: &str) -> Result<(PathBuf, PathBuf)> {
    let is_id = (1..=ID_LIMIT_BYTES).contains(&alloc_id.len())
        && alloc_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !is_id {
        let shown: String = alloc_id.chars().take(ID_LIMIT_BYTES).collect();
        return Err(Error::invalid(format!(
            "the id of the allocation can't be {shown:?}: it must be made of at most {ID_LIMIT_BYTES} letters, digits and \
             hyphens"
        )));
    }
    let directory = state_dir.join(DIRECTORY);
    let path = directory.join(alloc_id);
    Ok((directory, path))
}

/// Returns the id of the allocation that the file at `path` is of.
fn id_of(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
}

/// Returns true if it is certain that the agent has no directory of the allocation.
async fn has_no_directory(alloc_dirs: &Path, alloc_id: &str) -> bool {
    let (all, own) = (alloc_dirs.to_owned(), alloc_dirs.join(alloc_id));
    let look = move || {
        let own = fs::symlink_metadata(own);
        all.is_dir() && own.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    };
    host_files::look(alloc_dirs, LOOK_TIMEOUT, look).await.unwrap_or(false)
}

async fn list_without_blocking(directory: &Path) -> Result<Vec<Found>> {
    let listed = directory.to_owned();
    let there = blocking::run(move || list(&listed)).await;
    there.map_err(|error| Error::system(format_args!("list the directory {}", directory.display()), error))
}

/// Returns the files in the directory, which need not be there.
fn list(directory: &Path) -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let look = |entry: io::Result<fs::DirEntry>| -> io::Result<Found> {
        let path = entry?.path();
        Ok(Found { is_bound: netns::is_bound(&path), path })
    };
    entries.map(look).collect()
}

fn make_directory(directory: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(Error::system(format_args!("make the directory {}", directory.display()), error))
        }
        _ => Ok(()),
    }
}

/// Checks the host name of a group. Nomad lets more through than the kernel, or `/etc/hosts`, can have.
///
/// # Errors
/// Says what a host name may be.
pub(super) fn check_hostname(name: &str) -> Result<()> {
    let is_name = (1..=HOSTNAME_LIMIT_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if is_name {
        return Ok(());
    }
    let shown: String = name.chars().take(2 * HOSTNAME_LIMIT_BYTES).collect();
    Err(Error::invalid(format!(
        "the hostname of the group's network block can't be {shown:?}: it must be made of at most {HOSTNAME_LIMIT_BYTES} \
         letters, digits, hyphens, underscores and dots"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocations_id_is_one_file_in_the_directory() {
        let state_dir = Path::new("/run/docker");
        let id = "5f1b2c3d-0000-4000-8000-00000000000a";
        let (directory, path) = place(state_dir, id).unwrap();
        assert_eq!((directory.as_path(), path), (Path::new("/run/docker/groups"), directory.join(id)));
        for wrong in ["", ".", "..", "../../etc", "a/b", "a\0b", "a b", &"x".repeat(65)] {
            let error = place(state_dir, wrong).unwrap_err().to_string();
            assert!(error.contains("allocation"), "{error}");
        }
    }

    #[test]
    fn a_groups_hostname_is_one_that_the_kernel_and_a_line_can_have() {
        for name in ["web", "web-1.example", "my_web", "web.", &"x".repeat(64)] {
            check_hostname(name).unwrap();
        }
        for wrong in ["", "a b", "a\n10.0.0.1 b", "a#b", "a/b", "ü", &"x".repeat(65)] {
            assert!(check_hostname(wrong).unwrap_err().to_string().contains("hostname"), "{wrong}");
        }
    }

    #[test]
    fn files_without_a_namespace_are_found_in_the_directory() {
        let state_dir = tempfile::tempdir().unwrap();
        let directory = state_dir.path().join(DIRECTORY);
        assert_eq!(list(&directory).unwrap(), []);
        make_directory(&directory).unwrap();
        make_directory(&directory).unwrap();
        fs::create_dir(directory.join("a")).unwrap();
        let found = Found { path: directory.join("a"), is_bound: false };
        assert_eq!(id_of(&found.path), "a");
        assert_eq!(list(&directory).unwrap(), [found]);
        assert!(list(Path::new("/dev/null")).is_err(), "a list that can't be read is not an empty one");
        let error = make_directory(&directory.join("b").join("c")).unwrap_err();
        assert!(error.to_string().contains("make the directory"), "{error}");
    }

    #[tokio::test]
    async fn a_network_is_unknown_only_once_its_allocation_has_no_directory() {
        let data_dir = tempfile::tempdir().unwrap();
        let alloc_dirs = data_dir.path().join("alloc");
        assert!(!has_no_directory(&alloc_dirs, "a").await, "none is there, which may be for want of a mount");
        fs::create_dir_all(alloc_dirs.join("a")).unwrap();
        assert!(!has_no_directory(&alloc_dirs, "a").await);
        assert!(has_no_directory(&alloc_dirs, "b").await);
        let groups = GroupNetworks::default();
        groups.has_alloc_dir("");
        assert_eq!(groups.known().alloc_dirs, None);
        groups.has_alloc_dir(alloc_dirs.join("a").to_str().unwrap());
        assert_eq!(groups.known().alloc_dirs, Some(alloc_dirs));
    }

    #[test]
    fn a_removal_that_has_failed_is_tried_until_the_network_is_gone_or_wanted_again() {
        let found = |id: &str| Found { path: Path::new("/s/groups").join(id), is_bound: true };
        let groups = GroupNetworks::default();
        groups.known().wanted("a");
        groups.has_task("b");
        groups.has_task("without-network");
        groups.known().unwanted("a");
        assert_eq!(groups.known().at_sweep(&[found("a"), found("b")]), ["a"]);
        assert_eq!(groups.known().claimed, HashSet::from(["b".to_owned()]));
        groups.known().wanted("a");
        assert!(groups.known().at_sweep(&[found("a"), found("b")]).is_empty());
        assert!(groups.known().claimed.contains("a"));
    }
}
