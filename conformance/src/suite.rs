//! Runs the cases in a few test environments, each used by one case at a time, and reports like libtest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use harness::context::CaseContext;
use harness::environment::TestEnvironment;
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
    let environments =
        Arc::new(if args.list { TestEnvironments::default() } else { TestEnvironments::start(args)? });
    drop(starting);
    let skips = Arc::new(Skips::default());
    let trials = cases.into_iter().enumerate().map(|(number, case)| {
        let (environments, plugin, handle) =
            (Arc::clone(&environments), plugin.clone(), runtime.handle().clone());
        let (skips, successor) = (Arc::clone(&skips), successor.clone());
        Trial::ignorable_test(case.name.clone(), move || {
            let _under_way = UnderWay::begin();
            let environment = environments.take();
            let context = CaseContext::new(Arc::clone(&environment), &plugin, format!("s{number}"))
                .succeeded_by(successor);
            let context = Arc::new(context);
            let outcome = perform(&case, &context, &handle, &skips);
            drop(context);
            environments.give_back(environment);
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
    context: &Arc<CaseContext>,
    handle: &Handle,
    skips: &Skips,
) -> std::result::Result<Completion, Failed> {
    let played = catch_unwind(AssertUnwindSafe(|| handle.block_on(play(case, context))));
    let played = played.unwrap_or_else(|_| Err(anyhow!("it panicked")));
    // A case may have ended during an outage that it caused.
    let repaired = context.environment().repair();
    // A skipped case must not leave anything either.
    let played = skips.sort(&case.name, played);
    let outcome = repaired.and(played).and_then(|completion| context.close().map(|()| completion));
    outcome.map_err(|error| {
        let failed = format!("{error:#}\n{}{}", place_of(&error), context.last_words());
        context.sweep();
        failed.into()
    })
}

async fn play(case: &Case, context: &Arc<CaseContext>) -> Result<()> {
    if let Some(why) = cases::not_in_a_sandbox(&case.name).filter(|_| context.programs().is_gvisor()) {
        return skip(format!("gVisor: {why}"));
    }
    let body = (case.body)(Arc::clone(context));
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
struct TestEnvironments {
    free: Mutex<Vec<Arc<TestEnvironment>>>,
    returned: Condvar,
}

impl TestEnvironments {
    fn start(args: &Args) -> Result<Self> {
        let programs = Programs::find(&args.choice)?;
        println!("{}", programs.versions().join(", "));
        let start = || {
            let programs = programs.clone();
            std::thread::spawn(move || TestEnvironment::start_of(programs))
        };
        let starting: Vec<_> = (0..args.jobs.max(1)).map(|_| start()).collect();
        let started = starting
            .into_iter()
            .map(|environment| environment.join().map_err(|_| anyhow!("a panic")).flatten());
        let free = started.collect::<Result<_>>().context("build the fixture")?;
        Ok(Self { free: Mutex::new(free), returned: Condvar::new() })
    }

    fn take(&self) -> Arc<TestEnvironment> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(environment) = free.pop() {
                return environment;
            }
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, environment: Arc<TestEnvironment>) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(environment);
        self.returned.notify_one();
    }
}
