//! The order of start and stop of the plugin process, and its exit codes.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests open what they have made"))]

mod cache;
mod cgroup;
mod cni;
mod config;
mod containerd;
mod devices;
mod driver;
mod etc_files;
#[cfg(test)]
mod fuzz;
mod go_plugin;
mod gvisor;
mod hclog;
mod image;
mod init_program;
mod logs;
mod registry;
mod secret;
mod security;
mod shim;
mod shorten;
mod spec;
mod sys;
mod task;

use std::io::Write;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::config::DriverName;
use crate::driver::Driver;
use crate::go_plugin::{HandshakeError, Services, Socket};
use crate::hclog::Log;
use crate::sys::error_chain::Chained;
use crate::sys::{malloc, open_files};

/// Maximum size of a gRPC message: Nomad sends whole job environments and exec output in single messages.
const MESSAGE_LIMIT_BYTES: usize = 64 * 1024 * 1024;
/// Flow-control window of a connection, the maximum of HTTP/2. All calls share it, so an exec's input that nobody reads
/// would use up a smaller one and stop them all. A single call is limited by the window of its own stream.
const CONNECTION_WINDOW_BYTES: u32 = i32::MAX.cast_unsigned();
const MOST_WORKERS: usize = 4;
/// Time for which an idle blocking thread is kept. Periodic work uses each of them in turn, so a time longer than its
/// intervals would keep as many as were ever needed at once.
const IDLE: Duration = Duration::from_secs(2);
/// Maximum number of blocking threads. A file system of the host that does not answer blocks one for each start that
/// needs it.
const MOST_BLOCKING: usize = 128;
/// Time for open calls to end at a shutdown. Streams that the host holds open never end by themselves.
const DRAIN: Duration = Duration::from_millis(500);
/// Time for all that is ended at a shutdown, such as spare shims: the host kills the plugin two seconds after the request.
const SHUTDOWN: Duration = Duration::from_millis(1500);

fn main() -> ExitCode {
    if let Some(ended) = gvisor::run_if_called() {
        return ended;
    }
    if std::env::args().nth(1).is_some_and(|argument| argument == "--version") {
        return say(&format!("containerd-driver {}\n", env!("CARGO_PKG_VERSION")));
    }
    if let Err(error) = go_plugin::check_cookie() {
        return fail(&error);
    }
    let name = DriverName::of_program(&std::env::args_os().next().unwrap_or_default());
    malloc::configure();
    let _log = Log::start(name);
    open_files::raise();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let outcome = runtime.block_on(serve(name));
    // Blocking work that has not ended (a drain of a task's log) must not delay the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Creates the async runtime. The plugin waits far more than it computes, so on a large machine a thread per core would
/// only use memory. Blocking work has threads of its own, at most a few for each task under way.
fn runtime() -> std::io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, MOST_WORKERS))
        .max_blocking_threads(MOST_BLOCKING)
        .thread_keep_alive(IDLE)
        .enable_all()
        .build()
}

async fn serve(name: DriverName) -> Result<(), HandshakeError> {
    let (socket, listener) = Socket::bind()?;
    let stop = Arc::new(Notify::new());
    let ended = CancellationToken::new();
    let serving = tokio::spawn(run_server(name, listener, Arc::clone(&stop), ended.clone()));
    let interrupts = ignore_interrupts();
    socket.announce()?;
    tokio::select! {
        () = stop.notified() => {}
        () = terminated() => {}
    }
    ended.cancel();
    if tokio::time::timeout(SHUTDOWN, serving).await.is_err() {
        tracing::debug!("not all was ended in time; the next plugin does it");
    }
    drop(interrupts);
    Ok(())
}

async fn run_server(name: DriverName, listener: UnixListener, stop: Arc<Notify>, ended: CancellationToken) {
    let services = Services::new(Arc::clone(&stop));
    let driver = Driver::new(name, stop);
    let agent = driver.agent();
    let heard = tower::util::MapRequestLayer::new(
        move |request: tonic::codegen::http::Request<tonic::body::Body>| {
            agent.has_called();
            request
        },
    );
    let served = tonic::transport::Server::builder()
        .layer(heard)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(services.health().await)
        .add_service(services.broker())
        .add_service(services.stdio())
        .add_service(services.controller())
        .add_service(driver.base_service().max_decoding_message_size(MESSAGE_LIMIT_BYTES))
        .add_service(
            driver
                .driver_service()
                .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
                .max_encoding_message_size(MESSAGE_LIMIT_BYTES),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), ended.clone().cancelled_owned());
    let shut_down = async {
        ended.cancelled().await;
        driver.shut_down().await;
    };
    let drained = async {
        ended.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let served = async {
        tokio::select! {
            served = served => if let Err(error) = served {
                tracing::error!(%error, "the plugin's server failed");
            },
            () = drained => tracing::debug!("the agent still holds streams open; exiting anyway"),
        }
    };
    tokio::join!(served, shut_down);
}

/// Ignores SIGINT: Ctrl-C at the agent's terminal reaches the whole process group, but the agent decides when the
/// plugin ends.
fn ignore_interrupts() -> Option<tokio::signal::unix::Signal> {
    signal(SignalKind::interrupt()).ok()
}

async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

fn say(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    // Plain text: the agent shows it at DEBUG, and a person who ran the binary by hand can read it.
    let _ = writeln!(std::io::stderr().lock(), "containerd-driver: {}", error.chain());
    ExitCode::FAILURE
}
