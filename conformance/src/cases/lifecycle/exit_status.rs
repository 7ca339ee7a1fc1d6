//! The exit status of a task: its own code, a signal, the OOM killer; reported by the shim, or by the kernel if the
//! shim can't.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::host::alloc::set_memory;
use harness::task::{LIMIT, Task};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nomad_proto::driver::{DriverTaskEvent, TaskState};
use tonic::Streaming;

use crate::cases::support::processes::{ended, shim_pid};
use crate::cases::support::stoppable_task::{start_stoppable, tell_to_end};
use crate::cases::support::{cases, ensure_eq};

cases!["ends":
    a_kill_is_told_from_a_code_of_the_same_number,
    an_exit_that_the_shim_loses_is_reported_by_the_kernel,
    exits_after_a_recovery_have_the_same_status,
    exits_before_a_recovery_have_the_same_status,
    an_end_before_that_of_the_shim_is_the_tasks_own,
    an_end_is_the_same_after_a_recovery,
    a_child_killed_for_want_of_memory_is_reported_while_the_task_runs_on,
    a_child_killed_for_want_of_memory_may_be_why_a_task_fails,
    a_child_killed_for_want_of_memory_long_ago_is_not,
    a_recovery_is_reported,
];

/// Returns whether the kernel keeps the exit status of a process that has been reaped, as Linux does from 6.15 on.
fn kernel_remembers() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    Ok((numbers.next(), numbers.next()) >= (Some(6), Some(15)))
}

/// Starts a task that runs `then` once `/local/end` exists, so that there is time to do something before its end.
async fn waiting(case: &CaseContext, plugin: &Plugin, then: &str) -> Result<Task> {
    let script = format!("echo up; while [ ! -e /local/end ]; do sleep 0.05; done; {then}");
    let task = case.run(plugin, &case.shell(&script)).await?;
    task.alloc.stdout.to_contain("up\n", LIMIT).await?;
    Ok(task)
}

async fn a_kill_is_told_from_a_code_of_the_same_number(case: &CaseContext) -> Result<()> {
    let chosen = if kernel_remembers()? { (137, 0) } else { (137, 9) };
    for (then, wanted) in [("exit 137", chosen), ("sleep 600", (137, 9)), ("exit 3", (3, 0))] {
        for recovered in [false, true] {
            let mut plugin = case.plugin().await?;
            let task = waiting(case, &plugin, then).await?;
            if recovered {
                plugin.kill().await?;
                plugin = case.plugin().await?;
                task.recover(&plugin).await?;
            }
            if wanted.1 == 9 && then.starts_with("sleep") {
                kill(Pid::from_raw(task.pid()?), Signal::SIGKILL)?;
            } else {
                tell_to_end(&task)?;
            }
            let exit = task.wait(&plugin).await?;
            let reported = (exit.exit_code, exit.signal);
            ensure!(reported == wanted, "{then:?} is {reported:?}, not {wanted:?}; recovered: {recovered}");
            task.destroy(&plugin).await?;
            plugin.shut_down().await?;
        }
    }
    Ok(())
}

async fn an_exit_that_the_shim_loses_is_reported_by_the_kernel(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = start_stoppable(case, plugin).await?;
    kill(shim_pid(case)?, Signal::SIGSTOP)?;
    tell_to_end(&task)?;
    is_reported_by_the_kernel(case, plugin, &task).await?;
    Ok(())
}

async fn exits_after_a_recovery_have_the_same_status(case: &CaseContext) -> Result<()> {
    recovered(case, false).await
}

async fn exits_before_a_recovery_have_the_same_status(case: &CaseContext) -> Result<()> {
    recovered(case, true).await
}

async fn recovered(case: &CaseContext, ends_before: bool) -> Result<()> {
    let mut plugin = case.with_own_shims().plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    let pid = task.pid()?;
    kill(shim_pid(case)?, Signal::SIGSTOP)?;
    plugin.kill().await?;
    if ends_before {
        tell_to_end(&task)?;
        ended(pid).await?;
    }
    let mut next = case.plugin().await?;
    // The shim answers nothing; the task's process runs.
    task.recover(&next).await?;
    tell_to_end(&task)?;
    is_reported_by_the_kernel(case, &next, &task).await?;
    next.shut_down().await
}

/// Asserts that the task's own exit status is reported although its shim can't report it, and that the task is removed
/// together with its shim.
async fn is_reported_by_the_kernel(case: &CaseContext, plugin: &Plugin, task: &Task) -> Result<()> {
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal), (11, 0));
    task.stop(plugin, LIMIT).await?;
    let destroyed = tokio::time::timeout(LIMIT, task.destroy(plugin)).await;
    destroyed.context("DestroyTask gave no answer")??;
    case.nothing_left()?;
    case.still_works(plugin).await
}

async fn an_end_before_that_of_the_shim_is_the_tasks_own(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = start_stoppable(case, plugin).await?;
    let (shim, pid) = (shim_pid(case)?, task.pid()?);
    // The shim is stopped, so that it can't report the exit, and then killed.
    kill(shim, Signal::SIGSTOP)?;
    tell_to_end(&task)?;
    ended(pid).await?;
    kill(shim, Signal::SIGKILL)?;
    let answer = task.wait_answer(plugin).await?;
    let exit = answer.result.context("WaitTask without a result crashes the agent")?;
    if kernel_remembers()? {
        ensure_eq!((answer.err.as_str(), exit.exit_code, exit.signal), ("", 11, 0));
    } else {
        ensure!(!answer.err.is_empty() && exit.exit_code != 0, "{answer:?} was made up");
    }
    task.destroy(plugin).await?;
    case.nothing_left()
}

async fn an_end_is_the_same_after_a_recovery(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    tell_to_end(&task)?;
    task.wait(&plugin).await?;
    let before = plugin.inspect_task(task.id()).await?.task.context("no task")?;
    ensure_eq!(before.state(), TaskState::Exited);
    plugin.kill().await?;
    for _ in 0..2 {
        let mut next = case.plugin().await?;
        task.recover(&next).await?;
        ensure_eq!(task.wait(&next).await?.exit_code, 11);
        let after = next.inspect_task(task.id()).await?.task.context("no task")?;
        ensure_eq!(after, before);
        next.shut_down().await?;
    }
    let mut last = case.plugin().await?;
    task.end(&last).await?;
    case.nothing_left()?;
    last.shut_down().await
}

/// Shell command with a child that the OOM killer kills, and a message once it is dead.
const GREEDY_CHILD: &str = "dd if=/dev/zero of=/dev/null bs=256M count=1; echo survived";

async fn greedy(case: &CaseContext, plugin: &Plugin, then: &str) -> Result<Task> {
    let script = format!("{GREEDY_CHILD}; while [ ! -e /local/end ]; do sleep 0.05; done; {then}");
    let mut task = case.prepare(plugin, &case.shell(&script)).await?;
    set_memory(&mut task.config, 32, 0);
    task.start(plugin).await?;
    task.alloc.stdout.to_contain("survived\n", LIMIT).await?;
    Ok(task)
}

/// Returns the next event whose text begins like this.
async fn event(events: &mut Streaming<DriverTaskEvent>, beginning: &str) -> Result<DriverTaskEvent> {
    let find = async {
        loop {
            let event = events.message().await?.context("TaskEvents ended")?;
            if event.message.starts_with(beginning) {
                return Ok(event);
            }
        }
    };
    tokio::time::timeout(LIMIT, find).await.with_context(|| format!("no event {beginning:?}"))?
}

async fn a_child_killed_for_want_of_memory_is_reported_while_the_task_runs_on(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut events = plugin.events().await?;
    let task = greedy(case, plugin, "exit 0").await?;
    let event = event(&mut events, "OOM killed").await?;
    ensure_eq!((event.task_id.as_str(), event.alloc_id.as_str()), (task.id(), task.alloc.id.as_str()));
    ensure_eq!(plugin.inspect_task(task.id()).await?.task.unwrap_or_default().state(), TaskState::Running);
    tell_to_end(&task)?;
    // The task has survived the child's death.
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (0, 0, false));
    task.destroy(plugin).await
}

async fn a_child_killed_for_want_of_memory_may_be_why_a_task_fails(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = greedy(case, plugin, "exit 4").await?;
    tell_to_end(&task)?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (4, 0, true));
    task.destroy(plugin).await
}

async fn a_child_killed_for_want_of_memory_long_ago_is_not(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = greedy(case, plugin, "exit 4").await?;
    tokio::time::sleep(std::time::Duration::from_secs(14)).await;
    tell_to_end(&task)?;
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (4, 0, false));
    task.destroy(plugin).await
}

async fn a_recovery_is_reported(case: &CaseContext) -> Result<()> {
    let mut plugin = case.plugin().await?;
    let task = start_stoppable(case, &plugin).await?;
    plugin.kill().await?;
    // As after a plugin's death: the agent waits for the task before it subscribes to events again.
    let mut next = case.bare_plugin(&case.launch()).await?;
    next.configure(&case.options()).await?;
    task.recover(&next).await?;
    let waiting = next.wait_task(task.id());
    ensure!(
        tokio::time::timeout(std::time::Duration::from_millis(100), waiting).await.is_err(),
        "it has ended"
    );
    let mut events = next.events().await?;
    let event = event(&mut events, "Recovered").await?;
    ensure_eq!(event.task_id, task.id());
    ensure!(Path::new("/proc").join(&event.annotations["pid"]).exists(), "{event:?}");
    task.end(&next).await?;
    next.shut_down().await
}
