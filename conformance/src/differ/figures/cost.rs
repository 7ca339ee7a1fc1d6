//! CPU time and memory of the daemons of a side, by what they are a part of.

use std::collections::BTreeMap;

use harness::processes::{arguments, cpu_ns, proportional_kb};

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
}

impl Part {
    pub const ALL: [Self; 6] =
        [Self::Engine, Self::Loggers, Self::Containerd, Self::Shims, Self::Daemons, Self::Agent];

    pub fn name(self) -> &'static str {
        match self {
            Self::Engine => "dockerd, or the plugin",
            Self::Loggers => "`docker_logger`",
            Self::Containerd => "containerd",
            Self::Shims => "shims",
            Self::Daemons => "all daemons",
            Self::Agent => "the agent and its `logmon`",
        }
    }

    /// Returns the part that a process of these arguments is of, or `None` if it isn't counted.
    fn of(arguments: &[String]) -> Option<Self> {
        let program = arguments.first()?.rsplit('/').next()?;
        match (program, arguments.get(1).map(String::as_str)) {
            // The plugin under its other name, which the fixture has as well and no job here needs.
            ("containerd-driver", _) => None,
            ("dockerd" | "docker-proxy" | "docker", _) => Some(Self::Engine),
            ("containerd", _) => Some(Self::Containerd),
            (shim, _) if shim.starts_with("containerd-shim-") => Some(Self::Shims),
            (_, Some("docker_logger")) => Some(Self::Loggers),
            (_, Some("agent" | "logmon")) => Some(Self::Agent),
            _ => Some(Self::Daemons),
        }
    }
}

/// The CPU time of processes up to one moment, in nanoseconds, by their pids.
pub struct Clocks(BTreeMap<i32, u64>);

impl Clocks {
    pub fn read(processes: &[i32]) -> Self {
        Self(processes.iter().filter_map(|pid| Some((*pid, cpu_ns(*pid)?))).collect())
    }

    /// Returns the CPU time in nanoseconds since an earlier moment, by part.
    pub fn since(&self, before: &Self) -> BTreeMap<Part, u64> {
        let took = |(pid, now): (&i32, &u64)| {
            (arguments(*pid), now.saturating_sub(before.0.get(pid).copied().unwrap_or_default()))
        };
        by_part(self.0.iter().map(took))
    }
}

/// Returns the memory of processes in kB, by part. The pages that several share are divided among them.
pub fn memory(processes: &[i32]) -> BTreeMap<Part, u64> {
    by_part(processes.iter().filter_map(|pid| Some((arguments(*pid), proportional_kb(*pid).ok()?))))
}

fn by_part(values: impl Iterator<Item = (Vec<String>, u64)>) -> BTreeMap<Part, u64> {
    let mut sums = BTreeMap::from(Part::ALL.map(|part| (part, 0)));
    for (arguments, value) in values {
        let Some(part) = Part::of(&arguments) else { continue };
        *sums.entry(part).or_default() += value;
        if !matches!(part, Part::Agent | Part::Daemons) {
            *sums.entry(Part::Daemons).or_default() += value;
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
            ("/agent/plugins/containerd-driver", 128),
            ("runc --root /x delete y", 256),
        ];
        let words = |line: &str| line.split(' ').map(str::to_owned).collect();
        let sums = by_part(processes.into_iter().map(|(line, value)| (words(line), value)));
        let expected = [
            (Part::Engine, 65),
            (Part::Loggers, 2),
            (Part::Containerd, 4),
            (Part::Shims, 8),
            (Part::Daemons, 335),
            (Part::Agent, 48),
        ];
        assert_eq!(sums, BTreeMap::from(expected));
    }
}
