//! Finds and removes what an agent can leave behind: helper processes, its tasks, mounts below its directory, network
//! namespaces, and cgroups. The cgroups that exist before the agent starts are noted, and stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::leaks::{inspect, sweep};
use crate::processes;

/// Variable in the agent's environment, and so in that of every process that it starts. The value is the agent's
/// directory.
pub(crate) const MARK: &str = "CONFORMANCE_AGENT";
/// Names of the cgroups that an agent makes for those of tasks, by the version of cgroups.
const AGENTS_GROUPS: [&str; 4] = ["share", "reserve", "share.slice", "reserve.slice"];
/// Directory of the network namespaces of groups, named by allocation ids.
const NAMESPACES: &str = "/run/netns";
const ENDING: Duration = Duration::from_secs(5);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// All agents that this process has started, for the cleanup after an interrupt.
static AGENTS: Mutex<Vec<Arc<AgentLeaks>>> = Mutex::new(Vec::new());

/// Takes down every agent with all of its tasks. Called by an interrupted program, which ends without unwinding. From
/// here on nothing is started, and no wait goes on.
pub fn take_down_all() {
    INTERRUPTED.store(true, Ordering::Relaxed);
    let agents = std::mem::take(&mut *AGENTS.lock().unwrap_or_else(PoisonError::into_inner));
    for leaks in agents {
        leaks.clear();
    }
}

/// # Errors
/// Fails after an interrupt.
pub(crate) fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

pub(crate) struct AgentLeaks {
    directory: PathBuf,
    allocations: PathBuf,
    /// Nomad's cgroups that didn't exist before the agent started.
    cgroups: Vec<PathBuf>,
}

impl AgentLeaks {
    pub(crate) fn note(directory: &Path, allocations: PathBuf) -> Arc<Self> {
        let cgroups = nomads_cgroups().into_iter().filter(|path| !path.exists()).collect();
        let leaks = Arc::new(Self { directory: directory.to_owned(), allocations, cgroups });
        AGENTS.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&leaks));
        leaks
    }

    /// Returns the pids of all processes that the agent started, directly or indirectly, except the tasks.
    pub(crate) fn processes(&self) -> Vec<i32> {
        processes::with_environment(&format!("{MARK}={}", self.directory.display()))
    }

    /// Returns the network namespaces of this agent's allocations that still exist.
    fn namespaces(&self) -> Vec<PathBuf> {
        let allocations = names(&self.allocations);
        let names_left = names(Path::new(NAMESPACES)).into_iter().filter(|name| allocations.contains(name));
        names_left.map(|name| Path::new(NAMESPACES).join(name)).collect()
    }

    /// Returns the names of the cgroups of all tasks that this agent has ever had and that still exist.
    fn tasks(&self) -> Vec<String> {
        let allocations = names(&self.allocations);
        let groups = nomads_cgroups().into_iter().flat_map(|path| descendants(&path));
        let tasks =
            groups.filter_map(|path| Some(path.file_name()?.to_str()?.trim_end_matches(".scope").to_owned()));
        tasks.filter(|task| allocations.iter().any(|id| task.starts_with(id))).collect()
    }

    /// Returns a line for each thing that a stopped agent has left behind.
    pub(crate) fn found(&self) -> Vec<String> {
        let shown = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("process {pid} {}", String::from_utf8_lossy(&words).replace('\0', " "))
        };
        let mut found: Vec<_> = self.processes().iter().map(shown).collect();
        found.extend(self.tasks().iter().map(|task| format!("cgroup {task}")));
        let namespaces = self.namespaces();
        found.extend(namespaces.iter().map(|path| format!("network namespace {}", path.display())));
        let mounts = inspect::mounts_under(&self.directory);
        found.extend(mounts.iter().map(|point| format!("mount {}", point.display())));
        found
    }

    /// Kills, unmounts and removes all that the agent has left behind.
    pub(crate) fn clear(&self) {
        let deadline = Instant::now() + ENDING;
        loop {
            let left = self.processes();
            for pid in &left {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if left.is_empty() || Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        for task in self.tasks() {
            sweep::cgroups(&task);
        }
        sweep::unmount_under(&self.directory);
        for namespace in self.namespaces() {
            sweep::unmount_under(&namespace);
            let _ = fs::remove_file(namespace);
        }
        // Another agent, of this program or another one, may have come to use them.
        let unused = !any_runs(Some(&self.directory));
        for cgroup in self.cgroups.iter().filter(|_| unused) {
            // Those of tasks belong to whoever runs them.
            for name in AGENTS_GROUPS {
                let _ = fs::remove_dir(cgroup.join(name));
            }
            let _ = fs::remove_dir(cgroup);
        }
    }
}

/// Returns whether an agent of ours runs on the machine, other than that of a directory. It fails each start from when it
/// doesn't find Nomad's cgroups any more.
pub(crate) fn any_runs(but: Option<&Path>) -> bool {
    let but = but.map(|directory| format!("{MARK}={}", directory.display()));
    processes::all().any(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut entries = environment.split(|byte| *byte == 0);
        let mark = entries.find(|entry| entry.starts_with(format!("{MARK}=").as_bytes()));
        mark.is_some_and(|mark| but.as_ref().is_none_or(|but| mark != but.as_bytes()))
    })
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Returns the paths of Nomad's cgroups, existing or not: on v1 one in each hierarchy, on v2 one slice. Nomad makes
/// some of them, the runtime the others when it puts a container there.
fn nomads_cgroups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    let hierarchies = hierarchies.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    hierarchies.map(|entry| entry.path().join("nomad")).chain([root.join("nomad.slice")]).collect()
}

/// Returns a cgroup and all below it, the deepest first.
fn descendants(cgroup: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cgroup) else { return Vec::new() };
    let children =
        entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<_> = children.flat_map(|child| descendants(&child.path())).collect();
    all.push(cgroup.to_owned());
    all
}
