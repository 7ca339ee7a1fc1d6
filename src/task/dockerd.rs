//! The tasks that dockerd runs under this driver's name, from before it took the place of Nomad's own docker driver:
//! their handles, and whether they still run. None is started here beside itself.
//!
//! dockerd need not be there: its containers outlive it where it is so configured. So they are found as the kernel has
//! them, by the shims that it started.
//!
//! Source of the facts: hashicorp/nomad `drivers/docker/` (`handle.go`, `driver.go`: mounts and names); moby/moby
//! `libcontainerd/remote` (its namespace).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nomad_proto::driver as pb;
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::error::{Error, Result};
use crate::config::DriverName;
use crate::sys::procfs::{self, ProcessId};
use crate::sys::{blocking, mount_table};

/// Prefix of the name of every shim's binary, and dockerd's namespace in containerd.
const SHIM: &[u8] = b"containerd-shim";
const NAMESPACE: &[u8] = b"moby";
/// Directory of a task that every docker task has, at the same path in its container.
const LOCAL: &str = "/local";
/// Number of digits of a container's id that docker's tools show.
const SHOWN_DIGITS: usize = 12;

/// Part of the driver state of Nomad's own docker driver.
#[derive(Deserialize)]
struct DockersState {
    #[serde(rename = "ContainerID")]
    container_id: String,
    #[serde(rename = "ReattachConfig")]
    _log_collector: serde::de::IgnoredAny,
}

/// Returns the id of the container that a driver state of Nomad's own docker driver is about.
pub(super) fn container_of(driver_state: &[u8]) -> Option<String> {
    let state: DockersState = rmp_serde::from_slice(driver_state).ok()?;
    Some(state.container_id).filter(|id| !id.is_empty())
}

/// Returns the error for a handle of Nomad's own docker driver.
pub(super) fn foreign_handle(container_id: &str) -> Error {
    Error::invalid(format!(
        "the handle is of Nomad's own docker driver, for dockerd's container {}: this driver has no part in it, and starts \
         the task anew once it has ended",
        shown(container_id)
    ))
}

fn shown(container_id: &str) -> &str {
    container_id.get(..SHOWN_DIGITS).unwrap_or(container_id)
}

/// A task that runs in a container of dockerd's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DockerdTask {
    container_id: String,
    alloc_id: String,
    name: String,
}

impl DockerdTask {
    fn is(&self, config: &pb::TaskConfig) -> bool {
        !self.alloc_id.is_empty() && self.alloc_id == config.alloc_id && self.name == config.name
    }
}

/// The tasks that dockerd ran when the first one was started here. It gets no others: the driver that gave it tasks had
/// this driver's name.
#[derive(Default)]
pub(super) struct DockerdTasks {
    at_first: OnceCell<Vec<DockerdTask>>,
}

impl DockerdTasks {
    /// Checks that dockerd doesn't run the task.
    ///
    /// # Errors
    /// Names the container, and how it is ended; the start may succeed once it has.
    pub(super) async fn check(&self, name: DriverName, config: &pb::TaskConfig) -> Result<()> {
        if !name.is_docker() {
            return Ok(());
        }
        let is_it = |tasks: &[DockerdTask]| tasks.iter().find(|task| task.is(config)).cloned();
        let at_first = self.at_first.get_or_init(|| blocking::run(running)).await;
        if is_it(at_first).is_none() {
            return Ok(());
        }
        let Some(task) = is_it(&blocking::run(running).await) else { return Ok(()) };
        let id = shown(&task.container_id);
        Err(Error::transient(format!(
            "it still runs under dockerd, as the container {name}-{alloc} ({id}), and two must not run at once: end that one \
             with \"docker rm -f {id}\", or drain the node before this driver takes the place of Nomad's own docker driver",
            name = task.name.replace('/', "_"),
            alloc = task.alloc_id,
        )))
    }
}

/// Returns the tasks in containers of dockerd's. Blocking: not for an async thread.
fn running() -> Vec<DockerdTask> {
    let shims = procfs::all_pids().into_iter().filter_map(|pid| Some((pid, shim_of(pid)?)));
    shims.flat_map(|(pid, container_id)| tasks_below(pid, &container_id)).collect()
}

/// Returns the id of the container whose shim a process is, if dockerd has started it.
fn shim_of(pid: i32) -> Option<String> {
    let words = procfs::command_line(pid);
    let id = container_in(&words)?;
    // A process in a container can have any arguments.
    procfs::shares_our_pids(pid).then_some(id)
}

fn container_in(command_line: &[u8]) -> Option<String> {
    let mut words = command_line.split(|byte| *byte == 0);
    let program = Path::new(OsStr::from_bytes(words.next()?)).file_name()?;
    if !program.as_bytes().starts_with(SHIM) {
        return None;
    }
    let words: Vec<_> = words.collect();
    let after = |flag: &[u8]| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1));
    if after(b"-namespace") != Some(&NAMESPACE) {
        return None;
    }
    String::from_utf8(after(b"-id")?.to_vec()).ok()
}

/// Returns the task in a shim's container. Its mounts tell which: the first process can have any environment.
fn tasks_below(shim: i32, container_id: &str) -> Option<DockerdTask> {
    procfs::children(shim).into_iter().find_map(|process| task_of(process, container_id))
}

fn task_of(process: ProcessId, container_id: &str) -> Option<DockerdTask> {
    let source = mount_table::source_in(process.pid, Path::new(LOCAL)).ok()??;
    let (alloc_id, name) = task_of_directory(&source)?;
    process.is_alive().then(|| DockerdTask { container_id: container_id.to_owned(), alloc_id, name })
}

/// Returns the allocation's id and the task's name of a directory `../<alloc id>/<task>/local`.
fn task_of_directory(directory: &Path) -> Option<(String, String)> {
    let task = directory.parent().filter(|_| directory.ends_with("local"))?;
    let alloc_id = task.parent()?.file_name()?.to_str()?;
    Some((alloc_id.to_owned(), task.file_name()?.to_str()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_handle_of_dockers_driver_is_told_from_ours() {
        let state = json!({"ReattachConfig": null, "ContainerID": "0123456789abcdef", "DriverNetwork": null});
        let id = container_of(&rmp_serde::to_vec_named(&state).unwrap());
        assert_eq!(id.as_deref(), Some("0123456789abcdef"));
        let text = foreign_handle(&id.unwrap()).to_string();
        assert!(text.contains("0123456789ab:") && text.contains("docker driver"), "{text}");
        let go = json!({"StartedAt": null, "ContainerName": "x", "StdoutPath": "", "StderrPath": ""});
        let empty = json!({"ReattachConfig": null, "ContainerID": "", "DriverNetwork": null});
        for other in [go, empty, json!({}), json!([1])] {
            assert_eq!(container_of(&rmp_serde::to_vec_named(&other).unwrap()), None);
        }
        assert_eq!(container_of(b""), None);
        assert_eq!(container_of(br#"{"container_id": "web-1"}"#), None);
    }

    #[test]
    fn a_shim_of_dockerds_is_known_by_its_arguments() {
        let found = |line: &str| container_in(line.replace(' ', "\0").as_bytes());
        let line = "/usr/bin/containerd-shim-runc-v2 -namespace moby -id 0a1b -address /run/c.sock";
        assert_eq!(found(line).as_deref(), Some("0a1b"));
        for other in [
            "/usr/bin/containerd-shim-runc-v2 -namespace nomad -id web-1 -address /run/c.sock",
            "/bin/sh -namespace moby -id 0a1b",
            "/usr/bin/containerd-shim-runc-v2 -namespace moby",
            "/usr/bin/containerd-shim-runc-v2 -id moby -namespace",
            "",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn a_task_is_known_by_its_directory() {
        let of = |path: &str| task_of_directory(Path::new(path));
        let is = |alloc: &str, name: &str| Some((alloc.to_owned(), name.to_owned()));
        assert_eq!(of("/opt/nomad/alloc/5c3b/web/local"), is("5c3b", "web"));
        assert_eq!(of("/5c3b/web/local"), is("5c3b", "web"));
        for other in ["/web/local", "/5c3b/web/secrets", "/", "/local"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
