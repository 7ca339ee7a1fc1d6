//! The setups of a run: brings them up, with a target for each path on each of them, and takes all of it down again.
//! Knows nothing of what is measured.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::ValueEnum;
use harness::leaks::report;
use harness::{environment, interrupt};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::cost::{self, Group};
use super::direct::Direct;
use super::environment::Environment;
use super::path::Path;
use super::plugin::{ByPlugin, Driver};
use super::report_data::{FORMAT, NotMeasured, Report, Settings};
use super::target::Target;
use super::{cli, daemon, machine, setup};

/// The options that choose setups and paths.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct SetupArgs {
    #[command(flatten)]
    choice: setup::Choice,
    /// Measure only this path. May be repeated.
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<PathName>,
    /// Don't measure CPU time and memory.
    #[arg(long)]
    no_cost: bool,
}

/// Name of a path on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PathName {
    /// ttrpc calls to a shim that the benchmark starts itself.
    Direct,
    /// Calls of containerd's services.
    Daemon,
    /// The OCI runtime's command line.
    Cli,
    /// RPCs of a task driver, as Nomad calls them.
    Plugin,
}

impl SetupArgs {
    pub(crate) fn may_run_crun(&self) -> bool {
        self.choice.may_run_crun()
    }

    fn wants(&self, path: PathName) -> bool {
        self.paths.is_empty() || self.paths.contains(&path)
    }
}

pub(crate) struct Setups {
    pub(crate) runtime: Runtime,
    /// The control group that counts CPU time. `None` if costs are left out or can't be measured.
    pub(crate) group: Option<Group>,
    pub(crate) targets: Vec<Target>,
    environments: Vec<Arc<Environment>>,
    drivers: Vec<Option<Arc<Driver>>>,
    cgroups: report::CgroupRoots,
    /// Root of all files of the setups. Removed after everything else is dropped.
    _directory: TempDir,
}

impl Setups {
    /// Brings up all setups. Also returns a report that describes them and has no results yet.
    ///
    /// # Errors
    /// Names the part that didn't start.
    pub(crate) fn start(on: &SetupArgs, settings: Settings) -> Result<(Self, Report)> {
        let setups = on.choice.setups()?;
        let mut report = Report {
            format: FORMAT,
            made_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            machine: machine::look()?,
            setups: setups.iter().map(setup::Setup::record).collect(),
            settings,
            series: Vec::new(),
            scale: Vec::new(),
            timelines: Vec::new(),
            not_measured: Vec::new(),
        };
        let group = if on.no_cost {
            None
        } else {
            let missing = |error: &anyhow::Error| {
                report
                    .not_measured
                    .push(NotMeasured { what: "CPU time".to_owned(), why: format!("{error:#}") });
            };
            Group::enter().inspect_err(missing).ok()
        };
        let runtime = Runtime::new()?;
        let directory = environment::own_directory()?;
        let mut environments = Vec::new();
        for (number, setup) in setups.into_iter().enumerate() {
            interrupt::check()?;
            let name = setup.name.clone();
            let environment =
                Environment::start(&runtime, directory.path().join(format!("s{number}")), setup);
            environments.push(Arc::new(environment.with_context(|| format!("setup {name:?}"))?));
        }
        let cgroups = report::CgroupRoots::note();
        let drivers = runtime.block_on(async {
            tokio::select! {
                drivers = drivers(on, &environments) => drivers,
                () = interrupt::interrupted() => Err(anyhow!("interrupted")),
            }
        })?;
        let targets = targets(on, &environments, &drivers)?;
        Ok((Self { runtime, group, targets, environments, drivers, cgroups, _directory: directory }, report))
    }

    /// Takes down all setups, once the targets have no containers left.
    ///
    /// # Errors
    /// Names what stays behind in a containerd that isn't ours.
    pub(crate) fn end(self) -> Result<()> {
        drop(self.targets);
        for driver in self.drivers.into_iter().flatten().filter_map(Arc::into_inner) {
            self.runtime.block_on(driver.end());
        }
        self.cgroups.restore();
        let ended = self.environments.into_iter().try_for_each(|environment| {
            let in_use =
                |environment: Arc<Environment>| anyhow!("setup {:?} is still in use", environment.setup.name);
            Arc::try_unwrap(environment).map_err(in_use)?.end(&self.runtime)
        });
        drop((self.runtime, self.group));
        cost::remove_groups();
        ended
    }
}

/// Starts the plugins of the setups that have one.
async fn drivers(on: &SetupArgs, environments: &[Arc<Environment>]) -> Result<Vec<Option<Arc<Driver>>>> {
    let mut drivers = Vec::new();
    for environment in environments {
        let name = &environment.setup.name;
        let driver = if on.wants(PathName::Plugin) {
            Driver::start(environment).await.with_context(|| format!("the plugin of setup {name:?}"))?
        } else {
            None
        };
        let is_missing = driver.is_none() && on.paths.contains(&PathName::Plugin);
        ensure!(!is_missing, "setup {name:?} has no plugin: name one by --plugin, or by plugin= in --setup");
        drivers.push(driver);
    }
    Ok(drivers)
}

fn targets(
    on: &SetupArgs,
    environments: &[Arc<Environment>],
    drivers: &[Option<Arc<Driver>>],
) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for (environment, driver) in environments.iter().zip(drivers) {
        let mut add = |path: Arc<dyn Path>| targets.push(Target::new(&environment.setup.name, path));
        if on.wants(PathName::Cli)
            && let Some(path) = cli::Cli::of(environment)
        {
            add(Arc::new(path));
        }
        if on.wants(PathName::Direct) {
            add(Arc::new(Direct(Arc::clone(environment))));
        }
        if let Some(driver) = driver {
            add(Arc::new(ByPlugin(Arc::clone(driver))));
        }
        if on.wants(PathName::Daemon) {
            add(Arc::new(daemon::Daemon(Arc::clone(environment))));
        }
    }
    ensure!(!targets.is_empty(), "no setup has any of those paths");
    Ok(targets)
}
