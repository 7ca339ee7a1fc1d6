//! The CPU time and memory that calls cost, by consumer. All that a run starts is in one control group with it, whose
//! CPU time the kernel counts in nanoseconds. Each process that still runs has a clock of its own; what the group used
//! beyond those clocks was used by processes that came and went: the OCI runtime's, and a shim's own `start`. Calls
//! are made on one target at a time, so that all CPU time used meanwhile is that target's.
//!
//! Source of the facts: Linux `cgroup-v1/cpuacct`, `cgroup-v2`, clock_getcpuclockid(3), `proc_pid_smaps(5)`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use harness::processes::cpu_ns;

use super::environment;
use super::report_data::Cost;

const ROOT: &str = "/sys/fs/cgroup";
/// The consumer to which processes are counted that exited during the call.
const GONE: &str = "runtime";
/// The consumer to which running processes are counted that aren't servers: shims.
const SHIMS: &str = "shims";

/// The control group that this process and all its descendants are in. On drop, this process moves back to its
/// previous group.
pub(crate) struct Group {
    directory: PathBuf,
    before: PathBuf,
}

impl Group {
    /// Moves this process into a group of its own.
    ///
    /// # Errors
    /// Fails if no control group of this machine counts CPU time, or if it can't be written.
    pub(crate) fn enter() -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let (mount, path) = controller(&own).context("no control group counts CPU time here")?;
        let directory = mount.join(environment::name()).join("run");
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let group = Self { directory, before: mount.join(path.trim_start_matches('/')) };
        move_to(&group.directory)?;
        Ok(group)
    }

    /// Returns the CPU time of all processes that are or were in the group, in nanoseconds.
    fn total(&self) -> Result<u64> {
        if let Ok(text) = fs::read_to_string(self.directory.join("cpuacct.usage")) {
            return Ok(text.trim().parse()?);
        }
        let text = fs::read_to_string(self.directory.join("cpu.stat"))?;
        let used = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(used.context("cpu.stat has no usage_usec")?.trim().parse::<u64>()? * 1000)
    }

    /// # Errors
    /// Fails if the group's files can't be read.
    pub(crate) fn read(&self) -> Result<Reading> {
        let pids = fs::read_to_string(self.directory.join("cgroup.procs"))?;
        let clocks = pids.lines().filter_map(|line| {
            let pid = line.parse().ok()?;
            Some((pid, cpu_ns(pid)?))
        });
        // The clocks are read before the total: CPU time used in between is attributed to none of the running
        // processes.
        let clocks = clocks.collect();
        Ok(Reading { total: self.total()?, clocks })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = move_to(&self.before);
        let _ = fs::remove_dir(&self.directory);
    }
}

fn move_to(group: &Path) -> Result<()> {
    let file = group.join("cgroup.procs");
    fs::write(&file, std::process::id().to_string()).with_context(|| format!("write {}", file.display()))
}

/// Returns the mount point of the control group hierarchy that counts CPU time, and this process' group in it. `own`
/// is the text of `/proc/self/cgroup`.
fn controller(own: &str) -> Option<(PathBuf, String)> {
    let fields = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let all: Vec<(&str, &str)> = fields.collect();
    let v1 = all.iter().find(|(names, _)| names.split(',').any(|name| name == "cpuacct"));
    if let Some((names, path)) = v1 {
        return Some((Path::new(ROOT).join(names), (*path).to_owned()));
    }
    let v2 = all.iter().find(|(names, _)| names.is_empty());
    v2.map(|(_, path)| (PathBuf::from(ROOT), (*path).to_owned()))
}

/// Removes the control groups of the benchmark's containers in each hierarchy.
pub(crate) fn remove_groups() {
    let root = Path::new(ROOT);
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let _ = fs::remove_dir(hierarchy.join(environment::name()));
    }
}

/// The CPU time used up to one moment: by the whole group, and by each running process of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    total: u64,
    clocks: HashMap<i32, u64>,
}

impl Reading {
    /// Returns the CPU time in nanoseconds used since an earlier reading, by consumer.
    pub(crate) fn since(
        &self,
        before: &Self,
        servers: &[(&'static str, i32)],
        own: i32,
    ) -> BTreeMap<String, u64> {
        let mut taken: BTreeMap<String, u64> = BTreeMap::new();
        let mut known = 0;
        for (pid, now) in &self.clocks {
            let took = now.saturating_sub(before.clocks.get(pid).copied().unwrap_or_default());
            known += took;
            let server = servers.iter().find(|(_, server)| server == pid);
            if *pid != own {
                *taken.entry(server.map_or(SHIMS, |(who, _)| who).to_owned()).or_default() += took;
            }
        }
        let gone = self.total.saturating_sub(before.total).saturating_sub(known);
        taken.insert(GONE.to_owned(), gone);
        taken
    }
}

/// The sums of CPU time over all calls of a series.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sum {
    calls: u64,
    taken: BTreeMap<String, u64>,
}

impl Sum {
    pub(crate) fn add(&mut self, calls: u64, taken: &BTreeMap<String, u64>) {
        self.calls += calls;
        for (who, took) in taken {
            *self.taken.entry(who.clone()).or_default() += took;
        }
    }

    /// Returns the average CPU time of a call, together with the current memory usage.
    pub(crate) fn cost(&self, memory: &Memory) -> Cost {
        let per_call = self.taken.iter().map(|(who, took)| (who.clone(), took / self.calls.max(1)));
        Cost {
            cpu_ns_per_call: per_call.collect(),
            resident_bytes: memory.resident.clone(),
            proportional_bytes: memory.proportional.clone(),
        }
    }
}

/// Memory usage in bytes, by consumer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) resident: BTreeMap<String, u64>,
    /// Proportional set size: pages that several processes share are divided among them.
    pub(crate) proportional: BTreeMap<String, u64>,
}

impl Memory {
    pub(crate) fn of(servers: &[(&'static str, i32)], shims: &[i32]) -> Self {
        let mut memory = Self::default();
        let shims = shims.iter().map(|pid| (SHIMS, *pid));
        for (who, pid) in servers.iter().copied().chain(shims) {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            for (name, map) in [("Rss:", &mut memory.resident), ("Pss:", &mut memory.proportional)] {
                if let Some(bytes) = kilobytes(&text, name) {
                    *map.entry(who.to_owned()).or_default() += bytes * 1024;
                }
            }
        }
        memory
    }
}

fn kilobytes(rollup: &str, name: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processes_that_are_there_did_not_take_was_taken_by_those_that_are_gone() {
        let before = Reading { total: 1000, clocks: [(1, 100), (2, 200), (3, 50)].into() };
        let after = Reading { total: 1900, clocks: [(1, 150), (2, 300), (4, 70), (5, 80)].into() };
        let taken = after.since(&before, &[("daemon", 2)], 1);
        let expected = [("daemon", 100), ("runtime", 600), ("shims", 150)];
        assert_eq!(taken, expected.map(|(who, took)| (who.to_owned(), took)).into());
    }

    #[test]
    fn the_group_is_that_of_the_hierarchy_which_counts() {
        let v1 = "5:memory:/a\n3:cpu,cpuacct:/b\n0::/c\n";
        assert_eq!(controller(v1), Some(("/sys/fs/cgroup/cpu,cpuacct".into(), "/b".to_owned())));
        assert_eq!(controller("0::/c\n"), Some(("/sys/fs/cgroup".into(), "/c".to_owned())));
        assert_eq!(controller("5:memory:/a\n"), None);
    }

    #[test]
    fn a_process_has_a_clock_and_memory() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(cpu_ns(own).unwrap() > 0);
        let memory = Memory::of(&[("plugin", own)], &[]);
        assert!(memory.resident["plugin"] >= memory.proportional["plugin"]);
        assert!(memory.proportional["plugin"] > 0);
    }
}
