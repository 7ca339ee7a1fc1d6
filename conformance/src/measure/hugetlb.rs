//! On a machine with both versions of control groups, crun wants no controller left on v2. Where hugetlb is one, it is
//! mounted as v1 for the time of the figures, in a mount namespace of our own, and given back afterwards.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::fixture;

const POINT: &str = "/sys/fs/cgroup/hugetlb";
/// The kernel lets go of a hierarchy only after the groups in it are, and only at an unmount.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(200);

/// The mount, where one is needed. Dropped, v2 gets its controller back.
pub struct Hugetlb {
    mounted: bool,
}

impl Hugetlb {
    /// To be called while the process has one thread: those that are there already would not see the mount. Where it can't
    /// be had, crun says so itself.
    pub fn move_to_v1() -> Self {
        let needed = is_on_v2() && fixture::process::output(Command::new("crun").arg("--version")).is_ok();
        let mounted = needed
            && mount_privately()
                .inspect_err(|error| eprintln!("hugetlb stays on cgroup v2: {error:#}"))
                .is_ok();
        Self { mounted }
    }
}

fn mount_privately() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .context("keep mounts to ourselves")?;
    fs::create_dir_all(POINT).with_context(|| format!("make {POINT}"))?;
    mount_v1()
}

fn mount_v1() -> Result<()> {
    mount(Some("cgroup"), POINT, Some("cgroup"), MsFlags::empty(), Some("hugetlb"))
        .with_context(|| format!("mount {POINT}"))
}

fn is_on_v2() -> bool {
    let controllers = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    controllers.split_whitespace().any(|name| name == "hugetlb")
}

impl Drop for Hugetlb {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        for _ in 0..TRIES {
            let _ = umount2(POINT, MntFlags::empty());
            std::thread::sleep(PAUSE);
            if is_on_v2() || mount_v1().is_err() {
                break;
            }
        }
        if !is_on_v2() {
            eprintln!("hugetlb is still on cgroup v1; it goes back once nothing is left of what was in it");
        }
        let _ = fs::remove_dir(POINT);
    }
}
