//! Resource usage of a task, read from the files of its cgroup: the same as from a shim of the runc family, for the
//! cost of the reads only, and with values that no shim sends.
//!
//! The files are opened each time, which is most of a read (5 of 7 µs a file). Held open they would cost the plugin
//! nine descriptors a task, of an agent's limit that may be as low as 1,024.
//!
//! Source of the facts: Linux `Documentation/admin-guide/cgroup-v1` (`memory.rst`, `cpuacct.rst`), `cgroup-v2.rst`,
//! `Documentation/scheduler/sched-bwc.rst`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Cgroup, Mode, ROOT, below, counter, mode, value};

/// Resource usage of a container. Times count from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub cpu_total: Duration,
    /// CPU time in user mode. Not every shim sends user and system time.
    pub cpu_user: Option<Duration>,
    pub cpu_system: Option<Duration>,
    pub throttled_periods: u64,
    pub throttled: Duration,
    /// Not every shim sends it.
    pub rss_bytes: Option<u64>,
    pub cache_bytes: u64,
    pub memory_bytes: u64,
    /// Maximum memory usage. On v2 only newer kernels, and shims, have it.
    pub memory_max_bytes: Option<u64>,
    /// Swap in use; `None` if the kernel doesn't count it.
    pub swap_bytes: Option<u64>,
    /// Memory of the kernel. On v2 only newer kernels have it, and shims send only parts of it.
    pub kernel_bytes: Option<u64>,
    /// Not counted on v2.
    pub kernel_max_bytes: Option<u64>,
}

/// Size of the read buffer: more than any of the files has, `memory.stat` included.
const READ_BYTES: usize = 4 << 10;

impl Cgroup {
    /// Reads the task's usage. Blocking, for as long as the kernel takes to sum up: not for an async thread.
    ///
    /// # Errors
    /// If a file can't be read that every cgroup with limits has: the cgroup is gone, or its controllers are elsewhere.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let root = Path::new(ROOT);
        match mode() {
            Mode::V1 => on_v1(&|controller| below(&root.join(controller), &self.path)),
            Mode::V2 => on_v2(&below(root, &self.path)),
        }
    }
}

/// Reads the files of cgroup v1. Times are in nanoseconds, except for user and system time, which are in ticks.
fn on_v1(directory: &dyn Fn(&str) -> PathBuf) -> io::Result<Usage> {
    let (memory, cpuacct) = (directory("memory"), directory("cpuacct"));
    let times = text(&cpuacct, "cpuacct.stat")?;
    let throttling = text(&directory("cpu"), "cpu.stat").unwrap_or_default();
    let parts = text(&memory, "memory.stat")?;
    let memory_bytes = number(&memory, "memory.usage_in_bytes")?;
    let counted = |file| number(&memory, file).ok();
    // Swap on v1 means memory and swap together.
    let both = counted("memory.memsw.usage_in_bytes");
    Ok(Usage {
        cpu_total: Duration::from_nanos(number(&cpuacct, "cpuacct.usage")?),
        cpu_user: Some(ticks(counter(&times, "user"))),
        cpu_system: Some(ticks(counter(&times, "system"))),
        throttled_periods: counter(&throttling, "nr_throttled"),
        throttled: Duration::from_nanos(counter(&throttling, "throttled_time")),
        rss_bytes: Some(counter(&parts, "total_rss")),
        cache_bytes: counter(&parts, "total_cache"),
        memory_bytes,
        memory_max_bytes: counted("memory.max_usage_in_bytes"),
        swap_bytes: both.map(|both| both.saturating_sub(memory_bytes)),
        kernel_bytes: counted("memory.kmem.usage_in_bytes"),
        kernel_max_bytes: counted("memory.kmem.max_usage_in_bytes"),
    })
}

/// Reads the files of cgroup v2. Times are in microseconds.
fn on_v2(directory: &Path) -> io::Result<Usage> {
    let (cpu, parts) = (text(directory, "cpu.stat")?, text(directory, "memory.stat")?);
    let micros = |key| Duration::from_micros(counter(&cpu, key));
    Ok(Usage {
        cpu_total: micros("usage_usec"),
        cpu_user: Some(micros("user_usec")),
        cpu_system: Some(micros("system_usec")),
        throttled_periods: counter(&cpu, "nr_throttled"),
        throttled: micros("throttled_usec"),
        rss_bytes: Some(counter(&parts, "anon")),
        cache_bytes: counter(&parts, "file"),
        memory_bytes: number(directory, "memory.current")?,
        memory_max_bytes: number(directory, "memory.peak").ok(),
        swap_bytes: number(directory, "memory.swap.current").ok(),
        kernel_bytes: value(&parts, "kernel"),
        kernel_max_bytes: None,
    })
}

fn ticks(count: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let rest = Duration::from_nanos(count % per_second * (1_000_000_000 / per_second));
    Duration::from_secs(count / per_second) + rest
}

fn text(directory: &Path, file: &str) -> io::Result<String> {
    let path = directory.join(file);
    let read = || {
        let mut file = File::open(&path)?;
        let mut text = Vec::new();
        let mut part = [0; READ_BYTES];
        loop {
            let length = file.read(&mut part)?;
            text.extend_from_slice(&part[..length]);
            // The kernel writes such a file as a whole, so a short read is its end.
            if length < part.len() {
                return String::from_utf8(text).map_err(io::Error::other);
            }
        }
    };
    read().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn number(directory: &Path, file: &str) -> io::Result<u64> {
    let text = text(directory, file)?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{file} is not a number: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (file, text) in files {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn long_files_are_read_in_several_reads() {
        let root = tempfile::tempdir().unwrap();
        for length in [0, 1, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, 3 * READ_BYTES] {
            write(root.path(), &[("memory.stat", &"x".repeat(length))]);
            assert_eq!(text(root.path(), "memory.stat").unwrap().len(), length);
        }
    }

    #[test]
    fn v1_has_ticks_nanoseconds_and_the_whole_tree_in_its_totals() {
        let root = tempfile::tempdir().unwrap();
        let read = || on_v1(&|controller| root.path().join(controller));
        write(
            root.path(),
            &[
                ("cpuacct/cpuacct.usage", "3000000005\n"),
                ("cpuacct/cpuacct.stat", "user 250\nsystem 7\n"),
                ("memory/memory.stat", "cache 1\nrss 2\nrss_huge 3\ntotal_cache 40\ntotal_rss 60\n"),
            ],
        );
        assert!(
            read().unwrap_err().to_string().contains("memory.usage_in_bytes"),
            "it names what is missing"
        );
        write(root.path(), &[("memory/memory.usage_in_bytes", "100\n")]);
        let hertz = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap();
        let least = Usage {
            cpu_total: Duration::from_nanos(3_000_000_005),
            cpu_user: Some(Duration::from_secs(250) / hertz),
            cpu_system: Some(Duration::from_secs(7) / hertz),
            rss_bytes: Some(60),
            cache_bytes: 40,
            memory_bytes: 100,
            ..Usage::default()
        };
        assert_eq!(read().unwrap(), least, "a kernel that counts no more");
        write(
            root.path(),
            &[
                ("cpu/cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 5\n"),
                ("memory/memory.max_usage_in_bytes", "120\n"),
                ("memory/memory.memsw.usage_in_bytes", "130\n"),
                ("memory/memory.kmem.usage_in_bytes", "8\n"),
                ("memory/memory.kmem.max_usage_in_bytes", "9\n"),
            ],
        );
        let all = Usage {
            throttled_periods: 4,
            throttled: Duration::from_nanos(5),
            memory_max_bytes: Some(120),
            swap_bytes: Some(30),
            kernel_bytes: Some(8),
            kernel_max_bytes: Some(9),
            ..least
        };
        assert_eq!(read().unwrap(), all);
    }

    #[test]
    fn v2_has_microseconds_and_what_newer_kernels_count() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("cpu.stat", "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\n"),
                ("memory.stat", "anon 60\nfile 40\nkernel_stack 5\n"),
            ],
        );
        assert!(on_v2(root.path()).unwrap_err().to_string().contains("memory.current"));
        write(root.path(), &[("memory.current", "100\n")]);
        let least = Usage {
            cpu_total: Duration::from_millis(3),
            cpu_user: Some(Duration::from_millis(2)),
            cpu_system: Some(Duration::from_millis(1)),
            rss_bytes: Some(60),
            cache_bytes: 40,
            memory_bytes: 100,
            ..Usage::default()
        };
        assert_eq!(on_v2(root.path()).unwrap(), least);
        write(
            root.path(),
            &[
                (
                    "cpu.stat",
                    "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnr_throttled 4\nthrottled_usec 5\n",
                ),
                ("memory.stat", "anon 60\nfile 40\nkernel 8\nkernel_stack 5\n"),
                ("memory.peak", "120\n"),
                ("memory.swap.current", "30\n"),
            ],
        );
        let all = Usage {
            throttled_periods: 4,
            throttled: Duration::from_micros(5),
            memory_max_bytes: Some(120),
            swap_bytes: Some(30),
            kernel_bytes: Some(8),
            ..least
        };
        assert_eq!(on_v2(root.path()).unwrap(), all);
    }
}

#[cfg(test)]
mod fuzz {
    use std::collections::HashMap;

    use super::super::limits::Limit;
    use super::*;

    #[test]
    fn files() {
        crate::fuzz::text("cgroup-files", |text| {
            let cpu = Limit::Cpu { quota_us: i64::MAX, period_us: u64::MAX };
            for limit in [Limit::MemoryBytes(i64::MAX), Limit::Pids(0), cpu, Limit::CpuShares(1024)] {
                let is_set = limit.is_in(text, Mode::V1);
                assert!(!is_set || !text.contains("max"), "{text}");
            }
            let mut first = HashMap::new();
            for (key, count) in text.lines().filter_map(|line| line.split_once(' ')) {
                first.entry(key).or_insert(count);
            }
            for (key, count) in first {
                let found = value(text, key);
                assert!(
                    found.is_none_or(|found| count.trim().trim_start_matches('+').parse() == Ok(found)),
                    "{key}"
                );
                let time = ticks(found.unwrap_or(u64::MAX));
                assert!(time.as_secs() <= found.unwrap_or(u64::MAX));
            }
        });
    }
}
