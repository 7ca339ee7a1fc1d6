//! Output that the driver collects arrives whole, and Nomad's own ways to read it see no difference.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Result, ensure};
use harness::context::agent::{AgentContext, eventually, jobs};

use super::support::kill_plugin;
use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![
    nomad_reads_what_the_driver_wrote_by_all_its_flags,
    a_follower_sees_all_of_it_over_many_files,
    nothing_is_lost_when_agent_and_plugin_die_in_the_middle,
    output_written_while_all_was_down_is_there,
];

/// Returns a job whose log files hold 64 KiB each, and of which enough are kept that none is lost.
fn rotating() -> String {
    jobs::shell_configured("logging {\n max_files = 1000\n max_file_size = \"64k\"\n }")
}

fn start(context: &mut AgentContext, name: &str, script: &str) -> Result<String> {
    context.agent.collect_logs_by("driver")?;
    let image = context.busybox();
    context.start(name, &rotating(), &[("image", &image), ("script", script)])
}

fn lines(count: usize) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

fn is_whole(what: &str, got: &[u8], wanted: &str) -> Result<()> {
    let differs = got.iter().zip(wanted.as_bytes()).position(|(a, b)| a != b);
    let (came, all) = (got.len(), wanted.len());
    ensure!(got == wanted.as_bytes(), "{what}: {came} of {all} bytes came, alike up to {differs:?}");
    Ok(())
}

fn files(context: &AgentContext, id: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(context.agent.allocation_directory(id).join("alloc/logs"))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn nomad_reads_what_the_driver_wrote_by_all_its_flags(context: &mut AgentContext) -> Result<()> {
    let id = start(context, "collected", "seq 100000; seq 1000 >&2; sleep 600")?;
    context.running(&id, "main")?;
    context.logged(&id, "main", "\n100000\n")?;
    ensure!(context.agent.collectors().is_empty(), "Nomad has started a collector");
    is_whole("stdout", &context.log(&id, "main", false)?, &lines(100_000))?;
    is_whole("stderr", &context.log(&id, "main", true)?, &lines(1000))?;
    let ask = |flags: &[&str]| -> Result<String> {
        let words = [&["alloc", "logs"], flags, &[&id, "main"]].concat();
        Ok(context.agent.tell(&words)?.stdout())
    };
    ensure!(ask(&["-tail", "-n", "2"])? == "99999\n100000\n", "{:?}", ask(&["-tail", "-n", "2"])?);
    // The tail begins before the last file.
    is_whole(
        "the end",
        ask(&["-tail", "-c", "150000"])?.as_bytes(),
        &lines(100_000)[lines(100_000).len() - 150_000..],
    )?;
    let names = files(context, &id)?;
    ensure!(names.len() > lines(100_000).len().div_ceil(64 << 10), "the files are {names:?}");
    ensure!(
        !names.iter().any(|name| name.display().to_string().contains("fifo")),
        "there are pipes: {names:?}"
    );
    Ok(())
}

fn a_follower_sees_all_of_it_over_many_files(context: &mut AgentContext) -> Result<()> {
    let script =
        "until [ -e /alloc/data/go ]; do sleep 0.1; done; for i in $(seq 20); do seq 5000; sleep 0.1; done";
    let id = start(context, "followed", script)?;
    context.running(&id, "main")?;
    let seen = context.environment.directory().join("followed");
    let mut follower = context.agent.nomad(&["alloc", "logs", "-f", &id, "main"]);
    let mut follower = follower.stdin(Stdio::null()).stdout(File::create(&seen)?).spawn()?;
    fs::write(context.data(&id, "go"), b"")?;
    let wanted = lines(5000).repeat(20);
    let all = eventually("all of it", || Ok(fs::metadata(&seen)?.len() >= wanted.len() as u64));
    // The follower would go on beyond the task's end.
    follower.kill()?;
    follower.wait()?;
    let came = fs::read(&seen)?;
    fs::remove_file(&seen)?;
    is_whole("what was followed", &came, &wanted)?;
    all?;
    context.dead(&id, "main").map(drop)
}

fn nothing_is_lost_when_agent_and_plugin_die_in_the_middle(context: &mut AgentContext) -> Result<()> {
    let script = "for i in $(seq 60); do seq 20000; sleep 0.05; done";
    let id = start(context, "interrupted", script)?;
    context.running(&id, "main")?;
    kill_plugin(context)?;
    eventually("new plugin", || Ok(context.agent.plugin().is_ok()))?;
    context.agent.stop()?;
    context.agent.launch()?;
    context.agent.kill();
    kill_plugin(context)?;
    context.agent.launch()?;
    let task = context.dead(&id, "main")?;
    ensure!(task.ended()?.exit_code == 0 && task.restarts == 0, "{:?}", task.ended()?);
    is_whole("stdout", &context.log(&id, "main", false)?, &lines(20000).repeat(60))
}

fn output_written_while_all_was_down_is_there(context: &mut AgentContext) -> Result<()> {
    let script = "echo before; until [ -e /alloc/data/go ]; do sleep 0.1; done; seq 50000; touch /alloc/data/done; exit 9";
    let id = start(context, "said-last", script)?;
    context.running(&id, "main")?;
    context.logged(&id, "main", "before\n")?;
    context.agent.stop()?;
    fs::write(context.data(&id, "go"), b"")?;
    eventually("end of the task", || Ok(context.data(&id, "done").exists()))?;
    context.agent.launch()?;
    let task = context.dead(&id, "main")?;
    ensure!(task.ended()?.exit_code == 9, "it ended as {:?}", task.ended()?);
    is_whole("stdout", &context.log(&id, "main", false)?, &format!("before\n{}", lines(50000)))
}
