//! Finds processes by what they are, not by their ancestors: an agent's helpers outlive it, a task's process outlives
//! the plugin.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Number of characters of an allocation's id.
const UUID_LENGTH: usize = 36;

/// Returns the pids of all processes but this one.
pub fn all() -> impl Iterator<Item = i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .filter(move |pid| *pid != own)
}

/// Returns the paths of what a process has open, as the kernel shows them.
pub fn open_files(pid: impl std::fmt::Display) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

/// Returns the processes whose environment has exactly `variable` (`NAME=value`).
pub fn with_environment(variable: &str) -> Vec<i32> {
    let has = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    all().filter(has).collect()
}

/// Returns the processes that run `program` by its own name: gVisor sandboxes are kept by the driver's program, too,
/// under another name.
pub fn running(program: &Path) -> Vec<i32> {
    let runs = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
    all().filter(runs).filter(|pid| !called(*pid).starts_with("gvisor-")).collect()
}

/// Returns the processes that are in a network namespace and, as tasks are not, in the pid namespace of this process.
///
/// # Errors
/// Fails if there is no such namespace.
pub fn in_network(namespace: &Path) -> Result<Vec<i32>> {
    let wanted = fs::metadata(namespace).with_context(|| format!("look at {}", namespace.display()))?.ino();
    let inode = |path: String| fs::metadata(path).ok().map(|file| file.ino());
    let own_pids = inode("/proc/self/ns/pid".to_owned());
    let is_there = |pid: &i32| {
        inode(format!("/proc/{pid}/ns/net")) == Some(wanted)
            && inode(format!("/proc/{pid}/ns/pid")) == own_pids
    };
    Ok(all().filter(is_there).collect())
}

/// Returns the name by which a process was called (its argument 0), without the directory.
fn called(pid: i32) -> String {
    let called = arguments(pid).into_iter().next().unwrap_or_default();
    called.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Returns the arguments of a process. The first one is the name by which it was called.
pub fn arguments(pid: i32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0);
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Returns the pid on the host of a task's first process: the one in the task's cgroup that is 1 in its own pid
/// namespace. The environment can't tell it: some programs write their title over it.
///
/// # Errors
/// Fails if there is none, or more than one.
pub fn first_of_task(allocation: &str, task: &str) -> Result<i32> {
    let wanted = format!("{allocation}.{task}");
    let found = first_of_tasks().into_iter().filter(|(name, _)| *name == wanted);
    match found.map(|(_, pid)| pid).collect::<Vec<_>>()[..] {
        [pid] => Ok(pid),
        [] => bail!("task {task} of {allocation} has no process in its cgroup"),
        ref several => bail!("task {task} of {allocation} has several first processes: {several:?}"),
    }
}

/// Returns the first processes of all tasks of the machine, each with the name `<allocation>.<task>`.
pub fn first_of_tasks() -> Vec<(String, i32)> {
    // In a gVisor sandbox, the file server (runsc-gofer) is the first of a namespace, too.
    let is_first = |pid: i32| is_first(pid) && called(pid) != "runsc-gofer";
    all().filter_map(|pid| Some((task_of(pid)?, pid))).filter(|(_, pid)| is_first(*pid)).collect()
}

/// Returns the name `<allocation>.<task>` of the task in whose cgroup a process is.
fn task_of(pid: i32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let names = groups.lines().filter_map(|line| line.rsplit('/').next());
    let mut names = names.map(|name| name.trim_end_matches(".scope"));
    let is_task = |name: &&str| name.split_once('.').is_some_and(|(id, _)| id.len() == UUID_LENGTH);
    names.find(is_task).map(str::to_owned)
}

fn is_first(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("NSpid:")).unwrap_or_default();
    let pids: Vec<_> = line.split_whitespace().skip(1).collect();
    pids.len() > 1 && pids.last() == Some(&"1")
}

pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state comes after the name, which may contain anything.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// Returns the parent of a process. That of a container's first process is its shim, but under gVisor the keeper.
///
/// # Errors
/// Fails if the process is gone.
pub fn parent(pid: i32) -> Result<i32> {
    number_in_status(pid, "PPid:")
}

/// Returns the process whose parent is none of the others. That isn't the smallest pid: the kernel starts over with
/// small pids after the largest.
pub fn first_of(pids: &[i32]) -> Option<i32> {
    let is_first = |pid: &i32| parent(*pid).is_ok_and(|parent| !pids.contains(&parent));
    pids.iter().copied().find(is_first)
}

/// Returns the shim of a task's first process, unless it is gone and the process was adopted by the host's init. The
/// parent of a gVisor sandbox is its keeper, whose parent is the shim.
pub fn shim_of(pid: i32) -> Option<i32> {
    let above = parent(pid).ok()?;
    let shim = if called(above) == "gvisor-keeper" { parent(above).ok()? } else { above };
    Some(shim).filter(|shim| *shim > 1)
}

pub fn resident_kb(pid: i32) -> Result<u64> {
    number_in_status(pid, "VmRSS:")
}

/// Returns the memory of a process, with the pages that it shares with others divided among them (PSS).
///
/// # Errors
/// Fails if the process is gone.
pub fn proportional_kb(pid: i32) -> Result<u64> {
    number_in(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Returns the memory of a process that no file has, divided as by [`proportional_kb`]: heap and stacks.
///
/// # Errors
/// Fails if the process is gone.
pub fn anonymous_kb(pid: i32) -> Result<u64> {
    number_in(&format!("/proc/{pid}/smaps_rollup"), "Pss_Anon:")
}

/// Returns the largest amount of memory that a process had since its start, or since [`forget_peak`].
///
/// # Errors
/// Fails if the process is gone.
pub fn peak_kb(pid: i32) -> Result<u64> {
    number_in_status(pid, "VmHWM:")
}

/// Takes the memory that a process has now for the most that it has had (proc_pid_clear_refs(5)).
///
/// # Errors
/// Fails if the process is gone.
pub fn forget_peak(pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("write {path}"))
}

fn number_in_status<T: std::str::FromStr>(pid: i32, name: &str) -> Result<T> {
    number_in(&format!("/proc/{pid}/status"), name)
}

/// Returns the number that follows a name in a file.
fn number_in<T: std::str::FromStr>(path: &str, name: &str) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|number| number.parse().ok());
    number.with_context(|| format!("{path} has no {name}"))
}

/// Returns a process' CPU time in nanoseconds, including that of its ended threads.
pub fn cpu_ns(pid: i32) -> Option<u64> {
    let time = clock_gettime(clock_getcpuclockid(Pid::from_raw(pid)).ok()?).ok()?;
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec()).ok()?, u64::try_from(time.tv_nsec()).ok()?);
    Some(seconds * 1_000_000_000 + nanoseconds)
}
