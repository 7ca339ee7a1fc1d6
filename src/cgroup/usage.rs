//! Resource usage of a task, read from the files of its cgroup: the same as from a shim of the runc family, for the
//! cost of the reads only, and with values that no shim sends.
//!
//! To open a file is most of a read (5 of 7 µs a file). So the files are held open for as long as somebody reads them, where
//! the plugin has descriptors to spare: there are nine for each task, and an agent's limit may be as low as 1,024.
//!
//! Source of the facts: Linux `Documentation/admin-guide/cgroup-v1` (`memory.rst`, `cpuacct.rst`), `cgroup-v2.rst`,
//! `Documentation/scheduler/sched-bwc.rst`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Cgroup, Mode, counter, mode, value};
use crate::sys::open_files::OpenFiles;

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

/// Most files of a task that are read.
const FILES: u64 = 9;

/// Number of files that may be held open by now, and of tasks that are read.
static COUNTS: Counts = Counts { held: AtomicU64::new(0), tasks: AtomicU64::new(0) };

/// A file by its hierarchy, which is empty on v2, and its name.
type Name = (&'static str, &'static str);

/// The files that a task's usage is read from.
pub(crate) struct UsageFiles {
    cgroup: Cgroup,
    /// The files that are held open. `None` where there is no room for them.
    held: Option<Held>,
    _counted: Counted,
}

struct Held {
    files: HashMap<Name, File>,
    room: Room,
}

struct Counts {
    held: AtomicU64,
    tasks: AtomicU64,
}

impl Counts {
    /// Returns the number of files that all tasks' may be that are held open.
    fn most(&self, limit: OpenFiles) -> u64 {
        limit.to_spare(self.tasks.load(Ordering::Relaxed))
    }
}

/// A task that is read, for as long as it is.
struct Counted(&'static Counts);

impl Counted {
    fn add(counts: &'static Counts) -> Self {
        counts.tasks.fetch_add(1, Ordering::Relaxed);
        Self(counts)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Room for the files of a task among all that may be held open.
struct Room(&'static Counts);

impl Room {
    /// Takes room for the files of one more task, if the limit has that many to spare.
    fn take(counts: &'static Counts, limit: OpenFiles) -> Option<Self> {
        let most = counts.most(limit);
        let more = |held: u64| held.checked_add(FILES).filter(|held| *held <= most);
        counts.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(counts))
    }

    /// Returns whether the room is needed for other files by now, of tasks that have come since.
    fn is_to_go(&self, limit: OpenFiles) -> bool {
        self.0.held.load(Ordering::Relaxed) > self.0.most(limit)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.held.fetch_sub(FILES, Ordering::Relaxed);
    }
}

impl UsageFiles {
    /// Returns the files of a task, which are held open from their first read on until this is dropped, if there is room for
    /// them.
    pub(crate) fn of(cgroup: Cgroup) -> Self {
        let counted = Counted::add(&COUNTS);
        let room = Room::take(&COUNTS, OpenFiles::now());
        Self { cgroup, held: room.map(|room| Held { files: HashMap::new(), room }), _counted: counted }
    }

    /// Reads the task's usage. Blocking, for as long as the kernel takes to sum up: not for an async thread.
    ///
    /// # Errors
    /// If a file can't be read that every cgroup with limits has: the cgroup is gone, or its controllers are elsewhere.
    pub(crate) fn read(&mut self) -> io::Result<Usage> {
        let Self { cgroup, held, .. } = self;
        if held.as_ref().is_some_and(|held| held.room.is_to_go(OpenFiles::now())) {
            *held = None;
        }
        let mut text = |name: Name| {
            let (hierarchy, file) = name;
            let path = cgroup.directory_in(hierarchy).join(file);
            let text = match held {
                None => File::open(&path).and_then(|file| text(&file)),
                Some(held) => text_held(&mut held.files, name, &path),
            };
            text.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        };
        match mode() {
            Mode::V1 => on_v1(&mut text),
            Mode::V2 => on_v2(&mut text),
        }
    }
}

/// Reads a file that is held open, or opens it, to be held if it can be read.
fn text_held(held: &mut HashMap<Name, File>, name: Name, path: &Path) -> io::Result<String> {
    let file = held.remove(&name).map_or_else(|| File::open(path), Ok)?;
    let text = text(&file)?;
    held.insert(name, file);
    Ok(text)
}

/// Reads a file by its name.
type Reader<'a> = &'a mut dyn FnMut(Name) -> io::Result<String>;

/// Reads the files of cgroup v1. Times are in nanoseconds, except for user and system time, which are in ticks.
fn on_v1(text: Reader<'_>) -> io::Result<Usage> {
    let times = text(("cpuacct", "cpuacct.stat"))?;
    let throttling = text(("cpu", "cpu.stat")).unwrap_or_default();
    let parts = text(("memory", "memory.stat"))?;
    let memory_bytes = number(text, ("memory", "memory.usage_in_bytes"))?;
    let cpu_nanos = number(text, ("cpuacct", "cpuacct.usage"))?;
    let mut counted = |file| number(text, ("memory", file)).ok();
    // Swap on v1 means memory and swap together.
    let both = counted("memory.memsw.usage_in_bytes");
    Ok(Usage {
        cpu_total: Duration::from_nanos(cpu_nanos),
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
fn on_v2(text: Reader<'_>) -> io::Result<Usage> {
    let (cpu, parts) = (text(("", "cpu.stat"))?, text(("", "memory.stat"))?);
    let micros = |key| Duration::from_micros(counter(&cpu, key));
    Ok(Usage {
        cpu_total: micros("usage_usec"),
        cpu_user: Some(micros("user_usec")),
        cpu_system: Some(micros("system_usec")),
        throttled_periods: counter(&cpu, "nr_throttled"),
        throttled: micros("throttled_usec"),
        rss_bytes: Some(counter(&parts, "anon")),
        cache_bytes: counter(&parts, "file"),
        memory_bytes: number(text, ("", "memory.current"))?,
        memory_max_bytes: number(text, ("", "memory.peak")).ok(),
        swap_bytes: number(text, ("", "memory.swap.current")).ok(),
        kernel_bytes: value(&parts, "kernel"),
        kernel_max_bytes: None,
    })
}

fn ticks(count: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let rest = Duration::from_nanos(count % per_second * (1_000_000_000 / per_second));
    Duration::from_secs(count / per_second) + rest
}

fn text(file: &File) -> io::Result<String> {
    let mut text = Vec::new();
    let mut part = [0; READ_BYTES];
    loop {
        let length = file.read_at(&mut part, text.len() as u64)?;
        text.extend_from_slice(&part[..length]);
        // The kernel writes such a file as a whole, so a short read is its end.
        if length < part.len() {
            return String::from_utf8(text).map_err(io::Error::other);
        }
    }
}

fn number(text: Reader<'_>, name: Name) -> io::Result<u64> {
    let text = text(name)?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{} is not a number: {text:?}", name.1)))
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

    fn below(root: &Path, (hierarchy, file): Name) -> io::Result<String> {
        let path = root.join(hierarchy).join(file);
        let read = std::fs::read_to_string(&path);
        read.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    #[test]
    fn a_file_is_held_until_it_can_not_be_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("memory.stat");
        let (name, mut held) = (("", "memory.stat"), HashMap::new());
        assert!(text_held(&mut held, name, &path).is_err() && held.is_empty());
        for stat in ["1\n", "22\n"] {
            std::fs::write(&path, stat).unwrap();
            assert_eq!(text_held(&mut held, name, &path).unwrap(), stat);
            assert_eq!(held.len(), 1);
        }
        held.insert(name, File::open(root.path()).unwrap());
        assert!(text_held(&mut held, name, &path).is_err() && held.is_empty());
        assert_eq!(text_held(&mut held, name, &path).unwrap(), "22\n");
    }

    #[test]
    fn files_are_held_while_there_is_room() {
        static COUNTS: Counts = Counts { held: AtomicU64::new(0), tasks: AtomicU64::new(0) };
        let limit = OpenFiles { soft: 7508, hard: 7508 };
        let take = || Room::take(&COUNTS, limit);
        let mut all: Vec<_> = (0..100).filter_map(|_| take()).collect();
        assert_eq!(all.len(), 28);
        all.pop();
        assert!(take().is_some() && take().is_some());
        let tasks: Vec<_> = (0..1034).map(|_| Counted::add(&COUNTS)).collect();
        let gone = all.iter().filter(|room| room.is_to_go(limit)).count();
        assert_eq!(gone, all.len());
        all.truncate(1);
        assert!(!all[0].is_to_go(limit) && take().is_none());
        drop((all, tasks));
        assert_eq!((COUNTS.held.load(Ordering::Relaxed), COUNTS.tasks.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn long_files_are_read_in_several_reads() {
        let root = tempfile::tempdir().unwrap();
        for length in [0, 1, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, 3 * READ_BYTES] {
            write(root.path(), &[("memory.stat", &"x".repeat(length))]);
            let file = File::open(root.path().join("memory.stat")).unwrap();
            // A second time from the beginning.
            for _ in 0..2 {
                assert_eq!(text(&file).unwrap().len(), length);
            }
        }
    }

    #[test]
    fn v1_has_ticks_nanoseconds_and_the_whole_tree_in_its_totals() {
        let root = tempfile::tempdir().unwrap();
        let read = || on_v1(&mut |name| below(root.path(), name));
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
        assert!(
            on_v2(&mut |name| below(root.path(), name)).unwrap_err().to_string().contains("memory.current")
        );
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
        assert_eq!(on_v2(&mut |name| below(root.path(), name)).unwrap(), least);
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
        assert_eq!(on_v2(&mut |name| below(root.path(), name)).unwrap(), all);
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
