//! The limits of a task, as the files of its cgroup have them: for a runtime that may not have set what it was asked
//! for.

use std::fmt;
use std::io;

use super::{Cgroup, Mode, mode};

/// A limit that a runtime was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    MemoryBytes(i64),
    Pids(i64),
    /// The processors' time in each period.
    Cpu {
        quota_us: i64,
        period_us: u64,
    },
    /// The weight among other tasks. Runtimes differ in what it is on v2, where it is not looked at.
    CpuShares(u64),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MemoryBytes(bytes) => write!(f, "memory limit, {bytes} bytes"),
            Self::Pids(count) => write!(f, "process limit (pids_limit), {count}"),
            Self::Cpu { quota_us, period_us } => {
                write!(f, "hard CPU limit (cpu_hard_limit), {quota_us} of each {period_us} µs")
            }
            Self::CpuShares(shares) => write!(f, "CPU weight (cpu), {shares} shares"),
        }
    }
}

impl Cgroup {
    /// Whether a limit is set on the cgroup, or a tighter one.
    ///
    /// # Errors
    /// When the limit can't be read.
    pub(crate) fn has(&self, limit: Limit) -> io::Result<bool> {
        let version = mode();
        let mut text = String::new();
        for (hierarchy, file) in limit.files(version) {
            text += &std::fs::read_to_string(self.directory_in(hierarchy).join(file))?;
        }
        Ok(limit.is_in(&text, version))
    }
}

impl Limit {
    /// The files that say it, each with its hierarchy.
    fn files(self, version: Mode) -> &'static [(&'static str, &'static str)] {
        match (self, version) {
            (Self::MemoryBytes(_), Mode::V1) => &[("memory", "memory.limit_in_bytes")],
            (Self::MemoryBytes(_), Mode::V2) => &[("", "memory.max")],
            (Self::Pids(_), Mode::V1) => &[("pids", "pids.max")],
            (Self::Pids(_), Mode::V2) => &[("", "pids.max")],
            (Self::Cpu { .. }, Mode::V1) => &[("cpu", "cpu.cfs_quota_us"), ("cpu", "cpu.cfs_period_us")],
            (Self::Cpu { .. }, Mode::V2) => &[("", "cpu.max")],
            (Self::CpuShares(_), Mode::V1) => &[("cpu", "cpu.shares")],
            (Self::CpuShares(_), Mode::V2) => &[],
        }
    }

    /// Whether it is what the files say, or more than that. No limit is "max" or -1 there.
    pub(super) fn is_in(self, text: &str, version: Mode) -> bool {
        let numbers: Vec<i64> = text
            .split_whitespace()
            .map(|word| word.parse().ok().filter(|number| *number >= 0))
            .collect::<Option<_>>()
            .unwrap_or_default();
        match (self, &*numbers) {
            (Self::CpuShares(_), _) if version == Mode::V2 => true,
            (Self::CpuShares(shares), [set]) => u64::try_from(*set) == Ok(shares),
            (Self::MemoryBytes(limit) | Self::Pids(limit), [set]) => *set <= limit,
            (Self::Cpu { quota_us, period_us }, [quota, period]) => {
                i128::from(*quota) * i128::from(period_us) <= i128::from(quota_us) * i128::from(*period)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_as_set_if_the_files_have_it_or_less() {
        let cpu = Limit::Cpu { quota_us: 50_000, period_us: 100_000 };
        for (limit, set, lacking) in [
            (Limit::MemoryBytes(4096), &["4096\n", "1024\n"][..], &["8192\n", "max\n", ""][..]),
            (Limit::Pids(100), &["100\n"], &["101\n", "max\n"]),
            (cpu, &["50000\n100000\n", "25000 50000\n"], &["-1\n100000\n", "max 100000\n", "50001 100000\n"]),
            (Limit::CpuShares(500), &["500\n"], &["1024\n", "400\n"]),
        ] {
            assert!(set.iter().all(|text| limit.is_in(text, Mode::V1)), "{limit}");
            assert!(lacking.iter().all(|text| !limit.is_in(text, Mode::V1)), "{limit}");
        }
        assert!(Limit::CpuShares(500).is_in("", Mode::V2));
    }

    #[test]
    fn a_limit_of_the_processors_is_one_file_on_v2_and_two_on_v1() {
        let cpu = Limit::Cpu { quota_us: 50_000, period_us: 100_000 };
        assert_eq!(cpu.files(Mode::V2), [("", "cpu.max")]);
        assert_eq!(cpu.files(Mode::V1), [("cpu", "cpu.cfs_quota_us"), ("cpu", "cpu.cfs_period_us")]);
    }
}
