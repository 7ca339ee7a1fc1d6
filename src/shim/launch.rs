//! Runs the shim's binary: `start`, which leaves a shim behind, and `delete`, its own clean-up for a shim that is gone.
//! One of the few places of the plugin that start processes.
//!
//! A child gets nothing of ours but what it is to keep for its task: a clean environment (the shim inherits it for good,
//! and the agent's may hold secrets), files for its stdout and stderr (a daemon that kept a pipe of ours would hold up the
//! plugin's end), and no address for events where it can do without (one that does not answer stalls the shim after some
//! forty execs).
#![allow(clippy::disallowed_methods, reason = "this is the launcher that the ban names")]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use sha2::{Digest, Sha256};
use shim_protos::{Bootstrap, StartInput, StartParams};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::runtime::{find, is_executable};
use super::start_inputs::{FileId, StartInputs};
use super::{Bundle, DEFAULT_PATH, Error, Events, Family, Shim};
use crate::gvisor;
use crate::os_error::{is_transient, tells_transient};
use crate::process_group::ProcessGroup;
use crate::process_handle::{self, ProcessHandle};
use crate::process_stat::{self, ProcessId, Stat};

const START: Duration = Duration::from_secs(20);
/// Compiled into the shims.
const SOCKETS: &str = "/run/containerd/s";
/// `-v` only prints.
const VERSION: Duration = Duration::from_secs(5);
/// `delete` kills and removes the container by the runtime.
const DELETE: Duration = Duration::from_secs(60);

/// How long a look at processes may take: the kernel shows no command line of one that is stuck with its memory's lock.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is looked whether a shim that was told to end has ended.
const IS_IT_ALIVE: Duration = Duration::from_millis(2);
/// How much is read of what a binary prints where it is asked something.
const ANSWER_BYTES: u64 = 64 * 1024;
/// How much of what a binary said last is quoted.
const QUOTED_BYTES: u64 = 4096;
/// How long the kernel lets the name of a process be.
const NAME_BYTES: usize = 15;

/// The first descriptor of those that a shim keeps: far above those that it gives its own children by number.
const FIRST_KEPT: i32 = 100;

/// Launches the shims of one configuration.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    pub binary: PathBuf,
    /// The runtime that the operator has configured: its binary does the clean-up where the other one is gone, such as
    /// after an upgrade.
    pub runtime: String,
    pub namespace: String,
    /// What the shim takes for containerd's address. It is of no use to it but to name its socket, so it is ours alone:
    /// a daemon on the same host can never mistake our shims for its own.
    pub address: String,
    /// Where a shim that needs such an address sends its events.
    pub events: Events,
    pub start_inputs: StartInputs,
    pub family: Family,
}

impl Launcher {
    /// Starts a shim for the bundle and returns where it listens. The shim holds what it is to keep open until it ends; it
    /// knows nothing of that, and its runtime closes it in containers.
    ///
    /// A binary that refuses the form of input that it is taken to expect gets the other one: its version may not say which,
    /// and another program may have come to stand behind it.
    ///
    /// # Errors
    /// With the binary's own words, when it fails or answers nonsense.
    pub(crate) async fn start(
        &self,
        bundle: &Bundle,
        id: &str,
        kept: &[OwnedFd],
    ) -> Result<Bootstrap, Error> {
        let at = self.binary.clone();
        let binary = off_thread(move || FileId::of(&at)).await.ok().flatten();
        let form = match self.start_inputs.of(binary) {
            Some(form) => form,
            None => self.form_by_version(bundle, id).await,
        };
        let until = Instant::now() + START;
        let (answer, form) = match self.start_by(form, bundle, id, kept, until).await {
            Err(refusal @ Error::Binary { passes: false, .. }) => {
                // Not every one that fails has left nothing.
                self.kill_leftovers(bundle, id).await;
                self.remove_socket(id);
                let other = self.start_by(form.other(), bundle, id, kept, until).await;
                (other.map_err(|error| refusal.or_otherwise(error))?, form.other())
            }
            answer => (answer?, form),
        };
        self.start_inputs.remember(binary, form);
        Ok(answer)
    }

    async fn start_by(
        &self,
        form: StartInput,
        bundle: &Bundle,
        id: &str,
        kept: &[OwnedFd],
        until: Instant,
    ) -> Result<Bootstrap, Error> {
        let out = bundle.directory().join("start.out");
        let err = bundle.directory().join("start.err");
        let stdout = File::create(&out).map_err(Error::file("create", &out))?;
        let stderr = File::create(&err).map_err(Error::file("create", &err))?;
        let mut command = self.command(&self.binary, bundle, id, stdout.into(), stderr.into());
        command.args(["-publish-binary", "/bin/true", "start"]);
        let events = match self.family {
            Family::Gvisor => Some(Path::new(gvisor::EVENTS)),
            Family::Runc | Family::Other => self.events.address_for(&self.binary).await?,
        };
        if let Some(address) = events {
            command.env("TTRPC_ADDRESS", address);
        }
        let failure = |reason: &dyn std::fmt::Display| self.failure("start", id, reason);
        let events = events.map(|socket| socket.display().to_string());
        let params =
            StartParams { id, namespace: &self.namespace, address: &self.address, events: events.as_deref() };
        let lacking = |error: io::Error| failure(&error).passing(is_transient(&error));
        if let Some(input) = form.pipe(params).map_err(lacking)? {
            command.stdin(input);
        }
        if !kept.is_empty() {
            let kept =
                kept.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>().map_err(lacking)?;
            let mappings =
                (FIRST_KEPT..).zip(kept).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
            command.fd_mappings(mappings.collect()).map_err(|error| failure(&error))?;
        }
        let status = self.run(command, "start", id, until.saturating_duration_since(Instant::now())).await?;
        if !status.success() {
            return Err(self.failed("start", id, &status, &err));
        }
        let answer = read_start(&out).map_err(Error::file("read", &out))?;
        Bootstrap::parse(&answer).map_err(|source| Error::Answer {
            binary: self.binary.clone(),
            id: id.to_owned(),
            source,
        })
    }

    /// Asks the binary for its version. One that doesn't tell it is taken for an early one.
    async fn form_by_version(&self, bundle: &Bundle, id: &str) -> StartInput {
        let printed = tokio::time::timeout(VERSION, self.version(bundle, id)).await;
        let printed = printed.unwrap_or_else(|late| Err(late.into())).unwrap_or_else(|error| {
            tracing::debug!(container = id, %error, "the shim's version is not known");
            String::new()
        });
        let form = StartInput::by_version(&printed);
        tracing::debug!(binary = %self.binary.display(), ?form, "the input that this shim expects, by its version");
        form
    }

    /// Returns what the binary prints for `-v`, or the start of it. Nothing of it is left then, whatever it has started.
    async fn version(&self, bundle: &Bundle, id: &str) -> io::Result<String> {
        let mut command = self.command(&self.binary, bundle, id, Stdio::piped(), Stdio::null());
        let mut child = command.arg("-v").spawn()?;
        let group = ProcessGroup::of(&child);
        let mut printed = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(ANSWER_BYTES).read_to_end(&mut printed).await?;
        }
        drop(group);
        child.wait().await?;
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    /// Kills and removes the container of a shim that can't be reached any more. Does nothing where there is none.
    ///
    /// # Errors
    /// With the binary's own words.
    pub(crate) async fn delete(&self, bundle: &Bundle, id: &str) -> Result<(), Error> {
        bundle.settle_for_delete()?;
        let err = bundle.directory().join("delete.err");
        let stderr = File::create(&err).map_or_else(
            |error| {
                // A full disk keeps nobody from being killed.
                tracing::warn!(container = id, %error, "what the shim's clean-up says is not kept");
                Stdio::null()
            },
            Stdio::from,
        );
        let binary = self.present_binary().await;
        let mut command = self.command(&binary, bundle, id, Stdio::null(), stderr);
        command.args(["-publish-binary", "/bin/true", "-bundle"]).arg(bundle.directory()).arg("delete");
        let status = self.run(command, "delete", id, DELETE).await?;
        if status.success() { Ok(()) } else { Err(self.failed("delete", id, &status, &err)) }
    }

    /// The binary, or the one that is configured where it is gone.
    async fn present_binary(&self) -> PathBuf {
        let (binary, runtime) = (self.binary.clone(), self.runtime.clone());
        let look = move || if is_executable(&binary) { None } else { find(&runtime).ok() };
        off_thread(look).await.ok().flatten().unwrap_or_else(|| self.binary.clone())
    }

    fn command(&self, binary: &Path, bundle: &Bundle, id: &str, stdout: Stdio, stderr: Stdio) -> Command {
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let mut command = Command::new(binary);
        command
            .args(["-namespace", &self.namespace, "-address", &self.address, "-id", id])
            .current_dir(bundle.directory())
            .env_clear()
            .env("PATH", path)
            .env("GOMAXPROCS", "2")
            // containerd 2.3's shim reads the address from here.
            .env("GRPC_ADDRESS", &self.address)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            // A binary that hangs may be a script that waits for something; all of it has to go then.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    async fn run(
        &self,
        mut command: Command,
        action: &'static str,
        id: &str,
        limit: Duration,
    ) -> Result<ExitStatus, Error> {
        let failure = |reason: &dyn std::fmt::Display| self.failure(action, id, reason);
        let mut child = command
            .spawn()
            .map_err(|error| failure(&format_args!("can't be run: {error}")).passing(is_transient(&error)))?;
        let mut group = ProcessGroup::of(&child);
        match tokio::time::timeout(limit, child.wait()).await {
            Ok(status) => {
                // The shim that it leaves behind is in a group of its own.
                group.ended();
                status.map_err(|error| failure(&error))
            }
            Err(_) => Err(failure(&format_args!("did not end within {limit:?}")).passing(true)),
        }
    }

    fn failed(&self, action: &'static str, id: &str, status: &ExitStatus, stderr: &Path) -> Error {
        let words = last_words(stderr);
        let words = words.trim();
        let failure = if words.is_empty() {
            self.failure(action, id, status)
        } else {
            self.failure(action, id, &format_args!("{status}: {words}"))
        };
        // Nobody kills it but the kernel, where memory is short.
        failure.passing(status.signal().is_some() || tells_transient(words))
    }

    fn failure(&self, action: &'static str, id: &str, reason: &dyn std::fmt::Display) -> Error {
        Error::Binary {
            binary: self.binary.clone(),
            action,
            id: id.to_owned(),
            reason: reason.to_string(),
            passes: false,
        }
    }

    /// Finds the process that serves as a shim which has just been started, and which says that its pid is `said`. Its
    /// arguments are the proof: they are those that it was started with.
    ///
    /// # Errors
    /// When no process has them, or more than one.
    pub(crate) async fn identify(
        &self,
        bootstrap: Bootstrap,
        bundle: &Bundle,
        id: &str,
        said: i32,
    ) -> Result<Shim, Error> {
        let (launcher, of, directory) = (self.clone(), id.to_owned(), bundle.directory().to_owned());
        let found = off_thread(move || {
            let of_said = ProcessId::of(said);
            if launcher.is_shim(said, &of) { vec![of_said] } else { launcher.servers(&directory, &of) }
        });
        match found.await.as_deref() {
            Ok([shim]) if shim.pid > 1 => {
                Ok(Shim { bootstrap, pid: shim.pid, started_ticks: shim.started_ticks })
            }
            _ => Err(Error::Unknown { binary: self.binary.clone(), id: id.to_owned(), said }),
        }
    }

    /// Returns the process of a shim that was started earlier. None where it has ended. One whose pid was not known to the
    /// build of the plugin that started it is looked for by its arguments.
    ///
    /// # Errors
    /// When the kernel could not be asked, or which it is can't be told.
    pub(crate) async fn process_of(
        &self,
        shim: &Shim,
        bundle: &Bundle,
        id: &str,
    ) -> io::Result<Option<ProcessId>> {
        let (launcher, process, id) = (self.clone(), shim.process(), id.to_owned());
        let directory = bundle.directory().to_owned();
        let look = move || {
            if process.pid <= 1 {
                return match launcher.shims(&directory, &id)[..] {
                    [] => Ok(None),
                    [shim] => Ok(Some(shim)),
                    [..] => Err(io::Error::other("more than one process has the shim's arguments")),
                };
            }
            let stat = Stat::look(process.pid)?.filter(|stat| !stat.has_ended());
            Ok(stat.and_then(|stat| {
                let is_it = match process.started_ticks {
                    0 => launcher.is_shim(process.pid, &id),
                    _ => stat.is_of(process),
                };
                is_it.then_some(ProcessId { pid: process.pid, started_ticks: stat.started_ticks })
            }))
        };
        off_thread(look).await.flatten()
    }

    /// Waits for a shim to be gone, and says whether it is. It is nobody's child, or init's, so there is nothing to wait on;
    /// and init may take its time to bury it. One that can't be looked for is not gone.
    pub(crate) async fn ends_within(&self, shim: &Shim, bundle: &Bundle, id: &str, limit: Duration) -> bool {
        let process = match self.process_of(shim, bundle, id).await {
            Ok(None) => return true,
            Ok(Some(process)) => process,
            Err(_) => return false,
        };
        let gone = async {
            while process.is_alive() {
                tokio::time::sleep(IS_IT_ALIVE).await;
            }
        };
        tokio::time::timeout(limit, gone).await.is_ok()
    }

    /// Kills whatever a shim has started: not every shim ends a runtime that hangs when nobody waits for it any more.
    pub(crate) async fn kill_started(&self, shim: &Shim, bundle: &Bundle, id: &str) {
        let Ok(Some(process)) = self.process_of(shim, bundle, id).await else { return };
        let killed = off_thread(move || {
            process_stat::descendants(process.pid).into_iter().for_each(process_handle::kill);
        });
        if let Err(error) = killed.await {
            tracing::warn!(container = id, %error, "can't end what the shim has started");
        }
    }

    /// Ends whatever shim of this id is left, found by its command line: for one that was started, but died or was cut
    /// off before it was written down where it is. What it has started goes with it: not every shim ends a runtime that
    /// hangs when nobody waits for it any more.
    pub(crate) async fn kill_leftovers(&self, bundle: &Bundle, id: &str) {
        let (launcher, of, directory) = (self.clone(), id.to_owned(), bundle.directory().to_owned());
        let killed = off_thread(move || {
            for shim in launcher.shims(&directory, &of) {
                // Held first: whose arguments are looked at then is who is killed.
                let Ok(Some(process)) = ProcessHandle::open(shim) else { continue };
                if launcher.is_shim(shim.pid, &of) {
                    tracing::warn!(container = of, pid = shim.pid, "ending a shim that nobody drives");
                    let started = process_stat::descendants(shim.pid);
                    process.kill();
                    started.into_iter().for_each(process_handle::kill);
                }
            }
        });
        if let Err(error) = killed.await {
            tracing::warn!(container = id, %error, "can't look for a shim that nobody drives");
        }
    }

    /// Whether a shim of this id runs.
    ///
    /// # Errors
    /// When that can't be told.
    pub(crate) async fn has_leftovers(&self, bundle: &Bundle, id: &str) -> io::Result<bool> {
        let (launcher, of, directory) = (self.clone(), id.to_owned(), bundle.directory().to_owned());
        off_thread(move || !launcher.servers(&directory, &of).is_empty()).await
    }

    /// Removes the socket of a shim that nobody got to write down where it is: its name is a hash of what the shim was
    /// started with.
    pub(crate) fn remove_socket(&self, id: &str) {
        let Self { binary: _, runtime: _, namespace, address, events: _, start_inputs: _, family: _ } = self;
        let hash = Sha256::digest(format!("{address}/{namespace}/{id}"));
        let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = std::fs::remove_file(Path::new(SOCKETS).join(name));
    }

    /// The shims of this id that run. Only of processes that look like a shim is the command line asked for: the kernel
    /// makes wait who asks for that of one that is stuck, such as in a file system that hangs.
    fn shims(&self, directory: &Path, id: &str) -> Vec<ProcessId> {
        let real = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let found = process_stat::all_pids().into_iter().filter(|pid| self.looks_like_shim(*pid, &real));
        let shims = found.map(ProcessId::of).filter(|process| self.is_shim(process.pid, id));
        shims.filter(|process| process.is_alive()).collect()
    }

    /// As [`Self::shims`], but for those of its binary's processes that start one, or clean up after one.
    fn servers(&self, directory: &Path, id: &str) -> Vec<ProcessId> {
        let mut shims = self.shims(directory, id);
        shims.retain(|shim| !is_errand(&process_stat::command_line(shim.pid)));
        shims
    }

    /// By its name, or by where it was started.
    fn looks_like_shim(&self, pid: i32, directory: &Path) -> bool {
        let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim_ascii_end();
        let binary = self.binary.file_name().map(OsStr::as_bytes).unwrap_or_default();
        let is_named = name.starts_with(b"containerd-shim")
            || (!name.is_empty() && name == &binary[..binary.len().min(NAME_BYTES)]);
        is_named || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == directory)
    }

    fn is_shim(&self, pid: i32, id: &str) -> bool {
        pid > 1
            && process_stat::shares_our_pids(pid)
            && is_shim_of(&process_stat::command_line(pid), &self.namespace, &self.address, id)
    }
}

/// Whether a command line is that of a shim's binary which starts a shim, or cleans up after one.
fn is_errand(command_line: &[u8]) -> bool {
    let last = command_line.split(|byte| *byte == 0).rfind(|word| !word.is_empty());
    last.is_some_and(|word| word == b"start" || word == b"delete")
}

/// Looks at processes on a thread that may get stuck.
async fn off_thread<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let looked = tokio::time::timeout(LOOK, tokio::task::spawn_blocking(look)).await;
    looked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)
}

/// The start of a file, which a program may have made as long as it likes.
fn read_start(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(ANSWER_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The end of a file, as text: of a program that fails, the end says why.
fn last_words(file: &Path) -> String {
    let read = || {
        let mut file = File::open(file)?;
        let length = file.metadata()?.len();
        let mut words = Vec::new();
        file.seek(SeekFrom::Start(length.saturating_sub(QUOTED_BYTES)))?;
        file.take(QUOTED_BYTES).read_to_end(&mut words)?;
        let cut = if length > QUOTED_BYTES { ".." } else { "" };
        io::Result::Ok(format!("{cut}{}", String::from_utf8_lossy(&words)))
    };
    read().unwrap_or_default()
}

/// Whether a command line is that of our shim for `id`. The shim repeats the arguments that it was started with.
fn is_shim_of(command_line: &[u8], namespace: &str, address: &str, id: &str) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let has = |flag: &str, value: &str| {
        words.windows(2).any(|pair| pair[0] == flag.as_bytes() && pair[1] == value.as_bytes())
    };
    has("-namespace", namespace) && has("-address", address) && has("-id", id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_told_by_its_namespace_address_and_id() {
        let line =
            b"/usr/bin/containerd-shim-runc-v2\0-namespace\0nomad\0-id\0redis-1\0-address\0/run/ours\0";
        assert!(is_shim_of(line, "nomad", "/run/ours", "redis-1"));
        assert!(!is_shim_of(line, "nomad", "/run/ours", "redis-2"));
        assert!(!is_shim_of(line, "nomad", "/run/containerd/containerd.sock", "redis-1"));
        assert!(!is_errand(line) && is_errand(b"/bin/shim\0-id\0redis-1\0delete\0") && !is_errand(b""));
        assert!(!is_shim_of(b"redis-1\0nomad\0/run/ours\0", "nomad", "/run/ours", "redis-1"));
    }

    #[test]
    fn the_end_of_what_a_binary_said_is_quoted_whatever_its_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("err");
        assert_eq!(last_words(&file), "");
        std::fs::write(&file, b"caf\xc3 closed\n").unwrap();
        assert_eq!(last_words(&file), "caf\u{fffd} closed\n");
        let panic = [vec![b'x'; 1 << 20], b"goroutine 7".to_vec()].concat();
        std::fs::write(&file, panic).unwrap();
        let words = last_words(&file);
        assert!(words.len() == 4098 && words.starts_with("..x") && words.ends_with("goroutine 7"));
    }

    fn launcher(binary: &str, state: &Path) -> Launcher {
        Launcher {
            binary: binary.into(),
            runtime: "io.containerd.runc.v2".to_owned(),
            namespace: "nomad".to_owned(),
            address: "/run/ours".to_owned(),
            events: Events::of(state),
            start_inputs: StartInputs::default(),
            family: Family::Runc,
        }
    }

    #[tokio::test]
    async fn a_shim_whose_pid_is_not_known_has_not_ended_while_a_process_has_its_arguments() {
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
        let unknown = Shim { bootstrap, pid: 0, started_ticks: 0 };
        let soon = Duration::from_millis(50);
        assert!(!launcher.ends_within(&unknown, &bundle, "x", soon).await);
        assert!(launcher.ends_within(&unknown, &bundle, "another", soon).await);
        drop(process.stdin.take());
        assert!(launcher.ends_within(&unknown, &bundle, "x", Duration::from_secs(10)).await);
        process.wait().await.unwrap();
    }

    #[tokio::test]
    async fn a_binary_that_fails_is_named_with_its_words() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "x");
        bundle.create(Path::new("/bin/shim")).unwrap();
        let launcher = launcher("/bin/false", state.path());
        let error = launcher.start(&bundle, "x", &[]).await.unwrap_err().to_string();
        assert_eq!(error, "/bin/false start failed for x: exit status: 1");
        let missing = Launcher { binary: "/no/such/shim".into(), ..launcher.clone() };
        let error = missing.start(&bundle, "x", &[]).await.unwrap_err().to_string();
        assert!(error.contains("/no/such/shim start failed for x: can't be run"), "{error}");
        let silent = Launcher { binary: "/bin/true".into(), ..launcher };
        let error = silent.start(&bundle, "x", &[]).await.unwrap_err().to_string();
        assert!(error.contains("/bin/true start can't be used for x: it printed nothing"), "{error}");
    }
}
