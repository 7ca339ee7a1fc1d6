//! The variations of a run: a driver with options of its own, each in one line of words. Looks programs up, and starts
//! nothing.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use harness::fixture::{Choice, Programs};
use serde_json::{Map, Value, json};

use crate::report_data::NotMeasured;

/// Variations that need no words of the caller's. Each is a line as [`Variation::parse`] reads it.
const BUILT_IN: [&str; 15] = [
    "name=docker,driver=docker,most=200",
    "name=as-docker,driver=as-docker,most=200",
    "name=go-driver,driver=go-driver,most=200",
    "name=runc,most=200",
    "name=runc-no-profile,most=200,task.seccomp=false",
    "name=runc-logs,log_collection=driver",
    "name=runc-no-spares,most=200,spare_shims=0",
    "name=runc-logs-no-spares,log_collection=driver,spare_shims=0",
    "name=runc-native,most=200,seccomp_architectures=image",
    "name=auto-logs,oci_runtime=auto,log_collection=driver",
    "name=crun,runtime=crun,most=200",
    "name=crun-logs,runtime=crun,log_collection=driver",
    "name=rust-shim,shim=rust,most=200",
    "name=rust-shim-logs,shim=rust,log_collection=driver",
    "name=rust-shim-crun-logs,shim=rust,runtime=crun,log_collection=driver",
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
}

impl Variation {
    /// Parses a line such as `name=a,runtime=crun,log_collection=driver,task.seccomp=false`. The words `driver`, `shim`,
    /// `runtime`, `most` and `group` are the variation's own, those with `task.` in front are options of tasks, and all others
    /// are options of the plugin.
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
                _ => match key.strip_prefix("task.") {
                    Some(option) => drop(made.task.insert(option.to_owned(), json_of(value))),
                    None => made.options.push((key.to_owned(), hcl_of(value))),
                },
            }
        }
        ensure!(!made.name.is_empty(), "--variation: {line:?} has no name=");
        let is_ours = matches!(made.driver, Driver::Ours | Driver::AsDocker);
        ensure!(
            is_ours || made.options.is_empty(),
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

/// Returns the variations of a run, and the built-in ones that lack a program, with the reason. `wanted` are names of
/// built-in variations, or lines of the caller's own; without any, all built-in ones are meant whose programs are there.
///
/// # Errors
/// Names the word that can't be parsed, and a wanted variation whose program isn't there.
pub(crate) fn choose(wanted: &[String], binaries: &Binaries) -> Result<(Vec<Variation>, Vec<NotMeasured>)> {
    let built_in = BUILT_IN.iter().map(|line| Variation::parse(line)).collect::<Result<Vec<_>>>()?;
    if wanted.is_empty() {
        let missing = |made: &Variation| {
            let why = made.lacks(binaries)?.to_owned();
            Some(NotMeasured { what: format!("the variation {}", made.name), why })
        };
        let lacking: Vec<_> = built_in.iter().filter_map(missing).collect();
        let here = built_in.into_iter().filter(|made| made.lacks(binaries).is_none()).collect();
        return Ok((here, lacking));
    }
    let mut chosen: Vec<Variation> = Vec::new();
    for words in wanted {
        let made = match built_in.iter().find(|made| made.name == *words) {
            Some(made) => made.clone(),
            None if words.contains('=') => Variation::parse(words)?,
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
    Ok((chosen, Vec::new()))
}

/// Returns whether any of the wanted variations may run crun. Lines that can't be parsed are nobody's yet.
pub(crate) fn may_run_crun(wanted: &[String]) -> bool {
    let lines = wanted.iter().map(|words| {
        let built_in = BUILT_IN.iter().find(|line| line.starts_with(&format!("name={words},")));
        built_in.map_or(&**words, |line| *line)
    });
    let parsed = lines.filter_map(|line| Variation::parse(line).ok());
    wanted.is_empty() || parsed.into_iter().any(|made| made.may_run_crun())
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
        ] {
            assert!(Variation::parse(wrong).is_err(), "{wrong}");
        }
        let foreign = Variation::parse("name=a,driver=docker,spare_shims=2").unwrap_err().to_string();
        assert!(foreign.contains("only this driver"), "{foreign}");
    }

    #[test]
    fn without_a_wish_all_are_meant_whose_programs_are_there() {
        let (here, lacking) = choose(&[], &Binaries::default()).unwrap();
        assert!(here.iter().all(|made| made.driver == Driver::Ours || made.driver == Driver::AsDocker));
        assert!(lacking.iter().any(|left| left.what.ends_with("docker") && left.why.contains("--dockerd")));
        assert_eq!(here.len() + lacking.len(), BUILT_IN.len());
        assert_eq!(choose(&[], &all()).unwrap().0.len(), BUILT_IN.len());
    }

    #[test]
    fn a_wanted_variation_is_a_built_in_one_or_the_callers() {
        let wanted = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            choose(&words, &Binaries::default())
        };
        let (chosen, _) = wanted(&["runc", "name=mine,oci_runtime=auto"]).unwrap();
        assert_eq!(chosen.iter().map(|made| &*made.name).collect::<Vec<_>>(), ["runc", "mine"]);
        for (words, why) in [
            (&["docker"][..], "needs --dockerd"),
            (&["rnc"], "is none of docker, as-docker"),
            (&["runc", "name=runc,most=1"], "two are named"),
        ] {
            let error = format!("{:#}", wanted(words).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_machine_is_made_ready_for_crun_only_where_a_variation_may_run_it() {
        let may =
            |words: &[&str]| may_run_crun(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert!(may(&[]) && may(&["runc", "crun-logs"]) && may(&["name=x,oci_runtime=auto"]));
        assert!(!may(&["runc", "docker"]));
    }
}
