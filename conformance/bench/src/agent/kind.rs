//! What is measured of a side, as the command line and the words of variations name it.

use clap::ValueEnum;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Start, exec and stop of a single task, and the floor.
    Single,
    /// CPU time and memory with many tasks at rest.
    Rest,
    /// An exec with much output.
    Output,
    /// Logs of a task that writes much.
    Logs,
    /// Starts and stops of many tasks at once.
    Flood,
}

impl Kind {
    /// Returns the name that the command line has for it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
