//! Network namespaces of groups, which the driver makes under docker's name: there Nomad has the driver make them, and
//! connects them itself. No container holds such a namespace: it is bound to a file in the state directory, by its
//! allocation's id, so it is found again after any restart.
//!
//! Source of the facts: hashicorp/nomad `client/allocrunner/network_hook.go`, `drivers/docker/network.go`.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Error, Result};
use super::{Settings, Tasks};
use crate::sys::error_chain::Chained;
use crate::sys::{blocking, netns};

/// Name of the directory in the state directory.
const DIRECTORY: &str = "groups";
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

impl Tasks {
    /// Creates the network namespace of an allocation's group, or finds the one that it has.
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
        let create = async move {
            let bound = path.clone();
            if blocking::run(move || netns::is_bound(&bound)).await {
                return Ok(GroupNetwork { path, created: false });
            }
            // The file is there without the namespace after a reboot, and where a plugin was killed in between.
            netns::remove(&path).await?;
            blocking::run(move || make_directory(&directory)).await?;
            netns::create(&path).await?;
            Ok(GroupNetwork { path, created: true })
        };
        self.alone(create).await
    }

    /// Removes the network namespace of an allocation's group. If it has none, there is nothing to do.
    ///
    /// # Errors
    /// Names what can't be removed.
    pub(crate) async fn destroy_group_network(&self, settings: &Settings, alloc_id: &str) -> Result<()> {
        let (directory, path) = place(&settings.config.state_dir, alloc_id)?;
        let destroy = async move {
            netns::remove(&path).await?;
            // It stays as long as another group has its network there.
            let _ = blocking::run(move || fs::remove_dir(directory)).await;
            Ok(())
        };
        self.alone(destroy).await
    }

    /// Removes files of namespaces that are not there: what a plugin has left that was killed as it made or removed one.
    pub(super) async fn sweep_group_networks(&self, settings: &Settings) {
        let directory = settings.config.state_dir.join(DIRECTORY);
        let sweep = async move {
            let listed = directory.clone();
            for path in blocking::run(move || without_namespace(&listed)).await {
                netns::remove(&path).await?;
            }
            let _ = blocking::run(move || fs::remove_dir(directory)).await;
            Ok(())
        };
        if let Err(error) = self.alone(sweep).await {
            tracing::debug!(error = %error.chain(), "can't remove the file of a group's network yet");
        }
    }

    /// Does one thing at a time to the namespaces of groups. It is carried through, whether or not anybody waits for it.
    async fn alone<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mutex = Arc::clone(&self.group_networks);
        let work = async move {
            let _guard = mutex.lock().await;
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

/// Returns the files in the directory to which no namespace is bound.
fn without_namespace(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| !netns::is_bound(path)).collect()
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
        assert!(without_namespace(&directory).is_empty());
        make_directory(&directory).unwrap();
        make_directory(&directory).unwrap();
        fs::create_dir(directory.join("a")).unwrap();
        assert_eq!(without_namespace(&directory), [directory.join("a")]);
        let error = make_directory(&directory.join("b").join("c")).unwrap_err();
        assert!(error.to_string().contains("make the directory"), "{error}");
    }
}
