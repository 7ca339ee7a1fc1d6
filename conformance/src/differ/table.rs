//! The counts of a run, and its table of explained differences.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::compare::{Comparison, Difference};
use super::explained::{self, ALL};
use super::job::Job;

/// Longest value of a fact that is printed.
const SHOWN: usize = 300;

/// The counts of all jobs so far.
#[derive(Debug, Default)]
pub struct Table {
    jobs: usize,
    /// Jobs that couldn't be run to their end on one of the sides.
    failed: Vec<String>,
    facts: usize,
    different: usize,
    /// How often each explanation was one.
    explained: BTreeMap<usize, usize>,
    /// Each difference without an explanation, how often it was seen, and in which job first.
    unexplained: BTreeMap<(String, String, String), (usize, String)>,
    refused: usize,
    refused_without_reason: usize,
}

impl Table {
    pub fn add(&mut self, job: &Job, compared: Comparison) {
        self.jobs += 1;
        self.facts += compared.facts;
        self.different += compared.differences.len();
        for difference in compared.differences {
            let explanation = explained::of(&difference);
            let is_refusal = difference.is_refusal();
            self.refused += usize::from(is_refusal);
            self.refused_without_reason += usize::from(is_refusal && explanation.is_none());
            match explanation {
                Some(place) => *self.explained.entry(place).or_default() += 1,
                None => {
                    let Difference { fact, docker, here } = difference;
                    let about = || (0, job.about.clone());
                    self.unexplained.entry((fact, docker, here)).or_insert_with(about).0 += 1;
                }
            }
        }
    }

    pub fn add_failed(&mut self, about: String) {
        self.failed.push(about);
    }

    pub fn done(&self) -> usize {
        self.jobs + self.failed.len()
    }

    /// Returns whether nothing is left to explain.
    pub fn is_well(&self) -> bool {
        self.jobs > 0 && self.failed.is_empty() && self.unexplained.is_empty()
    }

    /// Returns the differences without an explanation, the most frequent ones first, and the jobs that didn't end.
    pub fn open_ends(&self) -> String {
        let mut text: String = self.failed.iter().map(|about| format!("FAILED {about}\n")).collect();
        let mut all: Vec<_> = self.unexplained.iter().collect();
        all.sort_by_key(|(_, (times, _))| std::cmp::Reverse(*times));
        for ((fact, docker, here), (times, about)) in all {
            let _ = writeln!(
                text,
                "UNEXPLAINED {fact} ({times}, first in {about})\n  docker: {}\n  here:   {}",
                short(docker),
                short(here)
            );
        }
        text
    }

    /// Returns the counts in words.
    pub fn counts(&self) -> String {
        let explained: usize = self.explained.values().sum();
        let alike = self.facts - self.different;
        let unexplained = self.different - explained;
        let percent = 100.0 * ratio(alike, self.facts);
        format!(
            "{} jobs, {} facts: {alike} alike ({percent:.1} %), {explained} different for one of the reasons below, \
             {unexplained} without a reason.\n{} jobs run with docker alone, {} of them without a reason.\n",
            self.jobs, self.facts, self.refused, self.refused_without_reason
        )
    }

    /// Returns the table of the explained differences that the run met.
    pub fn text(&self) -> String {
        let mut text =
            format!("{}\n| | docker | here | why | facts |\n|---|---|---|---|---|\n", self.counts());
        for (place, times) in &self.explained {
            let [what, docker, here] = ALL[*place].words;
            let _ = writeln!(text, "| {what} | {docker} | {here} | {} | {times} |", ALL[*place].reason);
        }
        text
    }

    /// Returns the explanations that were of no use, if all were given a chance.
    pub fn unused(&self) -> Vec<&'static str> {
        let is_unused = |(place, _): &(usize, _)| !self.explained.contains_key(place);
        ALL.iter().enumerate().filter(is_unused).map(|(_, explained)| explained.words[0]).collect()
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    let as_float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    if whole == 0 { 0.0 } else { as_float(part) / as_float(whole) }
}

fn short(text: &str) -> String {
    let text = text.replace('\n', "\\n");
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}..", &text[..at]),
        None => text,
    }
}
