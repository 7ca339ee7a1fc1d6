//! CPU time and memory of the processes of a node, by what they are a part of.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, bail};
use harness::processes::{anonymous_kb, arguments, cpu_ns, proportional_kb};

/// What a process of a node is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// dockerd or a plugin. Nomad's docker driver itself is in the agent's process.
    Engine,
    /// The processes of Nomad's docker driver that read a container's output from dockerd.
    Loggers,
    Containerd,
    Shims,
    /// Whatever else the daemons have started.
    Others,
    /// The agent, with a process for the log files of each task.
    Agent,
}

impl Part {
    pub(crate) const ALL: [Self; 6] =
        [Self::Engine, Self::Loggers, Self::Containerd, Self::Shims, Self::Others, Self::Agent];

    /// Returns the name of the consumer in reports.
    pub(crate) fn consumer(self) -> &'static str {
        match self {
            Self::Engine => "plugin",
            Self::Loggers => "docker_logger",
            Self::Containerd => "daemon",
            Self::Shims => "shims",
            Self::Others => "others",
            Self::Agent => AGENT,
        }
    }

    /// Returns the part that a process of these arguments is of.
    fn of(arguments: &[String]) -> Self {
        let called = arguments.first().map(String::as_str).unwrap_or_default();
        let program = called.rsplit('/').next().unwrap_or_default();
        match (program, arguments.get(1).map(String::as_str)) {
            ("dockerd" | "docker-proxy" | "docker" | "containerd-driver", _) => Self::Engine,
            ("containerd", _) => Self::Containerd,
            (shim, _) if shim.starts_with("containerd-shim-") => match arguments.last().map(String::as_str) {
                // The commands by which a shim is started, or cleaned up after.
                Some("start" | "delete") => Self::Others,
                _ => Self::Shims,
            },
            (_, Some("docker_logger")) => Self::Loggers,
            (_, Some("agent" | "logmon")) => Self::Agent,
            _ => Self::Others,
        }
    }
}

/// The consumer in reports that is no daemon: the agent, with its `logmon`.
pub(crate) const AGENT: &str = "agent";

/// Returns the sum of all consumers but the agent.
pub(crate) fn of_daemons(parts: &BTreeMap<String, u64>) -> u64 {
    parts.iter().filter(|(consumer, _)| *consumer != AGENT).map(|(_, value)| value).sum()
}

/// A look at some processes, with the CPU time that each has used up to then, in nanoseconds.
pub(crate) struct Look {
    at: Instant,
    clocks: BTreeMap<i32, u64>,
    /// The daemons among them, which are expected to stay.
    daemons: BTreeMap<i32, String>,
}

impl Look {
    pub(crate) fn at(processes: &[i32]) -> Self {
        let clocks: BTreeMap<i32, u64> =
            processes.iter().filter_map(|pid| Some((*pid, cpu_ns(*pid)?))).collect();
        let called = clocks.keys().map(|pid| (*pid, arguments(*pid)));
        let daemons = called.filter(|(_, words)| Part::of(words) != Part::Others);
        let daemons = daemons.map(|(pid, words)| (pid, words.join(" "))).collect();
        Self { at: Instant::now(), clocks, daemons }
    }

    /// Returns the CPU time since an earlier look in nanoseconds a second, by consumer. That of a command that has ended
    /// since is not counted.
    ///
    /// # Errors
    /// Names a daemon that has ended since, whose CPU time is lost.
    pub(crate) fn cpu_since(&self, before: &Self) -> Result<BTreeMap<String, f64>> {
        let gone = before.daemons.iter().find(|(pid, _)| !self.clocks.contains_key(pid));
        if let Some((pid, words)) = gone {
            bail!("process {pid} has ended while the CPU time was measured: {words}");
        }
        let used = |(pid, now): (&i32, &u64)| {
            (arguments(*pid), now.saturating_sub(before.clocks.get(pid).copied().unwrap_or_default()))
        };
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        let sums = by_part(self.clocks.iter().map(used)).into_iter();
        Ok(sums.map(|(part, nanoseconds)| (part, nanoseconds as f64 / seconds)).collect())
    }

    /// Returns the memory that the processes have now in bytes, by consumer. The pages that several share are divided
    /// among them.
    pub(crate) fn memory(&self) -> BTreeMap<String, u64> {
        self.each(proportional_kb)
    }

    /// Returns the memory without that of files in bytes, by consumer.
    pub(crate) fn anonymous_memory(&self) -> BTreeMap<String, u64> {
        self.each(anonymous_kb)
    }

    fn each(&self, kilobytes: fn(i32) -> Result<u64>) -> BTreeMap<String, u64> {
        by_part(self.clocks.keys().filter_map(|pid| Some((arguments(*pid), kilobytes(*pid).ok()? * 1024))))
    }
}

fn by_part(values: impl Iterator<Item = (Vec<String>, u64)>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::from(Part::ALL.map(|part| (part.consumer().to_owned(), 0)));
    for (arguments, value) in values {
        *sums.entry(Part::of(&arguments).consumer().to_owned()).or_default() += value;
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
            ("/usr/bin/containerd-shim-runc-v2 -namespace nomad start", 512),
            ("/agent/plugins/containerd-driver", 256),
        ];
        let words = |line: &str| line.split(' ').map(str::to_owned).collect();
        let sums = by_part(processes.into_iter().map(|(line, value)| (words(line), value)));
        let expected = [
            ("plugin", 321),
            ("docker_logger", 2),
            ("daemon", 4),
            ("shims", 8),
            ("others", 640),
            ("agent", 48),
        ];
        assert_eq!(sums, expected.map(|(consumer, value)| (consumer.to_owned(), value)).into());
        assert_eq!(of_daemons(&sums), 975);
    }

    #[test]
    fn a_daemon_that_ends_between_two_looks_is_told_and_a_command_is_not() {
        let mut before = Look::at(&[i32::try_from(std::process::id()).unwrap()]);
        let after = Look::at(&[]);
        assert!(after.cpu_since(&before).is_ok(), "this test is no daemon");
        before.daemons.insert(1 << 30, "/usr/bin/containerd".to_owned());
        let error = after.cpu_since(&before).unwrap_err().to_string();
        assert!(error.contains("/usr/bin/containerd"), "{error}");
    }
}
