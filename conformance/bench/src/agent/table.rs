//! The tables of a run for people, in Markdown: each call by each variation, with its ratio to a reference of the run.

use std::fmt::Write as _;

use super::parts::of_daemons;
use super::side::SLEEP;
use crate::format;
use crate::growth;
use crate::report_data::{PointKind, Report, ScalePoint, Series};
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
        let mut all: Vec<&Series> = report.series.iter().filter(is_its).collect();
        // Series are in the order of the first round, which is shuffled.
        all.sort_by_key(|series| report.setups.iter().position(|setup| setup.name == series.key.setup));
        text += &of_call(&all, reference);
    }
    text += &of_many(report);
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

fn of_many(report: &Report) -> String {
    let points = &report.scale;
    if points.is_empty() {
        return String::new();
    }
    let mut text = "\n| many tasks | tasks | rounds | whole | failed | all started, s | all stopped, s | CPU ms a task-second, \
                    daemons | with the agent | MiB a task, daemons | with the agent |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let mut has_sleep = false;
    for point in &growth::merged(points) {
        let of = |point: &ScalePoint| (point.setup.clone(), point.path.clone(), point.kind, point.tasks);
        let rounds: Vec<_> = points.iter().filter(|other| of(other) == of(point)).collect();
        let whole = rounds.iter().filter(|point| point.is_whole()).count();
        let failed = rounds.iter().map(|point| point.failed()).fold(0, u32::saturating_add);
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
        let storm = |ns: u64| if ns == 0 { "-".to_owned() } else { format!("{:.2}", ns as f64 / 1e9) };
        let sleeps =
            report.setups.iter().any(|setup| setup.name == point.setup && setup.parts.contains_key(SLEEP));
        has_sleep |= sleeps;
        let _ = writeln!(
            text,
            "| {}{} | {} | {} | {whole} | {failed} | {}{} | {} |{usage}",
            point.setup,
            if point.kind == PointKind::Flood { ", a flood" } else { "" },
            point.tasks,
            rounds.len(),
            storm(point.start_storm_ns),
            if sleeps { " *" } else { "" },
            storm(point.stop_storm_ns),
        );
    }
    text += "\nFigures are of whole rounds, in which no task failed.\n";
    if has_sleep {
        text += "\n\\* Not comparable: each task's start sleeps beside the starts of others, and its sleep is taken out.\n";
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
        let (first, failed) = (point.failures.first()?, point.failed() as usize);
        Some((point.setup.clone(), format!("{} tasks", point.tasks), failed, first))
    });
    for (setup, what, count, first) in of_series.chain(of_points) {
        let first = first.error.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "\n{what} on {setup}: {count} failed, the first: {first}");
    }
    for missing in &report.not_measured {
        let _ = writeln!(text, "\nNot measured: {}: {}.", missing.what, missing.why.trim());
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
    fn rows_are_in_the_order_of_the_setups_and_a_failure_is_one_line() {
        let mut report = report(&[("a", "exec", &[10]), ("b", "exec", &[5])]);
        report.series.swap(0, 1);
        report.series[0].failures.push(Failure { turn: 3, error: "events:\n  Started\n".to_owned() });
        let text = text(&report, "a");
        assert!(text.find("| a | 1 |") < text.find("| b | 1 |"), "{text}");
        assert!(text.contains("exec on b: 1 failed, the first: events: Started\n"), "{text}");
    }

    #[test]
    fn rounds_with_as_many_tasks_are_one_row() {
        let mut report = report(&[]);
        report.scale = vec![point("agent", 10, 2_000_000_000), point("agent", 10, 4_000_000_000)];
        let text = text(&report, "a");
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| here ")).collect();
        assert_eq!(rows.len(), 1, "{text}");
        assert!(rows[0].starts_with("| here | 10 | 2 | 2 | 0 | 2.00 |"), "{text}");
    }

    #[test]
    fn rounds_with_failures_have_no_figures_and_are_counted() {
        let mut report = report(&[("here", "exec", &[1])]);
        let failing = |turns: &[u32]| {
            let mut point = point("agent", 10, 9_000_000_000);
            let failure = |turn: &u32| Failure { turn: *turn, error: "refused".to_owned() };
            point.failures = turns.iter().map(failure).collect();
            point
        };
        report.scale = vec![failing(&[1, 2]), failing(&[]), failing(&[5])];
        report.scale[1].start_storm_ns = 1_000_000_000;
        let of_many = text(&report, "a");
        assert!(of_many.contains("| here | 10 | 3 | 1 | 3 | 1.00 |"), "{of_many}");
        report.scale.remove(1);
        report.scale[0].memory_bytes.clear();
        report.setups[0].parts.insert(SLEEP.to_owned(), "5000 ms".to_owned());
        let of_many = text(&report, "a");
        assert!(of_many.contains("| here | 10 | 2 | 0 | 11 | - * | - | - | - | - | - |"), "{of_many}");
        assert!(of_many.contains("Not comparable"), "{of_many}");
    }
}
