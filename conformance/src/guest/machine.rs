//! An emulated machine: starts QEMU, shows its console, limits its time. Knows nothing of what runs in it.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use harness::interrupt::interrupted;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const PROGRAM: &str = "qemu-system-x86_64";
const PROCESSORS: &str = "2";

/// The parts of an emulated machine.
pub struct Machine<'a> {
    pub kernel: &'a Path,
    pub initial_root: &'a Path,
    /// Arguments of the kernel's command line, beside the console.
    pub arguments: &'a str,
    pub memory: &'a str,
    /// Images of disks, which are never changed: what the guest writes is lost when the machine is turned off.
    pub disks: &'a [&'a Path],
    /// Whether a reboot of the guest restarts the machine. Else a reboot turns it off.
    pub reboots: bool,
    /// Directory for the guest's writes to disks, and for its exit code.
    pub directory: &'a Path,
    /// Time after which the machine is turned off.
    pub limit: Duration,
}

impl Machine<'_> {
    /// Runs the machine until it turns itself off, with its console on stdout. Returns the exit code that the guest has
    /// written on its second serial line.
    ///
    /// # Errors
    /// Fails if the machine could not be run, ran too long, or ended without a code.
    pub fn run(&self) -> Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.show())?;
        let code = fs::read_to_string(self.result()).unwrap_or_default();
        let code = code.trim().parse::<u8>();
        Ok(ExitCode::from(code.map_err(|_| anyhow!("the guest ended without a result"))?))
    }

    /// Runs the machine with its console on this process' terminal, until it turns itself off.
    ///
    /// # Errors
    /// Fails if the machine could not be run.
    pub fn run_on_terminal(&self) -> Result<()> {
        // Ctrl-C is for the user of the machine; Ctrl-A X turns it off.
        let status = self.command("mon:stdio").into_std().status();
        let status = status.with_context(|| format!("start {PROGRAM}"))?;
        ensure!(status.success(), "{PROGRAM} ended with {status}");
        Ok(())
    }

    fn result(&self) -> std::path::PathBuf {
        self.directory.join("result")
    }

    fn command(&self, console: &str) -> Command {
        let joined = |start: &str, path: &Path, end: &str| {
            let mut word = OsString::from(start);
            word.push(path);
            word.push(end);
            word
        };
        let mut command = Command::new(PROGRAM);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", PROCESSORS, "-m", self.memory])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initial_root)
            .args(["-append", &format!("console=ttyS0 quiet mitigations=off {}", self.arguments)])
            .args(["-serial", console, "-serial"])
            .arg(joined("file:", &self.result(), ""))
            .env("TMPDIR", self.directory);
        for disk in self.disks {
            command.arg("-drive");
            command.arg(joined("file=", disk, ",format=raw,if=virtio,snapshot=on,cache=unsafe"));
        }
        if !self.reboots {
            command.arg("-no-reboot");
        }
        command
    }

    async fn show(&self) -> Result<()> {
        let mut machine = self
            .command("stdio")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C is for this process alone, which then ends the machine.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {PROGRAM}"))?;
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
            ended = tokio::time::timeout(self.limit, shown) => ended,
            () = interrupted() => bail!("interrupted"),
        };
        let status = ended.map_err(|_| anyhow!("the guest still ran after {:?}", self.limit))??;
        ensure!(status.success(), "{PROGRAM} ended with {status}");
        Ok(())
    }
}
