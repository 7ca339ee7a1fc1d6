//! A reboot of the machine under a running task, and the state that the next boot finds.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use harness::agent::{Allocation, SOON};
use harness::fixture::containerd::NAMESPACE;
use harness::leaks::census::Census;
use harness::leaks::inspect::children;
use serde::{Deserialize, Serialize};

use super::site::{STATE_DIR, Site, records};
use crate::e2e::support::SCRIPT;

pub const NAME: &str = "reboot: the task is started anew, and nothing of the earlier boot is left";
const JOB: &str = "over-a-reboot";
/// File by which a boot passes its state to the next one.
const FILE: &str = "/var/lib/guest.json";

/// A task that ran when the machine was rebooted, and censuses of containerd without it and with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Earlier {
    allocation: String,
    without_task: Census,
    with_task: Census,
}

impl Earlier {
    /// Starts a task, and writes the state for the next boot.
    ///
    /// # Errors
    /// Fails if the task doesn't run.
    pub fn leave(site: &mut Site) -> Result<()> {
        let without_task = records()?;
        // A task that ignores SIGTERM holds the shutdown up for a minute and a half.
        let script = format!("trap 'exit 0' TERM; {SCRIPT}");
        let (allocation, _) = site.start_script(JOB, &script, "")?;
        let with_task = records()?;
        let of_it = with_task.since(&without_task);
        for kind in ["container record", "lease", "active snapshot"] {
            ensure!(of_it.of_kind(kind).count() == 1, "it has {:?}", of_it.lines());
        }
        let earlier = Self { allocation, without_task, with_task };
        Ok(fs::write(FILE, serde_json::to_vec(&earlier)?)?)
    }

    /// Reads and removes the state of the boot before, if there is one.
    ///
    /// # Errors
    /// Fails if it can't be read.
    pub fn take() -> Result<Option<Self>> {
        let Ok(text) = fs::read(FILE) else { return Ok(None) };
        fs::remove_file(FILE)?;
        serde_json::from_slice(&text).with_context(|| format!("read {FILE}")).map(Some)
    }
}

/// Checks, after the second boot, that the task was started anew and that nothing of the earlier boot is left.
///
/// # Errors
/// Fails with what isn't as it should be.
pub fn check_after_reboot(site: &mut Site, earlier: &Earlier) -> Result<()> {
    site.adopt(JOB);
    let id = &earlier.allocation;
    let again = |allocation: &Allocation| allocation.task("main").count("Started") == 2;
    let allocation = site.client.allocation_until(id, "second start", SOON, again)?;
    ensure!(allocation.task("main").count("Failed Restoring Task") == 1, "{}", allocation.summary());
    // None of the earlier boot's names is left, and there is one of each kind for the new task.
    site.client
        .eventually("records of the new task alone", || {
            let of_it = records()?.since(&earlier.without_task);
            let old =
                earlier.with_task.since(&earlier.without_task).lines().into_iter().collect::<BTreeSet<_>>();
            let (now, bundles) = (of_it.lines(), children(&Path::new(STATE_DIR).join(NAMESPACE)));
            Ok(now.len() == 3 && now.iter().all(|line| !old.contains(line)) && bundles.len() == 1)
        })
        .with_context(|| format!("containerd has {:?}", records().map(|all| all.lines())))?;
    site.client.eventually("word of the new task", || {
        Ok(site.client.log(id, "main", false)?.ends_with(b"before\nbefore\n"))
    })?;
    site.client.pid(id)?;
    ensure!(site.client.exec(id, b"", &["true"])?.code == Some(0), "an exec in it fails");
    site.client.tell(&["alloc", "signal", "-s", "SIGUSR1", id, "main"])?;
    let ended = site.client.dead(id, "main")?.ended()?;
    ensure!(ended.exit_code == 42, "it ended as {ended:?}");
    site.client.eventually("end of all that it had", || {
        Ok(records()?.since(&earlier.without_task).is_empty()
            && children(&Path::new(STATE_DIR).join(NAMESPACE)).is_empty())
    })?;
    // Takes the census that the checks after this one are compared with.
    site.settle()
}
