//! Leftovers of a plugin: the difference between two censuses of one test environment, one state directory and some
//! tasks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::census::{Census, daemon};
use super::inspect::{
    CGROUPS, MAX_SPARES, SHARED, SPARES, cgroups_named, children, dead_shim_sockets, dead_spares,
    find_processes, leases, mounts_under, pids_in, shown, special_files,
};
use super::{agent, shim_sockets};
use crate::fixture::containerd::{Containerd, DOCKERS_NAMESPACE, NAMESPACE};
use crate::fixture::network::Networks;

/// Time in which shims and mounts disappear after the call that ended them has returned.
const GRACE: Duration = Duration::from_secs(3);
/// Directory within a state directory that is that of the driver under the name `docker`.
pub const DOCKERS_STATE: &str = "docker";
/// The empty network namespace that gVisor's runtime keeps for all of its sandboxes.
pub const NULL_NETNS: &str = "runsc/nomad/null-netns";
/// The driver's socket for the events of shims that don't start without one. It exists for as long as the state
/// directory.
const EVENTS: &str = "events.sock";
/// The namespaces of the driver, under each of its names.
const NAMESPACES: [&str; 2] = [NAMESPACE, DOCKERS_NAMESPACE];
/// Kinds of a task's things in containerd; images and their content stay for the next task.
const RECORDS: [&str; 4] = ["container record", "lease", "active snapshot", "unfinished content"];
/// Hierarchies of cgroup v1 in which the agent makes groups, and removes them itself.
const AGENTS_OWN: [&str; 3] = ["freezer", "memory", "cpu"];

/// The places where leftovers are looked for.
pub struct LeakCheck<'a> {
    pub containerd: &'a Containerd,
    pub state_dir: &'a Path,
    pub networks: &'a Networks,
    /// Names `<alloc>.<task>` of the cgroups of the tasks that ran.
    pub cgroups: &'a [String],
    /// The census of when the case began, see [`LeakCheck::all`].
    pub before: &'a Census,
}

impl LeakCheck<'_> {
    /// Asserts that nothing is left.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub fn assert_nothing_left(&self) -> Result<()> {
        self.assert_nothing_left_within(GRACE)
    }

    /// Does the same as [`Self::assert_nothing_left`], but waits for up to `limit`.
    ///
    /// # Errors
    /// Fails with everything that is left.
    pub fn assert_nothing_left_within(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let left = self.census();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("left behind:\n  {}", left.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Lists everything that was not there before.
    pub fn census(&self) -> Vec<String> {
        let left = self.on_the_machine().since(self.before);
        // A look at the kernel and the disk costs little; containerd is asked only if that finds nothing.
        if left.is_empty() { self.records() } else { left.lines() }
    }

    /// Lists the things in containerd that were not there before.
    pub fn records(&self) -> Vec<String> {
        self.in_containerd().since(self.before).lines()
    }

    /// Takes a census to compare later ones with.
    pub fn all(&self) -> Census {
        let mut all = self.on_the_machine();
        all.merge(self.in_containerd(), "");
        all
    }

    /// Removes the sockets of shims that are gone.
    pub(crate) fn remove_sockets(&self) {
        for socket in self.on_the_machine().since(self.before).of_kind("dead shim socket") {
            let _ = fs::remove_file(socket);
        }
    }

    fn on_the_machine(&self) -> Census {
        let mut left = Census::default();
        let (spares, processes): (Vec<_>, Vec<_>) =
            find_processes(self.state_dir).into_iter().partition(|process| process.is_spare);
        // The driver keeps some for the next start, and a plugin that was killed leaves them to the next.
        let with_spares =
            [self.state_dir, &self.state_dir.join(DOCKERS_STATE)].map(|directory| directory.join(SPARES));
        let limit = MAX_SPARES * with_spares.iter().filter(|directory| directory.is_dir()).count();
        left.add("spare shims", (spares.len() > limit).then(|| format!("{spares:?}")));
        left.add("process", processes.into_iter().map(|found| format!("{} {}", found.pid, found.command)));
        let inside = self.cgroups.iter().flat_map(|name| pids_in(name));
        left.add("process in a task's cgroup", inside.map(|pid| pid.to_string()));
        // A case may have mounted the state directory itself.
        let of_runsc = self.state_dir.join(NULL_NETNS);
        let mounts = mounts_under(self.state_dir)
            .into_iter()
            .filter(|mount| mount != self.state_dir && *mount != of_runsc);
        left.add("mount", shown(mounts.collect()));
        let dockers = self.state_dir.join(DOCKERS_STATE);
        for (state_dir, namespace) in [(self.state_dir, NAMESPACE), (&dockers, DOCKERS_NAMESPACE)] {
            left.add("bundle", shown(children(&state_dir.join(namespace))));
            left.add("runc state", shown(runc_states(&state_dir.join("runc"))));
            left.add("address in use", shown(leases(&state_dir.join("leases"))));
        }
        for state_dir in [self.state_dir, &dockers] {
            left.add("spare without a shim", shown(dead_spares(state_dir)));
            left.add("shared shim", shown(children(&state_dir.join(SHARED))));
        }
        let special = special_files(self.state_dir).into_iter().filter(|file| !file.ends_with(EVENTS));
        left.add("pipe or socket", shown(special.collect()));
        left.add("cgroup", shown(self.cgroups.iter().flat_map(|name| foreign_cgroups(name)).collect()));
        // Other suites and agents have their shims in the same directory.
        let ours =
            dead_shim_sockets().into_iter().filter(|socket| shim_sockets::is_below(socket, self.state_dir));
        left.add("dead shim socket", shown(ours.collect()));
        left.add("network", self.networks.census());
        left
    }

    fn in_containerd(&self) -> Census {
        let mut census = Census::default();
        for namespace in NAMESPACES {
            match daemon::take(&self.containerd.socket(), Some(namespace)) {
                Ok(all) => census.merge(all.only(&RECORDS), ""),
                // Not to know is not the same as nothing.
                Err(error) => census.add("records", [format!("that can't be listed: {error:#}")]),
            }
        }
        census
    }
}

/// Lists the runtime's states of containers, `<root>/<namespace>/<id>`. The `.cache` that crun keeps beside them
/// (translated seccomp profiles) belongs to no container, and crun limits it itself.
fn runc_states(root: &Path) -> Vec<PathBuf> {
    let is_container = |state: &PathBuf| !state.ends_with(".cache");
    children(root).iter().flat_map(|namespace| children(namespace)).filter(is_container).collect()
}

/// The cgroups above those of tasks, which a client makes once and never removes, and the driver's for its shims.
pub struct CgroupRoots {
    before: Vec<PathBuf>,
}

impl CgroupRoots {
    fn now() -> Vec<PathBuf> {
        let hierarchies = children(Path::new(CGROUPS)).into_iter().chain([PathBuf::from(CGROUPS)]);
        let named = |hierarchy: PathBuf| {
            // Inner cgroups first, so that they can be removed in this order.
            [
                "nomad/share",
                "nomad/reserve",
                "nomad/shims.slice",
                "nomad",
                "nomad.slice/share.slice",
                "nomad.slice/reserve.slice",
                "nomad.slice/shims.slice",
                "nomad.slice",
                // Cgroups of the benchmark's containers, named by containerd and the runtimes.
                "measure/runc",
                "measure",
            ]
            .map(|name| hierarchy.join(name))
        };
        hierarchies.flat_map(named).filter(|group| group.is_dir()).collect()
    }

    /// Records which of these cgroups exist.
    pub fn note() -> Self {
        Self { before: Self::now() }
    }

    /// Removes the empty ones of these cgroups that weren't there before, unless an agent runs, which needs them.
    pub fn restore(&self) {
        if agent::any_runs(None) {
            return;
        }
        for group in Self::now().into_iter().filter(|group| !self.before.contains(group)) {
            let _ = fs::remove_dir(group);
        }
    }
}

/// Lists a task's cgroups that the agent would not remove.
fn foreign_cgroups(task: &str) -> Vec<PathBuf> {
    let root = Path::new(CGROUPS);
    let agents = |group: &PathBuf| {
        AGENTS_OWN.iter().any(|hierarchy| *group == root.join(hierarchy).join("nomad").join(task))
            || *group == root.join("cpuset/nomad/reserve").join(task)
            || group.extension().is_some_and(|extension| extension == "scope")
    };
    cgroups_named(task).into_iter().filter(|group| !agents(group)).collect()
}
