//! The grammar of trials: a seed's job, acts, calls of the client, and end.

use std::fmt;

use serde_json::json;

use super::acts::{ACTS, Act, Effect, any};
use super::configuration::{Job, ODDITIES};
use crate::random::Random;

/// A call or calls of the client while the acts go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// A script check's command.
    Exec,
    /// A command with streams.
    Stream,
    /// A command on a terminal whose client goes away.
    Abandoned,
    /// A command that writes as much as it can, until its timeout.
    Flooding,
    Stats,
    Inspect,
    /// A harmless signal.
    Signal,
    /// SIGSTOP to the first process, and SIGCONT.
    Halt,
    /// The plugin is killed, and the next one recovers the task.
    Restart,
    Pause,
}

pub const MOVES: [(Move, &str); 10] = [
    (Move::Exec, "exec"),
    (Move::Stream, "stream"),
    (Move::Abandoned, "abandoned"),
    (Move::Flooding, "flooding"),
    (Move::Stats, "stats"),
    (Move::Inspect, "inspect"),
    (Move::Signal, "signal"),
    (Move::Halt, "halt"),
    (Move::Restart, "restart"),
    (Move::Pause, "pause"),
];

/// How the client ends the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A signal at which the program exits.
    Told,
    /// A stop with time enough.
    Stop,
    /// A stop with next to no time.
    ShortStop,
    /// A destroy by force.
    Forced,
    /// A stop while the plugin is killed, and a stop by the next one.
    InterruptedStop,
}

const ENDINGS: [Ending; 5] =
    [Ending::Told, Ending::Stop, Ending::ShortStop, Ending::Forced, Ending::InterruptedStop];

/// A trial: all that its seed decides.
pub struct Trial {
    pub seed: u64,
    pub job: Job,
    pub oddities: Vec<&'static str>,
    pub acts: Vec<&'static Act>,
    pub moves: Vec<Move>,
    pub ending: Ending,
    /// Whether the next attempt is started on what the task has left in its allocation.
    pub again: bool,
    pub memory_mb: i64,
}

impl Trial {
    /// Returns the trial of a seed, with this act alone if there is one.
    pub fn of(seed: u64, only: Option<&'static Act>) -> Self {
        let mut random = Random::of(seed);
        let all: Vec<&Act> = ACTS.iter().collect();
        let mut acts = random.some(&all, 1, 4);
        if let Some(act) = only {
            acts = vec![act];
        }
        let mut job = Job::default();
        job.options.insert("pids_limit".to_owned(), json!(*random.pick(&[150, 300, 2000])));
        let mut oddities = Vec::new();
        let all: Vec<usize> = (0..ODDITIES.len()).collect();
        // A refused job does nothing, so that many have none of these.
        let most = if only.is_some() { 0 } else { *random.pick(&[0, 0, 1, 1, 2, 3]) };
        for oddity in random.some(&all, 0, most) {
            ODDITIES[oddity].apply(&mut random, &mut job);
            oddities.push(ODDITIES[oddity].name);
        }
        if any(&acts, Effect::NeedsCgroup) {
            job.volumes.push("{cgroup}:/cg".to_owned());
        }
        if any(&acts, Effect::NeedsAdmin) {
            job.options.insert("cap_add".to_owned(), json!(["SYS_ADMIN"]));
        }
        let crowded = any(&acts, Effect::NeedsMemory);
        if crowded && !acts.iter().any(|act| act.name == "bomb") {
            // 10,000 processes are a matter of the operator's limit then. As many that double all the time would be a
            // test of the machine.
            job.options.remove("pids_limit");
        }
        let calls: Vec<Move> = MOVES.iter().map(|(call, _)| *call).collect();
        let count = random.below(5);
        let moves = (0..count).map(|_| *random.pick(&calls)).collect();
        let halts = any(&acts, Effect::Halts) || any(&acts, Effect::Ignores);
        let mut ending = *random.pick(if halts { &ENDINGS[2..] } else { &ENDINGS });
        if ending == Ending::Told && job.is_unsure {
            // The program may have no handler.
            ending = Ending::Stop;
        }
        let memory_mb = if crowded { 4000 } else { *random.pick(&[64, 128, 256]) };
        Self { seed, job, oddities, acts, moves, ending, again: random.chance(40), memory_mb }
    }

    /// Returns whether an act has an effect.
    pub fn has(&self, effect: Effect) -> bool {
        any(&self.acts, effect)
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let acts: Vec<_> = self.acts.iter().map(|act| act.name).collect();
        let name = |call: &Move| MOVES.iter().find(|(other, _)| other == call).map_or("?", |(_, name)| name);
        let moves: Vec<_> = self.moves.iter().map(name).collect();
        write!(to, "seed {}: {}", self.seed, acts.join(" "))?;
        if !self.oddities.is_empty() {
            write!(to, "; odd {}", self.oddities.join(" "))?;
        }
        write!(to, "; {} {:?}{}", moves.join(" "), self.ending, if self.again { ", again" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_trial_again() {
        for seed in 0..200 {
            assert_eq!(Trial::of(seed, None).to_string(), Trial::of(seed, None).to_string());
        }
    }

    #[test]
    fn some_hundred_trials_have_all_acts_oddities_and_moves() {
        let trials: Vec<_> = (0..400).map(|seed| Trial::of(seed, None)).collect();
        let acts: BTreeSet<_> =
            trials.iter().flat_map(|trial| trial.acts.iter().map(|act| act.name)).collect();
        let odd: BTreeSet<_> = trials.iter().flat_map(|trial| trial.oddities.iter().copied()).collect();
        let moves: BTreeSet<_> = trials.iter().flat_map(|trial| trial.moves.iter().copied()).collect();
        assert_eq!((acts.len(), odd.len(), moves.len()), (ACTS.len(), ODDITIES.len(), MOVES.len()));
    }

    #[test]
    fn no_job_gets_the_processes_of_the_host() {
        for seed in 0..2000 {
            assert_ne!(Trial::of(seed, None).job.options.get("pid_mode"), Some(&json!("host")), "{seed}");
        }
    }
}
