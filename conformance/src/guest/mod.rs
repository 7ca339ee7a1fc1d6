//! Runs a part of the suite on a kernel with cgroup v2 alone, whatever this machine has: in a machine that QEMU
//! emulates in software, some ten times slower than this one, with Debian's kernel and a root in memory.

mod machine;
mod root;
pub mod systemd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::environment;
use harness::fixture::{Choice, Programs};
use harness::interrupt::UnderWay;

use crate::e2e::options;
use machine::Machine;
use root::Root;

/// Cases that run in the guest, by words of their names: those that depend on the kernel and its cgroups, and a few of
/// the others, which show that a task lives and ends as elsewhere. A case takes some twelve seconds there.
const CASES: &[&str] = &[
    "account: a running task",
    "cgroup moves:",
    "devices: a device has",
    "devices: a device may",
    "ends: a child killed",
    "exec: both streams",
    "limits:",
    "own cgroups: a process that was moved",
    "own cgroups: a task that is all in groups",
    "own cgroups: a task with a frozen group",
    "modes: a task shares",
    "modes: a task that sees",
    "recover: a shim that",
    "recover: a task runs on",
    "recover: an exit while",
    "resources:",
    "run: a task that is killed",
    "stats: cpu time",
    "stats: memory",
    "stats: the shim is asked",
    "stats: usage comes",
    "stop: a task among the hosts",
    "stop: a task that heeds",
    "stop: a task that ignores",
    "stop: all processes",
    "wait: a destroy tells",
];
/// Time after which the guest is turned off.
const LIMIT: Duration = Duration::from_secs(1500);
const MEMORY: &str = "3G";
const INIT: &str = include_str!("init");
/// Kernel module that the guest loads. All others that it needs are built into the kernel.
const MODULE: &str = "kernel/fs/overlayfs/overlay.ko";

#[derive(clap::Args)]
pub struct Args {
    /// The driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Directory in which a Debian kernel package (linux-image-*-cloud-amd64) is unpacked.
    #[arg(long)]
    kernel: PathBuf,
    /// An agent's binary: the end-to-end set runs under it there, in place of the cases against the plugin alone.
    #[arg(long)]
    nomad: Option<PathBuf>,
    #[command(flatten)]
    choice: Choice,
    /// Runs only cases whose name contains one of these, in place of the usual choice.
    filter: Vec<String>,
}

/// Runs the cases in a guest.
///
/// # Errors
/// Fails if the guest can't run, or ended without a result. A case that fails is in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let _under_way = UnderWay::begin();
    let directory = environment::own_directory()?;
    let archive = directory.path().join("root.cpio");
    pack(args, directory.path(), &archive).context("make the guest's root")?;
    let kernel = only_match(&args.kernel.join("boot"), "vmlinuz-")?;
    let machine = Machine {
        kernel: &kernel,
        initial_root: &archive,
        // A kernel that panics reboots, which ends the machine.
        arguments: "panic=-1",
        memory: MEMORY,
        disks: &[],
        reboots: false,
        directory: directory.path(),
        limit: LIMIT,
    };
    machine.run()
}

fn pack(args: &Args, directory: &Path, archive: &Path) -> Result<()> {
    let programs = Programs::find(&args.choice)?;
    let mut root = Root::with_programs(&programs)?;
    root.program(&std::path::absolute(&args.plugin)?, "containerd-driver")?;
    root.program(&std::env::current_exe()?, "conformance")?;
    let modules = only_match(&args.kernel.join("lib/modules"), "")?;
    root.file(&std::path::absolute(modules.join(MODULE))?, Path::new("/overlay.ko"));
    let init = directory.join("init");
    fs::write(&init, INIT)?;
    make_executable(&init)?;
    root.file(&init, Path::new("/init"));
    if let Some(nomad) = &args.nomad {
        root.file(&std::path::absolute(nomad)?, Path::new("/bin/nomad"));
        for (at, path) in options::for_guest()? {
            root.file(&fs::canonicalize(path)?, &at);
        }
    }
    let arguments = directory.join("arguments");
    fs::write(&arguments, arguments_inside(args, &programs).join("\n") + "\n")?;
    root.file(&arguments, Path::new("/arguments"));
    let scratch = directory.join("root");
    fs::create_dir(&scratch)?;
    root.pack(&scratch, archive)
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o755))?)
}

/// Returns the arguments of the guest's `conformance`.
fn arguments_inside(args: &Args, programs: &Programs) -> Vec<String> {
    let mut arguments = match &args.nomad {
        Some(_) => vec!["e2e", "--nomad", "/bin/nomad"],
        None => vec!["suite", "--jobs", "1"],
    };
    let runtime = programs.runtime_name();
    arguments.extend(["--shim", programs.shim_runtime(), "--runtime", &runtime]);
    arguments.extend(["--plugin", "/bin/containerd-driver", "--"]);
    if args.filter.is_empty() && args.nomad.is_none() {
        arguments.extend(CASES);
    }
    arguments.extend(args.filter.iter().map(String::as_str));
    arguments.into_iter().map(str::to_owned).collect()
}

/// Returns the only entry of a directory whose name has this prefix.
fn only_match(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("look into {}", directory.display()))?;
    let named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    match named.map(|entry| entry.path()).collect::<Vec<_>>().as_slice() {
        [one] => Ok(one.clone()),
        found => bail!("{} {prefix}* in {}, not one", found.len(), directory.display()),
    }
}
