//! Helpers that cases share. Helpers of one file stand in that file.

pub mod call_recorder;
pub mod cni_plugins;
pub mod commands;
pub mod copied_shim;
pub mod descriptors;
pub mod driver_logs;
pub mod fingerprint;
pub mod group_network;
pub mod gvisor;
pub mod host_mounts;
pub mod log_receivers;
pub mod orphans;
pub mod output;
pub mod plugin_end;
pub mod processes;
pub mod registry_hosts;
pub mod resource_usage;
pub mod sampling;
pub mod scripted;
pub mod secrets;
pub mod slow_network;
pub mod spares;
pub mod stoppable_task;
pub mod timelines;
pub mod web_server;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::context::CaseContext;
use prost::Message;
use tonic::{Code, Status};

use crate::case::skip;

/// Makes cases of a file's functions, each named by its function: `cases!["run": a_task_ends, ..]`.
macro_rules! cases {
    ($behaviour:literal: $($function:ident),* $(,)?) => {
        /// Returns the cases of this file, in the order in which they run.
        pub fn cases() -> Vec<$crate::case::Case> {
            vec![$($crate::case::Case {
                name: format!("{}: {}", $behaviour, stringify!($function).replace('_', " ")),
                body: $crate::case::body($function),
                limit: $crate::case::CASE_LIMIT,
            }),*]
        }
    };
}
pub(crate) use cases;

/// Fails unless both sides are equal, with both in the message. An `ensure!` in the form of `assert_eq!`.
macro_rules! ensure_eq {
    ($got:expr, $wanted:expr) => {
        match (&$got, &$wanted) {
            (got, wanted) => {
                anyhow::ensure!(*got == *wanted, "{} is {got:?}, not {wanted:?}", stringify!($got))
            }
        }
    };
}
pub(crate) use ensure_eq;

/// Asserts that a call was refused in words that name the thing, and in a form that doesn't make the agent take the
/// plugin for dead. Returns the refusal.
pub fn refused<T>(answer: Result<T, Status>, words: &[&str]) -> Result<Status> {
    let Err(status) = answer else { bail!("it was not refused") };
    let deadly = matches!(status.code(), Code::Unavailable | Code::Cancelled);
    ensure!(!deadly, "{:?} means the plugin's death to the agent: {}", status.code(), status.message());
    for word in words {
        ensure!(status.message().contains(word), "{word:?} is not named in: {}", status.message());
    }
    Ok(status)
}

/// Returns whether Nomad would try the start again: the first detail of a FAILED_PRECONDITION says so.
pub fn is_recoverable(status: &Status) -> Result<bool> {
    #[derive(Clone, PartialEq, Message)]
    struct Details {
        #[prost(int32, tag = "1")]
        code: i32,
        #[prost(string, tag = "2")]
        message: String,
        #[prost(message, repeated, tag = "3")]
        details: Vec<prost_types::Any>,
    }
    let details =
        Details::decode(status.details()).context("the status' details are no google.rpc.Status")?;
    let Some(first) = details.details.first() else { return Ok(false) };
    ensure!(
        first.type_url.ends_with("/hashicorp.nomad.plugins.shared.structs.RecoverableError"),
        "the first detail is a {}",
        first.type_url
    );
    let recoverable = nomad_proto::structs::RecoverableError::decode(&*first.value)?.recoverable;
    Ok(recoverable && status.code() == Code::FailedPrecondition)
}

/// Skips a case that relies on all output of many short commands with terminals.
pub fn terminals_are_read_to_their_end(case: &CaseContext) -> Result<()> {
    if case.programs().is_rust_shim() {
        return skip("the shim in Rust can lose the output of a command on a terminal that ends at once");
    }
    Ok(())
}

/// Skips a case for what youki does otherwise than runc and crun (docs/compatibility.md).
pub fn not_by_youki(case: &CaseContext, what: &str) -> Result<()> {
    if case.programs().is_youki() {
        return skip(format!("youki {what}"));
    }
    Ok(())
}

/// A reason for [`not_by_youki`]: the seccomp filter of execs.
pub const NO_FILTER_FOR_EXECS: &str = "gives its seccomp filter to the first process alone";
/// A reason for [`not_by_youki`]: the disposition of SIGPIPE.
pub const NO_SIGPIPE: &str = "has SIGPIPE ignored in what it runs";
/// A reason for [`not_by_youki`]: missing working directories.
pub const NO_DIRECTORY: &str = "makes no working directory that the image lacks";
/// A reason for [`not_by_youki`]: real-time signals.
pub const NO_REAL_TIME: &str = "sends no real-time signals";

/// Returns whether processes that a command left behind can be told from the task's own: runc gives each command a
/// session of its own, crun only those with a terminal.
pub fn orphans_are_known(case: &CaseContext, tty: bool) -> bool {
    tty || !case.programs().is_crun()
}

/// Waits until a condition holds, for at most `limit`.
pub async fn until(limit: Duration, what: &str, done: impl Fn() -> bool) -> Result<()> {
    let deadline = std::time::Instant::now() + limit;
    while !done() {
        ensure!(std::time::Instant::now() < deadline, "{what} not in {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
