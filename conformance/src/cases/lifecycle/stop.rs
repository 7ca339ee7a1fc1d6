//! Stopping a task and signalling it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tonic::Code;

use crate::cases::support::processes::shim_pid;
use crate::cases::support::scripted::{Scripted, runc};
use crate::cases::support::{NO_REAL_TIME, cases, ensure_eq, not_by_youki, refused};

cases!["stop":
    a_task_that_heeds_the_signal_is_stopped_when_it_ends,
    a_task_that_ignores_the_signal_is_killed_at_the_timeout,
    the_jobs_own_signal_is_sent,
    the_images_signal_is_sent_where_the_job_has_none,
    signals_go_by_all_their_names_and_numbers,
    several_stops_at_once_all_return_at_the_end,
    a_stop_by_a_signal_that_does_not_exist_is_one_by_sigterm,
    a_stop_by_nomads_no_signal_kills_at_the_timeout,
    a_task_that_has_ended_can_be_stopped,
    a_stop_that_is_called_off_goes_on_with_the_next,
    all_processes_of_the_task_end_with_it,
    a_signal_reaches_the_task,
    a_signal_that_does_not_exist_is_refused_by_name,
    a_task_that_has_ended_takes_no_signal_and_nothing_breaks,
    a_task_among_the_hosts_processes_ends_with_all_of_its_own,
    a_task_among_the_hosts_processes_is_killed_with_all_of_its_own,
    a_task_whose_shim_hangs_is_killed_at_the_timeout,
    a_signal_whose_runtime_is_killed_is_sent_again,
];

/// The kernel kills runtimes for want of memory, as well as tasks.
async fn a_signal_whose_runtime_is_killed_is_sent_again(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    let once = scripted.directory.join("once");
    let killed_once = format!("[ -e {0} ] || {{ touch {0}; kill -9 $$; }}", once.display());
    scripted.runtime_as("killed", &runc("kill", &killed_once))?;
    let mut options = case.with_own_shims().options();
    options["oci_runtime"] = json!(scripted.directory.join("killed"));
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = listener(case, &plugin).await?;
    task.stop(&plugin, PATIENT).await?;
    ensure!(once.exists(), "the runtime sent no signal");
    ensure_eq!(task.wait(&plugin).await?.exit_code, 3);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, b"ready\ngot TERM\n");
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

/// Longer than any case may take: a stop that waits for it has not seen the task end.
const PATIENT: Duration = Duration::from_secs(90);

/// Starts a shell that prints each signal's name, and exits with code 3 at all but USR2.
async fn listener(case: &CaseContext, plugin: &Plugin) -> Result<Task> {
    let script = "for s in TERM HUP USR1 USR2 INT; do trap \"echo got $s; [ $s = USR2 ] || exit 3\" $s; done; \
                  echo ready; while :; do sleep 600 & wait $!; done";
    let task = case.run(plugin, &case.shell(script)).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    Ok(task)
}

async fn a_task_that_heeds_the_signal_is_stopped_when_it_ends(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = listener(case, plugin).await?;
    let begun = Instant::now();
    task.stop(plugin, PATIENT).await?;
    ensure!(begun.elapsed() < LIMIT, "the stop took {:?}", begun.elapsed());
    ensure_eq!(task.wait(plugin).await?.exit_code, 3);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, b"ready\ngot TERM\n");
    task.destroy(plugin).await
}

async fn a_task_that_ignores_the_signal_is_killed_at_the_timeout(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("trap '' TERM; echo ready; sleep 600; sleep 600")).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    let begun = Instant::now();
    task.stop(plugin, Duration::from_secs(1)).await?;
    ensure!(begun.elapsed() >= Duration::from_secs(1), "killed after {:?}", begun.elapsed());
    let exit = task.wait(plugin).await?;
    ensure_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, false));
    task.destroy(plugin).await
}

async fn the_jobs_own_signal_is_sent(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = listener(case, plugin).await?;
    plugin.stop_task(task.id(), PATIENT, "SIGUSR1").await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 3);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, b"ready\ngot USR1\n");
    task.destroy(plugin).await
}

async fn the_images_signal_is_sent_where_the_job_has_none(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    not_by_youki(case, NO_REAL_TIME)?;
    let script = "trap 'echo its own; exit 4' 36; trap 'echo USR1; exit 5' USR1; echo ready; \
                  while :; do sleep 600 & wait $!; done";
    let mut config = case.shell(script);
    config["image"] = json!(case.image("styled:stop-signal"));
    // A signal of real time, which gVisor doesn't know.
    let of_images = if case.programs().is_gvisor() { 143 } else { 4 };
    for (signal, code) in [("", of_images), ("SIGUSR1", 5)] {
        let task = case.run(plugin, &config).await?;
        task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
        plugin.stop_task(task.id(), PATIENT, signal).await?;
        ensure_eq!(task.wait(plugin).await?.exit_code, code);
        task.destroy(plugin).await?;
    }
    Ok(())
}

async fn signals_go_by_all_their_names_and_numbers(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    not_by_youki(case, NO_REAL_TIME)?;
    let script = "for n in 1 2 10 12 15 28 29 34 36 64; do trap \"echo got $n\" $n; done; echo ready; \
                  while :; do sleep 600 & wait $!; done";
    let task = case.run(plugin, &case.shell(script)).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    for (name, number) in [
        ("SIGHUP", 1),
        ("int", 2),
        ("USR1", 10),
        ("12", 12),
        ("sigterm", 15),
        ("SIGWINCH", 28),
        ("SIGPOLL", 29),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+2", 36),
        ("RTMAX", 64),
    ] {
        if number > 31 && case.programs().is_gvisor() {
            refused(plugin.signal_task(task.id(), name).await, &["unknown signal"])?;
            continue;
        }
        plugin.signal_task(task.id(), name).await?;
        let seen = task.alloc.stdout.to_contain(&format!("got {number}\n"), LIMIT).await;
        seen.with_context(|| name.to_owned())?;
    }
    task.end(plugin).await
}

async fn several_stops_at_once_all_return_at_the_end(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("trap '' TERM; echo ready; sleep 600; sleep 600")).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    // The shortest timeout counts for all of them.
    let stops = [PATIENT, Duration::from_millis(300), PATIENT, Duration::from_secs(60)];
    let stops = stops.map(|timeout| plugin.stop_task(task.id(), timeout, ""));
    let all = tokio::time::timeout(LIMIT, futures::future::try_join_all(stops)).await;
    all.context("not all stops have returned")??;
    ensure_eq!(task.wait(plugin).await?.signal, 9);
    task.destroy(plugin).await
}

/// A job with such a signal can be stopped nevertheless: the agent would repeat a refused stop, and give up.
async fn a_stop_by_a_signal_that_does_not_exist_is_one_by_sigterm(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = listener(case, plugin).await?;
    plugin.stop_task(task.id(), PATIENT, "SIGSTOPPLEASE").await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 3);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, b"ready\ngot TERM\n");
    let log = plugin.log().all().join("\n");
    ensure!(log.contains("SIGSTOPPLEASE") && log.contains("SIGTERM"), "not said in {log}");
    task.destroy(plugin).await
}

/// SIGNULL is in the list of signals by which Nomad checks a job.
async fn a_stop_by_nomads_no_signal_kills_at_the_timeout(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = listener(case, plugin).await?;
    let begun = Instant::now();
    plugin.stop_task(task.id(), Duration::from_secs(1), "SIGNULL").await?;
    ensure!(begun.elapsed() >= Duration::from_secs(1), "killed after {:?}", begun.elapsed());
    ensure_eq!(task.wait(plugin).await?.signal, 9);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, b"ready\n");
    task.destroy(plugin).await
}

async fn a_task_that_has_ended_can_be_stopped(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("exit 2")).await?;
    task.wait(plugin).await?;
    task.stop(plugin, PATIENT).await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 2);
    task.destroy(plugin).await?;
    task.stop(plugin, PATIENT).await?;
    Ok(())
}

async fn a_stop_that_is_called_off_goes_on_with_the_next(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("trap '' TERM; echo ready; sleep 600; sleep 600")).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    let called_off = plugin.stop_task(task.id(), PATIENT, "");
    let _ = tokio::time::timeout(Duration::from_millis(100), called_off).await;
    task.stop(plugin, Duration::ZERO).await?;
    ensure_eq!(task.wait(plugin).await?.signal, 9);
    task.destroy(plugin).await
}

async fn all_processes_of_the_task_end_with_it(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let script = "for i in 1 2 3 4 5; do (trap '' TERM HUP; sleep 600) & done; setsid sleep 600 & trap 'exit 0' TERM; \
                  echo ready; wait";
    let task = case.run(plugin, &case.shell(script)).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    ensure!(task.alloc.cgroup.pids().len() > 5, "only {:?} run", task.alloc.cgroup.pids());
    task.stop(plugin, PATIENT).await?;
    ensure_eq!(task.wait_for_all(plugin).await?, (0, 0));
    task.destroy(plugin).await
}

async fn a_signal_reaches_the_task(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = listener(case, plugin).await?;
    plugin.signal_task(task.id(), "SIGUSR2").await?;
    task.alloc.stdout.to_contain("got USR2\n", LIMIT).await?;
    plugin.signal_task(task.id(), "SIGHUP").await?;
    ensure_eq!(task.wait(plugin).await?.exit_code, 3);
    ensure_eq!(task.alloc.stdout.to_end(LIMIT).await?, b"ready\ngot USR2\ngot HUP\n");
    task.destroy(plugin).await
}

async fn a_signal_that_does_not_exist_is_refused_by_name(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("sleep 600")).await?;
    let status = refused(plugin.signal_task(task.id(), "SIGNOPE").await, &["SIGNOPE"])?;
    ensure_eq!(status.code(), Code::InvalidArgument);
    task.end(plugin).await
}

async fn a_task_that_has_ended_takes_no_signal_and_nothing_breaks(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("exit 2")).await?;
    task.wait(plugin).await?;
    // Either answer will do, as long as it doesn't look like the plugin's death.
    if let Err(status) = plugin.signal_task(task.id(), "SIGHUP").await {
        refused(Err::<(), _>(status), &[])?;
    }
    ensure_eq!(task.wait(plugin).await?.exit_code, 2);
    task.destroy(plugin).await
}

/// Script that starts more processes than the shim of containerd 1.6 can kill without locking up, none of which ends by
/// itself.
const HORDE: &str = "[ $$ -gt 1 ] || exit 9; i=0; while [ $i -lt 60 ]; do (trap '' TERM HUP; exec sleep 600) & i=$((i+1)); \
                     done; setsid sleep 600 &";

async fn a_task_among_the_hosts_processes_ends_with_all_of_its_own(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let script = format!("{HORDE} echo ready; while [ ! -e /alloc/data/end ]; do sleep 0.1; done; exit 3");
    let mut config = case.shell(&script);
    config["pid_mode"] = json!("host");
    let task = case.run(plugin, &config).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    ensure!(task.alloc.cgroup.pids().len() > 60, "only {:?} run", task.alloc.cgroup.pids());
    let (code, seen) = task.exec(plugin, &format!("cat /proc/{}/comm", plugin.pid())).await?;
    ensure!(code == 0 && seen.starts_with("containerd"), "the plugin's process is not seen: {seen}");
    std::fs::write(task.alloc.directory.join("alloc/data/end"), "")?;
    ensure_eq!(task.wait_for_all(plugin).await?, (3, 0));
    task.destroy(plugin).await
}

async fn a_task_among_the_hosts_processes_is_killed_with_all_of_its_own(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let mut config = case.shell(&format!("trap '' TERM; {HORDE} echo ready; sleep 600; sleep 600"));
    config["pid_mode"] = json!("host");
    for by_destroy in [false, true] {
        let task = case.run(plugin, &config).await?;
        task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
        if by_destroy {
            task.end(plugin).await?;
        } else {
            task.stop(plugin, Duration::from_millis(200)).await?;
            ensure_eq!(task.wait(plugin).await?.signal, 9);
        }
        ensure_eq!(task.alloc.cgroup.pids(), Vec::<i32>::new());
        if !by_destroy {
            task.destroy(plugin).await?;
        }
    }
    Ok(())
}

async fn a_task_whose_shim_hangs_is_killed_at_the_timeout(case: &CaseContext) -> Result<()> {
    let mut plugin = case.with_own_shims().plugin().await?;
    let task = listener(case, &plugin).await?;
    kill(shim_pid(case)?, Signal::SIGSTOP)?;
    // The task never gets the signal that it would heed.
    task.stop(&plugin, Duration::from_secs(1)).await?;
    ensure_eq!(task.wait_for_all(&plugin).await?, (137, 9));
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}
