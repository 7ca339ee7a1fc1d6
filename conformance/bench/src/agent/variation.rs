//! The variations of a run: a driver with options of its own, each in one line of words. Looks programs up, and starts
//! nothing.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum as _;
use harness::fixture::{Choice, Programs};
use serde_json::{Map, Value, json};

use super::kind::Kind;
use crate::report_data::NotMeasured;

/// Variations that need no words of the caller's. Each is a line as [`Variation::parse`] reads it. Tables and aims know
/// them by their names. Those that differ in a start alone have single tasks alone.
const BUILT_IN: [&str; 20] = [
    "name=docker,driver=docker,runtime=runc,most=200",
    "name=as-docker,driver=as-docker,runtime=runc,most=200",
    "name=go-driver,driver=go-driver,runtime=runc,most=200",
    "name=runc,runtime=runc,most=200",
    "name=runc-no-profile,runtime=runc,only=single,task.seccomp=false",
    "name=runc-logs,runtime=runc,rest=3,log_collection=driver",
    "name=runc-no-spares,runtime=runc,only=single,spare_shims=0",
    "name=runc-logs-no-spares,runtime=runc,only=single,log_collection=driver,spare_shims=0",
    "name=runc-native,runtime=runc,only=single,seccomp_architectures=image",
    "name=auto-logs,runtime=runc,only=single,oci_runtime=auto,log_collection=driver",
    "name=crun,runtime=crun,only=single",
    "name=crun-logs,runtime=crun,only=single,timelines=true,log_collection=driver",
    "name=crun-logs-no-profile,runtime=crun,only=single,timelines=true,log_collection=driver,task.seccomp=false",
    "name=rust-shim,shim=rust,runtime=runc,only=single+logs",
    "name=rust-shim-logs,shim=rust,runtime=runc,most=200,log_collection=driver",
    "name=rust-shim-crun-logs,shim=rust,runtime=crun,only=single,log_collection=driver",
    "name=shared-node,runtime=runc,most=200,rest=3,only=single+rest,shim_sharing=node",
    "name=shared-allocation,runtime=runc,most=200,group=4,rest=3,only=single+rest,shim_sharing=allocation",
    "name=rust-shared-node,shim=rust,runtime=runc,rest=3,only=rest,shim_sharing=node,log_collection=driver",
    "name=rust-shared-allocation,shim=rust,runtime=runc,most=200,group=4,rest=3,only=rest,shim_sharing=allocation",
];
/// Most tasks at a time of a variation that says nothing of it.
const MOST: u32 = 10_000;

/// Who runs the tasks of a variation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Nomad's own docker driver, with a dockerd.
    Docker,
    /// This driver under the name `docker`.
    AsDocker,
    /// This driver.
    Ours,
    /// nomad-driver-containerd, the driver in Go.
    Go,
}

/// The programs that variations may need.
#[derive(Debug, Clone, Default)]
pub(crate) struct Binaries {
    pub(crate) dockerd: Option<PathBuf>,
    pub(crate) go_driver: Option<PathBuf>,
    pub(crate) rust_shim: Option<PathBuf>,
}

/// A driver with its options, and what its tasks are run by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Variation {
    pub(crate) name: String,
    pub(crate) driver: Driver,
    /// The line that it was parsed from.
    pub(crate) words: String,
    /// The shim: a binary, a runtime's name, or `rust`.
    shim: Option<String>,
    runtime: Option<String>,
    /// Options of the plugin, with values as they are in HCL.
    options: Vec<(String, String)>,
    /// Options of tasks.
    pub(crate) task: Map<String, Value>,
    /// Most tasks at a time. More are left out.
    pub(crate) most: u32,
    /// Number of tasks of an allocation, where there are many tasks.
    pub(crate) group: u32,
    /// What is measured of it. All, if empty.
    only: Vec<Kind>,
    /// Least number of rounds at rest with the largest number of tasks.
    rest: u32,
    /// Whether the agent logs at DEBUG, by which this driver's timelines are measured.
    pub(crate) timelines: bool,
}

impl Variation {
    /// Parses a line such as `name=a,runtime=crun,log_collection=driver,task.seccomp=false`. The words `driver`, `shim`,
    /// `runtime`, `most`, `group`, `only`, `rest` and `timelines` are the variation's own, those with `task.` in front are
    /// options of tasks, and all others are options of the plugin.
    ///
    /// # Errors
    /// Names the word that can't be parsed.
    fn parse(line: &str) -> Result<Self> {
        let mut made = Self {
            name: String::new(),
            driver: Driver::Ours,
            words: line.to_owned(),
            shim: None,
            runtime: None,
            options: Vec::new(),
            task: Map::new(),
            most: MOST,
            group: 1,
            only: Vec::new(),
            rest: 1,
            timelines: false,
        };
        for pair in line.split(',') {
            let (key, value) =
                pair.split_once('=').with_context(|| format!("--variation: no = in {pair:?}"))?;
            ensure!(!value.is_empty(), "--variation: nothing behind {key}=");
            match key {
                "name" => value.clone_into(&mut made.name),
                "driver" => made.driver = driver_of(value)?,
                "shim" => made.shim = Some(value.to_owned()),
                "runtime" => made.runtime = Some(value.to_owned()),
                "most" => made.most = number_of(pair, value)?,
                "group" => made.group = number_of(pair, value)?,
                "only" => made.only = value.split('+').map(kind_of).collect::<Result<_>>()?,
                "rest" => made.rest = number_of(pair, value)?,
                "timelines" => {
                    made.timelines = value.parse().with_context(|| format!("--variation: {pair}"))?;
                }
                _ => match key.strip_prefix("task.") {
                    Some(option) => drop(made.task.insert(option.to_owned(), json_of(value))),
                    None => made.options.push((key.to_owned(), hcl_of(value))),
                },
            }
        }
        ensure!(!made.name.is_empty(), "--variation: {line:?} has no name=");
        ensure!(
            made.is_ours() || made.options.is_empty(),
            "--variation: {line:?}: only this driver takes options of a plugin"
        );
        Ok(made)
    }

    /// Returns why the variation can't be measured with these programs.
    fn lacks(&self, binaries: &Binaries) -> Option<&'static str> {
        match self.driver {
            Driver::Docker if binaries.dockerd.is_none() => Some("it needs --dockerd"),
            Driver::Go if binaries.go_driver.is_none() => Some("it needs --go-driver"),
            _ if self.shim.as_deref() == Some("rust") && binaries.rust_shim.is_none() => {
                Some("it needs --rust-shim")
            }
            _ => None,
        }
    }

    /// Returns the programs of the variation's node: those of `choice`, but for what its words name.
    ///
    /// # Errors
    /// Names the program that is missing.
    pub(crate) fn programs(&self, choice: &Choice, binaries: &Binaries) -> Result<Programs> {
        let mut choice = choice.clone();
        match (self.shim.as_deref(), &binaries.rust_shim) {
            (Some("rust"), Some(shim)) => choice.shim = shim.display().to_string(),
            (Some(shim), _) => shim.clone_into(&mut choice.shim),
            (None, _) => {}
        }
        self.runtime.iter().for_each(|runtime| runtime.clone_into(&mut choice.runtime));
        Programs::find(&choice).with_context(|| format!("variation {:?}", self.name))
    }

    /// Returns whether a kind of figures is measured of the variation.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.only.is_empty() || self.only.contains(&kind)
    }

    /// Returns the number of rounds with so many tasks at rest, out of these numbers of tasks.
    pub(crate) fn rounds_at_rest(&self, rounds: u32, tasks: u32, counts: &[u32]) -> u32 {
        let largest = counts.iter().filter(|count| **count <= self.most).max();
        match largest {
            _ if tasks > self.most || !self.has(Kind::Rest) => 0,
            Some(largest) if *largest == tasks => rounds.max(self.rest),
            _ => rounds,
        }
    }

    /// Returns whether the driver is this one, under whichever name.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.driver, Driver::Ours | Driver::AsDocker)
    }

    /// Returns whether a task has the seccomp profile that this driver has by default, and the runtime of the words.
    pub(crate) fn has_default_profile(&self) -> bool {
        let is_of_profile = |name: &str| name.starts_with("seccomp");
        self.driver == Driver::Ours
            && !self.task.keys().any(|name| is_of_profile(name) || name == "privileged")
            && !self.options.iter().any(|(name, _)| is_of_profile(name) || name == "oci_runtime")
    }

    /// Returns the value of a plugin's option, without the quotes of a text.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        let option = self.options.iter().find(|(known, _)| known == name);
        option.map(|(_, value)| value.trim_matches('"'))
    }

    /// Returns the lines of the plugin's options in its block, but for some.
    pub(crate) fn option_lines(&self, but_for: &[&str]) -> String {
        let lines = self.options.iter().filter(|(name, _)| !but_for.contains(&&**name));
        lines.map(|(name, value)| format!("{name} = {value}\n    ")).collect()
    }

    /// Returns whether the variation's tasks may be run by crun, for which not every machine is ready.
    fn may_run_crun(&self) -> bool {
        self.words.contains("crun") || self.words.contains("auto")
    }
}

/// The variations that the caller wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Names of built-in variations, or lines of the caller's own.
    pub(crate) words: &'a [String],
    /// Whether all built-in ones are meant, too, whose programs are there. So they are without any words.
    pub(crate) all: bool,
}

/// Returns the variations of a run, and the built-in ones that lack a program, with the reason.
///
/// # Errors
/// Names the word that can't be parsed, and a variation that is wanted by name whose program isn't there.
pub(crate) fn choose(wanted: Wanted<'_>, binaries: &Binaries) -> Result<(Vec<Variation>, Vec<NotMeasured>)> {
    let built_in = BUILT_IN.iter().map(|line| Variation::parse(line)).collect::<Result<Vec<_>>>()?;
    let (mut chosen, mut lacking): (Vec<Variation>, Vec<NotMeasured>) = (Vec::new(), Vec::new());
    if wanted.all || wanted.words.is_empty() {
        for made in &built_in {
            match made.lacks(binaries) {
                Some(why) => lacking.push(not_measured(&made.name, why)),
                None => chosen.push(made.clone()),
            }
        }
    }
    for words in wanted.words {
        let made = match built_in.iter().find(|made| made.name == *words) {
            Some(made) => made.clone(),
            None if words.contains('=') => {
                let made = Variation::parse(words)?;
                let is_taken = built_in.iter().any(|known| known.name == made.name);
                ensure!(!is_taken, "--variation: {:?} is a built-in one; give yours another name", made.name);
                made
            }
            None => {
                let names: Vec<_> = built_in.iter().map(|made| &*made.name).collect();
                bail!("--variation: {words:?} is none of {}, and has no name=", names.join(", "));
            }
        };
        if let Some(why) = made.lacks(binaries) {
            bail!("variation {:?}: {why}", made.name);
        }
        ensure!(
            chosen.iter().all(|other| other.name != made.name),
            "--variation: two are named {:?}",
            made.name
        );
        chosen.push(made);
    }
    Ok((chosen, lacking))
}

/// Returns the entry of a report that says why a variation isn't measured: in one line, however long the reason is.
pub(crate) fn not_measured(variation: &str, why: &str) -> NotMeasured {
    const MOST_CHARACTERS: usize = 600;
    let line = why.split_whitespace().collect::<Vec<_>>().join(" ");
    let why = line.chars().take(MOST_CHARACTERS).collect();
    NotMeasured { what: format!("the variation {variation}"), why }
}

/// Returns whether any of the wanted variations may run crun. Lines that can't be parsed are nobody's yet.
pub(crate) fn may_run_crun(wanted: Wanted<'_>) -> bool {
    let lines = wanted.words.iter().map(|words| {
        let built_in = BUILT_IN.iter().find(|line| line.starts_with(&format!("name={words},")));
        built_in.map_or(&**words, |line| *line)
    });
    let mut parsed = lines.filter_map(|line| Variation::parse(line).ok());
    wanted.all || wanted.words.is_empty() || parsed.any(|made| made.may_run_crun())
}

fn driver_of(value: &str) -> Result<Driver> {
    match value {
        "docker" => Ok(Driver::Docker),
        "as-docker" => Ok(Driver::AsDocker),
        "containerd-driver" => Ok(Driver::Ours),
        "go-driver" => Ok(Driver::Go),
        other => {
            bail!("--variation: driver={other} is none of docker, as-docker, containerd-driver, go-driver")
        }
    }
}

fn kind_of(name: &str) -> Result<Kind> {
    Kind::from_str(name, false).map_err(|why| anyhow!("--variation: only={name}: {why}"))
}

/// Returns the number of a word, which is not 0.
fn number_of(pair: &str, value: &str) -> Result<u32> {
    let number: u32 = value.parse().with_context(|| format!("--variation: {pair}"))?;
    ensure!(number > 0, "--variation: {pair}");
    Ok(number)
}

/// Returns a value as it is in HCL: a number or a truth value bare, all else as a text.
fn hcl_of(value: &str) -> String {
    let is_bare = matches!(value, "true" | "false") || value.parse::<f64>().is_ok();
    if is_bare { value.to_owned() } else { format!("\"{value}\"") }
}

/// Returns a value as it is in JSON: what can be read as such, all else as a text.
fn json_of(value: &str) -> Value {
    serde_json::from_str(value).unwrap_or_else(|_| json!(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Binaries {
        let program = Some(PathBuf::from("/bin/true"));
        Binaries { dockerd: program.clone(), go_driver: program.clone(), rust_shim: program }
    }

    #[test]
    fn words_are_the_variations_own_those_of_tasks_or_the_plugins() {
        let line =
            "name=a,runtime=crun,log_collection=driver,spare_shims=2,task.seccomp=false,most=20,group=4";
        let made = Variation::parse(line).unwrap();
        assert_eq!((&*made.name, made.driver, made.most, made.group), ("a", Driver::Ours, 20, 4));
        assert_eq!(made.option("log_collection"), Some("driver"));
        assert_eq!(made.option_lines(&["log_collection"]), "spare_shims = 2\n    ");
        assert_eq!(made.task["seccomp"], json!(false));
        assert!(made.may_run_crun());
    }

    #[test]
    fn a_line_that_says_nothing_is_refused() {
        for wrong in [
            "runtime=crun",
            "name=a,crun",
            "name=a,shim=",
            "name=a,driver=podman",
            "name=a,most=x",
            "name=a,group=0",
            "name=a,only=some",
            "name=a,timelines=2",
        ] {
            assert!(Variation::parse(wrong).is_err(), "{wrong}");
        }
        let foreign = Variation::parse("name=a,driver=docker,spare_shims=2").unwrap_err().to_string();
        assert!(foreign.contains("only this driver"), "{foreign}");
    }

    fn wanted<'a>(words: &'a [String], all: bool) -> Wanted<'a> {
        Wanted { words, all }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn without_a_wish_all_are_meant_whose_programs_are_there() {
        let (here, lacking) = choose(wanted(&[], false), &Binaries::default()).unwrap();
        assert!(here.iter().all(|made| made.is_ours()));
        assert!(lacking.iter().any(|left| left.what.ends_with("docker") && left.why.contains("--dockerd")));
        assert_eq!(here.len() + lacking.len(), BUILT_IN.len());
        assert_eq!(choose(wanted(&[], false), &all()).unwrap().0.len(), BUILT_IN.len());
        let beside = words(&["name=mine,runtime=youki"]);
        assert_eq!(choose(wanted(&beside, true), &all()).unwrap().0.len(), BUILT_IN.len() + 1);
        let twice = choose(wanted(&words(&["runc"]), true), &all());
        assert!(twice.unwrap_err().to_string().contains("two are named"));
    }

    #[test]
    fn a_wanted_variation_is_a_built_in_one_or_the_callers() {
        let of = |list: &[&str]| choose(wanted(&words(list), false), &Binaries::default());
        let (chosen, _) = of(&["runc", "name=mine,oci_runtime=auto"]).unwrap();
        assert_eq!(chosen.iter().map(|made| &*made.name).collect::<Vec<_>>(), ["runc", "mine"]);
        for (list, why) in [
            (&["docker"][..], "needs --dockerd"),
            (&["rnc"], "is none of docker, as-docker"),
            (&["runc", "runc"], "two are named"),
            (&["name=shared-node,most=1"], "give yours another name"),
        ] {
            let error = format!("{:#}", of(list).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_machine_is_made_ready_for_crun_only_where_a_variation_may_run_it() {
        let may = |list: &[&str], all| may_run_crun(wanted(&words(list), all));
        assert!(may(&[], false) && may(&["runc", "crun-logs"], false) && may(&["runc"], true));
        assert!(may(&["name=x,oci_runtime=auto"], false));
        assert!(!may(&["runc", "docker", "runc-native"], false));
    }

    #[test]
    fn the_reason_of_a_variation_that_is_left_out_is_one_line() {
        let entry = not_measured("a", &format!("the agent\n  ended:\t{}", "x".repeat(1000)));
        assert!(entry.why.starts_with("the agent ended: xxx") && entry.why.len() == 600);
    }

    #[test]
    fn a_variation_is_measured_by_its_words_alone() {
        let made = Variation::parse("name=a,only=single+rest,most=200,rest=3").unwrap();
        assert!(made.has(Kind::Single) && made.has(Kind::Rest) && !made.has(Kind::Logs));
        let counts = [20, 200, 500];
        let rounds = counts.map(|tasks| made.rounds_at_rest(1, tasks, &counts));
        assert_eq!(rounds, [1, 3, 0], "more rounds are made with the largest number that it may have");
        assert_eq!(made.rounds_at_rest(4, 200, &counts), 4);
        let single = Variation::parse("name=a,only=single").unwrap();
        assert_eq!(single.rounds_at_rest(4, 20, &counts), 0);
        assert!(Variation::parse("name=a").unwrap().has(Kind::Flood));
    }

    #[test]
    fn every_built_in_line_says_its_runtime_and_has_a_name_of_its_own() {
        let all: Vec<_> = BUILT_IN.iter().map(|line| Variation::parse(line).unwrap()).collect();
        assert!(all.iter().all(|made| made.runtime.is_some()));
        let names: std::collections::BTreeSet<_> = all.iter().map(|made| &made.name).collect();
        assert_eq!(names.len(), all.len());
        let with_profile = all.iter().filter(|made| made.has_default_profile());
        let names: Vec<_> = with_profile.map(|made| &*made.name).collect();
        assert!(names.contains(&"runc") && names.contains(&"crun-logs"));
        for other in ["docker", "as-docker", "runc-native", "runc-no-profile", "auto-logs"] {
            assert!(!names.contains(&other), "{other}");
        }
    }
}
