//! What figures are taken on: setups brought up, with a lane for each path on each of them, and all of it taken away again.
//! Knows nothing of what is measured.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::ValueEnum;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::cost::{self, Group};
use super::direct::Direct;
use super::ground::Ground;
use super::lane::Lane;
use super::path::Path;
use super::plugin::{ByPlugin, Driver};
use super::record::{FORMAT, NotMeasured, Report, Settings};
use super::{cli, daemon, machine, setup};
use crate::fixture::leftovers;
use crate::{fixture, interrupt};

/// Which setups and paths.
#[derive(clap::Args, Debug, Clone)]
pub struct On {
    #[command(flatten)]
    choice: setup::Choice,
    /// Only this path; may be repeated.
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<PathName>,
    /// Leave CPU time and memory out.
    #[arg(long)]
    no_cost: bool,
}

/// The way that calls take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PathName {
    /// ttrpc to a shim that is started here.
    Direct,
    /// containerd's services.
    Daemon,
    /// The OCI runtime's command line.
    Cli,
    /// A task driver, as Nomad calls it.
    Plugin,
}

impl On {
    pub fn may_run_crun(&self) -> bool {
        self.choice.may_run_crun()
    }

    fn wants(&self, path: PathName) -> bool {
        self.paths.is_empty() || self.paths.contains(&path)
    }
}

pub struct Stage {
    pub runtime: Runtime,
    /// None where costs are left out, or can't be had.
    pub group: Option<Group>,
    pub lanes: Vec<Lane>,
    grounds: Vec<Arc<Ground>>,
    drivers: Vec<Option<Arc<Driver>>>,
    cgroups: leftovers::CgroupRoots,
    /// Goes last.
    _directory: TempDir,
}

impl Stage {
    /// Brings everything up, and returns a report in which it is described and nothing else.
    ///
    /// # Errors
    /// Says what didn't come up.
    pub fn raise(on: &On, settings: Settings) -> Result<(Self, Report)> {
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
        let directory = fixture::own_directory()?;
        let mut grounds = Vec::new();
        for (number, setup) in setups.into_iter().enumerate() {
            interrupt::check()?;
            let name = setup.name.clone();
            let ground = Ground::start(&runtime, directory.path().join(format!("s{number}")), setup);
            grounds.push(Arc::new(ground.with_context(|| format!("setup {name:?}"))?));
        }
        let cgroups = leftovers::CgroupRoots::note();
        let drivers = runtime.block_on(async {
            tokio::select! {
                drivers = drivers(on, &grounds) => drivers,
                () = interrupt::interrupted() => Err(anyhow!("interrupted")),
            }
        })?;
        let lanes = lanes(on, &grounds, &drivers)?;
        Ok((Self { runtime, group, lanes, grounds, drivers, cgroups, _directory: directory }, report))
    }

    /// Takes everything away, once the lanes have nothing left.
    ///
    /// # Errors
    /// Says what of it stays behind in a containerd that isn't ours.
    pub fn end(self) -> Result<()> {
        drop(self.lanes);
        for driver in self.drivers.into_iter().flatten().filter_map(Arc::into_inner) {
            self.runtime.block_on(driver.end());
        }
        self.cgroups.restore();
        let ended = self.grounds.into_iter().try_for_each(|ground| {
            let in_use = |ground: Arc<Ground>| anyhow!("setup {:?} is still in use", ground.setup.name);
            Arc::try_unwrap(ground).map_err(in_use)?.end(&self.runtime)
        });
        drop((self.runtime, self.group));
        cost::remove_groups();
        ended
    }
}

/// The plugins of those setups that have one.
async fn drivers(on: &On, grounds: &[Arc<Ground>]) -> Result<Vec<Option<Arc<Driver>>>> {
    let mut drivers = Vec::new();
    for ground in grounds {
        let name = &ground.setup.name;
        let driver = if on.wants(PathName::Plugin) {
            Driver::start(ground).await.with_context(|| format!("the plugin of setup {name:?}"))?
        } else {
            None
        };
        let is_missing = driver.is_none() && on.paths.contains(&PathName::Plugin);
        ensure!(!is_missing, "setup {name:?} has no plugin: name one by --plugin, or by plugin= in --setup");
        drivers.push(driver);
    }
    Ok(drivers)
}

fn lanes(on: &On, grounds: &[Arc<Ground>], drivers: &[Option<Arc<Driver>>]) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    for (ground, driver) in grounds.iter().zip(drivers) {
        let mut add = |path: Arc<dyn Path>| lanes.push(Lane::new(&ground.setup.name, path));
        if on.wants(PathName::Cli)
            && let Some(path) = cli::Cli::of(ground)
        {
            add(Arc::new(path));
        }
        if on.wants(PathName::Direct) {
            add(Arc::new(Direct(Arc::clone(ground))));
        }
        if let Some(driver) = driver {
            add(Arc::new(ByPlugin(Arc::clone(driver))));
        }
        if on.wants(PathName::Daemon) {
            add(Arc::new(daemon::Daemon(Arc::clone(ground))));
        }
    }
    ensure!(!lanes.is_empty(), "no setup has any of those paths");
    Ok(lanes)
}
