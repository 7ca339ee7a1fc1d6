//! The results of trials, by act and by oddity.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::acts::ACTS;
use super::configuration::ODDITIES;
use super::test_bed::Outcome;
use super::trial::Trial;

#[derive(Default, Clone, Copy)]
struct Counts {
    ran: usize,
    refused: usize,
    failed: usize,
}

/// Counts of the trials so far.
#[derive(Default)]
pub struct Table {
    acts: BTreeMap<&'static str, Counts>,
    oddities: BTreeMap<&'static str, Counts>,
    all: Counts,
    pub took: Duration,
    /// Longest time that a command in the bystander took, after a trial.
    pub slowest: Duration,
}

impl Table {
    /// Adds a trial's result.
    pub fn add(&mut self, trial: &Trial, outcome: Option<Outcome>, took: Duration) {
        for act in &trial.acts {
            self.acts.entry(act.name).or_default().count(outcome);
        }
        for name in &trial.oddities {
            self.oddities.entry(name).or_default().count(outcome);
        }
        self.all.count(outcome);
        self.took += took;
    }

    pub fn done(&self) -> usize {
        self.all.ran + self.all.refused + self.all.failed
    }

    /// Returns whether any trial's job has run.
    pub fn has_tried(&self) -> bool {
        self.all.ran + self.all.failed > 0
    }

    pub fn has_failures(&self) -> bool {
        self.all.failed > 0
    }
}

impl Counts {
    fn count(&mut self, outcome: Option<Outcome>) {
        match outcome {
            Some(Outcome::Ran) => self.ran += 1,
            Some(Outcome::Refused) => self.refused += 1,
            None => self.failed += 1,
        }
    }

    fn row(self, name: &str, what: &str) -> String {
        format!("| {name} | {what} | {} | {} | {} |\n", self.ran, self.refused, self.failed)
    }
}

impl Table {
    /// Returns the table of all acts and oddities.
    pub fn text(&self) -> String {
        let counts = |of: &BTreeMap<_, Counts>, name| of.get(name).copied().unwrap_or_default();
        let mut text = "| act of the task | | ran | refused | failed |\n|---|---|---|---|---|\n".to_owned();
        ACTS.iter().for_each(|act| text.push_str(&counts(&self.acts, act.name).row(act.name, act.what)));
        text.push_str("\n| oddity of the job | | ran | refused | failed |\n|---|---|---|---|---|\n");
        ODDITIES
            .iter()
            .for_each(|odd| text.push_str(&counts(&self.oddities, odd.name).row(odd.name, odd.what)));
        let Counts { ran, refused, failed } = self.all;
        let _ = writeln!(text, "\n{} trials: {ran} ran, {refused} refused, {failed} failed.", self.done());
        text
    }
}
