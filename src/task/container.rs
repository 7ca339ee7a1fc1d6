//! Handles to a container's parts, by the container's id: its bundle, the launcher of its shim, containerd, CNI.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::Settings;
use super::attempt::Attempt;
use crate::cgroup;
use crate::cni::Cni;
use crate::containerd::Containerd;
use crate::shim::{Bundle, Family, Launcher, Shim};
use crate::sys::procfs::ProcessId;

/// Maximum length of the readable part of an id, in front of the hash; containerd takes ids of up to 76 characters.
const NAME_LIMIT: usize = 40;
const HASH_LENGTH: usize = 20;
/// Length of an id of docker's in its short form.
const SHORT_ID_LENGTH: usize = 12;

#[derive(Clone)]
pub(super) struct ContainerHandles {
    pub(super) id: String,
    pub(super) bundle: Bundle,
    pub(super) launcher: Launcher,
    pub(super) containerd: Containerd,
    pub(super) cni: Arc<Cni>,
    /// Mutex for ending the container's processes without its shim: the task's supervisor and its destroy may both be
    /// about to.
    pub(super) ending: Arc<tokio::sync::Mutex<()>>,
    /// Facts from the handle of the task that runs here, for restoring its bundle; `None` where no task runs.
    pub(super) known: Arc<Mutex<Option<RestoreFacts>>>,
    /// Whether the driver has killed the container's first process while it was running. Then its exit status is known,
    /// even if neither the shim nor the kernel reports it.
    pub(super) was_killed: Arc<AtomicBool>,
}

/// The part of a task's handle that its end needs.
pub(super) struct RestoreFacts {
    pub(super) shim: Shim,
    pub(super) init: ProcessId,
    pub(super) attempt: Attempt,
    pub(super) runsc: Option<String>,
}

impl ContainerHandles {
    /// Returns the handles to a container, whether or not anything of it exists.
    pub(super) fn of(settings: &Settings, id: &str, shim_binary: PathBuf) -> Self {
        let state_dir = &settings.config.state_dir;
        Self {
            id: id.to_owned(),
            bundle: Bundle::at(state_dir, settings.namespace(), id),
            launcher: Launcher {
                family: Family::of_binary(&shim_binary),
                binary: shim_binary,
                runtime: settings.config.containerd_runtime.clone(),
                namespace: settings.namespace().to_owned(),
                address: shim_address(state_dir),
                events: settings.events.clone(),
                start_inputs: settings.start_inputs.clone(),
                cgroups: cgroup::of_shims,
            },
            containerd: settings.containerd.counted(),
            cni: Arc::clone(&settings.cni),
            ending: Arc::default(),
            known: Arc::default(),
            was_killed: Arc::default(),
        }
    }

    /// Returns the plugin's state directory, in which all bundles are.
    pub(super) fn state_dir(&self) -> &Path {
        self.bundle.directory().ancestors().nth(2).unwrap_or(Path::new("/"))
    }

    /// Returns the directory in which the runtime keeps its state of the container.
    pub(super) fn runtime_state(&self) -> PathBuf {
        runtime_root_in(self.state_dir()).join(&self.launcher.namespace).join(&self.id)
    }

    /// Returns the directory in which crun caches the seccomp filters of this plugin's containers.
    pub(super) fn filter_cache(&self) -> PathBuf {
        runtime_root_in(self.state_dir()).join(&self.launcher.namespace).join(".cache/seccomp")
    }

    /// Returns the handles to a container of which only the id is known. The path of its shim's binary matters only
    /// where that shim no longer answers; the bundle has it, or else there is no shim.
    pub(super) fn by_id(settings: &Settings, id: &str) -> Self {
        // The name of the runtime is no path of a program, so the launcher looks for the configured one.
        Self::of(settings, id, PathBuf::from(&settings.config.containerd_runtime))
    }
}

/// Returns the address that shims get as containerd's. It tells them from the shims of a daemon or of another plugin.
fn shim_address(state_dir: &Path) -> String {
    state_dir.join("shims").display().to_string()
}

/// Returns the root directory of the runtime's own state. It is private, so that no other client of containerd can
/// start, stop or delete this plugin's containers by their ids.
pub(super) fn runtime_root(settings: &Settings) -> String {
    runtime_root_in(&settings.config.state_dir).display().to_string()
}

fn runtime_root_in(state_dir: &Path) -> PathBuf {
    state_dir.join("runc")
}

/// Derives the container's id from Nomad's id of the task, `<alloc>/<task>/<attempt>`.
pub(super) fn container_id(task_id: &str) -> String {
    let name = task_id.split('/').nth(1).unwrap_or_default();
    // Only letters, digits and single separators between them are allowed.
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut readable = words.collect::<Vec<_>>().join("-");
    readable.truncate(NAME_LIMIT);
    let readable = readable.trim_end_matches('-');
    let hash = hash(task_id);
    if readable.is_empty() {
        format!("task-{}", &hash[..HASH_LENGTH])
    } else {
        format!("{readable}-{}", &hash[..HASH_LENGTH])
    }
}

/// Returns docker's host name of a task: twelve digits, here of its container's id, so that each attempt has others.
pub(super) fn short_id(task_id: &str) -> String {
    hash(task_id)[..SHORT_ID_LENGTH].to_owned()
}

fn hash(task_id: &str) -> String {
    Sha256::digest(task_id).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_readable_valid_and_distinct() {
        let id = container_id("5f1b/redis-task/0a1b2c3d");
        assert!(id.starts_with("redis-task-") && id.len() == "redis-task-".len() + HASH_LENGTH, "{id}");
        assert_ne!(id, container_id("5f1b/redis-task/0a1b2c3e"));
        for name in ["__a b//c..", "ünïcode", "", "-", &"x-".repeat(100)] {
            let id = container_id(&format!("alloc/{name}/1"));
            let words: Vec<_> = id.split('-').collect();
            assert!(id.len() <= 76 && words.iter().all(|w| !w.is_empty()), "{id}");
            assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{id}");
        }
    }

    #[test]
    fn short_ids_are_hexadecimal_digits_of_the_containers_id() {
        let id = "5f1b/web/0a1b2c3d";
        let short = short_id(id);
        assert!(short.len() == 12 && short.bytes().all(|digit| digit.is_ascii_hexdigit()), "{short}");
        assert!(container_id(id).starts_with(&format!("web-{short}")), "{short}");
        assert_ne!(short, short_id("5f1b/web/0a1b2c3e"));
    }
}
