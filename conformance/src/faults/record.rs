//! The results of trials: a file that a later run goes on with, lines for whoever watches, and a table at the end.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::point::Trial;
use super::scenario::Scenario;
use super::test_bed::Outcome;

/// Words for the end of a trial in the file.
const HELD: &str = "held";
const MISSED: &str = "missed";
const FAILED: &str = "failed";

#[derive(Default)]
struct Counts {
    held: usize,
    missed: usize,
    failed: usize,
    took: Duration,
}

/// The results so far.
pub struct Record {
    file: Option<File>,
    known: HashSet<String>,
    counts: BTreeMap<String, Counts>,
    expected: usize,
    done: usize,
}

impl Record {
    /// Reads the results of an earlier run, if there is one.
    ///
    /// # Errors
    /// Names the file that can't be used.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let mut record =
            Self { file: None, known: HashSet::new(), counts: BTreeMap::new(), expected: 0, done: 0 };
        let Some(path) = path else { return Ok(record) };
        let context = || format!("the record {}", path.display());
        let earlier =
            if path.exists() { std::fs::read_to_string(path).with_context(context)? } else { String::new() };
        for line in earlier.lines() {
            let fields: Vec<_> = line.split('\t').collect();
            let [scenario, trial, result, milliseconds] = fields[..] else { continue };
            // A failure is tried again, so that its reason is shown.
            if result == FAILED {
                continue;
            }
            record.known.insert(format!("{scenario}\t{trial}"));
            let took = Duration::from_millis(milliseconds.parse().with_context(context)?);
            record.count(scenario, result, took);
        }
        let mut options = OpenOptions::new();
        record.file = Some(options.append(true).create(true).open(path).with_context(context)?);
        Ok(record)
    }

    pub fn has(&self, scenario: Scenario, trial: &Trial) -> bool {
        self.known.contains(&format!("{scenario}\t{trial}"))
    }

    /// Sets the number of trials that are to come.
    pub fn expect(&mut self, trials: usize) {
        self.expected = trials;
    }

    /// Adds a result, and prints it if it is a failure.
    ///
    /// # Errors
    /// Fails if it can't be kept.
    pub fn add(
        &mut self,
        scenario: Scenario,
        trial: &Trial,
        tried: &Result<Outcome, String>,
        took: Duration,
    ) -> Result<()> {
        self.done += 1;
        let word = match tried {
            Ok(Outcome::Held) => HELD,
            Ok(Outcome::Missed) => MISSED,
            Err(_) => FAILED,
        };
        if let Err(why) = tried {
            println!("FAILED {scenario}: {trial}\n  {}", why.trim_end().replace('\n', "\n  "));
        } else if self.done.is_multiple_of(50) {
            println!("{} of {}", self.done, self.expected);
        }
        self.count(&scenario.to_string(), word, took);
        if let Some(file) = &mut self.file {
            writeln!(file, "{scenario}\t{trial}\t{word}\t{}", took.as_millis()).context("keep a result")?;
        }
        Ok(())
    }

    fn count(&mut self, scenario: &str, result: &str, took: Duration) {
        let counts = self.counts.entry(scenario.to_owned()).or_default();
        counts.took += took;
        match result {
            HELD => counts.held += 1,
            MISSED => counts.missed += 1,
            _ => counts.failed += 1,
        }
    }

    /// Returns whether any trial has reached its point.
    pub fn has_tried(&self) -> bool {
        self.counts.values().any(|counts| counts.held + counts.failed > 0)
    }

    pub fn has_failures(&self) -> bool {
        self.counts.values().any(|counts| counts.failed > 0)
    }

    /// Returns the table of all results.
    pub fn table(&self, points: &BTreeMap<Scenario, usize>) -> String {
        let mut table =
            "| scenario | points | tried | not reached | failed | seconds |\n|---|---|---|---|---|---|\n"
                .to_owned();
        let mut all = Counts::default();
        for (scenario, counts) in &self.counts {
            let points = points.iter().find(|(name, _)| name.to_string() == *scenario);
            let points = points.map_or("-".to_owned(), |(_, points)| points.to_string());
            table.push_str(&counts.row(scenario, &points));
            all.held += counts.held;
            all.missed += counts.missed;
            all.failed += counts.failed;
            all.took += counts.took;
        }
        table + &all.row("all", &points.values().sum::<usize>().to_string())
    }
}

impl Counts {
    fn row(&self, scenario: &str, points: &str) -> String {
        let (tried, took) = (self.held + self.failed, self.took.as_secs());
        format!("| {scenario} | {points} | {tried} | {} | {} | {took} |\n", self.missed, self.failed)
    }
}
