//! Shared shims: the containers of an allocation, or of the node, under one shim, which lives as long as one of them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::config;
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::alloc::{set_memory, set_part_of_node};
use harness::leaks::inspect::children;
use harness::processes::alive;
use harness::task::{LIMIT, Task};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cases::support::copied_shim::CopiedShim;
use crate::cases::support::driver_logs::output;
use crate::cases::support::resource_usage::shim_of;
use crate::cases::support::scripted::{Scripted, runc};
use crate::cases::support::stoppable_task::tell_to_end;
use crate::cases::support::web_server::beside;
use crate::cases::support::{cases, ensure_eq, until};

cases!["shared shims":
    tasks_of_an_allocation_have_one_and_others_another,
    all_tasks_of_the_node_have_one,
    tasks_that_come_at_once_launch_one,
    a_task_ends_and_the_other_goes_on,
    a_killed_plugins_tasks_are_recovered_with_theirs,
    one_that_is_killed_ends_its_tasks_which_start_again,
    one_that_hangs_gets_no_more_tasks,
    one_that_lacks_descriptors_gets_no_more_tasks,
    one_that_is_late_at_a_recovery_tells_the_exits_later,
    a_start_that_fails_leaves_it_to_the_others,
    calls_about_others_are_answered_beside_a_create_or_after_it,
    one_whose_files_were_removed_keeps_its_tasks,
    an_oom_kill_is_told_to_its_own_task,
    a_task_that_needs_a_shim_of_its_own_has_one,
    it_holds_the_pipes_of_output_that_the_driver_reads,
    it_holds_a_stdin_open,
    one_without_tasks_is_ended_by_the_next_plugin,
    one_of_a_shim_that_was_replaced_gets_no_more_tasks,
    a_shim_of_another_family_is_refused,
];

/// Number of tasks that a shim is killed with.
const MANY: usize = 20;
/// A task that runs until it is told to end.
const RUNS: &str = "echo up; while [ ! -e /local/end ]; do sleep 0.05; done; exit 11";
/// A task that ends when it is told to stop.
const ENDS_WHEN_TOLD: &str = "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done";
/// Part of the node's CPUs that is less than a twentieth of one.
const LITTLE: f64 = 0.01;
const LEFT: Duration = Duration::from_secs(15);
/// Time for which a create is held up.
const CREATES: Duration = Duration::from_secs(2);

async fn sharing(case: &CaseContext, by: &str) -> Result<Plugin> {
    case.plugin_as(&case.launch(), &options(case, by)).await
}

fn options(case: &CaseContext, by: &str) -> Value {
    let mut options = case.options();
    options["shim_sharing"] = json!(by);
    options
}

/// Returns the directories of shared shims.
fn places(case: &CaseContext) -> Vec<PathBuf> {
    children(&case.state_dir().join(".shared"))
}

fn bundles(case: &CaseContext) -> Vec<PathBuf> {
    children(&case.state_dir().join("nomad"))
}

async fn is_gone(case: &CaseContext, shim: i32) -> Result<()> {
    ensure!(!alive(shim), "the shim {shim} runs without tasks");
    ensure!(places(case).is_empty(), "{:?} is left", places(case));
    case.nothing_left()
}

async fn pid_of_shim(plugin: &Plugin, task: &Task) -> Result<i32> {
    Ok(shim_of(plugin, task).await?.as_raw())
}

async fn tasks_of_an_allocation_have_one_and_others_another(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "allocation").await?;
    let first = case.run(&plugin, &case.shell("sleep 600")).await?;
    let mut second = beside(case, &plugin, &first, &case.shell("sleep 600")).await?;
    second.start(&plugin).await?;
    let other = case.run(&plugin, &case.shell("sleep 600")).await?;
    let shim = pid_of_shim(&plugin, &first).await?;
    ensure_eq!(pid_of_shim(&plugin, &second).await?, shim);
    let others = pid_of_shim(&plugin, &other).await?;
    ensure!(others != shim, "another allocation has the shim {shim}, too");
    first.end(&plugin).await?;
    ensure!(alive(shim), "the shim has ended with the first of its tasks");
    second.end(&plugin).await?;
    ensure!(!alive(shim) && alive(others), "of {shim} and {others}, the first is to have ended");
    other.end(&plugin).await?;
    is_gone(case, others).await?;
    plugin.shut_down().await
}

async fn all_tasks_of_the_node_have_one(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let (first, second) = (
        case.run(&plugin, &case.shell("sleep 600")).await?,
        case.run(&plugin, &case.shell("sleep 600")).await?,
    );
    let shim = pid_of_shim(&plugin, &first).await?;
    ensure_eq!(pid_of_shim(&plugin, &second).await?, shim);
    first.end(&plugin).await?;
    second.end(&plugin).await?;
    is_gone(case, shim).await?;
    let third = case.run(&plugin, &case.shell("sleep 600")).await?;
    let next = pid_of_shim(&plugin, &third).await?;
    ensure!(next != shim, "a shim that has ended is told");
    third.end(&plugin).await?;
    is_gone(case, next).await?;
    plugin.shut_down().await
}

async fn tasks_that_come_at_once_launch_one(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let mut tasks = Vec::new();
    for _ in 0..5 {
        tasks.push(case.prepare(&plugin, &case.shell("sleep 600")).await?);
    }
    let started = futures::future::join_all(tasks.iter_mut().map(|task| task.start(&plugin))).await;
    started.into_iter().collect::<Result<()>>()?;
    let shim = pid_of_shim(&plugin, &tasks[0]).await?;
    for task in &tasks {
        ensure_eq!(pid_of_shim(&plugin, task).await?, shim);
    }
    let ended = futures::future::join_all(tasks.iter().map(|task| task.end(&plugin))).await;
    ended.into_iter().collect::<Result<()>>()?;
    is_gone(case, shim).await?;
    plugin.shut_down().await
}

async fn a_task_ends_and_the_other_goes_on(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let stays = case.run(&plugin, &case.shell(RUNS)).await?;
    let shim = pid_of_shim(&plugin, &stays).await?;
    for code in [0, 7, 130] {
        let goes = case.run(&plugin, &case.shell(&format!("echo gone; exit {code}"))).await?;
        ensure_eq!(goes.wait(&plugin).await?.exit_code, code);
        goes.alloc.stdout.to_contain("gone\n", LIMIT).await?;
        goes.destroy(&plugin).await?;
        ensure_eq!(stays.exec(&plugin, "echo in; exit 3").await?, (3, "in\n".to_owned()));
    }
    let stopped = case.run(&plugin, &case.shell(ENDS_WHEN_TOLD)).await?;
    // A signal that comes before the trap is none to a first process.
    stopped.alloc.stdout.to_hold(3, LIMIT).await?;
    stopped.stop(&plugin, LIMIT).await?;
    ensure_eq!(stopped.wait(&plugin).await?.exit_code, 3);
    stopped.destroy(&plugin).await?;
    let killed = case.run(&plugin, &case.shell("sleep 600 & sleep 600")).await?;
    killed.end(&plugin).await?;
    ensure_eq!(stays.alloc.stdout.text(), "up\n");
    // What the shim holds for all is no task's.
    ensure_eq!(stays.exec(&plugin, "ls /proc/1/fd /proc/self/fd | grep 10[01]").await?, (1, String::new()));
    let pid = stays.pid()?;
    ensure!(alive(pid) && alive(shim), "process {pid} or its shim {shim} has ended with others");
    tell_to_end(&stays)?;
    ensure_eq!(stays.wait(&plugin).await?.exit_code, 11);
    stays.destroy(&plugin).await?;
    is_gone(case, shim).await?;
    plugin.shut_down().await
}

async fn a_killed_plugins_tasks_are_recovered_with_theirs(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(case.run(&plugin, &case.shell(RUNS)).await?);
    }
    let shim = pid_of_shim(&plugin, &tasks[0]).await?;
    plugin.kill().await?;
    tell_to_end(&tasks[0])?;
    let mut next = case.next_plugin_with(&mut plugin, &options(case, "node")).await?;
    for task in &tasks {
        task.recover(&next).await?;
    }
    ensure_eq!(tasks[0].wait(&next).await?.exit_code, 11);
    ensure_eq!(tasks[1].exec(&next, "echo in").await?, (0, "in\n".to_owned()));
    let more = case.run(&next, &case.shell(RUNS)).await?;
    ensure_eq!(pid_of_shim(&next, &more).await?, shim);
    for task in tasks.iter().chain([&more]) {
        ensure!(alive(shim), "the shim has ended before its tasks");
        task.end(&next).await?;
    }
    is_gone(case, shim).await?;
    next.shut_down().await
}

async fn one_that_is_killed_ends_its_tasks_which_start_again(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let mut tasks = Vec::new();
    for _ in 0..MANY {
        tasks.push(case.run(&plugin, &case.shell(RUNS)).await?);
    }
    let shim = pid_of_shim(&plugin, &tasks[0]).await?;
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    let exits = futures::future::join_all(tasks.iter().map(|task| task.wait_answer(&plugin))).await;
    for exit in exits {
        let exit = exit?;
        ensure!(exit.err.contains("shim died"), "{exit:?}");
    }
    for task in &mut tasks {
        ensure!(task.alloc.cgroup.pids().is_empty(), "processes of a task run without their shim");
        task.next_attempt()?;
        task.start(&plugin).await?;
    }
    let next = pid_of_shim(&plugin, &tasks[0]).await?;
    for task in &tasks {
        ensure_eq!(pid_of_shim(&plugin, task).await?, next);
    }
    let ended = futures::future::join_all(tasks.iter().map(|task| task.end(&plugin))).await;
    ended.into_iter().collect::<Result<()>>()?;
    case.nothing_left_within(LEFT)?;
    is_gone(case, next).await?;
    plugin.shut_down().await
}

/// Halts a process, and waits until none of its threads runs: one that does may answer a call, and hang in the next.
async fn halt(process: Pid) -> Result<()> {
    kill(process, Signal::SIGSTOP)?;
    let is_halted = |thread: &PathBuf| {
        let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
    };
    let threads = PathBuf::from(format!("/proc/{process}/task"));
    until(LIMIT, "halt of the shim", || children(&threads).iter().all(is_halted)).await
}

async fn one_that_hangs_gets_no_more_tasks(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let task = case.run(&plugin, &case.shell(RUNS)).await?;
    let shim = shim_of(&plugin, &task).await?;
    halt(shim).await?;
    let other = case.run(&plugin, &case.shell("exit 7")).await?;
    ensure_eq!(other.wait(&plugin).await?.exit_code, 7);
    let others = pid_of_shim(&plugin, &other).await?;
    ensure!(others != shim.as_raw(), "it has the shim {shim}, which hangs");
    other.destroy(&plugin).await?;
    kill(shim, Signal::SIGCONT)?;
    tell_to_end(&task)?;
    ensure_eq!(task.wait(&plugin).await?.exit_code, 11);
    task.destroy(&plugin).await?;
    is_gone(case, shim.as_raw()).await?;
    // Also one that never goes on, once its last task is over.
    let task = case.run(&plugin, &case.shell(RUNS)).await?;
    let shim = shim_of(&plugin, &task).await?;
    halt(shim).await?;
    task.end(&plugin).await?;
    is_gone(case, shim.as_raw()).await?;
    plugin.shut_down().await
}

async fn one_that_lacks_descriptors_gets_no_more_tasks(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.runtime(&runc("create", "complain 'pipe2: too many open files'"))?;
    scripted.repair()?;
    let mut plugin = scripted.plugin_with(case, options(case, "node")).await?;
    let stays = case.run(&plugin, &case.shell(RUNS)).await?;
    let shim = pid_of_shim(&plugin, &stays).await?;
    let mut comes = case.prepare(&plugin, &case.shell(RUNS)).await?;
    scripted.break_again()?;
    ensure!(comes.start(&plugin).await.is_err(), "a container was created without descriptors");
    scripted.repair()?;
    comes.next_attempt()?;
    comes.start(&plugin).await?;
    let next = pid_of_shim(&plugin, &comes).await?;
    ensure!(
        next != shim && alive(shim),
        "of {shim} and {next}, the next task is to have another than the first"
    );
    comes.end(&plugin).await?;
    stays.end(&plugin).await?;
    is_gone(case, shim).await?;
    plugin.shut_down().await
}

async fn one_that_is_late_at_a_recovery_tells_the_exits_later(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let stays = case.run(&plugin, &case.shell(RUNS)).await?;
    let ended = [case.run(&plugin, &case.shell(RUNS)).await?, case.run(&plugin, &case.shell(RUNS)).await?];
    let shim = shim_of(&plugin, &stays).await?;
    let inits = [ended[0].pid()?, ended[1].pid()?];
    plugin.kill().await?;
    for task in &ended {
        tell_to_end(task)?;
    }
    // Its shim has reaped a process that is gone.
    let are_gone = || inits.iter().all(|init| !PathBuf::from(format!("/proc/{init}")).exists());
    until(LIMIT, "end of the tasks", are_gone).await?;
    halt(shim).await?;
    let mut next = case.next_plugin_with(&mut plugin, &options(case, "node")).await?;
    ended[0].recover(&next).await?;
    stays.recover(&next).await?;
    ended[1].recover(&next).await?;
    kill(shim, Signal::SIGCONT)?;
    for task in &ended {
        ensure_eq!(task.wait(&next).await?.exit_code, 11);
        task.destroy(&next).await?;
    }
    stays.end(&next).await?;
    is_gone(case, shim.as_raw()).await?;
    next.shut_down().await
}

async fn a_start_that_fails_leaves_it_to_the_others(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let missing = config! { image = case.image("busybox:latest"), command = "/no/such/program" };
    let mut fails = case.prepare(&plugin, &missing).await?;
    ensure!(fails.start(&plugin).await.is_err(), "a program that is missing was started");
    case.nothing_left()?;
    let task = case.run(&plugin, &case.shell(RUNS)).await?;
    let shim = pid_of_shim(&plugin, &task).await?;
    fails.next_attempt()?;
    ensure!(fails.start(&plugin).await.is_err(), "a program that is missing was started");
    ensure!(alive(shim), "the shim has ended with a start that failed");
    ensure_eq!(task.exec(&plugin, "echo in").await?, (0, "in\n".to_owned()));
    task.end(&plugin).await?;
    is_gone(case, shim).await?;
    plugin.shut_down().await
}

async fn calls_about_others_are_answered_beside_a_create_or_after_it(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    let [creates, goes_on] = ["creates", "goes-on"].map(|name| case.directory().join(name));
    let waits =
        format!("while [ ! -e {} ]; do touch {}; sleep 0.05; done", goes_on.display(), creates.display());
    scripted.runtime(&runc("create", &waits))?;
    scripted.repair()?;
    let mut plugin = scripted.plugin_with(case, options(case, "node")).await?;
    let stays = case.run(&plugin, &case.shell(RUNS)).await?;
    let goes = case.run(&plugin, &case.shell(ENDS_WHEN_TOLD)).await?;
    goes.alloc.stdout.to_hold(3, LIMIT).await?;
    let mut comes = case.prepare(&plugin, &case.shell("exit 7")).await?;
    scripted.break_again()?;
    let letting_go = async {
        until(LIMIT, "the create", || creates.exists()).await?;
        // These are answered before the create goes on.
        plugin.signal_task(stays.id(), "SIGCONT").await.context("signal")?;
        plugin.inspect_task(stays.id()).await.context("inspect")?;
        let mut stats = plugin.stats(stays.id(), Duration::from_secs(1)).await?;
        stats.message().await?.context("no statistics")?;
        tokio::time::sleep(CREATES).await;
        Ok::<_, anyhow::Error>(fs::write(&goes_on, "")?)
    };
    let calls = async {
        until(LIMIT, "the create", || creates.exists()).await?;
        let exec = async {
            ensure_eq!(stays.exec(&plugin, "echo in").await?, (0, "in\n".to_owned()));
            Ok::<_, anyhow::Error>(())
        };
        let end = async {
            // Without the signal, it is killed by then.
            goes.stop(&plugin, CREATES / 2).await?;
            ensure_eq!(goes.wait(&plugin).await?.exit_code, 3);
            goes.destroy(&plugin).await
        };
        let (exec, end) = tokio::join!(exec, end);
        exec.context("exec").and(end.context("stop and destroy"))
    };
    let (started, let_go, called) = tokio::join!(comes.start(&plugin), letting_go, calls);
    let_go.and(called)?;
    started?;
    ensure_eq!(comes.wait(&plugin).await?.exit_code, 7);
    comes.destroy(&plugin).await?;
    stays.end(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn an_oom_kill_is_told_to_its_own_task(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let stays = case.run(&plugin, &case.shell(RUNS)).await?;
    let greedy = ["if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"];
    let greedy = config! { image = case.image("busybox:latest"), command = "dd", args = greedy };
    let mut task = case.prepare(&plugin, &greedy).await?;
    set_memory(&mut task.config, 32, 0);
    task.start(&plugin).await?;
    let exit = task.wait(&plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, true));
    task.destroy(&plugin).await?;
    tell_to_end(&stays)?;
    let exit = stays.wait(&plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (11, 0, false));
    stays.destroy(&plugin).await?;
    case.nothing_left()?;
    plugin.shut_down().await
}

async fn a_task_that_needs_a_shim_of_its_own_has_one(case: &CaseContext) -> Result<()> {
    let mut options = options(case, "node");
    options["allow_caps"] = json!(["all"]);
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.run(&plugin, &case.shell(RUNS)).await?;
    let shim = pid_of_shim(&plugin, &task).await?;
    for (option, value) in [
        ("pid_mode", json!("host")),
        ("cap_add", json!(["sys_ptrace"])),
        // Of little CPU, as below.
        ("cpu_hard_limit", json!(true)),
    ] {
        let mut config = case.shell("sleep 600");
        config[option] = value;
        let mut other = case.prepare(&plugin, &config).await?;
        set_part_of_node(&mut other.config, LITTLE);
        other.start(&plugin).await?;
        let own = pid_of_shim(&plugin, &other).await?;
        ensure!(own != shim, "with {option}, a task has the shim of others");
        other.end(&plugin).await?;
        ensure!(!alive(own) && alive(shim), "of {own} and {shim}, the first is to have ended");
    }
    task.end(&plugin).await?;
    is_gone(case, shim).await?;
    plugin.shut_down().await
}

async fn one_whose_files_were_removed_keeps_its_tasks(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let stays = case.run(&plugin, &case.shell(RUNS)).await?;
    let shim = pid_of_shim(&plugin, &stays).await?;
    let before = bundles(case);
    let goes = case.run(&plugin, &case.shell("sleep 600")).await?;
    plugin.kill().await?;
    fs::remove_file(places(case)[0].join("shim.json"))?;
    // Its end is the sweeper's, as that of shims that were left in the middle of their launch.
    let doomed = bundles(case).into_iter().find(|bundle| !before.contains(bundle)).context("no bundle")?;
    fs::write(doomed.join("doomed"), "")?;
    let mut next = case.next_plugin_with(&mut plugin, &options(case, "node")).await?;
    until(LIMIT, "end of the other one", || !doomed.exists()).await?;
    stays.recover(&next).await?;
    let third = case.run(&next, &case.shell("exit 7")).await?;
    ensure_eq!(third.wait(&next).await?.exit_code, 7);
    third.destroy(&next).await?;
    ensure!(alive(shim), "it was ended with a task that runs");
    ensure_eq!(stays.exec(&next, "exit 3").await?.0, 3);
    tell_to_end(&stays)?;
    ensure_eq!(stays.wait(&next).await?.exit_code, 11);
    stays.destroy(&next).await?;
    goes.destroy(&next).await?;
    is_gone(case, shim).await?;
    next.shut_down().await
}

async fn it_holds_the_pipes_of_output_that_the_driver_reads(case: &CaseContext) -> Result<()> {
    let mut options = options(case, "node");
    options["log_collection"] = json!("driver");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let mut stays = case.prepare_unread(&plugin, &case.shell(RUNS)).await?;
    stays.start(&plugin).await?;
    let script = "while [ ! -e /local/end ]; do sleep 0.05; done; echo out; echo err >&2; exit 7";
    let mut task = case.prepare_unread(&plugin, &case.shell(script)).await?;
    task.start(&plugin).await?;
    let shim = pid_of_shim(&plugin, &task).await?;
    ensure_eq!(pid_of_shim(&plugin, &stays).await?, shim);
    plugin.kill().await?;
    // It writes and ends while no plugin lives: without a reader, a pipe that nobody has open loses what is in it.
    tell_to_end(&task)?;
    let init = task.pid().ok();
    until(LIMIT, "the task's end", || task.alloc.cgroup.pids().is_empty()).await?;
    ensure!(init.is_none_or(|pid| !alive(pid)), "it runs");
    let mut next = case.next_plugin_with(&mut plugin, &options).await?;
    stays.recover(&next).await?;
    task.recover(&next).await?;
    ensure_eq!(task.wait(&next).await?.exit_code, 7);
    ensure_eq!((output(&task, "stdout")?, output(&task, "stderr")?), (b"out\n".to_vec(), b"err\n".to_vec()));
    task.destroy(&next).await?;
    stays.end(&next).await?;
    is_gone(case, shim).await?;
    next.shut_down().await
}

async fn it_holds_a_stdin_open(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let first = case.run(&plugin, &case.shell(RUNS)).await?;
    let mut config = case.shell("cat");
    config["interactive"] = json!(true);
    let task = case.run(&plugin, &config).await?;
    let shim = pid_of_shim(&plugin, &first).await?;
    ensure_eq!(pid_of_shim(&plugin, &task).await?, shim);
    plugin.kill().await?;
    let mut next = case.next_plugin_with(&mut plugin, &options(case, "node")).await?;
    first.recover(&next).await?;
    task.recover(&next).await?;
    ensure!(alive(task.pid()?), "its stdin has ended");
    task.end(&next).await?;
    first.end(&next).await?;
    is_gone(case, shim).await?;
    next.shut_down().await
}

async fn one_without_tasks_is_ended_by_the_next_plugin(case: &CaseContext) -> Result<()> {
    let mut plugin = sharing(case, "node").await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let shim = pid_of_shim(&plugin, &task).await?;
    plugin.kill().await?;
    // As where a plugin dies in the middle of a teardown.
    fs::write(case.bundle()?.join("doomed"), "")?;
    let mut next = case.next_plugin_with(&mut plugin, &options(case, "task")).await?;
    until(LIMIT, "end of the shim", || !alive(shim)).await?;
    until(LIMIT, "end of its directory", || places(case).is_empty()).await?;
    case.nothing_left_within(LEFT)?;
    next.shut_down().await
}

async fn one_of_a_shim_that_was_replaced_gets_no_more_tasks(case: &CaseContext) -> Result<()> {
    let copied = CopiedShim::new(case)?;
    let mut options = copied.options();
    options["shim_sharing"] = json!("node");
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let first = case.run(&plugin, &case.shell("sleep 600")).await?;
    let shim = pid_of_shim(&plugin, &first).await?;
    copied.replace()?;
    let second = case.run(&plugin, &case.shell("sleep 600")).await?;
    let next = pid_of_shim(&plugin, &second).await?;
    ensure!(next != shim, "a new task has the earlier shim {shim}");
    first.end(&plugin).await?;
    ensure!(!alive(shim) && alive(next), "of {shim} and {next}, the first is to have ended");
    second.end(&plugin).await?;
    is_gone(case, next).await?;
    plugin.shut_down().await
}

async fn a_shim_of_another_family_is_refused(case: &CaseContext) -> Result<()> {
    let mut options = options(case, "allocation");
    options["containerd_runtime"] = json!("io.containerd.runsc.v1");
    let mut plugin = case.bare_plugin(&case.launch()).await?;
    let error = plugin.configure(&options).await.err().context("it is taken")?;
    let error = format!("{error:#}");
    for word in ["shim_sharing", "io.containerd.runsc.v1", "task", "containerd_runtime"] {
        ensure!(error.contains(word), "{word} is not in {error}");
    }
    plugin.kill().await
}
