//! Two plugins and one state directory: one of them holds the lock, and the other one touches nothing in there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::task::LIMIT;
use nomad_proto::driver::fingerprint_response::HealthState;
use serde_json::json;

use crate::cases::support::fingerprint::{is_detected, next};
use crate::cases::support::orphans::options;
use crate::cases::support::stoppable_task::{end_and_destroy, start_stoppable};
use crate::cases::support::{cases, ensure_eq, is_recoverable, refused, until};

cases!["two plugins":
    the_second_one_on_a_state_directory_touches_nothing_until_the_first_has_ended,
    a_plugin_whose_agent_is_gone_makes_way_and_its_tasks_are_recovered,
    a_plugin_whose_agent_is_gone_stays_where_nobody_waits,
    plugins_with_state_directories_of_their_own_do_not_meet,
    a_first_one_that_was_killed_leaves_the_directory_free,
    a_lock_that_is_removed_lets_nobody_else_in,
    a_state_directory_that_is_removed_is_the_first_ones_again,
    a_directory_that_another_one_took_after_its_removal_is_left_to_it,
];

/// Longer than a plugin without an agent stays when another one waits.
const LONG: Duration = Duration::from_secs(15);

async fn the_second_one_on_a_state_directory_touches_nothing_until_the_first_has_ended(
    case: &CaseContext,
) -> Result<()> {
    let mut first = case.plugin().await?;
    let task = start_stoppable(case, &first).await?;
    // The second plugin's grace for orphans is short.
    let mut second = case.plugin_as(&case.launch(), &options(case, &json!({}))).await?;
    let mut fingerprints = second.fingerprints().await?;
    let found = next(&mut fingerprints, HealthState::Unhealthy).await?;
    ensure!(is_detected(&found), "{found:?}");
    let (pid, directory) = (format!("pid {}", first.pid()), case.state_dir().display().to_string());
    for word in [&*pid, &directory, "started 2", "state_dir"] {
        ensure!(found.health_description.contains(word), "{word:?} is not in {:?}", found.health_description);
    }
    let fresh = case.prepare(&second, &case.shell("true")).await?;
    let refusal = refused(second.start_task(fresh.config.clone()).await, &[fresh.id(), &pid, &directory])?;
    ensure!(is_recoverable(&refusal)?, "Nomad would not try it again");
    // An agent that can't recover a task stops and destroys it.
    let begun = Instant::now();
    refused(second.recover_task(task.kept_handle()?).await, &[task.id(), &pid])?;
    ensure!(begun.elapsed() < LONG + LIMIT, "it waited for {:?}", begun.elapsed());
    refused(second.stop_task(task.id(), Duration::from_secs(1), "").await, &[task.id(), &pid])?;
    refused(second.destroy_task(task.id(), true).await, &[task.id(), &pid])?;
    ensure_eq!(task.exec(&first, "echo here").await?, (0, "here\n".to_owned()));
    case.still_works(&first).await?;
    first.shut_down().await?;
    next(&mut fingerprints, HealthState::Healthy).await?;
    task.recover(&second).await?;
    end_and_destroy(&task, &second).await?;
    case.still_works(&second).await?;
    ensure!(!case.state_dir().join("successor").exists(), "it still says that it waits");
    second.shut_down().await
}

async fn a_plugin_whose_agent_is_gone_makes_way_and_its_tasks_are_recovered(
    case: &CaseContext,
) -> Result<()> {
    let mut first = case.plugin().await?;
    let (one, other) = (start_stoppable(case, &first).await?, start_stoppable(case, &first).await?);
    first.redial().await?;
    let mut second = case.plugin().await?;
    // At once, as an agent recovers its tasks after its start.
    one.recover(&second).await?;
    other.recover(&second).await?;
    let ended = first.process().end_within(LIMIT).await?;
    ensure!(ended.success(), "it ended with {ended}");
    ensure!(!first.socket().exists(), "it left its socket");
    for task in [one, other] {
        ensure_eq!(task.exec(&second, "echo here").await?, (0, "here\n".to_owned()));
        end_and_destroy(&task, &second).await?;
    }
    second.shut_down().await
}

async fn a_plugin_whose_agent_is_gone_stays_where_nobody_waits(case: &CaseContext) -> Result<()> {
    let mut first = case.plugin().await?;
    let task = start_stoppable(case, &first).await?;
    let mut second = case.plugin().await?;
    // Another plugin waited, and is gone.
    until(LIMIT, "a word of the second one", || case.state_dir().join("successor").exists()).await?;
    second.kill().await?;
    first.redial().await?;
    tokio::time::sleep(LONG).await;
    ensure!(first.process().runs()?, "it ended");
    first.info().await?;
    first.listen().await?;
    task.end(&first).await?;
    case.still_works(&first).await?;
    first.shut_down().await
}

async fn plugins_with_state_directories_of_their_own_do_not_meet(case: &CaseContext) -> Result<()> {
    let mut first = case.plugin().await?;
    let mut options = case.options();
    options["state_dir"] = json!(case.directory().join("other").display().to_string());
    let mut second = case.plugin_as(&case.launch(), &options).await?;
    for plugin in [&first, &second] {
        let found = plugin.fingerprints().await?.message().await?.context("no fingerprint")?;
        ensure!(found.health() == HealthState::Healthy, "{}", found.health_description);
        case.still_works(plugin).await?;
    }
    first.shut_down().await?;
    second.shut_down().await
}

async fn a_first_one_that_was_killed_leaves_the_directory_free(case: &CaseContext) -> Result<()> {
    for _ in 0..3 {
        let mut plugin = case.plugin().await?;
        let found = plugin.fingerprints().await?.message().await?.context("no fingerprint")?;
        ensure!(found.health() == HealthState::Healthy, "{}", found.health_description);
        let task = start_stoppable(case, &plugin).await?;
        let mut next = case.next_plugin(&mut plugin).await?;
        task.recover(&next).await?;
        task.end(&next).await?;
        next.shut_down().await?;
    }
    Ok(())
}

async fn a_lock_that_is_removed_lets_nobody_else_in(case: &CaseContext) -> Result<()> {
    let mut first = case.plugin().await?;
    let task = start_stoppable(case, &first).await?;
    let lock = case.state_dir().join("lock");
    std::fs::remove_file(&lock)?;
    let mut second = case.plugin_as(&case.launch(), &options(case, &json!({}))).await?;
    let mut fingerprints = second.fingerprints().await?;
    next(&mut fingerprints, HealthState::Unhealthy).await?;
    // The lock file says again who holds the directory.
    let pid = first.pid().to_string();
    until(LIMIT, "the first one's word", || {
        std::fs::read_to_string(&lock).is_ok_and(|text| text.contains(&pid))
    })
    .await?;
    second.kill().await?;
    ensure_eq!(task.exec(&first, "echo here").await?, (0, "here\n".to_owned()));
    end_and_destroy(&task, &first).await?;
    first.shut_down().await
}

/// Removes the state directory, into which a plugin may write meanwhile.
async fn remove_state(case: &CaseContext) -> Result<()> {
    until(LIMIT, "its removal", || std::fs::remove_dir_all(case.state_dir()).is_ok()).await
}

async fn a_state_directory_that_is_removed_is_the_first_ones_again(case: &CaseContext) -> Result<()> {
    let mut first = case.plugin().await?;
    case.still_works(&first).await?;
    remove_state(case).await?;
    let lock = case.state_dir().join("lock");
    until(LIMIT, "its lock", || lock.exists()).await?;
    let mut second = case.plugin().await?;
    let found = next(&mut second.fingerprints().await?, HealthState::Unhealthy).await?;
    ensure!(found.health_description.contains(&format!("pid {}", first.pid())), "{found:?}");
    case.still_works(&first).await?;
    second.shut_down().await?;
    first.shut_down().await
}

async fn a_directory_that_another_one_took_after_its_removal_is_left_to_it(case: &CaseContext) -> Result<()> {
    let mut first = case.plugin().await?;
    case.still_works(&first).await?;
    let mut second = case.plugin().await?;
    let mut fingerprints = second.fingerprints().await?;
    next(&mut fingerprints, HealthState::Unhealthy).await?;
    // The first plugin is stopped, as it looks less often than the second one tries.
    first.process().signal(nix::sys::signal::Signal::SIGSTOP)?;
    remove_state(case).await?;
    next(&mut fingerprints, HealthState::Healthy).await?;
    let task = start_stoppable(case, &second).await?;
    first.process().signal(nix::sys::signal::Signal::SIGCONT)?;
    let ended = first.process().end_within(LIMIT).await?;
    ensure!(ended.success(), "it ended with {ended}");
    ensure_eq!(task.exec(&second, "echo here").await?, (0, "here\n".to_owned()));
    task.end(&second).await?;
    second.shut_down().await
}
