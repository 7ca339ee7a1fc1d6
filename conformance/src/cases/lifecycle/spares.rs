//! Spare shims: launched before their tasks, taken by starts, renewed, and gone with the plugin or its successor.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::fixture::containerd::NAMESPACE;
use harness::host::Plugin;
use harness::leaks::inspect::{children, find_processes};
use harness::processes::{alive, open_files};
use harness::task::LIMIT;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::cases::support::copied_shim::CopiedShim;
use crate::cases::support::driver_logs::{collecting, output};
use crate::cases::support::resource_usage::shim_of;
use crate::cases::support::spares::{all as spares, all_of, all_there, directory};
use crate::cases::support::{cases, ensure_eq, until};

cases!["spares":
    a_start_takes_one_and_another_is_launched_after_it,
    one_that_has_died_costs_nothing,
    one_that_dies_is_replaced,
    one_that_hangs_is_ended_and_costs_a_moment,
    those_whose_directories_were_removed_are_ended,
    those_of_a_killed_plugin_whose_directories_were_removed_are_ended,
    one_has_the_log_pipes_where_the_driver_collects_the_output,
    those_of_a_killed_plugin_are_ended_by_the_next,
    none_is_left_by_a_plugin_that_ends_in_order,
    none_is_kept_without_a_start_for_a_while,
    none_is_launched_where_the_operator_wants_none,
    those_of_a_plugin_with_another_spelling_of_the_state_directory_are_ended,
    none_is_left_by_a_plugin_that_ends_while_it_launches_them,
    none_is_used_where_its_directory_can_not_become_a_bundle,
    one_of_a_shim_that_was_replaced_is_not_taken,
    a_task_that_has_one_is_recovered_and_destroyed_without_it,
    a_task_whose_stdin_stays_open_has_a_shim_of_its_own,
];

/// Number of spares of which a start looks at a part.
const MORE: usize = 4;

async fn a_start_takes_one_and_another_is_launched_after_it(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let before = all_there(case).await?;
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let shim = shim_of(plugin, &task).await?.as_raw();
    ensure!(before.contains(&shim), "the task's shim {shim} is none of {before:?}");
    let after = all_there(case).await?;
    ensure!(!after.contains(&shim), "it counts as spare: {after:?}");
    ensure_eq!(task.exec(plugin, "echo in").await?, (0, "in\n".to_owned()));
    task.end(plugin).await?;
    until(LIMIT, "end of the shim", || !alive(shim)).await?;
    case.nothing_left()
}

async fn one_that_has_died_costs_nothing(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let before = all_there(case).await?;
    for pid in &before {
        kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
    }
    let task = case.run(plugin, &case.shell("exit 7")).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 7);
    ensure!(!before.contains(&shim_of(plugin, &task).await?.as_raw()), "it has a dead shim");
    all_there(case).await?;
    task.destroy(plugin).await?;
    case.nothing_left()
}

async fn one_that_dies_is_replaced(case: &CaseContext, _plugin: &Plugin) -> Result<()> {
    let before = all_there(case).await?;
    kill(Pid::from_raw(before[0]), Signal::SIGKILL)?;
    until(LIMIT, "end of the first", || !alive(before[0])).await?;
    let after = all_there(case).await?;
    ensure!(after.contains(&before[1]), "{after:?} lacks the other of {before:?}");
    case.nothing_left()
}

async fn one_that_hangs_is_ended_and_costs_a_moment(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let before = all_there(case).await?;
    for pid in &before {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP)?;
    }
    // A start waits for one at most.
    for hanging in (0..before.len()).rev() {
        let task = case.run(plugin, &case.shell("exit 7")).await?;
        ensure_eq!(task.wait(plugin).await?.exit_code, 7);
        until(LIMIT, "end of one", || before.iter().filter(|pid| alive(**pid)).count() == hanging).await?;
        task.destroy(plugin).await?;
    }
    all_there(case).await?;
    case.nothing_left()
}

async fn remove_directories(case: &CaseContext) -> Result<()> {
    // A file of the last launch may be added meanwhile.
    until(LIMIT, "removal of all directories", || fs::remove_dir_all(directory(case)).is_ok()).await
}

async fn those_whose_directories_were_removed_are_ended(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let before = all_there(case).await?;
    remove_directories(case).await?;
    let task = case.run(plugin, &case.shell("exit 7")).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 7);
    until(LIMIT, "end of those without a directory", || before.iter().all(|pid| !alive(*pid))).await?;
    all_there(case).await?;
    task.destroy(plugin).await?;
    case.nothing_left()
}

async fn those_of_a_killed_plugin_whose_directories_were_removed_are_ended(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let before = all_there(case).await?;
    plugin.kill().await?;
    remove_directories(case).await?;
    let mut next = case.next_plugin(&mut plugin).await?;
    until(LIMIT, "end of those without a directory", || before.iter().all(|pid| !alive(*pid))).await?;
    all_there(case).await?;
    next.shut_down().await
}

async fn one_has_the_log_pipes_where_the_driver_collects_the_output(case: &CaseContext) -> Result<()> {
    let mut plugin = collecting(case).await?;
    let spares = all_there(case).await?;
    let mut task = case.prepare_unread(&plugin, &case.shell("echo out; echo err >&2; exit 7")).await?;
    task.start(&plugin).await?;
    let shim = shim_of(&plugin, &task).await?.as_raw();
    ensure!(spares.contains(&shim), "{shim} is none of {spares:?}");
    for stream in ["stdout", "stderr"] {
        let pipe = case.bundle()?.join(stream);
        ensure!(
            open_files(shim).contains(&pipe),
            "the shim doesn't hold {}, which has no reader without a plugin",
            pipe.display()
        );
    }
    ensure_eq!(task.wait(&plugin).await?.exit_code, 7);
    ensure_eq!((output(&task, "stdout")?, output(&task, "stderr")?), (b"out\n".to_vec(), b"err\n".to_vec()));
    task.destroy(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn those_of_a_killed_plugin_are_ended_by_the_next(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let before = all_there(case).await?;
    plugin.kill().await?;
    ensure_eq!(spares(case), before);
    let mut next = case.next_plugin(&mut plugin).await?;
    until(LIMIT, "end of the earlier plugin's", || before.iter().all(|pid| !alive(*pid))).await?;
    let after = all_there(case).await?;
    ensure!(after.iter().all(|pid| !before.contains(pid)), "{after:?} has some of {before:?}");
    next.shut_down().await
}

async fn none_is_left_by_a_plugin_that_ends_in_order(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let spares = all_there(case).await?;
    plugin.shut_down().await?;
    ensure!(spares.iter().all(|pid| !alive(*pid)), "some of {spares:?} live");
    nothing_is_left(case)
}

async fn none_is_left_by_a_plugin_that_ends_while_it_launches_them(case: &CaseContext) -> Result<()> {
    for pause in [0, 10, 20, 30, 40, 60] {
        let mut plugin = case.plugin().await?;
        until(LIMIT, "the first launch", || !children(&directory(case)).is_empty()).await?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        plugin.shut_down().await?;
        nothing_is_left(case).with_context(|| format!("ended after {pause} ms"))?;
    }
    Ok(())
}

fn nothing_is_left(case: &CaseContext) -> Result<()> {
    let left: Vec<_> = find_processes(&case.state_dir()).into_iter().filter(|found| found.is_spare).collect();
    let places = children(&directory(case));
    ensure!(left.is_empty() && places.is_empty(), "{left:?} {places:?}");
    case.nothing_left()
}

async fn those_of_a_plugin_with_another_spelling_of_the_state_directory_are_ended(
    case: &CaseContext,
) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let before = all_there(case).await?;
    plugin.kill().await?;
    let other = case.directory().join("other-spelling");
    std::os::unix::fs::symlink(case.state_dir(), &other)?;
    let mut options = case.options();
    options["state_dir"] = json!(other);
    let mut next = case.plugin_as(&case.launch(), &options).await?;
    until(LIMIT, "end of the earlier plugin's", || before.iter().all(|pid| !alive(*pid))).await?;
    all_there(case).await?;
    next.shut_down().await?;
    nothing_is_left(case)
}

async fn none_is_used_where_its_directory_can_not_become_a_bundle(case: &CaseContext) -> Result<()> {
    let bundles = case.state_dir().join(NAMESPACE);
    fs::create_dir_all(&bundles)?;
    mount(Some("tmpfs"), &bundles, Some("tmpfs"), MsFlags::empty(), Some("size=4m"))?;
    // A runtime needs it as a machine's /run is.
    mount(None::<&str>, &bundles, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
    let used = use_none_on_another_file_system(case).await;
    umount2(&bundles, MntFlags::MNT_DETACH)?;
    used
}

async fn use_none_on_another_file_system(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let before = all_there(case).await?;
    for _ in 0..2 {
        let task = case.run(&plugin, &case.shell("exit 7")).await?;
        ensure_eq!(task.wait(&plugin).await?.exit_code, 7);
        task.destroy(&plugin).await?;
    }
    until(LIMIT, "end of those that are of no use", || before.iter().all(|pid| !alive(*pid))).await?;
    ensure!(spares(case).is_empty(), "new ones are launched, which no start can use");
    plugin.shut_down().await
}

async fn none_is_kept_without_a_start_for_a_while(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["spare_idle"] = json!("2s");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    all_there(case).await?;
    until(LIMIT, "end of those without a use", || spares(case).is_empty()).await?;
    let task = case.run(&plugin, &case.shell("exit 0")).await?;
    all_there(case).await?;
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn none_is_launched_where_the_operator_wants_none(case: &CaseContext) -> Result<()> {
    let mut options = case.options();
    options["spare_shims"] = json!(0);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.run(&plugin, &case.shell("exit 0")).await?;
    task.end(&plugin).await?;
    let spares = directory(case);
    ensure!(!spares.exists(), "{} is there", spares.display());
    plugin.shut_down().await
}

async fn one_of_a_shim_that_was_replaced_is_not_taken(case: &CaseContext) -> Result<()> {
    let copied = CopiedShim::new(case)?;
    let mut options = copied.options();
    options["spare_shims"] = json!(MORE);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let before = all_of(case, MORE).await?;
    copied.replace()?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let shim = shim_of(&plugin, &task).await?.as_raw();
    ensure!(!before.contains(&shim), "the task has the earlier shim {shim}");
    until(LIMIT, "end of the earlier shims", || before.iter().all(|pid| !alive(*pid))).await?;
    all_of(case, MORE).await?;
    task.end(&plugin).await?;
    plugin.shut_down().await?;
    nothing_is_left(case)
}

async fn a_task_that_has_one_is_recovered_and_destroyed_without_it(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let spares = all_there(case).await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let shim = shim_of(&plugin, &task).await?;
    ensure!(spares.contains(&shim.as_raw()), "{shim} is none of {spares:?}");
    plugin.kill().await?;
    let mut next = case.next_plugin(&mut plugin).await?;
    task.recover(&next).await?;
    ensure_eq!(task.exec(&next, "echo in").await?, (0, "in\n".to_owned()));
    kill(shim, Signal::SIGKILL)?;
    let exit = task.wait_answer(&next).await?;
    ensure!(exit.err.contains("shim died"), "{exit:?}");
    task.destroy(&next).await?;
    case.nothing_left_within(Duration::from_secs(15))?;
    next.shut_down().await
}

async fn a_task_whose_stdin_stays_open_has_a_shim_of_its_own(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let spares = all_there(case).await?;
    let mut config = case.shell("cat");
    config["interactive"] = json!(true);
    let task = case.run(plugin, &config).await?;
    let shim = shim_of(plugin, &task).await?.as_raw();
    ensure!(!spares.contains(&shim), "{shim} is one of {spares:?}, which has no descriptor of its stdin");
    ensure!(alive(task.pid()?), "it has ended");
    task.end(plugin).await?;
    case.nothing_left()
}
