//! A task's output arrives whole.

use std::fs;

use anyhow::{Result, ensure};
use harness::context::agent::{AgentContext, jobs};

use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    a_megabyte_on_each_stream_arrives_whole,
    output_of_a_task_of_ten_milliseconds_is_logged,
    output_of_many_short_tasks_is_logged,
    a_task_whose_logs_are_off_runs,
];

const MEGABYTE: usize = 1024 * 1024;

fn a_megabyte_on_each_stream_arrives_whole(context: &mut AgentContext) -> Result<()> {
    let script = "yes stdout | head -c 1048576; yes stderr | head -c 1048576 >&2";
    let id = context.shell("megabyte", script)?;
    context.dead(&id, "main")?;
    for (name, stderr) in [("stdout", false), ("stderr", true)] {
        let expected: Vec<u8> = format!("{name}\n").bytes().cycle().take(MEGABYTE).collect();
        let log = context.log(&id, "main", stderr)?;
        ensure!(log == expected, "{} bytes of {name} came through the agent", log.len());
        let file = context.agent.allocation_directory(&id).join(format!("alloc/logs/main.{name}.0"));
        let on_disk = fs::read(&file)?;
        ensure!(on_disk == expected, "{} bytes of {name} are in {}", on_disk.len(), file.display());
    }
    Ok(())
}

fn output_of_a_task_of_ten_milliseconds_is_logged(context: &mut AgentContext) -> Result<()> {
    // The output is as much as a pipe holds: the task needn't wait for its reader.
    let script = "yes out | head -c 60000; yes err | head -c 60000 >&2";
    let id = context.shell("short", script)?;
    context.dead(&id, "main")?;
    let lengths = (context.log(&id, "main", false)?.len(), context.log(&id, "main", true)?.len());
    ensure!(lengths == (60000, 60000), "{lengths:?} bytes came");
    Ok(())
}

fn output_of_many_short_tasks_is_logged(context: &mut AgentContext) -> Result<()> {
    let image = context.busybox();
    let variables = [("image", image.as_str()), ("script", "echo out; echo err >&2"), ("count", "10")];
    context.submit("many", jobs::SHELL, &variables)?;
    let ids = context.allocations("many", 10)?;
    for id in ids {
        context.dead(&id, "main")?;
        let (out, err) = (context.log(&id, "main", false)?, context.log(&id, "main", true)?);
        ensure!(out == b"out\n" && err == b"err\n", "{} and {} bytes came", out.len(), err.len());
    }
    Ok(())
}

fn a_task_whose_logs_are_off_runs(context: &mut AgentContext) -> Result<()> {
    let hcl = jobs::SHELL
        .replace("      resources {", "      logs {\n        disabled = true\n      }\n\n      resources {");
    let image = context.busybox();
    let script = "yes | head -c 200000; yes | head -c 200000 >&2; exit 5";
    let id = context.start("logs-off", &hcl, &[("image", &image), ("script", script)])?;
    let ended = context.dead(&id, "main")?.ended()?;
    ensure!(ended.exit_code == 5, "it ended as {ended:?}");
    let file = context.agent.allocation_directory(&id).join("alloc/logs/main.stdout.0");
    ensure!(!file.exists(), "{} was written", file.display());
    Ok(())
}
