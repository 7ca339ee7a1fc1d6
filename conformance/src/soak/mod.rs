//! The soak of a node: a day's events pressed into some time, by seed, and a look at what they have left of the node's
//! memory, descriptors, threads and disk.

mod figures;
mod job;
mod node;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::environment::TestEnvironment;
use harness::fixture::{Choice, Programs};
use harness::interrupt::{UnderWay, check};
use node::Node;
use tokio::runtime::Runtime;

use crate::random::Random;
use harness::page;

/// Words that frame the table in a page.
const FRAME: &str = "hack/soak";
/// Part of the time that goes by before the first look, for what a node needs only once.
const WARM_UP: u32 = 10;

#[derive(clap::Args)]
pub struct Args {
    /// Path of the driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Number from which the events are chosen.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Time for which events are made, in minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u32,
    /// Number of tasks that the node has, as soon as they are started.
    #[arg(long, default_value_t = 60)]
    tasks: usize,
    /// Page whose table of results is replaced by this run's.
    #[arg(long)]
    page: Option<PathBuf>,
    #[command(flatten)]
    pub choice: Choice,
}

/// # Errors
/// Fails with the first event that went wrong, with what is left of the tasks, or with what has grown.
pub fn run(args: &Args) -> Result<ExitCode> {
    let plugin = std::path::absolute(&args.plugin)?;
    let programs = Programs::find(&args.choice)?;
    println!("{}", programs.versions().join(", "));
    let _under_way = UnderWay::begin();
    let environment = TestEnvironment::start_of(programs)?;
    let time = Duration::from_secs(60) * args.minutes;
    let runtime = Runtime::new()?;
    let soaked = runtime.block_on(async {
        let mut node = Node::set_up(&environment, &plugin, args.tasks, Random::of(args.seed)).await?;
        let soaked = soak(&mut node, time).await;
        soaked.map_err(|error| anyhow::anyhow!("{error:#}\n{}", node.give_up()))
    });
    let text = soaked?;
    print!("{text}");
    if let Some(path) = &args.page {
        page::write_into(path, FRAME, &text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes events for some time, twice: the first, short time leaves what a node keeps for good.
async fn soak(node: &mut Node, time: Duration) -> Result<String> {
    events(node, time / WARM_UP).await?;
    let before = node.rest().await.context("after the warm-up")?;
    node.forget_counts();
    events(node, time - time / WARM_UP).await?;
    let after = node.rest().await.context("after all events")?;
    let text = format!("{}\n{}\n{}", node.counts(), node.latencies(), after.beside(&before));
    after.assert_no_growth(&before).with_context(|| format!("the tables are\n{text}"))?;
    Ok(text)
}

async fn events(node: &mut Node, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    let mut told = Instant::now();
    while Instant::now() < until {
        check()?;
        node.next_event().await?;
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            println!("{} s left, {}", (until - Instant::now().min(until)).as_secs(), node.state());
        }
    }
    Ok(())
}
