//! Which processes there are, and what the kernel says of one in `/proc/<pid>/stat`.
//!
//! Source of the facts: Linux `proc_pid_stat(5)`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub state: char,
    pub parent: i32,
    pub session: i32,
    /// In the kernel's ticks since the machine's boot.
    pub started_ticks: u64,
    /// As of waitpid; of a process that has ended and was not waited for.
    pub exit_status: i32,
}

impl Stat {
    /// None where there is no such process.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name in front of the state is in parentheses and may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        // The first of these is the third field, by the manual's count.
        let field = |number: usize| fields.get(number - 3);
        Some(Self {
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            started_ticks: field(22)?.parse().ok()?,
            exit_status: field(52)?.parse().ok()?,
        })
    }

    /// Whether it has ended, and only its parent is yet to take note.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// The pids of all processes.
pub(crate) fn all_pids() -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The processes that descend from one, as far as none of those between has ended.
pub(crate) fn descendants(of: i32) -> Vec<i32> {
    below(of, &parents())
}

/// Processes, each with its parent.
type Parents = Vec<(i32, i32)>;

/// Those of all.
fn parents() -> Parents {
    let parent = |pid: i32| Some((pid, Stat::read(pid)?.parent));
    all_pids().into_iter().filter_map(parent).collect()
}

/// How long one look at all processes counts.
const MOMENT: Duration = Duration::from_secs(1);

/// For those who ask for many processes' descendants one after the other, and know what to make of one that has ended since:
/// a look at all that there are takes milliseconds on a machine with many.
#[derive(Default)]
pub(crate) struct Descent {
    looked: Mutex<Option<(Instant, Arc<Parents>)>>,
}

impl Descent {
    /// [`descendants`], as they were a moment ago at most. Blocking: not for an async thread.
    pub(crate) fn of(&self, pid: i32) -> Vec<i32> {
        below(pid, &self.parents())
    }

    /// Those who ask while somebody looks wait for that.
    fn parents(&self) -> Arc<Parents> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, parents)) = &*looked
            && at.elapsed() < MOMENT
        {
            return Arc::clone(parents);
        }
        let parents = Arc::new(parents());
        *looked = Some((Instant::now(), Arc::clone(&parents)));
        parents
    }
}

fn below(of: i32, parents: &[(i32, i32)]) -> Vec<i32> {
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_descends_from_a_process_is_found_at_whatever_remove() {
        let parents = [(2, 1), (3, 2), (4, 3), (5, 1), (6, 4), (7, 5)];
        assert_eq!(below(2, &parents), [3, 4, 6]);
        assert_eq!(below(7, &parents), Vec::<i32>::new());
    }

    #[test]
    fn descendants_are_looked_for_once_in_a_moment() {
        let (descent, nobody) = (Descent::default(), i32::MAX);
        assert_eq!(descent.of(nobody), Vec::<i32>::new());
        *descent.looked.lock().unwrap() = Some((Instant::now(), Arc::new(vec![(8, nobody), (9, 8)])));
        assert_eq!(descent.of(nobody), [8, 9]);
        if let Some((at, _)) = &mut *descent.looked.lock().unwrap() {
            *at -= MOMENT;
        }
        assert_eq!(descent.of(nobody), Vec::<i32>::new());
    }

    #[test]
    fn a_name_with_anything_in_it_does_not_shift_the_fields() {
        let middle = vec!["0"; 15].join(" ");
        let rest = vec!["0"; 29].join(" ");
        let stat = Stat::parse(&format!("7 (a) R 1 b)) Z 3 4 5 {middle} 4711 {rest} 1280\n")).unwrap();
        let wanted = Stat { state: 'Z', parent: 3, session: 5, started_ticks: 4711, exit_status: 1280 };
        assert_eq!(stat, wanted);
        assert!(stat.has_ended());
        assert_eq!(Stat::parse("7 (a"), None);
    }
}
