//! Commands with a terminal.

use anyhow::{Context, Result, ensure};
use harness::context::CaseContext;
use harness::host::exec::{data_of, end_of_stdin, size_of};
use harness::host::{Exec, Plugin};
use harness::task::LIMIT;

use crate::case::skip;
use crate::cases::support::commands::{shell, sleeper};
use crate::cases::support::{cases, ensure_eq};

cases!["exec terminal":
    a_terminal_has_the_size_that_it_was_given,
    a_size_that_comes_first_is_there_at_the_first_look,
    of_many_sizes_the_last_counts_and_none_does_harm,
    a_resize_reaches_the_command,
    without_a_terminal_there_is_none,
    both_streams_come_in_one_and_the_code_after_them,
    what_is_typed_is_seen_and_read,
    what_is_typed_before_the_start_is_read,
    the_end_of_the_input_is_a_character,
    the_first_process_ends_it,
    a_terminal_takes_resizes_while_its_command_does_not_read,
];

async fn a_terminal_has_the_size_that_it_was_given(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    // The input may overtake a size.
    let script = "echo up; until [ \"$(stty size)\" = '33 77' ]; do sleep 0.05; done 2>/dev/null; tty >&2; [ -t 0 ] && exit 4";
    let mut exec = shell(plugin, &task, script, true).await?;
    exec.stdout_to_contain("up", LIMIT).await?;
    exec.resize(10, 20).await?;
    exec.resize(33, 77).await?;
    let output = exec.finish(LIMIT).await?;
    ensure!(output.stdout_text().starts_with("up\r\n/dev/pts/"), "it said {:?}", output.stdout_text());
    ensure_eq!((output.stderr.len(), output.code()?), (0, 4));
    task.end(plugin).await
}

async fn a_size_that_comes_first_is_there_at_the_first_look(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let programs = case.programs();
    if programs.is_crun() || programs.is_youki() || programs.is_gvisor() {
        return skip("it sets a terminal's size beside the command, which may look before");
    }
    let task = sleeper(case, plugin).await?;
    for _ in 0..5 {
        let sizes = vec![size_of(50, 40), size_of(43, 132)];
        let exec = Exec::open_saying(plugin, task.id(), &["stty", "size"], true, sizes).await?;
        let output = exec.finish(LIMIT).await?;
        ensure_eq!((output.stdout_text().as_str(), output.code()?), ("43 132\r\n", 0));
    }
    task.end(plugin).await
}

async fn of_many_sizes_the_last_counts_and_none_does_harm(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let mut sizes: Vec<_> = (1..200).map(|size| size_of(size, 2 * size)).collect();
    // Impossible sizes of a terminal.
    sizes.push(size_of(-1, 5));
    sizes.push(size_of(61, 62));
    sizes.push(data_of(b"\n"));
    let script = "read x; until [ \"$(stty size)\" = '61 62' ]; do sleep 0.05; done; echo right; exit 3";
    let exec = Exec::open_saying(plugin, task.id(), &["sh", "-c", script], true, sizes).await?;
    let output = exec.finish(LIMIT).await?;
    ensure_eq!((output.stdout_text().as_str(), output.code()?), ("\r\nright\r\n", 3));
    task.end(plugin).await
}

async fn a_resize_reaches_the_command(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let script = "trap 'stty size; exit 6' WINCH; echo up; while :; do sleep 0.05; done";
    let mut exec =
        Exec::open_saying(plugin, task.id(), &["sh", "-c", script], true, vec![size_of(5, 6)]).await?;
    exec.stdout_to_contain("up", LIMIT).await?;
    exec.resize(21, 22).await?;
    let output = exec.finish(LIMIT).await?;
    ensure_eq!((output.stdout_text().as_str(), output.code()?), ("up\r\n21 22\r\n", 6));
    task.end(plugin).await
}

async fn without_a_terminal_there_is_none(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let exec = shell(plugin, &task, "stty size", false).await?;
    // A resize has no effect then.
    exec.resize(5, 5).await?;
    let output = exec.finish(LIMIT).await?;
    let text = output.stderr_text();
    let known = ["stty: standard input: Inappropriate ioctl for device\n"];
    ensure!(known.contains(&text.replace('\'', "").as_str()), "it said {text:?}");
    ensure_eq!((output.stdout.len(), output.code()?), (0, 1));
    task.end(plugin).await
}

async fn both_streams_come_in_one_and_the_code_after_them(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let script = "echo to stdout; echo to stderr >&2; exit 43";
    let output = shell(plugin, &task, script, true).await?.finish(LIMIT).await?;
    ensure_eq!(output.stdout_text().as_str(), "to stdout\r\nto stderr\r\n");
    ensure_eq!((output.stderr.len(), output.code()?), (0, 43));
    // The command waits for one line after each that it writes.
    let mut exec = shell(plugin, &task, "for n in 1 2 3; do echo $n; read go; done; exit 0", true).await?;
    for line in ["1\r\n", "2\r\n", "3\r\n"] {
        exec.stdout_to_contain(line, LIMIT).await?;
        exec.stdin(b"\n").await?;
    }
    ensure_eq!(exec.finish(LIMIT).await?.code()?, 0);
    task.end(plugin).await
}

async fn what_is_typed_is_seen_and_read(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let mut exec = shell(plugin, &task, "echo up; head -n1", true).await?;
    exec.stdout_to_contain("up\r\n", LIMIT).await?;
    exec.stdin(b"a line\n").await?;
    let output = exec.finish(LIMIT).await?;
    // The line appears twice: as the terminal's echo, and as the command's output.
    ensure_eq!((output.stdout_text().as_str(), output.code()?), ("up\r\na line\r\na line\r\n", 0));
    task.end(plugin).await
}

async fn what_is_typed_before_the_start_is_read(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let early = vec![size_of(50, 40), size_of(100, 100), data_of(b"early\n")];
    let exec = Exec::open_saying(plugin, task.id(), &["head", "-n1"], true, early).await?;
    let output = exec.finish(LIMIT).await?;
    ensure_eq!((output.stdout_text().as_str(), output.code()?), ("early\r\nearly\r\n", 0));
    task.end(plugin).await
}

async fn the_end_of_the_input_is_a_character(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let early = vec![data_of(b"typed\n"), end_of_stdin()];
    let exec = Exec::open_saying(plugin, task.id(), &["sh", "-c", "cat; echo over"], true, early).await?;
    let output = exec.finish(LIMIT).await?;
    ensure_eq!(output.code()?, 0);
    ensure!(output.stdout_text().ends_with("typed\r\nover\r\n"), "it said {:?}", output.stdout_text());
    task.end(plugin).await
}

/// The session ends with the command's first process, as with docker: processes that it left in the background lose the
/// terminal, and are not waited for.
async fn the_first_process_ends_it(case: &CaseContext, plugin: &Plugin) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let before = task.alloc.cgroup.pids().len();
    let script = "(( sleep 900; echo from behind ) & ); echo from the first; exec sleep 0.2";
    let output = shell(plugin, &task, script, true).await?.finish(LIMIT).await?;
    ensure_eq!((output.stdout_text().as_str(), output.code()?), ("from the first\r\n", 0));
    task.processes_become(before).await.context("the terminal's end is that of its processes")?;
    task.end(plugin).await
}

async fn a_terminal_takes_resizes_while_its_command_does_not_read(
    case: &CaseContext,
    plugin: &Plugin,
) -> Result<()> {
    let task = sleeper(case, plugin).await?;
    let script = "stty -echo raw; trap 'stty size; exit 6' WINCH; echo up; while :; do sleep 0.05; done";
    let mut exec =
        Exec::open_saying(plugin, task.id(), &["sh", "-c", script], true, vec![size_of(5, 6)]).await?;
    exec.stdout_to_contain("up", LIMIT).await?;
    // The input is more than the pipe and the terminal hold.
    for _ in 0..10 {
        exec.stdin(&[b'x'; 40_000]).await?;
    }
    exec.resize(31, 32).await?;
    exec.stdout_to_contain("31 32", LIMIT).await?;
    ensure_eq!(exec.finish(LIMIT).await?.code()?, 6);
    task.end(plugin).await
}
