//! A window in which no process that is moved between cgroups waits for a grace period of the kernel's.
//!
//! The kernel takes a lock of the whole machine to move a process. To take it, the kernel waits for all CPUs, some ten
//! milliseconds; for as long after that it takes the lock at once. In a window, a thread has the kernel take the lock
//! again and again, so that the moves of a runtime and of this plugin wait for nothing.
//!
//! That is of use where processes are moved in hierarchies of version 1. The thread moves only itself, into the cgroup of
//! version 2 beside these that it is in, which is no change. If the plugin is moved meanwhile, the kernel refuses the write:
//! a thread can't leave its process for another cgroup. Version 1 has no such rule, so without a hierarchy of version 2
//! there is no window.
//!
//! Source of the facts: Linux `kernel/cgroup/cgroup.c` (`cgroup_attach_lock`, `cgroup_migrate_prepare_dst`,
//! `cgroup_attach_permissions`), `kernel/rcu/sync.c`, `Documentation/admin-guide/cgroup-v2.rst` (`favordynmods`).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::gettid;

use super::{Mode, ROOT, below, mode};

/// Maximum time that one guard keeps a window open: a runtime that hangs is no reason to go on.
const LIMIT: Duration = Duration::from_millis(250);
/// Pause between two writes. One that comes later than a grace period after the last costs the thread a wait.
const INTERVAL: Duration = Duration::from_millis(2);
/// Maximum time that a window is open, by however many guards, and the rest after it.
const MOST_OPEN: Duration = Duration::from_secs(5);
/// Time of a write that has waited for a grace period, or for others that hold the lock: no write but the first is to.
const SLOW: Duration = Duration::from_millis(3);
/// Number of slow writes with which a window is of no use, and holds others up.
const MOST_SLOW: usize = 3;
/// First and longest rest after a window of slow writes.
const RESTS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

static WINDOW: Window = Window::new();

/// A guard that keeps the window open until it is dropped, or for [`LIMIT`]. Without a thread, or a cgroup that can be
/// written to, there is no window, and moves wait as ever.
#[must_use]
pub(crate) struct MoveWindow {
    number: u64,
}

impl MoveWindow {
    /// Opens the window, if it isn't open. It takes effect one grace period later.
    pub(crate) fn open() -> Self {
        // Where only version 2 is, a runtime has the kernel make its processes where they are to be.
        if matches!(mode(), Mode::V2) {
            return Self { number: 0 };
        }
        let number = WINDOW.add(Instant::now() + LIMIT);
        WINDOW.ensure_thread();
        Self { number }
    }

    /// Begins the time of this guard anew.
    pub(crate) fn renew(&self) {
        WINDOW.extend(self.number, Instant::now() + LIMIT);
    }
}

impl Drop for MoveWindow {
    fn drop(&mut self) {
        WINDOW.state().guards.remove(&self.number);
    }
}

struct Window {
    state: Mutex<State>,
    opened: Condvar,
}

struct State {
    last: u64,
    /// Times until which the guards keep the window open.
    guards: BTreeMap<u64, Instant>,
    has_thread: bool,
    /// Time until which the window is closed whatever guards there are.
    rests_until: Option<Instant>,
}

/// Why a window was closed.
#[derive(Debug, PartialEq, Eq)]
enum Closed {
    Unused,
    TooLong,
    Slow,
}

impl Window {
    const fn new() -> Self {
        let state = State { last: 0, guards: BTreeMap::new(), has_thread: false, rests_until: None };
        Self { state: Mutex::new(state), opened: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, until: Instant) -> u64 {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.guards.insert(number, until);
        self.opened.notify_one();
        number
    }

    fn extend(&self, number: u64, until: Instant) {
        if let Some(guard) = self.state().guards.get_mut(&number) {
            *guard = until;
            self.opened.notify_one();
        }
    }

    /// Starts the thread, once.
    fn ensure_thread(&'static self) {
        let mut state = self.state();
        if state.has_thread || state.rests_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        state.has_thread = true;
        // Others need not wait for the kernel, which makes a thread only while nobody has the lock.
        drop(state);
        let spawned = thread::Builder::new().name("move-window".to_owned()).spawn(|| self.run());
        if let Err(error) = spawned {
            tracing::debug!(%error, "no thread for moves between cgroups without a wait");
            self.state().has_thread = false;
            self.rest(RESTS[1]);
        }
    }

    fn run(&self) {
        let (mut told, mut pause) = (String::new(), RESTS[0]);
        loop {
            self.wait_until_open();
            match self.hold_open(OwnCgroup::find, OwnCgroup::enter) {
                Ok(Closed::Unused) => pause = RESTS[0],
                Ok(Closed::TooLong) => self.rest(MOST_OPEN),
                Ok(Closed::Slow) => {
                    self.rest(pause);
                    pause = (pause * 2).min(RESTS[1]);
                }
                Err(error) => {
                    self.rest(RESTS[1]);
                    let error = error.to_string();
                    if error != told {
                        tracing::debug!(
                            error,
                            "moves between cgroups wait for the kernel, as without this plugin"
                        );
                        told = error;
                    }
                }
            }
        }
    }

    fn rest(&self, pause: Duration) {
        self.state().rests_until = Some(Instant::now() + pause);
    }

    fn wait_until_open(&self) {
        let mut state = self.state();
        while !state.is_open(Instant::now()) {
            state = self.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes for as long as the window is open. Where the plugin is, is looked at anew from time to time.
    fn hold_open<T>(
        &self,
        find: impl Fn() -> io::Result<T>,
        write: impl Fn(&T) -> io::Result<()>,
    ) -> io::Result<Closed> {
        let began = Instant::now();
        let (mut found, mut found_at) = (find()?, began);
        let (mut is_first, mut slow) = (true, 0);
        while self.state().is_open(Instant::now()) {
            let at = Instant::now();
            if at.duration_since(began) > MOST_OPEN {
                return Ok(Closed::TooLong);
            }
            if at.duration_since(found_at) > LIMIT {
                (found, found_at) = (find()?, at);
            }
            let at = Instant::now();
            write(&found)?;
            slow += usize::from(!is_first && at.elapsed() > SLOW);
            if slow == MOST_SLOW {
                return Ok(Closed::Slow);
            }
            is_first = false;
            thread::sleep(INTERVAL);
        }
        Ok(Closed::Unused)
    }
}

impl State {
    fn is_open(&self, now: Instant) -> bool {
        self.rests_until.is_none_or(|until| until <= now) && self.guards.values().any(|until| now < *until)
    }
}

/// The cgroup of version 2 that the plugin is in.
struct OwnCgroup {
    threads: File,
}

impl OwnCgroup {
    fn find() -> io::Result<Self> {
        let mounted = Path::new(ROOT).join("unified");
        let listed = std::fs::read_to_string("/proc/self/cgroup")?;
        let own = own_directory(&mounted, &listed)?;
        if !is_domain(&own) || std::fs::read_to_string("/proc/thread-self/cgroup")? != listed {
            // Within a threaded one, the kernel lets a thread leave its process.
            return Err(io::Error::other(format!("the plugin's cgroup {} is a threaded one", own.display())));
        }
        if is_without_wait(&std::fs::read_to_string("/proc/self/mountinfo")?, &mounted) {
            return Err(io::Error::other("no move waits, by the mount option favordynmods"));
        }
        let path = own.join("cgroup.threads");
        let opened = OpenOptions::new().write(true).open(&path);
        let threads = opened
            .map_err(|error| io::Error::new(error.kind(), format!("open {}: {error}", path.display())))?;
        Ok(Self { threads })
    }

    /// Moves the calling thread to where it is.
    fn enter(&self) -> io::Result<()> {
        // For 0, which is the calling thread as well, newer kernels don't take the lock.
        (&self.threads).write_all(gettid().to_string().as_bytes())
    }
}

/// Returns the directory of the cgroup of version 2 that `/proc/self/cgroup` names.
fn own_directory(mounted: &Path, listed: &str) -> io::Result<PathBuf> {
    let path = listed.lines().find_map(|line| line.strip_prefix("0::").map(Path::new));
    let path = path.ok_or_else(|| io::Error::other("the plugin is in no cgroup of version 2"))?;
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !is_plain {
        // Outside the plugin's cgroup namespace.
        return Err(io::Error::other(format!("the plugin's cgroup {} is not mounted", path.display())));
    }
    Ok(below(mounted, path))
}

/// Returns false for a threaded cgroup, and for one with such below it. The root has no file that says so.
fn is_domain(cgroup: &Path) -> bool {
    match std::fs::read_to_string(cgroup.join("cgroup.type")) {
        Ok(text) => text.trim() == "domain",
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Returns whether a hierarchy is mounted so that the kernel never waits for a move.
fn is_without_wait(mountinfo: &str, mounted: &Path) -> bool {
    let is_there = |line: &&str| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == mounted);
    let options = |line: &str| line.rsplit(' ').next().unwrap_or_default().to_owned();
    mountinfo.lines().filter(is_there).any(|line| options(line).split(',').any(|is| is == "favordynmods"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_window_is_open_until_its_last_guard_is_dropped_or_over_and_not_while_it_rests() {
        let window = Window::new();
        let now = Instant::now();
        let is_open = |after: Duration| window.state().is_open(now + after);
        assert!(!is_open(Duration::ZERO));
        let (first, second) = (window.add(now + LIMIT), window.add(now + LIMIT * 2));
        assert!(is_open(Duration::ZERO) && is_open(LIMIT) && !is_open(LIMIT * 2));
        window.state().guards.remove(&second);
        assert!(is_open(Duration::ZERO) && !is_open(LIMIT));
        window.extend(first, now + LIMIT * 2);
        window.extend(second, now + LIMIT * 9);
        assert!(is_open(LIMIT) && !is_open(LIMIT * 2), "one that is gone is not renewed");
        window.state().rests_until = Some(now + LIMIT);
        assert!(!is_open(Duration::ZERO) && is_open(LIMIT));
        window.state().guards.remove(&first);
        assert!(!is_open(LIMIT));
    }

    #[test]
    fn a_window_is_written_for_while_it_is_open_and_of_use() {
        let window = Window::new();
        let count = Cell::new(0);
        let writes = |last: usize, time: Duration| {
            count.set(0);
            let write = |(): &()| {
                count.set(count.get() + 1);
                if count.get() == last {
                    window.state().guards.clear();
                }
                thread::sleep(time);
                Ok(())
            };
            window.hold_open(|| Ok(()), write)
        };
        assert_eq!((writes(9, Duration::ZERO).unwrap(), count.get()), (Closed::Unused, 0), "it was not open");
        let until = Instant::now() + Duration::from_secs(600);
        window.add(until);
        assert_eq!((writes(2, Duration::ZERO).unwrap(), count.get()), (Closed::Unused, 2));
        window.add(until);
        // The first one waits as anybody does.
        assert_eq!((writes(9, SLOW * 2).unwrap(), count.get()), (Closed::Slow, 1 + MOST_SLOW));
        window.hold_open(|| Ok(()), |(): &()| Err(io::ErrorKind::ResourceBusy.into())).unwrap_err();
        window.hold_open(|| Err::<(), _>(io::ErrorKind::NotFound.into()), |(): &()| Ok(())).unwrap_err();
    }

    #[test]
    fn a_hierarchy_without_waits_is_told_by_its_mount() {
        let line = |at: &str, options: &str| {
            format!("25 30 0:22 / {at} rw,nosuid shared:9 - cgroup2 cgroup2 {options}\n")
        };
        let at = Path::new("/sys/fs/cgroup/unified");
        assert!(is_without_wait(&line("/sys/fs/cgroup/unified", "rw,nsdelegate,favordynmods"), at));
        assert!(!is_without_wait(&line("/sys/fs/cgroup/unified", "rw,nsdelegate"), at));
        assert!(!is_without_wait(&line("/other", "rw,favordynmods"), at));
    }

    #[test]
    fn the_plugins_own_cgroup_is_that_of_version_2() {
        let mounted = Path::new("/sys/fs/cgroup/unified");
        let hybrid = "3:memory:/agent\n1:name=systemd:/\n0::/system.slice/nomad.service\n";
        assert_eq!(own_directory(mounted, hybrid).unwrap(), mounted.join("system.slice/nomad.service"));
        assert_eq!(own_directory(mounted, "0::/\n").unwrap(), mounted.join(""));
        for (listed, words) in [("3:memory:/agent\n", "version 2"), ("0::/../other\n", "not mounted")] {
            let error = own_directory(mounted, listed).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_threaded_cgroup_is_not_entered() {
        let cgroup = tempfile::tempdir().unwrap();
        assert!(is_domain(cgroup.path()), "the root");
        for (kind, is) in [("domain\n", true), ("domain threaded\n", false), ("threaded\n", false)] {
            std::fs::write(cgroup.path().join("cgroup.type"), kind).unwrap();
            assert_eq!(is_domain(cgroup.path()), is, "{kind}");
        }
    }
}
