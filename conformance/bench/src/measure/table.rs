//! The results as a table: a series of times for each call by each path, made in rounds that take every path once,
//! with their statistics. Knows nothing of how a call is made.

use std::time::Duration;

use anyhow::Result;
use harness::interrupt;
use serde_json::{Value, json};

use crate::samples::nanoseconds;
use crate::statistics::Distribution;

/// Size of the output of the measured exec.
pub(crate) const OUTPUT_BYTES: usize = 50 * 1024 * 1024;
/// Throughput that drivers written in Go reach through the agent. Measured elsewhere, not here.
pub(crate) const GO_DRIVERS_MB_PER_S: f64 = 3.4;
const GO_DRIVERS_MS: f64 = OUTPUT_BYTES as f64 / GO_DRIVERS_MB_PER_S / 1000.0;

/// Number of tasks that are recovered.
pub(crate) const RECOVERED: usize = 200;
/// Time within which [`RECOVERED`] tasks should be recovered: a requirement, not a measurement.
const RECOVERED_WITHIN_MS: f64 = 2000.0;

/// A call that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// The output of an exec, [`OUTPUT_BYTES`] long.
    Output,
    /// Time from the request to the process's first write.
    Start,
    /// Time from the request to the process's exit.
    Stop,
    /// Time from the request until all of the task is removed.
    Removal,
    /// An exec of `true` by a command line.
    ExecCommand,
    /// Pull of an image of few large layers, until it is unpacked.
    PullLarge,
    /// Pull of an image of many small layers, until it is unpacked.
    PullSmall,
    /// Creation of a task's own network.
    Attach,
    /// Removal of a task's own network.
    Detach,
    /// Recovery of [`RECOVERED`] tasks, one after the other.
    RecoveryInTurn,
    /// Recovery of [`RECOVERED`] tasks, all at once.
    RecoveryAtOnce,
}

/// The path by which a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// The plugin's gRPC service, as the agent calls it.
    Plugin,
    /// The plugin's streaming exec (ExecTaskStreaming).
    PluginStreaming,
    Ctr,
    /// The command line of runc, on a container of its own.
    Runc,
    /// `skopeo copy` to a directory, which unpacks nothing.
    Skopeo,
    /// A real Nomad agent, whose tasks' logs Nomad collects.
    Agent,
    /// A real Nomad agent, whose tasks' logs the driver collects.
    AgentOwnLogs,
    /// The path `Agent` (below: `AgentOwnLogs`) with tasks without a seccomp profile.
    AgentNoProfile,
    AgentOwnLogsNoProfile,
    /// The command `nomad version`: the time that the command line takes without a request.
    AgentIdle,
    /// The CNI plugins, run by hand.
    Plugins,
}

/// The value that a series is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Reference {
    Path(Path),
    /// A known time that isn't measured here.
    Milliseconds(f64),
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Output => "exec, 50 MiB of output",
            Self::Start => "start to first write",
            Self::Stop => "stop to the process's end",
            Self::Removal => "stop until all is removed",
            Self::ExecCommand => "exec true, command line",
            Self::PullLarge => "pull, 12 layers of 40 MiB",
            Self::PullSmall => "pull, 40 small layers",
            Self::Attach => "start, by a network more",
            Self::Detach => "removal, by a network more",
            Self::RecoveryInTurn => "recovery of 200, in turn",
            Self::RecoveryAtOnce => "recovery of 200, at once",
        }
    }

    /// Returns what this call by a path is compared with.
    fn reference(self, path: Path) -> Reference {
        match (self, path) {
            (Self::Attach | Self::Detach, _) => Reference::Path(Path::Plugins),
            (Self::Output, _) => Reference::Milliseconds(GO_DRIVERS_MS),
            (Self::RecoveryInTurn | Self::RecoveryAtOnce, _) => Reference::Milliseconds(RECOVERED_WITHIN_MS),
            (
                Self::Start
                | Self::Stop
                | Self::Removal
                | Self::ExecCommand
                | Self::PullLarge
                | Self::PullSmall,
                _,
            ) => Reference::Path(Path::Ctr),
        }
    }
}

impl Path {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::PluginStreaming => "plugin, streaming",
            Self::Ctr => "ctr",
            Self::Runc => "runc",
            Self::Skopeo => "skopeo, not unpacked",
            Self::Agent => "nomad agent",
            Self::AgentOwnLogs => "nomad agent, driver's logs",
            Self::AgentNoProfile => "nomad agent, no seccomp",
            Self::AgentOwnLogsNoProfile => "driver's logs, no seccomp",
            Self::AgentIdle => "(nomad version)",
            Self::Plugins => "CNI plugins by hand",
        }
    }
}

/// A call by a path. The closure itself says which part of its time counts.
pub(crate) struct Probe<'a> {
    call: Call,
    path: Path,
    run: Box<dyn FnMut() -> Result<Duration> + 'a>,
}

impl<'a> Probe<'a> {
    pub(crate) fn new(call: Call, path: Path, run: impl FnMut() -> Result<Duration> + 'a) -> Self {
        Self { call, path, run: Box::new(run) }
    }
}

#[derive(Debug)]
struct Series {
    call: Call,
    path: Path,
    samples_ns: Vec<u64>,
    /// Errors of failed calls, which have no time.
    failures: Vec<String>,
}

impl Series {
    /// Returns a percentile in milliseconds.
    fn percentile(&self, part: f64) -> Option<f64> {
        Distribution::of(&self.samples_ns).percentile(part).map(ms)
    }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    series: Vec<Series>,
}

impl Table {
    pub(crate) fn record(&mut self, call: Call, path: Path, outcome: Result<Duration>) {
        let is_it = |series: &&mut Series| series.call == call && series.path == path;
        if self.series.iter_mut().find(is_it).is_none() {
            self.series.push(Series { call, path, samples_ns: Vec::new(), failures: Vec::new() });
        }
        let Some(series) = self.series.iter_mut().find(is_it) else { return };
        match outcome {
            Ok(took) => series.samples_ns.push(nanoseconds(took)),
            Err(error) => series.failures.push(format!("{error:#}")),
        }
    }

    /// Makes each call once in each round, which starts with another call each time. A warm-up before the first round
    /// isn't counted.
    ///
    /// # Errors
    /// Fails after an interrupt. A failed call is recorded in the table.
    pub(crate) fn interleave(&mut self, probes: &mut [Probe<'_>], rounds: u32) -> Result<()> {
        for probe in &mut *probes {
            let _ = (probe.run)();
        }
        for round in 0..rounds as usize {
            for turn in 0..probes.len() {
                interrupt::check()?;
                let probe = &mut probes[(round + turn) % probes.len()];
                let outcome = (probe.run)();
                self.record(probe.call, probe.path, outcome);
            }
        }
        Ok(())
    }

    fn of(&self, call: Call, path: Path) -> Option<&Series> {
        self.series.iter().find(|series| series.call == call && series.path == path)
    }

    /// Returns the median of a call by a path, in milliseconds.
    pub(crate) fn median_ms(&self, call: Call, path: Path) -> Option<f64> {
        self.of(call, path)?.percentile(0.5)
    }

    /// Returns the ratio of a series' median to its reference.
    fn ratio(&self, series: &Series) -> Option<f64> {
        let reference = match series.call.reference(series.path) {
            Reference::Milliseconds(known) => known,
            Reference::Path(path) => self.median_ms(series.call, path)?,
        };
        series.percentile(0.5).map(|median| median / reference)
    }

    pub(crate) fn print(&self) {
        println!(
            "{:<26} {:<28} {:>5} {:>6} {:>9} {:>9} {:>9} {:>7}  of",
            "milliseconds", "by", "n", "failed", "p50", "p90", "p99", "ratio"
        );
        for series in &self.series {
            let shown = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let at = |part| shown(series.percentile(part), 2);
            println!(
                "{:<26} {:<28} {:>5} {:>6} {:>9} {:>9} {:>9} {:>7}  {}",
                series.call.name(),
                series.path.name(),
                series.samples_ns.len(),
                series.failures.len(),
                at(0.5),
                at(0.9),
                at(0.99),
                shown(self.ratio(series), 3),
                reference_name(series)
            );
        }
        for series in self.series.iter().filter(|series| !series.failures.is_empty()) {
            let (failed, first) = (series.failures.len(), series.failures[0].trim());
            println!("{} by {}: {failed} failed, first: {first}", series.call.name(), series.path.name());
        }
    }

    pub(crate) fn json(&self) -> Value {
        let series = self.series.iter().map(|series| {
            json!({
                "call": series.call.name(),
                "by": series.path.name(),
                "n": series.samples_ns.len(),
                "failed": series.failures.len(),
                "p50_ms": series.percentile(0.5),
                "p90_ms": series.percentile(0.9),
                "p99_ms": series.percentile(0.99),
                "ratio": self.ratio(series),
                "ratio_of": reference_name(series),
                "samples_ms": series.samples_ns.iter().copied().map(ms).collect::<Vec<_>>(),
                "failures": series.failures,
            })
        });
        series.collect()
    }
}

fn reference_name(series: &Series) -> String {
    match series.call.reference(series.path) {
        Reference::Path(path) => path.name().to_owned(),
        Reference::Milliseconds(known) => format!("{known:.0} ms, not measured here"),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn table(samples: &[(Path, &[u64])]) -> Table {
        let mut table = Table::default();
        for (path, milliseconds) in samples {
            for ms in *milliseconds {
                table.record(Call::Start, *path, Ok(Duration::from_millis(*ms)));
            }
        }
        table
    }

    fn whole<'a>(path: Path, mut run: impl FnMut() -> Result<()> + 'a) -> Probe<'a> {
        Probe::new(Call::Start, path, move || run().map(|()| Duration::ZERO))
    }

    #[test]
    fn a_percentile_is_a_sample_that_so_many_do_not_exceed() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        let table = table(&[(Path::Plugin, &hundred), (Path::Ctr, &[7])]);
        let at = |path, part| table.of(Call::Start, path).unwrap().percentile(part);
        assert_eq!([0.5, 0.9, 0.99].map(|part| at(Path::Plugin, part)), [50.0, 90.0, 99.0].map(Some));
        assert_eq!([0.5, 0.99].map(|part| at(Path::Ctr, part)), [7.0, 7.0].map(Some));
    }

    #[test]
    fn a_ratio_is_to_the_reference_of_the_same_call() {
        let mut table = table(&[(Path::Plugin, &[1, 2, 9]), (Path::Ctr, &[8, 8, 8])]);
        table.record(Call::Stop, Path::Ctr, Ok(Duration::from_millis(100)));
        table.record(Call::Stop, Path::Plugin, Ok(Duration::from_millis(10)));
        assert_eq!(table.ratio(table.of(Call::Start, Path::Plugin).unwrap()), Some(0.25));
        assert_eq!(table.ratio(table.of(Call::Stop, Path::Plugin).unwrap()), Some(0.1));
        table.record(Call::Removal, Path::Plugin, Ok(Duration::from_millis(1)));
        assert_eq!(table.ratio(table.of(Call::Removal, Path::Plugin).unwrap()), None);
    }

    #[test]
    fn every_round_takes_each_path_once_and_another_one_first() {
        let order = std::cell::RefCell::new(Vec::new());
        let probe = |path| {
            let order = &order;
            whole(path, move || {
                order.borrow_mut().push(path);
                Ok(())
            })
        };
        let mut probes = [probe(Path::Plugin), probe(Path::Agent), probe(Path::Ctr)];
        let mut table = Table::default();
        table.interleave(&mut probes, 2).unwrap();
        let [a, b, c] = [Path::Plugin, Path::Agent, Path::Ctr];
        drop(probes);
        assert_eq!(order.into_inner(), [a, b, c, a, b, c, b, c, a]);
        assert_eq!(table.of(Call::Start, Path::Agent).unwrap().samples_ns.len(), 2);
    }

    #[test]
    fn a_call_that_fails_is_counted_and_has_no_time() {
        let mut calls = 0;
        let every_other = || {
            calls += 1;
            if calls % 2 == 0 {
                bail!("call {calls}")
            }
            Ok(())
        };
        let mut table = Table::default();
        table.interleave(&mut [whole(Path::Agent, every_other)], 4).unwrap();
        let series = table.of(Call::Start, Path::Agent).unwrap();
        assert_eq!(
            (series.samples_ns.len(), &*series.failures),
            (2, &["call 2", "call 4"].map(String::from)[..])
        );
        let json = table.json();
        assert_eq!((&json[0]["n"], &json[0]["failed"]), (&json!(2), &json!(2)));
    }
}
