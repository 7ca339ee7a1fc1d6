//! What a run of all variations is held against: ratios of its figures, each with an aim. A figure of which anything
//! failed, or that was taken too few times, meets none.

use std::fmt::Write as _;

use super::PATH;
use super::calls::{CREATE_AND_START, EXEC, EXECS, FIRST_WRITE, LOGS, TIMELINE};
use super::floor::{NO_PROFILE, PROFILE, RUNTIME};
use super::parts::of_daemons;
use super::side::{BUILD, LOG_LEVEL, OCI_RUNTIME, USUAL_LOG_LEVEL};
use crate::cli;
use crate::report_data::{PointKind, Report, ScalePoint, Series, Setup};
use crate::statistics::Distribution;

/// A figure of a run.
#[derive(Debug, Clone, Copy)]
enum Figure {
    /// Times of a call under an agent, with the names of the variation and the call.
    Call(&'static str, &'static str),
    /// Times of `create` and `start` by the runtime of a variation alone, without or with a seccomp profile.
    Floor(&'static str, bool),
    /// Milliseconds of CPU time that daemons take of a task in a second, with this many tasks of a variation.
    Cpu(&'static str, u32),
    /// MiB of a task in the memory of daemons, with this many tasks of a variation.
    Memory(&'static str, u32),
    /// Tasks that failed in all rounds, of this many in each.
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
    Figure::Call(setup, call)
}

/// The aims. One whose variation isn't measured has no figure.
const AIMS: [Aim; 18] = [
    over("first write, defaults", call("runc", FIRST_WRITE), call(GO, FIRST_WRITE), 0.9),
    over("first write, own logs, runc", call("runc-logs", FIRST_WRITE), call(GO, FIRST_WRITE), 0.4),
    over("first write, own logs, auto with crun", call(AUTO, FIRST_WRITE), call(GO, FIRST_WRITE), 0.25),
    over("exec, runc", call("runc", EXEC), call(GO, EXEC), 1.6),
    over("exec, runc, filter of its own architecture", call("runc-native", EXEC), call(GO, EXEC), 1.15),
    over("exec, crun", call("crun", EXEC), call(GO, EXEC), 0.35),
    over(
        "start by the timeline, no logs' process, no profile, over crun create and start without one",
        call("crun-logs-no-profile", TIMELINE),
        Figure::Floor("crun-logs-no-profile", false),
        1.0,
    ),
    over(
        "start by the timeline, no logs' process, over crun create and start, both with the profile",
        call("crun-logs", TIMELINE),
        Figure::Floor("crun-logs", true),
        1.0,
    ),
    alone("MiB of a task, 200 tasks, one shim a node", Figure::Memory("shared-node", 200), 0.3),
    alone(
        "MiB of a task, 200 tasks, one shim an allocation of four",
        Figure::Memory("shared-allocation", 200),
        0.9,
    ),
    alone("the same, shim in Rust, one a node", Figure::Memory("rust-shared-node", 200), 0.3),
    alone(
        "the same, shim in Rust, one an allocation of four",
        Figure::Memory("rust-shared-allocation", 200),
        0.9,
    ),
    alone("failed of 500 idle tasks, all rounds", Figure::Failed("runc-logs", 500), 0.0),
    alone("the same, shim in Rust, one a node", Figure::Failed("rust-shared-node", 500), 0.0),
    alone("CPU ms a task-second, 500 idle tasks", Figure::Cpu("runc-logs", 500), 0.15),
    alone("the same, shim in Rust, one a node", Figure::Cpu("rust-shared-node", 500), 0.15),
    over(
        "logs of one task, Rust shim, time over logmon's (100 kills of the plugin: a case of the suite)",
        call("rust-shim-logs", LOGS),
        call("rust-shim", LOGS),
        1.0 / 1.5,
    ),
    over("first write over docker's", call("as-docker", FIRST_WRITE), call("docker", FIRST_WRITE), 1.0),
];
const GO: &str = "go-driver";
/// The variation that lets this driver choose its runtime.
const AUTO: &str = "auto-logs";

/// Least number of values of a time, and of rounds with many tasks or much output, by which an aim can be met.
const LEAST_CALLS: usize = 6;
const LEAST_ROUNDS: usize = 3;
/// Number of values from which on the 90th percentile isn't their largest.
const LEAST_P90: usize = 10;

/// The values of a figure: milliseconds for times.
#[derive(Debug, Default, PartialEq)]
struct Values {
    values: Vec<u64>,
    /// What a value is divided by.
    unit: f64,
    n: usize,
    failed: u32,
}

impl Values {
    fn at(&self, part: f64) -> Option<f64> {
        Distribution::of(&self.values).percentile(part).map(|value| value as f64 / self.unit)
    }
}

impl Figure {
    /// Returns the number of values by which an aim can be met.
    fn least(self) -> usize {
        match self {
            Self::Call(_, EXEC) => LEAST_CALLS * EXECS,
            Self::Call(_, LOGS) | Self::Cpu(..) | Self::Memory(..) | Self::Failed(..) => LEAST_ROUNDS,
            Self::Call(..) | Self::Floor(..) => LEAST_CALLS,
        }
    }

    fn setup(self) -> &'static str {
        match self {
            Self::Call(setup, _)
            | Self::Floor(setup, _)
            | Self::Cpu(setup, _)
            | Self::Memory(setup, _)
            | Self::Failed(setup, _) => setup,
        }
    }

    fn values(self, report: &Report) -> Values {
        match self {
            Self::Call(setup, call) => of_series(report, setup, PATH, call),
            Self::Floor(setup, has_profile) => {
                let floor = floor_of(report, setup, has_profile);
                floor.map_or_else(Values::default, |floor| {
                    of_series(report, &floor.name, cli::NAME, CREATE_AND_START)
                })
            }
            Self::Cpu(setup, tasks) => {
                let cpu = |point: &ScalePoint| of_daemons(&point.steady_cpu_ns_per_task_second);
                Values { unit: 1e6, ..of_points(report, setup, tasks, cpu) }
            }
            Self::Memory(setup, tasks) => {
                let share = |point: &ScalePoint| of_daemons(&point.memory_bytes) / u64::from(tasks);
                Values { unit: 1_048_576.0, ..of_points(report, setup, tasks, share) }
            }
            Self::Failed(setup, tasks) => {
                let mut all = of_points(report, setup, tasks, |_| 0);
                all.values = (all.n > 0).then_some(u64::from(all.failed)).into_iter().collect();
                all
            }
        }
    }
}

/// Returns the table of all aims, and what one has to know of its figures.
pub(crate) fn text(report: &Report) -> String {
    let mut text = "| figure | p50 | over p50 | ratio | p90 | over p90 | ratio | n | failed | aim | |\n\
                    |---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for aim in &AIMS {
        let _ = writeln!(text, "| {} |{}", aim.what, row(report, aim));
    }
    text + &notes(report)
}

fn row(report: &Report, Aim { figure, over, most, .. }: &Aim) -> String {
    let value = figure.values(report);
    let base = over.map(|over| over.values(report));
    let mut cells = String::new();
    let (mut p50, least) = (None, over.map_or(figure.least(), |over| figure.least().max(over.least())));
    for part in [0.5, 0.9] {
        // A sum has no percentiles.
        let has_part = part < 0.9 || !matches!(figure, Figure::Failed(..));
        let of_value = value.at(part).filter(|_| has_part);
        let of_base = base.as_ref().and_then(|base| base.at(part));
        let ratio = match base {
            None => of_value,
            Some(_) => of_value.zip(of_base).map(|(value, base)| value / base),
        };
        if part < 0.9 {
            p50 = ratio;
        }
        let shown = |value: Option<f64>, values: &Values| {
            let word = if part < 0.9 || values.n >= LEAST_P90 { "" } else { "max " };
            value.map_or_else(|| "-".to_owned(), |value| format!("{word}{value:.2}"))
        };
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let over = base.as_ref().map_or_else(|| "-".to_owned(), |base| shown(of_base, base));
        let _ = write!(cells, " {} | {over} | {ratio} |", shown(of_value, &value));
    }
    let both = |of: fn(&Values) -> String| {
        let base = base.as_ref().map(|base| format!(" / {}", of(base)));
        of(&value) + &base.unwrap_or_default()
    };
    let (n, failed) = (both(|values| values.n.to_string()), both(|values| values.failed.to_string()));
    let least_n = base.iter().map(|base| base.n).fold(value.n, usize::min);
    let any_failed = value.failed > 0 || base.as_ref().is_some_and(|base| base.failed > 0);
    let verdict = match p50 {
        _ if any_failed => "missed (failed)".to_owned(),
        None => "not measured".to_owned(),
        Some(_) if figure.setup() == AUTO && !runs_crun(report) => {
            "not measured (auto is not crun)".to_owned()
        }
        Some(ratio) if ratio > *most => "missed".to_owned(),
        Some(_) if least_n < least => format!("n is below {least}"),
        Some(_) => "met".to_owned(),
    };
    let most = if *most == 1.0 / 1.5 { "1 / 1.5".to_owned() } else { most.to_string() };
    format!("{cells} {n} | {failed} | {most} | {verdict} |")
}

fn setup_of<'a>(report: &'a Report, name: &str) -> Option<&'a Setup> {
    report.setups.iter().find(|setup| setup.name == name)
}

/// Returns whether the variation that lets the driver choose has crun.
fn runs_crun(report: &Report) -> bool {
    let runtime = setup_of(report, AUTO).and_then(|setup| setup.parts.get(OCI_RUNTIME));
    runtime.is_some_and(|runtime| runtime.rsplit('/').next() == Some("crun"))
}

/// Returns the floor that has the runtime of a variation.
fn floor_of<'a>(report: &'a Report, variation: &str, has_profile: bool) -> Option<&'a Setup> {
    let runtime = setup_of(report, variation)?.parts.get(RUNTIME)?;
    report.setups.iter().find(|setup| {
        let profile = setup.parts.get(PROFILE);
        setup.parts.get(RUNTIME) == Some(runtime)
            && profile.is_some_and(|profile| (profile != NO_PROFILE) == has_profile)
    })
}

fn of_series(report: &Report, setup: &str, path: &str, call: &str) -> Values {
    let is_it =
        |series: &&Series| (&*series.key.setup, &*series.key.path, &*series.key.call) == (setup, path, call);
    let Some(series) = report.series.iter().find(is_it) else { return Values::default() };
    Values {
        values: series.samples_ns.clone(),
        unit: 1e6,
        n: series.samples_ns.len(),
        failed: u32::try_from(series.failures.len()).unwrap_or(u32::MAX),
    }
}

/// Returns a value of the rounds with so many tasks at rest: of those in which no task failed.
fn of_points(report: &Report, setup: &str, tasks: u32, value: impl Fn(&ScalePoint) -> u64) -> Values {
    let is_it = |point: &&ScalePoint| {
        point.setup == setup && point.tasks == tasks && point.kind == PointKind::Rest && point.path == PATH
    };
    let points: Vec<&ScalePoint> = report.scale.iter().filter(is_it).collect();
    let values = points.iter().filter(|point| point.has_usage()).map(|point| value(point)).collect();
    let failed = points.iter().map(|point| point.failed()).fold(0, u32::saturating_add);
    Values { values, unit: 1.0, n: points.len(), failed }
}

/// Returns what the setups have that isn't usual, and that figures depend on.
fn notes(report: &Report) -> String {
    let with = |part: &str, usual: &str| {
        let is_unusual = |setup: &&Setup| setup.parts.get(part).is_some_and(|found| found != usual);
        let names = report.setups.iter().filter(is_unusual).map(|setup| &*setup.name);
        names.collect::<Vec<_>>().join(", ")
    };
    let mut text = String::new();
    let (debug, builds) = (with(LOG_LEVEL, USUAL_LOG_LEVEL), with(BUILD, "release"));
    if !debug.is_empty() {
        let _ = writeln!(text, "\nAgents that log at DEBUG, which takes time and CPU time: {debug}.");
    }
    if !builds.is_empty() {
        let _ = writeln!(text, "\nNo release build of this driver, so no figures: {builds}.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::report;
    use crate::report_data::Failure;

    const CALLS: [u64; 10] = [80, 90, 90, 90, 90, 90, 90, 90, 90, 100];
    const BASE: [u64; 10] = [100, 100, 100, 100, 100, 100, 100, 100, 200, 300];

    fn failure() -> Failure {
        Failure { turn: 0, error: "refused".to_owned() }
    }

    fn point(setup: &str, tasks: u32) -> ScalePoint {
        let mut point = crate::growth::tests::point(PATH, tasks, 7);
        point.setup = setup.to_owned();
        point
    }

    fn row_of(report: &Report, what: &str) -> String {
        let text = text(report);
        text.lines().find(|line| line.starts_with(&format!("| {what} |"))).unwrap_or(&text).to_owned()
    }

    #[test]
    fn an_aim_is_met_by_the_ratio_of_the_medians() {
        let report = report(&[("runc", FIRST_WRITE, &CALLS), (GO, FIRST_WRITE, &BASE)]);
        assert_eq!(
            row_of(&report, "first write, defaults"),
            "| first write, defaults | 90.00 | 100.00 | 0.90 | 90.00 | 200.00 | 0.45 | 10 / 10 | 0 / 0 | 0.9 | met |"
        );
        assert_eq!(
            row_of(&report, "exec, runc"),
            "| exec, runc | - | - | - | - | - | - | 0 / 0 | 0 / 0 | 1.6 | not measured |"
        );
    }

    #[test]
    fn an_aim_is_not_met_with_failures_or_by_few_values() {
        let mut few = report(&[("runc", FIRST_WRITE, &[80; 5]), (GO, FIRST_WRITE, &BASE)]);
        let row = row_of(&few, "first write, defaults");
        assert!(
            row.contains("| max 80.00 | 200.00 |")
                && row.ends_with("| 5 / 10 | 0 / 0 | 0.9 | n is below 6 |"),
            "{row}"
        );
        few.series[1].failures.push(failure());
        let row = row_of(&few, "first write, defaults");
        assert!(row.ends_with("| 0 / 1 | 0.9 | missed (failed) |"), "{row}");
    }

    #[test]
    fn a_figure_without_a_base_is_held_against_its_aim_itself() {
        let mut report = report(&[]);
        let mut point = point("runc-logs", 500);
        point.steady_cpu_ns_per_task_second =
            [("plugin".to_owned(), 200_000), ("agent".to_owned(), 9)].into();
        report.scale = vec![point; 3];
        let cpu = row_of(&report, "CPU ms a task-second, 500 idle tasks");
        assert!(
            cpu.contains("| 0.20 | - | 0.20 | max 0.20 |") && cpu.ends_with("| 0.15 | missed |"),
            "{cpu}"
        );
        let failed = row_of(&report, "failed of 500 idle tasks, all rounds");
        assert!(failed.ends_with("| 0.00 | - | 0.00 | - | - | - | 3 | 0 | 0 | met |"), "{failed}");
    }

    #[test]
    fn a_round_that_failed_altogether_is_no_figure_and_all_of_its_tasks_have_failed() {
        let mut report = report(&[]);
        let mut lost = point("runc-logs", 500);
        lost.memory_bytes.clear();
        lost.failures.push(failure());
        let mut one = point("runc-logs", 500);
        one.failures.push(failure());
        let flood =
            ScalePoint { kind: PointKind::Flood, failures: vec![failure()], ..point("runc-logs", 500) };
        report.scale = vec![lost.clone(), one, point("runc-logs", 500), point("runc-logs", 500), flood];
        let failed = row_of(&report, "failed of 500 idle tasks, all rounds");
        assert!(
            failed.contains("| 501.00 |") && failed.ends_with("| 4 | 501 | 0 | missed (failed) |"),
            "{failed}"
        );
        report.scale = vec![ScalePoint { setup: "shared-node".to_owned(), tasks: 200, ..lost }];
        let memory = row_of(&report, "MiB of a task, 200 tasks, one shim a node");
        assert!(
            memory.contains("| - | - | - |") && memory.ends_with("| 200 | 0.3 | missed (failed) |"),
            "{memory}"
        );
    }

    #[test]
    fn the_floor_is_the_one_with_the_variations_runtime_and_profile() {
        let mut report = report(&[
            ("crun-logs-no-profile", TIMELINE, &[28; 6]),
            ("crun-logs", TIMELINE, &[60; 6]),
            ("crun 1.8 alone", CREATE_AND_START, &[16; 6]),
            ("crun 1.8 alone, profile", CREATE_AND_START, &[30; 6]),
            ("crun 1.9 alone", CREATE_AND_START, &[1; 6]),
        ]);
        for (setup, series) in report.setups.iter_mut().zip(&mut report.series) {
            let (is_floor, is_other) = (setup.name.contains("alone"), setup.name.contains("1.9"));
            let runtime = if is_other { "/opt/crun" } else { "/usr/bin/crun" };
            setup.parts.insert(RUNTIME.to_owned(), runtime.to_owned());
            if is_floor {
                let profile = if setup.name.ends_with("profile") { "that of a task" } else { NO_PROFILE };
                setup.parts.insert(PROFILE.to_owned(), profile.to_owned());
                cli::NAME.clone_into(&mut series.key.path);
            }
        }
        let text = text(&report);
        assert!(text.contains("without one | 28.00 | 16.00 | 1.75 |"), "{text}");
        assert!(text.contains("both with the profile | 60.00 | 30.00 | 2.00 |"), "{text}");
    }

    #[test]
    fn the_row_of_auto_with_crun_has_no_verdict_without_crun() {
        let mut report = report(&[(AUTO, FIRST_WRITE, &[20; 10]), (GO, FIRST_WRITE, &BASE)]);
        let what = "first write, own logs, auto with crun";
        let mut verdict_with = |runtime: &str| {
            report.setups[0].parts.insert(OCI_RUNTIME.to_owned(), runtime.to_owned());
            row_of(&report, what)
        };
        assert!(verdict_with("runc").ends_with("| not measured (auto is not crun) |"));
        assert!(verdict_with("/usr/bin/crun").ends_with("| met |"));
    }

    #[test]
    fn what_is_not_usual_is_told_with_the_aims() {
        let mut report = report(&[("runc", FIRST_WRITE, &[1]), ("crun", FIRST_WRITE, &[1])]);
        report.setups[0].parts = [(BUILD, "release"), (LOG_LEVEL, USUAL_LOG_LEVEL)]
            .map(|(part, word)| (part.to_owned(), word.to_owned()))
            .into();
        assert!(!text(&report).contains("Agents that log") && !text(&report).contains("No release build"));
        report.setups[1].parts = [(BUILD, "debug"), (LOG_LEVEL, "DEBUG")]
            .map(|(part, word)| (part.to_owned(), word.to_owned()))
            .into();
        assert!(text(&report).contains("CPU time: crun.") && text(&report).contains("no figures: crun."));
    }
}
