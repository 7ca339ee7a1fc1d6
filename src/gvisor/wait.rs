//! Answers `runsc wait` with the exit code that the keeper has written.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::WAIT_SLICE;
use super::call::Call;
use super::exit_code::ExitCodeFile;
use crate::sys::pidfd::ProcessHandle;
use crate::sys::procfs::ProcessId;

/// Maximum time for the keeper to write down the exit code of a sandbox that has ended.
const IS_WRITTEN: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The answer that the shim reads from the stdout of `runsc wait`.
#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    #[serde(rename = "exitStatus")]
    exit_status: i32,
}

/// Waits for the end of the sandbox, and prints its exit code.
///
/// # Errors
/// When no keeper has written the code down; the shim then reports 128.
pub(super) fn run(call: &Call) -> io::Result<ExitCode> {
    let id = call.arguments.last().and_then(|id| id.to_str()).unwrap_or_default();
    let exit_status = exit_code(&call.bundle)?;
    let mut answer = serde_json::to_vec(&Answer { id, exit_status })?;
    answer.push(b'\n');
    io::stdout().write_all(&answer)?;
    Ok(ExitCode::SUCCESS)
}

fn exit_code(bundle: &Path) -> io::Result<i32> {
    let nobody = || io::Error::other("the sandbox's exit code was not recorded");
    let file = ExitCodeFile::open(bundle)?.ok_or_else(nobody)?;
    let sandbox = process(bundle)?;
    // The pid is the sandbox's for as long as there is no code: so the process that was opened before this look is the
    // sandbox.
    if let Some(code) = file.read()? {
        return Ok(code);
    }
    if let Some(sandbox) = sandbox {
        while !sandbox.ends_before(Instant::now() + WAIT_SLICE) {}
    }
    let until = Instant::now() + IS_WRITTEN;
    loop {
        match file.read()? {
            Some(code) => return Ok(code),
            None if Instant::now() < until => std::thread::sleep(POLL_INTERVAL),
            None => return Err(nobody()),
        }
    }
}

/// Returns a handle to the sandbox. `None` if it is not made, or has ended.
fn process(bundle: &Path) -> io::Result<Option<ProcessHandle>> {
    let Some(pid) = super::keeper::sandbox(bundle) else { return Ok(None) };
    ProcessHandle::open(ProcessId::of(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_is_the_json_that_the_shim_parses() {
        let answer = serde_json::to_string(&Answer { id: "web-1", exit_status: 7 }).unwrap();
        assert_eq!(answer, r#"{"id":"web-1","exitStatus":7}"#);
    }

    #[test]
    fn the_exit_code_survives_removal_of_the_bundle() {
        for removed in [false, true] {
            let bundle = tempfile::tempdir().unwrap();
            let file = ExitCodeFile::create(bundle.path()).unwrap();
            let mut sandbox = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
            std::fs::write(bundle.path().join("init.pid"), sandbox.id().to_string()).unwrap();
            let at = bundle.path().to_owned();
            let waiting = std::thread::spawn(move || exit_code(&at));
            std::thread::sleep(Duration::from_millis(200));
            assert!(!waiting.is_finished());
            if removed {
                std::fs::remove_dir_all(bundle.path()).unwrap();
            }
            sandbox.kill().unwrap();
            sandbox.wait().unwrap();
            file.write(137).unwrap();
            assert_eq!(waiting.join().unwrap().unwrap(), 137);
            if !removed {
                assert_eq!(exit_code(bundle.path()).unwrap(), 137, "asked after the end");
            }
        }
    }

    #[test]
    fn a_reused_pid_is_not_waited_for() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("init.pid"), std::process::id().to_string()).unwrap();
        ExitCodeFile::create(bundle.path()).unwrap().write(7).unwrap();
        let at = bundle.path().to_owned();
        let (sender, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(exit_code(&at).unwrap()));
        assert_eq!(answer.recv_timeout(Duration::from_secs(10)), Ok(7));
    }
}
