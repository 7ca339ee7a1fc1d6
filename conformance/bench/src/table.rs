//! Renders a report for a terminal: a line for each series, with its ratio to the paths `cli` (the lower bound) and
//! `daemon`. Knows nothing of files.

use std::fmt::Write as _;

use super::report_data::{Cost, Key, Machine, Report, Series, Setup};
use super::statistics::{Distribution, ratio_within_run};
use super::{cli, daemon, format};

mod timelines;

/// Renders the whole report.
pub(crate) fn render(report: &Report) -> String {
    let mut text = machine(&report.machine);
    for Setup { name, parts } in &report.setups {
        let _ = writeln!(text, "setup {name}");
        for (what, version) in parts {
            let _ = writeln!(text, "  {what:<10} {version}");
        }
    }
    let width = report.series.iter().map(|series| name(&series.key).len()).max().unwrap_or(0).max(4);
    let _ = writeln!(
        text,
        "\n{:<width$} {:>5} {:>6} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9}  CPU ms a call",
        "call, milliseconds", "n", "failed", "p50", "p90", "p99", "max", "of cli", "of daemon"
    );
    for group in groups(&report.series) {
        for series in group {
            let _ = writeln!(text, "{}", line(series, report, width));
        }
    }
    for timeline in &report.timelines {
        text += &timelines::render(timeline);
    }
    if !report.timelines.is_empty() {
        text.push('\n');
    }
    for series in report.series.iter().filter(|series| !series.failures.is_empty()) {
        let (failed, first) = (series.failures.len(), series.failures[0].error.trim());
        let _ = writeln!(text, "{}: {failed} failed, the first: {first}", name(&series.key));
    }
    for missing in &report.not_measured {
        let _ = writeln!(text, "not measured: {}: {}", missing.what, missing.why);
    }
    text
}

fn machine(machine: &Machine) -> String {
    let Machine { cpu, cores, memory_bytes, kernel, cgroups, distribution, load_before } = machine;
    let memory = memory_bytes >> 20;
    format!(
        "{cpu}, {cores} cores, {memory} MiB, {distribution}, kernel {kernel}, cgroups {cgroups}, load before {load_before}\n"
    )
}

/// Groups series by call and conditions, in the order in which the calls first appear.
fn groups(all: &[Series]) -> Vec<Vec<&Series>> {
    let mut groups: Vec<Vec<&Series>> = Vec::new();
    for series in all {
        let alike = |group: &&mut Vec<&Series>| {
            group.first().is_some_and(|first| {
                (&first.key.call, first.key.payload_bytes, first.key.concurrency, first.key.held)
                    == (&series.key.call, series.key.payload_bytes, series.key.concurrency, series.key.held)
            })
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(series),
            None => groups.push(vec![series]),
        }
    }
    groups
}

fn name(key: &Key) -> String {
    format!("{} by {} on {}", format::call(key), key.path, key.setup)
}

fn line(series: &Series, report: &Report, width: usize) -> String {
    let distribution = Distribution::of(&series.samples_ns);
    let written = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), |ns| format!("{:.3}", ns as f64 / 1e6));
    let at = |part| written(distribution.percentile(part));
    let of = |path: &str| ratio(series, report, path).unwrap_or_else(|| "-".to_owned());
    format!(
        "{:<width$} {:>5} {:>6} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9}  {}",
        name(&series.key),
        series.samples_ns.len(),
        series.failures.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        written(distribution.most()),
        of(cli::NAME),
        of(daemon::NAME),
        series.cost.as_ref().map(cost).unwrap_or_default()
    )
}

/// Returns the ratio to the same call by another path on the same setup, formatted. `None` if there is none, or if it
/// is the series itself.
fn ratio(series: &Series, report: &Report, path: &str) -> Option<String> {
    let key = Key { path: path.to_owned(), ..series.key.clone() };
    let base = report.series.iter().find(|other| other.key == key)?;
    if base.key == series.key {
        return None;
    }
    Some(format!("{:.2}", ratio_within_run(base, series)?.value))
}

fn cost(cost: &Cost) -> String {
    let words = cost.cpu_ns_per_call.iter().map(|(who, ns)| format!("{who} {:.2}", *ns as f64 / 1e6));
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(path: &str, call: &str, samples_ns: Vec<u64>) -> Series {
        let key = Key {
            setup: "here".to_owned(),
            path: path.to_owned(),
            call: call.to_owned(),
            concurrency: 1,
            payload_bytes: 0,
            held: 0,
        };
        Series { key, samples_ns, failures: Vec::new(), cost: None }
    }

    #[test]
    fn series_of_a_call_stand_together_whatever_came_between() {
        let all = [
            series("direct", "state", vec![1]),
            series("cli", "kill", vec![1]),
            series("cli", "state", vec![1]),
        ];
        let groups = groups(&all);
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].iter().map(|series| &*series.key.path).collect::<Vec<_>>(), ["direct", "cli"]);
    }
}
