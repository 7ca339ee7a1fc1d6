//! The progress of a run, in one line of a terminal that is overwritten. Prints nothing if stderr isn't a terminal.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(100);

pub(crate) struct Progress {
    shown: bool,
    last: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { shown: stderr().is_terminal(), last: None }
    }

    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if !self.shown || self.last.is_some_and(|last| last.elapsed() < EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        let _ = write!(stderr(), "\r\x1b[K{}", line());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown && self.last.is_some() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
