//! Commands that run to their end without input: scripts of checks and of templates.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::context::CaseContext;
use harness::host::Plugin;
use harness::task::{LIMIT, Task};

use crate::cases::support::commands::{SCRIPTS_WITH_CHILDREN, shell, sleeper};
use crate::cases::support::scripted::{Scripted, runc};
use crate::cases::support::{cases, ensure_eq, orphans_are_known, refused, until};

cases!["script check":
    a_script_returns_output_and_code,
    long_output_is_cut_and_marked,
    a_script_that_is_not_there_is_critical_and_says_why,
    one_that_takes_too_long_is_called_off,
    its_time_counts_from_when_it_runs_however_long_its_start_takes,
    at_its_timeout_all_that_it_started_is_killed,
    at_its_timeout_nameless_and_forking_processes_are_killed,
    at_its_timeout_what_runs_from_other_execs_lives_on,
    one_that_leaves_something_in_the_background_ends,
    one_whose_caller_goes_away_is_killed,
    a_script_whose_pipes_cannot_be_made_is_refused_and_the_next_runs,
    a_script_in_a_task_that_has_ended_is_refused,
];

/// The codes are those that Consul knows: passing, warning, critical.
async fn a_script_returns_output_and_code(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    for code in [0, 1, 2] {
        let script = format!("echo out; echo err >&2; exit {code}");
        let answer = plugin.exec_task(task.id(), &["/bin/sh", "-c", &script], LIMIT).await?;
        ensure_eq!(answer.result.context("no result, which crashes the agent")?.exit_code, code);
        ensure_eq!((&*answer.stdout, &*answer.stderr), (&b"out\n"[..], &b"err\n"[..]));
    }
    // A timeout of zero is none, and the input is at its end.
    let answer = plugin.exec_task(task.id(), &["cat"], Duration::ZERO).await?;
    ensure_eq!(answer.result.context("no result")?.exit_code, 0);
    task.end(plugin).await
}

async fn long_output_is_cut_and_marked(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let script = "yes | head -c 3000000; yes no | head -c 2000000 >&2; exit 1";
    let answer = plugin.exec_task(task.id(), &["sh", "-c", script], LIMIT).await?;
    ensure_eq!(answer.result.context("no result")?.exit_code, 1);
    for output in [&answer.stdout, &answer.stderr] {
        ensure_eq!(output.len(), 1024 * 1024);
        ensure!(String::from_utf8_lossy(output).contains("cut"), "it doesn't say that it was cut");
    }
    task.end(plugin).await
}

async fn a_script_that_is_not_there_is_critical_and_says_why(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    for (command, code) in [("/no/such/script", 127), ("no-such-script", 127), ("/app/greeting", 126)] {
        let answer = plugin.exec_task(task.id(), &[command], LIMIT).await?;
        ensure_eq!(answer.result.context("no result")?.exit_code, code);
        let output = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(output.contains(command), "it said {output:?}");
    }
    task.end(plugin).await
}

/// Runs a script into its timeout, and returns the refusal's text. The refusal must not look like success, or like the
/// plugin's death.
async fn run_out_of_time(plugin: &Plugin, task: &Task, script: &str) -> Result<String> {
    let begun = Instant::now();
    let late = plugin.exec_task(task.id(), &["sh", "-c", script], Duration::from_secs(1)).await;
    ensure!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
    let text = refused(late, &["within 1s"])?.message().to_owned();
    if text.contains("starting") {
        bail!("the time counts from when it runs: {text}");
    }
    Ok(text)
}

async fn one_that_takes_too_long_is_called_off(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let before = task.alloc.cgroup.pids();
    let text = run_out_of_time(plugin, &task, "echo so far; echo so bad >&2; exec sleep 777").await?;
    // Nomad shows the error and nothing else.
    ensure!(text.contains("so far") && text.contains("so bad"), "what it wrote is lost: {text}");
    ensure_eq!(task.alloc.cgroup.pids(), before);
    task.end(plugin).await
}

async fn its_time_counts_from_when_it_runs_however_long_its_start_takes(case: &CaseContext) -> Result<()> {
    let scripted = Scripted::new(case)?;
    scripted.runtime_as("slow", &runc("exec", "sleep 4; exec $real \"$@\""))?;
    let mut options = case.options();
    options["oci_runtime"] = serde_json::json!(scripted.directory.join("slow"));
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    let (begun, limit) = (Instant::now(), Duration::from_secs(3));
    let answer = plugin.exec_task(task.id(), &["echo", "in time"], limit).await?;
    ensure_eq!((answer.result.context("no result")?.exit_code, &*answer.stdout), (0, &b"in time\n"[..]));
    ensure!(begun.elapsed() > limit, "its start was not held up");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn at_its_timeout_all_that_it_started_is_killed(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    // The task's init adopts orphans and reaps them.
    let task = case.run(plugin, &case.shell("while :; do sleep 0.1 & wait; done")).await?;
    let ours = || pids_of(&task, "77[0-9]");
    // The first process is gone, and its children hold its streams.
    let gone = "(trap '' TERM; sleep 777; sleep 778) & exit 0";
    for script in SCRIPTS_WITH_CHILDREN.into_iter().chain([gone]) {
        if script.starts_with('(') && !orphans_are_known(case, false) {
            continue;
        }
        if script.ends_with("exit 0") {
            let _ = plugin.exec_task(task.id(), &["sh", "-c", script], Duration::from_millis(1)).await;
        } else {
            run_out_of_time(plugin, &task, script).await.with_context(|| script.to_owned())?;
        }
        ensure_eq!((script, ours()), (script, Vec::<i32>::new()));
    }
    task.end(plugin).await
}

/// Returns the task's processes whose command line has `sleep` and a number of this form.
fn pids_of(task: &Task, digits: &str) -> Vec<i32> {
    let prefix = digits.trim_end_matches("[0-9]");
    let is_ours = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&format!("sleep\0{prefix}"))
    };
    task.alloc.cgroup.pids().into_iter().filter(is_ours).collect()
}

async fn at_its_timeout_nameless_and_forking_processes_are_killed(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let before = task.alloc.cgroup.pids();
    // A process name that isn't text, and more processes than are held at a time.
    let script =
        "printf 'caf\\303' > /proc/$$/comm; i=0; while [ $i -lt 300 ]; do sleep 600 & i=$((i+1)); done; wait";
    run_out_of_time(plugin, &task, script).await?;
    ensure_eq!(task.alloc.cgroup.pids(), before);
    task.end(plugin).await
}

async fn at_its_timeout_what_runs_from_other_execs_lives_on(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    // An exec that has ended well and left a daemon, and one that still runs.
    let (code, _) = task.exec(plugin, "setsid sleep 551 >/dev/null 2>&1 </dev/null &").await?;
    ensure_eq!(code, 0);
    let mut other = shell(plugin, &task, "echo up; sleep 552; echo after", false).await?;
    other.stdout_to_contain("up", LIMIT).await?;
    until(LIMIT, "both of them", || pids_of(&task, "55[0-9]").len() == 2).await?;
    let before = pids_of(&task, "55[0-9]");
    run_out_of_time(plugin, &task, "sleep 777").await?;
    ensure_eq!(pids_of(&task, "55[0-9]"), before);
    drop(other);
    task.end(plugin).await
}

async fn one_that_leaves_something_in_the_background_ends(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let answer = plugin.exec_task(task.id(), &["sh", "-c", "sleep 777 & echo done; exit 3"], LIMIT).await?;
    ensure_eq!((answer.result.context("no result")?.exit_code, &*answer.stdout), (3, &b"done\n"[..]));
    until(LIMIT, "what it left", || pids_of(&task, "77[0-9]").len() == 1).await?;
    task.end(plugin).await
}

async fn one_whose_caller_goes_away_is_killed(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let before = task.alloc.cgroup.pids().len();
    let orphan = if orphans_are_known(case, false) { "(sleep 777 &);" } else { "" };
    let script = format!("trap '' TERM HUP; {orphan} echo up >/tmp/up; sleep 778; sleep 779");
    let command = ["sh", "-c", &script];
    tokio::select! {
        answer = plugin.exec_task(task.id(), &command, Duration::ZERO) => bail!("it ended: {answer:?}"),
        up = until_there(plugin, &task, "/tmp/up") => up?,
    }
    task.processes_become(before).await?;
    task.end(plugin).await
}

async fn until_there(plugin: &Plugin, task: &Task, file: &str) -> Result<()> {
    let script = format!("until [ -e {file} ]; do sleep 0.02; done");
    ensure_eq!(task.exec(plugin, &script).await?.0, 0);
    Ok(())
}

async fn a_script_whose_pipes_cannot_be_made_is_refused_and_the_next_runs(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let bundle = case.bundle()?;
    let (pipes, away) = (bundle.join("io"), bundle.join("away"));
    std::fs::rename(&pipes, &away)?;
    refused(plugin.exec_task(task.id(), &["true"], LIMIT).await, &["create the pipe", task.id()])?;
    std::fs::rename(&away, &pipes)?;
    ensure_eq!(task.exec(plugin, "echo well").await?, (0, "well\n".to_owned()));
    task.end(plugin).await
}

async fn a_script_in_a_task_that_has_ended_is_refused(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = case.run(plugin, &case.shell("exit 0")).await?;
    task.wait(plugin).await?;
    refused(plugin.exec_task(task.id(), &["true"], LIMIT).await, &["is not running", task.id()])?;
    task.destroy(plugin).await
}
