//! Holds what a job did on one side against what it did on the other.

use std::collections::BTreeSet;

use super::run::Outcome;

/// What stands for a fact that one side doesn't have.
pub const NONE: &str = "(none)";
/// The fact of whether a task was started.
pub const START: &str = "start";

/// A fact that isn't the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub fact: String,
    pub docker: String,
    pub here: String,
}

impl Difference {
    /// Returns whether docker runs a job that this driver doesn't.
    pub fn is_refusal(&self) -> bool {
        self.fact == START && self.docker == RUNS
    }
}

const RUNS: &str = "runs";

/// The number of facts of a job, and those that differ.
#[derive(Debug, Default)]
pub struct Comparison {
    pub facts: usize,
    pub differences: Vec<Difference>,
}

/// Compares all facts of a job, or, where it ran on one side only, this.
pub fn compare(docker: &Outcome, here: &Outcome) -> Comparison {
    let start = |of: &Outcome| if of.started { RUNS.to_owned() } else { of.error.clone() };
    if docker.started != here.started {
        let difference = Difference { fact: START.to_owned(), docker: start(docker), here: start(here) };
        return Comparison { facts: 1, differences: vec![difference] };
    }
    let names: BTreeSet<_> = docker.facts.keys().chain(here.facts.keys()).collect();
    let value = |of: &Outcome, name: &str| of.facts.get(name).cloned().unwrap_or_else(|| NONE.to_owned());
    let differences = names
        .iter()
        .map(|name| Difference {
            fact: (*name).clone(),
            docker: value(docker, name),
            here: value(here, name),
        })
        .filter(|difference| difference.docker != difference.here)
        .collect();
    Comparison { facts: names.len() + 1, differences }
}

/// Returns whether a text is what a pattern describes, in which `*` stands for any text.
pub fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut left) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return left.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differ::facts::Facts;

    fn outcome(started: bool, facts: &[(&str, &str)]) -> Outcome {
        let facts: Facts =
            facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Outcome { started, facts, error: "no".to_owned() }
    }

    #[test]
    fn facts_that_one_side_lacks_differ() {
        let compared = compare(&outcome(true, &[("a", "1"), ("b", "2")]), &outcome(true, &[("a", "1")]));
        let expected = Difference { fact: "b".to_owned(), docker: "2".to_owned(), here: NONE.to_owned() };
        assert_eq!((compared.facts, compared.differences), (3, vec![expected]));
    }

    #[test]
    fn a_job_that_one_side_refuses_is_one_difference() {
        let compared = compare(&outcome(true, &[("a", "1")]), &outcome(false, &[]));
        assert_eq!(compared.differences.len(), 1);
        assert!(compared.differences[0].is_refusal());
        assert!(!compare(&outcome(false, &[]), &outcome(true, &[])).differences[0].is_refusal());
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text) in
            [("a*", "abc"), ("*c", "abc"), ("a*c", "ac"), ("*", ""), ("a*b*c", "aXbYc"), ("x", "x")]
        {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a*", "ba"), ("x", "xy"), ("a*c", "ab"), ("a*b*c", "acb"), ("ab*b", "ab")] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }
}
