//! Checks of what depends on a machine with systemd. Each check ends with the machine as it was before it.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use harness::agent::DRIVER;
use harness::fixture::process::output_of;
use harness::processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::REDIS;
use super::site::Site;
use super::units::{AGENT, CONTAINERD, change_agent, main_process, property, systemctl};
use crate::demo::{self, StepPrinter};
use crate::e2e::support::still_works;

/// The cgroup of the shims.
const SHIMS: &str = "/nomad.slice/shims.slice";

pub type Check = (&'static str, Box<dyn Fn(&mut Site) -> Result<()> + Send>);

/// Returns all checks but the reboot, which comes before them.
pub fn all() -> Vec<Check> {
    vec![
        ("main job: redis is started, asked, its log read, and stopped", Box::new(main_job)),
        ("main job: statistics, an exec and a signal", Box::new(calls_succeed)),
        ("agent: with KillMode=process a task goes on over its restart", Box::new(restarted_process)),
        (
            "agent: with KillMode=control-group a task goes on over its restart",
            Box::new(restarted_control_group),
        ),
        (
            "agent: with KillMode=control-group a task outlives the stop of the unit, which has no memory of its shim's",
            Box::new(stopped_control_group),
        ),
        ("containerd: a task goes on over its restart", Box::new(containerd_restarted)),
        ("plugin: a task goes on when it is killed", Box::new(plugin_killed)),
        ("cgroups: a task is in nomad.slice, its shim in the slice of the shims", Box::new(usual_cgroups)),
        (
            "cgroups: with Delegate=yes the task, its limits and its shim stay in nomad.slice",
            Box::new(delegated),
        ),
        ("oom: under runc the shim alone is protected", Box::new(|site| scores(site, "", -998))),
        ("oom: under crun the shim has its task's score", Box::new(|site| scores(site, "crun", 0))),
        ("apparmor: a task runs, unconfined", Box::new(unconfined)),
        ("apparmor: a task and its execs are confined by the profile that the job names", Box::new(confined)),
        (
            "apparmor: by the plugin's option a task and its execs have the driver's profile, which is loaded anew",
            Box::new(confined_by_default),
        ),
    ]
}

fn main_job(site: &mut Site) -> Result<()> {
    demo::redis(&StepPrinter::begin(), &site.client, REDIS, &mut Vec::new())
}

fn calls_succeed(site: &mut Site) -> Result<()> {
    let (id, pid) = site.start("asked", "")?;
    let mut seen = serde_json::Value::Null;
    site.client
        .eventually("use of memory", || {
            seen = site.client.usage(&id)?;
            let number = |path: &str| seen.pointer(path).and_then(serde_json::Value::as_u64);
            Ok(number("/MemoryStats/Usage").is_some_and(|bytes| bytes > 0))
        })
        .with_context(|| format!("the agent has {seen}"))?;
    still_works(&site.client, &id, pid)
}

fn restarted_process(site: &mut Site) -> Result<()> {
    ensure!(property(AGENT, "KillMode")? == "process", "the unit has another KillMode");
    let (id, pid) = site.start("agent-restarted", "")?;
    let shim = processes::parent(pid)?;
    site.restart_agent()?;
    ensure!(processes::parent(pid)? == shim, "the task has another shim");
    still_works(&site.client, &id, pid)
}

fn restarted_control_group(site: &mut Site) -> Result<()> {
    change_agent("KillMode=control-group")?;
    site.restart_agent()?;
    let (id, pid) = site.start("agent-killed", "")?;
    let shim = processes::parent(pid)?;
    site.restart_agent()?;
    ensure!(processes::parent(pid)? == shim, "the task has another shim");
    let allocation = site.client.allocation(&id)?;
    ensure!(allocation.task("main").count("Started") == 1, "{}", allocation.summary());
    still_works(&site.client, &id, pid)
}

/// The unit's processes are all that systemd would end, and its memory all that it would limit.
fn stopped_control_group(site: &mut Site) -> Result<()> {
    change_agent("KillMode=control-group")?;
    site.restart_agent()?;
    let (id, pid) = site.start("agent-stopped", "")?;
    let shim = processes::parent(pid)?;
    let unit = fs::read_to_string(format!("/sys/fs/cgroup/system.slice/{AGENT}/cgroup.procs"))?;
    ensure!(!unit.lines().any(|line| line == shim.to_string()), "the shim is in the unit: {unit}");
    let (charged, resident) = memory_of_shims()?;
    ensure!(charged >= resident, "of {resident} bytes of the shims {charged} are in their cgroup");
    systemctl(&["stop", AGENT])?;
    ensure!(processes::alive(shim) && processes::alive(pid), "the task has ended with the unit");
    systemctl(&["start", AGENT])?;
    site.wait_ready()?;
    ensure!(processes::parent(pid)? == shim, "the task has another shim");
    println!("  shims have {resident} bytes of their own, their cgroup {charged}");
    still_works(&site.client, &id, pid)
}

/// Returns the anonymous memory in bytes that is charged to the shims' cgroup, and that of all shims: each has been charged
/// to the cgroup that its owner was in then.
fn memory_of_shims() -> Result<(u64, u64)> {
    let of = |file: &str, key: &str| -> Result<u64> {
        let text = fs::read_to_string(file)?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .with_context(|| format!("no {key} in {file}"))?;
        Ok(value.trim().trim_end_matches(" kB").parse::<u64>()?)
    };
    let directory = format!("/sys/fs/cgroup{SHIMS}");
    let mut resident = 0;
    for pid in fs::read_to_string(format!("{directory}/cgroup.procs"))?.lines() {
        resident += of(&format!("/proc/{pid}/status"), "RssAnon:")? * 1024;
    }
    Ok((of(&format!("{directory}/memory.stat"), "anon ")?, resident))
}

fn containerd_restarted(site: &mut Site) -> Result<()> {
    let (id, pid) = site.start("containerd-restarted", "")?;
    let before = main_process(CONTAINERD)?;
    systemctl(&["restart", CONTAINERD])?;
    ensure!(main_process(CONTAINERD)? != before, "containerd goes on as process {before}");
    ensure!(site.client.exec(&id, b"", &["true"])?.code == Some(0), "an exec fails");
    site.client.driver_becomes(true)?;
    still_works(&site.client, &id, pid)
}

fn plugin_killed(site: &mut Site) -> Result<()> {
    let (id, pid) = site.start("plugin-killed", "")?;
    let plugin = site.plugin()?;
    kill(Pid::from_raw(plugin), Signal::SIGKILL)?;
    site.client.eventually("another plugin", || Ok(site.plugin().is_ok_and(|now| now != plugin)))?;
    still_works(&site.client, &id, pid)
}

/// Returns the path of a process' cgroup of version 2.
fn cgroup(pid: i32) -> Result<String> {
    let all = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    all.trim().strip_prefix("0::").map(str::to_owned).with_context(|| format!("process {pid} is in {all:?}"))
}

fn usual_cgroups(site: &mut Site) -> Result<()> {
    let (id, pid) = site.start("usual-cgroups", "")?;
    let task = cgroup(pid)?;
    ensure!(task == format!("/nomad.slice/share.slice/{id}.main.scope"), "the task is in {task}");
    let shim = cgroup(processes::parent(pid)?)?;
    ensure!(shim == SHIMS, "the shim is in {shim}");
    still_works(&site.client, &id, pid)
}

/// Nomad makes its slice at the root nevertheless (`client/lib/cgroupslib`, 1.11.3, whatever `cgroup_parent` says), and
/// systemd, which has not made it, leaves it alone.
fn delegated(site: &mut Site) -> Result<()> {
    change_agent("Delegate=yes\nDelegateSubgroup=agent")?;
    site.restart_agent()?;
    let (id, pid) = site.start("delegated", "")?;
    let task = cgroup(pid)?;
    ensure!(task == format!("/nomad.slice/share.slice/{id}.main.scope"), "the task is in {task}");
    let shim = cgroup(processes::parent(pid)?)?;
    ensure!(shim == SHIMS, "the shim is in {shim}");
    systemctl(&["daemon-reload"])?;
    site.restart_agent()?;
    let limit = fs::read_to_string(format!("/sys/fs/cgroup{task}/memory.max"))?;
    ensure!(limit.trim() == "33554432", "its memory limit is now {limit}");
    still_works(&site.client, &id, pid)
}

/// Returns a process' `oom_score_adj`.
fn score(pid: i32) -> Result<i32> {
    Ok(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().parse()?)
}

/// The unit's own score is -1000, as in Nomad's packages: only the agent and the plugin are to have it.
fn scores(site: &mut Site, runtime: &str, of_shim: i32) -> Result<()> {
    ensure!(score(main_process(AGENT)?)? == -1000, "the agent has another score");
    if !runtime.is_empty() {
        site.use_runtime(runtime)?;
    }
    let (id, pid) = site.start("scores", "")?;
    let (shim, task) = (score(processes::parent(pid)?)?, score(pid)?);
    let exec = site.client.exec(&id, b"", &["cat", "/proc/self/oom_score_adj"])?.stdout();
    ensure!(
        (shim, task, exec.trim()) == (of_shim, 0, "0"),
        "the shim's score is {shim}, the task's {task}, an exec's {}",
        exec.trim()
    );
    still_works(&site.client, &id, pid)
}

/// Returns the AppArmor profile of a process.
fn profile(pid: i32) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/attr/current"))?.trim().to_owned())
}

fn unconfined(site: &mut Site) -> Result<()> {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled")?;
    ensure!(enabled.trim() == "Y", "AppArmor is not on: {enabled}");
    let (id, pid) = site.start("unconfined", "")?;
    // Debian's profile `runc` limits nothing, and processes started under it are shown with its name.
    let seen = profile(pid)?;
    ensure!(["unconfined", "runc (unconfined)"].contains(&&*seen), "the task is confined by {seen:?}");
    println!("  the task is {seen}");
    still_works(&site.client, &id, pid)
}

const PROFILE: &str = "profile guest-check flags=(attach_disconnected,mediate_deleted) {
  file,
  signal,
  capability,
  deny /etc/group r,
}
";

fn confined(site: &mut Site) -> Result<()> {
    output_of(Command::new("apparmor_parser").arg("--replace"), PROFILE.as_bytes())?;
    let (id, pid) = site.start("confined", "apparmor_profile = \"guest-check\"")?;
    let seen = profile(pid)?;
    ensure!(seen == "guest-check (enforce)", "the task is confined by {seen:?}");
    let exec = |words: &[&str]| site.client.exec(&id, b"", words);
    let profile = exec(&["cat", "/proc/self/attr/current"])?.stdout();
    ensure!(profile.trim() == seen, "an exec is confined by {profile:?}");
    ensure!(exec(&["cat", "/etc/passwd"])?.code == Some(0), "an exec can't read what the profile allows");
    ensure!(exec(&["cat", "/etc/group"])?.code == Some(1), "an exec reads what the profile denies");
    still_works(&site.client, &id, pid)
}

const DEFAULT_PROFILE: &str = "containerd-driver-default";

/// The job's options leave the kernel's settings unmasked and writable, so that only the profile denies a write. The
/// flag no_new_privs allows no change to a profile but from none.
const OPEN: [&str; 2] = ["systempaths=unconfined", "no-new-privileges"];

fn confined_by_default(site: &mut Site) -> Result<()> {
    site.use_options("apparmor = true")?;
    let attribute = format!("driver.{DRIVER}.apparmor_profile");
    site.client.driver_of_until(DRIVER, "the profile on the node", |driver| {
        driver.attributes.iter().flatten().any(|(name, value)| *name == attribute && value == DEFAULT_PROFILE)
    })?;
    let write = ["sh", "-c", ": > /proc/sys/vm/drop_caches"];
    let (id, pid) = site.start("confined-by-default", &security_opt(&OPEN))?;
    let seen = profile(pid)?;
    ensure!(seen == format!("{DEFAULT_PROFILE} (enforce)"), "the task is confined by {seen:?}");
    let exec = site.client.exec(&id, b"", &["cat", "/proc/self/attr/current"])?.stdout();
    ensure!(exec.trim() == seen, "an exec is confined by {exec:?}");
    let denied = site.client.exec(&id, b"", &write)?;
    let words = String::from_utf8_lossy(&denied.stderr);
    ensure!(
        denied.code != Some(0) && words.contains("Permission denied"),
        "an exec that opens a setting of the kernel's ends with {:?}: {words}",
        denied.code
    );
    // Processes of a task may signal each other.
    ensure!(site.client.exec(&id, b"", &["kill", "-0", "1"])?.code == Some(0), "no signal reaches the task");
    // Tasks go on without a profile that is unloaded, and what comes later has it again.
    output_of(Command::new("apparmor_parser").arg("--remove"), b"profile containerd-driver-default {}\n")?;
    let exec = site.client.exec(&id, b"", &["cat", "/proc/self/attr/current"])?.stdout();
    ensure!(exec.trim() == seen, "after it was unloaded, an exec is confined by {exec:?}");
    ensure!(profile(pid)? == "unconfined", "the task without its profile is {:?}", profile(pid)?);
    let (other, _) = site.start("unconfined-by-its-job", &security_opt(&[OPEN[0], "apparmor=unconfined"]))?;
    ensure!(
        site.client.exec(&other, b"", &write)?.code == Some(0),
        "the write is denied without a profile, too"
    );
    let (_, privileged) = site.start("privileged", "privileged = true")?;
    ensure!(profile(privileged)? == "unconfined", "a privileged task has {:?}", profile(privileged)?);
    let (stopped, pid) = site.start("confined-and-signalled", "")?;
    ensure!(profile(pid)? == seen, "the next task is confined by {:?}", profile(pid)?);
    still_works(&site.client, &stopped, pid)
}

/// Returns the line of a job that sets the option `security_opt`.
fn security_opt(words: &[&str]) -> String {
    format!("security_opt = {words:?}")
}
