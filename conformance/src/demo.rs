//! The demo: a redis job on a real agent, shown step by step with the commands that a person would type and their
//! output. It also checks what it shows.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::agent::command::Output;
use harness::agent::{Agent, Allocation, Client, Mode};
use harness::config;
use harness::context::CaseContext;
use harness::context::agent;
use harness::environment::TestEnvironment;
use harness::leaks::census::Census;
use harness::leaks::report::LeakCheck;
use harness::processes;

const REDIS: &str = include_str!("../../examples/job.nomad.hcl");
const MISSING: &str = include_str!("../../hack/jobs/missing-image.nomad.hcl");
const SOON: Duration = Duration::from_secs(60);

/// Prints the steps of the demo to stdout.
pub struct StepPrinter {
    begun: Instant,
}

impl StepPrinter {
    pub fn begin() -> Self {
        Self { begun: Instant::now() }
    }

    fn step(&self, words: &str) {
        println!("\n[{:5.1} s] {words}", self.begun.elapsed().as_secs_f32());
    }

    /// Runs a `nomad` command, and shows it with its answer.
    fn ask(&self, agent: &Client, arguments: &[&str]) -> Result<Output> {
        println!("  $ nomad {}", arguments.join(" "));
        let output = agent.ask(arguments)?;
        for line in output.stdout().lines().chain(output.stderr().lines()) {
            println!("  | {line}");
        }
        std::io::stdout().flush()?;
        ensure!(output.code == Some(0), "it ended with {:?}", output.code);
        Ok(output)
    }

    fn result(&self, words: &str) {
        println!("  = {words}");
    }
}

/// Runs the whole demo, under a real agent if there is one.
///
/// # Errors
/// Carries the first thing that was not as it should be.
pub fn run(nomad: Option<&Path>, plugin: &Path) -> Result<()> {
    match nomad {
        Some(nomad) => with_agent(nomad, plugin),
        None => without_agent(plugin),
    }
}

fn with_agent(nomad: &Path, plugin: &Path) -> Result<()> {
    let printer = StepPrinter::begin();
    printer.step("A private containerd and a private registry with a redis image");
    let environment = TestEnvironment::start()?;
    let image = environment.image("library/redis:alpine");
    printer.result(&format!(
        "containerd at {}, the image is {image}",
        environment.containerd().socket().display()
    ));

    printer.step("A Nomad agent with the driver in its plugin directory");
    let setup = agent::setup(&environment, Mode::Dev, nomad, plugin);
    let state_dir = setup.state_dir.clone();
    let mut agent = Agent::start(setup)?;
    let health = agent.driver_becomes(true)?;
    printer.result(&format!("the node's driver containerd-driver is healthy: {}", health.health_description));
    for (name, value) in health.attributes.iter().flatten() {
        printer.result(&format!("{name} = {value}"));
    }

    let mut cgroups = Vec::new();
    redis(&printer, &agent, &image, &mut cgroups)?;
    missing_image(&printer, &mut agent, &environment.image("library/no-such-image:latest"), &mut cgroups)?;

    printer.step("What is left");
    LeakCheck {
        containerd: environment.containerd(),
        networks: environment.networks(),
        state_dir: &state_dir,
        cgroups: &cgroups,
        before: &Census::default(),
    }
    .assert_nothing_left()?;
    printer.result("no container, snapshot, lease, mount, cgroup, network, pipe or shim of these jobs");
    agent.stop()?;
    let leaks = agent.leaks();
    ensure!(leaks.is_empty(), "the agent left behind:\n  {}", leaks.join("\n  "));
    drop(agent);
    let directory = environment.directory().to_owned();
    drop(environment);
    ensure!(!directory.exists(), "{} is still there", directory.display());
    printer.result("no agent, plugin, containerd or registry runs, and their directory is gone");
    printer.step("All as it should be");
    Ok(())
}

/// Runs the redis job on an agent: starts it, queries it, reads its log, stops it.
///
/// # Errors
/// Carries the first thing that was not as it should be.
pub fn redis(printer: &StepPrinter, agent: &Client, image: &str, cgroups: &mut Vec<String>) -> Result<()> {
    printer.step("The redis job");
    for line in REDIS.lines().filter(|line| !line.trim_start().starts_with('#')) {
        println!("  > {line}");
    }
    println!("  $ nomad job run -detach -var image={image} redis.nomad.hcl");
    agent.submit(REDIS, &[("image", image)])?;
    let id = agent.placed("redis", 1)?.remove(0);
    cgroups.push(format!("{id}.redis-task"));
    let running = |allocation: &Allocation| {
        allocation.is_terminal() || allocation.task("redis-task").state == "running"
    };
    let allocation = agent.allocation_until(&id, "running redis", SOON, running)?;
    ensure!(allocation.task("redis-task").state == "running", "redis does not run\n{}", allocation.summary());
    let pid = processes::first_of_task(&id, "redis-task")?;
    printer.result(&format!("it runs, as process {pid} of this machine"));
    printer.ask(agent, &["alloc", "status", &id])?;

    printer.step("Asked by `nomad alloc exec`");
    let ping = ["alloc", "exec", "-i=false", "-t=false", "-task", "redis-task", &id, "redis-cli", "ping"];
    let deadline = Instant::now() + SOON;
    // The process runs; redis may still be getting ready to listen.
    while agent.ask(&ping)?.stdout().trim() != "PONG" && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    let answer = printer.ask(agent, &ping)?.stdout();
    ensure!(answer.trim() == "PONG", "redis answers {answer:?}");

    printer.step("Its log, by `nomad alloc logs`");
    let log = printer.ask(agent, &["alloc", "logs", &id, "redis-task"])?.stdout();
    ensure!(log.contains("Ready to accept connections"), "redis does not say that it is ready");

    printer.step("Stopped");
    printer.ask(agent, &["job", "stop", "-detach", "redis"])?;
    let stopped = agent.allocation_until(&id, "stopped allocation", SOON, Allocation::is_terminal)?;
    let task = stopped.task("redis-task");
    let took = task.event("Killed")?.at().duration_since(task.event("Killing")?.at())?;
    ensure!(!processes::alive(pid), "process {pid} is still there");
    printer
        .result(&format!("process {pid} is gone; from the stop to the last of it: {} ms", took.as_millis()));
    printer.ask(agent, &["job", "stop", "-purge", "-detach", "redis"]).map(drop)
}

fn missing_image(
    printer: &StepPrinter,
    agent: &mut Agent,
    image: &str,
    cgroups: &mut Vec<String>,
) -> Result<()> {
    printer.step("A job whose image does not exist");
    println!("  $ nomad job run -detach -var image={image} missing-image.nomad.hcl");
    agent.submit(MISSING, &[("image", image)])?;
    let id = agent.placed("missing-image", 1)?.remove(0);
    cgroups.push(format!("{id}.main"));
    let failed = agent.allocation_until(&id, "failed allocation", SOON, Allocation::is_terminal)?;
    let status = printer.ask(agent, &["alloc", "status", &id])?.stdout();
    let task = failed.task("main");
    let message = task.event("Driver Failure")?.display_message.clone();
    ensure!(message.contains(image), "the event does not name the image: {message}");
    ensure!(status.contains(image), "`nomad alloc status` does not name the image");
    printer.result(&format!("the event says why: {message}"));
    ensure!(agent.is_alive() && agent.driver()?.healthy, "the agent or the driver did not survive it");
    printer.result("the agent is alive, and the driver healthy");
    printer.ask(agent, &["job", "stop", "-purge", "-detach", "missing-image"]).map(drop)
}

/// Runs the same job without an agent: the conformance host plays Nomad to the driver.
fn without_agent(plugin: &Path) -> Result<()> {
    let printer = StepPrinter::begin();
    printer.step("A private containerd and a private registry with a redis image");
    let environment = TestEnvironment::start()?;
    tokio::runtime::Runtime::new()?.block_on(host_plays(&printer, &environment, plugin))?;
    let directory = environment.directory().to_owned();
    drop(environment);
    ensure!(!directory.exists(), "{} is still there", directory.display());
    printer.step("All as it should be");
    Ok(())
}

async fn host_plays(printer: &StepPrinter, environment: &Arc<TestEnvironment>, plugin: &Path) -> Result<()> {
    let context = CaseContext::new(Arc::clone(environment), plugin, "demo".to_owned());
    printer.step("The driver, started as an agent starts it");
    let mut plugin = context.plugin().await?;
    let info = plugin.info().await?;
    printer.result(&format!("{} {}, process {}", info.name, info.plugin_version, plugin.pid()));

    printer.step("The redis job");
    let task = context.run(&plugin, &config! { image = context.image("library/redis:alpine") }).await?;
    printer.result(&format!("it runs, as process {} of this machine", task.pid()?));

    printer.step("Asked by an exec of `redis-cli ping`, once its log says that it is ready");
    task.alloc.stdout.to_contain("Ready to accept connections", SOON).await?;
    let (_, answer) = task.exec(&plugin, "redis-cli ping").await?;
    printer.result(answer.trim());
    ensure!(answer.trim() == "PONG", "redis answers {answer:?}");
    printer.step("Its log");
    task.alloc.stdout.text().lines().for_each(|line| println!("  | {line}"));

    printer.step("Stopped");
    task.stop(&plugin, Duration::from_secs(5)).await?;
    let exit = task.wait(&plugin).await?;
    task.destroy(&plugin).await?;
    printer.result(&format!("it ended with exit code {}", exit.exit_code));

    printer.step("A job whose image does not exist");
    let image = context.image("library/no-such-image:latest");
    let mut missing = context.prepare(&plugin, &config! { image = image.clone() }).await?;
    let refusal = missing.start(&plugin).await.err().context("it started")?;
    let text = format!("{refusal:#}");
    ensure!(text.contains(&image), "the error does not name the image: {text}");
    printer.result(&format!("the error says why: {text}"));

    printer.step("What is left");
    plugin.shut_down().await?;
    context.close()?;
    printer.result("no container, snapshot, lease, mount, cgroup, pipe or shim of these jobs");
    Ok(())
}
