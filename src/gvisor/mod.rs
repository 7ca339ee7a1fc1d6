//! Runs this binary in the place of gVisor's `runsc`: between gVisor's shim and the real `runsc`, for each task in a
//! sandbox.
//!
//! The shim is made for pods, whose sandbox outlives every container and whose daemon is always there. A task is alone
//! in its sandbox, and its plugin may be away. Two things follow:
//!
//! - The sandbox ends with its task. The shim asks it for the exit code by `runsc wait`, which comes too late for a
//!   task that ends at once, and is a process of 30 MB until then. So the sandbox is made by a *keeper*, whose child it
//!   becomes: the keeper has its exit code from the kernel, and `wait` is answered from that.
//! - The shim panics over an event that nobody takes. The keeper takes all events, for as long as the shim lives.
//!
//! A `kill` of a command also kills what the command has started. All other calls go to the real `runsc` as they are.
//! These processes have all their facts from files in the bundle: they know neither Nomad nor containerd, and talk to
//! no plugin.
//!
//! Source of the facts: gVisor `pkg/shim/v1/{service.go,proc/init.go,runsccmd/runsc.go}`, `runsc/cli/main.go`,
//! `runsc/sandbox/sandbox.go`.

#![expect(
    clippy::disallowed_methods,
    reason = "runs as a process of its own, which starts runsc and opens what lies in a bundle"
)]

mod call;
mod exit_code;
mod keeper;
mod kill;
mod wait;

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use call::Call;
use kill::Target;

/// Name by which this binary is called in the place of `runsc`.
pub(crate) const WRAPPER: &str = "gvisor-runsc";
const KEEPER: &str = "gvisor-keeper";

/// Name of the socket in a bundle that takes the events of the shim.
pub(crate) const EVENTS: &str = "events.sock";
/// Name of the file in a bundle that names the real `runsc`.
pub(crate) const PROGRAM: &str = "runsc";
/// Maximum time of one wait for the exit of a process, which is repeated until the process has exited.
const WAIT_SLICE: Duration = Duration::from_secs(3600);

/// Runs as `runsc` or as the keeper, if this binary is called by the name of either. `None` if it is called as the
/// plugin.
pub(crate) fn run_if_called() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next()?;
    let name = Path::new(&name).file_name().and_then(OsStr::to_str)?;
    let run = match name {
        WRAPPER => replace_runsc,
        KEEPER => keeper::run,
        _ => return None,
    };
    let done =
        Call::of(arguments.collect()).and_then(|call| run(&call).inspect_err(|error| log(&call, error)));
    Some(done.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "containerd-driver, in the place of runsc: {error}");
        ExitCode::FAILURE
    }))
}

/// Writes why the real `runsc` did not run to the log from which the shim quotes.
fn log(call: &Call, error: &io::Error) {
    let msg = format!("run {}: {error}", call.program.display());
    let line = serde_json::json!({"level": "error", "msg": msg});
    let log = OpenOptions::new().create(true).append(true).open(call.bundle.join("log.json"));
    let _ = log.and_then(|mut log| writeln!(log, "{line}"));
}

fn replace_runsc(call: &Call) -> io::Result<ExitCode> {
    match call.action() {
        Some("create") => keeper::create(call),
        Some("wait") => wait::run(call),
        _ => match Target::of(call) {
            Some(command) => kill::run(call, &command),
            None => Err(Command::new(&call.program).args(&call.arguments).exec()),
        },
    }
}

/// Returns the exit code with which this binary passes on the exit of `runsc`: failure if a signal ended it.
fn code_of(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
