//! Watches the first processes of all tasks, from beginning to end: what a look now and then would miss.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use harness::processes;

const PACE: Duration = Duration::from_millis(200);

/// When an allocation was seen to have a process, for the first and the last time, and the pids of all that it had.
#[derive(Debug, Clone)]
pub struct Life {
    pub first: Instant,
    pub last: Instant,
    pub pids: BTreeSet<i32>,
}

#[derive(Default)]
struct Seen {
    lives: BTreeMap<String, Life>,
    /// Each allocation that had two first processes at the same time.
    twice: BTreeSet<String>,
}

/// The watch. It ends with its drop.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch the allocations whose directories are in these.
    pub fn begin(allocations: Vec<PathBuf>) -> Self {
        let (seen, ended) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (of_thread, until) = (Arc::clone(&seen), Arc::clone(&ended));
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                look(&allocations, &of_thread);
                thread::sleep(PACE);
            }
        });
        Self { seen, ended, thread: Some(thread) }
    }

    /// Returns the life of an allocation's tasks so far. `None` if it was never seen to have any process.
    pub fn life(&self, allocation: &str) -> Option<Life> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).lives.get(allocation).cloned()
    }

    /// Returns the allocations that have had two first processes at the same time.
    pub fn twice(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).twice.iter().cloned().collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn look(allocations: &[PathBuf], seen: &Mutex<Seen>) {
    let now = Instant::now();
    let running = running(allocations);
    // A process that ends may still be listed when the next one is there.
    let several = running.iter().filter(|(_, pids)| pids.len() > 1).map(|(id, _)| id.clone());
    let several: Vec<_> = several.collect();
    if !several.is_empty() {
        thread::sleep(PACE);
    }
    let is_alive = |pid: &&i32| processes::alive(**pid);
    let twice = several.into_iter().filter(|id| running[id].iter().filter(is_alive).count() > 1);
    let twice: Vec<_> = twice.collect();
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.twice.extend(twice);
    for (id, pids) in running {
        let life = seen.lives.entry(id).or_insert(Life { first: now, last: now, pids: BTreeSet::new() });
        life.last = now;
        life.pids.extend(pids);
    }
}

/// Returns the first processes of the allocations that have a directory in one of these, by their ids.
pub fn running(allocations: &[PathBuf]) -> BTreeMap<String, Vec<i32>> {
    let mut found = BTreeMap::<String, Vec<i32>>::new();
    for (name, pid) in processes::first_of_tasks() {
        let id = name.split('.').next().unwrap_or_default();
        // Whoever adopts the processes of a dead shim may take its time to reap them.
        if processes::alive(pid) && allocations.iter().any(|directory| directory.join(id).exists()) {
            found.entry(id.to_owned()).or_default().push(pid);
        }
    }
    found
}
