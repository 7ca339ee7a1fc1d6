//! The figures of two variations side by side, as tables of a page. The second one is held against the first.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::calls::{EXEC, EXECS, EXIT, FIRST_WRITE, OUTPUT, REMOVAL};
use super::parts::{AGENT, Part, of_daemons};
use crate::report_data::{PointKind, Report, ScalePoint, Series};
use crate::statistics::by_turn;

/// Least number of rounds of which the middle half is shown.
const LEAST_ROUNDS: usize = 4;

/// What is measured, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    /// From the event Task Setup to the first write of the task's process, in milliseconds.
    FirstWrite,
    /// An exec of `true` by the agent's HTTP API, in milliseconds.
    Exec,
    /// An exec with this many bytes of output, in milliseconds.
    Output(u64),
    /// From the request to stop to the exit of a process that heeds SIGTERM, in milliseconds.
    Exit,
    /// From the request to stop until the task is removed, in milliseconds.
    Removal,
    /// From the submission of a job with this many tasks until each has written, in milliseconds.
    Many(PointKind, u32),
    /// CPU time of a task in a second, in milliseconds.
    Cpu(Whose),
    /// Proportional memory, in MiB.
    Memory(Whose),
    /// Proportional memory without that of files, in MiB.
    Anonymous(Whose),
}

/// Whose CPU time or memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Part(Part),
    /// That of all parts but the agent.
    Daemons,
    Agent,
    /// That of the daemons and the agent.
    Together,
}

impl Whose {
    const ALL: [Self; 7] = [
        Self::Part(Part::Engine),
        Self::Part(Part::Loggers),
        Self::Part(Part::Containerd),
        Self::Part(Part::Shims),
        Self::Daemons,
        Self::Agent,
        Self::Together,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Part(Part::Engine) => "dockerd, or the plugin",
            Self::Part(Part::Loggers) => "`docker_logger`",
            Self::Part(Part::Containerd) => "containerd",
            Self::Part(Part::Shims) => "shims",
            Self::Part(Part::Others | Part::Agent) => "others",
            Self::Daemons => "all daemons",
            Self::Agent => "the agent and its `logmon`",
            Self::Together => "daemons and agent together",
        }
    }

    /// Returns its share of values by consumer.
    fn of(self, parts: &BTreeMap<String, u64>) -> f64 {
        let of = |consumer: &str| parts.get(consumer).copied().unwrap_or_default();
        let share = match self {
            Self::Part(part) => of(part.consumer()),
            Self::Agent => of(AGENT),
            Self::Daemons => of_daemons(parts),
            Self::Together => parts.values().sum(),
        };
        share as f64
    }
}

impl Figure {
    fn name(self, tasks: u32) -> String {
        match self {
            Self::FirstWrite => "Task Setup to first write".to_owned(),
            Self::Exec => "exec of `true`".to_owned(),
            Self::Output(bytes) => format!("exec, {} MiB of output", bytes >> 20),
            Self::Exit => "stop to exit".to_owned(),
            Self::Removal => "stop until the task is removed".to_owned(),
            Self::Many(_, count) => format!("{count} tasks of one job, until each has written"),
            Self::Cpu(whose) => format!("CPU a task-second with {tasks} tasks: {}", whose.name()),
            Self::Memory(whose) => format!("memory with {tasks} tasks: {}", whose.name()),
            Self::Anonymous(whose) => format!("anonymous memory with {tasks} tasks: {}", whose.name()),
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
            Self::Cpu(whose) | Self::Memory(whose) | Self::Anonymous(whose) => {
                matches!(whose, Whose::Daemons | Whose::Together)
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

/// Returns the tables of the first two variations of a report.
pub(crate) fn text(report: &Report) -> String {
    let [first, second, ..] = &*report.setups else { return String::new() };
    let names = [&*first.name, &*second.name];
    let mut figures = Figures::default();
    for (side, name) in names.iter().enumerate() {
        for series in report.series.iter().filter(|series| series.key.setup == *name) {
            let Some(figure) = figure_of(series) else { continue };
            for (round, value) in values(series) {
                figures.add(figure, side, round, value);
            }
        }
    }
    let at_rest = report.scale.iter().filter(|point| point.kind == PointKind::Rest);
    let tasks = at_rest.map(|point| point.tasks).min().unwrap_or_default();
    for (side, name) in names.iter().enumerate() {
        // Each side has a point in each round, also where it failed.
        let mut rounds: BTreeMap<(PointKind, u32), usize> = BTreeMap::new();
        for point in report.scale.iter().filter(|point| point.setup == *name) {
            let round = rounds.entry((point.kind, point.tasks)).or_default();
            if point.is_whole() && point.start_storm_ns > 0 {
                let storm = point.start_storm_ns as f64 / 1e6;
                figures.add(Figure::Many(point.kind, point.tasks), side, *round, storm);
            }
            if point.tasks == tasks && point.has_usage() {
                add_usage(&mut figures, side, *round, point);
            }
            *round += 1;
        }
    }
    figures.text(tasks, names)
}

fn figure_of(series: &Series) -> Option<Figure> {
    match &*series.key.call {
        FIRST_WRITE => Some(Figure::FirstWrite),
        EXEC => Some(Figure::Exec),
        OUTPUT => Some(Figure::Output(series.key.payload_bytes)),
        EXIT => Some(Figure::Exit),
        REMOVAL => Some(Figure::Removal),
        _ => None,
    }
}

/// Returns the values in milliseconds of the rounds that have one. Of several calls in a round, the median is taken.
fn values(series: &Series) -> Vec<(usize, f64)> {
    let of_a_round = if series.key.call == EXEC { EXECS } else { 1 };
    let by_turn = by_turn(series).unwrap_or_default();
    let rounds = by_turn.chunks(of_a_round).enumerate();
    let value = |(round, turns): (usize, &[Option<u64>])| {
        let made: Vec<f64> = turns.iter().flatten().map(|ns| *ns as f64 / 1e6).collect();
        Some((round, quantile(&made, 0.5)?))
    };
    rounds.filter_map(value).collect()
}

fn add_usage(figures: &mut Figures, side: usize, round: usize, point: &ScalePoint) {
    const MEBIBYTE: f64 = 1_048_576.0;
    for whose in Whose::ALL {
        let cpu = whose.of(&point.steady_cpu_ns_per_task_second) / 1e6;
        figures.add(Figure::Cpu(whose), side, round, cpu);
        figures.add(Figure::Memory(whose), side, round, whose.of(&point.memory_bytes) / MEBIBYTE);
        figures.add(Figure::Anonymous(whose), side, round, whose.of(&point.anonymous_bytes) / MEBIBYTE);
    }
}

/// The values of a figure by round, those of the first variation first.
type Pair = [BTreeMap<usize, f64>; 2];

/// The values of all figures. A round may have one of one variation alone.
#[derive(Debug, Default)]
struct Figures(BTreeMap<Figure, Pair>);

impl Figures {
    fn add(&mut self, figure: Figure, side: usize, round: usize, value: f64) {
        self.0.entry(figure).or_default()[side].insert(round, value);
    }

    fn median(&self, figure: Figure, side: usize) -> Option<f64> {
        quantile(&self.0.get(&figure)?[side].values().copied().collect::<Vec<_>>(), 0.5)
    }

    /// Returns both tables. The usage was taken with this many tasks.
    fn text(&self, tasks: u32, [docker, here]: [&str; 2]) -> String {
        let mut text = format!("| | {docker} | {here} | ratio |\n|---|---|---|---|\n");
        for (figure, values) in self.0.iter().filter(|(figure, _)| figure.is_whole()) {
            let medians = [0, 1].map(|side| self.median(*figure, side).map(|median| figure.shown(median)));
            let [Some(first), Some(second)] = medians else { continue };
            let _ = writeln!(text, "| {} | {first} | {second} | {} |", figure.name(tasks), ratio(values));
        }
        let _ = writeln!(
            text,
            "\n| with {tasks} tasks | CPU a task-second, {docker} | {here} | memory, {docker} | {here} | anonymous, {docker} | {here} |\n\
             |---|---|---|---|---|---|---|"
        );
        for whose in Whose::ALL {
            // A part without memory isn't there.
            let is_there = |side| self.median(Figure::Memory(whose), side).is_some_and(|memory| memory > 0.0);
            let cell = |figure: Figure, side| {
                let median = self.median(figure, side).filter(|_| is_there(side));
                median.map_or_else(String::new, |median| figure.shown(median))
            };
            let figures = [Figure::Cpu(whose), Figure::Memory(whose), Figure::Anonymous(whose)];
            let cells = figures.map(|figure| [0, 1].map(|side| cell(figure, side))).concat();
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(text, "| {} | {} |", whose.name(), cells.join(" | "));
            }
        }
        text
    }
}

/// Returns the median of the ratios of the rounds that have a value of both and, of enough rounds, between which values half
/// of them are.
fn ratio([first, second]: &Pair) -> String {
    let of_round = |(round, value): (&usize, &f64)| Some(second.get(round)? / value);
    let ratios: Vec<f64> = first.iter().filter_map(of_round).collect();
    let at = |part| quantile(&ratios, part).unwrap_or(f64::NAN);
    if ratios.is_empty() {
        return "-".to_owned();
    }
    if ratios.len() < LEAST_ROUNDS {
        return format!("{:.2}", at(0.5));
    }
    format!("{:.2} ({:.2} to {:.2})", at(0.5), at(0.25), at(0.75))
}

/// Returns the value that this part of all values is below, between two of them in proportion to where the part ends.
fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = part * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::report;
    use crate::report_data::Failure;

    fn figures(figure: Figure, docker: &[f64], here: &[f64]) -> Figures {
        let mut figures = Figures::default();
        for (side, values) in [docker, here].into_iter().enumerate() {
            values.iter().enumerate().for_each(|(round, value)| figures.add(figure, side, round, *value));
        }
        figures
    }

    #[test]
    fn the_ratio_is_the_median_of_those_of_the_rounds() {
        // The ratio of the medians is 2.
        let text =
            figures(Figure::Exec, &[10.0, 20.0, 40.0], &[5.0, 40.0, 50.0]).text(20, ["docker", "here"]);
        assert!(text.contains("| exec of `true` | 20.0 ms | 40.0 ms | 1.25 |"), "{text}");
    }

    #[test]
    fn rounds_are_paired_by_their_numbers_whatever_failed_in_others() {
        let mut report = report(&[("a", EXIT, &[10, 40]), ("b", EXIT, &[5, 7, 20])]);
        report.series[0].failures.push(Failure { turn: 1, error: "refused".to_owned() });
        let text = text(&report);
        assert!(text.contains("| stop to exit | 25.0 ms | 7.00 ms | 0.50 |"), "{text}");
    }

    #[test]
    fn a_failed_round_of_many_tasks_has_no_part_in_a_ratio() {
        let mut report = report(&[("a", EXIT, &[1]), ("b", EXIT, &[1])]);
        let point = |setup: &str, storm_ms: u64, fails: bool| {
            let mut point = crate::growth::tests::point("agent", 20, storm_ms * 1_000_000);
            point.setup = setup.to_owned();
            if fails {
                point.failures.push(Failure { turn: 0, error: "refused".to_owned() });
            }
            point
        };
        report.scale =
            vec![point("a", 100, false), point("b", 1, true), point("a", 200, false), point("b", 50, false)];
        let text = text(&report);
        assert!(text.contains("each has written | 150 ms | 50.0 ms | 0.25 |"), "{text}");
    }

    #[test]
    fn half_of_the_ratios_of_enough_rounds_are_within_those_shown() {
        let text = figures(Figure::Many(PointKind::Flood, 50), &[1000.0; 4], &[800.0, 200.0, 400.0, 600.0])
            .text(20, ["docker", "here"]);
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
        let mut all = figures(Figure::Cpu(Whose::Part(Part::Loggers)), &[0.001], &[0.0]);
        all.add(Figure::Memory(Whose::Part(Part::Loggers)), 0, 0, 300.0);
        all.add(Figure::Memory(Whose::Part(Part::Loggers)), 1, 0, 0.0);
        all.add(Figure::Memory(Whose::Daemons), 0, 0, 400.0);
        all.add(Figure::Memory(Whose::Daemons), 1, 0, 100.0);
        all.add(Figure::Anonymous(Whose::Part(Part::Loggers)), 0, 0, 200.0);
        let text = all.text(20, ["docker", "here"]);
        assert!(text.contains("| memory with 20 tasks: all daemons | 400 MiB | 100 MiB | 0.25 |"), "{text}");
        assert!(text.contains("| `docker_logger` | 0.00 ms |  | 300 MiB |  | 200 MiB |  |\n"), "{text}");
        assert!(!text.contains("containerd"), "{text}");
    }
}
