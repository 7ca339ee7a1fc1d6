//! The processors of a task, while Nomad gives and takes them.

use anyhow::{Context as _, Result, ensure};
use harness::context::agent::{AgentContext, eventually, jobs};
use harness::host::cgroup::processors_of;

use super::{Case, named_cases};

pub const CASES: &[(&str, Case)] = named_cases![a_task_makes_room_for_one_with_cores_and_gets_them_back,];

const WAITING: &str = "trap 'exit 0' TERM; touch /alloc/data/ready; sleep 1000 & wait";

fn a_task_makes_room_for_one_with_cores_and_gets_them_back(context: &mut AgentContext) -> Result<()> {
    let sharing = context.shell("sharing", WAITING)?;
    context.made(&sharing, "ready")?;
    let pid = context.pid(&sharing)?;
    let before = processors_of(pid)?;
    let with_cores = jobs::SHELL.replace("cpu    = 20", "cores  = 1");
    let image = context.busybox();
    let owning = context.start("owning", &with_cores, &[("image", &image), ("script", WAITING)])?;
    context.made(&owning, "ready")?;
    let own = processors_of(context.pid(&owning)?)?;
    ensure!(own.parse::<u32>().is_ok(), "one core is {own:?}");
    let after = processors_of(pid)?;
    ensure!(after != before && after != own, "with {own} taken, {before} became {after}");
    let mut seen = String::new();
    eventually("an exec beside it", || {
        let output = context.exec(&sharing, b"", &["grep", "Cpus_allowed_list", "/proc/self/status"])?;
        seen = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(seen.trim_end().ends_with(&format!("\t{after}")))
    })
    .with_context(|| format!("it has {seen}, and the task {after}"))?;
    context.agent.tell(&["job", "stop", "-detach", "owning"])?;
    eventually("the processors back", || Ok(processors_of(pid)? == before))
}
