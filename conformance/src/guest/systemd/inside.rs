//! In the guest, at each of its boots: the first one makes the units, starts a task and asks for a reboot; the second one
//! looks at what became of it, and runs all other checks.

use std::fs;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use harness::fixture::Programs;
use harness::fixture::containerd::NAMESPACE;
use harness::fixture::process::output;
use libtest_mimic::{Arguments, ColorSetting, Completion, Failed, Trial};

use super::checks::{self, Check};
use super::reboot::{self, Earlier};
use super::site::{CONTAINERD_SOCKET, Site};
use super::units::{AGENT, journal};
use super::{BUSYBOX, REDIS, UNDER_TEST};
use crate::case::{Skips, is_selected};

/// Exit code that asks `start` for a reboot.
const REBOOT: u8 = 75;

#[derive(clap::Args)]
pub struct Args {
    /// Leaves the machine to whoever works in it.
    #[arg(long)]
    shell: bool,
    /// Runs only checks whose name contains one of these.
    filter: Vec<String>,
}

/// Runs one boot of the guest.
///
/// # Errors
/// Fails if the units don't run. A check that fails is in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let begun = Instant::now();
    let wanted = |name: &str| is_selected(name, &args.filter);
    let mut checks: Vec<Check> = checks::all().into_iter().filter(|(name, _)| wanted(name)).collect();
    if checks.is_empty() && !wanted(reboot::NAME) {
        bail!("no check has one of {:?} in its name", args.filter);
    }
    // The console's line has control codes of the boot before this.
    println!("\n{}", machine()?);
    if let Some(earlier) = Earlier::take()? {
        let site = Site::again()?;
        println!("all is up again after {:.1} s", begun.elapsed().as_secs_f32());
        checks.insert(0, (reboot::NAME, Box::new(move |site| reboot::check_after_reboot(site, &earlier))));
        return Ok(run_checks(site, checks));
    }
    let images = format!("{UNDER_TEST}/images.tar");
    let ctr = ["-a", CONTAINERD_SOCKET, "-n", NAMESPACE];
    output(Command::new("ctr").args(ctr).args(["images", "import", "--no-unpack", &images]))?;
    let mut site = Site::make()?;
    println!("a containerd and an agent are up after {:.1} s", begun.elapsed().as_secs_f32());
    if args.shell {
        println!("units: containerd, nomad-server, nomad; images: {BUSYBOX}, {REDIS}");
        println!("the end of this shell turns the machine off, and so does Ctrl-A X");
        return Ok(ExitCode::SUCCESS);
    }
    if wanted(reboot::NAME) {
        Earlier::leave(&mut site)?;
        println!("rebooting");
        return Ok(ExitCode::from(REBOOT));
    }
    Ok(run_checks(site, checks))
}

/// Returns the versions of the machine's programs, as `hack/matrix` reads them.
fn machine() -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let version = |program: &str| output(Command::new(program).arg("--version"));
    let first =
        |program| Ok::<_, anyhow::Error>(version(program)?.lines().next().unwrap_or_default().to_owned());
    let parts = [
        Programs::find(&harness::fixture::Choice::default())?.versions().join(", "),
        first("crun")?.replace(" version", ""),
        format!("Debian {}", read("/etc/debian_version")?),
        format!("Linux {}", read("/proc/sys/kernel/osrelease")?),
        first("systemctl")?.split(" (").next().unwrap_or_default().to_owned(),
    ];
    Ok(parts.join(", "))
}

fn run_checks(site: Site, checks: Vec<Check>) -> ExitCode {
    let site = Arc::new(Mutex::new(site));
    let skips = Arc::new(Skips::default());
    let trials = checks.into_iter().map(|(name, check)| {
        let (site, skips) = (Arc::clone(&site), Arc::clone(&skips));
        Trial::ignorable_test(name, move || {
            let mut site = site.lock().unwrap_or_else(PoisonError::into_inner);
            play(&mut site, name, &check, &skips).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    // Without colors, since the output is a console's and programs read its lines.
    let color = Some(ColorSetting::Never);
    let arguments = Arguments { test_threads: Some(1), color, ..Arguments::default() };
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    skips.summarize("guest", &conclusion);
    conclusion.exit_code()
}

fn play(
    site: &mut Site,
    name: &str,
    check: impl Fn(&mut Site) -> Result<()>,
    skips: &Skips,
) -> Result<Completion> {
    let played = skips.sort(name, check(site));
    let log = if played.is_err() { journal(AGENT, 30) } else { String::new() };
    let cleared = site.clear();
    let completion = played.map_err(|error| {
        let left = cleared.as_ref().err().map(|error| format!("\nand then: {error:#}")).unwrap_or_default();
        anyhow!("{AGENT} said:\n{log}\n{error:#}{left}")
    })?;
    cleared.map(|()| completion)
}
