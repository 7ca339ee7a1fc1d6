//! The cases of the suite: a file per behaviour of the driver, a function per case, whose name is the sentence. After
//! each one the suite checks that nothing is left of it.

mod account;
mod bad_input;
mod bridges;
mod capabilities;
mod cni;
mod coexistence;
mod collected;
mod collected_trouble;
mod containerd_down;
mod credentials;
mod denied;
mod devices;
mod ends;
mod events;
mod exec;
mod exec_ends;
mod exec_many;
mod exec_terminal;
mod fingerprint;
mod full_state_dir;
mod gaps;
mod growth;
mod gvisor;
mod holdings;
mod hostile_images;
mod hostile_layers;
mod hung_filesystems;
mod image_gc;
mod images;
mod in_flight;
mod labels;
mod launch;
mod limits;
mod load;
mod logs;
mod lost_bundles;
mod modes;
mod mounts;
mod names;
mod network_failures;
mod networks;
mod obedient;
mod orphans;
mod own_cgroups;
mod paths;
mod privileged;
mod process;
mod propagation;
mod pull_policy;
mod pulls;
mod recover;
mod registries;
mod registries_proxy;
mod registries_tls;
mod remote_snapshotters;
mod resources;
mod run;
mod runtimes;
mod script_check;
mod seccomp;
mod security;
mod shared_networks;
mod shim_failures;
mod snapshotters;
mod soak;
mod start_failures;
mod starts;
mod stats;
mod stats_counts;
mod stop;
mod timelines;
mod tokens;
mod two_plugins;
mod unmounts;
mod wait;
mod web_server;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::context::Scene;
use prost::Message;
use tonic::{Code, Status};

use crate::case::{Case, skip};

/// Makes cases of a file's functions, each named by its function: `cases!["run": a_task_ends, ..]`.
macro_rules! cases {
    ($behaviour:literal: $($function:ident),* $(,)?) => {
        pub(super) fn cases() -> Vec<$crate::case::Case> {
            vec![$($crate::case::Case {
                name: format!("{}: {}", $behaviour, stringify!($function).replace('_', " ")),
                body: Box::new(|scene| Box::pin(async move { $function(&scene).await })),
                limit: $crate::case::CASE_LIMIT,
            }),*]
        }
    };
}
pub(crate) use cases;

/// Fails unless both sides are equal, with both in the message. An `ensure!` in the form of `assert_eq!`.
macro_rules! same {
    ($got:expr, $wanted:expr) => {
        match (&$got, &$wanted) {
            (got, wanted) => {
                anyhow::ensure!(*got == *wanted, "{} is {got:?}, not {wanted:?}", stringify!($got))
            }
        }
    };
}
pub(crate) use same;

/// Returns why the case of this name can't run in gVisor's sandbox, if it can't.
pub fn not_in_a_sandbox(name: &str) -> Option<&'static str> {
    gvisor::NOT_IN_A_SANDBOX.iter().find(|(begins, _)| name.starts_with(begins)).map(|(_, why)| *why)
}

/// Prefix of the names of cases that are only for gVisor's sandboxes.
pub const GVISOR: &str = "gvisor:";

pub fn all() -> Vec<Case> {
    // Cases that wait long come first, so that the others fill the time beside them.
    [
        soak::long_cases(),
        containerd_down::cases(),
        shim_failures::cases(),
        recover::cases(),
        gaps::cases(),
        ends::cases(),
        lost_bundles::cases(),
        orphans::cases(),
        own_cgroups::cases(),
        start_failures::cases(),
        starts::long_cases(),
        two_plugins::cases(),
        full_state_dir::cases(),
        hung_filesystems::cases(),
        network_failures::cases(),
        exec_many::long_cases(),
        stats::cases(),
        stats_counts::cases(),
        account::cases(),
        launch::cases(),
        coexistence::cases(),
        in_flight::cases(),
        fingerprint::cases(),
        image_gc::cases(),
        images::cases(),
        pulls::cases(),
        load::cases(),
        pull_policy::cases(),
        hostile_images::cases(),
        hostile_layers::cases(),
        run::cases(),
        resources::cases(),
        limits::cases(),
        devices::cases(),
        security::cases(),
        unmounts::cases(),
        growth::cases(),
        gvisor::cases(),
        capabilities::cases(),
        cni::cases(),
        seccomp::cases(),
        privileged::cases(),
        labels::cases(),
        denied::cases(),
        logs::cases(),
        collected::cases(),
        collected_trouble::cases(),
        runtimes::cases(),
        snapshotters::long_cases(),
        remote_snapshotters::cases(),
        credentials::cases(),
        registries::cases(),
        registries_proxy::cases(),
        registries_tls::cases(),
        tokens::cases(),
        modes::cases(),
        mounts::cases(),
        paths::cases(),
        names::cases(),
        networks::cases(),
        shared_networks::cases(),
        bridges::cases(),
        process::cases(),
        propagation::cases(),
        wait::cases(),
        stop::cases(),
        timelines::cases(),
        exec::cases(),
        exec_terminal::cases(),
        exec_ends::cases(),
        script_check::cases(),
        bad_input::cases(),
        events::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Asserts that a call was refused in words that name the thing, and in a form that doesn't make the agent take the
/// plugin for dead. Returns the refusal.
fn refused<T>(answer: Result<T, Status>, words: &[&str]) -> Result<Status> {
    let Err(status) = answer else { bail!("it was not refused") };
    let deadly = matches!(status.code(), Code::Unavailable | Code::Cancelled);
    ensure!(!deadly, "{:?} means the plugin's death to the agent: {}", status.code(), status.message());
    for word in words {
        ensure!(status.message().contains(word), "{word:?} is not named in: {}", status.message());
    }
    Ok(status)
}

/// Returns whether Nomad would try the start again: the first detail of a FAILED_PRECONDITION says so.
fn is_recoverable(status: &Status) -> Result<bool> {
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
fn terminals_are_read_to_their_end(scene: &Scene) -> Result<()> {
    if scene.programs().is_rust_shim() {
        return skip("the shim in Rust can lose the output of a command on a terminal that ends at once");
    }
    Ok(())
}

/// Skips a case for what youki does otherwise than runc and crun (docs/compatibility.md).
fn not_by_youki(scene: &Scene, what: &str) -> Result<()> {
    if scene.programs().is_youki() {
        return skip(format!("youki {what}"));
    }
    Ok(())
}

/// Reasons for [`not_by_youki`].
const NO_FILTER_FOR_EXECS: &str = "gives its seccomp filter to the first process alone";
const NO_SIGPIPE: &str = "has SIGPIPE ignored in what it runs";
const NO_DIRECTORY: &str = "makes no working directory that the image lacks";
const NO_REAL_TIME: &str = "sends no real-time signals";

/// Returns whether processes that a command left behind can be told from the task's own: runc gives each command a
/// session of its own, crun only those with a terminal.
fn orphans_are_known(scene: &Scene, tty: bool) -> bool {
    tty || !scene.programs().is_crun()
}

/// Waits until a condition holds, for at most `limit`.
async fn until(limit: Duration, what: &str, done: impl Fn() -> bool) -> Result<()> {
    let deadline = std::time::Instant::now() + limit;
    while !done() {
        ensure!(std::time::Instant::now() < deadline, "{what} not in {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
