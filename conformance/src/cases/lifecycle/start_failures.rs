//! Starts that fail at the image, at the files, or because the agent cancels them: each error names the cause, and
//! nothing is left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::fixture::Form;
use harness::host::Plugin;
use harness::task::LIMIT;

use crate::case::skip;
use crate::cases::support::scripted::{Scripted, refusal, runc};
use crate::cases::support::{cases, is_recoverable, refused};

cases!["failed start":
    an_image_that_does_not_exist_is_not_worth_another_try,
    a_registry_that_is_down_is_worth_another_try,
    a_layer_that_can_not_be_read_is_named_by_its_digest,
    a_layer_that_is_not_what_the_image_says_is_refused,
    a_layer_that_the_registry_has_lost_is_named_by_its_digest,
    a_command_that_the_image_lacks_is_refused_by_name,
    a_command_that_can_not_run_is_refused_by_name,
    a_long_command_is_shortened_in_the_error,
    an_impossible_state_directory_is_named_by_its_path,
    a_shim_that_is_killed_before_the_create_is_worth_another_try,
    a_runtime_that_is_killed_is_worth_another_try,
    a_snapshot_that_is_removed_meanwhile_is_worth_another_try,
    a_shim_that_does_not_start_in_time_is_worth_another_try,
    a_shim_that_does_not_answer_is_worth_another_try,
    a_start_that_is_called_off_while_it_fetches_leaves_nothing,
    a_start_that_is_called_off_at_any_moment_leaves_nothing,
];

/// Asserts that a start fails with words that name the thing, leaves nothing, and harms no later start. Returns whether
/// Nomad would try it again.
async fn fails(
    case: &CaseContext,
    plugin: &Plugin,
    config: &serde_json::Value,
    words: &[&str],
) -> Result<bool> {
    let task = case.prepare(plugin, config).await?;
    let mut named = vec![task.id()];
    named.extend(words);
    let status = refused(plugin.start_task(task.config.clone()).await, &named)?;
    case.nothing_left()?;
    // Nomad sends no destroy after a start that failed; if one comes, it finds nothing.
    task.end(plugin).await?;
    case.still_works(plugin).await?;
    is_recoverable(&status).or(Ok(false))
}

/// The runtime's error is as long as the command's name. The message of a gRPC status is a header, which is limited in
/// size.
async fn a_long_command_is_shortened_in_the_error(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut config = case.shell("");
    config["command"] = serde_json::json!(format!("/bin/{}", "x".repeat(4080)));
    let task = case.prepare(plugin, &config).await?;
    let status = refused(plugin.start_task(task.config.clone()).await, &[task.id(), "/bin/xxx"])?;
    let message = status.message();
    // Some runtimes cut it off themselves.
    ensure!(message.len() < 1024 || message.contains("bytes left out"), "nothing is left out of {message}");
    ensure!(message.len() < 8192, "{} bytes", message.len());
    for line in plugin.log().all() {
        ensure!(line.len() < 64 * 1024, "a line of {} bytes", line.len());
    }
    case.nothing_left()?;
    // The runtime's error would not fit into the pipe to its shim, which does not read before the runtime has ended.
    config["command"] = serde_json::json!(format!("/bin/{}", "x".repeat(100_000)));
    let mut parameter = case.shell("true");
    parameter["sysctl"] = serde_json::json!({format!("net.{}", "x".repeat(100_000)): "1"});
    let mut memory = case.shell("true");
    memory["tmpfs"] = serde_json::json!([format!("/x:size=1{}", ",uid=1".repeat(10_000))]);
    for (config, word) in [(config, "command"), (parameter, "sysctl"), (memory, "options")] {
        let task = case.prepare(plugin, &config).await?;
        let start = tokio::time::timeout(LIMIT, plugin.start_task(task.config.clone())).await;
        let start = start.with_context(|| format!("{word}: it keeps a place of those that start"))?;
        refused(start, &[task.id(), "4095", word])?;
        case.nothing_left()?;
    }
    case.still_works(plugin).await
}

async fn an_image_that_does_not_exist_is_not_worth_another_try(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for name in [
        "busybox:nope",
        "no/such/image",
        "busybox@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ] {
        let image = case.image(name);
        let again = fails(case, plugin, &config! { image = image }, &[&image]).await?;
        ensure!(!again, "Nomad would try {image} again");
    }
    Ok(())
}

async fn a_registry_that_is_down_is_worth_another_try(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    case.still_works(plugin).await?;
    case.environment().registry().stop();
    let image = case.image("styled:elsewhere");
    let again = fails(case, plugin, &config! { image = image }, &[&image]).await?;
    ensure!(again, "Nomad would not try again");
    Ok(())
}

async fn a_layer_that_can_not_be_read_is_named_by_its_digest(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let image = case.image("broken:unreadable");
    fails(case, plugin, &config! { image = image }, &[&image, "sha256:"]).await?;
    Ok(())
}

async fn a_layer_that_is_not_what_the_image_says_is_refused(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let image = case.image("broken:lying");
    fails(case, plugin, &config! { image = image }, &[&image, "sha256:"]).await?;
    Ok(())
}

async fn a_layer_that_the_registry_has_lost_is_named_by_its_digest(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let image = case.image("broken:incomplete");
    fails(case, plugin, &config! { image = image }, &[&image, "sha256:"]).await?;
    Ok(())
}

async fn a_command_that_the_image_lacks_is_refused_by_name(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    for command in ["no-such-command", "/bin/no-such-file"] {
        let config = config! { image = case.image("busybox:latest"), command = command };
        let again = fails(case, plugin, &config, &[command]).await?;
        ensure!(!again, "Nomad would try it again");
    }
    Ok(())
}

async fn a_command_that_can_not_run_is_refused_by_name(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let config = config! { image = case.image("busybox:latest"), command = "/bin/not-a-program" };
    fails(case, plugin, &config, &["/bin/not-a-program"]).await?;
    Ok(())
}

async fn an_impossible_state_directory_is_named_by_its_path(case: &CaseContext) -> Result<()> {
    std::fs::create_dir_all(case.directory())?;
    std::fs::write(case.state_dir(), "a file is in the way")?;
    let mut plugin = case.plugin().await?;
    let task = case.prepare(&plugin, &case.shell("true")).await?;
    let path = case.state_dir().display().to_string();
    refused(plugin.start_task(task.config.clone()).await, &[task.id(), &path])?;
    case.nothing_left()?;
    std::fs::remove_file(case.state_dir())?;
    case.still_works(&plugin).await?;
    plugin.shut_down().await
}

/// Asserts that a start with this scripted runtime or shim fails in a way that Nomad tries again.
async fn is_worth_another_try(
    case: &CaseContext,
    script: impl FnOnce(&Scripted) -> Result<()>,
) -> Result<()> {
    let scripted = Scripted::new(case)?;
    script(&scripted)?;
    let status = refusal(case, &scripted, &[], Duration::from_secs(15)).await?;
    ensure!(is_recoverable(&status)?, "Nomad would not try it again: {status}");
    Ok(())
}

async fn a_shim_that_is_killed_before_the_create_is_worth_another_try(case: &CaseContext) -> Result<()> {
    // The runtime kills the shim, which is its parent. The shim is no child of the plugin.
    is_worth_another_try(case, |scripted| scripted.runtime(&runc("create", "kill -9 $PPID; exit 1"))).await
}

async fn a_runtime_that_is_killed_is_worth_another_try(case: &CaseContext) -> Result<()> {
    if case.programs().is_rust_shim() {
        return skip("the shim in Rust doesn't say how its runtime ended");
    }
    is_worth_another_try(case, |scripted| scripted.runtime(&runc("create", "kill -9 $$"))).await
}

async fn a_snapshot_that_is_removed_meanwhile_is_worth_another_try(case: &CaseContext) -> Result<()> {
    let containerd = case.environment().containerd();
    let remove = format!(
        "{} --address {} --namespace nomad snapshots remove \"$word\"; complain 'no such file or directory: $word'",
        case.programs().ctr().display(),
        containerd.socket().display()
    );
    // The id is the last word.
    let remove = format!("for word in \"$@\"; do :; done; {remove}");
    is_worth_another_try(case, |scripted| scripted.runtime(&runc("create", &remove))).await
}

async fn a_shim_that_does_not_start_in_time_is_worth_another_try(case: &CaseContext) -> Result<()> {
    let hangs = "case \"$*\" in *start) exec sleep 600;; esac";
    is_worth_another_try(case, |scripted| scripted.shim(hangs)).await
}

async fn a_shim_that_does_not_answer_is_worth_another_try(case: &CaseContext) -> Result<()> {
    is_worth_another_try(case, |scripted| {
        scripted.runtime(&runc("create", "kill -STOP $PPID; exec sleep 600"))
    })
    .await
}

async fn a_start_that_is_called_off_while_it_fetches_leaves_nothing(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let registry = case.environment().registry();
    case.environment().catalog().large(8)?.push(registry, "called-off", "v1", Form::Oci)?;
    let config = config! { image = case.image("called-off:v1") };
    registry.pause()?;
    let task = case.prepare(plugin, &config).await?;
    let cut = tokio::time::timeout(Duration::from_millis(500), plugin.start_task(task.config.clone())).await;
    ensure!(cut.is_err(), "it did not wait for the registry: {cut:?}");
    registry.resume()?;
    case.nothing_left_within(Duration::from_secs(10))?;
    // The same image, pulled again, is whole.
    let task = case.run(plugin, &config).await?;
    task.wait(plugin).await?;
    task.destroy(plugin).await
}

async fn a_start_that_is_called_off_at_any_moment_leaves_nothing(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    case.still_works(plugin).await?;
    let mut had_started = 0;
    for delay_ms in [1, 10, 20, 30, 45, 60, 75, 90] {
        let task = case.prepare(plugin, &case.shell("sleep 600")).await?;
        let cut =
            tokio::time::timeout(Duration::from_millis(delay_ms), plugin.start_task(task.config.clone()))
                .await;
        if cut.is_ok() {
            task.end(plugin).await?;
            case.nothing_left()?;
        } else {
            had_started += u32::from(case.nothing_left_of_cut_off(&task, plugin).await?);
        }
    }
    ensure!(had_started <= 1, "{had_started} tasks run that nobody waits for");
    case.still_works(plugin).await
}
