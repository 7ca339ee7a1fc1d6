//! The tasks that dockerd runs under this driver's name, from before it took the place of Nomad's own docker driver:
//! their handles, and whether they still run. None is started here beside itself.
//!
//! dockerd need not be there: its containers outlive it where it is so configured. So they are found by the shims that
//! containerd has started for it, and by the specifications in their bundles, which only root can write. A shim stays
//! until it is asked for the end of its container: one that was created, and of which no process is left, has ended.
//!
//! Source of the facts: hashicorp/nomad `drivers/docker/` (`handle.go`, `driver.go`: mounts and names); moby/moby
//! `libcontainerd/remote` and `daemon/daemon_unix.go` (its namespaces); containerd `core/runtime/v2` (a shim's directory).

#![expect(clippy::disallowed_methods, reason = "opens what the kernel makes, below /proc")]

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nomad_proto::driver as pb;
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::error::{Error, Result};
use crate::config::DriverName;
use crate::shim;
use crate::sys::host_path;
use crate::sys::procfs::{self, Stat};

/// Prefix of the name of every shim's binary.
const SHIM: &[u8] = b"containerd-shim";
/// Shim whose container has a process for as long as it runs. A sandbox may have none but its shim.
const SHIM_OF_PROCESSES: &[u8] = b"containerd-shim-runc-v2";
/// dockerd's namespace in containerd; with a user namespace of its own, the ids follow after a hyphen.
const NAMESPACE: &str = "moby";
/// Number of hexadecimal digits of a container's id.
const ID_DIGITS: usize = 64;
/// Number of digits of a container's id that docker's tools show.
const SHOWN_DIGITS: usize = 12;
/// Maximum size of a specification that is read.
const SPEC_LIMIT_BYTES: u64 = 8 * 1024 * 1024;
/// File in a bundle that the shim has the runtime write once the container is created, and its maximum size.
const INIT_PID: &str = "init.pid";
const PID_LIMIT_BYTES: u64 = 32;

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

/// A container of dockerd's: its id, and the sources of its mounts, among which are the directories of its task.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DockerdContainer {
    id: String,
    sources: Vec<PathBuf>,
}

impl DockerdContainer {
    fn is_of(&self, config: &pb::TaskConfig) -> bool {
        let task = Path::new(&config.alloc_dir).join(&config.name);
        let directories = ["local", "secrets"].map(|name| task.join(name));
        self.sources.iter().any(|source| directories.contains(source))
    }
}

/// The containers that dockerd had when the first task was started here. It gets no others of Nomad's: the driver that
/// gave it tasks had this driver's name.
#[derive(Default)]
pub(super) struct DockerdContainers {
    at_first: OnceCell<Vec<DockerdContainer>>,
}

impl DockerdContainers {
    /// Checks that dockerd doesn't run the task.
    ///
    /// # Errors
    /// Names the container, and how it is ended; the start may succeed once it has. When the processes can't be looked
    /// at.
    pub(super) async fn check(&self, name: DriverName, config: &pb::TaskConfig) -> Result<()> {
        if !name.is_docker() {
            return Ok(());
        }
        let its = |all: &[DockerdContainer]| all.iter().find(|container| container.is_of(config)).cloned();
        if its(self.at_first.get_or_try_init(|| look(Shims::All)).await?).is_none() {
            return Ok(());
        }
        let Some(container) = its(&look(Shims::OfRunning).await?) else { return Ok(()) };
        Err(Error::transient(format!(
            "it still runs under dockerd, as the container {name}-{alloc} ({id}), and two must not run at once: end that one \
             with \"docker rm -f {id}\", or without dockerd with \"ctr -n {NAMESPACE} tasks kill -s SIGKILL {whole}\"",
            name = config.name.replace('/', "_"),
            alloc = config.alloc_id,
            id = shown(&container.id),
            whole = container.id,
        )))
    }
}

/// Which of dockerd's shims a look is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shims {
    All,
    /// Those whose container has not ended.
    OfRunning,
}

/// Looks for the containers of dockerd's.
async fn look(which: Shims) -> Result<Vec<DockerdContainer>> {
    let found = shim::look_at_processes(move || containers(which)).await.flatten();
    found.map_err(|error| Error::transient(error).context("look for containers of dockerd's"))
}

/// Returns the containers of dockerd's. Blocking: not for an async thread.
fn containers(which: Shims) -> io::Result<Vec<DockerdContainer>> {
    let mut found = Vec::new();
    for pid in pids()? {
        match container_of_shim(pid, which) {
            Ok(container) => found.extend(container),
            // It has ended meanwhile.
            Err(error) if procfs::is_of_no_process(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Returns the pids of all processes.
fn pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for process in fs::read_dir("/proc")? {
        pids.extend(process?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// Returns the container whose shim a process is, if dockerd has it.
fn container_of_shim(pid: i32, which: Shims) -> io::Result<Option<DockerdContainer>> {
    // The name is read without the lock of the process's memory.
    if !fs::read(format!("/proc/{pid}/comm"))?.starts_with(SHIM) {
        return Ok(None);
    }
    let command_line = procfs::command_line(pid);
    let Some(id) = container_in(&command_line) else { return Ok(None) };
    if !procfs::shares_our_root(pid)? || !procfs::shares_our_pids(pid) {
        return Ok(None);
    }
    let bundle = fs::read_link(format!("/proc/{pid}/cwd"))?;
    let Some(spec) = read_if_there(&bundle, "config.json", SPEC_LIMIT_BYTES)? else {
        // A shim that removes its bundle has no process any more.
        return Ok(None);
    };
    if which == Shims::OfRunning && has_ended(pid, &command_line, &bundle)? {
        return Ok(None);
    }
    Ok(Some(DockerdContainer { id, sources: sources_in(&spec)? }))
}

/// Reads a file in a shim's bundle. `None` if it isn't there.
fn read_if_there(bundle: &Path, name: &str, limit_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match host_path::open_file(bundle, Path::new(name)) {
        Ok(file) => file,
        Err(_) if !bundle.join(name).exists() => return Ok(None),
        Err(error) => return Err(io::Error::other(error)),
    };
    let mut text = Vec::new();
    file.take(limit_bytes).read_to_end(&mut text)?;
    Ok(Some(text))
}

/// Returns true if the container of a shim, which has these arguments and this bundle, was created and has ended: its
/// shim has no child any more. Before the file with the pid of its first process is there, it may yet be created.
fn has_ended(shim: i32, command_line: &[u8], bundle: &Path) -> io::Result<bool> {
    if program_in(command_line).is_none_or(|program| program.as_bytes() != SHIM_OF_PROCESSES) {
        return Ok(false);
    }
    let init = read_if_there(bundle, INIT_PID, PID_LIMIT_BYTES)?;
    let Some(init) = init.and_then(|pid| std::str::from_utf8(&pid).ok()?.trim().parse().ok()) else {
        return Ok(false);
    };
    // The first process is looked at last: in the midst of the look it may become the shim's child, as the runtime ends.
    for pid in pids()?.into_iter().chain([init]) {
        if Stat::look(pid)?.is_some_and(|stat| stat.parent == shim) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the name of a process's program, without the directory.
fn program_in(command_line: &[u8]) -> Option<&OsStr> {
    let called = command_line.split(|byte| *byte == 0).next()?;
    Path::new(OsStr::from_bytes(called)).file_name()
}

/// Returns the id in the arguments of a shim, if it is one of dockerd's.
fn container_in(command_line: &[u8]) -> Option<String> {
    if !program_in(command_line)?.as_bytes().starts_with(SHIM) {
        return None;
    }
    let words = command_line.split(|byte| *byte == 0).skip(1);
    let words: Vec<_> = words.filter_map(|word| std::str::from_utf8(word).ok()).collect();
    let after =
        |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1)).copied();
    let namespace = after("-namespace")?;
    let is_dockerds =
        namespace.strip_prefix(NAMESPACE).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    let id = after("-id")
        .filter(|id| id.len() == ID_DIGITS && id.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
    is_dockerds.then(|| id.to_owned())
}

/// Returns the sources of the mounts in a specification.
fn sources_in(spec: &[u8]) -> io::Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        mounts: Vec<Mount>,
    }
    #[derive(Deserialize)]
    struct Mount {
        #[serde(default)]
        source: PathBuf,
    }
    let spec: Spec = serde_json::from_slice(spec)?;
    Ok(spec.mounts.into_iter().map(|mount| mount.source).collect())
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
        let id = "0a1b".repeat(16);
        let found = |line: &str| container_in(line.replace("ID", &id).replace(' ', "\0").as_bytes());
        let line = "/usr/bin/containerd-shim-runc-v2 -namespace moby -id ID -address /run/c.sock";
        assert_eq!(found(line).as_deref(), Some(&*id));
        assert_eq!(found(&line.replace("moby", "moby-100000.100000")).as_deref(), Some(&*id));
        for other in [
            "/usr/bin/containerd-shim-runc-v2 -namespace nomad -id ID -address /run/c.sock",
            "/usr/bin/containerd-shim-runc-v2 -namespace mobydick -id ID",
            "/bin/sh -namespace moby -id ID",
            "/usr/bin/containerd-shim-runc-v2 -namespace moby",
            "/usr/bin/containerd-shim-runc-v2 -namespace moby -id $(reboot)",
            "/usr/bin/containerd-shim-runc-v2 -namespace moby -id ID0",
            "/usr/bin/containerd-shim-runc-v2 -id moby -namespace",
            "",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn a_created_container_without_a_process_has_ended_though_its_shim_stays() {
        let line = |shim: &str| format!("/usr/bin/{shim}\0-namespace\0moby\0-id\0x").into_bytes();
        let (runc, kata) = (line("containerd-shim-runc-v2"), line("containerd-shim-kata-v2"));
        let bundle = tempfile::tempdir().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        let ended = |shim: i32, line: &[u8]| has_ended(shim, line, bundle.path()).unwrap();
        assert!(!ended(i32::MAX, &runc), "it may yet be created");
        for (text, has_ended) in
            [("", false), ("x", false), ("2147483646", true), (&*format!("{own}\n"), true)]
        {
            fs::write(bundle.path().join(INIT_PID), text).unwrap();
            assert_eq!(ended(i32::MAX, &runc), has_ended, "{text:?}");
            assert!(!ended(parent, &runc), "it has a child: {text:?}");
            assert!(!ended(i32::MAX, &kata), "the sandbox may be within the shim");
        }
    }

    #[test]
    fn a_task_is_known_by_its_directories() {
        let spec = json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/x"},
            {"destination": "/local", "type": "bind", "source": "/alloc/5c3b/web/local"},
        ]});
        let sources = sources_in(spec.to_string().as_bytes()).unwrap();
        let container = DockerdContainer { id: String::new(), sources };
        let is = |alloc_dir: &str, name: &str| {
            let config = pb::TaskConfig {
                alloc_dir: alloc_dir.to_owned(),
                name: name.to_owned(),
                ..pb::TaskConfig::default()
            };
            container.is_of(&config)
        };
        assert!(is("/alloc/5c3b", "web"));
        assert!(!is("/alloc/5c3b", "db") && !is("/alloc/9", "web") && !is("/5c3b", "web") && !is("", ""));
        sources_in(b"{").unwrap_err();
        assert_eq!(sources_in(b"{}").unwrap(), Vec::<PathBuf>::new());
    }
}
