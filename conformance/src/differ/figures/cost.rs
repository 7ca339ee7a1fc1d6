//! CPU time and memory of the daemons of a side, by what they are a part of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use harness::processes::{anonymous_kb, arguments, cpu_ns, proportional_kb};

/// What a process of a node is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// dockerd or, on the other side, the plugin. Nomad's docker driver itself is in the agent's process.
    Engine,
    /// The processes of Nomad's docker driver that read a container's output from dockerd.
    Loggers,
    Containerd,
    Shims,
    /// All of the above, and whatever else they have started.
    Daemons,
    /// The agent, with a process for the log files of each task.
    Agent,
    /// The daemons and the agent.
    Together,
}

impl Part {
    pub const ALL: [Self; 7] = [
        Self::Engine,
        Self::Loggers,
        Self::Containerd,
        Self::Shims,
        Self::Daemons,
        Self::Agent,
        Self::Together,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Engine => "dockerd, or the plugin",
            Self::Loggers => "`docker_logger`",
            Self::Containerd => "containerd",
            Self::Shims => "shims",
            Self::Daemons => "all daemons",
            Self::Agent => "the agent and its `logmon`",
            Self::Together => "daemons and agent together",
        }
    }

    /// Returns the part that a process of these arguments is of.
    fn of(arguments: &[String]) -> Self {
        let called = arguments.first().map(String::as_str).unwrap_or_default();
        let program = called.rsplit('/').next().unwrap_or_default();
        match (program, arguments.get(1).map(String::as_str)) {
            ("dockerd" | "docker-proxy" | "docker", _) => Self::Engine,
            ("containerd", _) => Self::Containerd,
            (shim, _) if shim.starts_with("containerd-shim-") => Self::Shims,
            (_, Some("docker_logger")) => Self::Loggers,
            (_, Some("agent" | "logmon")) => Self::Agent,
            _ => Self::Daemons,
        }
    }
}

/// A look at some processes, with the CPU time that each has used up to then, in nanoseconds.
pub struct Look {
    at: Instant,
    clocks: BTreeMap<i32, u64>,
}

impl Look {
    pub fn at(processes: &[i32]) -> Self {
        let clocks = processes.iter().filter_map(|pid| Some((*pid, cpu_ns(*pid)?))).collect();
        Self { at: Instant::now(), clocks }
    }

    /// Returns the CPU time since an earlier look in nanoseconds a second, by part. A process that has ended since is
    /// not counted.
    pub fn cpu_since(&self, before: &Self) -> BTreeMap<Part, f64> {
        let used = |(pid, now): (&i32, &u64)| {
            (arguments(*pid), now.saturating_sub(before.clocks.get(pid).copied().unwrap_or_default()))
        };
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        let sums = by_part(self.clocks.iter().map(used)).into_iter();
        sums.map(|(part, nanoseconds)| (part, nanoseconds as f64 / seconds)).collect()
    }

    /// Returns the memory that the processes have now, in kB, by part. The pages that several share are divided among
    /// them.
    pub fn memory(&self) -> BTreeMap<Part, u64> {
        self.each(proportional_kb)
    }

    /// Returns the memory without that of files, in kB, by part.
    pub fn anonymous_memory(&self) -> BTreeMap<Part, u64> {
        self.each(anonymous_kb)
    }

    fn each(&self, value: fn(i32) -> Result<u64>) -> BTreeMap<Part, u64> {
        by_part(self.clocks.keys().filter_map(|pid| Some((arguments(*pid), value(*pid).ok()?))))
    }
}

fn by_part(values: impl Iterator<Item = (Vec<String>, u64)>) -> BTreeMap<Part, u64> {
    let mut sums = BTreeMap::from(Part::ALL.map(|part| (part, 0)));
    for (arguments, value) in values {
        let part = Part::of(&arguments);
        let whole = if part == Part::Agent { Part::Agent } else { Part::Daemons };
        for sum in BTreeSet::from([part, whole, Part::Together]) {
            *sums.entry(sum).or_default() += value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_counted_to_parts_by_what_they_were_called() {
        let processes = [
            ("/usr/sbin/dockerd --data-root=/x", 1),
            ("/opt/nomad-1.11.3 docker_logger", 2),
            ("/usr/bin/containerd --config c", 4),
            ("/usr/bin/containerd-shim-runc-v2 -namespace moby", 8),
            ("/opt/nomad-1.11.3 agent -config c", 16),
            ("/opt/nomad-1.11.3 logmon", 32),
            ("/agent/plugins/docker", 64),
            ("runc --root /x delete y", 128),
        ];
        let words = |line: &str| line.split(' ').map(str::to_owned).collect();
        let sums = by_part(processes.into_iter().map(|(line, value)| (words(line), value)));
        let expected = [
            (Part::Engine, 65),
            (Part::Loggers, 2),
            (Part::Containerd, 4),
            (Part::Shims, 8),
            (Part::Daemons, 207),
            (Part::Agent, 48),
            (Part::Together, 255),
        ];
        assert_eq!(sums, BTreeMap::from(expected));
    }
}
