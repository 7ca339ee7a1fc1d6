//! Helpers that end-to-end cases share.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::agent::Client;
use harness::context::agent::{AgentContext, eventually};
use harness::fixture::http;
use harness::processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The jobs in `examples/networks`.
pub mod network_jobs {
    pub const WEB: &str = include_str!("../../../examples/networks/web.nomad.hcl");
    pub const HOST: &str = include_str!("../../../examples/networks/host.nomad.hcl");
    pub const DESCRIBED: &str = include_str!("../../../examples/networks/described.nomad.hcl");
    pub const OWN: &str = include_str!("../../../examples/networks/own.nomad.hcl");
    pub const MANY: &str = include_str!("../../../examples/networks/many.nomad.hcl");
    pub const HOSTNAME: &str = include_str!("../../../examples/networks/hostname.nomad.hcl");
    pub const ALONE: &str = include_str!("../../../examples/networks/alone.nomad.hcl");
}

/// Says a word and ends with 42 on SIGUSR1.
pub const SCRIPT: &str = "trap 'echo after; exit 42' USR1; echo before; touch /alloc/data/ready
while :; do sleep 1000 & wait; done";

/// The process is the same; exec, signal, log and the exit code work.
///
/// # Errors
/// Names what doesn't.
pub fn still_works(client: &Client, id: &str, pid: i32) -> Result<()> {
    // The agent recovers its tasks after it has reported that it is ready.
    client
        .eventually("exec in the recovered task", || Ok(client.exec(id, b"", &["true"])?.code == Some(0)))?;
    ensure!(client.pid(id)? == pid, "the task has another process");
    client.tell(&["alloc", "signal", "-s", "SIGUSR1", id, "main"])?;
    let task = client.dead(id, "main")?;
    ensure!(task.ended()?.exit_code == 42, "it ended as {:?}", task.ended()?);
    ensure!(task.restarts == 0 && task.count("Started") == 1, "it was started again");
    let log = client.log(id, "main", false)?;
    ensure!(log == b"before\nafter\n", "the log is {:?}", String::from_utf8_lossy(&log));
    Ok(())
}

pub fn kill_plugin(context: &AgentContext) -> Result<()> {
    let plugin = context.agent.plugin()?;
    kill(Pid::from_raw(plugin), Signal::SIGKILL)?;
    eventually("end of the plugin", || Ok(!processes::alive(plugin)))
}

/// Returns the job that `nomad job init` writes with these arguments.
///
/// # Errors
/// Carries the command's output.
pub fn nomads_example(context: &AgentContext, arguments: &[&str]) -> Result<String> {
    let file = context.environment.directory().join("example.nomad.hcl");
    let _ = fs::remove_file(&file);
    let path = file.display().to_string();
    context.agent.tell(&[&["job", "init"], arguments, &[&path]].concat())?;
    Ok(fs::read_to_string(&file)?)
}

/// From the agent's decision to stop to its word that the task is gone.
pub fn stopped_in(context: &AgentContext, id: &str) -> Result<Duration> {
    let task = context.dead(id, "main")?;
    Ok(task.event("Killed")?.at().duration_since(task.event("Killing")?.at())?)
}

/// Waits until a server's page has this text.
pub fn page_is(address: &str, page: &str) -> Result<()> {
    let mut seen = String::new();
    let fetched = eventually(&format!("page {page:?} from {address}"), || {
        seen = match http::request(address, "GET", "/", &[], b"") {
            Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
            Err(error) => format!("{error:#}"),
        };
        Ok(seen.trim_end() == page)
    });
    fetched.with_context(|| format!("it answers {seen:?}"))
}
