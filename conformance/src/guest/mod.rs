//! Runs a part of the suite on a kernel with cgroup v2 alone, whatever this machine has: in a machine that QEMU emulates
//! in software, some ten times slower than this one, with Debian's kernel and a root in memory.

mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::e2e::options;
use crate::fixture::{self, Choice, Programs};
use crate::interrupt::{UnderWay, interrupted};
use root::Root;

/// The cases that run there, by words of their names: what depends on the kernel and its control groups, and of the
/// rest enough to show that a task lives and ends as elsewhere.
const CASES: &[&str] = &[
    "account: a running task",
    "devices:",
    "ends: a child killed",
    "exec: both streams",
    "failed start: a command",
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
    "run: a task that",
    "stats: cpu time",
    "stats: memory",
    "stats: the shim is asked",
    "stats: usage comes",
    "stop: a task among the hosts",
    "stop: a task that heeds",
    "stop: a task that ignores",
    "stop: all processes",
    "wait: a destroy tells",
    "wait: the same allocation",
];
/// Past it the guest is turned off.
const LIMIT: Duration = Duration::from_secs(900);
const MEMORY: &str = "3G";
const PROCESSORS: &str = "2";
const INIT: &str = include_str!("init");
/// Loaded by the guest: the kernel has the rest built in.
const MODULE: &str = "kernel/fs/overlayfs/overlay.ko";

#[derive(clap::Args)]
pub struct Args {
    /// The driver's binary.
    #[arg(long)]
    plugin: PathBuf,
    /// Where a Debian kernel package (linux-image-*-cloud-amd64) is unpacked.
    #[arg(long)]
    kernel: PathBuf,
    /// An agent's binary: the end-to-end set runs under it there, in place of the cases against the plugin alone.
    #[arg(long)]
    nomad: Option<PathBuf>,
    #[command(flatten)]
    choice: Choice,
    /// Only cases whose name contains one of these, in place of the usual choice.
    filter: Vec<String>,
}

/// # Errors
/// Says what keeps the guest from running, or that it ended without a result. A case that fails is in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let _under_way = UnderWay::begin();
    let directory = fixture::own_directory()?;
    let archive = directory.path().join("root.cpio");
    pack(args, directory.path(), &archive).context("make the guest's root")?;
    let kernel = only_match(&args.kernel.join("boot"), "vmlinuz-")?;
    let result = directory.path().join("result");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(boot(&kernel, &archive, &result))?;
    let result = fs::read_to_string(&result).unwrap_or_default();
    let code = result.trim().parse::<u8>();
    Ok(ExitCode::from(code.map_err(|_| anyhow!("the guest ended without a result"))?))
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

/// What the guest's `conformance` is called with.
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

/// Runs the machine until it turns itself off, with its console on stdout.
async fn boot(kernel: &Path, archive: &Path, result: &Path) -> Result<()> {
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", PROCESSORS, "-m", MEMORY])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(archive)
        // A kernel that gives up reboots, which ends the machine.
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
        .args(["-serial", "stdio", "-serial"])
        .arg(format!("file:{}", result.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Ctrl-C is for this process alone, which then ends the machine.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("start qemu-system-x86_64")?;
    let mut console = BufReader::new(machine.stdout.take().context("qemu has no stdout")?);
    let shown = async {
        let mut line = Vec::new();
        while console.read_until(b'\n', &mut line).await? > 0 {
            println!("{}", String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        machine.wait().await
    };
    let ended = tokio::select! {
        ended = tokio::time::timeout(LIMIT, shown) => ended,
        () = interrupted() => bail!("interrupted"),
    };
    let status = ended.map_err(|_| anyhow!("the guest still ran after {LIMIT:?}"))??;
    if status.success() { Ok(()) } else { bail!("qemu-system-x86_64 ended with {status}") }
}

/// The one entry of a directory whose name begins so.
fn only_match(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("look into {}", directory.display()))?;
    let named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    match named.map(|entry| entry.path()).collect::<Vec<_>>().as_slice() {
        [one] => Ok(one.clone()),
        found => bail!("{} {prefix}* in {}, not one", found.len(), directory.display()),
    }
}
