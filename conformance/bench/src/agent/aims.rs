//! What a run of all variations is held against: ratios of its figures, each with an aim.

use std::fmt::Write as _;

use super::calls::{CREATE_AND_START, EXEC, FIRST_WRITE, LOGS, TIMELINE};
use super::parts::of_daemons;
use super::rounds::PATH;
use crate::cli;
use crate::report_data::{Report, ScalePoint, Series};
use crate::statistics::Distribution;

/// A figure of a run.
#[derive(Debug, Clone, Copy)]
enum Figure {
    /// Times of a call by a path, with the names of the setup, the path and the call.
    Call(&'static str, &'static str, &'static str),
    /// Milliseconds of CPU time that daemons take of a task in a second, with this many tasks of a variation.
    Cpu(&'static str, u32),
    /// MiB of a task in the memory of daemons, with this many tasks of a variation.
    Memory(&'static str, u32),
    /// Tasks that failed.
    Failed(&'static str, u32),
}

/// A figure, what it is held against, and how much of that it should be at most.
struct Aim {
    what: &'static str,
    figure: Figure,
    over: Option<Figure>,
    most: f64,
}

const fn over(what: &'static str, figure: Figure, over: Figure, most: f64) -> Aim {
    Aim { what, figure, over: Some(over), most }
}

const fn alone(what: &'static str, figure: Figure, most: f64) -> Aim {
    Aim { what, figure, over: None, most }
}

const fn call(setup: &'static str, call: &'static str) -> Figure {
    Figure::Call(setup, PATH, call)
}

/// The aims. One whose variation isn't measured has no figure.
const AIMS: [Aim; 13] = [
    over("first write, defaults", call("runc", FIRST_WRITE), call(GO, FIRST_WRITE), 0.9),
    over("first write, own logs, runc", call("runc-logs", FIRST_WRITE), call(GO, FIRST_WRITE), 0.4),
    over("first write, own logs, auto", call("auto-logs", FIRST_WRITE), call(GO, FIRST_WRITE), 0.25),
    over("exec, runc", call("runc", EXEC), call(GO, EXEC), 1.6),
    over("exec, runc, filter of its own architecture", call("runc-native", EXEC), call(GO, EXEC), 1.15),
    over("exec, crun", call("crun", EXEC), call(GO, EXEC), 0.35),
    over(
        "start by the timeline, no logs' process, over crun create and start",
        call("crun-logs", TIMELINE),
        Figure::Call("crun alone", cli::NAME, CREATE_AND_START),
        1.0,
    ),
    alone("MiB of a task, 200 tasks, one shim a node", Figure::Memory("shared-node", 200), 0.3),
    alone(
        "MiB of a task, 200 tasks, one shim an allocation of four",
        Figure::Memory("shared-allocation", 200),
        0.9,
    ),
    alone("failed of 500 idle tasks", Figure::Failed("runc-logs", 500), 0.0),
    alone("CPU ms a task-second, 500 idle tasks", Figure::Cpu("runc-logs", 500), 0.15),
    over(
        "logs of one task, Rust shim, time over logmon",
        call("rust-shim-logs", LOGS),
        call("runc", LOGS),
        0.667,
    ),
    over("first write over docker's", call("as-docker", FIRST_WRITE), call("docker", FIRST_WRITE), 1.0),
];
const GO: &str = "go-driver";

/// Returns the table of all aims.
pub(crate) fn text(report: &Report) -> String {
    let mut text = "| figure | p50 | over p50 | ratio | p90 | over p90 | ratio | aim | |\n\
                    |---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for aim in &AIMS {
        let _ = writeln!(text, "| {} |{}", aim.what, row(report, aim));
    }
    text
}

fn row(report: &Report, Aim { figure, over, most, .. }: &Aim) -> String {
    let of = |figure: Figure, part| value(report, figure, part);
    let mut cells = String::new();
    let mut is_met = None;
    for part in [0.5, 0.9] {
        let (value, base) = (of(*figure, part), over.and_then(|over| of(over, part)));
        let ratio = match over {
            None => value,
            Some(_) => value.zip(base).map(|(value, base)| value / base),
        };
        if part < 0.9 {
            is_met = ratio.map(|ratio| ratio <= *most);
        }
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let _ = write!(cells, " {} | {} | {} |", shown(value), shown(base), shown(ratio));
    }
    let verdict = match is_met {
        None => "not measured",
        Some(true) => "met",
        Some(false) => "missed",
    };
    format!("{cells} {most} | {verdict} |")
}

/// Returns a figure's value: milliseconds for times. `part` is the percentile.
fn value(report: &Report, figure: Figure, part: f64) -> Option<f64> {
    match figure {
        Figure::Call(setup, path, call) => {
            let is_it = |series: &&Series| {
                (&*series.key.setup, &*series.key.path, &*series.key.call) == (setup, path, call)
            };
            let series = report.series.iter().find(is_it)?;
            Distribution::of(&series.samples_ns).percentile(part).map(|ns| ns as f64 / 1e6)
        }
        Figure::Cpu(setup, tasks) => {
            let cpu = |point: &ScalePoint| of_daemons(&point.steady_cpu_ns_per_task_second);
            of_points(report, setup, tasks, part, cpu).map(|ns| ns / 1e6)
        }
        Figure::Memory(setup, tasks) => {
            let share = |point: &ScalePoint| of_daemons(&point.memory_bytes) / u64::from(tasks);
            of_points(report, setup, tasks, part, share).map(|bytes| bytes / 1_048_576.0)
        }
        Figure::Failed(setup, tasks) => {
            of_points(report, setup, tasks, part, |point| point.failures.len() as u64)
        }
    }
}

/// Returns a percentile of a value over the rounds with so many tasks at rest.
fn of_points(
    report: &Report,
    setup: &str,
    tasks: u32,
    part: f64,
    value: impl Fn(&ScalePoint) -> u64,
) -> Option<f64> {
    let is_it = |point: &&ScalePoint| {
        point.setup == setup
            && point.tasks == tasks
            && !(point.memory_bytes.is_empty() && point.failures.is_empty())
    };
    let values: Vec<u64> = report.scale.iter().filter(is_it).map(value).collect();
    Distribution::of(&values).percentile(part).map(|value| value as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::report;

    #[test]
    fn an_aim_is_met_by_the_ratio_of_the_medians() {
        let report = report(&[("runc", FIRST_WRITE, &[80, 90, 100]), (GO, FIRST_WRITE, &[100, 100, 200])]);
        let text = text(&report);
        assert!(
            text.contains(
                "| first write, defaults | 90.00 | 100.00 | 0.90 | 100.00 | 200.00 | 0.50 | 0.9 | met |"
            ),
            "{text}"
        );
        assert!(text.contains("| exec, runc | - | - | - | - | - | - | 1.6 | not measured |"), "{text}");
    }

    #[test]
    fn a_figure_without_a_base_is_held_against_its_aim_itself() {
        let mut report = report(&[]);
        let mut point = crate::growth::tests::point(PATH, 500, 7);
        point.setup = "runc-logs".to_owned();
        point.steady_cpu_ns_per_task_second =
            [("plugin".to_owned(), 200_000), ("agent".to_owned(), 9)].into();
        report.scale = vec![point];
        let text = text(&report);
        assert!(text.contains("| CPU ms a task-second, 500 idle tasks | 0.20 | - | 0.20 |"), "{text}");
        assert!(text.contains("| failed of 500 idle tasks | 0.00 | - | 0.00 |"), "{text}");
        assert!(text.contains("0.15 | missed |") && text.contains("0 | met |"), "{text}");
    }
}
