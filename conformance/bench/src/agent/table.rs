//! The tables of a run for people, in Markdown: each call by each variation, with its ratio to a reference of the run.

use std::fmt::Write as _;

use super::parts::of_daemons;
use crate::format;
use crate::growth;
use crate::report_data::{Report, ScalePoint, Series};
use crate::statistics::{Distribution, ratio_within_run};

const MEBIBYTE: f64 = 1_048_576.0;

/// Returns the tables of all calls and of many tasks. `reference` is the setup that others are held against.
pub(crate) fn text(report: &Report, reference: &str) -> String {
    let mut text = String::new();
    let mut calls: Vec<(&str, u64)> = Vec::new();
    for key in report.series.iter().map(|series| (&*series.key.call, series.key.payload_bytes)) {
        if !calls.contains(&key) {
            calls.push(key);
        }
    }
    for (call, payload) in calls {
        let is_its = |series: &&Series| (&*series.key.call, series.key.payload_bytes) == (call, payload);
        let all: Vec<&Series> = report.series.iter().filter(is_its).collect();
        text += &of_call(&all, reference);
    }
    text += &of_many(&report.scale);
    text + &failures(report)
}

fn of_call(all: &[&Series], reference: &str) -> String {
    let base = all.iter().find(|series| series.key.setup == reference);
    let over = if base.is_some() { reference } else { "-" };
    let mut text = format!(
        "\n| {}, ms | n | failed | p50 | p90 | p50 over {over} | p90 | round by round |\n|---|---|---|---|---|---|---|---|\n",
        all.first().map(|series| format::call(&series.key)).unwrap_or_default()
    );
    for series in all {
        let at = |series: &Series, part| {
            Distribution::of(&series.samples_ns).percentile(part).map(|ns| ns as f64 / 1e6)
        };
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        let other = base.filter(|base| base.key != series.key);
        let over = |part| {
            let ratio = at(series, part).zip(other.and_then(|base| at(base, part)));
            ratio.map_or_else(|| "-".to_owned(), |(value, base)| format!("{:.2}", value / base))
        };
        let by_round = other.and_then(|base| ratio_within_run(base, series));
        let by_round = by_round.map_or_else(
            || "-".to_owned(),
            |ratio| format!("{:.2} ({:.2} to {:.2})", ratio.value, ratio.low, ratio.high),
        );
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {by_round} |",
            series.key.setup,
            series.samples_ns.len(),
            series.failures.len(),
            shown(at(series, 0.5)),
            shown(at(series, 0.9)),
            over(0.5),
            over(0.9),
        );
    }
    text
}

fn of_many(points: &[ScalePoint]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let mut text = "\n| many tasks | tasks | rounds | failed | all started, s | all stopped, s | CPU ms a task-second, daemons | \
                    with the agent | MiB a task, daemons | with the agent |\n|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let merged = growth::merged(points);
    for point in &merged {
        let is_its = |other: &&ScalePoint| {
            (&other.setup, &other.path, other.tasks) == (&point.setup, &point.path, point.tasks)
        };
        let rounds = points.iter().filter(is_its).count();
        let each = |bytes: u64| bytes as f64 / MEBIBYTE / f64::from(point.tasks.max(1));
        let usage = if point.memory_bytes.is_empty() {
            " - | - | - | - |".to_owned()
        } else {
            format!(
                " {:.3} | {:.3} | {:.2} | {:.2} |",
                of_daemons(&point.steady_cpu_ns_per_task_second) as f64 / 1e6,
                point.steady_cpu_ns_per_task_second.values().sum::<u64>() as f64 / 1e6,
                each(of_daemons(&point.memory_bytes)),
                each(point.memory_bytes.values().sum()),
            )
        };
        let _ = writeln!(
            text,
            "| {} | {} | {rounds} | {} | {:.2} | {:.2} |{usage}",
            point.setup,
            point.tasks,
            point.failures.len(),
            point.start_storm_ns as f64 / 1e9,
            point.stop_storm_ns as f64 / 1e9,
        );
    }
    text
}

fn failures(report: &Report) -> String {
    let mut text = String::new();
    let of_series = report.series.iter().filter_map(|series| {
        let first = series.failures.first()?;
        Some((series.key.setup.clone(), format::call(&series.key), series.failures.len(), first))
    });
    let of_points = report.scale.iter().filter_map(|point| {
        let first = point.failures.first()?;
        Some((point.setup.clone(), format!("{} tasks", point.tasks), point.failures.len(), first))
    });
    for (setup, what, count, first) in of_series.chain(of_points) {
        let _ = writeln!(text, "\n{what} on {setup}: {count} failed, the first: {}", first.error.trim());
    }
    for missing in &report.not_measured {
        let _ = writeln!(text, "\nNot measured: {}: {}.", missing.what, missing.why);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::report;
    use crate::growth::tests::point;
    use crate::report_data::Failure;

    #[test]
    fn each_call_has_a_table_with_ratios_to_the_reference() {
        let mut report = report(&[("a", "exec", &[10, 20, 30]), ("b", "exec", &[5, 10, 30])]);
        report.series[1].failures.push(Failure { turn: 3, error: "refused".to_owned() });
        let text = text(&report, "a");
        assert!(text.contains("| a | 3 | 0 | 20.0 | 30.0 | - | - | - |"), "{text}");
        assert!(text.contains("| b | 3 | 1 | 10.0 | 30.0 | 0.50 | 1.00 | - |"), "{text}");
        assert!(text.contains("exec on b: 1 failed, the first: refused"), "{text}");
    }

    #[test]
    fn rounds_with_as_many_tasks_are_one_row() {
        let mut report = report(&[]);
        report.scale = vec![point("agent", 10, 2_000_000_000), point("agent", 10, 4_000_000_000)];
        let text = text(&report, "a");
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| here ")).collect();
        assert_eq!(rows.len(), 1, "{text}");
        assert!(rows[0].starts_with("| here | 10 | 2 | 0 | 2.00 |"), "{text}");
    }
}
