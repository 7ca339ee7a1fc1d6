//! Tests, shows and measures a driver plugin: the commands of the program `conformance`.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test bench prints to a person")]
#![allow(clippy::large_futures, reason = "a test bench runs few futures")]
#![allow(unreachable_pub, reason = "nothing of a program can be reached from outside")]

mod case;
mod cases;
mod census;
mod cluster;
mod csi_plugin;
mod demo;
mod differ;
mod e2e;
mod faults;
mod guest;
mod hostile;
mod random;
mod soak;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
#[cfg(feature = "bench")]
use bench::measure;
use clap::{Parser, Subcommand};
use harness::agent;
use harness::environment::{self, TestEnvironment};
use harness::fixture::{Choice, Programs};
use harness::hugetlb::Hugetlb;
use harness::interrupt::{self, UnderWay};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all cases against a plugin's binary, on a private containerd.
    Suite(suite::Args),
    /// Run the cases that depend on the kernel, in an emulated machine with cgroup v2 only.
    Guest(guest::Args),
    /// Check what depends on a machine with systemd, in an emulated one: restarts of units, a reboot, AppArmor.
    GuestSystemd(guest::systemd::Args),
    /// Run the checks of `guest-systemd` themselves, within that machine.
    #[command(hide = true)]
    InGuest(guest::systemd::InsideArgs),
    /// Run a containerd and a registry with images until Ctrl-C, to try things by hand.
    World(Choice),
    /// Run a redis job, step by step.
    Demo {
        /// Path of the driver's binary.
        #[arg(long)]
        plugin: PathBuf,
        /// Path of Nomad's binary. Without it, the host of the suite plays Nomad.
        #[arg(long)]
        nomad: Option<PathBuf>,
    },
    /// List all that a driver can leave on this machine, or compare it with an earlier list.
    Census(census::Args),
    /// Run the end-to-end set under a real Nomad agent.
    E2e(e2e::Args),
    /// Inject a fault at each step of the plugin, and check what must hold afterwards.
    Faults(faults::Args),
    /// Run hostile jobs, made at random from a grammar, and check what must hold beside them and afterwards.
    Hostile(hostile::Args),
    /// Press a day's events of a node into some time, by seed, and check what is left of its memory, files and disk.
    Soak(soak::Args),
    /// Drain nodes of a small cluster, let them die and cut them off, and check that each task runs exactly once.
    Cluster(cluster::Args),
    /// Run the same jobs under Nomad's own docker driver and under this one, and compare all that can be seen of them.
    Differ(differ::Args),
    /// Trace a plugin, for `faults`.
    #[command(hide = true)]
    Inject(faults::injector::Args),
    /// Serve volumes as a CSI plugin in a task, for `e2e`.
    #[command(hide = true)]
    CsiPlugin,
    #[cfg(feature = "bench")]
    /// Measure the driver beside containerd, runc and crun.
    Measure(measure::Args),
    #[cfg(feature = "bench")]
    /// Measure a shim's calls by several paths in alternation.
    Bench(Box<bench::Args>),
}

fn main() -> ExitCode {
    let outcome = run(Cli::parse());
    interrupt::stay_if_interrupted();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    // crun's cgroups are moved before there is a second thread, and given back after all else, also after an
    // interrupt.
    let crun = match &cli.command {
        #[cfg(feature = "bench")]
        Command::Measure(args) => args.choice.is_crun(),
        #[cfg(feature = "bench")]
        Command::Bench(args) => args.may_run_crun(),
        Command::Suite(args) => args.choice.is_crun(),
        Command::E2e(args) => args.choice.is_crun(),
        Command::World(choice) => choice.is_crun(),
        Command::Faults(args) => args.choice.is_crun(),
        Command::Hostile(args) => args.choice.is_crun(),
        Command::Soak(args) => args.choice.is_crun(),
        Command::Cluster(args) => args.choice.is_crun(),
        Command::Differ(args) => args.choice.is_crun(),
        Command::Census(_)
        | Command::Guest(_)
        | Command::GuestSystemd(_)
        | Command::InGuest(_)
        | Command::Inject(_)
        | Command::CsiPlugin
        | Command::Demo { .. } => false,
    };
    let unwinds = crun || is_measurement(&cli.command);
    let _moved = (crun.then(Hugetlb::move_to_v1), unwinds.then(UnderWay::begin));
    clean_up_when_interrupted()?;
    match cli.command {
        Command::Suite(args) => suite::run(&args),
        Command::Guest(args) => guest::run(&args),
        Command::GuestSystemd(args) => guest::systemd::run(&args),
        Command::InGuest(args) => guest::systemd::run_inside(&args),
        Command::World(choice) => hold_world(&choice),
        Command::Demo { plugin, nomad } => demo::run(nomad.as_deref(), &plugin).map(|()| ExitCode::SUCCESS),
        Command::Census(args) => census::run(&args),
        Command::E2e(args) => e2e::run(&args),
        Command::Faults(args) => faults::run(&args),
        Command::Hostile(args) => hostile::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Differ(args) => differ::run(&args),
        Command::Inject(args) => faults::injector::run(&args),
        Command::CsiPlugin => csi_plugin::run(),
        #[cfg(feature = "bench")]
        Command::Measure(args) => measure::run(&args).map(|()| ExitCode::SUCCESS),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(&args),
    }
}

/// Reports whether a command is a measurement, which unwinds by itself after an interrupt.
#[cfg(feature = "bench")]
fn is_measurement(command: &Command) -> bool {
    matches!(command, Command::Measure(_) | Command::Bench(_))
}

/// Reports whether a command is a measurement: never, in a build without the benchmark.
#[cfg(not(feature = "bench"))]
const fn is_measurement(_: &Command) -> bool {
    false
}

/// Starts a thread that takes the fixtures down on Ctrl-C and SIGTERM before the process ends: nothing unwinds then.
fn clean_up_when_interrupted() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(move || {
            let received = runtime.block_on(async {
                let mut interrupt = signal(SignalKind::interrupt())?;
                let mut terminate = signal(SignalKind::terminate())?;
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                std::io::Result::Ok(())
            });
            if received.is_ok() {
                eprintln!("interrupted: taking everything down");
                interrupt::give_up();
                agent::take_down_all();
                environment::take_down_all();
                std::process::exit(130);
            }
        })
        .context("start the thread that waits for signals")?;
    Ok(())
}

fn hold_world(choice: &Choice) -> Result<ExitCode> {
    let started = std::time::Instant::now();
    let environment = TestEnvironment::start_of(Programs::find(choice)?)?;
    println!("up after {:?}", started.elapsed());
    println!("containerd  {}", environment.containerd().socket().display());
    for image in ["busybox:latest", "styled:latest", "library/redis:alpine", "broken:unreadable"] {
        println!("image       {}", environment.image(image));
    }
    loop {
        std::thread::park();
    }
}
