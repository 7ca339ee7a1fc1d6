//! The keeper of a sandbox: a process that makes the sandbox, becomes its parent, writes down its exit code, and takes
//! the events of the shim.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getppid};
use tokio::net::UnixListener;

use super::call::Call;
use super::exit_code::ExitCodeFile;
use super::{EVENTS, KEEPER, WAIT_SLICE, code_of};
use crate::sys::pidfd::ProcessHandle;
use crate::sys::process_end::{SERVANT_OOM_SCORE_ADJ, SIGNAL_BASE};
use crate::sys::procfs::ProcessId;

/// Name of the environment variable that tells a keeper the pid of its shim.
const SHIM: &str = "CONTAINERD_DRIVER_SHIM";
/// Name of the file in a bundle that says that the sandbox is made, and that its keeper is ready.
const READY_FILE: &str = "sandbox-made";
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Runs `runsc create` through a keeper, which stays. Returns once the sandbox is made, or with the exit code of a
/// keeper that has ended before: that of `runsc create`, if it has failed.
///
/// # Errors
/// When the keeper can't be started.
pub(super) fn create(call: &Call) -> io::Result<ExitCode> {
    let mut keeper = Command::new("/proc/self/exe")
        .arg0(KEEPER)
        .args(&call.arguments)
        .env(SHIM, getppid().to_string())
        .spawn()?;
    loop {
        if let Some(ended) = keeper.try_wait()? {
            return Ok(code_of(ended));
        }
        if call.bundle.join(READY_FILE).exists() {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Runs as the keeper of a sandbox. Returns when the shim has ended, or with the exit code of a `runsc create` that has
/// failed.
///
/// # Errors
/// When the keeper can't do its work. A sandbox that is made by then stays: `runsc create` has failed for the shim, and
/// the clean-up of the start deletes the sandbox.
pub(super) fn run(call: &Call) -> io::Result<ExitCode> {
    let shim = std::env::var(SHIM).ok().and_then(|pid| pid.parse().ok()).map(ProcessId::of);
    let shim = shim.map(ProcessHandle::open).transpose()?.flatten();
    let shim = shim.ok_or_else(|| io::Error::other("the shim has ended"))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    std::env::set_current_dir(&call.bundle)?;
    let events = listen()?;
    let exit_code = ExitCodeFile::create(&call.bundle)?;
    let made = make(call, &shim)?;
    if !made.success() {
        return Ok(code_of(made));
    }
    let sandbox =
        sandbox(&call.bundle).ok_or_else(|| io::Error::other("runsc has not written the sandbox's pid"))?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    std::thread::Builder::new().name("reaper".to_owned()).spawn(move || reap(sandbox, &exit_code))?;
    // The keeper's score is that of its shim: without the keeper the shim ends, and the sandbox with it. An agent in a
    // container may not lower the score.
    let _ = std::fs::write("/proc/self/oom_score_adj", SERVANT_OOM_SCORE_ADJ.to_string());
    std::fs::write(READY_FILE, "")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(take_events(events, shim))?;
    Ok(ExitCode::SUCCESS)
}

/// Listens for the shim's events in the place of the plugin, which has taken them until now.
fn listen() -> io::Result<std::os::unix::net::UnixListener> {
    let new = format!("{EVENTS}.new");
    let listener = std::os::unix::net::UnixListener::bind(&new)?;
    std::fs::rename(&new, EVENTS)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Runs `runsc create`, and kills it if its caller or the shim has ended.
fn make(call: &Call, shim: &ProcessHandle) -> io::Result<ExitStatus> {
    let caller = getppid();
    let mut runsc = Command::new(&call.program).args(&call.arguments).env_remove(SHIM).spawn()?;
    loop {
        if let Some(ended) = runsc.try_wait()? {
            return Ok(ended);
        }
        if getppid() != caller || shim.ends_before(Instant::now()) {
            runsc.kill()?;
            return runsc.wait();
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns the pid of a sandbox, which `runsc create` has written into the bundle. `None` if it hasn't.
pub(super) fn sandbox(bundle: &Path) -> Option<i32> {
    std::fs::read_to_string(bundle.join("init.pid")).ok()?.trim().parse().ok()
}

/// Reaps all children, and writes the sandbox's exit code down before it reaps the sandbox, so before its pid can be
/// another process's.
fn reap(sandbox: i32, exit_code: &ExitCodeFile) {
    loop {
        let (pid, code) = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, SIGNAL_BASE + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
        };
        if pid.as_raw() == sandbox {
            // If the write fails, nobody is left to be told; the exit status that the kernel has of the sandbox counts
            // then.
            let _ = exit_code.write(code);
        }
        let _ = waitpid(pid, None);
    }
}

async fn take_events(events: std::os::unix::net::UnixListener, shim: ProcessHandle) -> io::Result<()> {
    let events = UnixListener::from_std(events)?;
    let ended = tokio::task::spawn_blocking(move || while !shim.ends_before(Instant::now() + WAIT_SLICE) {});
    // An accept that fails is not reported, since a keeper has no log.
    let taken = shim_protos::events::acknowledge_all(events, drop);
    tokio::select! {
        ended = ended => ended.map_err(io::Error::other),
        () = taken => Ok(()),
    }
}
