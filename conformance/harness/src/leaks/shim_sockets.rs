//! The owners of shims' sockets. All shims of a machine listen in one directory, under names that are hashes; so when a
//! socket appears, the `-address` of its shim is recorded.
//!
//! Source of the facts: containerd `runtime/v2/shim/util_unix.go` (1.x), `pkg/shim/util_unix.go` (2.x).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::fixture::layer::sha256;
use crate::processes;

/// The directory of shims' sockets, compiled into every shim.
pub(crate) const DIRECTORY: &str = "/run/containerd/s";

/// The `-address` of the shim of each socket.
static OWNERS: Mutex<Option<HashMap<PathBuf, String>>> = Mutex::new(None);

/// Starts to record the owners of new sockets.
pub(crate) fn watch() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        let _ = fs::create_dir_all(DIRECTORY);
        let Ok(inotify) = Inotify::init(InitFlags::IN_CLOEXEC) else { return };
        if inotify.add_watch(DIRECTORY, AddWatchFlags::IN_CREATE).is_err() {
            return;
        }
        let _ = std::thread::Builder::new().name("shim sockets".to_owned()).spawn(move || {
            while let Ok(events) = inotify.read_events() {
                for name in events.into_iter().filter_map(|event| event.name?.into_string().ok()) {
                    note(&name);
                }
            }
        });
    });
}

fn note(name: &str) {
    let lines = processes::all().filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
    let address = lines.filter_map(|line| address_of(&line, name)).next();
    if let Some(address) = address {
        let mut owners = OWNERS.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get_or_insert_default().insert(Path::new(DIRECTORY).join(name), address);
    }
}

/// Returns the `-address` in a shim's command line, if the shim is the one that listens under this name.
fn address_of(command_line: &[u8], name: &str) -> Option<String> {
    let (address, hash) = listens_at(command_line)?;
    (hash == name).then_some(address)
}

/// Returns the `-address` in a shim's command line, and the name of the socket at which the shim listens.
fn listens_at(command_line: &[u8]) -> Option<(String, String)> {
    let words: Vec<&str> =
        command_line.split(|byte| *byte == 0).filter_map(|word| str::from_utf8(word).ok()).collect();
    let value = |flag: &str| words.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1]);
    let (address, namespace, id) = (value("-address")?, value("-namespace")?, value("-id")?);
    let hash = sha256(format!("{address}/{namespace}/{id}").as_bytes());
    Some((address.to_owned(), hash.strip_prefix("sha256:")?.to_owned()))
}

/// Returns the socket of a shim. `None` if the process is none.
pub(crate) fn of(shim: i32) -> Option<PathBuf> {
    let line = fs::read(format!("/proc/{shim}/cmdline")).ok()?;
    Some(Path::new(DIRECTORY).join(listens_at(&line)?.1))
}

/// Returns whether a socket is of a shim whose address lies below `directory`.
pub(crate) fn is_below(socket: &Path, directory: &Path) -> bool {
    let owners = OWNERS.lock().unwrap_or_else(PoisonError::into_inner);
    let address = owners.as_ref().and_then(|owners| owners.get(socket));
    address.is_some_and(|address| Path::new(address).starts_with(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_told_by_the_command_line_of_its_shim() {
        let line = b"/usr/bin/containerd-shim-runc-v2\0-namespace\0nomad\0-id\0web-1\0-address\0/tmp/w/state/shims\0start\0";
        let hash = sha256(b"/tmp/w/state/shims/nomad/web-1");
        let name = hash.strip_prefix("sha256:").unwrap();
        assert_eq!(address_of(line, name).as_deref(), Some("/tmp/w/state/shims"));
        assert_eq!(address_of(line, "0123"), None);
        assert_eq!(address_of(b"sh\0-c\0true\0", name), None);
    }
}
