//! The driver on a machine with systemd: a Debian disk in an emulated machine, on which containerd and a Nomad agent
//! with the driver are units. This side makes a second disk with the programs under test, and runs the machine.

mod checks;
mod inside;
mod reboot;
mod site;
mod units;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::environment;
use harness::fixture::archive::docker_archive_of;
use harness::fixture::{Catalog, images, process};
use harness::interrupt::UnderWay;

use super::machine::Machine;

pub use inside::{Args as InsideArgs, run as run_inside};

/// Time after which the guest is turned off. A quiet machine needs a fifth of it.
const LIMIT: Duration = Duration::from_secs(3600);
const MEMORY: &str = "2G";
/// Command line of the guest's kernel. `psi=1` turns the measurement of pressure on. By `panic=-1` a kernel that panics
/// reboots, which the machine's programs notice.
const KERNEL: &str = "root=/dev/vda rw rootflags=prjquota psi=1 panic=-1";
/// Mount point of the second disk in the guest.
const UNDER_TEST: &str = "/opt/guest";
/// Script on the second disk that a unit of the Debian disk runs.
const START: &str = include_str!("start");
const REDIS: &str = "docker.io/library/redis:alpine";
const BUSYBOX: &str = "docker.io/library/busybox:latest";

#[derive(clap::Args)]
pub struct Args {
    /// The driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// The agent's binary.
    #[arg(long)]
    nomad: PathBuf,
    /// The directory of Debian's disk, kernel and initial root, as hack/guest makes it.
    #[arg(long)]
    disk: PathBuf,
    /// Opens a shell on this terminal in place of the checks.
    #[arg(long)]
    shell: bool,
    /// Runs only checks whose name contains one of these.
    filter: Vec<String>,
}

/// Runs the checks in a guest.
///
/// # Errors
/// Fails if the guest can't run, or ended without a result. A check that fails is in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let _under_way = (!args.shell).then(UnderWay::begin);
    let directory = environment::own_directory()?;
    let under_test = directory.path().join("under-test.img");
    pack(args, &directory.path().join("under-test"), &under_test).context("make the guest's second disk")?;
    let machine = Machine {
        kernel: &args.disk.join("vmlinuz"),
        initial_root: &args.disk.join("initrd"),
        arguments: KERNEL,
        memory: MEMORY,
        disks: &[&args.disk.join("disk"), &under_test],
        reboots: true,
        directory: directory.path(),
        limit: LIMIT,
    };
    if args.shell { machine.run_on_terminal().map(|()| ExitCode::SUCCESS) } else { machine.run() }
}

fn pack(args: &Args, directory: &Path, disk: &Path) -> Result<()> {
    fs::create_dir(directory)?;
    for (name, from) in [
        ("conformance", &std::env::current_exe()?),
        ("containerd-driver", &args.plugin),
        ("nomad", &args.nomad),
    ] {
        fs::copy(from, directory.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    let busybox = images::busybox(serde_json::json!({"Cmd": ["sh"]}))?;
    let archive = docker_archive_of(&[(&Catalog::get()?.redis(), REDIS), (&busybox, BUSYBOX)])?;
    fs::write(directory.join("images.tar"), archive)?;
    fs::write(directory.join("start"), START)?;
    let shell = args.shell.then_some("--shell");
    let arguments: Vec<&str> = shell.into_iter().chain(args.filter.iter().map(String::as_str)).collect();
    fs::write(directory.join("arguments"), arguments.join("\n"))?;
    File::create(disk)?.set_len(1 << 30)?;
    let mut make = Command::new("mkfs.ext4");
    process::output(make.arg("-q").arg("-d").arg(directory).arg(disk)).map(drop)
}
