//! Runs the shim's binary: `start`, which leaves a shim behind, and `delete`, its own clean-up for a shim that is gone.
//! One of the few modules of the plugin that start processes.
//!
//! A child gets nothing of the plugin's but what it is to keep for its task: a clean environment (the shim inherits it
//! for good, and the agent's may hold secrets), files for its stdout and stderr (a daemon that kept a pipe of the
//! plugin's would hold up the plugin's end), and no address for events if it can do without (an address that does not
//! answer stalls the shim after some forty execs).
#![allow(clippy::disallowed_methods, reason = "this is the launcher that the ban names")]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shim_protos::{Bootstrap, StartInput, StartParams};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::processes;
use super::runtime::{find_shim, is_executable};
use super::start_inputs::{FileId, StartInputs};
use super::{
    Bundle, Connection, DEFAULT_PATH, Error, EventSocket, FIRST_INHERITED_FD, Family, Shim, excerpt, socket,
};
use crate::gvisor;
use crate::sys::blocking;
use crate::sys::cgroup_spawn::Cgroups;
use crate::sys::os_error::{is_transient, reports_transient};
use crate::sys::process_group::{self, ProcessGroup};

const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Timeout of `-v` and `--version`, which only print.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of `delete`, which kills and removes the container by the runtime.
const DELETE_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum number of bytes that are read of a binary's answer on its stdout.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;
/// Maximum number of bytes that are quoted from the end of a binary's stderr.
const MAX_QUOTED_BYTES: u64 = 4096;

/// Returns what a program prints for `--version`, of which the first [`MAX_QUOTED_BYTES`] count.
///
/// # Errors
/// If the program can't be run, fails, or does not end in time, with what it says on stderr. It is killed then.
pub(super) async fn printed_version(program: &str) -> io::Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut command = Command::new(program);
    command
        .arg("--version")
        .current_dir("/")
        .env_clear()
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let run = async {
        let (mut group, mut child) = process_group::spawn(command).await?;
        let ended = process_group::exchange(&mut child, &[], MAX_QUOTED_BYTES).await?;
        group.ended();
        Ok(ended)
    };
    match tokio::time::timeout(VERSION_TIMEOUT, run).await {
        Ok(Ok((status, printed, _))) if status.success() => {
            Ok(String::from_utf8_lossy(&printed).into_owned())
        }
        Ok(Ok((status, _, words))) => {
            Err(io::Error::other(format!("{status}: {}", String::from_utf8_lossy(&words).trim())))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let seconds = VERSION_TIMEOUT.as_secs();
            Err(io::Error::other(format!("it did not exit within {seconds} s, and was killed")))
        }
    }
}

/// Launches the shims of one configuration.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    pub binary: PathBuf,
    /// The runtime that the operator has configured: its binary does the clean-up if `binary` is gone, such as after an
    /// upgrade.
    pub runtime: String,
    pub namespace: String,
    /// The address that the shim takes for containerd's. The shim uses it only to name its socket, so it is the
    /// driver's alone: a daemon on the same host can never mistake the driver's shims for its own.
    pub address: String,
    /// The address for events, for a shim that needs one.
    pub events: EventSocket,
    pub start_inputs: StartInputs,
    pub family: Family,
    /// Looks up the cgroups that shims are started in.
    pub cgroups: fn() -> Cgroups,
}

/// What tells the shims of one launcher from those of another.
#[derive(PartialEq, Eq)]
pub(super) struct LaunchKind<'a> {
    pub binary: &'a Path,
    pub namespace: &'a str,
    pub address: &'a str,
    pub family: Family,
}

impl Launcher {
    pub(super) fn kind(&self) -> LaunchKind<'_> {
        // A new part is of the kind, or makes no difference to a shim that runs.
        let Self { binary, runtime: _, namespace, address, events: _, start_inputs: _, family, cgroups: _ } =
            self;
        LaunchKind { binary, namespace, address, family: *family }
    }

    /// Starts a shim for the bundle and returns where it listens. The shim holds the descriptors in `inherited` open
    /// until it ends; it knows nothing of them, and its runtime closes them in containers.
    ///
    /// A binary that refuses the form of input that it is taken to expect gets the other form: its version may not say
    /// which it takes, and a wrapper may have come to run another program.
    ///
    /// # Errors
    /// With the binary's stderr, when it fails, or when its answer can't be used.
    pub(crate) async fn start(
        &self,
        bundle: &Bundle,
        id: &str,
        inherited: &[OwnedFd],
    ) -> Result<Bootstrap, Error> {
        let at = self.binary.clone();
        let binary = processes::blocking(move || FileId::of(&at)).await.ok().flatten();
        let form = match self.start_inputs.of(binary) {
            Some(form) => form,
            None => self.form_by_version(bundle, id).await,
        };
        let until = Instant::now() + START_TIMEOUT;
        let (answer, form) = match self.start_with(form, bundle, id, inherited, until).await {
            Err(first_error @ Error::Binary { transient: false, .. }) => {
                // A binary that fails may have left a shim.
                self.kill_stale_shims(bundle, id).await;
                self.remove_socket(id).await;
                let other = self.start_with(form.other(), bundle, id, inherited, until).await;
                (other.map_err(|error| first_error.merge_attempts(error))?, form.other())
            }
            answer => (answer?, form),
        };
        self.start_inputs.remember(binary, form);
        Ok(answer)
    }

    async fn start_with(
        &self,
        form: StartInput,
        bundle: &Bundle,
        id: &str,
        inherited: &[OwnedFd],
        until: Instant,
    ) -> Result<Bootstrap, Error> {
        let out = bundle.directory().join("start.out");
        let err = bundle.directory().join("start.err");
        let files = [out.clone(), err.clone()];
        let create = |file: &PathBuf| File::create(file).map_err(Error::file("create", file));
        let made = blocking::run(move || Ok::<_, Error>((create(&files[0])?, create(&files[1])?)));
        let (stdout, stderr) = made.await?;
        let mut command = self.command(&self.binary, bundle, id, Stdio::null(), Stdio::null());
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
        let resource_error = |error: io::Error| failure(&error).with_transience(is_transient(&error));
        let stdin = match form.pipe(params).map_err(resource_error)? {
            Some(input) => input.into(),
            None => File::open("/dev/null").map_err(resource_error)?.into(),
        };
        let mut files = vec![(stdin, 0), (stdout.into(), 1), (stderr.into(), 2)];
        for (number, file) in (FIRST_INHERITED_FD..).zip(inherited) {
            files.push((file.try_clone().map_err(resource_error)?, number));
        }
        let left = || until.saturating_duration_since(Instant::now());
        let spawning = process_group::spawn_in(command, files, self.cgroups);
        let (group, mut child) = self.spawned(spawning, "start", id, left()).await?;
        let status = self.end(group, child.wait(), "start", id, left()).await?;
        if !status.success() {
            return Err(self.failed("start", id, status, err).await);
        }
        let read = move || excerpt::head(&out, MAX_ANSWER_BYTES).map_err(Error::file("read", &out));
        let answer = blocking::run(read).await?;
        Bootstrap::parse(&answer).map_err(|source| Error::Answer {
            binary: self.binary.clone(),
            id: id.to_owned(),
            source,
        })
    }

    /// Returns the form of input that the binary expects by its version. A binary that doesn't tell its version is
    /// taken for an early one.
    async fn form_by_version(&self, bundle: &Bundle, id: &str) -> StartInput {
        let printed = tokio::time::timeout(VERSION_TIMEOUT, self.version(bundle, id)).await;
        let printed = printed.unwrap_or_else(|elapsed| Err(elapsed.into())).unwrap_or_else(|error| {
            tracing::debug!(container = id, %error, "can't determine the shim's version");
            String::new()
        });
        let form = StartInput::by_version(&printed);
        tracing::debug!(binary = %self.binary.display(), ?form, "the input that this shim expects, by its version");
        form
    }

    /// Returns the first [`MAX_ANSWER_BYTES`] that the binary prints for `-v`. All that it has started is killed.
    async fn version(&self, bundle: &Bundle, id: &str) -> io::Result<String> {
        let mut command = self.command(&self.binary, bundle, id, Stdio::piped(), Stdio::null());
        command.arg("-v");
        let spawning = process_group::spawn(command);
        let spawned = self.spawned(spawning, "-v", id, VERSION_TIMEOUT).await;
        let (group, mut child) = spawned.map_err(io::Error::other)?;
        let mut printed = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut printed).await?;
        }
        drop(group);
        child.wait().await?;
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    /// Kills and removes the container of a shim that can't be reached any more. Does nothing if there is none.
    ///
    /// # Errors
    /// With the binary's stderr.
    pub(crate) async fn delete(&self, bundle: &Bundle, id: &str) -> Result<(), Error> {
        let err = bundle.directory().join("delete.err");
        let at = err.clone();
        let prepare = move |bundle: &Bundle| {
            bundle.prepare_for_delete()?;
            Ok::<_, Error>(File::create(at))
        };
        let stderr = bundle.off_thread(prepare).await?.map_or_else(
            |error| {
                // A full disk must not prevent the kill.
                tracing::warn!(container = id, %error, "can't record the output of the shim's clean-up");
                Stdio::null()
            },
            Stdio::from,
        );
        let found = Self { binary: self.existing_binary(bundle).await, ..self.clone() };
        let mut command = found.command(&found.binary, bundle, id, Stdio::null(), stderr);
        command.args(["-publish-binary", "/bin/true", "-bundle"]).arg(bundle.directory()).arg("delete");
        let status = found.run(command, "delete", id, DELETE_TIMEOUT).await?;
        if status.success() { Ok(()) } else { Err(found.failed("delete", id, status, err).await) }
    }

    /// Returns the binary that the bundle names, or else this launcher's; or that of the configured runtime if it is
    /// gone.
    async fn existing_binary(&self, bundle: &Bundle) -> PathBuf {
        let (otherwise, runtime) = (self.binary.clone(), self.runtime.clone());
        let find = move |bundle: &Bundle| {
            let binary = bundle.shim_binary().unwrap_or(otherwise);
            if is_executable(&binary) { binary } else { find_shim(&runtime).unwrap_or(binary) }
        };
        bundle.off_thread(find).await
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
            // containerd 2.3's shim reads the address from this variable.
            .env("GRPC_ADDRESS", &self.address)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            // A binary that hangs may be a script that waits for something: its whole process group is killed then.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    async fn run(
        &self,
        command: Command,
        action: &'static str,
        id: &str,
        limit: Duration,
    ) -> Result<ExitStatus, Error> {
        let spawning = process_group::spawn(command);
        let (group, mut child) = self.spawned(spawning, action, id, limit).await?;
        self.end(group, child.wait(), action, id, limit).await
    }

    /// Waits until the binary runs. Its file system may hang, and each such run keeps a thread: there is no other one of the
    /// binary while one stands still. One that was given up is undone when it begins.
    async fn spawned<T: Send + 'static>(
        &self,
        spawning: impl Future<Output = io::Result<T>> + Send + 'static,
        action: &'static str,
        id: &str,
        limit: Duration,
    ) -> Result<T, Error> {
        let late = |why: String| Err(io::Error::new(io::ErrorKind::TimedOut, why));
        let spawned = if Beginning::stands_still(&self.binary) {
            late("an earlier run of it has not begun yet; does its file system answer?".to_owned())
        } else {
            let beginning = Beginning::new(self.binary.clone());
            let spawning = tokio::spawn(async move {
                let spawned = spawning.await;
                drop(beginning);
                spawned
            });
            match tokio::time::timeout(limit, spawning).await {
                Ok(spawned) => spawned.map_err(io::Error::other).flatten(),
                Err(_) => late(format!("it has not begun within {limit:?}; does its file system answer?")),
            }
        };
        spawned.map_err(|error| {
            let failure = self.failure(action, id, &format_args!("can't be run: {error}"));
            failure.with_transience(is_transient(&error))
        })
    }

    /// Waits for the end of the binary. One that does not end in time is killed with its group.
    async fn end(
        &self,
        mut group: ProcessGroup,
        end: impl Future<Output = io::Result<ExitStatus>>,
        action: &'static str,
        id: &str,
        limit: Duration,
    ) -> Result<ExitStatus, Error> {
        match tokio::time::timeout(limit, end).await {
            Ok(status) => {
                // The shim that the binary leaves behind is in a group of its own.
                group.ended();
                status.map_err(|error| self.failure(action, id, &error))
            }
            Err(_) => {
                let late = format_args!("did not exit within {limit:?}");
                Err(self.failure(action, id, &late).with_transience(true))
            }
        }
    }

    async fn failed(&self, action: &'static str, id: &str, status: ExitStatus, stderr: PathBuf) -> Error {
        let words = blocking::run(move || end_of_output(&stderr)).await;
        let words = words.trim();
        let failure = if words.is_empty() {
            self.failure(action, id, &status)
        } else {
            self.failure(action, id, &format_args!("{status}: {words}"))
        };
        // Only the kernel kills the binary, when memory is short: the same may work later.
        failure.with_transience(status.signal().is_some() || reports_transient(words))
    }

    fn failure(&self, action: &'static str, id: &str, reason: &dyn std::fmt::Display) -> Error {
        Error::Binary {
            binary: self.binary.clone(),
            action,
            id: id.to_owned(),
            reason: reason.to_string(),
            transient: false,
        }
    }

    /// Starts a shim that is for no container yet, and writes it down in its directory.
    ///
    /// # Errors
    /// As [`Self::start`], or when the shim does not answer, can't be told or not be written down.
    pub(super) async fn launch_ahead(
        &self,
        bundle: &Bundle,
        id: &str,
        inherited: &[OwnedFd],
    ) -> Result<Shim, Error> {
        let bootstrap = self.start(bundle, id, inherited).await?;
        let connection = Connection::open(&bootstrap, id).await?;
        let pid = connection.pid_of_fresh_shim().await?;
        self.note_shim(bootstrap, bundle, id, pid).await
    }

    /// Removes the socket of a shim that was cut off before it was written down in the bundle: the socket's name is a
    /// hash of what the shim was started with.
    pub(crate) async fn remove_socket(&self, id: &str) {
        let LaunchKind { namespace, address, .. } = self.kind();
        let socket = socket::path(address, namespace, id);
        blocking::run(move || drop(std::fs::remove_file(socket))).await;
    }
}

/// A run of a binary that has not begun yet.
struct Beginning {
    binary: PathBuf,
    since: tokio::time::Instant,
}

impl Beginning {
    fn all() -> MutexGuard<'static, HashMap<PathBuf, Vec<tokio::time::Instant>>> {
        static ALL: LazyLock<Mutex<HashMap<PathBuf, Vec<tokio::time::Instant>>>> =
            LazyLock::new(Mutex::default);
        ALL.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new(binary: PathBuf) -> Self {
        let since = tokio::time::Instant::now();
        Self::all().entry(binary.clone()).or_default().push(since);
        Self { binary, since }
    }

    /// Returns whether a run of a binary has not begun for longer than a start may take.
    fn stands_still(binary: &Path) -> bool {
        Self::all().get(binary).is_some_and(|runs| runs.iter().any(|since| since.elapsed() >= START_TIMEOUT))
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let mut all = Self::all();
        let Some(runs) = all.get_mut(&self.binary) else { return };
        if let Some(at) = runs.iter().position(|since| *since == self.since) {
            runs.swap_remove(at);
        }
        if runs.is_empty() {
            all.remove(&self.binary);
        }
    }
}

/// Returns the end of a file with a program's output, which is where a program that fails says why.
fn end_of_output(file: &Path) -> String {
    excerpt::tail(file, MAX_QUOTED_BYTES)
        .map(|end| format!("{}{}", if end.is_cut { ".." } else { "" }, end.text))
        .unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::sys::error_chain::Chained;

    #[test]
    fn the_end_of_stderr_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("err");
        assert_eq!(end_of_output(&file), "");
        std::fs::write(&file, b"caf\xc3 closed\n").unwrap();
        assert_eq!(end_of_output(&file), "caf\u{fffd} closed\n");
        let panic = [vec![b'x'; 1 << 20], b"goroutine 7".to_vec()].concat();
        std::fs::write(&file, panic).unwrap();
        let words = end_of_output(&file);
        assert!(words.len() == 4098 && words.starts_with("..x") && words.ends_with("goroutine 7"));
    }

    pub(in crate::shim) fn launcher(binary: &str, state: &Path) -> Launcher {
        Launcher {
            binary: binary.into(),
            runtime: "io.containerd.runc.v2".to_owned(),
            namespace: "nomad".to_owned(),
            address: "/run/ours".to_owned(),
            events: EventSocket::of(state),
            start_inputs: StartInputs::default(),
            family: Family::Runc,
            cgroups: Cgroups::default,
        }
    }

    #[tokio::test]
    async fn a_version_is_what_a_program_prints_or_the_reason_why_it_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let program = |name: &str, script: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            path.display().to_string()
        };
        let good = program("good", "echo \"crun version 1.21 $*\"; env | grep -c HOME || true");
        assert_eq!(printed_version(&good).await.unwrap(), "crun version 1.21 --version\n0\n");
        for (name, script, words) in [
            ("broken", "echo libyajl.so.2 is missing >&2; exit 127", ["127", "libyajl.so.2"]),
            ("floods", "exec yes", ["signal", "13"]),
            ("floods-stderr", "exec yes >&2", ["signal", "13"]),
        ] {
            let error = printed_version(&program(name, script)).await.unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
            assert!(error.len() < 5000, "{} bytes", error.len());
        }
        assert!(printed_version("/no/such/program").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_tell_its_version_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hangs");
        std::fs::write(&path, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = printed_version(&path.display().to_string()).await.unwrap_err().to_string();
        assert!(error.contains("5 s") && error.contains("killed"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_binary_whose_file_system_hangs_costs_a_start_no_more_than_its_time() {
        let launcher = launcher("/hangs/shim", Path::new("/state"));
        let limit = Duration::from_secs(20);
        let (answers, answered) = tokio::sync::oneshot::channel();
        let hangs = async move { answered.await.map_err(io::Error::other) };
        let error = launcher.spawned(hangs, "start", "x", limit).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("20s"), "{error}");
        let began = tokio::time::Instant::now();
        let never = std::future::pending::<io::Result<()>>();
        let error = launcher.spawned(never, "start", "y", limit).await.unwrap_err();
        assert!(
            error.is_transient() && error.to_string().contains("/hangs/shim start failed for y"),
            "{error}"
        );
        assert!(began.elapsed() < limit, "each start takes another thread");
        answers.send(()).unwrap();
        while Beginning::stands_still(&launcher.binary) {
            tokio::task::yield_now().await;
        }
        launcher.spawned(async { Ok(()) }, "start", "z", limit).await.unwrap();
    }

    #[tokio::test]
    async fn a_failed_binary_is_named_with_its_stderr() {
        let state = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(state.path(), "nomad", "x");
        bundle.create(Path::new("/bin/shim")).unwrap();
        let launcher = launcher("/bin/false", state.path());
        let error = launcher.start(&bundle, "x", &[]).await.unwrap_err().chain().to_string();
        assert_eq!(error, "/bin/false start failed for x: exit status: 1");
        let missing = Launcher { binary: "/no/such/shim".into(), ..launcher.clone() };
        let error = missing.start(&bundle, "x", &[]).await.unwrap_err().chain().to_string();
        assert!(error.contains("/no/such/shim start failed for x: can't be run"), "{error}");
        let silent = Launcher { binary: "/bin/true".into(), ..launcher };
        let error = silent.start(&bundle, "x", &[]).await.unwrap_err().chain().to_string();
        assert!(
            error.contains("the answer of /bin/true start for x can't be used: it printed nothing"),
            "{error}"
        );
    }
}

#[cfg(test)]
mod fuzz {
    use shim_protos::Bootstrap;

    #[test]
    fn answers() {
        crate::fuzz::bytes("shim-bootstrap", |stdout| {
            let Ok(bootstrap) = Bootstrap::parse(stdout) else { return };
            assert!(bootstrap.socket.is_absolute() && bootstrap.socket.as_os_str().len() <= stdout.len());
            let stored = serde_json::to_vec(&bootstrap).unwrap();
            assert_eq!(serde_json::from_slice::<Bootstrap>(&stored).unwrap(), bootstrap);
        });
    }
}
