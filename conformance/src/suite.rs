//! Runs the cases in a few test environments (worlds), each used by one case at a time, and reports like libtest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use harness::context::Scene;
use harness::environment::World;
use harness::fixture::{Choice, Programs};
use harness::interrupt::{UnderWay, interrupted};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::{Handle, Runtime};

use crate::case::{Case, Skips, is_selected, skip, unmatched_filter};
use crate::cases;

#[derive(clap::Args)]
pub struct Args {
    /// Path of the driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Path of another build of the driver, which takes over from --plugin wherever a case starts a plugin for the second
    /// time.
    #[arg(long)]
    successor: Option<PathBuf>,
    /// Number of cases that run concurrently, each in a test environment of its own.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// List the cases instead of running them.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    pub choice: Choice,
    /// Leave out cases whose name contains this. Underscores match spaces. May be repeated.
    #[arg(long)]
    skip: Vec<String>,
    /// Run only cases whose name contains one of these. Underscores match spaces, so that a case can be named by its
    /// function.
    filter: Vec<String>,
}

/// # Errors
/// Fails if the fixture can't be built. A failed case is in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let runtime = Runtime::new()?;
    let plugin = std::path::absolute(&args.plugin)?;
    let successor = args.successor.as_ref().map(std::path::absolute).transpose()?;
    if !args.list {
        for plugin in [Some(&plugin), successor.as_ref()].into_iter().flatten() {
            std::fs::metadata(plugin).with_context(|| format!("the plugin {}", plugin.display()))?;
        }
    }
    let mut cases = chosen(&args.filter)?;
    if !args.choice.is_gvisor() {
        cases.retain(|case| !case.name.starts_with(cases::GVISOR));
    }
    let starting = UnderWay::begin();
    let worlds = Arc::new(if args.list { Worlds::default() } else { Worlds::start(args)? });
    drop(starting);
    let skips = Arc::new(Skips::default());
    let trials = cases.into_iter().enumerate().map(|(number, case)| {
        let (worlds, plugin, handle) = (Arc::clone(&worlds), plugin.clone(), runtime.handle().clone());
        let (skips, successor) = (Arc::clone(&skips), successor.clone());
        Trial::ignorable_test(case.name.clone(), move || {
            let _under_way = UnderWay::begin();
            let world = worlds.take();
            let scene = Scene::new(Arc::clone(&world), &plugin, format!("s{number}")).succeeded_by(successor);
            let scene = Arc::new(scene);
            let outcome = perform(&case, &scene, &handle, &skips);
            drop(scene);
            worlds.give_back(world);
            outcome
        })
    });
    let arguments = Arguments {
        test_threads: Some(args.jobs.max(1)),
        list: args.list,
        skip: args.skip.iter().map(|word| word.replace('_', " ")).collect(),
        ..Arguments::default()
    };
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if !args.list {
        skips.summarize("suite", &conclusion);
    }
    Ok(if conclusion.has_failed() { ExitCode::from(101) } else { ExitCode::SUCCESS })
}

/// Returns the cases that the filters select.
fn chosen(filters: &[String]) -> Result<Vec<Case>> {
    let all = cases::all();
    let names: Vec<_> = all.iter().map(|case| case.name.as_str()).collect();
    if let Some(idle) = unmatched_filter(&names, filters) {
        bail!("no case has {idle:?} in its name; --list shows them");
    }
    Ok(all.into_iter().filter(|case| is_selected(&case.name, filters)).collect())
}

fn perform(
    case: &Case,
    scene: &Arc<Scene>,
    handle: &Handle,
    skips: &Skips,
) -> std::result::Result<Completion, Failed> {
    let played = catch_unwind(AssertUnwindSafe(|| handle.block_on(play(case, scene))));
    let played = played.unwrap_or_else(|_| Err(anyhow!("it panicked")));
    // A case may have ended during an outage that it caused.
    let repaired = scene.world().repair();
    // A skipped case must not leave anything either.
    let played = skips.sort(&case.name, played);
    let outcome = repaired.and(played).and_then(|completion| scene.close().map(|()| completion));
    outcome.map_err(|error| {
        let failed = format!("{error:#}\n{}{}", place_of(&error), scene.last_words());
        scene.sweep();
        failed.into()
    })
}

async fn play(case: &Case, scene: &Arc<Scene>) -> Result<()> {
    if let Some(why) = cases::not_in_a_sandbox(&case.name).filter(|_| scene.programs().is_gvisor()) {
        return skip(format!("gVisor: {why}"));
    }
    let body = (case.body)(Arc::clone(scene));
    tokio::select! {
        played = tokio::time::timeout(case.limit, body) => {
            played.unwrap_or_else(|_| Err(anyhow!("not done after {:?}", case.limit)))
        }
        () = interrupted() => Err(anyhow!("interrupted")),
    }
}

/// Returns the places within cases where an error arose. Empty unless RUST_BACKTRACE is set.
fn place_of(error: &anyhow::Error) -> String {
    let backtrace = error.backtrace().to_string();
    backtrace
        .lines()
        .filter(|line| line.contains("src/cases/"))
        .map(|line| format!("{}\n", line.trim()))
        .collect()
}

/// The pool of test environments, with those that no case uses.
#[derive(Default)]
struct Worlds {
    free: Mutex<Vec<Arc<World>>>,
    returned: Condvar,
}

impl Worlds {
    fn start(args: &Args) -> Result<Self> {
        let programs = Programs::find(&args.choice)?;
        println!("{}", programs.versions().join(", "));
        let start = || {
            let programs = programs.clone();
            std::thread::spawn(move || World::start_of(programs))
        };
        let starting: Vec<_> = (0..args.jobs.max(1)).map(|_| start()).collect();
        let started =
            starting.into_iter().map(|world| world.join().map_err(|_| anyhow!("a panic")).flatten());
        let free = started.collect::<Result<_>>().context("build the fixture")?;
        Ok(Self { free: Mutex::new(free), returned: Condvar::new() })
    }

    fn take(&self) -> Arc<World> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(world) = free.pop() {
                return world;
            }
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, world: Arc<World>) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(world);
        self.returned.notify_one();
    }
}
