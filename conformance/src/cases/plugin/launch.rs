//! The process and its configuration: what an agent does with a plugin before any task.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::plugin::agent_config;
use harness::host::{Plugin, hcl};
use nix::sys::signal::Signal;
use nomad_proto::base as pb;
use nomad_proto::driver::fingerprint_response::HealthState;
use serde_json::json;
use tonic::Code;

use crate::case::skip;
use crate::cases::support::{cases, ensure_eq, refused};

cases!["launch":
    the_launches_that_only_probe_need_no_containerd_and_leave_nothing,
    without_the_agents_cookie_it_ends_with_a_message,
    an_interrupt_is_ignored,
    sigterm_ends_it_in_good_order,
    it_lives_on_when_the_agent_no_longer_reads_its_pipes,
    a_runtime_whose_shim_is_missing_is_named_by_its_file,
    the_documented_names_of_runtimes_are_known,
    a_configuration_that_is_no_msgpack_is_refused,
    an_option_that_can_not_be_is_refused_by_name,
    a_task_before_the_configuration_is_refused,
    an_agent_that_comes_back_finds_it_configured,
    schema_and_capabilities_are_as_documented,
    nothing_is_written_to_stdout_after_the_handshake,
];

async fn the_launches_that_only_probe_need_no_containerd_and_leave_nothing(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["containerd_socket"] = json!(case.directory().join("no.sock").display().to_string());

    let mut bare = case.bare_plugin(&case.launch()).await?;
    let info = bare.info().await?;
    ensure_eq!(info.r#type(), pb::PluginType::Driver);
    ensure_eq!(info.name, "containerd-driver");
    ensure!(info.plugin_api_versions.iter().any(|version| version == "v0.1.0"), "{info:?}");
    ensure!(info.plugin_version.split('.').count() == 3, "{:?} is no version", info.plugin_version);
    let msgpack = hcl::encode(&bare.config_schema().await?, &options)?;
    bare.shut_down().await?;

    for config in [msgpack, Vec::new()] {
        let mut tried = case.bare_plugin(&case.launch()).await?;
        tried.set_config(config.clone(), None).await?;
        tried.set_config(config, None).await?;
        tried.shut_down().await?;
    }
    ensure!(!case.state_dir().exists(), "a probing launch made {}", case.state_dir().display());
    Ok(())
}

async fn without_the_agents_cookie_it_ends_with_a_message(case: &CaseContext) -> Result<()> {
    for cookie in [None, Some("d4327c2e".to_owned())] {
        let mut launch = case.launch();
        launch.cookie = cookie;
        let mut process = launch.spawn()?;
        let status = process.end_within(Duration::from_secs(5)).await?;
        ensure_eq!(status.code(), Some(1));
        ensure_eq!(process.stdout.all(), Vec::<String>::new());
        let message = process.stderr.all().join(" ");
        ensure!(message.contains("plugin"), "it said {message:?}");
    }
    Ok(())
}

async fn an_interrupt_is_ignored(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    plugin.process().signal(Signal::SIGINT)?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    ensure!(plugin.process().runs()?, "it ended");
    plugin.info().await?;
    plugin.shut_down().await
}

async fn sigterm_ends_it_in_good_order(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    plugin.process().signal(Signal::SIGTERM)?;
    let status = plugin.process().end_within(Duration::from_secs(2)).await?;
    ensure!(status.success(), "it ended with {status}");
    ensure!(!plugin.socket().exists(), "it left its socket");
    Ok(())
}

async fn it_lives_on_when_the_agent_no_longer_reads_its_pipes(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    plugin.process().stderr.close();
    plugin.process().stdout.close();
    for _ in 0..3 {
        case.still_works(&plugin).await?;
    }
    plugin.shut_down().await
}

async fn a_runtime_whose_shim_is_missing_is_named_by_its_file(case: &CaseContext) -> Result<()> {
    let mut options = case.with_own_shims().options();
    options["containerd_runtime"] = json!("io.containerd.nope.v3");
    // What an unknown shim would make of another one is not known, and refused first.
    options["oci_runtime"] = json!("");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let mut fingerprints = plugin.fingerprints().await?;
    let first = fingerprints.message().await?.unwrap_or_default();
    ensure_eq!(first.health(), HealthState::Unhealthy);
    for word in ["containerd-shim-nope-v3", "io.containerd.nope.v3"] {
        ensure!(first.health_description.contains(word), "{word} is not in {:?}", first.health_description);
    }
    let task = case.prepare(&plugin, &case.shell("true")).await?;
    refused(plugin.start_task(task.config.clone()).await, &["containerd-shim-nope-v3"])?;
    plugin.shut_down().await
}

async fn the_documented_names_of_runtimes_are_known(case: &CaseContext) -> Result<()> {
    let shims = case.programs().shim().parent().context("a shim in no directory")?;
    for (runtime, file) in [
        ("io.containerd.runc.v1", "containerd-shim-runc-v1"),
        ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
    ] {
        if !shims.join(file).exists() {
            return skip(format!(
                "it is about the shims of containerd 1.x, and {file} is not in {}",
                shims.display()
            ));
        }
        let mut options = case.options();
        options["containerd_runtime"] = json!(runtime);
        let mut launch = case.launch();
        launch.look_first_in(shims.to_owned());
        let mut plugin = case.plugin_as(&launch, &options).await?;
        let first = plugin.fingerprints().await?.message().await?.unwrap_or_default();
        ensure!(first.health() == HealthState::Healthy, "{runtime}: {}", first.health_description);
        case.still_works(&plugin).await?;
        plugin.shut_down().await?;
    }
    Ok(())
}

async fn a_configuration_that_is_no_msgpack_is_refused(case: &CaseContext) -> Result<()> {
    let mut plugin = case.bare_plugin(&case.launch()).await?;
    let wrong_type = rmp_serde::to_vec(&json!({"containerd_runtime": 5}))?;
    let cut_short = rmp_serde::to_vec(&case.options())?[..20].to_vec();
    for garbage in [b"\xc1\xff garbage".to_vec(), vec![0x90], wrong_type, cut_short] {
        let status =
            refused(plugin.set_config(garbage, Some(agent_config())).await, &["plugin configuration"])?;
        ensure_eq!(status.code(), Code::InvalidArgument);
    }
    plugin.configure(&case.options()).await?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn an_option_that_can_not_be_is_refused_by_name(case: &CaseContext) -> Result<()> {
    let mut plugin = case.bare_plugin(&case.launch()).await?;
    let schema = plugin.config_schema().await?;
    for (option, value) in [
        ("stats_interval", "soon"),
        ("stats_interval", "-1s"),
        ("stats_interval", "0s"),
        ("containerd_runtime", ""),
        ("containerd_socket", "containerd.sock"),
        ("state_dir", "not/absolute"),
    ] {
        let mut options = case.options();
        options[option] = json!(value);
        let msgpack = hcl::encode(&schema, &options)?;
        let status = refused(plugin.set_config(msgpack, None).await, &[option])?;
        ensure_eq!(status.code(), Code::InvalidArgument);
    }
    plugin.shut_down().await
}

async fn a_task_before_the_configuration_is_refused(case: &CaseContext) -> Result<()> {
    let mut plugin = case.bare_plugin(&case.launch()).await?;
    let task = case.prepare(&plugin, &case.shell("true")).await?;
    refused(plugin.start_task(task.config.clone()).await, &["config"])?;
    plugin.shut_down().await
}

async fn an_agent_that_comes_back_finds_it_configured(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    plugin.redial().await?;
    plugin.info().await?;
    plugin.listen().await?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

async fn schema_and_capabilities_are_as_documented(_: &CaseContext, plugin: &Plugin) -> Result<()> {
    use nomad_proto::driver::driver_capabilities::{FsIsolation, MountConfigs};
    use nomad_proto::driver::network_isolation_spec::NetworkIsolationMode as Mode;
    let offers = plugin.capabilities().await?;
    ensure_eq!((offers.send_signals, offers.exec), (true, true));
    ensure_eq!(offers.fs_isolation(), FsIsolation::Image);
    ensure_eq!(offers.mount_configs(), MountConfigs::UnknownMounts);
    let mut modes: Vec<Mode> = offers.network_isolation_modes().collect();
    modes.sort();
    ensure_eq!(modes, [Mode::Host, Mode::Group, Mode::Task, Mode::None]);
    Ok(())
}

async fn nothing_is_written_to_stdout_after_the_handshake(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await?;
    ensure_eq!(plugin.process().stdout.all().len(), 1);
    Ok(())
}
