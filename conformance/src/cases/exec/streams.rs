//! Commands in a running task, with their streams: their environment, their privileges, their results.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::context::CaseContext;
use harness::host::exec::{data_of, end_of_stdin};
use harness::host::{Exec, Plugin};
use harness::task::LIMIT;

use crate::cases::support::commands::{shell, sleeper};
use crate::cases::support::{NO_FILTER_FOR_EXECS, NO_SIGPIPE, cases, ensure_eq, not_by_youki};

cases!["exec":
    both_streams_and_the_code_come_apart,
    stdin_goes_in_and_its_end_is_seen,
    a_large_output_arrives_whole,
    heartbeats_and_empty_writes_mean_nothing,
    a_command_that_is_not_there_is_text_and_127,
    a_command_that_can_not_run_is_text_and_126,
    an_exec_sees_the_tasks_files_and_environment,
    an_exec_is_what_the_task_is,
    what_an_exec_writes_is_in_the_task_and_not_on_the_host,
    lines_come_as_they_are_written,
    a_large_output_comes_in_large_messages,
    an_input_that_ends_before_the_start_is_read,
    an_exec_of_a_task_whose_account_files_are_pipes_ends_and_holds_nobody_up,
];

/// Timeout of an exec that may hang, and maximum time of one that waits for nothing.
const SHORT: Duration = Duration::from_secs(3);

async fn both_streams_and_the_code_come_apart(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let exec = shell(plugin, &task, "echo out; echo err >&2; exit 5", false).await?;
    let output = exec.finish(LIMIT).await?;
    ensure_eq!((output.stdout_text().as_str(), output.stderr_text().as_str()), ("out\n", "err\n"));
    ensure_eq!(output.code()?, 5);
    task.end(plugin).await
}

async fn stdin_goes_in_and_its_end_is_seen(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let mut exec = Exec::open(plugin, task.id(), &["cat"], false).await?;
    exec.stdin(b"first\n").await?;
    exec.stdout_to_contain("first\n", LIMIT).await?;
    let large = vec![b'x'; 100_000];
    for part in large.chunks(10_000) {
        exec.stdin(part).await?;
    }
    exec.close_stdin().await?;
    let output = exec.finish(LIMIT).await?;
    ensure_eq!(output.stdout.len(), 6 + large.len());
    ensure_eq!(output.code()?, 0);
    task.end(plugin).await
}

async fn a_large_output_arrives_whole(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    not_by_youki(case, NO_SIGPIPE)?;
    let task = sleeper(case, plugin).await?;
    let script = "yes 0123456789abcde | head -c 5000000; yes fedcba9876543210 | head -c 1000000 >&2";
    let output = shell(plugin, &task, script, false).await?.finish(LIMIT).await?;
    ensure_eq!((output.stdout.len(), output.stderr.len()), (5_000_000, 1_000_000));
    ensure!(output.stdout.chunks_exact(16).all(|line| line == b"0123456789abcde\n"), "stdout is garbled");
    ensure_eq!(output.code()?, 0);
    task.end(plugin).await
}

async fn heartbeats_and_empty_writes_mean_nothing(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let exec = Exec::open(plugin, task.id(), &["cat"], false).await?;
    exec.heartbeat().await?;
    exec.stdin(b"").await?;
    exec.stdin(b"still ").await?;
    exec.heartbeat().await?;
    exec.stdin(b"open").await?;
    exec.close_stdin().await?;
    let output = exec.finish(LIMIT).await?;
    ensure_eq!((output.stdout_text().as_str(), output.code()?), ("still open", 0));
    task.end(plugin).await
}

async fn a_command_that_is_not_there_is_text_and_127(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    for tty in [false, true] {
        let output = Exec::open(plugin, task.id(), &["no-such-command"], tty).await?.finish(LIMIT).await?;
        let text = output.stdout_text() + &output.stderr_text();
        ensure!(
            output.code()? == 127 && text.contains("no-such-command"),
            "{}: it said {text:?}",
            output.code()?
        );
    }
    // Names of commands that look like errors of the runtime make no difference.
    for command in ["is-stopped", "is not running", "container does not exist"] {
        let output = Exec::open(plugin, task.id(), &[command], false).await?.finish(LIMIT).await?;
        ensure_eq!((command, output.code()?), (command, 127));
    }
    // The next exec is not harmed by it.
    ensure_eq!(shell(plugin, &task, "exit 1", false).await?.finish(LIMIT).await?.code()?, 1);
    task.end(plugin).await
}

async fn a_command_that_can_not_run_is_text_and_126(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    // A file that isn't executable, and a directory.
    for command in ["/app/greeting", "/app"] {
        for tty in [false, true] {
            let output = Exec::open(plugin, task.id(), &[command], tty).await?.finish(LIMIT).await?;
            let text = output.stderr_text();
            ensure!(output.code()? == 126 && text.contains(command), "{}: it said {text:?}", output.code()?);
        }
    }
    // The runtime's error would not fit into the pipe to its shim, which does not read before the runtime has ended.
    let long = "x".repeat(100_000);
    let output = Exec::open(plugin, task.id(), &[&long], false).await?.finish(LIMIT).await?;
    ensure_eq!(output.code()?, 126);
    ensure!(output.stderr_text().contains("4095"), "it said {:?}", output.stderr_text());
    task.end(plugin).await
}

async fn an_exec_sees_the_tasks_files_and_environment(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let mut task =
        case.prepare(plugin, &case.shell("echo here > /tmp/mark; echo ready; sleep 600; :")).await?;
    task.config.user = "app".to_owned();
    task.config.env.insert("JOB".to_owned(), "yes".to_owned());
    task.start(plugin).await?;
    task.alloc.stdout.to_contain("ready\n", LIMIT).await?;
    let (code, output) =
        task.exec(plugin, "cat /tmp/mark; echo $JOB $GREETING $HOME; id -un; cat /proc/1/comm").await?;
    ensure_eq!((code, output.as_str()), (0, "here\nyes hello /home/app\napp\nsh\n"));
    let (_, seen) = task.exec(plugin, "cat /proc/self/cgroup").await?;
    ensure!(is_in_nomads_group(&seen), "an exec is not in the task's group: {seen}");
    task.end(plugin).await
}

/// Compares user, groups, capabilities and limits with those of the task's own process, as each reads them itself.
async fn an_exec_is_what_the_task_is(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    not_by_youki(case, NO_FILTER_FOR_EXECS)?;
    let mut task = case.prepare(plugin, &case.shell("exec sleep 600")).await?;
    task.config.user = "app".to_owned();
    task.start(plugin).await?;
    let root = case.run(plugin, &case.shell("exec sleep 600")).await?;
    // Older runc races with its Go runtime, which may raise the soft limit of open files to the hard one (runc's issue
    // 4195).
    let limits = match case.programs().is_crun() {
        true => "cat /proc/PID/limits",
        false => "sed 's/^\\(Max open files *\\)[0-9]*/\\1/' /proc/PID/limits",
    };
    // The cgroups are those in which the runtime has put the process; cpusets are Nomad's own.
    let look = format!(
        "egrep '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|Cpus_allowed|Mems_allowed):' /proc/PID/status; {limits}; \
         cat /proc/PID/oom_score_adj; readlink /proc/PID/cwd; grep -v cpuset /proc/PID/cgroup; \
         for n in mnt pid net ipc uts cgroup user; do readlink /proc/PID/ns/$n; done"
    );
    let (of_first, of_own) = (look.replace("PID", "1"), look.replace("PID", "self"));
    let script = format!(
        "({of_first}) >/tmp/first 2>&1; ({of_own}) >/tmp/own 2>&1; cat /tmp/first; echo; cat /tmp/own; cmp /tmp/first /tmp/own"
    );
    // The shim in Rust can lose a terminal's last output.
    let with_terminal = !case.programs().is_rust_shim();
    for (task, groups) in [(&task, Some("1000 2000")), (&root, None)] {
        for tty in [false, true].into_iter().filter(|tty| with_terminal || !tty) {
            let output = shell(plugin, task, &script, tty).await?.finish(LIMIT).await?;
            let text = output.stdout_text();
            ensure!(output.code()? == 0, "with a terminal: {tty}: {text} {}", output.stderr_text());
            for word in ["Uid:", "CapEff:", "Max open files", ":/", "user:["] {
                ensure!(text.matches(word).count() > 1, "no {word:?} of both in {text}");
            }
        }
        if let Some(groups) = groups {
            let (_, output) = task.exec(plugin, "id -u; id -G; echo $HOME").await?;
            ensure_eq!(output.as_str(), format!("1000\n{groups}\n/home/app\n"));
        }
    }
    root.end(plugin).await?;
    task.end(plugin).await
}

/// Returns whether this content of `/proc/self/cgroup` shows Nomad's group. On v2 a task sees its own group as the
/// root, and another one as beside it.
fn is_in_nomads_group(seen: &str) -> bool {
    if harness::host::cgroup::is_v2() {
        seen == "0::/\n"
    } else {
        seen.lines().any(|line| line.contains(":freezer:/nomad/"))
    }
}

async fn what_an_exec_writes_is_in_the_task_and_not_on_the_host(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let script = "file=$(mktemp) && echo $file && echo 'from inside' >$file";
    let output = shell(plugin, &task, script, false).await?.finish(LIMIT).await?;
    ensure_eq!(output.code()?, 0);
    let file = output.stdout_text().trim().to_owned();
    ensure!(!std::path::Path::new(&file).exists(), "{file:?} is on the host");
    let output = Exec::open(plugin, task.id(), &["cat", &file], false).await?.finish(LIMIT).await?;
    ensure_eq!((output.stdout_text().as_str(), output.code()?), ("from inside\n", 0));
    let output =
        Exec::open(plugin, task.id(), &["cat", "/proc/self/cgroup"], false).await?.finish(LIMIT).await?;
    let groups = output.stdout_text();
    ensure!(is_in_nomads_group(&groups), "it is in {groups}");
    task.end(plugin).await
}

async fn lines_come_as_they_are_written(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let mut exec = shell(plugin, &task, "for n in 1 2 3; do echo $n; read go; done", false).await?;
    for line in ["1\n", "2\n", "3\n"] {
        exec.stdout_to_contain(line, LIMIT).await?;
        exec.stdin(b"go\n").await?;
    }
    let output = exec.finish(LIMIT).await?;
    ensure_eq!((output.stdout_text().as_str(), output.code()?), ("1\n2\n3\n", 0));
    task.end(plugin).await
}

async fn a_large_output_comes_in_large_messages(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let bytes = 20_000_000;
    let script = format!("head -c {bytes} /dev/zero");
    let output = shell(plugin, &task, &script, false).await?.finish(LIMIT).await?;
    ensure_eq!((output.stdout.len(), output.code()?), (bytes, 0));
    ensure!(output.largest <= 64 * 1024, "a message of {} bytes", output.largest);
    let average = bytes / output.messages;
    ensure!(average > 4 * 1024, "{} messages of {average} bytes on average", output.messages);
    task.end(plugin).await
}

async fn an_input_that_ends_before_the_start_is_read(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    for early in [vec![end_of_stdin()], vec![data_of(b"early "), data_of(b"bird"), end_of_stdin()]] {
        let text = if early.len() == 1 { "" } else { "early bird" };
        let exec = Exec::open_saying(plugin, task.id(), &["cat"], false, early).await?;
        // Input after the end is ignored.
        let _ = exec.stdin(b"late").await;
        let output = exec.finish(LIMIT).await?;
        ensure_eq!((output.stdout_text().as_str(), output.code()?), (text, 0));
    }
    task.end(plugin).await
}

/// A runtime may read the task's own account files to find the user of an exec, and then blocks until somebody writes
/// to a pipe there.
async fn an_exec_of_a_task_whose_account_files_are_pipes_ends_and_holds_nobody_up(
    case: &CaseContext,
) -> Result<()> {
    // An old shim starts one command after the other, of all tasks that it has.
    let mut plugin = case.with_own_shims().plugin().await?;
    ends_and_holds_nobody_up(case, &plugin).await?;
    plugin.shut_down().await
}

async fn ends_and_holds_nobody_up(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let other = sleeper(case, plugin).await?;
    let script = "rm -f /etc/passwd /etc/group; mkfifo /etc/passwd /etc/group; echo up; exec sleep 600";
    for user in ["", "root"] {
        let mut task = case.prepare(plugin, &case.shell(script)).await?;
        task.config.user = user.to_owned();
        task.start(plugin).await?;
        task.alloc.stdout.to_contain("up\n", LIMIT).await?;
        let streamed = async {
            let output = shell(plugin, &task, "echo out", false).await?.finish(LIMIT).await?;
            output.code()
        };
        let unary = plugin.exec_task(task.id(), &["/bin/true"], SHORT);
        let others = async {
            tokio::time::sleep(SHORT).await;
            let began = Instant::now();
            ensure_eq!(other.exec(plugin, "echo here").await?, (0, "here\n".to_owned()));
            ensure!(began.elapsed() < SHORT, "another task's exec took {:?}", began.elapsed());
            task.end(plugin).await
        };
        let (streamed, unary, others) = tokio::join!(streamed, unary, others);
        others?;
        // The runtime decides whether the exec was cut off: some don't read these files.
        streamed?;
        if let Err(status) = unary {
            // The end of the task may have met the runtime, or its process in the task, first.
            let met = ["exited", "executing setns process", "namespace path"]
                .map(|word| status.message().contains(word));
            ensure!(met.contains(&true), "{status}");
        }
        ensure_eq!(task.alloc.cgroup.pids(), Vec::<i32>::new());
    }
    other.end(plugin).await?;
    case.nothing_left()
}
