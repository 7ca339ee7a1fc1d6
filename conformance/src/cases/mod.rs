//! The cases of the suite: a directory per subject, a file per behaviour of the driver, a function per case, whose name
//! is the sentence. After each one the suite checks that nothing is left of it. No case uses another one's file: what
//! they share is in `support`.

mod exec;
mod images;
mod isolation;
mod lifecycle;
mod logs;
mod networks;
mod not_in_a_sandbox;
mod plugin;
mod recovery;
mod registries;
mod resources;
mod soak;
pub mod support;

use crate::case::Case;
pub use not_in_a_sandbox::not_in_a_sandbox;

/// Prefix of the names of cases that are only for gVisor's sandboxes.
pub const GVISOR: &str = "gvisor:";

pub fn all() -> Vec<Case> {
    // Cases that wait long come first, so that the others fill the time beside them.
    [
        soak::long_cases(),
        recovery::containerd_down::cases(),
        lifecycle::shim_failures::cases(),
        recovery::recover::cases(),
        recovery::while_plugin_down::cases(),
        lifecycle::exit_status::cases(),
        recovery::lost_bundles::cases(),
        recovery::orphans::cases(),
        resources::cgroup_moves::cases(),
        resources::own_cgroups::cases(),
        lifecycle::start_failures::cases(),
        lifecycle::start_limit::long_cases(),
        plugin::two_plugins::cases(),
        recovery::full_state_dir::cases(),
        recovery::hung_filesystems::cases(),
        networks::failures::cases(),
        exec::many::long_cases(),
        resources::stats::cases(),
        resources::stats_counts::cases(),
        plugin::leak_check::cases(),
        plugin::launch::cases(),
        plugin::coexistence::cases(),
        plugin::docker::cases(),
        recovery::interrupted_calls::cases(),
        plugin::fingerprint::cases(),
        images::image_gc::cases(),
        images::forms::cases(),
        images::pulls::cases(),
        images::load::cases(),
        images::pull_policy::cases(),
        images::odd_documents::cases(),
        images::image_volumes::cases(),
        images::hostile_images::cases(),
        images::hostile_layers::cases(),
        lifecycle::run::cases(),
        resources::memory_and_cpu::cases(),
        resources::limits::cases(),
        isolation::devices::cases(),
        isolation::security::cases(),
        lifecycle::unmounts::cases(),
        resources::growth::cases(),
        in_sandboxes(),
        isolation::capabilities::cases(),
        networks::cni::cases(),
        under_dockers_name(),
        isolation::seccomp::cases(),
        isolation::privileged::cases(),
        lifecycle::labels::cases(),
        isolation::sandbox::cases(),
        logs::pipes::cases(),
        logs::receivers::cases(),
        logs::driver_logs::long_cases(),
        logs::driver_log_failures::cases(),
        of_runtimes(),
        images::snapshotters::long_cases(),
        images::remote_snapshotters::cases(),
        of_registries(),
        isolation::allowed_modes::cases(),
        isolation::mounts::cases(),
        isolation::volume_policy::cases(),
        networks::names::cases(),
        networks::own::cases(),
        networks::shared::cases(),
        networks::bridges::cases(),
        lifecycle::process::cases(),
        isolation::propagation::cases(),
        lifecycle::wait::cases(),
        lifecycle::stop::cases(),
        lifecycle::timelines::cases(),
        of_execs(),
        plugin::bad_input::cases(),
        plugin::docker_words::cases(),
        lifecycle::events::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns the cases of commands in a task.
fn of_execs() -> Vec<Case> {
    let all = [exec::streams::cases(), exec::terminal::cases(), exec::ends::cases(), exec::scripts::cases()];
    all.into_iter().flatten().collect()
}

/// Returns the cases of shims and of the runtime that a task gets.
fn of_runtimes() -> Vec<Case> {
    let all = [
        lifecycle::runtimes::cases(),
        lifecycle::spares::cases(),
        lifecycle::shared_shims::cases(),
        lifecycle::auto_runtime::cases(),
    ];
    all.into_iter().flatten().collect()
}

/// Returns the cases of registries.
fn of_registries() -> Vec<Case> {
    let all = [
        registries::credentials::cases(),
        registries::hosts::cases(),
        registries::proxy::cases(),
        registries::tls::cases(),
        registries::tokens::cases(),
    ];
    all.into_iter().flatten().collect()
}

/// Returns the cases of what the driver does otherwise under the name `docker`.
fn under_dockers_name() -> Vec<Case> {
    networks::docker::cases().into_iter().chain(isolation::docker::cases()).collect()
}

/// Returns the cases that are only for gVisor's sandboxes.
fn in_sandboxes() -> Vec<Case> {
    let all = [
        lifecycle::gvisor::cases(),
        recovery::gvisor::cases(),
        isolation::gvisor::cases(),
        resources::gvisor::cases(),
        exec::gvisor::cases(),
    ];
    all.into_iter().flatten().collect()
}
