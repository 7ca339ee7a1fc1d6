//! The setups to measure: the containerd, shim, runtime and plugin of each, as the command line names them. Either one
//! setup by options of its own, or several by `--setup`, or two by `--against-..`, which is the first with another
//! part. Starts nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use harness::fixture::process::output;
use harness::fixture::{self, Programs};
use shim_protos::RuncOptions;

use super::report_data;

const SHIM: &str = "containerd-shim-";

/// The options that choose setups.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct Choice {
    /// containerd's binary with `ctr` beside it, of which a private instance is started (the default is the one in
    /// PATH), or the socket of a running containerd.
    #[arg(long, value_name = "PATH|SOCKET")]
    containerd: Option<PathBuf>,
    /// The shim's binary, or the name of a runtime whose shim is in PATH, such as io.containerd.kata.v2.
    #[arg(long, default_value = "io.containerd.runc.v2")]
    shim: String,
    /// The OCI runtime, for shims of the runc family: runc, crun, or the path of a binary.
    #[arg(long, default_value = "runc")]
    runtime: String,
    /// A task driver's binary, for the path `plugin`.
    #[arg(long)]
    plugin: Option<PathBuf>,
    /// File with the driver's options in the agent's configuration, as JSON. The default is for containerd-driver.
    #[arg(long, value_name = "FILE")]
    plugin_config: Option<PathBuf>,
    /// File with the `config` block of the job's task, as JSON. The default is for containerd-driver. See BENCH.md for
    /// the placeholders that are filled in.
    #[arg(long, value_name = "FILE")]
    task_config: Option<PathBuf>,
    /// Define a setup; may be repeated:
    /// name=N,containerd=...,shim=...,runtime=...,plugin=...,plugin-config=...,task-config=... Parts that are left out
    /// are as the options above say. Without --setup, those options are the only setup.
    #[arg(long, value_name = "KEY=VALUE,...")]
    setup: Vec<String>,
    /// A second setup with another shim, measured in turn with the first.
    #[arg(long, value_name = "SHIM")]
    against_shim: Option<String>,
    /// A second setup with another OCI runtime.
    #[arg(long, value_name = "RUNTIME")]
    against_runtime: Option<String>,
    /// A second setup with another containerd.
    #[arg(long, value_name = "PATH|SOCKET")]
    against_containerd: Option<PathBuf>,
    /// A second setup with another plugin.
    #[arg(long, value_name = "PATH")]
    against_plugin: Option<PathBuf>,
}

/// The parts of one setup, as the caller names them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Words {
    name: String,
    containerd: Option<PathBuf>,
    shim: String,
    runtime: String,
    plugin: Option<PathBuf>,
    plugin_config: Option<PathBuf>,
    task_config: Option<PathBuf>,
}

impl Choice {
    /// Returns all setups, with their parts looked up on this machine.
    ///
    /// # Errors
    /// Names the part that isn't there, or the argument that can't be parsed.
    pub(crate) fn setups(&self) -> Result<Vec<Setup>> {
        self.words()?.into_iter().map(Setup::find).collect()
    }

    /// Returns whether crun may be among the runtimes. Not every machine is prepared for it.
    pub(crate) fn may_run_crun(&self) -> bool {
        [Some(&self.runtime), self.against_runtime.as_ref()]
            .into_iter()
            .flatten()
            .chain(&self.setup)
            .any(|words| words.contains("crun"))
    }

    fn words(&self) -> Result<Vec<Words>> {
        let first = Words {
            name: "here".to_owned(),
            containerd: self.containerd.clone(),
            shim: self.shim.clone(),
            runtime: self.runtime.clone(),
            plugin: self.plugin.clone(),
            plugin_config: self.plugin_config.clone(),
            task_config: self.task_config.clone(),
        };
        let Self { against_shim, against_runtime, against_containerd, against_plugin, .. } = self;
        let is_against = against_shim.is_some()
            || against_runtime.is_some()
            || against_containerd.is_some()
            || against_plugin.is_some();
        if !is_against {
            let each = self.setup.iter().map(|words| parse(words, &first));
            let all = each.collect::<Result<Vec<_>>>()?;
            for (number, words) in all.iter().enumerate() {
                let is_twice = all[..number].iter().any(|other| other.name == words.name);
                ensure!(!is_twice, "--setup: two are named {:?}", words.name);
            }
            return Ok(if all.is_empty() { vec![first] } else { all });
        }
        ensure!(self.setup.is_empty(), "--setup and --against-... exclude each other");
        let mut second = Words { name: "against".to_owned(), ..first.clone() };
        second.shim = against_shim.clone().unwrap_or(second.shim);
        second.runtime = against_runtime.clone().unwrap_or(second.runtime);
        second.containerd = against_containerd.clone().or(second.containerd);
        second.plugin = against_plugin.clone().or(second.plugin);
        Ok(vec![first, second])
    }
}

fn parse(text: &str, default: &Words) -> Result<Words> {
    let mut words = Words { name: String::new(), ..default.clone() };
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').with_context(|| format!("--setup: no = in {pair:?}"))?;
        ensure!(!value.is_empty(), "--setup: nothing behind {key}=");
        match key {
            "name" => value.clone_into(&mut words.name),
            "containerd" => words.containerd = Some(value.into()),
            "shim" => value.clone_into(&mut words.shim),
            "runtime" => value.clone_into(&mut words.runtime),
            "plugin" => words.plugin = Some(value.into()),
            "plugin-config" => words.plugin_config = Some(value.into()),
            "task-config" => words.task_config = Some(value.into()),
            other => bail!(
                "--setup: {other} is no part; those are name, containerd, shim, runtime, plugin, plugin-config, task-config"
            ),
        }
    }
    ensure!(!words.name.is_empty(), "--setup: {text:?} has no name=");
    Ok(words)
}

/// The parts of a setup, each an existing file.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) name: String,
    /// Socket of the running containerd that the setup uses. `None` if a private one is to be started.
    pub(crate) socket: Option<PathBuf>,
    pub(crate) programs: Programs,
    pub(crate) plugin: Option<PathBuf>,
    pub(crate) plugin_config: Option<PathBuf>,
    pub(crate) task_config: Option<PathBuf>,
}

impl Setup {
    fn find(words: Words) -> Result<Self> {
        let Words { name, containerd, shim, runtime, plugin, plugin_config, task_config } = words;
        let found = || {
            let is_socket =
                |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.file_type().is_socket());
            let socket = containerd.clone().filter(is_socket).map(std::path::absolute).transpose()?;
            let containerd = containerd.filter(|_| socket.is_none());
            let programs = Programs::find(&fixture::Choice {
                containerd,
                shim,
                runtime,
                cni: None,
                shim_sharing: None,
            })?;
            ensure!(
                is_runc_family(programs.shim()) || programs.runtime_name() == "runc",
                "{} can't be told which OCI runtime to use",
                programs.shim().display()
            );
            let plugin = plugin.map(fs::canonicalize).transpose().context("look at the plugin")?;
            let name = name.clone();
            Ok(Self { name, socket, programs, plugin, plugin_config, task_config })
        };
        found().with_context(|| format!("setup {name:?}"))
    }

    /// Returns the OCI runtime, or `None` if the shim is its own.
    pub(crate) fn runtime(&self) -> Option<&Path> {
        is_runc_family(self.programs.shim()).then(|| self.programs.runtime())
    }

    /// Returns the shim's options, if it takes any: the runtime, and the directory where that keeps its state.
    pub(crate) fn options(&self, root: &Path) -> Option<RuncOptions> {
        Some(RuncOptions {
            binary_name: self.runtime()?.display().to_string(),
            root: root.display().to_string(),
            ..RuncOptions::default()
        })
    }

    /// Returns the description of the setup for the report: path and version of each part.
    pub(crate) fn record(&self) -> report_data::Setup {
        let mut parts = BTreeMap::new();
        let mut say = |what: &str, program: &Path, arguments: &[&str]| {
            let version = version(program, arguments).unwrap_or_else(|| "of an unknown version".to_owned());
            parts.insert(what.to_owned(), format!("{}: {version}", program.display()));
        };
        match &self.socket {
            None => say("containerd", self.programs.containerd(), &["--version"]),
            Some(socket) => {
                let address = socket.display().to_string();
                say("containerd", self.programs.ctr(), &["--address", &address, "version"]);
            }
        }
        say("shim", self.programs.shim(), &["-v"]);
        for (what, program) in [("runtime", self.runtime()), ("plugin", self.plugin.as_deref())] {
            program.iter().for_each(|program| say(what, program, &["--version"]));
        }
        report_data::Setup { name: self.name.clone(), parts }
    }
}

/// Returns the version that a program prints: the first line that has one, or the last for `ctr version`.
pub(crate) fn version(program: &Path, arguments: &[&str]) -> Option<String> {
    let printed = output(Command::new(program).args(arguments)).ok()?;
    let has_one = |line: &&str| {
        line.split_whitespace().any(|word| {
            let word = word.trim_start_matches('v');
            word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.')
        })
    };
    let lines: Vec<&str> = printed.lines().filter(has_one).collect();
    // `ctr version` prints its own version before that of the server.
    let line = if arguments.contains(&"version") { lines.last() } else { lines.first() };
    line.map(|line| line.trim().to_owned())
}

/// Returns whether a shim takes the options of the runc shims, and so an OCI runtime.
pub(crate) fn is_runc_family(shim: &Path) -> bool {
    let name = shim.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(SHIM).is_some_and(|rest| rest.starts_with("runc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice() -> Choice {
        Choice { shim: "io.containerd.runc.v2".into(), runtime: "runc".into(), ..Choice::default() }
    }

    #[test]
    fn what_a_setup_leaves_out_is_as_the_options_say() {
        let mut choice = choice();
        choice.runtime = "crun".to_owned();
        choice.setup = vec!["name=a".to_owned(), "name=b,shim=/opt/shim,runtime=runc,plugin=/p".to_owned()];
        let words = choice.words().unwrap();
        assert_eq!(
            (&*words[0].name, &*words[0].runtime, &*words[0].shim),
            ("a", "crun", "io.containerd.runc.v2")
        );
        assert_eq!((&*words[1].runtime, &*words[1].shim), ("runc", "/opt/shim"));
        assert_eq!(words[1].plugin.as_deref(), Some(Path::new("/p")));
    }

    #[test]
    fn a_setup_that_says_nothing_or_the_same_twice_is_refused() {
        for wrong in ["shim=/x", "name=a,shimm=/x", "name=a,shim", "name=a,shim="] {
            assert!(Choice { setup: vec![wrong.to_owned()], ..choice() }.words().is_err(), "{wrong}");
        }
        let twice = Choice { setup: vec!["name=a".to_owned(), "name=a".to_owned()], ..choice() };
        assert!(twice.words().unwrap_err().to_string().contains("two are named"));
    }

    #[test]
    fn against_is_the_same_but_for_one_part() {
        let choice = Choice { against_shim: Some("/opt/shim".to_owned()), ..choice() };
        let words = choice.words().unwrap();
        assert_eq!(words.len(), 2);
        let expected = Words { name: "against".to_owned(), shim: "/opt/shim".to_owned(), ..words[0].clone() };
        assert_eq!(words[1], expected);
        let both = Choice { setup: vec!["name=a".to_owned()], ..choice };
        assert!(both.words().is_err());
    }

    #[test]
    fn a_shim_is_known_by_its_file() {
        assert!(is_runc_family(Path::new("/opt/containerd-shim-runc-v2")));
        assert!(is_runc_family(Path::new("/opt/containerd-shim-runc-v2-rs")));
        assert!(!is_runc_family(Path::new("/opt/containerd-shim-runsc-v1")));
    }
}
