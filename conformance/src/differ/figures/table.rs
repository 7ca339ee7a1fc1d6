//! The figures of both sides, and their tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::cost::Part;

/// Least number of rounds of which the middle half is shown.
const LEAST_ROUNDS: usize = 4;

/// What is measured, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// From the event Task Setup to the first write of the task's process, in milliseconds.
    FirstWrite,
    /// An exec of `true` by the agent's HTTP API, in milliseconds.
    Exec,
    /// An exec with this many MiB of output, in milliseconds.
    Output(usize),
    /// From the request to stop to the exit of a process that heeds SIGTERM, in milliseconds.
    Exit,
    /// From the request to stop until the task is removed, in milliseconds.
    Removal,
    /// From the submission of a job with this many tasks until each has written, in milliseconds.
    Many(usize),
    /// CPU time of a task in a second, in milliseconds.
    Cpu(Part),
    /// Proportional memory, in MiB.
    Memory(Part),
    /// Proportional memory without that of files, in MiB.
    Anonymous(Part),
}

impl Figure {
    fn name(self, tasks: usize) -> String {
        match self {
            Self::FirstWrite => "Task Setup to first write".to_owned(),
            Self::Exec => "exec of `true`".to_owned(),
            Self::Output(mib) => format!("exec, {mib} MiB of output"),
            Self::Exit => "stop to exit".to_owned(),
            Self::Removal => "stop until the task is removed".to_owned(),
            Self::Many(count) => format!("{count} tasks of one job, until each has written"),
            Self::Cpu(part) => format!("CPU a task-second with {tasks} tasks: {}", part.name()),
            Self::Memory(part) => format!("memory with {tasks} tasks: {}", part.name()),
            Self::Anonymous(part) => format!("anonymous memory with {tasks} tasks: {}", part.name()),
        }
    }

    fn shown(self, value: f64) -> String {
        match self {
            Self::Memory(_) | Self::Anonymous(_) => format!("{} MiB", digits(value)),
            Self::Cpu(_) => format!("{} ms", digits(value)),
            _ if value >= 1000.0 => format!("{} s", digits(value / 1000.0)),
            _ => format!("{} ms", digits(value)),
        }
    }

    /// Returns whether a figure has a row of its own in the first table.
    fn is_whole(self) -> bool {
        match self {
            Self::Cpu(part) | Self::Memory(part) | Self::Anonymous(part) => {
                matches!(part, Part::Daemons | Part::Together)
            }
            _ => true,
        }
    }
}

/// Returns a value with three digits or so.
fn digits(value: f64) -> String {
    let digits = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// The values of all rounds, those of docker's driver first. What one round has of both sides is at the same place.
#[derive(Debug, Default)]
pub struct Figures(BTreeMap<Figure, [Vec<f64>; 2]>);

impl Figures {
    pub fn add(&mut self, figure: Figure, side: usize, value: f64) {
        self.0.entry(figure).or_default()[side].push(value);
    }

    fn median(&self, figure: Figure, side: usize) -> Option<f64> {
        quantile(&self.0.get(&figure)?[side], 0.5)
    }

    /// Returns both tables. The usage was taken with this many tasks.
    pub fn text(&self, tasks: usize) -> String {
        let mut text = "| | docker | here | ratio |\n|---|---|---|---|\n".to_owned();
        for (figure, values) in self.0.iter().filter(|(figure, _)| figure.is_whole()) {
            let [docker, here] =
                [0, 1].map(|side| self.median(*figure, side).map(|median| figure.shown(median)));
            let (Some(docker), Some(here)) = (docker, here) else { continue };
            let _ = writeln!(text, "| {} | {docker} | {here} | {} |", figure.name(tasks), ratio(values));
        }
        let _ = writeln!(
            text,
            "\n| with {tasks} tasks | CPU a task-second, docker | here | memory, docker | here | anonymous, docker | here |\n\
             |---|---|---|---|---|---|---|"
        );
        for part in Part::ALL {
            // A part without memory isn't there.
            let is_there = |side| self.median(Figure::Memory(part), side).is_some_and(|memory| memory > 0.0);
            let cell = |figure: Figure, side| {
                let median = self.median(figure, side).filter(|_| is_there(side));
                median.map_or_else(String::new, |median| figure.shown(median))
            };
            let figures = [Figure::Cpu(part), Figure::Memory(part), Figure::Anonymous(part)];
            let cells = figures.map(|figure| [0, 1].map(|side| cell(figure, side))).concat();
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(text, "| {} | {} |", part.name(), cells.join(" | "));
            }
        }
        text
    }
}

/// Returns the median of the rounds' ratios and, of enough rounds, between which values half of them are.
fn ratio([docker, here]: &[Vec<f64>; 2]) -> String {
    let ratios: Vec<f64> = docker.iter().zip(here).map(|(docker, here)| here / docker).collect();
    let at = |part| quantile(&ratios, part).unwrap_or(f64::NAN);
    if ratios.len() < LEAST_ROUNDS {
        return format!("{:.2}", at(0.5));
    }
    format!("{:.2} ({:.2} to {:.2})", at(0.5), at(0.25), at(0.75))
}

/// Returns the value that this part of all values is below, between two of them in proportion to where the part ends.
pub fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = part * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(figure: Figure, docker: &[f64], here: &[f64]) -> Figures {
        let mut figures = Figures::default();
        for (side, values) in [docker, here].into_iter().enumerate() {
            values.iter().for_each(|value| figures.add(figure, side, *value));
        }
        figures
    }

    #[test]
    fn the_ratio_is_the_median_of_those_of_the_rounds() {
        // The ratio of the medians is 2.
        let text = figures(Figure::Exec, &[10.0, 20.0, 40.0], &[5.0, 40.0, 50.0]).text(20);
        assert!(text.contains("| exec of `true` | 20.0 ms | 40.0 ms | 1.25 |"), "{text}");
    }

    #[test]
    fn half_of_the_ratios_of_enough_rounds_are_within_those_shown() {
        let text = figures(Figure::Many(50), &[1000.0; 4], &[800.0, 200.0, 400.0, 600.0]).text(20);
        assert!(text.contains("has written | 1.00 s | 500 ms | 0.50 (0.35 to 0.65) |"), "{text}");
    }

    #[test]
    fn a_quantile_is_between_two_values_or_one_of_them() {
        let cases: [(&[f64], f64, f64); 5] = [
            (&[7.0], 0.25, 7.0),
            (&[4.0, 2.0], 0.5, 3.0),
            (&[9.0, 1.0, 5.0], 0.5, 5.0),
            (&[0.0, 8.0, 4.0], 0.25, 2.0),
            (&[1.0, 2.0], 1.0, 2.0),
        ];
        for (values, part, expected) in cases {
            let found = quantile(values, part).unwrap();
            assert!((found - expected).abs() < 1e-9, "{values:?}, {part}: {found}");
        }
        assert!(quantile(&[], 0.5).is_none());
    }

    #[test]
    fn the_parts_of_the_daemons_are_in_a_table_of_their_own() {
        let mut all = figures(Figure::Cpu(Part::Loggers), &[0.001], &[0.0]);
        all.add(Figure::Memory(Part::Loggers), 0, 300.0);
        all.add(Figure::Memory(Part::Loggers), 1, 0.0);
        all.add(Figure::Memory(Part::Daemons), 0, 400.0);
        all.add(Figure::Memory(Part::Daemons), 1, 100.0);
        all.add(Figure::Anonymous(Part::Loggers), 0, 200.0);
        let text = all.text(20);
        assert!(text.contains("| memory with 20 tasks: all daemons | 400 MiB | 100 MiB | 0.25 |"), "{text}");
        assert!(text.contains("| `docker_logger` | 0.00 ms |  | 300 MiB |  | 200 MiB |  |\n"), "{text}");
        assert!(!text.contains("containerd"), "{text}");
    }
}
