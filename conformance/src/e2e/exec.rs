//! `nomad alloc exec`, with and without a terminal.

use std::process::Command;

use anyhow::{Result, ensure};

use super::Case;
use super::stage::{SOON, Stage};
use crate::agent::command::run;

pub const CASES: &[(&str, Case)] = &[
    ("streams_and_exit_code_are_kept_apart", streams),
    ("the_exec_is_in_the_task", inside),
    ("a_megabyte_comes_back_whole", megabyte),
    ("a_command_that_is_not_there_is_127", missing),
    ("a_terminal_has_the_size_of_the_callers", terminal),
];

const SLEEP: &str = "trap 'exit 0' TERM; touch /alloc/data/ready; sleep 1000 & wait";

fn streams(stage: &mut Stage) -> Result<()> {
    let id = stage.shell("exec-streams", SLEEP)?;
    stage.made(&id, "ready")?;
    let output = stage.exec(&id, b"ping\n", &["sh", "-c", "cat; echo oops >&2; exit 9"])?;
    ensure!(output.code == Some(9), "exit code {:?}: {}", output.code, output.stderr());
    ensure!(output.stdout == b"ping\n", "stdout is {:?}", output.stdout());
    ensure!(output.stderr().starts_with("oops\n"), "stderr is {:?}", output.stderr());
    Ok(())
}

fn inside(stage: &mut Stage) -> Result<()> {
    let id = stage.shell("exec-inside", SLEEP)?;
    stage.made(&id, "ready")?;
    let script = "ls /alloc/data; cat /proc/1/comm; cat /app/greeting; echo $NOMAD_TASK_NAME $GREETING";
    let output = stage.exec(&id, b"", &["sh", "-c", script])?;
    ensure!(output.code == Some(0), "exit code {:?}: {}", output.code, output.stderr());
    let expected = "ready\nsh\nhello from the image\nmain hello\n";
    ensure!(output.stdout() == expected, "stdout is {:?}", output.stdout());
    Ok(())
}

fn megabyte(stage: &mut Stage) -> Result<()> {
    let id = stage.shell("exec-megabyte", SLEEP)?;
    stage.made(&id, "ready")?;
    let output = stage.exec(&id, b"", &["sh", "-c", "yes | head -c 1048576"])?;
    ensure!(output.code == Some(0), "exit code {:?}: {}", output.code, output.stderr());
    ensure!(output.stdout.len() == 1024 * 1024, "{} bytes came", output.stdout.len());
    Ok(())
}

fn missing(stage: &mut Stage) -> Result<()> {
    let id = stage.shell("exec-missing", SLEEP)?;
    stage.made(&id, "ready")?;
    let output = stage.exec(&id, b"", &["no-such-command"])?;
    ensure!(output.code == Some(127), "exit code {:?}: {}", output.code, output.stderr());
    ensure!(output.stderr().contains("no-such-command"), "stderr is {:?}", output.stderr());
    Ok(())
}

fn terminal(stage: &mut Stage) -> Result<()> {
    let id = stage.shell("exec-terminal", SLEEP)?;
    stage.made(&id, "ready")?;
    let nomad = stage.agent.nomad(&[]);
    let program = nomad.get_program().to_string_lossy().into_owned();
    // `script` lends a terminal to a command line.
    let inner = "tty; sleep 0.5; stty size; exit 4";
    let line =
        format!("stty cols 101 rows 37; exec '{program}' alloc exec -i -t -task main {id} sh -c '{inner}'");
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.envs(nomad.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = run(&mut command, b"", SOON)?;
    let text = output.stdout();
    ensure!(output.code == Some(4), "exit code {:?}: {text}", output.code);
    ensure!(text.contains("/dev/pts/"), "no terminal: {text:?}");
    ensure!(text.contains("37 101"), "another size: {text:?}");
    Ok(())
}
