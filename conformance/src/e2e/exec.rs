//! `nomad alloc exec`, with and without a terminal, and the scripts that Nomad itself runs in a task.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use harness::agent::command::{Output, run};
use harness::context::agent::{AgentContext, SOON, eventually, jobs};
use harness::leaks::inspect;

use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    streams_and_exit_code_are_kept_apart,
    the_exec_is_in_the_task,
    a_megabyte_comes_back_whole,
    a_command_that_is_not_there_is_127,
    a_terminal_has_the_size_of_the_callers,
    without_a_terminal_it_does_what_nomad_asks_of_drivers,
    with_a_terminal_it_does_what_nomad_asks_of_drivers,
    what_it_writes_is_in_the_task_and_not_on_the_host,
    a_templates_script_runs_in_the_task_when_a_variable_changes,
    a_caller_that_is_killed_takes_its_command_along,
];

const SLEEP: &str = "trap 'exit 0' TERM; touch /alloc/data/ready; sleep 1000 & wait";

/// Starts a task that takes commands.
fn sleeper(context: &mut AgentContext, name: &str) -> Result<String> {
    let id = context.shell(name, SLEEP)?;
    context.made(&id, "ready")?;
    // The agent may hear of the start later than the script can tell of it, and refuses a command until then.
    context.running(&id, "main")?;
    Ok(id)
}

fn streams_and_exit_code_are_kept_apart(context: &mut AgentContext) -> Result<()> {
    let id = sleeper(context, "exec-streams")?;
    let output = context.exec(&id, b"ping\n", &["sh", "-c", "cat; echo oops >&2; exit 9"])?;
    ensure!(output.code == Some(9), "exit code {:?}: {}", output.code, output.stderr());
    ensure!(output.stdout == b"ping\n", "stdout is {:?}", output.stdout());
    ensure!(output.stderr().starts_with("oops\n"), "stderr is {:?}", output.stderr());
    Ok(())
}

fn the_exec_is_in_the_task(context: &mut AgentContext) -> Result<()> {
    let id = sleeper(context, "exec-inside")?;
    let script = "ls /alloc/data; cat /proc/1/comm; cat /app/greeting; echo $NOMAD_TASK_NAME $GREETING";
    let output = context.exec(&id, b"", &["sh", "-c", script])?;
    ensure!(output.code == Some(0), "exit code {:?}: {}", output.code, output.stderr());
    let expected = "ready\nsh\nhello from the image\nmain hello\n";
    ensure!(output.stdout() == expected, "stdout is {:?}", output.stdout());
    Ok(())
}

fn a_megabyte_comes_back_whole(context: &mut AgentContext) -> Result<()> {
    let id = sleeper(context, "exec-megabyte")?;
    let output = context.exec(&id, b"", &["sh", "-c", "yes | head -c 1048576"])?;
    ensure!(output.code == Some(0), "exit code {:?}: {}", output.code, output.stderr());
    ensure!(output.stdout.len() == 1024 * 1024, "{} bytes came", output.stdout.len());
    Ok(())
}

fn a_command_that_is_not_there_is_127(context: &mut AgentContext) -> Result<()> {
    let id = sleeper(context, "exec-missing")?;
    let output = context.exec(&id, b"", &["no-such-command"])?;
    ensure!(output.code == Some(127), "exit code {:?}: {}", output.code, output.stderr());
    ensure!(output.stderr().contains("no-such-command"), "stderr is {:?}", output.stderr());
    Ok(())
}

/// Runs `nomad alloc exec` in a terminal of 37 lines and 101 columns, which `script` provides.
fn exec_in_terminal(context: &AgentContext, id: &str, stdin: &[u8], inner: &str) -> Result<Output> {
    let nomad = context.agent.nomad(&[]);
    let program = nomad.get_program().to_string_lossy().into_owned();
    let line =
        format!("stty cols 101 rows 37; exec '{program}' alloc exec -i -t -task main {id} sh -c '{inner}'");
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.envs(nomad.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(&mut command, stdin, SOON)
}

fn a_terminal_has_the_size_of_the_callers(context: &mut AgentContext) -> Result<()> {
    let id = sleeper(context, "exec-terminal")?;
    let output = exec_in_terminal(context, &id, b"", "tty; sleep 0.5; stty size; exit 4")?;
    let text = output.stdout();
    ensure!(output.code == Some(4), "exit code {:?}: {text}", output.code);
    ensure!(text.contains("/dev/pts/"), "no terminal: {text:?}");
    ensure!(text.contains("37 101"), "another size: {text:?}");
    Ok(())
}

/// The expectations are those of Nomad's own tests of drivers (`plugins/drivers/testutils`).
fn without_a_terminal_it_does_what_nomad_asks_of_drivers(context: &mut AgentContext) -> Result<()> {
    let id = sleeper(context, "exec-plain")?;
    for (script, stdin, code, stdout, stderr) in [
        ("echo one; echo two >&2; exit 43", "", 43, "one\n", "two\n"),
        ("for n in 1 2 3; do echo $n; sleep 0.2; done", "", 0, "1\n2\n3\n", ""),
        ("stty size", "", 1, "", "stty: standard input: Inappropriate ioctl for device\n"),
        ("echo from the command; head -n1", "from stdin\n", 0, "from the command\nfrom stdin\n", ""),
    ] {
        let output = context.exec(&id, stdin.as_bytes(), &["sh", "-c", script])?;
        ensure!(output.code == Some(code), "{script}: exit code {:?}: {}", output.code, output.stderr());
        ensure!(output.stdout() == stdout, "{script}: stdout is {:?}", output.stdout());
        // Nomad's command line tool adds a line of its own about an exit code.
        ensure!(output.stderr().starts_with(stderr), "{script}: stderr is {:?}", output.stderr());
    }
    Ok(())
}

fn with_a_terminal_it_does_what_nomad_asks_of_drivers(context: &mut AgentContext) -> Result<()> {
    let id = sleeper(context, "exec-typed")?;
    for (script, stdin, code, stdout) in [
        ("echo one; echo two >&2; exit 43", "", 43, "one\r\ntwo\r\n"),
        ("for n in 1 2 3; do echo $n; sleep 0.2; done", "", 0, "1\r\n2\r\n3\r\n"),
        ("sleep 0.3; stty size", "", 0, "37 101\r\n"),
        ("(( sleep 20; echo behind ) & ); echo first; exec sleep 0.3", "", 0, "first\r\n"),
        // The line appears twice: as the terminal's echo, and as the command's output.
        ("head -n1", "typed\n", 0, "typed\r\ntyped\r\n"),
    ] {
        let output = exec_in_terminal(context, &id, stdin.as_bytes(), script)?;
        // `script` types the end of its own input somewhere in between.
        let text = output.stdout().replace("^@", "").replace("^D", "").replace('\u{8}', "");
        ensure!(output.code == Some(code), "{script}: exit code {:?}: {text}", output.code);
        ensure!(text.contains(stdout) && !text.contains("behind"), "{script}: it says {text:?}");
    }
    Ok(())
}

fn what_it_writes_is_in_the_task_and_not_on_the_host(context: &mut AgentContext) -> Result<()> {
    let id = sleeper(context, "exec-isolation")?;
    let script = "file=$(mktemp) && echo inside >$file && echo $file";
    let file = context.exec(&id, b"", &["sh", "-c", script])?.stdout().trim().to_owned();
    ensure!(!file.is_empty() && !std::path::Path::new(&file).exists(), "{file:?} is on the host");
    let content = context.exec(&id, b"", &["cat", &file])?.stdout();
    ensure!(content == "inside\n", "{file} has {content:?}");
    let groups = context.exec(&id, b"", &["cat", "/proc/self/cgroup"])?.stdout();
    // On v2 the exec sees its own cgroup as the root.
    let is_nomads = groups.contains(":freezer:/nomad") || groups == "0::/\n";
    ensure!(is_nomads, "it is in {groups}");
    Ok(())
}

/// The command has to write, since the agent notices that its caller is gone only when it passes something on.
fn a_caller_that_is_killed_takes_its_command_along(context: &mut AgentContext) -> Result<()> {
    let id = sleeper(context, "exec-killed")?;
    let is_of_command = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        ["sleep 900", "sleep 901", "echo on"].iter().any(|words| line.contains(words))
    };
    let left = || inspect::pids_in(&format!("{id}.main")).iter().filter(|pid| is_of_command(pid)).count();
    let script = "trap \"\" HUP TERM; sleep 900 & setsid sleep 901 & touch /alloc/data/up; \
                  while :; do echo on; sleep 0.2; done";
    let mut command =
        context.agent.nomad(&["alloc", "exec", "-i", "-t=false", "-task", "main", &id, "sh", "-c", script]);
    // The input is a pipe that stays open.
    let mut caller = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let up = context.made(&id, "up");
    let running = left();
    caller.kill().context("kill nomad alloc exec")?;
    caller.wait()?;
    up?;
    ensure!(running >= 3, "{running} processes of the command");
    eventually("end of the command", || Ok(left() == 0))
}

fn a_templates_script_runs_in_the_task_when_a_variable_changes(context: &mut AgentContext) -> Result<()> {
    let name = "exec-script";
    let path = format!("nomad/jobs/{name}");
    let say = |context: &AgentContext, word: &str| {
        context
            .agent
            .tell(&["var", "put", "-force", "-out", "none", &path, &format!("word={word}")])
            .map(drop)
    };
    say(context, "one")?;
    let image = context.busybox();
    let id = context.start(name, jobs::SCRIPT, &[("image", &image)])?;
    context.made(&id, "ready")?;
    ensure!(!context.data(&id, "one").exists(), "the script ran without a change");
    say(context, "two")?;
    context.made(&id, "two")?;
    eventually("word of the script", || {
        let task = context.agent.allocation(&id)?.task("main");
        Ok(task.events().iter().any(|event| event.display_message.contains("successfully ran script")))
    })?;
    let wrote = fs::read_to_string(context.data(&id, "two"))?;
    ensure!(wrote == "two: hello from the image\n", "the script wrote {wrote:?}");
    // The script's exit code counts, too.
    say(context, "bad")?;
    let task = context.dead(&id, "main")?;
    let reported = task.events().iter().any(|event| event.display_message.contains("exited with code: 1"));
    ensure!(reported && task.failed, "no event reports the end of the script: {:?}", task.events());
    context.agent.tell(&["var", "purge", &path]).map(drop)
}
