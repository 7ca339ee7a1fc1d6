//! Measures start, exec and stop of a task under a real Nomad agent, side by side with `ctr` doing the same on the
//! same containerd.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};
use harness::agent::command::run_well;
use harness::context::agent::{AgentContext, SOON, eventually, jobs};
use harness::environment::TestEnvironment;
use harness::interrupt;
use harness::processes;

use super::ctr::{Pulled, ctr, image};
use super::table::{Call, Path, Table};
use super::{Findings, Session};

/// The script that both run. It reports that it runs by a file, and exits at once on SIGTERM.
const SCRIPT: &str = "trap 'exit 0' TERM; touch /alloc/data/begun; sleep 1000 & wait";
/// The option without seccomp. The driver's default is a profile, which `ctr` and most drivers don't give a task.
const NO_PROFILE: &str = "seccomp = false";
/// The calls whose times a round yields, in that order.
const CALLS: [Call; 4] = [Call::Start, Call::Stop, Call::Removal, Call::ExecCommand];

pub(crate) fn measure(session: &Session<'_>, findings: &mut Findings) -> Result<()> {
    let Some(nomad) = session.nomad else {
        findings.not_measured.push("start, stop and exec under an agent: no --nomad".to_owned());
        return Ok(());
    };
    let _pulled = Pulled::pull(session.environment)?;
    let mut context = AgentContext::on(session.environment, nomad, session.plugin)?;
    // The first round pulls the image, and isn't counted.
    driver_round(&mut context, "first", "")?;
    let _ = ctr_round(session.environment, "first")?;
    for round in 0..session.rounds {
        let mut collectors = [
            ("nomad", Path::Agent, Path::AgentNoProfile),
            ("driver", Path::AgentOwnLogs, Path::AgentOwnLogsNoProfile),
        ];
        if round % 2 == 1 {
            collectors.reverse();
        }
        for (collector, path, without_profile) in collectors {
            interrupt::check()?;
            if context.agent.collects_logs_by() != collector {
                context.agent.collect_logs_by(collector)?;
                // The first start of a new plugin differs from the others, and isn't counted.
                driver_round(&mut context, &format!("{collector}-{round}"), "")?;
            }
            record(&mut findings.table, path, &driver_round(&mut context, &format!("{round}"), ""));
            let plain = driver_round(&mut context, &format!("plain-{round}"), NO_PROFILE);
            record(&mut findings.table, without_profile, &plain);
            context.clear()?;
        }
        record(&mut findings.table, Path::Ctr, &ctr_round(session.environment, &format!("{round}")));
        let version = run_well(&mut context.agent.nomad(&["version"]), b"", SOON).map(|output| output.took);
        findings.table.record(Call::ExecCommand, Path::AgentIdle, version);
    }
    Ok(())
}

/// Records a round. A round that failed counts as a failure of each of its calls.
fn record(table: &mut Table, path: Path, round: &Result<[Duration; 4]>) {
    let failed = round.as_ref().err().map(|error| format!("{error:#}"));
    for (index, call) in CALLS.into_iter().enumerate() {
        let outcome = round.as_ref().map(|times| times[index]);
        let outcome = outcome.map_err(|_| anyhow!("{}", failed.as_deref().unwrap_or_default()));
        table.record(call, path, outcome);
    }
}

/// Runs a round under the agent, timed by the agent's own events. `config` is added to the task's `config` block.
fn driver_round(context: &mut AgentContext, round: &str, config: &str) -> Result<[Duration; 4]> {
    let name = format!("measure-{round}");
    let image = context.busybox();
    let variables = [("image", image.as_str()), ("script", SCRIPT), ("kill_timeout", "30s")];
    let id = context.start(&name, &jobs::shell_configured(config), &variables)?;
    context.made(&id, "begun")?;
    let begun = fs::metadata(context.data(&id, "begun"))?.modified()?;
    context.running(&id, "main")?;
    let exec = context.exec(&id, b"", &["true"])?;
    ensure!(exec.code == Some(0), "exec ends with {:?}: {}", exec.code, exec.stderr());
    context.agent.tell(&["job", "stop", "-detach", &name])?;
    let task = context.dead(&id, "main")?;
    let between =
        |from, to| -> Result<_> { Ok(task.event(to)?.at().duration_since(task.event(from)?.at())?) };
    let start = begun.duration_since(task.event("Task Setup")?.at())?;
    Ok([start, between("Killing", "Terminated")?, between("Killing", "Killed")?, exec.took])
}

fn ctr_round(environment: &TestEnvironment, round: &str) -> Result<[Duration; 4]> {
    let id = format!("measure-{round}");
    let directory = environment.directory().join("measure");
    fs::create_dir_all(directory.join("data"))?;
    let mark = directory.join("data/begun");
    let _ = fs::remove_file(&mark);
    let mount = format!("type=bind,src={},dst=/alloc,options=rbind:rw", directory.display());
    let requested = SystemTime::now();
    ctr(environment, &["run", "--detach", "--mount", &mount, &image(environment), &id, "sh", "-c", SCRIPT])?;
    eventually("file of ctr's task", || Ok(mark.exists()))?;
    let start = fs::metadata(&mark)?.modified()?.duration_since(requested)?;
    let begun = Instant::now();
    ctr(environment, &["tasks", "exec", "--exec-id", "true", &id, "true"])?;
    let exec = begun.elapsed();
    let pid = ctr_pid(environment, &id)?;
    let stop = Instant::now();
    ctr(environment, &["tasks", "kill", "--signal", "SIGTERM", &id])?;
    eventually("end of ctr's task", || Ok(!processes::alive(pid)))?;
    let exit = stop.elapsed();
    // The shim may take a moment to notice the exit.
    eventually("deletion of ctr's task", || Ok(ctr(environment, &["tasks", "delete", &id]).is_ok()))?;
    ctr(environment, &["containers", "delete", &id])?;
    Ok([start, exit, stop.elapsed(), exec])
}

fn ctr_pid(environment: &TestEnvironment, id: &str) -> Result<i32> {
    let listing = ctr(environment, &["tasks", "list"])?;
    let line = listing.lines().find(|line| line.starts_with(id)).context("ctr does not list its task")?;
    Ok(line.split_whitespace().nth(1).context("no pid in ctr's list")?.parse()?)
}
