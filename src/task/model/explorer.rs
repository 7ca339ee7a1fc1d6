//! Explores a model breadth first: all states that can be reached, and the steps between them. Knows no task.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// The reason why a step may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A step that the plugin, the agent or a shim takes by itself, sooner or later.
    Progress,
    /// A step that may never come: an end of the task's own, a wish of the operator's.
    Chance,
    /// A failure of something.
    Fault,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) attempt: usize,
    pub(super) kind: Kind,
}

pub(super) trait Model: Clone + Eq + Hash + Debug {
    /// Returns the steps that may be taken, each with the state after it.
    fn steps(&self) -> Vec<(Step, Self)>;
    /// Returns the invariant that the step to this state has broken.
    fn broken(&self) -> Option<&'static str>;
}

/// All states of a model, in the order in which they were found.
pub(super) struct Explored<M> {
    pub(super) states: Vec<M>,
    /// Step by which each state was first found, and the state before it.
    found_by: Vec<Option<(usize, Step)>>,
    /// States before each state, without those from which only a fault or chance leads to it.
    before: Vec<Vec<u32>>,
}

impl<M: Model> Explored<M> {
    /// Explores a model from its initial states. Panics with the shortest way to a broken invariant.
    pub(super) fn from(initial: &[M]) -> Self {
        let mut known: HashMap<M, usize, BuildHasherDefault<Mixer>> = HashMap::default();
        let mut explored = Self { states: Vec::new(), found_by: Vec::new(), before: Vec::new() };
        for state in initial {
            known.insert(state.clone(), explored.add(state.clone(), None));
        }
        let mut next = 0;
        while next < explored.states.len() {
            for (step, state) in explored.states[next].steps() {
                let at = match known.get(&state) {
                    Some(at) => *at,
                    None => {
                        let at = explored.add(state.clone(), Some((next, step)));
                        if let Some(broken) = state.broken() {
                            panic!("{broken}{}", explored.way_to(at));
                        }
                        known.insert(state, at);
                        at
                    }
                };
                if step.kind == Kind::Progress {
                    explored.before[at].push(u32::try_from(next).unwrap());
                }
            }
            next += 1;
        }
        explored
    }

    fn add(&mut self, state: M, found_by: Option<(usize, Step)>) -> usize {
        self.states.push(state);
        self.found_by.push(found_by);
        self.before.push(Vec::new());
        self.states.len() - 1
    }

    /// Panics with the shortest way to a state that `needs` a goal, and from which progress alone leads to none.
    pub(super) fn require(&self, what: &str, needs: impl Fn(&M) -> bool, is_goal: impl Fn(&M) -> bool) {
        let mut leads: Vec<bool> = self.states.iter().map(&is_goal).collect();
        let mut reached: Vec<usize> = (0..leads.len()).filter(|at| leads[*at]).collect();
        assert!(!reached.is_empty(), "{what}: never");
        while let Some(at) = reached.pop() {
            for before in &self.before[at] {
                let before = *before as usize;
                if !std::mem::replace(&mut leads[before], true) {
                    reached.push(before);
                }
            }
        }
        let stuck = (0..leads.len()).find(|at| !leads[*at] && needs(&self.states[*at]));
        if let Some(at) = stuck {
            panic!("{what}: no way leads there{}", self.way_to(at));
        }
    }

    fn way_to(&self, at: usize) -> String {
        let mut way = Vec::new();
        let mut from = at;
        while let Some((before, Step { name, attempt, kind })) = &self.found_by[from] {
            way.push(format!("{name} (attempt {attempt}, {kind:?})"));
            from = *before;
        }
        way.reverse();
        format!("\n  {}\nends in {:#?}", way.join("\n  "), self.states[at])
    }
}

/// A hasher for keys that are known to be harmless: quicker in a debug build than the standard library's.
#[derive(Default)]
pub(super) struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
    }
    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word));
    }
    fn write_isize(&mut self, word: isize) {
        self.mix(word.unsigned_abs() as u64);
    }
    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}
