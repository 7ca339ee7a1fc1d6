//! Finds the processes of shims by their arguments and their names: identifies the shim of a container, tells whether
//! one runs, and ends shims that nobody drives.
#![expect(clippy::disallowed_methods, reason = "opens what the kernel makes, below /proc")]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shim_protos::Bootstrap;

use super::{Bundle, Error, Launcher, Shim, socket};
use crate::sys::pidfd::{self, ProcessHandle};
use crate::sys::procfs::{self, ProcessId, Stat};

/// Timeout of a look at processes: a read of a command line blocks while its process is stuck and holds the lock of its
/// memory.
const SCAN_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between checks of whether a shim that was told to end has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// What the kernel adds to the path of a directory that was removed.
const REMOVED: &[u8] = b" (deleted)";
/// Prefix of the id of a shim that was launched ahead of its container.
pub(super) const SPARE_PREFIX: &str = "spare-";
/// Beginning of the ids of shared shims.
pub(super) const SHARED_PREFIX: &str = "shared-";
/// Maximum number of looks for what a process has started that is to be killed.
const MOST_LOOKS: usize = 20;
/// Maximum length in bytes of the name that the kernel keeps of a process; the rest is cut off.
const COMM_BYTES: usize = 15;

impl Launcher {
    /// Finds the process of a shim which has just been started, and which says that its pid is `reported_pid`. The
    /// proof is that the process has the arguments that the shim was started with.
    ///
    /// # Errors
    /// When no process has those arguments, or more than one.
    async fn identify(
        &self,
        bootstrap: Bootstrap,
        bundle: &Bundle,
        id: &str,
        reported_pid: i32,
    ) -> Result<Shim, Error> {
        let (launcher, of, bundle) = (self.clone(), id.to_owned(), bundle.clone());
        let found = blocking(move || {
            let of_said = ProcessId::of(reported_pid);
            if launcher.is_shim(reported_pid, &bundle, &of) {
                vec![of_said]
            } else {
                launcher.serving_shims(&bundle, &of)
            }
        });
        match found.await.as_deref() {
            Ok([shim]) if shim.pid > 1 => {
                Ok(Shim { bootstrap, pid: shim.pid, started_ticks: shim.started_ticks, shared: None })
            }
            _ => Err(Error::Unidentified { binary: self.binary.clone(), id: id.to_owned(), reported_pid }),
        }
    }

    /// Identifies the process of a shim which has just been started, and writes the shim down in the bundle.
    ///
    /// # Errors
    /// When the process can't be told, or the shim not be written down.
    pub(crate) async fn note_shim(
        &self,
        bootstrap: Bootstrap,
        bundle: &Bundle,
        id: &str,
        reported_pid: i32,
    ) -> Result<Shim, Error> {
        let shim = self.identify(bootstrap, bundle, id, reported_pid).await?;
        let written = shim.clone();
        bundle.off_thread(move |bundle| bundle.write_shim(&written)).await?;
        Ok(shim)
    }

    /// Returns the process of a shim that was started earlier. `None` if it has ended. A shim whose pid was not known
    /// to the build of the plugin that started it is looked for by its arguments.
    ///
    /// # Errors
    /// When the kernel could not be asked, or more than one process has the arguments.
    pub(crate) async fn process_of(
        &self,
        shim: &Shim,
        bundle: &Bundle,
        id: &str,
    ) -> io::Result<Option<ProcessId>> {
        let (launcher, process, id) = (self.clone(), shim.process(), id.to_owned());
        let bundle = bundle.clone();
        let look = move || {
            if process.pid <= 1 {
                return match launcher.shims(&bundle, &id)[..] {
                    [] => Ok(None),
                    [shim] => Ok(Some(shim)),
                    [..] => Err(io::Error::other("more than one process has the shim's arguments")),
                };
            }
            let stat = Stat::look(process.pid)?.filter(|stat| !stat.has_ended());
            Ok(stat.and_then(|stat| {
                let is_it = match process.started_ticks {
                    0 => launcher.is_shim(process.pid, &bundle, &id),
                    _ => stat.is_of(process),
                };
                is_it.then_some(ProcessId { pid: process.pid, started_ticks: stat.started_ticks })
            }))
        };
        blocking(look).await.flatten()
    }

    /// Waits until a shim has ended, but no longer than `limit`; returns whether it has. The shim is not the plugin's
    /// child, so its process is polled: there is nothing to wait on. A shim that can't be looked for counts as running.
    pub(crate) async fn exits_within(&self, shim: &Shim, bundle: &Bundle, id: &str, limit: Duration) -> bool {
        let process = match self.process_of(shim, bundle, id).await {
            Ok(None) => return true,
            Ok(Some(process)) => process,
            Err(_) => return false,
        };
        let gone = async {
            while process.is_alive() {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(limit, gone).await.is_ok()
    }

    /// Kills all that a shim has started: not every shim ends a runtime that hangs when nobody waits for it any more.
    pub(crate) async fn kill_descendants_of(&self, shim: &Shim, bundle: &Bundle, id: &str) {
        let Ok(Some(process)) = self.process_of(shim, bundle, id).await else { return };
        let killed = blocking(move || {
            procfs::descendants(process).into_iter().for_each(pidfd::kill);
        });
        if let Err(error) = killed.await {
            tracing::warn!(container = id, %error, "can't kill the processes that the shim has started");
        }
    }

    /// Kills the runtimes that a shared shim has started for this container, and all that these have started. What it has
    /// started for others is left alone: a runtime has the host's root, and the container's id in its arguments.
    pub(crate) async fn kill_runtimes_for(&self, shim: &Shim, id: &str) {
        let (process, of) = (shim.process(), id.to_owned());
        let killed = blocking(move || {
            if !process.is_alive() {
                return;
            }
            for child in procfs::children(process.pid) {
                let Ok(Some(held)) = ProcessHandle::open(child) else { continue };
                if is_runtime_for(child.pid, &of) {
                    kill_with_started(&held, child);
                }
            }
        });
        if let Err(error) = killed.await {
            tracing::warn!(container = id, %error, "can't kill the runtimes that the shared shim has started for it");
        }
    }

    /// Kills all shims of this id, which are found by their command lines: for a start that died or was cut off before
    /// the shim was written down in the bundle. What a shim has started is killed with it: not every shim ends a
    /// runtime that hangs when nobody waits for it any more.
    pub(crate) async fn kill_stale_shims(&self, bundle: &Bundle, id: &str) {
        let (launcher, of, bundle) = (self.clone(), id.to_owned(), bundle.clone());
        let killed = blocking(move || {
            for shim in launcher.shims(&bundle, &of) {
                // The process is held before the check of its arguments, so that the process that was checked is the
                // one that is killed.
                let Ok(Some(process)) = ProcessHandle::open(shim) else { continue };
                if launcher.is_shim(shim.pid, &bundle, &of) {
                    tracing::warn!(container = of, pid = shim.pid, "killing a stale shim");
                    let socket = socket_in(&procfs::command_line(shim.pid));
                    kill_with_started(&process, shim);
                    remove(socket);
                }
            }
        });
        if let Err(error) = killed.await {
            tracing::warn!(container = id, %error, "can't look for stale shims");
        }
    }

    /// Returns whether a shim of this id runs.
    ///
    /// # Errors
    /// When the look takes too long, or breaks off.
    pub(crate) async fn has_stale_shim(&self, bundle: &Bundle, id: &str) -> io::Result<bool> {
        let (launcher, of, bundle) = (self.clone(), id.to_owned(), bundle.clone());
        blocking(move || !launcher.serving_shims(&bundle, &of).is_empty()).await
    }

    /// Returns the running processes of this id's shims. Only the command lines of processes that look like a shim are
    /// read: the kernel makes the reader wait if the process is stuck, such as in a file system that hangs.
    fn shims(&self, bundle: &Bundle, id: &str) -> Vec<ProcessId> {
        let directory = bundle.directory();
        let real = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let binary = bundle.shim_binary().unwrap_or_else(|| self.binary.clone());
        let name = binary.file_name().map(OsStr::as_bytes).unwrap_or_default();
        let found = procfs::all_pids().into_iter().filter(|pid| looks_like_shim(*pid, name, &real));
        let shims = found.map(ProcessId::of).filter(|process| self.is_shim(process.pid, bundle, id));
        shims.filter(|process| process.is_alive()).collect()
    }

    /// Returns [`Self::shims`] without processes of the shim's binary that start a shim, or clean up after one.
    pub(super) fn serving_shims(&self, bundle: &Bundle, id: &str) -> Vec<ProcessId> {
        let mut shims = self.shims(bundle, id);
        shims.retain(|shim| !is_short_lived(&procfs::command_line(shim.pid)));
        shims
    }

    /// Returns whether a process is the shim of a container. A shim that was launched ahead of its container has an id of its
    /// own in its arguments, and the container's bundle as its working directory.
    fn is_shim(&self, pid: i32, bundle: &Bundle, id: &str) -> bool {
        if pid <= 1 || !procfs::shares_our_pids(pid) {
            return false;
        }
        let line = procfs::command_line(pid);
        is_shim_of(&line, &self.namespace, &self.address, id)
            || (is_spare(&line) && works_in(pid, bundle.directory()))
    }
}

/// Kills a process, which `process` holds, and all that it has started. All are halted first, since what is halted starts
/// nothing more, and what is killed leaves its children to another. Those that were started last go first, and the process
/// itself last: a kill that this plugin's death cuts off leaves them where the next one finds them.
pub(super) fn kill_with_started(process: &ProcessHandle, id: ProcessId) {
    process.halt();
    let (mut started, mut seen) = (Vec::new(), HashSet::new());
    for look in 0..MOST_LOOKS {
        let mut found = procfs::descendants(id);
        found.retain(|process| !seen.contains(&(process.pid, process.started_ticks)));
        // What was being started as its parent was halted is there a moment later.
        if found.is_empty() && look > 0 {
            break;
        }
        for new in found {
            match ProcessHandle::open(new) {
                Ok(Some(held)) => held.halt(),
                Ok(None) => {}
                // It is looked for again, as long as there are looks.
                Err(_) if look + 1 < MOST_LOOKS => continue,
                Err(_) => {}
            }
            seen.insert((new.pid, new.started_ticks));
            started.push(new);
        }
    }
    started.into_iter().rev().for_each(pidfd::kill);
    process.kill();
}

/// What the process of a shim that was launched ahead of its container is found to be, by its id.
pub(super) enum Ahead {
    /// This shim, held.
    Is(ProcessHandle),
    /// Gone, or another process: after a restart of the host one may have the same pid and start time.
    IsNot,
    Unknown,
}

/// Opens the process of a shim that was launched ahead of its container, if it is that by its arguments or its working
/// directory.
///
/// # Errors
/// As [`ProcessHandle::open`].
pub(super) fn open_ahead(process: ProcessId, bundle: &Bundle, id: &str) -> io::Result<Ahead> {
    let Some(held) = ProcessHandle::open(process)? else { return Ok(Ahead::IsNot) };
    let line = procfs::command_line(process.pid);
    let is_ahead = is_spare(&line) || is_shared(&line);
    let is_it = procfs::shares_our_pids(process.pid)
        && is_ahead
        && (argument(&line, "-id") == Some(id.as_bytes()) || works_in(process.pid, bundle.directory()));
    Ok(match is_it {
        true => Ahead::Is(held),
        // One that ends has no arguments any more, nor has one that can't be looked at.
        false if line.is_empty() || is_ahead => Ahead::Unknown,
        false => Ahead::IsNot,
    })
}

/// Returns whether a child of a shim's is a runtime that was called for a container, and no process of a container's.
fn is_runtime_for(pid: i32, id: &str) -> bool {
    procfs::shares_our_pids(pid)
        && procfs::shares_our_root(pid).unwrap_or(false)
        && procfs::command_line(pid).split(|byte| *byte == 0).any(|word| word == id.as_bytes())
}

/// Returns whether a process has this working directory, or has had it, if that was removed, and is none of a container's:
/// such a one can have any path in a root of its own.
fn works_in(pid: i32, directory: &Path) -> bool {
    let cwd = format!("/proc/{pid}/cwd");
    let Ok(at) = std::fs::metadata(&cwd) else { return false };
    if !procfs::shares_our_root(pid).unwrap_or(false) {
        return false;
    }
    let is_there =
        std::fs::metadata(directory).is_ok_and(|there| (at.dev(), at.ino()) == (there.dev(), there.ino()));
    is_there || (at.nlink() == 0 && removed_directory(pid).is_some_and(|removed| removed == real(directory)))
}

/// Returns the path that the working directory of a process had before it was removed.
fn removed_directory(pid: i32) -> Option<PathBuf> {
    let at = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    at.as_os_str().as_bytes().strip_suffix(REMOVED).map(|at| PathBuf::from(OsStr::from_bytes(at)))
}

/// Resolves the links in a path as far as it exists.
fn real(path: &Path) -> PathBuf {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), ..) => real,
        (Err(_), Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}

/// Kills the shims that were launched for no container and whose directory was one in this directory, and has been removed,
/// with all that they have started, and removes their sockets. Those that are `known` are left alone.
pub(super) async fn end_removed_below(directory: &Path, known: Vec<ProcessId>) {
    let directory = directory.to_owned();
    let kill = move || {
        let directory = real(&directory);
        for pid in procfs::all_pids().into_iter().filter(|pid| *pid > 1) {
            let Some(at) = removed_directory(pid).filter(|at| at.parent() == Some(&directory)) else {
                continue;
            };
            if !procfs::shares_our_pids(pid) || !works_in(pid, &at) {
                continue;
            }
            let id = ProcessId::of(pid);
            let Ok(Some(process)) = ProcessHandle::open(id) else { continue };
            let line = procfs::command_line(pid);
            if (is_spare(&line) || is_shared(&line)) && !known.contains(&id) {
                kill_with_started(&process, id);
                remove(socket_in(&line));
            }
        }
    };
    if let Err(error) = blocking(kill).await {
        tracing::warn!(%error, "can't look for shims whose directory was removed");
    }
}

/// Removes the socket of a shim that was killed.
fn remove(socket: Option<PathBuf>) {
    socket.into_iter().for_each(|socket| drop(std::fs::remove_file(socket)));
}

/// Returns whether a process may be a shim by its name, that of containerd's shims or of `binary`, or by its working
/// directory.
fn looks_like_shim(pid: i32, binary: &[u8], directory: &Path) -> bool {
    let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim_ascii_end();
    let is_named = name.starts_with(b"containerd-shim")
        || (!name.is_empty() && name == &binary[..binary.len().min(COMM_BYTES)]);
    is_named || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == directory)
}

/// Returns whether a command line is that of a shim's binary which starts a shim, or cleans up after one.
fn is_short_lived(command_line: &[u8]) -> bool {
    let last = command_line.split(|byte| *byte == 0).rfind(|word| !word.is_empty());
    last.is_some_and(|word| word == b"start" || word == b"delete")
}

/// Runs a look at processes or files on a thread of its own, which may get stuck; gives up after [`SCAN_TIMEOUT`].
pub(crate) async fn blocking<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let looked = tokio::time::timeout(SCAN_TIMEOUT, tokio::task::spawn_blocking(look)).await;
    looked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)
}

/// Returns whether a command line is that of the driver's shim for `id`. A shim's process has the arguments that its
/// binary was started with.
fn is_shim_of(command_line: &[u8], namespace: &str, address: &str, id: &str) -> bool {
    let has = |flag, value: &str| argument(command_line, flag) == Some(value.as_bytes());
    has("-namespace", namespace) && has("-address", address) && has("-id", id)
}

/// Returns whether a command line is that of a shim that was launched ahead of its container, by whatever configuration.
fn is_spare(command_line: &[u8]) -> bool {
    argument(command_line, "-id").is_some_and(|id| id.starts_with(SPARE_PREFIX.as_bytes()))
}

/// Returns whether a command line is that of a shim that was launched as a shared one, by whatever configuration.
fn is_shared(command_line: &[u8]) -> bool {
    argument(command_line, "-id").is_some_and(|id| id.starts_with(SHARED_PREFIX.as_bytes()))
}

/// Returns the socket of a shim by its command line, whose words its name is made of.
fn socket_in(command_line: &[u8]) -> Option<PathBuf> {
    let word = |flag| std::str::from_utf8(argument(command_line, flag)?).ok();
    Some(socket::path(word("-address")?, word("-namespace")?, word("-id")?))
}

fn argument<'a>(command_line: &'a [u8], flag: &str) -> Option<&'a [u8]> {
    let mut words = command_line.split(|byte| *byte == 0);
    words.find(|word| *word == flag.as_bytes())?;
    words.next()
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::process::Command;

    use super::*;
    use crate::shim::launch::tests::launcher;

    #[test]
    fn a_shim_is_recognized_by_namespace_address_and_id() {
        let line =
            b"/usr/bin/containerd-shim-runc-v2\0-namespace\0nomad\0-id\0redis-1\0-address\0/run/ours\0";
        assert!(is_shim_of(line, "nomad", "/run/ours", "redis-1"));
        assert!(!is_shim_of(line, "nomad", "/run/ours", "redis-2"));
        assert!(!is_shim_of(line, "nomad", "/run/containerd/containerd.sock", "redis-1"));
        assert!(!is_shim_of(line, "moby", "/run/ours", "redis-1"));
        assert!(
            !is_short_lived(line)
                && is_short_lived(b"/bin/shim\0-id\0redis-1\0delete\0")
                && !is_short_lived(b"")
        );
        assert!(!is_shim_of(b"redis-1\0nomad\0/run/ours\0", "nomad", "/run/ours", "redis-1"));
        // Whatever configuration looks for it.
        assert_eq!(socket_in(line), Some(socket::path("/run/ours", "nomad", "redis-1")));
        assert_eq!(socket_in(b"redis-1\0nomad\0/run/ours\0"), None);
    }

    #[tokio::test]
    async fn a_shim_that_was_launched_ahead_is_known_by_its_working_directory() {
        let state = tempfile::tempdir().unwrap();
        let [spare, mine, other] =
            ["spare-1", "mine", "other"].map(|id| Bundle::at(state.path(), "nomad", id));
        spare.create(Path::new("/bin/shim")).unwrap();
        let launcher = launcher("/bin/shim", state.path());
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "read line",
            "shim",
            "-namespace",
            "nomad",
            "-address",
            "/run/ours",
            "-id",
            "spare-1",
        ]);
        command.current_dir(spare.directory()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let pid = i32::try_from(process.id().unwrap()).unwrap();
        assert!(!launcher.is_shim(pid, &mine, "mine"));
        spare.move_to(&mine).unwrap();
        other.create(Path::new("/bin/shim")).unwrap();
        assert!(launcher.is_shim(pid, &mine, "mine") && !launcher.is_shim(pid, &other, "other"));
        assert_eq!(launcher.shims(&mine, "mine").len(), 1);
        std::fs::remove_dir_all(mine.directory()).unwrap();
        assert!(launcher.is_shim(pid, &mine, "mine"), "the directory was removed, and may be made anew");
        drop(process.stdin.take());
        process.wait().await.unwrap();
    }

    /// Starts a shell that has the arguments of a shim of this id.
    fn shell(script: &str, id: &str, directory: &Path) -> tokio::process::Child {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "shim", "-namespace", "nomad", "-address", "/run/ours", "-id", id]);
        command.current_dir(directory).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn id_of(process: &tokio::process::Child) -> ProcessId {
        ProcessId::of(i32::try_from(process.id().unwrap()).unwrap())
    }

    #[tokio::test]
    async fn what_is_written_down_of_a_shim_is_no_other_processes() {
        let state = tempfile::tempdir().unwrap();
        let [own, other] = ["own", "other"].map(|id| Bundle::at(state.path(), ".shared", id));
        own.create(Path::new("/bin/shim")).unwrap();
        other.create(Path::new("/bin/shim")).unwrap();
        let open = |process: &tokio::process::Child, bundle: &Bundle, id: &str| {
            open_ahead(id_of(process), bundle, id).unwrap()
        };
        // It was a spare, and its directory became that of a shared shim.
        let mut spare = shell("read line", "spare-1", own.directory());
        assert!(matches!(open(&spare, &own, "shared-1"), Ahead::Is(_)));
        assert!(matches!(open(&spare, &own, "spare-1"), Ahead::Is(_)));
        assert!(matches!(open(&spare, &other, "shared-2"), Ahead::Unknown));
        let mut stranger = shell("read line", "web-1", own.directory());
        assert!(matches!(open(&stranger, &own, "shared-1"), Ahead::IsNot));
        for process in [&mut spare, &mut stranger] {
            drop(process.stdin.take());
            process.wait().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_a_process_starts_while_it_is_killed_is_killed_too() {
        let directory = tempfile::tempdir().unwrap();
        let marker = format!("600.{}", std::process::id());
        let script = format!("while :; do sleep {marker} & sleep 0.001; done");
        let is_left = |pid: i32| {
            procfs::command_line(pid).split(|byte| *byte == 0).any(|word| word == marker.as_bytes())
        };
        for _ in 0..20 {
            let mut process = shell(&script, "spare-1", directory.path());
            let id = id_of(&process);
            while procfs::children(id.pid).len() < 5 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let held = ProcessHandle::open(id).unwrap().unwrap();
            kill_with_started(&held, id);
            process.wait().await.unwrap();
            let until = std::time::Instant::now() + Duration::from_secs(5);
            let left = loop {
                let left: Vec<i32> = procfs::all_pids().into_iter().filter(|pid| is_left(*pid)).collect();
                // A killed one is there until it is reaped, without arguments.
                if left.is_empty() || std::time::Instant::now() > until {
                    break left;
                }
            };
            left.iter().for_each(|pid| pidfd::kill(ProcessId::of(*pid)));
            assert!(left.is_empty(), "{left:?} are left");
        }
    }

    #[tokio::test]
    async fn a_shim_with_unknown_pid_runs_while_a_process_has_its_arguments() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "x");
        bundle.create(Path::new("/bin/shim")).unwrap();
        let launcher = launcher("/bin/shim", state.path());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read line", "shim", "-namespace", "nomad", "-address", "/run/ours", "-id", "x"]);
        command.current_dir(bundle.directory());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let bootstrap = Bootstrap { version: shim_protos::ApiVersion::V2, socket: "/nowhere.sock".into() };
        let unknown = Shim { bootstrap, pid: 0, started_ticks: 0, shared: None };
        let soon = Duration::from_millis(50);
        assert!(!launcher.exits_within(&unknown, &bundle, "x", soon).await);
        assert!(launcher.exits_within(&unknown, &bundle, "another", soon).await);
        drop(process.stdin.take());
        assert!(launcher.exits_within(&unknown, &bundle, "x", Duration::from_secs(10)).await);
        process.wait().await.unwrap();
    }
}
