//! Starts all nodes of a run, makes its rounds, and takes all of it down. A side that fails is left out, with the reason in
//! the report; the report is written after each kind of figures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use harness::context::DockerCluster;
use harness::environment::TestEnvironment;
use harness::interrupt::check;

use super::Args;
use super::floor::{self, Floors, Profile};
use super::kind::Kind;
use super::many::give_up;
use super::readings::rates_of;
use super::rounds::{Rounds, WARM, WARM_JOB, warm_up};
use super::side::{Common, Side};
use super::variation::{Binaries, Variation, not_measured};
use super::write;
use crate::measure::logs::PIECE_BYTES;
use crate::report_data::{NotMeasured, Report};

/// A run, and its report so far.
pub(crate) struct Run<'a> {
    pub(crate) args: &'a Args,
    pub(crate) binaries: &'a Binaries,
    pub(crate) heading: &'a str,
    /// What the orders of rounds are made from.
    pub(crate) seed: u64,
    /// Number of rounds with many tasks and much output, and of those at rest.
    pub(crate) others: u32,
    pub(crate) at_rest: u32,
    pub(crate) begun: Instant,
    pub(crate) report: Report,
}

impl Run<'_> {
    /// Measures some variations.
    ///
    /// # Errors
    /// Fails after an interrupt, if no side comes up, or at the end with all that this driver has left. A failed call is
    /// part of the figures, and so is a failed side.
    pub(crate) fn measure(
        &mut self,
        environment: &TestEnvironment,
        variations: Vec<Variation>,
    ) -> Result<()> {
        let (nomad, plugin) =
            (std::path::absolute(&self.args.nomad)?, std::path::absolute(&self.args.plugin)?);
        let cluster = DockerCluster::start(environment, &nomad)?;
        let common = Common {
            directory: environment.directory(),
            plugin: &plugin,
            dockerd: self.binaries.dockerd.as_deref(),
            go_driver: self.binaries.go_driver.as_deref(),
            go_drivers_sleep: self.args.go_driver_sleep,
            timelines: self.args.timelines,
        };
        let mut sides = self.start(&cluster, variations, &common)?;
        self.is_done(&format!("{} nodes", sides.len()));
        let profiles = self.warm_up(&mut sides)?;
        self.is_done("warm-up");
        ensure!(!sides.is_empty(), "no variation can be measured: {:?}", self.report.not_measured);
        self.report.setups = sides.iter().map(Side::record).collect();
        self.left_out(&sides);
        let made = self.rounds(environment.directory(), &sides, &profiles).map_err(|error| {
            let words: Vec<_> = sides.iter().map(Side::last_words).collect();
            anyhow!("{error:#}\n{}", words.join("\n"))
        });
        let ended = self.end(sides);
        made.and(ended)
    }

    fn is_done(&self, what: &str) {
        println!("{what}: done after {} s", self.begun.elapsed().as_secs());
    }

    fn start<'c>(
        &mut self,
        cluster: &DockerCluster<'c>,
        variations: Vec<Variation>,
        common: &Common<'_>,
    ) -> Result<Vec<Side<'c>>> {
        let mut sides = Vec::new();
        for (number, variation) in (1..).zip(variations) {
            check()?;
            let name = variation.name.clone();
            let programs = variation.programs(&self.args.choice, self.binaries);
            match programs.and_then(|programs| Side::start(cluster, number, variation, &programs, common)) {
                Ok(side) => sides.push(side),
                Err(error) => {
                    check()?;
                    println!("{name} does not start: {error:#}");
                    self.report.not_measured.push(not_measured(&name, &format!("{error:#}")));
                }
            }
        }
        Ok(sides)
    }

    /// Has each side run its first tasks, and takes those out that can't. Returns the profiles of their tasks.
    fn warm_up(&mut self, sides: &mut Vec<Side<'_>>) -> Result<Vec<Profile>> {
        let (mut profiles, mut rates, mut failed) = (Vec::new(), Vec::new(), BTreeMap::new());
        {
            let (mut jobs, wants_rates) = (Vec::new(), self.args.wants(Kind::Rest));
            for (place, side) in sides.iter().enumerate() {
                check()?;
                let warm = warm_up(side).and_then(|(mut job, profile)| {
                    if wants_rates && side.variation.has(Kind::Rest) {
                        jobs.push((place, job));
                    } else {
                        job.end()?;
                    }
                    Ok(profile)
                });
                match warm {
                    Ok(profile) => profiles.extend(profile),
                    Err(error) => drop(failed.insert(place, error)),
                }
            }
            let tasks: Vec<_> = jobs.iter().map(|(place, job)| (&sides[*place], &*job.ids[0])).collect();
            if !tasks.is_empty() {
                rates = jobs.iter().map(|(place, _)| *place).zip(rates_of(&tasks)?).collect();
            }
            for (place, job) in &mut jobs {
                if let Err(error) = job.end() {
                    failed.insert(*place, error);
                }
            }
            check()?;
        }
        for (place, rate) in rates {
            let words = rate
                .map_or_else(|error| format!("{error:#}"), |rate| format!("read {rate:.2} times a second"));
            sides[place].note("statistics", words);
        }
        // The last one first, by which the places of the others stay.
        for (place, error) in failed.into_iter().rev() {
            let mut side = sides.remove(place);
            println!("{} is left out: {error:#}\n{}", side.name(), side.last_words());
            self.report.not_measured.push(not_measured(side.name(), &format!("{error:#}")));
            profiles.retain(|profile: &Profile| profile.variation != side.name());
            give_up(&side, &side.job(WARM_JOB), WARM);
            if let Err(error) = side.end() {
                println!("{error:#}");
            }
        }
        Ok(profiles)
    }

    /// Notes what is asked for by its name, and not measured of a variation by its words.
    fn left_out(&mut self, sides: &[Side<'_>]) {
        for kind in &self.args.only {
            let without: Vec<_> =
                sides.iter().filter(|side| !side.variation.has(*kind)).map(|side| side.name()).collect();
            if !without.is_empty() {
                let what = format!("{} of {}", kind.name(), without.join(", "));
                self.report.not_measured.push(NotMeasured { what, why: "by their words".to_owned() });
            }
        }
    }

    /// Returns the runtimes that are measured alone, each with the profile of the first variation that has it. One that no
    /// variation has gets the first profile of all.
    fn floors(&self, sides: &[Side<'_>], profiles: &[Profile]) -> Result<Vec<(PathBuf, Option<Profile>)>> {
        let mut runtimes: Vec<PathBuf> = Vec::new();
        if self.args.floor.is_empty() {
            let singles = sides.iter().filter(|side| side.variation.has(Kind::Single));
            runtimes.extend(singles.map(|side| side.runtime.clone()));
        } else {
            for name in self.args.floor.iter().filter(|name| *name != "none") {
                runtimes.push(floor::path_of(name, &self.args.choice)?);
            }
        }
        let used: Vec<_> = sides.iter().map(|side| (side.name(), &*side.runtime)).collect();
        Ok(with_profiles(runtimes, &used, profiles))
    }

    fn rounds(&mut self, directory: &Path, sides: &[Side<'_>], profiles: &[Profile]) -> Result<()> {
        let runtimes = self.floors(sides, profiles)?;
        let has_floors = self.args.wants(Kind::Single) && !runtimes.is_empty();
        let floors = has_floors.then(|| Floors::start(directory, &self.args.choice, &runtimes)).transpose();
        let floors = floors.unwrap_or_else(|error| {
            let what = "the runtimes alone".to_owned();
            self.report.not_measured.push(NotMeasured { what, why: format!("{error:#}") });
            None
        });
        self.report.setups.extend(floors.iter().flat_map(Floors::records));
        let mut rounds = Rounds::new(sides, self.args.steady, self.seed);
        let made = self.make(&mut rounds, floors.as_ref());
        let ended = floors.map_or(Ok(()), Floors::end);
        if let Err(error) = ended {
            let what = "the end of the runtimes alone".to_owned();
            self.report.not_measured.push(NotMeasured { what, why: format!("{error:#}") });
        }
        made
    }

    /// Makes all kinds of rounds. See [`super::rounds`] for their order.
    fn make(&mut self, rounds: &mut Rounds<'_, '_>, floors: Option<&Floors>) -> Result<()> {
        let (args, others) = (self.args, self.others);
        if args.wants(Kind::Single) {
            let made = rounds.single(args.rounds, floors);
            self.save(rounds, "single tasks", made)?;
        }
        if args.wants(Kind::Rest) {
            let mut counts = args.tasks.clone();
            counts.sort_unstable();
            counts.dedup();
            for tasks in &counts {
                let made = rounds.at_rest(self.at_rest, *tasks, &counts);
                self.save(rounds, &format!("{tasks} tasks at rest"), made)?;
            }
        }
        if args.wants(Kind::Output) {
            let made = rounds.output(others);
            self.save(rounds, "much output", made)?;
        }
        if args.wants(Kind::Logs) {
            let made = rounds.logs(others, args.log_megabytes as usize * 1_000_000 / PIECE_BYTES);
            self.save(rounds, "logs", made)?;
        }
        if args.wants(Kind::Flood) {
            let made = rounds.flood(others, args.flood);
            self.save(rounds, "floods of tasks", made)?;
        }
        Ok(())
    }

    /// Writes the report with what the rounds have brought up to now, also where they end.
    fn save(&mut self, rounds: &mut Rounds<'_, '_>, what: &str, made: Result<()>) -> Result<()> {
        rounds.fill(&mut self.report);
        write::files(self.args, self.heading, &self.report)?;
        self.is_done(what);
        made
    }

    /// Ends all sides. What another driver leaves behind, or an agent that had to be killed for it, is noted.
    fn end(&mut self, sides: Vec<Side<'_>>) -> Result<()> {
        let mut left = Vec::new();
        for mut side in sides {
            let Err(error) = side.end() else { continue };
            let words = format!("{error:#}").lines().map(str::trim).collect::<Vec<_>>().join(" ");
            if let Some(setup) = self.report.setups.iter_mut().find(|setup| setup.name == side.name()) {
                setup.parts.insert("at its end".to_owned(), words.clone());
            }
            if side.variation.is_ours() {
                left.push(words);
            }
        }
        ensure!(left.is_empty(), "{}", left.join("\n"));
        Ok(())
    }
}

/// Returns each runtime once, with the profile of the first variation that has it, or the first of all. `used` has the
/// runtimes of variations.
fn with_profiles(
    runtimes: Vec<PathBuf>,
    used: &[(&str, &Path)],
    profiles: &[Profile],
) -> Vec<(PathBuf, Option<Profile>)> {
    let mut all: Vec<(PathBuf, Option<Profile>)> = Vec::new();
    for runtime in runtimes {
        if all.iter().any(|(known, _)| *known == runtime) {
            continue;
        }
        let is_its = |profile: &&Profile| used.contains(&(&profile.variation, &runtime));
        let profile = profiles.iter().find(is_its).or_else(|| profiles.first()).cloned();
        all.push((runtime, profile));
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_floor_is_a_runtime_by_its_path_with_the_profile_of_a_variation_of_its() {
        let profile = |variation: &str| Profile { variation: variation.to_owned(), seccomp: json!({}) };
        let (runc, crun, other) = (Path::new("/bin/runc"), Path::new("/bin/crun"), Path::new("/opt/crun"));
        let used = [("docker", runc), ("a", runc), ("b", crun), ("c", runc), ("d", other)];
        let runtimes = [runc, runc, crun, other, Path::new("/bin/youki")].map(Path::to_owned);
        let floors = with_profiles(runtimes.into(), &used, &[profile("a"), profile("b"), profile("d")]);
        let shown: Vec<_> = floors
            .iter()
            .map(|(runtime, profile)| (runtime.to_str().unwrap(), &*profile.as_ref().unwrap().variation))
            .collect();
        assert_eq!(shown, [("/bin/runc", "a"), ("/bin/crun", "b"), ("/opt/crun", "d"), ("/bin/youki", "a")]);
        assert!(with_profiles(vec![runc.to_owned()], &used, &[])[0].1.is_none());
    }
}
