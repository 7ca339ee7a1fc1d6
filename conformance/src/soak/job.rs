//! The jobs of a soaked node, and how each of them ends.

use harness::context::CaseContext;
use serde_json::{Value, json};

use crate::random::Random;

/// How a task behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It ends with 3 at SIGTERM.
    Heeds,
    /// It ignores SIGTERM.
    Deaf,
    /// It ends by itself with 11, after some seconds.
    Ends,
    /// It ends with 3 at SIGTERM, and has a network of its own.
    Networked,
}

const KINDS: [Kind; 8] = [
    Kind::Heeds,
    Kind::Heeds,
    Kind::Heeds,
    Kind::Deaf,
    Kind::Ends,
    Kind::Ends,
    Kind::Networked,
    Kind::Networked,
];

/// First line of each task's output, and the answer to SIGUSR1.
pub const UP: &str = "up\n";
pub const USR1: &str = "usr1\n";

impl Kind {
    pub fn any(random: &mut Random) -> Self {
        *random.pick(&KINDS)
    }

    /// Returns a job, which runs for `seconds` if it ends by itself.
    pub fn job(self, context: &CaseContext, seconds: usize) -> Value {
        let at_term = if self == Self::Deaf { "" } else { "exit 3" };
        let body = match self {
            Self::Ends => format!("for i in $(seq {seconds}); do sleep 1; done; exit 11"),
            _ => "while :; do sleep 1; done".to_owned(),
        };
        let traps = format!("trap '{at_term}' TERM; trap 'echo usr1' USR1; echo up");
        let mut job = context.shell(&format!("{traps}; {body}"));
        if self == Self::Networked {
            job["network_mode"] = json!("bridge");
        }
        job
    }

    /// Returns the exit code and the signal of a task that was stopped.
    pub fn stopped(self) -> (i32, i32) {
        if self == Self::Deaf { (137, 9) } else { (3, 0) }
    }

    /// Returns whether the task may have ended by itself, and not by a stop.
    pub fn may_end(self) -> bool {
        self == Self::Ends
    }
}

/// Exit code and signal of a task that has ended by itself.
pub const ENDED: (i32, i32) = (11, 0);
