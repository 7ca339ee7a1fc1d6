//! The stub's command line as a shim: `start` leaves a server behind and prints its address, `delete` removes what is
//! left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use containerd_shim_protos::{TASK_API_VERSION, api};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;

use super::delays::Answers;
use super::service::Stub;

/// File names of the server's socket and pid, in the bundle.
const SOCKET: &str = "stub.sock";
const PID: &str = "stub.pid";
/// Timeout for the server to listen.
const SOON: Duration = Duration::from_secs(10);
/// Pause before the server exits, so that its last answer is sent.
const FAREWELL: Duration = Duration::from_millis(20);

/// # Errors
/// Names the argument that is missing, or what can't be served.
pub(crate) fn run(words: &[String], answers: Answers) -> Result<()> {
    let bundle = std::env::current_dir()?;
    match words.last().map(String::as_str) {
        Some("start") => start(&bundle, words),
        Some("serve") => serve(&bundle, answers),
        Some("delete") => delete(&bundle),
        _ => bail!("a shim is told start or delete"),
    }
}

fn start(bundle: &Path, words: &[String]) -> Result<()> {
    let socket = bundle.join(SOCKET);
    let mut server = Command::new(std::env::current_exe()?);
    server.args(["bench", "stub-shim"]).args(&words[..words.len() - 1]).arg("serve").current_dir(bundle);
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut server = server.spawn().context("start the server")?;
    fs::write(bundle.join(PID), server.id().to_string())?;
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        if let Some(status) = server.try_wait()? {
            bail!("the server ends with {status}");
        }
        ensure!(begun.elapsed() < SOON, "the server doesn't listen at {}", socket.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    let address = format!("unix://{}", socket.display());
    println!("{}", serde_json::json!({"version": TASK_API_VERSION, "address": address, "protocol": "ttrpc"}));
    Ok(())
}

fn serve(bundle: &Path, answers: Answers) -> Result<()> {
    let stub = Stub::new(answers);
    let over = Arc::clone(&stub.over);
    let address = format!("unix://{}", bundle.join(SOCKET).display());
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut server = Server::new().bind(&address)?.register_service(create_task(Arc::new(stub)));
        server.start().await?;
        over.notified().await;
        tokio::time::sleep(FAREWELL).await;
        anyhow::Ok(())
    })
}

/// Kills the server and the processes that it has started, each with its process group.
fn delete(bundle: &Path) -> Result<()> {
    let file: PathBuf = bundle.join(PID);
    if let Some(pid) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            let _ = nix::sys::signal::killpg(Pid::from_raw(child), Signal::SIGKILL);
        }
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = fs::remove_file(&file);
    let answer = api::DeleteResponse { exit_status: 137, ..api::DeleteResponse::default() };
    std::io::Write::write_all(&mut std::io::stdout(), &answer.write_to_bytes()?)?;
    Ok(())
}
