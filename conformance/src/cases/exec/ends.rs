//! The ends of commands: by themselves, with their task, and when their client is slow or goes away.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::exec::{data_of, size_of};
use harness::host::{Exec, Plugin};
use harness::processes::resident_kb;
use harness::task::LIMIT;

use crate::cases::support::commands::{shell, sleeper};
use crate::cases::support::resource_usage::come_back;
use crate::cases::support::scripted::{Scripted, runc};
use crate::cases::support::{NO_SIGPIPE, cases, ensure_eq, not_by_youki, orphans_are_known};

cases!["exec end":
    a_command_killed_by_a_signal_shows_it,
    an_exec_in_a_task_that_has_ended_is_text_and_dockers_code,
    one_in_a_task_that_ends_ends_with_it,
    an_exec_whose_client_leaves_is_killed_with_its_processes,
    an_exec_whose_client_leaves_during_its_start_is_killed,
    an_exec_being_started_when_the_plugin_dies_is_killed_with_its_processes,
    a_client_that_does_not_read_stops_the_command_and_not_the_plugin,
    a_client_that_reads_late_gets_every_byte,
    an_input_that_nobody_reads_stops_nothing_else,
    a_process_in_the_background_does_not_hold_it_up,
];

async fn a_command_killed_by_a_signal_shows_it(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139)] {
        let output = shell(plugin, &task, &format!("kill -{signal} $$"), false).await?.finish(LIMIT).await?;
        ensure_eq!(output.code()?, code);
    }
    task.end(plugin).await
}

/// Nomad's command line tool shows only text and an exit code, so the refusal has to come as these.
async fn an_exec_in_a_task_that_has_ended_is_text_and_dockers_code(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = case.run(plugin, &case.shell("exit 0")).await?;
    task.wait(plugin).await?;
    for tty in [false, true] {
        let output = Exec::open(plugin, task.id(), &["true"], tty).await?.finish(LIMIT).await?;
        ensure_eq!(output.code()?, 1);
        ensure!(output.stderr_text().contains("is not running"), "it said {:?}", output.stderr_text());
    }
    task.destroy(plugin).await
}

async fn one_in_a_task_that_ends_ends_with_it(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let script = "trap '' TERM HUP; echo up; sleep 900; sleep 900";
    let mut execs = [shell(plugin, &task, script, false).await?, shell(plugin, &task, script, true).await?];
    for exec in &mut execs {
        exec.stdout_to_contain("up", LIMIT).await?;
    }
    task.stop(plugin, Duration::ZERO).await?;
    for exec in execs {
        ensure_eq!(exec.finish(LIMIT).await?.code()?, 137);
    }
    task.destroy(plugin).await
}

async fn an_exec_whose_client_leaves_is_killed_with_its_processes(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let before = task.alloc.cgroup.pids().len();
    for tty in [false, true] {
        let orphan = "(sh -c 'trap \"\" HUP; sleep 1234; :' &);";
        let orphan = if orphans_are_known(case, tty) { orphan } else { "" };
        for script in [
            "echo up; exec sleep 1234",
            "trap '' HUP TERM INT; (trap '' HUP; sleep 1234; sleep 1235) & echo up; while :; do sleep 1236; done",
            &format!("trap '' HUP; {orphan} setsid sleep 1235 & echo up; sleep 1236"),
        ] {
            let mut exec = shell(plugin, &task, script, tty).await?;
            exec.stdout_to_contain("up", LIMIT).await?;
            drop(exec);
            task.processes_become(before).await?;
        }
    }
    task.end(plugin).await
}

async fn an_exec_whose_client_leaves_during_its_start_is_killed(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let before = task.alloc.cgroup.pids().len();
    for wait_ms in [0, 1, 3, 8, 15, 25, 40] {
        for tty in [false, true] {
            let early = if tty { vec![size_of(9, 9)] } else { vec![data_of(b"x")] };
            let command = ["sh", "-c", "trap '' HUP TERM; sleep 1234 & sleep 1235; :"];
            let exec = Exec::open_saying(plugin, task.id(), &command, tty, early).await?;
            // The pause is all there is to wait for: the start may be at any of its steps.
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            drop(exec);
        }
    }
    // Starts that are under way finish before this one.
    ensure_eq!(task.exec(plugin, "true").await?.0, 0);
    task.processes_become(before).await?;
    task.end(plugin).await
}

async fn a_client_that_does_not_read_stops_the_command_and_not_the_plugin(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let pid = i32::try_from(plugin.pid())?;
    ensure_eq!(task.exec(plugin, "yes | head -c 3000000").await?.0, 0);
    let before = resident_kb(pid)?;
    let exec = shell(
        plugin,
        &task,
        "n=0; while head -c 65536 /dev/zero; do n=$((n+1)); echo $n >/tmp/n; done",
        false,
    )
    .await?;
    // The command blocks once every buffer on the way is full.
    let written = "cat /tmp/n 2>/dev/null || echo 0";
    let deadline = Instant::now() + LIMIT;
    let mut last = task.exec(plugin, written).await?.1;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = task.exec(plugin, written).await?.1;
        if now == last && now.trim() != "0" {
            break;
        }
        ensure!(Instant::now() < deadline, "the command goes on: {now}");
        last = now;
    }
    let parts: u64 = last.trim().parse()?;
    ensure!(parts < 64, "{parts} times 64 KiB are on the way");
    let grown = resident_kb(pid)?.saturating_sub(before);
    ensure!(grown < 8 * 1024, "the plugin has grown by {grown} kB");
    drop(exec);
    task.end(plugin).await
}

/// The output stays available past the command's end, too: a shim that deletes an exec drops output that it can't pass
/// on within seconds. How much output is in transit when a command ends is not defined, so the sizes make commands end
/// at any point of it.
async fn a_client_that_reads_late_gets_every_byte(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    not_by_youki(case, NO_SIGPIPE)?;
    let task = sleeper(case, plugin).await?;
    let sizes = (1..=24).map(|step| step * 32_000).chain([3_000_000]);
    let mut execs = Vec::new();
    for bytes in sizes {
        let yes = format!("yes 0123456789abcde | head -c {bytes}");
        let script = format!("{yes} >&2 & {yes}; wait; echo >/tmp/{bytes}; exit 7");
        execs.push((bytes, shell(plugin, &task, &script, false).await?));
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure_eq!(task.exec(plugin, "test -e /tmp/32000 && ! test -e /tmp/3000000").await?.0, 0);
    // Reads a little, so that the command goes on and its end is seen, and then nothing again.
    for (_, exec) in &mut execs {
        exec.stdout_to_have(20_000, LIMIT).await?;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    for (bytes, exec) in execs {
        let output = exec.finish(LIMIT).await?;
        ensure_eq!((output.stdout.len(), output.stderr.len(), output.code()?), (bytes, bytes, 7));
        for stream in [output.stdout, output.stderr] {
            ensure!(stream.chunks_exact(16).all(|line| line == b"0123456789abcde\n"), "it is garbled");
        }
    }
    task.end(plugin).await
}

async fn an_input_that_nobody_reads_stops_nothing_else(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let mut exec =
        shell(plugin, &task, "until [ -e /tmp/go ]; do sleep 0.05; done; echo out; exit 8", false).await?;
    let plenty = [b'x'; 60_000];
    // Writes until nobody takes any more.
    while let Ok(sent) = tokio::time::timeout(Duration::from_millis(500), exec.stdin(&plenty)).await {
        sent?;
    }
    ensure_eq!(task.exec(plugin, "touch /tmp/go").await?.0, 0);
    exec.stdout_to_contain("out\n", LIMIT).await?;
    ensure_eq!(exec.finish(LIMIT).await?.code()?, 8);
    task.end(plugin).await
}

async fn a_process_in_the_background_does_not_hold_it_up(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let before = task.alloc.cgroup.pids().len();
    let output = shell(plugin, &task, "sleep 900 & echo out; exit 5", false).await?.finish(LIMIT).await?;
    ensure_eq!((output.stdout_text().as_str(), output.code()?), ("out\n", 5));
    // The process in the background goes on, as after any command that ended well.
    task.processes_become(before + 1).await?;
    task.end(plugin).await
}

/// The shim gives up the start when the plugin dies, and kills the runtime. A process that the runtime has started by
/// then belongs to nobody.
async fn an_exec_being_started_when_the_plugin_dies_is_killed_with_its_processes(
    case: &CaseContext,
) -> Result<()> {
    let scripted = Scripted::new(case)?;
    let (bundles, done) = (case.state_dir().join("nomad"), scripted.directory.join("done"));
    // The runtime is killed at the worst moment: the command runs, and its pid is not written down.
    let cut_off = format!(
        "($real \"$@\"; rm -f {}/*/exec-*.pid; touch {}) & exec sleep 60",
        bundles.display(),
        done.display()
    );
    scripted.runtime_as("cut", &runc("exec", &cut_off))?;
    let mut options = case.options();
    options["oci_runtime"] = serde_json::json!(scripted.directory.join("cut"));
    let mut plugin = case.plugin_as(&case.launch(), &options).await?;
    let task = case.run(&plugin, &case.shell("sleep 600")).await?;
    task.processes_become(1).await?;
    let exec = shell(&plugin, &task, "sleep 901 & setsid sleep 902 & sleep 903; :", false).await?;
    let is_through = || -> Result<()> {
        ensure!(done.exists(), "the runtime is not through");
        Ok(())
    };
    come_back(LIMIT, is_through).await?;
    task.processes_become(5).await?;
    plugin.kill().await?;
    drop(exec);
    let mut next = case.plugin_as(&case.launch(), &case.options()).await?;
    task.recover(&next).await?;
    task.processes_become(1).await?;
    task.end(&next).await?;
    next.shut_down().await
}
