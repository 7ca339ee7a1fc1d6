//! Commands in a running task, streamed and not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{cases, refused, same};
use crate::host::{Exec, Plugin};
use crate::scene::Scene;
use crate::task::{LIMIT, Task};

cases!["exec":
    both_streams_and_the_code_come_apart,
    stdin_goes_in_and_its_end_is_seen,
    a_large_output_arrives_whole,
    heartbeats_and_empty_writes_mean_nothing,
    a_command_that_is_not_there_is_text_and_127,
    a_command_that_can_not_run_is_text_and_126,
    a_terminal_has_the_size_that_it_was_given,
    without_a_terminal_there_is_none,
    an_exec_sees_the_tasks_files_and_environment,
    a_command_killed_by_a_signal_shows_it,
    a_script_check_gets_output_and_code,
    a_script_check_that_takes_too_long_is_called_off,
    an_exec_in_a_task_that_has_ended_is_an_error,
    an_exec_that_the_client_leaves_is_cleaned_up,
    many_execs_at_a_time_and_in_turn_work,
];

async fn sleeper(scene: &Scene) -> Result<(Plugin, Task)> {
    let plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("sleep 600")).await?;
    Ok((plugin, task))
}

async fn leave(mut plugin: Plugin, task: &Task) -> Result<()> {
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn shell(plugin: &Plugin, task: &Task, script: &str, tty: bool) -> Result<Exec> {
    Exec::open(plugin, task.id(), &["/bin/sh", "-c", script], tty).await
}

async fn both_streams_and_the_code_come_apart(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let exec = shell(&plugin, &task, "echo out; echo err >&2; exit 5", false).await?;
    let said = exec.finish(LIMIT).await?;
    same!((said.stdout_text().as_str(), said.stderr_text().as_str()), ("out\n", "err\n"));
    same!(said.code()?, 5);
    leave(plugin, &task).await
}

async fn stdin_goes_in_and_its_end_is_seen(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let mut exec = Exec::open(&plugin, task.id(), &["cat"], false).await?;
    exec.stdin(b"first\n").await?;
    exec.stdout_to_contain("first\n", LIMIT).await?;
    let large = vec![b'x'; 100_000];
    for part in large.chunks(10_000) {
        exec.stdin(part).await?;
    }
    exec.close_stdin().await?;
    let said = exec.finish(LIMIT).await?;
    same!(said.stdout.len(), 6 + large.len());
    same!(said.code()?, 0);
    leave(plugin, &task).await
}

async fn a_large_output_arrives_whole(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let script = "yes 0123456789abcde | head -c 5000000; yes fedcba9876543210 | head -c 1000000 >&2";
    let said = shell(&plugin, &task, script, false).await?.finish(LIMIT).await?;
    same!((said.stdout.len(), said.stderr.len()), (5_000_000, 1_000_000));
    ensure!(said.stdout.chunks_exact(16).all(|line| line == b"0123456789abcde\n"), "stdout is garbled");
    same!(said.code()?, 0);
    leave(plugin, &task).await
}

async fn heartbeats_and_empty_writes_mean_nothing(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let exec = Exec::open(&plugin, task.id(), &["cat"], false).await?;
    exec.heartbeat().await?;
    exec.stdin(b"").await?;
    exec.stdin(b"still ").await?;
    exec.heartbeat().await?;
    exec.stdin(b"open").await?;
    exec.close_stdin().await?;
    let said = exec.finish(LIMIT).await?;
    same!((said.stdout_text().as_str(), said.code()?), ("still open", 0));
    leave(plugin, &task).await
}

async fn a_command_that_is_not_there_is_text_and_127(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    for tty in [false, true] {
        let said = Exec::open(&plugin, task.id(), &["no-such-command"], tty).await?.finish(LIMIT).await?;
        same!(said.code()?, 127);
        let text = said.stdout_text() + &said.stderr_text();
        ensure!(text.contains("no-such-command"), "it said {text:?}");
    }
    // The next one is not harmed by it.
    same!(shell(&plugin, &task, "exit 1", false).await?.finish(LIMIT).await?.code()?, 1);
    leave(plugin, &task).await
}

async fn a_command_that_can_not_run_is_text_and_126(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let said = Exec::open(&plugin, task.id(), &["/app/greeting"], false).await?.finish(LIMIT).await?;
    same!(said.code()?, 126);
    ensure!(said.stderr_text().contains("/app/greeting"), "it said {:?}", said.stderr_text());
    leave(plugin, &task).await
}

async fn a_terminal_has_the_size_that_it_was_given(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let exec = shell(&plugin, &task, "sleep 0.5; stty size; tty >&2; [ -t 0 ] && exit 4", true).await?;
    exec.resize(10, 20).await?;
    exec.resize(33, 77).await?;
    let said = exec.finish(LIMIT).await?;
    ensure!(said.stdout_text().starts_with("33 77\r\n/dev/pts/"), "it said {:?}", said.stdout_text());
    same!((said.stderr.len(), said.code()?), (0, 4));
    leave(plugin, &task).await
}

async fn without_a_terminal_there_is_none(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let said = shell(&plugin, &task, "stty size", false).await?.finish(LIMIT).await?;
    ensure!(said.stderr_text().contains("Inappropriate ioctl"), "it said {:?}", said.stderr_text());
    ensure!(said.code()? != 0, "it ended well");
    leave(plugin, &task).await
}

async fn an_exec_sees_the_tasks_files_and_environment(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let mut task =
        scene.prepare(&plugin, &scene.shell("echo here > /tmp/mark; echo ready; sleep 600; :")).await?;
    task.config.user = "app".to_owned();
    task.config.env.insert("JOB".to_owned(), "yes".to_owned());
    task.start(&plugin).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    let (code, said) =
        task.exec(&plugin, "cat /tmp/mark; echo $JOB $GREETING $HOME; id -un; cat /proc/1/comm").await?;
    same!((code, said.as_str()), (0, "here\nyes hello /home/app\napp\nsh\n"));
    let (_, groups) = task.exec(&plugin, "cat /proc/self/cgroup | grep -c /nomad").await?;
    ensure!(groups.trim().parse::<u32>()? > 0, "an exec is not in the task's group");
    task.end(&plugin).await?;
    plugin.shut_down().await
}

async fn a_command_killed_by_a_signal_shows_it(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let said = shell(&plugin, &task, "kill -KILL $$", false).await?.finish(LIMIT).await?;
    same!(said.code()?, 137);
    leave(plugin, &task).await
}

async fn a_script_check_gets_output_and_code(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    for code in [0, 1, 2] {
        let script = format!("echo out; echo err >&2; exit {code}");
        let answer = plugin.exec_task(task.id(), &["/bin/sh", "-c", &script], LIMIT).await?;
        same!(answer.result.context("no result, which crashes the agent")?.exit_code, code);
        same!((&*answer.stdout, &*answer.stderr), (&b"out\n"[..], &b"err\n"[..]));
    }
    // No timeout at all.
    let answer = plugin.exec_task(task.id(), &["true"], Duration::ZERO).await?;
    same!(answer.result.context("no result")?.exit_code, 0);
    leave(plugin, &task).await
}

async fn a_script_check_that_takes_too_long_is_called_off(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let begun = Instant::now();
    let late = plugin.exec_task(task.id(), &["sleep", "777"], Duration::from_secs(1)).await;
    ensure!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
    // Whatever it is, it must not look like success, or like the plugin's death.
    match late {
        Ok(answer) => {
            ensure!(answer.result.is_some_and(|result| result.exit_code != 0), "it looks like success");
        }
        Err(status) => drop(refused(Err::<(), _>(status), &[])?),
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while task.exec(&plugin, "ps | grep '[s]leep 777'").await?.0 == 0 {
        ensure!(Instant::now() < deadline, "the command runs on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    leave(plugin, &task).await
}

async fn an_exec_in_a_task_that_has_ended_is_an_error(scene: &Scene) -> Result<()> {
    let mut plugin = scene.plugin().await?;
    let task = scene.run(&plugin, &scene.shell("exit 0")).await?;
    task.wait(&plugin).await?;
    refused(plugin.exec_task(task.id(), &["true"], LIMIT).await, &[])?;
    // The command line tool shows text and a code only.
    if let Ok(exec) = Exec::open(&plugin, task.id(), &["true"], false).await {
        let said = exec.finish(LIMIT).await?;
        ensure!(said.code()? != 0 && !said.stderr.is_empty(), "it looks like success");
    }
    task.destroy(&plugin).await?;
    plugin.shut_down().await
}

async fn an_exec_that_the_client_leaves_is_cleaned_up(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    let before = task.alloc.cgroup.pids().len();
    for tty in [false, true] {
        let mut exec = shell(&plugin, &task, "echo up; exec sleep 1234", tty).await?;
        exec.stdout_to_contain("up", LIMIT).await?;
        drop(exec);
    }
    let deadline = Instant::now() + LIMIT;
    while task.alloc.cgroup.pids().len() > before {
        ensure!(Instant::now() < deadline, "what it started runs on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    leave(plugin, &task).await
}

async fn many_execs_at_a_time_and_in_turn_work(scene: &Scene) -> Result<()> {
    let (plugin, task) = sleeper(scene).await?;
    for round in 0..5 {
        let run = |number: i32| {
            let (plugin, task) = (&plugin, &task);
            async move {
                let (code, said) =
                    task.exec(plugin, &format!("echo {round} {number}; exit {number}")).await?;
                same!((code, said), (number, format!("{round} {number}\n")));
                Ok::<_, anyhow::Error>(())
            }
        };
        futures::future::try_join_all((1..=10).map(run)).await?;
    }
    leave(plugin, &task).await
}
